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
Check = Callable[[Mapping[str, Any]], None]

_SHORTEST = 0.02  # seconds; what is quicker runs several times a turn


@dataclass(frozen=True)
class Budget:
    """How long to compare: up to `rounds`, no more after `seconds`, but never under `least`."""

    rounds: int = 15
    seconds: float = 12.0
    least: int = 2


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


def alternate(candidates: Candidates, budget: Budget, check: Check | None = None) -> Timings:
    """Run all candidates in rounds, every other round backwards.

    Args:
        candidates: what to time, by name. Each runs once before; what is quick then runs several
            times a turn.
        check: is given what those first runs returned, by name, and raises if it is not alike.
    """
    firsts, turns = _warm_up(candidates)
    if check is not None:
        check(firsts)
    return _rounds(turns, budget)


def alternate_cold(candidates: Candidates, budget: Budget) -> Timings:
    """The same for what takes long: no runs before, one call a turn."""
    return _rounds({name: partial(_seconds, call, 1) for name, call in candidates.items()}, budget)


def _rounds(turns: Mapping[str, Callable[[], float]], budget: Budget) -> Timings:
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    end = time.perf_counter() + budget.seconds
    for number in range(budget.rounds):
        if number >= budget.least and time.perf_counter() > end:
            break
        for name in list(turns)[:: -1 if number % 2 else 1]:
            seconds[name].append(turns[name]())
    return Timings({name: tuple(found) for name, found in seconds.items()})


def _warm_up(
    candidates: Candidates,
) -> tuple[dict[str, object], dict[str, Callable[[], float]]]:
    """What each returns on its first run, and how one turn of it is timed: seconds per call."""
    firsts: dict[str, object] = {}
    turns: dict[str, Callable[[], float]] = {}
    for name, call in candidates.items():
        start = time.perf_counter()
        firsts[name] = call()
        once = time.perf_counter() - start
        if once < _SHORTEST:  # the first run is often slower than all others
            once = _seconds(call, 1)
        turns[name] = partial(_seconds, call, max(1, round(_SHORTEST / max(once, 1e-9))))
    return firsts, turns


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times
