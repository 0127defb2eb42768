"""Time things against each other: in turns, many short rounds, medians of ratios within a round.

The rule: a machine is never quiet for long. Two things timed one after the other in one round of a
fraction of a second saw the same machine; medians over rounds forget the rounds that did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Candidates = Mapping[str, Callable[[], object]]

_SHORTEST = 0.02  # seconds; what is quicker runs several times a turn


@dataclass(frozen=True)
class Budget:
    """How long to compare: up to `rounds`, no more after `seconds`, but never under `least`."""

    rounds: int = 15
    seconds: float = 12.0
    least: int = 3


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another: median over rounds, and quartiles."""

    value: float
    low: float
    high: float
    rounds: int

    def as_json(self) -> dict[str, float]:
        """As it stands in the summary."""
        return dict(vars(self))


@dataclass(frozen=True)
class Timings:
    """Seconds of every candidate in every round, in the order of the rounds."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Median seconds of one candidate."""
        return float(np.median(self.seconds[name]))

    def fastest(self, *names: str) -> str:
        """Which of the named candidates has the smallest median."""
        return min(names, key=self.median)

    def ratio(self, slow: str, fast: str) -> Ratio:
        """Seconds of `slow` over those of `fast`, round by round."""
        return self.ratios({slow: 1.0}, {fast: 1.0})

    def ratios(self, above: Mapping[str, float], below: Mapping[str, float]) -> Ratio:
        """A weighted sum of candidates' seconds over another, round by round.

        For rates too: work done divided by seconds is a weight of one over the work.
        """
        found = self._sum(above) / self._sum(below)
        low, value, high = np.percentile(found, [25, 50, 75]).tolist()
        return Ratio(value, low, high, len(found))

    def _sum(self, weights: Mapping[str, float]) -> np.ndarray[Any, Any]:
        parts = [weight * np.array(self.seconds[name]) for name, weight in weights.items()]
        total: np.ndarray[Any, Any] = np.sum(parts, axis=0)
        return total

    def as_json(self) -> dict[str, float]:
        """Median seconds by candidate."""
        return {name: self.median(name) for name in self.seconds}


def alternate(candidates: Candidates, budget: Budget, *, warm_up: bool = True) -> Timings:
    """Run all candidates in rounds, every other round backwards.

    Each runs once before, unless `warm_up` is off: then a turn is one call, for what takes long.
    """
    turns = {
        name: _turn(call) if warm_up else partial(_seconds, call, 1)
        for name, call in candidates.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + budget.seconds
    for number in range(budget.rounds):
        if number >= budget.least and time.perf_counter() > end:
            break
        for name in list(turns)[:: -1 if number % 2 else 1]:
            seconds[name].append(turns[name]())
    return Timings({name: tuple(found) for name, found in seconds.items()})


def _turn(call: Callable[[], object]) -> Callable[[], float]:
    """Warm up, and say how one turn is timed: seconds per call."""
    call()
    once = _seconds(call, 1)
    times = max(1, round(_SHORTEST / max(once, 1e-9)))
    return partial(_seconds, call, times)


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times
