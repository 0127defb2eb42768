"""What the graphs read of a user's history: the one place where events become numbers.

The law of this module: everything here is a pure function of the events strictly before the
as-of time. Training, batch scoring and any later online scoring call these functions, so a vector
means the same wherever it was made, and nothing at or after the as-of time can reach it.

The prefix must not know the as-of time at all (one prefix serves many as-of times as long as no
new event arrives), so "how long ago" is told in the suffix, by `context_features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .manifest import ModalitySpec, SpecialIds

EVENT_FEATURES = ("amount", "gap", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
CONTEXT_FEATURES = ("recency", "events", "span")

# One behaviour record, whatever table it came from. `modality` is the position in the manifest.
EVENT_SCHEMA = pa.schema(
    [
        pa.field("user", pa.string(), nullable=False),
        pa.field("event_timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("modality", pa.int16(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("amount", pa.float32(), nullable=False),  # 0 where the modality has none
    ]
)

_DAY = 86_400_000_000  # microseconds
AGELESS = np.float32(1e6)  # days: later than any as-of, so that nothing fades
_WEEKDAY_OF_EPOCH = 3  # 1970-01-01 was a Thursday; Monday is 0

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


def window(times: Ints, modality: Ints, as_of: int, specs: Sequence[ModalitySpec]) -> Ints:
    """Positions of the events one vector reads: the newest of each modality, before the as-of.

    Windows are aligned: a modality with more events than its budget drops its oldest ones a
    quarter of the budget at a time. Until the next drop a later window is an earlier one and more
    events behind it, so one prefix serves both, and a stored prefix can be appended to. When to
    drop is a function of the number of events alone: training and serving agree.

    Args:
        times: event timestamps in microseconds since the epoch, UTC, ascending [N].
        modality: modality of each event [N].
        as_of: microseconds since the epoch, UTC; only events with `times < as_of` are read.
        specs: the manifest's modalities, for their token budgets.

    Returns:
        Ascending positions int64 [T], T <= sum of budgets.
    """
    end = int(np.searchsorted(times, as_of, side="left"))
    kept = []
    for index, spec in enumerate(specs):
        own = np.flatnonzero(modality[:end] == index)
        kept.append(own[dropped(len(own), spec.max_events) :])
    return np.sort(np.concatenate(kept)).astype(np.int64)


def dropped(events: int, budget: int) -> int:
    """How many of a modality's oldest events a window leaves out: a multiple of `budget // 4`."""
    step = max(1, budget // 4)
    return max(0, -(-(events - budget) // step) * step)


@dataclass(frozen=True)
class Clock:
    """When a window's events happened, as far as the graphs are told: microseconds UTC.

    Rows of a table modality count only for a user who has nothing else. Appending events leaves
    `first` where it is, so that the days of what is already there stand.
    """

    timed: bool  # False: nothing but rows of table modalities
    events: int  # events counted
    first: int  # the oldest of them
    last: int  # the newest

    @classmethod
    def of(cls, times: Ints, is_table: np.ndarray[Any, Any]) -> Clock:
        """The clock of a window: times ascending [T], is_table bool [T], at least one event."""
        timed = not is_table.all()
        counted = times[~is_table] if timed else times
        return cls(timed, len(counted), int(counted[0]), int(counted[-1]))

    def appended(self, times: Ints, is_table: np.ndarray[Any, Any]) -> Clock:
        """The clock of this window and some later events: that of all of them."""
        new = Clock.of(times, is_table)
        if new.timed != self.timed:
            return new if new.timed else self
        return Clock(self.timed, self.events + new.events, self.first, new.last)


def event_features(
    times: Ints, amounts: Floats, is_table: np.ndarray[Any, Any], before: Clock | None = None
) -> Floats:
    """Numbers beside each event's text: float32 [T, len(EVENT_FEATURES)].

    amount: sign(a) * log1p(|a|). gap: log1p(days since the previous event; 0 for the first).
    hour and weekday (UTC) as sine and cosine. Rows of a table modality carry no time.

    Args:
        times: microseconds since the epoch, UTC, ascending [T].
        amounts: the declared amount column, 0 where there is none [T].
        is_table: bool [T], true for rows of a table modality.
        before: the clock of the events that these are appended to, None for none.
    """
    timed = ~is_table
    out = np.zeros((len(times), len(EVENT_FEATURES)), dtype=np.float32)
    out[:, 0] = np.sign(amounts) * np.log1p(np.abs(amounts))
    clock = times[timed]
    previous = [before.last] if before is not None and before.timed else clock[:1]
    out[timed, 1] = np.log1p(np.diff(clock, prepend=previous) / _DAY)
    hour = 2 * np.pi * (clock % _DAY) / _DAY
    weekday = 2 * np.pi * ((clock // _DAY + _WEEKDAY_OF_EPOCH) % 7) / 7
    out[timed, 2], out[timed, 3] = np.sin(hour), np.cos(hour)
    out[timed, 4], out[timed, 5] = np.sin(weekday), np.cos(weekday)
    return out


def days_since_first(times: Ints, is_table: np.ndarray[Any, Any], clock: Clock) -> Floats:
    """Days from the window's oldest event to each: float32 [T], `AGELESS` for rows of a table."""
    days = (times - clock.first) / _DAY
    out: Floats = np.where(is_table, AGELESS, days).astype(np.float32)
    return out


def days_to_as_of(clock: Clock, as_of: int) -> np.float32:
    """Days from the window's oldest event to the as-of: the clock of `days_since_first`."""
    return np.float32((as_of - clock.first) / _DAY)


def context_features(clock: Clock, as_of: int) -> Floats:
    """Numbers that depend on the as-of time: float32 [len(CONTEXT_FEATURES)].

    recency: log1p(days from the newest event to the as-of). events: log1p(events read). span:
    log1p(days from the oldest to the newest). The season is no feature: a bundle is asked about
    seasons it was not trained on, and what it would say of them is a guess.
    """
    return np.array(
        [
            np.log1p((as_of - clock.last) / _DAY),
            np.log1p(clock.events),
            np.log1p((clock.last - clock.first) / _DAY),
        ],
        dtype=np.float32,
    )


@dataclass(frozen=True)
class Numbers:
    """What the prefix reads of events beside their texts and modalities."""

    features: Floats  # [T, F]
    days: Floats  # [T]
    clock: Clock  # of these events and of those before them

    @classmethod
    def of(
        cls,
        times: Ints,
        amounts: Floats,
        is_table: np.ndarray[Any, Any],
        before: Clock | None = None,
    ) -> Numbers:
        """The numbers of events; arguments as of `event_features`."""
        clock = Clock.of(times, is_table) if before is None else before.appended(times, is_table)
        features = event_features(times, amounts, is_table, before)
        return cls(features, days_since_first(times, is_table, clock), clock)


@dataclass(frozen=True)
class Moment:
    """What the suffix is told of one as-of, and how many events of the prefix it may see."""

    events: int
    now: np.float32  # days from the window's first event
    context: Floats  # [C]

    @classmethod
    def of(cls, clock: Clock, events: int, as_of: int) -> Moment:
        """The as-of in microseconds since the epoch, UTC, behind the events of a clock."""
        return cls(events, days_to_as_of(clock, as_of), context_features(clock, as_of))


def suffix_ids(
    queries: Sequence[Sequence[int]],
    prompts: Sequence[range],
    special: SpecialIds,
    width: int | None = None,
) -> tuple[Ints, Ints]:
    """The suffix of each scenario: query tokens, prompt tokens, `<USER_EMB>`, then padding.

    Args:
        queries: token ids of each query, [] for the general embedding.
        prompts: rows of the stacked prompt table that belong to each query, empty for none.
        special: the manifest's special ids.
        width: L, at least the longest suffix; None for exactly that.

    Returns:
        ids int64 [Q, L] and the number of real tokens in each, int64 [Q].
    """
    rows = [
        [*query, *(special.first_prompt + row for row in prompt), special.user_emb]
        for query, prompt in zip(queries, prompts, strict=True)
    ]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), width or int(lengths.max())), special.pad, dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return ids, lengths
