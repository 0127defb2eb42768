"""The rows of the table: what each variant and baseline scores the reported users with.

The rule: within a scenario every row is cross-fitted on the same folds of the same users, so that
rows differ in what they know and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from feast_anchor.onnx_export.few_labels import Method
from feast_anchor.onnx_export.probe import (
    NO_VECTOR,
    fit_probe,
    out_of_fold,
    quantiles,
    stratified_folds,
    transferred,
)

from .features import Features
from .vectors import Vectors

Array = np.ndarray[Any, Any]
Rows = Iterator[tuple[str, Array]]

RIGHT, NONE, WRONG = "right query", "no query", "wrong query"
SHUFFLED, UNSEEN, TUNED = "shuffled history", "unseen phrasings", "prompt-tuned"
ZERO, RIGHT_ZERO = "zero-shot, no labels", "right query + zero-shot"
WITH_FEATURES = "features + vector"
AND_RIGHT, AND_RIGHT_ZERO = "regression & vector", "regression & vector + zero-shot"
AND_NONE, AND_TREES = "regression & no query", "regression & trees"
TREES, LOGISTIC = "trees on features", "logistic regression on features"
ACTIVITY, IDEAL = "activity alone", "ideal conditioning"
WINDOW, WINDOW_LOGISTIC = "earlier-window trees, no labels", "earlier-window trees + features"
FACTORISATION, SEQUENCE = "factorisation", "sequence encoder"

_FOLDS = 5
_FEW_FORESTS = 3  # averaged per draw of few labels; thousands are fitted


@dataclass(frozen=True)
class Board:
    """The reported users' labels int8 [S, N] and how everything is cross-fitted on them."""

    y: Array
    seed: int
    threads: int

    @cached_property
    def folds(self) -> Array:
        """Fold of each labelled user, -1 where there is no label: int64 [S, N]."""
        out = np.full(self.y.shape, -1, dtype=np.int64)
        for scenario, y in enumerate(self.y):
            out[scenario, y >= 0] = stratified_folds(y[y >= 0], _FOLDS, self.seed)
        return out

    def row(self, score: Callable[[int, Array, Array, Array], Array]) -> Array:
        """Scores [K, S, N] from `score(scenario, known, y, folds) -> [K, known]`; NaN elsewhere."""

        def run(scenario: int) -> Array:
            known = np.flatnonzero(self.y[scenario] >= 0)
            return score(scenario, known, self.y[scenario, known], self.folds[scenario, known])

        with ThreadPoolExecutor(self.threads) as pool:
            found = list(pool.map(run, range(len(self.y))))
        out = np.full((max(map(len, found), default=1), *self.y.shape), np.nan)
        for scenario, scores in enumerate(found):
            out[: len(scores), scenario, self.y[scenario] >= 0] = scores
        return out

    def probe(
        self,
        columns: Callable[[int], Array],
        start: Array | None = None,
        vector: slice = NO_VECTOR,
    ) -> Array:
        """Out-of-fold scores of a linear probe on each scenario's columns [N, D]: [1, S, N]."""

        def score(scenario: int, known: Array, y: Array, folds: Array) -> Array:
            return out_of_fold(columns(scenario)[known], y, folds, self.seed, start, vector)[None]

        return self.row(score)

    def given(self, scores: Array) -> Array:
        """A score [S, N] that was not trained on these users, as a row [1, S, N]."""
        return np.where(self.y >= 0, scores, np.nan)[None]


def vector_rows(board: Board, vectors: Vectors, *, others: bool = True) -> Rows:
    """What the model's vectors know, one variant after the other.

    `others`: also ask the wrong questions, which takes a probe per pair of scenarios.
    """
    right, scenarios = vectors.right, len(vectors.right)
    asked = _asked_again(board, vectors)
    yield RIGHT, asked[:1]
    whole, dim = slice(None), right.shape[2]
    yield NONE, board.probe(lambda s: vectors.none, vector=whole)
    if others and scenarios > 1:
        turned = (np.roll(right, -k, axis=0) for k in range(1, scenarios))
        wrong = [board.probe(other.__getitem__, vector=whole) for other in turned]
        yield WRONG, np.concatenate(wrong)
    yield SHUFFLED, board.probe(lambda s: vectors.shuffled[s], vector=whole)
    if len(asked) > 1:
        yield UNSEEN, asked[1:]
    if vectors.tuned:
        yield TUNED, board.row(_tuned(vectors, board.seed))
    score = vectors.zero_shot
    yield ZERO, board.given(score)
    both = board.probe(lambda s: beside(right[s], score[s]), begin(dim), slice(0, dim))
    yield RIGHT_ZERO, both


def baseline_rows(board: Board, features: Features, vectors: Vectors) -> Rows:
    """What a team would have without the model, and the columns of both side by side."""
    table = features.tabular
    yield TREES, board.row(_trees(features, board.seed))
    yield LOGISTIC, board.probe(lambda s: table)
    yield ACTIVITY, board.probe(lambda s: features.activity)
    yield IDEAL, board.probe(lambda s: features.ideal(s))
    if features.window is not None:
        score = features.window
        yield WINDOW, board.given(score)
        yield WINDOW_LOGISTIC, board.probe(lambda s: beside(table, score[s]), begin(table.shape[1]))
    yield FACTORISATION, board.probe(lambda s: features.factors, vector=slice(None))
    yield SEQUENCE, board.probe(lambda s: features.sequence, vector=slice(None))
    width = table.shape[1] + vectors.right.shape[2]
    own = slice(table.shape[1], width)
    together = [np.hstack([table, vector]) for vector in vectors.right]  # [S] of [N, F + dim]
    yield WITH_FEATURES, board.probe(lambda s: together[s], vector=own)


def averaged_rows(found: Mapping[str, Array]) -> Rows:
    """The regression on features and another row, averaged; nothing is fitted again.

    A regression on the columns of both has one penalty for columns of two kinds; two regressions
    have one each. The last two rows say how much of a gain is the question's, and what averaging
    alone is worth.
    """
    others = {AND_RIGHT: RIGHT, AND_RIGHT_ZERO: RIGHT_ZERO, AND_NONE: NONE, AND_TREES: TREES}
    for name, other in others.items():
        yield name, averaged(found[LOGISTIC], found[other])


def averaged(one: Array, other: Array) -> Array:
    """The mean of two rows' log-odds; rows hold quantiles, in (0, 1) [K, S, N]."""
    return (_log_odds(one) + _log_odds(other)) / 2


def few_label_methods(features: Features, vectors: Vectors) -> dict[str, Method]:
    """What is compared where labels are few; scores without labels stay as they are."""
    right, table, zero = vectors.right, features.tabular, vectors.zero_shot
    own = slice(0, right.shape[2])
    methods: dict[str, Method] = {"vector": _learned(lambda s: right[s], vector=own)}
    start = begin(right.shape[2])
    methods["vector + zero-shot"] = _learned(lambda s: beside(right[s], zero[s]), start, own)
    methods["zero-shot"] = lambda s, known, y, scored, seed: zero[s, scored]
    methods["trees"] = _few_trees(features)
    methods["logistic regression"] = _learned(lambda s: table)
    window = features.window
    if window is not None:
        methods["earlier-window trees"] = lambda s, known, y, scored, seed: window[s, scored]
    return methods


def beside(columns: Array, score: Array) -> Array:
    """Columns [N, D] with one score [N] as the last, 0 where there is none: [N, D + 1]."""
    return np.hstack([columns, np.nan_to_num(score)[:, None]])


def begin(width: int) -> Array:
    """Where a probe of `beside` begins: at the score, before any label is seen [width + 1]."""
    return np.append(np.zeros(width), 1.0)


def _log_odds(quantile: Array) -> Array:
    out: Array = np.log(quantile / (1 - quantile))
    return out


def _asked_again(board: Board, vectors: Vectors) -> Array:
    """Probes of the own query, applied to it and to each unseen phrasing: [1 + P, S, N]."""

    def score(scenario: int, known: Array, y: Array, folds: Array) -> Array:
        own = vectors.right[scenario][known]
        others = [own, *(unseen[known] for unseen in vectors.unseen[scenario])]
        return transferred(own, others, y, folds, board.seed, vector=slice(None))

    return board.row(score)


def _tuned(vectors: Vectors, seed: int) -> Callable[[int, Array, Array, Array], Array]:
    def score(scenario: int, known: Array, y: Array, folds: Array) -> Array:
        if scenario not in vectors.tuned:
            return np.full((1, len(known)), np.nan)
        return out_of_fold(vectors.tuned[scenario][known], y, folds, seed, vector=slice(None))[None]

    return score


def _trees(features: Features, seed: int) -> Callable[[int, Array, Array, Array], Array]:
    def score(scenario: int, known: Array, y: Array, folds: Array) -> Array:
        x, out = features.tabular[known], np.empty(len(known))
        for fold in np.unique(folds):
            held = folds == fold
            out[held] = quantiles(features.trees(x[~held], y[~held], seed).score(x[held]))
        return out[None]

    return score


def _learned(
    columns: Callable[[int], Array], start: Array | None = None, vector: slice = NO_VECTOR
) -> Method:
    def method(scenario: int, known: Array, y: Array, scored: Array, seed: int) -> Array:
        x = columns(scenario)
        return fit_probe(x[known], y, seed, start, vector).score(x[scored])

    return method


def _few_trees(features: Features) -> Method:
    """Trees whose setting is searched on the first draw of each scenario and number of labels."""
    chosen: dict[tuple[int, int], Mapping[str, float]] = {}

    def method(scenario: int, known: Array, y: Array, scored: Array, seed: int) -> Array:
        x, key = features.tabular, (scenario, len(known))
        fitted = features.trees(x[known], y, seed, setting=chosen.get(key), forests=_FEW_FORESTS)
        chosen[key] = fitted.setting
        return fitted.score(x[scored])

    return method


def ordered(found: Mapping[str, Array]) -> dict[str, Array]:
    """Rows in the order of the table: the model's variants, both together, then baselines."""
    order = (
        RIGHT, NONE, WRONG, SHUFFLED, UNSEEN, TUNED, RIGHT_ZERO, ZERO, WITH_FEATURES, AND_RIGHT,
        AND_RIGHT_ZERO, AND_NONE, AND_TREES, TREES, LOGISTIC, WINDOW, WINDOW_LOGISTIC, IDEAL,
        ACTIVITY, FACTORISATION, SEQUENCE,
    )  # fmt: skip
    return {name: found[name] for name in order if name in found}
