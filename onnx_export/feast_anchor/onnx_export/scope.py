"""What a family of questions may look at, and how its columns become a corpus.

The law of this module: a family sees a `Scope` and nothing else. The scope's events are those
that `corpus.read_events` kept, so no family can reach a held-out user or anything from the cut on,
whatever it computes. A family hands back columns; `join` puts families side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .corpus import DAY, Corpus, Events, Question, read_events, rows_before, snapshots
from .inputs import Ints
from .manifest import ModalitySpec

Bools = np.ndarray[Any, np.dtype[np.bool_]]

_SPANS = {7: "week", 28: "four weeks", 91: "three months"}


class Column(NamedTuple):
    """One question: ways to put it, its answer texts, and which one holds at each row."""

    phrasings: Sequence[str]
    answers: Sequence[str]
    which: Ints  # [S] position in answers, -1 for none


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

    def columns(self, columns: Iterable[Column], family: str) -> Corpus:
        """A corpus of these rows with one family's columns."""
        kept = list(columns)
        answers: dict[str, int] = {}
        labels = np.full((len(self.user), len(kept)), -1, dtype=np.int64)
        for position, column in enumerate(kept):
            ids = [answers.setdefault(text, len(answers)) for text in column.answers]
            labels[:, position] = np.array([*ids, -1])[column.which]
        questions = tuple(Question(tuple(dict.fromkeys(c.phrasings)), family) for c in kept)
        return Corpus(self.events, self.user, self.as_of, questions, tuple(answers), labels)


Family = Callable[[Scope], Corpus]
"""Makes the questions of one family over the rows of a scope."""


def make_scope(
    table: pa.Table,
    modalities: Sequence[ModalitySpec],
    *,
    cut: datetime,
    entity: str,
    held_out: Collection[str] = (),
    snapshots_per_user: int = 8,
    topics: int = 20,
    seed: int = 0,
) -> Scope:
    """Read what training may read and fix the rows; arguments as of `questions.build_corpus`.

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
        seed=seed,
    )


def join(families: Sequence[Corpus]) -> Corpus:
    """Corpora over the same rows as one.

    Questions without two different answers teach nothing and are left out, and so are answers
    that then belong to no row.
    """
    answers: dict[str, int] = {}
    questions: list[Question] = []
    columns: list[Ints] = []
    for family in families:
        for question, column in zip(family.questions, family.labels.T, strict=True):
            used = np.unique(column[column >= 0])
            if len(used) < 2:
                continue
            table = np.full(len(family.answers) + 1, -1, dtype=np.int64)  # its last is for -1
            for answer in used.tolist():
                table[answer] = answers.setdefault(family.answers[answer], len(answers))
            questions.append(question)
            columns.append(table[column])
    labels = np.stack(columns, axis=1) if columns else families[0].labels[:, :0]
    return replace(families[0], questions=tuple(questions), answers=tuple(answers), labels=labels)


def span(days: int) -> str:
    """A number of days in words."""
    return _SPANS.get(days, f"{days} days")


def running_sum(values: Any) -> Any:
    """Sum of all earlier values, so that a range's sum is one subtraction: [N + 1]."""
    total = np.float64 if values.dtype.kind == "f" else np.int64
    return np.concatenate((np.zeros(1, total), np.cumsum(values, dtype=total)))


def thirds(values: Any, known: Any) -> Ints:
    """0, 1 or 2 by terciles of the known values [S], -1 for the others."""
    which = np.full(len(values), -1, dtype=np.int64)
    if known.any():
        low, high = np.quantile(values[known], (1 / 3, 2 / 3))
        which[known] = 0 + (values[known] > low) + (values[known] > high)
    return which
