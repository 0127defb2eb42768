"""Train a bundle from a feature repo's own modalities: the glue between Feast and the model.

Events are read exactly as a run reads them (same checks, same templates, same rejects), so the
model is trained on what it will be served.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.folders import check_bundle_folder
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from feast_anchor.onnx_export.manifest import Manifest
from feast_anchor.transforms.events import EventSource, read, read_tasks
from feast_anchor.transforms.histories import micros

from .config import EngineConfig
from .held_out import check_held_out
from .planning import event_sources
from .pulled import Pull, must_pull, new_reader, release
from .spec import ARROW_KEYS
from .views import Modality

if TYPE_CHECKING:
    from feast_anchor.onnx_export.settings import TrainConfig

MODEL_EXTRA = ("torch", "onnx", "onnxscript", "onnx_ir", "sklearn", "lightgbm", "matplotlib")

_READER = new_reader("training")  # of pulled tables

Progress = Callable[[str, float], None]


def train_bundle_from_repo(
    repo: Path,
    modalities: str,
    *,
    cut: datetime,
    out: Path,
    held_out: Collection[str] = (),
    config: TrainConfig | None = None,
    corpus: Path | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Train on the events of a feature repo and write a bundle.

    Args:
        repo: the feature repo's folder.
        modalities: where the list of `Modality` stands, as "module:NAME", such as
            "events:MODALITIES".
        cut: only events strictly before this instant (time-zone aware) are read.
        out: the bundle's folder, replaced as a whole; the run card and, until the bundle is
            complete, the checkpoint stand beside it.
        held_out: entity keys that must not be trained on.
        config: budget and sizes, from `train_settings`; the defaults when None.
        corpus: folder of a corpus stored with the same options, writer's questions included;
            None to ask the questions anew.
        on_progress: called with a message and the fraction done, 0 to 1.

    Raises:
        SpecError: the modalities cannot be found, or the `train` extra is not installed.
        SourceError: an event table cannot be read as declared, none of the users to hold out has
            an event, or the stored corpus is of other events or settings.
        BundleError: `out` is something else.
    """
    report = on_progress or (lambda message, fraction: None)
    declared = load_modalities(repo, modalities)
    sources, entity = sources_of(declared, repo, cut)
    with needs_train_extra():
        from feast_anchor.onnx_export.training import train_bundle
    check_bundle_folder(out)
    return train_bundle(
        training_events(sources, cut, held_out, report),
        [modality.declaration().as_spec() for modality in declared],
        cut=cut,
        out=out,
        entity=entity,
        held_out=held_out,
        config=config,
        corpus_folder=corpus,
        on_progress=on_progress,
    )


def train_settings(
    path: Path | None, steps: int | None, seed: int | None, report: Progress
) -> TrainConfig:
    """A TOML file's settings, or the defaults, with steps and seed in their place where given.

    Raises `SpecError` when the file cannot be used or the `train` extra is not installed.
    """
    with needs_train_extra():
        from feast_anchor.onnx_export.settings import TrainConfig, read_config
    config = read_config(path) if path else TrainConfig()
    named = {"steps": steps, "seed": seed}
    given: dict[str, Any] = {k: v for k, v in named.items() if v is not None}
    for name, value in given.items():
        if path and getattr(config, name) != value:
            report(f"{name}={value} replaces {getattr(config, name)} of {path.name}", 0.0)
    return replace(config, **given)


@contextmanager
def needs_train_extra() -> Iterator[None]:
    """Say how to install what training imports, where that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in MODEL_EXTRA:
            raise
        raise SpecError(
            f"training needs {error.name!r}, which comes with the train extra: "
            "pip install 'feast-anchor[train]'"
        ) from error


def sources_of(
    modalities: Sequence[Modality], repo: Path, end: datetime
) -> tuple[tuple[EventSource, ...], str]:
    """How to read some modalities' tables before an instant, and the entity they share.

    Every table is checked; raises `SourceError` and `SpecError`.
    """
    key, key_type, entity = entity_of(modalities)
    pull = None
    if any(must_pull(modality.view.batch_source) for modality in modalities):
        store = FeatureStore(repo_path=str(repo)).config
        pull = Pull(store, EngineConfig().state_folder(repo), end, _READER)
    declared = [(modality.declaration(), modality.view) for modality in modalities]
    return event_sources(declared, key, key_type, repo, pull), entity


def training_events(
    sources: tuple[EventSource, ...],
    cut: datetime,
    held_out: Collection[str],
    report: Progress,
) -> pa.Table:
    """As `read_events`, after a look at whether the users to hold out are there at all."""
    events = read_events(sources, cut)
    if held_out:
        users = pc.unique(events.column("user")).to_pylist()
        report(check_held_out(held_out, users), 0.0)
    return events


def read_events(sources: tuple[EventSource, ...], end: datetime) -> pa.Table:
    """All valid events of some sources as one canonical table; rejected rows are left out.

    `end` (time-zone aware) is that of `sources_of`: later rows may be left out.
    """
    tables = [EVENT_SCHEMA.empty_table()]
    for task in read_tasks(sources, micros(end)):
        for rows in read(sources[task.source], task):
            good = rows.filter(pc.is_null(rows.column("rejected")))
            tables.append(good.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA))
    release(sources, _READER)
    return pa.concat_tables(tables).combine_chunks()


def load_modalities(repo: Path, where: str) -> list[Modality]:
    """Import the list of modalities named by "module:NAME" from a feature repo."""
    module_name, _, name = where.partition(":")
    if not module_name or not name:
        raise SpecError(f"modalities {where!r}, expected 'module:NAME' such as 'events:MODALITIES'")
    with inside(repo):
        try:
            found: Any = getattr(importlib.import_module(module_name), name)
        except (ModuleNotFoundError, AttributeError) as error:
            raise SpecError(f"no {where!r} in {repo}: {error}") from error
    if not found or not all(isinstance(item, Modality) for item in found):
        raise SpecError(
            f"{where!r} in {repo} is {type(found).__name__}, expected a list of Modality"
        )
    return list(found)


@contextmanager
def inside(repo: Path) -> Iterator[None]:
    """Import from a feature repo as `feast apply` does: as working directory, first on the path.

    Raises `SpecError` when there is no such folder.
    """
    before, path = Path.cwd(), str(repo.absolute())
    try:
        os.chdir(repo)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SpecError(
            f"no feature repo at {repo}; give the folder of its feature_store.yaml"
        ) from error
    sys.path.insert(0, path)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(path)


def entity_of(modalities: Sequence[Modality]) -> tuple[str, str, str]:
    """Join key column, its Arrow type and the entity name that all modalities share."""
    found = {
        (column.name, ARROW_KEYS.get(column.dtype.to_value_type(), ""), modality.view.entities[0])
        for modality in modalities
        for column in modality.view.entity_columns
        if len(modality.view.entities) == 1
    }
    if len(found) != 1 or not next(iter(found))[1]:
        raise SpecError(
            f"modalities {[m.view.name for m in modalities]} must share one entity whose join "
            f"key stands in each view's schema as String or Int64; found {sorted(found)}"
        )
    return found.pop()
