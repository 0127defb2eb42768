"""Feast plugin: declare, compute and read query-conditioned user embeddings."""

from __future__ import annotations

from .engine import BeamComputeEngine
from .online import to_numpy
from .views import Modality, Scenario, scenario_view

__all__ = ["BeamComputeEngine", "Modality", "Scenario", "scenario_view", "to_numpy"]
