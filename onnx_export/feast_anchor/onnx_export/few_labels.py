"""AUC against the number of labelled users: what is left when labels are few.

The rule: the users that a draw labels are taken from the reported users, and the draw is scored
on those it left out. Every method of a scenario gets the same draws, so that methods are compared
pair by pair. Intervals resample both: draws, because another team labels other users, and users,
because another team has other users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .evaluation import Estimate, mean_over_scenarios, weighted_auc_ks

Array = np.ndarray[Any, Any]

# (scenario, labelled users, their labels, users to score, seed) -> scores of the latter
Method = Callable[[int, Array, Array, Array, int], Array]

SIZES = (25, 50, 100, 200, 400)
_LEAST_SCORED = 0.2  # share of the users that must be left to score
_ATTEMPTS = 1_000
_MEMBERS = 2  # labelled users of each class that a draw needs


@dataclass(frozen=True)
class Draw:
    """Users labelled and users scored, as positions, in one repetition of one scenario."""

    number: int
    scenario: int
    labelled: Array
    scored: Array
    seed: int


@dataclass(frozen=True)
class Curve:
    """What every method reached at every size.

    auc: (method, size) -> [D, S] draws by scenarios; rounds: the same in every bootstrap round
    [D, S, R]. NaN where a scenario has too few users of a class, or too few left to score.
    """

    auc: Mapping[tuple[str, int], Array]
    rounds: Mapping[tuple[str, int], Array]
    seed: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of labelled users, ascending."""
        return tuple(sorted({size for _, size in self.auc}))

    def scenarios(self, size: int) -> int:
        """How many scenarios have enough users of each class at this size, in every draw."""
        measured = [~np.isnan(auc).any(axis=0) for (_, own), auc in self.auc.items() if own == size]
        return int(np.sum(np.any(measured, axis=0)))

    def mean(self, method: str, size: int) -> Estimate:
        """Mean AUC over draws and scenarios."""
        return self._estimate(self.auc[method, size], self.rounds[method, size])

    def difference(self, one: str, other: str, size: int) -> Estimate:
        """Mean AUC of `one` minus that of `other` on the same draws and users."""
        return self._estimate(
            self.auc[one, size] - self.auc[other, size],
            self.rounds[one, size] - self.rounds[other, size],
        )

    def _estimate(self, values: Array, rounds: Array) -> Estimate:
        draws, _, count = rounds.shape
        picked = np.random.default_rng(self.seed).integers(0, draws, (draws, count))
        resampled = np.mean(rounds[picked, :, np.arange(count)], axis=0).T  # [D,R,S] -> [S,R]
        value = values.mean(axis=0)  # [S]
        resampled[np.isnan(value)] = np.nan  # else rounds without the missing draws would count
        return mean_over_scenarios(value, resampled)


def joined(curves: Sequence[Curve]) -> Curve:
    """One curve of several runs' draws: what they all measured, in the same bootstrap rounds.

    A scenario that lacks users of a class in one of them is left out at that size.
    """
    first = curves[0]
    common = [key for key in first.auc if all(key in curve.auc for curve in curves)]
    return Curve(
        {key: np.concatenate([curve.auc[key] for curve in curves]) for key in common},
        {key: np.concatenate([curve.rounds[key] for curve in curves]) for key in common},
        first.seed,
    )


def few_labels(
    labels: Array,
    methods: Mapping[str, Method],
    weights: Array,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 20,
    seed: int = 0,
    threads: int = 1,
    on_progress: Callable[[float], None] | None = None,
) -> Curve:
    """Measure every method with 25, 50, 100 … labelled users.

    Args:
        labels: int [S, N]: 1, 0, or -1 where a user has no label in a scenario.
        methods: by name; a method may ignore the labelled users (a zero-shot score does).
        weights: from `evaluation.resample` [R, N].
        sizes: numbers of labelled users; those that leave fewer than a fifth of a scenario's users
            to score are left out of it.
        draws: repetitions of each size and scenario.
        seed: of the draws.
        threads: fits running at once; the result does not depend on it.
        on_progress: called with the share done.
    """
    known = (labels >= 0).sum(axis=1)
    sizes = tuple(size for size in sizes if size <= _most_labelled(known.max()))
    shape = (draws, len(labels))
    auc = {(m, s): np.full(shape, np.nan) for m in methods for s in sizes}
    rounds = {key: np.full((*shape, len(weights)), np.nan, dtype=np.float32) for key in auc}
    plan = [
        (size, list(_draws(labels, size, scenario, draws, seed)))
        for size in sizes
        for scenario in range(len(labels))
    ]

    def run(item: tuple[int, list[Draw]]) -> None:
        for draw in item[1]:  # one after the other: a method may keep what it chose for the first
            one(item[0], draw)

    def one(size: int, draw: Draw) -> None:
        y = labels[draw.scenario]
        counted = np.concatenate((np.ones_like(weights[:1]), weights))[:, draw.scored]
        for name, method in methods.items():
            score = method(draw.scenario, draw.labelled, y[draw.labelled], draw.scored, draw.seed)
            if np.isnan(score).any():
                continue  # a method may have nothing to say of a scenario
            found = weighted_auc_ks(y[draw.scored], score, counted)[0]
            auc[name, size][draw.number, draw.scenario] = found[0]
            rounds[name, size][draw.number, draw.scenario] = found[1:]

    with ThreadPoolExecutor(threads) as pool:
        for done, _ in enumerate(pool.map(run, plan), start=1):
            if on_progress is not None:
                on_progress(done / len(plan))
    return Curve(auc, rounds, seed)


def _draws(labels: Array, size: int, scenario: int, draws: int, seed: int) -> Iterator[Draw]:
    y = labels[scenario]
    known = np.flatnonzero(y >= 0)
    if min(np.sum(y == 0), np.sum(y == 1)) <= _MEMBERS:
        return
    if size > _most_labelled(len(known)):
        return
    for number in range(draws):
        own = np.random.default_rng([seed, size, scenario, number])
        labelled = _labelled(y, known, size, own)
        if labelled is not None:
            scored = np.setdiff1d(known, labelled)
            yield Draw(number, scenario, labelled, scored, int(own.integers(2**31)))


def _most_labelled(known: int) -> float:
    return (1 - _LEAST_SCORED) * known


def _labelled(y: Array, known: Array, size: int, generator: np.random.Generator) -> Array | None:
    """A random choice with two users of each class at least, on both sides; None if none came."""
    for _ in range(_ATTEMPTS):
        labelled = np.sort(generator.choice(known, size, replace=False))
        left = np.setdiff1d(known, labelled)
        counts = [np.sum(y[part] == value) for part in (labelled, left) for value in (0, 1)]
        if min(counts[:2]) >= _MEMBERS and min(counts[2:]) >= 1:
            return labelled
    return None
