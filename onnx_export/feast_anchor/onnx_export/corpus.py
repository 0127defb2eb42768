"""Training triples (history, query, answer) from nothing but the canonical event table.

The law of this module: the answer to every question is computed from events strictly before
`cut`, and the history a question is asked of ends before the window its answer speaks of. Events
at or after `cut` and the events of held-out users are dropped before anything else is looked at,
so they cannot change a single triple.

Each user is asked at several as-of times. Questions are columns, (user, as-of) pairs are rows:
one row's history is encoded once and answers many questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import SourceError
from .inputs import EVENT_SCHEMA, Floats, Ints
from .manifest import ModalitySpec

DAY = 86_400_000_000  # microseconds

_HORIZONS = (7, 28, 91)  # days that a question may look ahead


@dataclass(frozen=True)
class Question:
    """One question and several ways to put it. Training draws families evenly, then questions."""

    phrasings: tuple[str, ...]
    family: str


@dataclass(frozen=True)
class Triple:
    """One training example in words. `as_of`: microseconds since the epoch, UTC."""

    user: str
    as_of: int
    query: str
    answer: str


@dataclass(frozen=True)
class Events:
    """The events training may read, as arrays sorted by user, then time."""

    users: tuple[str, ...]
    starts: Ints  # [users + 1] rows of user u are starts[u] to starts[u + 1]
    user: Ints  # [N] position in users
    times: Ints  # [N] microseconds since the epoch, UTC
    modality: Ints  # [N]
    amounts: Floats  # [N]
    texts: tuple[str, ...]  # distinct texts
    text: Ints  # [N] position in texts


@dataclass(frozen=True)
class Corpus:
    """Rows (snapshots) by columns (questions), with the position of each answer in `answers`."""

    events: Events
    user: Ints  # [S] position in events.users
    as_of: Ints  # [S] microseconds since the epoch, UTC
    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    says: Ints  # [A]; 1 for an answer that says yes, 0 for one that says no, -1 for others
    labels: Ints  # [S, K]; -1 where the question has no answer

    def triples(self) -> Iterator[Triple]:
        """Every example with every phrasing: for people and tests, not for training."""
        for row, column in np.argwhere(self.labels >= 0):
            answer = self.answers[self.labels[row, column]]
            user, as_of = self.events.users[self.user[row]], int(self.as_of[row])
            for query in self.questions[column].phrasings:
                yield Triple(user, as_of, query, answer)


def read_events(
    table: pa.Table, modalities: Sequence[ModalitySpec], cut: datetime, held_out: Collection[str]
) -> Events:
    """Keep what training may read and sort it.

    Raises `SourceError` when the table has another schema, names a modality that is not there,
    or has nothing left to train on.
    """
    if not table.schema.equals(EVENT_SCHEMA):
        raise SourceError(
            f"events have the schema {table.schema}, expected {EVENT_SCHEMA}; read them with the "
            "views' templates first"
        )
    if cut.tzinfo is None:
        raise SourceError(f"cut={cut!r} has no time zone; expected an aware datetime, such as UTC")
    before = pc.less(table.column("event_timestamp"), pa.scalar(cut, pa.timestamp("us", tz="UTC")))
    held = pc.is_in(table.column("user"), value_set=pa.array(sorted(held_out), pa.string()))
    kept = table.filter(pc.and_(before, pc.invert(held)))
    if not kept.num_rows:
        raise SourceError(
            f"no events to train on: {table.num_rows} rows were given, none is before the cut "
            f"{cut.isoformat()} and of a user that is not held out; choose a later cut"
        )
    _check_modalities(kept, modalities)
    order = [
        (name, "ascending") for name in ("user", "event_timestamp", "modality", "text", "amount")
    ]
    return event_arrays(kept.sort_by(order))


def event_arrays(table: pa.Table) -> Events:
    """Canonical events that are already sorted by user, then time, as arrays."""
    user = table.column("user").combine_chunks().dictionary_encode()
    text = table.column("text").combine_chunks().dictionary_encode()
    codes = user.indices.to_numpy().astype(np.int64)
    return Events(
        users=tuple(user.dictionary.to_pylist()),
        starts=np.searchsorted(codes, np.arange(len(user.dictionary) + 1)).astype(np.int64),
        user=codes,
        times=table.column("event_timestamp").cast(pa.int64()).to_numpy(),
        modality=table.column("modality").to_numpy().astype(np.int64),
        amounts=table.column("amount").to_numpy().astype(np.float32),
        texts=tuple(text.dictionary.to_pylist()),
        text=text.indices.to_numpy().astype(np.int64),
    )


def snapshots(
    events: Events, modalities: Sequence[ModalitySpec], cut: datetime, per_user: int, seed: int
) -> tuple[Ints, Ints, tuple[int, ...]]:
    """When each user is asked: users [S], as-of times [S] (UTC microseconds) and horizons (days).

    Each user's times lie one in each of `per_user` equal parts of the training span, at random
    but fixed by seed and user. Those without one earlier event are left out.
    """
    timed = np.isin(events.modality, [i for i, m in enumerate(modalities) if m.kind == "events"])
    if not timed.any():
        raise SourceError("no timed events to train on: every modality given is a profile table")
    end = round(cut.timestamp() * 1_000_000)
    start = int(events.times[timed].min())
    days = (end - start) // DAY
    horizons = tuple(n for n in _HORIZONS if n <= days / 2)[-2:] or (max(1, days // 2),)
    low, high = start + (end - start) // 6, max(start, end - horizons[0] * DAY)
    edges = np.linspace(low, max(low, high), per_user + 1)
    users, as_ofs = [], []
    for number, user in enumerate(events.users):
        generator = np.random.default_rng(_user_seed(user, seed))
        times = (edges[:-1] + generator.random(per_user) * np.diff(edges)).astype(np.int64)
        own = events.times[events.starts[number] : events.starts[number + 1]]
        times = times[times > own[0]]
        users.append(np.full(len(times), number))
        as_ofs.append(times)
    return np.concatenate(users), np.concatenate(as_ofs), horizons


def rows_before(events: Events, user: Ints, when: Ints) -> Ints:
    """Row after the last event of each user strictly before each time [S]."""
    out = np.empty(len(user), dtype=np.int64)
    for position, (number, time) in enumerate(zip(user.tolist(), when.tolist(), strict=True)):
        first, last = events.starts[number], events.starts[number + 1]
        out[position] = first + np.searchsorted(events.times[first:last], time, side="left")
    return out


def _check_modalities(table: pa.Table, modalities: Sequence[ModalitySpec]) -> None:
    used: list[Any] = pc.unique(table.column("modality")).to_pylist()
    unknown = sorted(index for index in used if not 0 <= index < len(modalities))
    if unknown:
        raise SourceError(
            f"events are of the modalities {unknown}, but {len(modalities)} were declared: "
            f"{[m.name for m in modalities]}; expected positions in that list"
        )


def _user_seed(user: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{user}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
