"""Is conditioning on the query worth it? Trains, scores, measures and reports; see `run`."""

from __future__ import annotations

from .run import evaluate

__all__ = ["evaluate"]
