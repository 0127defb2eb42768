"""Gradient-boosted trees at their best on few rows, and trained on earlier windows of others.

The rule: settings are chosen by cross-validation inside the rows given, never on the rows scored,
and rows of one user are never on both sides of a fold.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from .errors import SourceError

Array = np.ndarray[Any, Any]
Setting = Mapping[str, float]

_SEEDS = 5  # forests that are averaged; cheap beside the search for their setting

# From stumps to trees of 15 leaves; `rows` is the least share of the rows in a leaf.
SETTINGS: tuple[Setting, ...] = (
    {"leaves": 2, "rounds": 150, "rate": 0.08, "rows": 0.02, "columns": 0.3},
    {"leaves": 4, "rounds": 60, "rate": 0.05, "rows": 0.04, "columns": 0.3},
    {"leaves": 4, "rounds": 150, "rate": 0.05, "rows": 0.02, "columns": 0.3},
    {"leaves": 8, "rounds": 100, "rate": 0.05, "rows": 0.03, "columns": 0.2},
    {"leaves": 15, "rounds": 150, "rate": 0.03, "rows": 0.02, "columns": 0.2},
)

# LightGBM's own thread pool is process-wide: two trainings in two Python threads crashed it.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Trees:
    """Forests of several seeds and the setting that cross-validation preferred."""

    boosters: tuple[lightgbm.Booster, ...]
    setting: Setting

    def score(self, x: Array) -> Array:
        """Mean log-odds of yes [rows]."""
        odds = [_predicted(booster, x, raw_score=True) for booster in self.boosters]
        return np.asarray(np.mean(odds, axis=0), dtype=np.float64)


def fit_trees(
    x: Array,
    y: Array,
    seed: int,
    groups: Sequence[str] | None = None,
    *,
    setting: Setting | None = None,
    forests: int = _SEEDS,
) -> Trees:
    """LightGBM with the best of five settings by three-fold cross-validation on these rows.

    The same rows and seed give the same trees: one thread, LightGBM's deterministic mode.

    Args:
        x: float [rows, F].
        y: bool or 0/1 [rows].
        seed: of folds and of the columns each tree may use.
        groups: whose row each is; rows of one group stay in one fold. None: each its own.
        setting: what an earlier fit on as many rows preferred; None searches.
        forests: how many are averaged.

    Raises:
        SourceError: a class has fewer than two rows.
    """
    y = np.asarray(y, dtype=np.int64)
    rarer = int(min(np.sum(y == 0), np.sum(y == 1)))
    if rarer < 2:
        raise SourceError(f"trees need two rows of each class, the rarer class has {rarer}")
    if setting is None:
        names = np.arange(len(y)) if groups is None else np.asarray(groups)
        parts = _folds(y, names, min(3, rarer), seed)
        # the first of equals
        setting = max(SETTINGS, key=lambda s: _validated(x, y, s, seed, parts))
    return Trees(tuple(_boost(x, y, setting, seed + n) for n in range(forests)), setting)


def window_scores(
    x: Array, y: Array, moments: Array, groups: Sequence[str], reported: Array, seed: int
) -> Array:
    """Score users at the cut by trees on earlier windows of others: log-odds [reported].

    A count "of all time" grows with the data, so a value of March means less in September. Two
    forests are averaged: one reads the columns as they are, the other each user's rank among the
    users of the same moment. On validation users that beat either alone.

    Args:
        x: float [rows, F], features of other users at earlier as-of times.
        y: bool or 0/1 [rows], what followed; the windows are over by the cut.
        moments: the as-of of each row [rows], of any type that can be compared.
        groups: whose row each is [rows].
        reported: float [reported, F], features of the users to score, all at the cut.
        seed: of folds and columns.

    Raises:
        SourceError: a class has fewer than two rows.
    """
    moments = np.asarray(moments)
    ranked = np.empty(x.shape)
    for moment in np.unique(moments):
        ranked[moments == moment] = _ranks(x[moments == moment])
    plain = fit_trees(x, y, seed, groups).score(reported)
    return (plain + fit_trees(ranked, y, seed, groups).score(_ranks(reported))) / 2


def _ranks(x: Array) -> Array:
    """Each column as ranks from 0 to 1, ties in the middle [rows, F]."""
    return np.asarray(rankdata(x, axis=0) / len(x))


def _folds(y: Array, groups: Array, count: int, seed: int) -> list[tuple[Array, Array]]:
    """Rows to fit and to validate on; folds without both classes on both sides are left out."""
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(y, y, groups)
    return [part for part in folds if all(len(np.unique(y[rows])) == 2 for rows in part)]


def _validated(
    x: Array, y: Array, setting: Setting, seed: int, parts: Sequence[tuple[Array, Array]]
) -> float:
    """Mean AUC over the folds; 0 where no fold has both classes on both sides."""
    scores = [
        roc_auc_score(y[test], _predicted(_boost(x[train], y[train], setting, seed), x[test]))
        for train, test in parts
    ]
    return float(np.mean(scores)) if scores else 0.0


def _boost(x: Array, y: Array, setting: Setting, seed: int) -> lightgbm.Booster:
    parameters = {
        "objective": "binary",
        "num_leaves": int(setting["leaves"]),
        "learning_rate": setting["rate"],
        "min_data_in_leaf": max(2, int(setting["rows"] * len(y))),
        "min_data_in_bin": 1 + len(y) // 200,
        "feature_fraction_bynode": setting["columns"],
        "lambda_l2": 1.0,
        "max_bin": 63,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,
        "seed": seed,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(np.asarray(x, dtype=np.float64), label=y, params={"verbosity": -1})
    with _ONE_AT_A_TIME:
        return lightgbm.train(parameters, data, int(setting["rounds"]))


def _predicted(booster: lightgbm.Booster, x: Array, raw_score: bool = False) -> Array:
    with _ONE_AT_A_TIME:
        return np.asarray(booster.predict(x, raw_score=raw_score, num_threads=1))
