"""How good vectors are: AUC of a linear probe, against an honest baseline of counts. No torch.

The rule: nothing here looks past the as-of time, and what is chosen from data (which texts to
count, how to scale, how strongly to regularise) is chosen on training users only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .errors import SourceError
from .manifest import ModalitySpec

Array = np.ndarray[Any, Any]

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the probe, chosen by cross-validation
_DAY = 86_400_000_000  # microseconds


def auc(y: Array, score: Array) -> float:
    """Area under the ROC curve; .5 is chance. Raises `SourceError` when y has one class only."""
    if len(np.unique(y)) != 2:
        raise SourceError(
            f"AUC needs both classes, but all {len(y)} labels are {np.unique(y).tolist()}; "
            "take more users or another label"
        )
    return float(roc_auc_score(y, score))


def linear_probe(train_x: Array, train_y: Array, test_x: Array) -> Array:
    """Score [test users] of a logistic regression on standardised columns.

    Its strength is chosen by stratified cross-validation on the training users, five-fold or as
    many as the rarer class has members. Raises `SourceError` when that is fewer than two.
    """
    rarer = int(min(np.sum(train_y == 0), np.sum(train_y == 1)))
    if rarer < 2:
        raise SourceError(
            f"a probe needs two training users of each class, the rarer class has {rarer}"
        )
    folds = StratifiedKFold(min(5, rarer), shuffle=True, random_state=0)
    probe = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=_STRENGTHS,
            cv=folds,
            scoring="roc_auc",
            max_iter=2000,
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
        ),
    )
    probe.fit(train_x, np.asarray(train_y, dtype=np.int64))
    scores: Array = probe.decision_function(test_x)
    return scores


def bootstrap_auc_interval(
    y: Array, score: Array, seed: int, rounds: int = 500
) -> tuple[float, float]:
    """95 % interval of the AUC over resampled users; rounds with one class only are skipped."""
    generator = np.random.default_rng(seed)
    y, score = np.asarray(y), np.asarray(score)
    auc(y, score)  # refuses one class
    values = []
    for _ in range(rounds):
        pick = generator.integers(0, len(y), len(y))
        if len(np.unique(y[pick])) == 2:
            values.append(auc(y[pick], score[pick]))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def frequent_texts(
    events: pa.Table, training_users: Sequence[str], as_of: datetime, limit: int = 100
) -> tuple[tuple[int, str], ...]:
    """The (modality, text) pairs that most events of the training users have before the as-of."""
    kept = _before(events, as_of)
    wanted = pc.is_in(kept.column("user"), value_set=pa.array(training_users, pa.string()))
    kept = kept.filter(wanted)
    pairs = zip(kept.column("modality").to_pylist(), kept.column("text").to_pylist(), strict=True)
    ranked = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))
    return tuple(pair for pair, _ in ranked[:limit])


def count_features(
    events: pa.Table,
    users: Sequence[str],
    as_of: datetime,
    modalities: Sequence[ModalitySpec],
    texts: Sequence[tuple[int, str]],
) -> Array:
    """What a team would count by hand: float64 [users, 4 * modalities + texts].

    Per modality: log1p of the number of events, of the days since the newest (a year and a half
    where there is none), of the events of the last 28 days and of the summed amounts (with their
    sign). Per text: log1p of its count.

    Args:
        events: canonical events; only those strictly before `as_of` are read.
        users: rows of the result, in this order; those without events get zeros.
        as_of: tz-aware.
        modalities: what the column `modality` indexes.
        texts: the texts to count, from `frequent_texts` of the training users.
    """
    kept = _before(events, as_of)
    rows = {user: row for row, user in enumerate(users)}
    row = np.array([rows.get(user, -1) for user in kept.column("user").to_pylist()], dtype=np.int64)
    modality = kept.column("modality").to_numpy()
    age = round(as_of.timestamp() * 1e6) - kept.column("event_timestamp").cast("int64").to_numpy()
    amount = kept.column("amount").to_numpy().astype(np.float64)
    columns = []
    for index in range(len(modalities)):
        own = (modality == index) & (row >= 0)
        newest = np.full(len(users), 548.0)
        np.minimum.at(newest, row[own], age[own] / _DAY)
        spent = np.bincount(row[own], amount[own], len(users))
        columns += [
            np.log1p(np.bincount(row[own], minlength=len(users))),
            np.log1p(newest),
            np.log1p(np.bincount(row[own & (age <= 28 * _DAY)], minlength=len(users))),
            np.sign(spent) * np.log1p(np.abs(spent)),
        ]
    place = {pair: column for column, pair in enumerate(texts)}
    pairs = zip(modality.tolist(), kept.column("text").to_pylist(), strict=True)
    column = np.array([place.get(pair, -1) for pair in pairs], dtype=np.int64)
    counts = np.zeros((len(users), len(texts)))
    counted = (row >= 0) & (column >= 0)
    np.add.at(counts, (row[counted], column[counted]), 1.0)
    return np.concatenate((np.stack(columns, axis=1), np.log1p(counts)), axis=1)


def _before(events: pa.Table, as_of: datetime) -> pa.Table:
    limit = pa.scalar(as_of, pa.timestamp("us", tz="UTC"))
    return events.filter(pc.less(events.column("event_timestamp"), limit))
