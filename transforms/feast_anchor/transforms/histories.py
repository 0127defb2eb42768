"""From the rows of one shard to one history per user, with books that balance.

The law of this module: only events strictly before the as-of time are read, and a user's history
is a pure function of that user's events. Events are put in one fixed order (time, modality, text,
amount), so neither the order in which files were read nor any other user can change a bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.inputs import Floats, Ints, window
from feast_anchor.onnx_export.manifest import ModalitySpec

NO_USABLE_EVENT = "no_usable_event"
NO_EVENT_BEFORE_AS_OF = "no_event_before_as_of"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Snapshots fall on multiples of their period counted from a Monday, so that weekly ones are
# Mondays at midnight UTC whatever window asked for them.
_GRID_ORIGIN = datetime(1970, 1, 5, tzinfo=UTC)
_MOST_SNAPSHOTS = 10_000  # as-of times of one run; all vectors of a shard are held in memory
_ORDER = [(name, "ascending") for name in ("user", "event_timestamp", "modality", "text", "amount")]

# When vectors are wanted, in microseconds since the epoch, UTC, ascending: the same for all users,
# or each user's own; then users without an entry are not asked about.
AsOf = Sequence[int] | Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Cut:
    """One prefix to compute: the events read, and the as-of times that read exactly these."""

    positions: Ints  # into the user's history, ascending [T]
    as_of: tuple[int, ...]  # microseconds since the epoch, UTC


@dataclass(frozen=True)
class History:
    """One user's events in order. Arrays are [N]; `text` indexes the shard's distinct texts."""

    user: str
    times: Ints  # microseconds since the epoch, UTC
    modality: Ints
    text: Ints
    amounts: Floats
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Books:
    """What came in and where it went. `balances()` is the promise that nothing was lost.

    A label is one (user, as-of) pair of a label table; other runs have none.
    """

    events_in: int
    events_used: int  # read by at least one vector
    events_rejected: int
    events_outside: int  # at or after the user's last as-of, or of a user not asked about
    events_over_budget: int  # older than the token budget of every as-of
    users_in: int
    users_embedded: int
    users_rejected: int
    users_unchanged: int = 0  # no new event since their newest vector, which stands
    events_unchanged: int = 0  # what those vectors read
    labels_in: int = 0
    labels_rejected: int = 0

    def balances(self) -> bool:
        """True when events and users in equal those out plus those rejected."""
        used = self.events_used + self.events_unchanged
        return (
            min(asdict(self).values()) >= 0
            and self.events_in
            == used + self.events_rejected + self.events_outside + self.events_over_budget
            and self.users_in == self.users_embedded + self.users_unchanged + self.users_rejected
            and 0 <= self.labels_rejected <= self.labels_in
        )


@dataclass(frozen=True)
class ShardHistories:
    """The histories of one shard, its distinct texts, its dead letters and its books."""

    histories: tuple[History, ...]
    texts: tuple[str, ...]
    rejected_events: pa.Table  # ROW_SCHEMA
    rejected_users: dict[str, str]  # user -> reason
    books: Books
    rejected_labels: tuple[tuple[str, int, str], ...] = ()  # user, as-of, reason

    @property
    def rejections(self) -> dict[str, int]:
        """Rows per reason, as "event:reason", "user:reason" and "label:reason"."""
        counts = Counter(f"event:{r}" for r in self.rejected_events.column("rejected").to_pylist())
        counts.update(f"user:{reason}" for reason in self.rejected_users.values())
        counts.update(f"label:{reason}" for _, _, reason in self.rejected_labels)
        return dict(sorted(counts.items()))


def as_of_times(
    start: datetime, end: datetime, snapshots: timedelta | None
) -> tuple[datetime, ...]:
    """The as-of times of a window: its end, and every grid point in (start, end] before it.

    Args:
        start, end: the window, time-zone aware.
        snapshots: period of the grid, or None for the end alone.

    Raises:
        SpecError: the window ends before it starts, or the period is not positive.
    """
    if end < start:
        raise SpecError(f"window ends at {end} before it starts at {start}; swap the two")
    if snapshots is None:
        return (end,)
    if snapshots <= timedelta(0):
        raise SpecError(f"snapshots={snapshots!r}, expected a positive period such as 7 days")
    first = (start - _GRID_ORIGIN) // snapshots + 1
    last = (end - _GRID_ORIGIN) // snapshots
    if last - first >= _MOST_SNAPSHOTS:
        raise SpecError(
            f"{last - first + 1} snapshots of {snapshots} between {start} and {end}, expected at "
            f"most {_MOST_SNAPSHOTS}; take a longer period or a shorter window"
        )
    grid = [_GRID_ORIGIN + step * snapshots for step in range(first, last + 1)]
    return tuple(dict.fromkeys([*grid, end]))


def micros(moment: datetime) -> int:
    """Microseconds since the epoch, UTC, of a time-zone aware datetime; exact."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def build_histories(rows: pa.Table, as_of: AsOf, specs: Sequence[ModalitySpec]) -> ShardHistories:
    """Group one shard's rows into histories cut at each as-of time.

    Args:
        rows: `ROW_SCHEMA`, in any order.
        as_of: of all users, or of each user that is asked about.
        specs: the manifest's modalities.

    Returns:
        Histories in the order of their users; users without any cut are rejected with a reason.
    """
    labels = as_of if isinstance(as_of, Mapping) else None
    moments_of = _moments_of(as_of)
    good = rows.filter(pc.is_null(rows.column("rejected"))).sort_by(_ORDER).combine_chunks()
    bad = rows.filter(pc.is_valid(rows.column("rejected")))
    texts, text_of = np.unique(np.asarray(good.column("text"), dtype=object), return_inverse=True)
    histories: list[History] = []
    rejected = _without_events(bad, labels)
    used = outside = over_budget = 0
    for history in _users(good, text_of.astype(np.int64), moments_of, specs):
        moments = moments_of(history.user)
        late = int((history.times >= moments[-1]).sum()) if moments else len(history.times)
        read = events_read(history)
        outside, used = outside + late, used + read
        over_budget += len(history.times) - late - read
        if not moments:
            continue
        if history.cuts:
            rejected.pop(history.user, None)
            histories.append(history)
        else:
            rejected[history.user] = NO_EVENT_BEFORE_AS_OF
    unanswered = _unanswered(histories, labels)
    books = Books(
        events_in=rows.num_rows,
        events_used=used,
        events_rejected=bad.num_rows,
        events_outside=outside,
        events_over_budget=over_budget,
        users_in=len(_keys(rows)) if labels is None else len(labels),
        users_embedded=len(histories),
        users_rejected=len(rejected),
        labels_in=sum(map(len, (labels or {}).values())),
        labels_rejected=len(unanswered),
    )
    reasons = dict(sorted(rejected.items()))
    return ShardHistories(tuple(histories), tuple(texts), bad, reasons, books, unanswered)


def events_read(history: History) -> int:
    """How many of a history's events at least one of its cuts reads."""
    read: np.ndarray[Any, Any] = np.zeros(len(history.times), dtype=bool)
    for cut in history.cuts:
        read[cut.positions] = True
    return int(read.sum())


def _moments_of(as_of: AsOf) -> Callable[[str], Sequence[int]]:
    if isinstance(as_of, Mapping):
        of_users = as_of
        return lambda user: of_users.get(user, ())
    everyone = as_of
    return lambda user: everyone


def _keys(rows: pa.Table) -> set[str]:
    return {*pc.unique(rows.column("user")).to_pylist()} - {None, ""}


def _without_events(bad: pa.Table, labels: Mapping[str, Sequence[int]] | None) -> dict[str, str]:
    """Users that would be rejected if none of the usable rows were theirs, with the reason."""
    asked = _keys(bad) if labels is None else set(labels)
    return dict.fromkeys(asked, NO_USABLE_EVENT)


def _unanswered(
    histories: Sequence[History], labels: Mapping[str, Sequence[int]] | None
) -> tuple[tuple[str, int, str], ...]:
    """Labels that get no row: their user had no event before the as-of."""
    if labels is None:
        return ()
    answered = {one.user: {m for cut in one.cuts for m in cut.as_of} for one in histories}
    return tuple(
        (user, moment, NO_EVENT_BEFORE_AS_OF)
        for user in sorted(labels)
        for moment in labels[user]
        if moment not in answered.get(user, ())
    )


def _users(
    good: pa.Table,
    text_of: Ints,
    moments_of: Callable[[str], Sequence[int]],
    specs: Sequence[ModalitySpec],
) -> Iterator[History]:
    users = good.column("user").combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy(zero_copy_only=False)
    times = good.column("event_timestamp").cast(pa.int64()).to_numpy()
    modality = good.column("modality").to_numpy().astype(np.int64)
    amounts = good.column("amount").to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.append(starts, len(codes))[1:]
    for start, end in zip(starts, ends, strict=True):
        part = slice(int(start), int(end))
        user = users.dictionary[codes[start]].as_py()
        yield History(
            user=user,
            times=times[part],
            modality=modality[part],
            text=text_of[part],
            amounts=amounts[part],
            cuts=_cuts(times[part], modality[part], moments_of(user), specs),
        )


def _cuts(
    times: Ints, modality: Ints, as_of: Sequence[int], specs: Sequence[ModalitySpec]
) -> tuple[Cut, ...]:
    """As-of times with no new event between them read the same events and share one prefix."""
    ends = np.searchsorted(times, np.asarray(as_of, dtype=np.int64), side="left")
    grouped: dict[int, list[int]] = {}
    for end, moment in zip(ends.tolist(), as_of, strict=True):
        if end > 0:
            grouped.setdefault(end, []).append(moment)
    return tuple(
        Cut(window(times, modality, moments[0], specs), tuple(moments))
        for moments in grouped.values()
    )
