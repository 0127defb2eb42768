"""Feast plugin: declare, compute and read query-conditioned user embeddings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import BeamComputeEngine
    from .online import to_numpy
    from .scenarios import Scenario
    from .sql_source import SqlSource
    from .views import Modality, scenario_view

__all__ = ["BeamComputeEngine", "Modality", "Scenario", "SqlSource", "scenario_view", "to_numpy"]

_HOMES = {
    "BeamComputeEngine": "engine",
    "Modality": "views",
    "Scenario": "scenarios",
    "SqlSource": "sql_source",
    "scenario_view": "views",
    "to_numpy": "online",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: Feast takes seconds, `--help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
