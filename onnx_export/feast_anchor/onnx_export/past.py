"""Events before an as-of time as arrays, and the few sums that every hand-made feature is made of.

The rule: `read_past` drops what happens at or after the as-of before anything else is looked at,
so no feature built on it can see that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .corpus import DAY

Array = np.ndarray[Any, Any]

_NEVER = 548.0  # days since the newest event of who has none


@dataclass(frozen=True)
class Past:
    """Events before an as-of, as arrays [N] in order of time; results are per user [users]."""

    users: int  # rows of every result
    row: Array  # whose event
    time: Array  # microseconds since the epoch, UTC
    age: Array  # days from the event to the as-of, above 0
    modality: Array
    amount: Array
    text: Array  # position in texts
    texts: tuple[str, ...]

    def only(self, kept: Array) -> Past:
        """The events whose mask [N] is true."""
        return replace(
            self,
            row=self.row[kept],
            time=self.time[kept],
            age=self.age[kept],
            modality=self.modality[kept],
            amount=self.amount[kept],
            text=self.text[kept],
        )

    def within(self, days: float) -> Past:
        """The events of the last `days`."""
        return self.only(self.age <= days)

    def count(self) -> Array:
        """log1p of the number of events per user."""
        return np.asarray(np.log1p(np.bincount(self.row, minlength=self.users)))

    def spend(self) -> Array:
        """Summed amounts per user, log1p with their sign."""
        total = np.bincount(self.row, self.amount, self.users)
        return np.asarray(np.sign(total) * np.log1p(np.abs(total)))

    def recency(self) -> Array:
        """log1p of the days since the newest event, of a year and a half where there is none."""
        newest = np.full(self.users, _NEVER)
        np.minimum.at(newest, self.row, self.age)
        return np.asarray(np.log1p(newest))

    def span(self) -> Array:
        """log1p of the days since the oldest event; 0 where there is none."""
        oldest = np.zeros(self.users)
        np.maximum.at(oldest, self.row, self.age)
        return np.asarray(np.log1p(oldest))

    def distinct(self, of: Array) -> Array:
        """log1p of the number of different values of `of` [N] per user."""
        pairs = np.unique(np.stack((self.row, of)), axis=1)
        return np.asarray(np.log1p(np.bincount(pairs[0], minlength=self.users)))

    def share(self, kept: Array) -> Array:
        """Part of each user's events whose mask [N] is true; 0 without events."""
        part = np.bincount(self.row, kept, self.users)
        share: Array = part / np.maximum(1, np.bincount(self.row, minlength=self.users))
        return share


def read_past(events: pa.Table, users: Sequence[str], as_of: datetime) -> Past:
    """The events of `users` strictly before `as_of` (tz-aware); row n of a result is users[n]."""
    limit = pa.scalar(as_of, pa.timestamp("us", tz="UTC"))
    kept = events.filter(pc.less(events.column("event_timestamp"), limit)).combine_chunks()
    kept = kept.filter(pc.is_in(kept.column("user"), value_set=pa.array(users, pa.string())))
    order = ("event_timestamp", "modality", "text", "amount")  # sums then repeat to the last bit
    kept = kept.sort_by([(name, "ascending") for name in order]).combine_chunks()
    row = pc.index_in(kept.column("user"), value_set=pa.array(users, pa.string()))
    time = kept.column("event_timestamp").cast("int64").to_numpy()
    texts = pc.unique(kept.column("text"))
    return Past(
        users=len(users),
        row=row.to_numpy().astype(np.int64),
        time=time,
        age=(round(as_of.timestamp() * 1e6) - time) / DAY,
        modality=kept.column("modality").to_numpy(),
        amount=kept.column("amount").to_numpy().astype(np.float64),
        text=pc.index_in(kept.column("text"), value_set=texts).to_numpy().astype(np.int64),
        texts=tuple(texts.to_pylist()),
    )
