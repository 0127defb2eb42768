"""A linear probe: how much of a label a straight line through some columns can tell. NumPy only.

The rule: whatever is chosen from data (means, scales, strength of the penalty) is chosen on the
users that the probe is trained on, never on those that it scores.

An evaluation fits tens of thousands of probes, most of them on few rows, so all strengths and
inner folds of one probe are fitted together by Newton's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import SourceError

Array = np.ndarray[Any, Any]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C: weight of the data against the penalty |w|^2 / 2
_FOLDS = 5
_MOST_STEPS = 50  # Newton needs about six
_NEGLIGIBLE = 1e-9  # directions with less than this share of the variance are left out


@dataclass(frozen=True)
class Probe:
    """A fitted probe. mean, scale, weights: [D]; `strength` is the C that was chosen."""

    mean: Array
    scale: Array
    weights: Array
    bias: float
    strength: float

    def score(self, x: Array) -> Array:
        """Log-odds of the positive class, float64 [N] for columns [N, D]."""
        out: Array = (np.asarray(x, dtype=np.float64) - self.mean) / self.scale @ self.weights
        return out + self.bias


def fit_probe(x: Array, y: Array, seed: int = 0, start: Array | None = None) -> Probe:
    """Logistic regression on standardised columns, strength by stratified cross-validation.

    Args:
        x: [N, D]; constant columns are harmless.
        y: 0 or 1 [N].
        seed: of the inner folds: five, or as many as the rarer class has members.
        start: weights of the standardised columns before any label is seen [D]; leaving them is
            what the penalty prices. A column that is itself a score starts at 1, so that with few
            labels it is corrected, not learned anew. Zeros when None.

    Raises:
        SourceError: a class has fewer than two users.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    rarer = int(min(np.sum(y == 0), np.sum(y == 1)))
    if rarer < 2:
        raise SourceError(
            f"a probe needs two training users of each class, the rarer class has {rarer}; take "
            "more users or another label"
        )
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-12 * (1 + np.abs(mean)), scale, np.inf)  # constant: no weight
    axes = _axes((x - mean) / scale)  # [D, R]
    z = (x - mean) / scale @ axes  # [N, D] -> [N, R]
    origin = np.zeros(x.shape[1]) if start is None else np.asarray(start, dtype=np.float64)
    folds = stratified_folds(y, min(_FOLDS, rarer), seed)
    strength = _choose_strength(z, y, origin @ axes, folds)
    every = np.ones((1, len(y)))
    (solved,) = _minimise(z, y, origin @ axes, every, np.array([strength]))
    weights = origin + axes @ (solved[:-1] - origin @ axes)
    return Probe(mean, scale, weights, float(solved[-1]), strength)


def stratified_folds(y: Array, folds: int, seed: int) -> Array:
    """Fold of each row, int64 [N]: each class is dealt out evenly, at random but fixed by seed."""
    generator = np.random.default_rng(seed)
    out = np.empty(len(y), dtype=np.int64)
    dealt = 0
    for value in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == value))
        out[rows] = (dealt + np.arange(len(rows))) % folds
        dealt += len(rows)
    return out


def out_of_fold(
    x: Array, y: Array, folds: Array, seed: int = 0, start: Array | None = None
) -> Array:
    """Each row's score from a probe that did not see its fold: float64 [N] in (0, 1).

    As `transferred`, to the columns that were trained on.
    """
    found: Array = transferred(x, [x], y, folds, seed, start)[0]
    return found


def transferred(
    x: Array,
    others: Sequence[Array],
    y: Array,
    folds: Array,
    seed: int = 0,
    start: Array | None = None,
) -> Array:
    """Out-of-fold scores of other columns by the probes of `x`: float64 [len(others), N].

    Probes of different folds have different scales, so that their raw scores cannot be ranked in
    one list. Each fold's scores are therefore replaced by their quantiles within the fold, which
    stratified folds make comparable.

    Args:
        x: columns to train on [N, D].
        others: columns to score, each [N, D], such as the vectors of another phrasing.
        y: 0 or 1 [N].
        folds: fold of each row [N], from `stratified_folds`.
        seed, start: as of `fit_probe`.

    Raises:
        SourceError: a training part has fewer than two users of a class.
    """
    out = np.empty((len(others), len(y)), dtype=np.float64)
    for fold in np.unique(folds):
        held = folds == fold
        probe = fit_probe(x[~held], y[~held], seed, start)
        for row, other in zip(out, others, strict=True):
            row[held] = quantiles(probe.score(other[held]))
    return out


def quantiles(score: Array) -> Array:
    """Midrank of each score divided by their number, in (0, 1); equal scores get equal values."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    midrank = np.cumsum(count) - (count - 1) / 2
    out: Array = (midrank[place] - 0.5) / len(score)
    return out


def rank_auc(y: Array, score: Array) -> float:
    """Area under the ROC curve from the ranks; both classes must be there."""
    positive = np.asarray(y) == 1
    ones = int(positive.sum())
    zeros = len(positive) - ones
    ranks = quantiles(score) * len(positive) + 0.5
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _axes(z: Array) -> Array:
    """Orthonormal axes [D, R] of the space that the rows span: a rotation leaves |w|^2 alone.

    With fewer rows than columns, and with vectors that use few of their dimensions, R is much
    smaller than D and so is the work.
    """
    few_rows = len(z) < z.shape[1]
    values, vectors = np.linalg.eigh(z @ z.T if few_rows else z.T @ z)
    kept = values > _NEGLIGIBLE * max(values.sum(), 1e-300)
    vectors = vectors[:, kept]
    out: Array = z.T @ vectors / np.sqrt(values[kept]) if few_rows else vectors
    return out


def _choose_strength(z: Array, y: Array, origin: Array, folds: Array) -> float:
    """The strength with the best mean AUC over the inner folds; the weakest of equals."""
    held = folds == np.unique(folds)[:, None]  # [F, N]
    weight = np.repeat(~held, len(STRENGTHS), axis=0).astype(np.float64)  # [F*C, N]
    solved = _minimise(z, y, origin, weight, np.tile(STRENGTHS, len(held)))
    scores = solved[:, :-1] @ z.T  # [F*C, N]; the bias does not change a ranking
    found = [
        rank_auc(y[fold], score[fold])
        for fold, score in zip(np.repeat(held, len(STRENGTHS), axis=0), scores, strict=True)
    ]
    mean = np.round(np.reshape(found, (len(held), -1)).mean(axis=0), 9)  # [F, C] -> [C]
    return STRENGTHS[int(np.argmax(mean))]


@dataclass(frozen=True)
class _Problem:
    """B regressions over the same rows: |w - origin|^2 / 2 + sum(cost * log loss)."""

    x: Array  # [N, R+1], the last column ones
    y: Array  # [N]
    cost: Array  # [B, N]
    origin: Array  # [R+1]
    penalty: Array  # [R+1]: 1, but 0 for the bias

    def value(self, at: Array) -> Array:
        margin = (1 - 2 * self.y) * (at @ self.x.T)  # [B, N]
        loss = (self.cost * np.logaddexp(0, margin)).sum(axis=1)
        out: Array = 0.5 * ((at - self.origin) ** 2 * self.penalty).sum(axis=1) + loss
        return out

    def newton_step(self, at: Array) -> Array:
        p = 0.5 * (1 + np.tanh(at @ self.x.T / 2))  # [B, N]
        gradient = (at - self.origin) * self.penalty + (self.cost * (p - self.y)) @ self.x
        curvature = self.cost * p * (1 - p)
        hessian = np.stack([(self.x.T * row) @ self.x for row in curvature])  # [B, R+1, R+1]
        hessian += np.diag(self.penalty)
        out: Array = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        return out


def _minimise(z: Array, y: Array, origin: Array, weight: Array, strength: Array) -> Array:
    """Weights and bias of B regressions: [B, R + 1].

    z: [N, R], y: [N], origin: [R], weight of each row: [B, N], strength: [B].
    """
    problem = _Problem(
        x=np.hstack([z, np.ones((len(z), 1))]),
        y=y,
        cost=weight * strength[:, None],
        origin=np.append(origin, 0.0),
        penalty=np.append(np.ones(z.shape[1]), 0.0),
    )
    at = np.tile(problem.origin, (len(weight), 1))
    value = problem.value(at)
    for _ in range(_MOST_STEPS):
        at, value, moved = _descend(problem, at, value)
        if moved < 1e-4:  # the error left is its square
            break
    return at


def _descend(problem: _Problem, at: Array, value: Array) -> tuple[Array, Array, float]:
    """One Newton step, halved where the objective would rise; says how far the furthest moved."""
    step, size = problem.newton_step(at), np.ones(len(at))
    for _ in range(30):
        moved = at - size[:, None] * step
        now = problem.value(moved)
        worse = now > value + 1e-12 * np.abs(value)
        if not worse.any():
            break
        size = np.where(worse, size / 2, size)
    return moved, now, float(np.abs(moved - at).max())
