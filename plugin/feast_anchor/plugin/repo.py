"""A feature repo as our own commands see it: its store, its engine settings, its catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from feast_anchor.onnx_export.errors import SpecError

from .config import EngineConfig, parse_config

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

    from .catalog import Catalog
    from .planning import PlannedView, Wanted


@dataclass(frozen=True)
class Repo:
    """A folder with a feature_store.yaml whose batch engine is ours."""

    folder: Path
    settings: EngineConfig

    @classmethod
    def open(cls, folder: Path) -> Repo:
        """Read the settings. Raises `SpecError` if there are none, or none of ours."""
        from feast.repo_config import load_repo_config

        folder = folder.absolute()
        file = folder / "feature_store.yaml"
        if not file.is_file():
            raise SpecError(
                f"no feature_store.yaml in {folder}; go to your feature repo or use --repo"
            )
        block = load_repo_config(folder, file).batch_engine_config
        if not isinstance(block, dict) or "feast_anchor" not in str(block.get("type")):
            raise SpecError(
                f"{file}: batch_engine is {block!r}, expected a block with "
                "type: feast_anchor.plugin.BeamComputeEngine"
            )
        return cls(folder, parse_config(block))

    def store(self) -> FeatureStore:
        """The repo's feature store; its registry must have been applied."""
        from feast import FeatureStore

        return FeatureStore(repo_path=str(self.folder))

    def plan(self, store: FeatureStore, view: FeatureView, wanted: Wanted) -> PlannedView:
        """Plan a run of a view. Raises what `planning.plan_view` raises."""
        from .planning import plan_view

        return plan_view(
            view,
            store.project,
            wanted,
            store.registry,
            self.settings,
            self.folder,
            store.config,
        )

    def catalog(self) -> Catalog:
        """The open catalogue."""
        from .catalog import Catalog

        return Catalog.open(self.settings.catalog_url(self.folder))


def scenario_views(store: FeatureStore, names: Sequence[str]) -> list[FeatureView]:
    """Applied scenario views by name, each once, or all of them.

    Raises `SpecError` for any other name.
    """
    from .spec import is_ours

    applied = {view.name: view for view in store.list_feature_views() if is_ours(view)}
    unknown = [name for name in names if name not in applied]
    if unknown or not applied:
        raise SpecError(
            f"no applied scenario view is named {unknown}; there are {sorted(applied)}. Declare it "
            "with scenario_view() and run `feast apply`"
        )
    return [applied[name] for name in dict.fromkeys(names or sorted(applied))]
