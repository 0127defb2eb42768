"""Gradient-boosted trees at their best on few rows, and trained on earlier windows of others.

The rule: settings are chosen by cross-validation inside the rows given, never on the rows scored,
and rows of one user are never on both sides of a fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from .baselines import FieldValue, tabular_features
from .errors import SourceError
from .manifest import ModalitySpec

Array = np.ndarray[Any, Any]
Setting = Mapping[str, float]

# From stumps to trees of 15 leaves; `rows` is the least share of the rows in a leaf.
SETTINGS: tuple[Setting, ...] = (
    {"leaves": 2, "rounds": 150, "rate": 0.08, "rows": 0.02, "columns": 0.3},
    {"leaves": 4, "rounds": 60, "rate": 0.05, "rows": 0.04, "columns": 0.3},
    {"leaves": 4, "rounds": 150, "rate": 0.05, "rows": 0.02, "columns": 0.3},
    {"leaves": 8, "rounds": 100, "rate": 0.05, "rows": 0.03, "columns": 0.2},
    {"leaves": 15, "rounds": 150, "rate": 0.03, "rows": 0.02, "columns": 0.2},
)


@dataclass(frozen=True)
class Trees:
    """A fitted forest and the setting that cross-validation preferred."""

    booster: lightgbm.Booster
    setting: Setting

    def score(self, x: Array) -> Array:
        """Log-odds of yes [rows]."""
        return np.asarray(self.booster.predict(x, raw_score=True), dtype=np.float64)


@dataclass(frozen=True)
class WindowRows:
    """Features and labels of users at earlier as-of times."""

    x: Array  # [rows, F]
    labels: pa.Table  # [rows] as given
    users: tuple[str, ...]  # [rows]


def fit_trees(x: Array, y: Array, seed: int, groups: Sequence[str] | None = None) -> Trees:
    """LightGBM with the best of five settings by three-fold cross-validation on these rows.

    The same rows and seed give the same trees: one thread, LightGBM's deterministic mode.

    Args:
        x: float [rows, F].
        y: bool or 0/1 [rows].
        seed: of folds and of the columns each tree may use.
        groups: whose row each is; rows of one group stay in one fold. None: each its own.

    Raises:
        SourceError: a class has fewer than two rows.
    """
    y = np.asarray(y, dtype=np.int64)
    rarer = int(min(np.sum(y == 0), np.sum(y == 1)))
    if rarer < 2:
        raise SourceError(f"trees need two rows of each class, the rarer class has {rarer}")
    names = np.arange(len(y)) if groups is None else np.asarray(groups)
    folds = StratifiedGroupKFold(min(3, rarer), shuffle=True, random_state=seed)
    parts = [part for part in folds.split(x, y, names) if all(len(set(y[p])) == 2 for p in part)]
    best = max(SETTINGS, key=lambda s: _validated(x, y, s, seed, parts))  # the first of equals
    return Trees(_boost(x, y, best, seed), best)


def window_rows(
    events: pa.Table,
    labels: pa.Table,
    users: Sequence[str],
    cut: datetime,
    modalities: Sequence[ModalitySpec],
    values: Sequence[FieldValue],
    *,
    key: str,
) -> WindowRows:
    """Features and labels of `users` at every as-of time of the labels before the cut.

    Args:
        events: canonical events.
        labels: has `key`, `event_timestamp` (the as-of) and the scenarios' columns. Its windows
            before the cut must be over by the cut: whoever makes the table sees to it.
        users: the users that nothing is reported on.
        cut: tz-aware; rows at or after it are not read.
        modalities: what the events' column `modality` indexes.
        values: from `baselines.frequent_values` of the same users.
        key: the labels' column with the user.
    """
    earlier = pc.less(labels.column("event_timestamp"), pa.scalar(cut))
    known = pc.is_in(labels.column(key), value_set=pa.array(users, pa.string()))
    kept = labels.filter(pc.and_(earlier, known)).sort_by("event_timestamp").combine_chunks()
    blocks = []
    for as_of in pc.unique(kept.column("event_timestamp")).to_pylist():
        own = kept.filter(pc.equal(kept.column("event_timestamp"), pa.scalar(as_of)))
        rows = own.column(key).to_pylist()
        blocks.append(tabular_features(events, rows, as_of, modalities, values)[1])
    if not blocks:
        raise SourceError(
            f"no labels of {len(users)} users before the cut {cut.isoformat()}; trees on earlier "
            "windows need label rows at earlier as-of times"
        )
    return WindowRows(np.concatenate(blocks), kept, tuple(kept.column(key).to_pylist()))


def window_trees(rows: WindowRows, scenario: str, seed: int) -> Trees:
    """Trees fitted on a scenario's labels at earlier as-of times; null labels are left out.

    `score` them on `tabular_features` of other users at the cut, with the same values.
    """
    label = rows.labels.column(scenario)
    known = pc.is_valid(label).to_numpy(zero_copy_only=False)
    y = pc.fill_null(label, False).to_numpy(zero_copy_only=False)[known]
    return fit_trees(rows.x[known], y, seed, np.array(rows.users)[known].tolist())


def _validated(
    x: Array, y: Array, setting: Setting, seed: int, parts: Sequence[tuple[Array, Array]]
) -> float:
    """Mean AUC over the folds; 0 where no fold has both classes on both sides."""
    scores = [
        roc_auc_score(y[test], _boost(x[train], y[train], setting, seed).predict(x[test]))
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
    return lightgbm.train(parameters, data, int(setting["rounds"]))
