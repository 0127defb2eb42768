"""How good scores are: AUC and KS on users that nothing was trained on, with paired intervals.

The rule: one set of resampled users serves every variant and every scenario. What two variants
share (easy users, lucky labels) then cancels in their difference, so a difference is known far
better than either of its sides. And nothing here looks past the as-of time. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import SourceError
from .manifest import ModalitySpec
from .probe import rank_auc

Array = np.ndarray[Any, Any]

_DAY = 86_400_000_000  # microseconds
_BLOCK = 4_000_000  # weights looked at together: bounds the memory of a bootstrap
_LEVEL = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """True when the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Measured:
    """One variant's AUC and KS per scenario [S], and in every bootstrap round [S, R].

    A scenario that could not be measured, or a round in which its users are all of one class, is
    NaN.
    """

    auc: Array
    ks: Array
    auc_rounds: Array
    ks_rounds: Array


def auc(y: Array, score: Array) -> float:
    """Area under the ROC curve; .5 is chance. Raises `SourceError` when y has one class only."""
    _two_classes(y)
    return rank_auc(y, score)


def resample(users: int, rounds: int, seed: int) -> Array:
    """How often each user is drawn in each round of a bootstrap: uint16 [rounds, users]."""
    generator = np.random.default_rng(seed)
    out = np.empty((rounds, users), dtype=np.uint16)
    for row in out:
        row[:] = np.bincount(generator.integers(0, users, users), minlength=users)
    return out


def weighted_auc_ks(y: Array, score: Array, weights: Array) -> tuple[Array, Array]:
    """AUC and KS [R] when user n counts weights[r, n] times; NaN in rounds of one class.

    y: 0 or 1 [N], score: [N], weights: whole numbers [R, N].
    """
    order = np.argsort(score, kind="stable")
    y, score = np.asarray(y)[order] == 1, np.asarray(score)[order]
    starts = np.flatnonzero(np.append(True, score[1:] != score[:-1]))  # of equal scores
    found = [_block(y, starts, part[:, order]) for part in _blocks(weights)]
    return np.concatenate([a for a, _ in found]), np.concatenate([k for _, k in found])


def measure(labels: Array, scores: Array, weights: Array) -> Measured:
    """AUC and KS of one variant in every scenario and every round.

    Args:
        labels: int [S, N]: 1, 0, or -1 where a user has no label in a scenario.
        scores: [K, S, N]: K scorings, such as K phrasings, whose AUCs are averaged; NaN where
            scoring k has nothing to say of a scenario.
        weights: from `resample` [R, N].
    """
    shape = (len(labels), len(weights))
    out = Measured(np.full(shape[0], np.nan), np.full(shape[0], np.nan), np.full(shape, np.nan),
                   np.full(shape, np.nan))  # fmt: skip
    once = np.ones((1, weights.shape[1]), dtype=weights.dtype)
    for scenario, y in enumerate(labels):
        known = y >= 0
        usable = [own[known] for own in scores[:, scenario] if not np.isnan(own[known]).any()]
        if not usable or len(np.unique(y[known])) < 2:
            continue
        for target, counted in ((slice(0, 1), once), (slice(1, None), weights)):
            pairs = [weighted_auc_ks(y[known], own, counted[:, known]) for own in usable]
            mean_auc, mean_ks = (np.mean(part, axis=0) for part in zip(*pairs, strict=True))
            if target.start == 0:
                out.auc[scenario], out.ks[scenario] = mean_auc[0], mean_ks[0]
            else:
                out.auc_rounds[scenario], out.ks_rounds[scenario] = mean_auc, mean_ks
    return out


def pooled(parts: Sequence[Measured]) -> Measured:
    """The mean over several runs (seeds, user splits) that were measured in the same rounds."""
    return Measured(
        *(
            np.mean([getattr(part, name) for part in parts], axis=0)
            for name in ("auc", "ks", "auc_rounds", "ks_rounds")
        )
    )


def interval(value: float, rounds: Array) -> Estimate:
    """A value with the 95 % interval of its rounds; NaN rounds do not count."""
    known = rounds[~np.isnan(rounds)]
    if not len(known) or np.isnan(value):
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(known, _LEVEL)
    return Estimate(float(value), float(low), float(high))


def mean_over_scenarios(values: Array, rounds: Array) -> Estimate:
    """Mean of [S] with the interval of the means of [S, R]; NaN scenarios are skipped."""
    return interval(_nan_mean(values), _nan_mean(rounds))


def paired_difference(one: Measured, other: Measured) -> Estimate:
    """Mean AUC of `one` minus that of `other`, over the scenarios that both have."""
    return mean_over_scenarios(one.auc - other.auc, one.auc_rounds - other.auc_rounds)


def paired_ratio(one: Measured, other: Measured) -> Estimate:
    """Mean AUC of `one` divided by that of `other`, over the scenarios that both have."""
    both = ~np.isnan(one.auc + other.auc)
    rounds = _nan_mean(one.auc_rounds[both]) / _nan_mean(other.auc_rounds[both])
    return interval(_nan_mean(one.auc[both]) / _nan_mean(other.auc[both]), rounds)


def bootstrap_auc_interval(
    y: Array, score: Array, seed: int, rounds: int = 500
) -> tuple[float, float]:
    """95 % interval of the AUC over resampled users; rounds with one class only are skipped."""
    found = interval(auc(y, score), weighted_auc_ks(y, score, resample(len(y), rounds, seed))[0])
    return found.low, found.high


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


def _two_classes(y: Array) -> None:
    if len(np.unique(y)) != 2:
        raise SourceError(
            f"AUC needs both classes, but all {len(y)} labels are {np.unique(y).tolist()}; "
            "take more users or another label"
        )


def _blocks(weights: Array) -> Iterator[Array]:
    rows = max(1, _BLOCK // weights.shape[1])
    for start in range(0, len(weights), rows):
        yield weights[start : start + rows]


def _block(y: Array, starts: Array, weights: Array) -> tuple[Array, Array]:
    """AUC and KS [R] of users in the order of their scores; `starts` begins each tie."""
    both = weights.astype(np.float64)
    positive, negative = (
        np.add.reduceat(both * of_class, starts, axis=1) for of_class in (y, ~y)
    )  # [R, ties]
    below, under = np.cumsum(negative, axis=1), np.cumsum(positive, axis=1)
    zeros, ones = below[:, -1], under[:, -1]
    won = (positive * (below - negative / 2)).sum(axis=1)
    two = (zeros > 0) & (ones > 0)
    zeros, ones = np.where(two, zeros, np.nan), np.where(two, ones, np.nan)
    gap = np.abs(under / ones[:, None] - below / zeros[:, None]).max(axis=1)
    return won / (ones * zeros), gap


def _nan_mean(values: Array) -> Any:
    """Mean over the first axis without the NaNs; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
