"""The engine's settings: the `batch_engine` block of feature_store.yaml, checked.

Feast hands the block over as it is, so a misspelt setting would otherwise be lost in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.transforms.graphs import Device
from feast_anchor.transforms.job import Unchanged
from feast_anchor.transforms.runners import Shuffle, shuffle_of


class EngineConfig(BaseModel):
    """Settings of `BeamComputeEngine`; every one has a default that works on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = "feast_anchor.plugin.BeamComputeEngine"
    runner: str = "FnApiRunner"  # a Beam runner's name; DirectRunner may try to download Prism
    options: dict[str, Any] = Field(default_factory=dict)  # Beam pipeline options
    shuffle: Literal["auto", "local", "beam"] = "auto"  # local where the runner has no good one
    shards: int = Field(default=16, ge=1, le=4096)  # units of work, of memory and of resuming
    threads: int | None = Field(default=None, ge=1)  # scoring threads per worker; all cores
    device: Device = "auto"  # "cpu", "cuda", or whichever is there
    unchanged: Unchanged = "recompute"  # users without new events in a window that continues
    max_rejected: float = Field(default=0.1, ge=0, le=1)  # share of events or users; more fails
    wait_seconds: float = Field(default=60, ge=0)  # for another run of the same view to end
    retry_seconds: float = Field(default=60, ge=0)  # for an online store or a sink to come back
    catalog: str = "sqlite:///data/anchor.db"  # any SQLAlchemy URL
    state: str = "data/anchor"  # folder of the runs' shard manifests and dead letters

    @property
    def chosen_shuffle(self) -> Shuffle:
        """The shuffle for this runner. Raises `SpecError` where the wanted one loses rows."""
        return shuffle_of(self.runner, self.shuffle)

    def catalog_url(self, repo: Path) -> str:
        """The catalogue's URL, with a relative SQLite path resolved against the repo."""
        url = make_url(self.catalog)
        if not url.drivername.startswith("sqlite") or url.database in (None, "", ":memory:"):
            return self.catalog
        path = repo / str(url.database)
        return url.set(database=str(path)).render_as_string(hide_password=False)

    def state_folder(self, repo: Path) -> Path:
        """The state folder, resolved against the repo."""
        return repo / self.state


def parse_config(block: Mapping[str, Any]) -> EngineConfig:
    """Check a `batch_engine` block. Raises `SpecError` that names each wrong setting."""
    try:
        config = EngineConfig.model_validate(dict(block))
        make_url(config.catalog)
        shuffle_of(config.runner, config.shuffle)
    except SpecError:
        raise
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SpecError(
            f"batch_engine in feature_store.yaml: {wrong}. Settings are "
            f"{sorted(EngineConfig.model_fields)}"
        ) from error
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise SpecError(
            "batch_engine in feature_store.yaml: catalog is not a SQLAlchemy URL; expected "
            "something like 'sqlite:///data/anchor.db'"
        ) from error
    return config
