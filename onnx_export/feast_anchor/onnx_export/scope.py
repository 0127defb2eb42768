"""What a family of questions may look at, and how its columns become a corpus.

The law of this module: a family sees a `Scope` and nothing else. The scope's events are those
that `corpus.read_events` kept, so no family can reach a held-out user or anything from the cut on,
whatever it computes. A family hands back columns (`families` puts them side by side).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .corpus import DAY, Corpus, Events, Question, read_events, rows_before, snapshots
from .inputs import Ints
from .manifest import ModalitySpec

Bools = np.ndarray[Any, np.dtype[np.bool_]]


class Column(NamedTuple):
    """One question: ways to put it, its answer texts, and which one holds at each row."""

    family: str
    phrasings: Sequence[str]
    answers: Sequence[str]
    which: Ints  # [S] position in answers, -1 for none
    says: Sequence[int] = ()  # one per answer as in `Corpus.says`; empty where none says yes or no


@dataclass(frozen=True)
class Scope:
    """Events, rows and settings that every family shares; S rows, N events."""

    events: Events
    user: Ints  # [S] position in events.users
    as_of: Ints  # [S] microseconds since the epoch, UTC
    horizons: tuple[int, ...]  # days a question may look ahead, ascending
    cut: int  # microseconds since the epoch, UTC
    modalities: tuple[ModalitySpec, ...]
    entity: str  # what a user is called, such as "household"
    topics: int  # most topics per modality
    timezone: str  # whose clock and calendar days are meant, an IANA name
    seed: int

    @cached_property
    def first(self) -> Ints:
        """First row of each snapshot's user [S]."""
        first: Ints = self.events.starts[self.user]
        return first

    @cached_property
    def now(self) -> Ints:
        """Row after the last event strictly before the as-of [S]."""
        return rows_before(self.events, self.user, self.as_of)

    def after(self, days: float) -> Ints:
        """Row after the last event before as-of + `days`, which may be negative [S]."""
        return rows_before(self.events, self.user, self.as_of + round(days * DAY))

    def ended(self, days: int) -> Bools:
        """Whether the window of `days` after the as-of is over by the cut [S]."""
        over: Bools = self.as_of + days * DAY <= self.cut
        return over

    def warning(self) -> str:
        """What is odd about the cut, "" for nothing.

        After the last event every answer is "nothing happened", whether it did or not.
        """
        timed = [i for i, modality in enumerate(self.modalities) if modality.kind == "events"]
        last = int(self.events.times[np.isin(self.events.modality, timed)].max())
        silent = (self.cut - last) / DAY
        if silent <= self.horizons[0]:
            return ""
        end = datetime.fromtimestamp(last / 1_000_000, UTC)
        return (
            f"warning: no event in the {silent:.0f} days before the cut; if the tables end on "
            f"{end:%Y-%m-%d}, give the day after as the cut, or the model learns that all stops"
        )

    def columns(self, columns: Iterable[Column]) -> Corpus:
        """A corpus of these rows with the given columns."""
        kept = list(columns)
        answers: dict[str, int] = {}
        says: dict[str, int] = {}
        labels = np.full((len(self.user), len(kept)), -1, dtype=np.int64)
        for position, column in enumerate(kept):
            ids = [answers.setdefault(text, len(answers)) for text in column.answers]
            says |= dict(zip(column.answers, column.says, strict=True)) if column.says else {}
            labels[:, position] = np.array([*ids, -1])[column.which]
        return Corpus(
            events=self.events,
            user=self.user,
            as_of=self.as_of,
            questions=tuple(Question(tuple(dict.fromkeys(c.phrasings)), c.family) for c in kept),
            answers=tuple(answers),
            says=np.array([says.get(text, -1) for text in answers], dtype=np.int64),
            labels=labels,
        )


def make_scope(
    table: pa.Table,
    modalities: Sequence[ModalitySpec],
    *,
    cut: datetime,
    entity: str,
    held_out: Collection[str] = (),
    snapshots_per_user: int = 8,
    topics: int = 60,
    timezone: str = "UTC",
    seed: int = 0,
) -> Scope:
    """Read what training may read and fix the rows; the same input gives the same scope.

    Args:
        table: canonical events (`inputs.EVENT_SCHEMA`), in any order.
        modalities: what `modality` indexes.
        cut: tz-aware; nothing at or after it is read.
        entity: the entity's name or join key; questions say "household" for "household_id".
        held_out: users that never enter.
        snapshots_per_user: as-of times per user.
        topics: most topics per modality.
        timezone: the clock that "in the morning" is meant on, an IANA name.
        seed: fixes the as-of times.

    Raises:
        SourceError: there is nothing to train on or the table is not as declared.
    """
    events = read_events(table, modalities, cut, held_out)
    user, as_of, horizons = snapshots(events, modalities, cut, snapshots_per_user, seed)
    return Scope(
        events=events,
        user=user,
        as_of=as_of,
        horizons=horizons,
        cut=round(cut.timestamp() * 1_000_000),
        modalities=tuple(modalities),
        entity=entity.removesuffix("_id").replace("_", " "),
        topics=topics,
        timezone=timezone,
        seed=seed,
    )
