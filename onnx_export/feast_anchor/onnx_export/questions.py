"""The questions a model is trained on, and their answers, for any set of modalities.

Two families. *Future* questions look at the window [as-of, as-of + n days), which must end at or
before the cut. *Profile* questions look back from the as-of. Answers are short texts that differ
within a question ("yes, produce" / "no, produce"), so that each is a hard negative of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from .attributes import attributes_corpus
from .corpus import DAY, Corpus, Question, rows_before
from .future import behaviour_corpus
from .inputs import Ints
from .manifest import ModalitySpec
from .scope import Family, Scope, join, make_scope
from .topics import field_values, find_topics, template_words

_PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")  # six hours each, from 00:00 UTC
_SPANS = {7: "week", 28: "four weeks", 91: "three months"}


def build_corpus(
    table: pa.Table,
    modalities: Sequence[ModalitySpec],
    *,
    cut: datetime,
    entity: str,
    held_out: Collection[str] = (),
    snapshots_per_user: int = 8,
    topics: int = 20,
    seed: int = 0,
) -> Corpus:
    """Build every training example of an event table; the same input gives the same corpus.

    Args:
        table: canonical events (`inputs.EVENT_SCHEMA`), in any order.
        modalities: what `modality` indexes.
        cut: tz-aware; nothing at or after it is read.
        entity: what a user is called in questions, such as "household".
        held_out: users that never enter.
        snapshots_per_user: as-of times per user.
        topics: most topics per modality.
        seed: fixes the as-of times.

    Raises:
        SourceError: there is nothing to train on or the table is not as declared.
    """
    scope = make_scope(
        table,
        modalities,
        cut=cut,
        entity=entity,
        held_out=held_out,
        snapshots_per_user=snapshots_per_user,
        topics=topics,
        seed=seed,
    )
    return join([family(scope) for family in FAMILIES.values()])


def general_corpus(scope: Scope) -> Corpus:
    """Yes/no, frequency and profile questions about modalities, topics and columns."""
    events, user, as_of, horizons = scope.events, scope.user, scope.as_of, scope.horizons
    modalities, entity, topics = scope.modalities, scope.entity, scope.topics
    maker = _Maker(Corpus(events, user, as_of, (), (), np.empty((len(user), 0), np.int64)), entity)
    maker.cut = scope.cut
    for index, spec in enumerate(modalities):
        if spec.kind == "table":
            maker.table_questions(index, spec)
        else:
            maker.event_questions(index, spec, horizons, topics)
    maker.inactivity(horizons, [i for i, m in enumerate(modalities) if m.kind == "events"])
    return maker.corpus()


class _Maker:
    """Collects questions and their label columns."""

    def __init__(self, rows: Corpus, entity: str) -> None:
        self.rows, self.events, self.entity = rows, rows.events, entity
        self.cut = 0
        self.first = self.events.starts[rows.user]  # [S] first row of the user
        self.now = rows_before(self.events, rows.user, rows.as_of)  # [S] row after the history
        self.questions: list[Question] = []
        self.columns: list[Ints] = []
        self.answers: dict[str, int] = {}
        self.short: dict[str, int] = {}  # topic -> modality that may be asked about by topic only
        self.ahead: dict[int, Ints] = {}

    def corpus(self) -> Corpus:
        columns = np.stack(self.columns, axis=1) if self.columns else self.rows.labels
        kept = [k for k in range(columns.shape[1]) if _varies(columns[:, k])]
        return Corpus(
            self.events,
            self.rows.user,
            self.rows.as_of,
            tuple(self.questions[k] for k in kept),
            tuple(self.answers),
            columns[:, kept],
        )

    def ask(self, phrasings: Sequence[str], answers: Sequence[str], which: Ints) -> None:
        """Add a question; `which` [S] picks one of `answers`, -1 for none."""
        ids = [self.answers.setdefault(text, len(self.answers)) for text in answers]
        table = np.array([*ids, -1], dtype=np.int64)
        self.questions.append(Question(tuple(dict.fromkeys(phrasings))))
        self.columns.append(table[which])

    def event_questions(
        self, index: int, spec: ModalitySpec, horizons: Sequence[int], limit: int
    ) -> None:
        """Everything that is asked of one modality of timed events."""
        own = self.events.modality == index
        if not own.any():
            return
        texts, text_of = np.unique(self.events.text[own], return_inverse=True)
        found = find_topics(
            spec.text,
            [self.events.texts[t] for t in texts],
            text_of.astype(np.int64),
            self._months(own),
            limit,
        )
        total = _running(own)
        words = template_words(spec.text)
        long = f"{spec.name} ({words})" if words else spec.name
        self._any(spec.name, long, total, horizons)
        self._growth(spec, own, horizons)
        self._levels(f"how often does this {self.entity} have {spec.name}", spec.name, total)
        self._clock(spec, own, horizons)
        counts = []
        for topic in found:
            about = own & np.isin(self.events.text, texts[list(topic.texts)])
            running = _running(about)
            long = f"{spec.name}: {topic.name}"
            short = topic.name if self.short.setdefault(topic.name, index) == index else long
            self._any(short, long, running, horizons)
            self._levels(f"how often {long}", short, running)
            counts.append(self._between(running, self.first, self.now))
        self._favourite(spec, [topic.name for topic in found], counts)
        if spec.amount:
            self._spend(spec, own, total)

    def table_questions(self, index: int, spec: ModalitySpec) -> None:
        """What a profile row says, column by column."""
        rows = np.flatnonzero(self.events.modality == index)
        newest = np.searchsorted(rows, self.now) - 1  # position in rows of the last one before
        known = newest >= 0
        known &= rows[newest] >= self.first if len(rows) else False
        if not known.any():
            return
        texts = [self.events.texts[t] for t in self.events.text[rows[newest[known]]]]
        parsed = [field_values(spec.text, text) for text in texts]
        for column in sorted({name for values in parsed for name in values}):
            name = column.replace("_", " ")
            values = [f"{name} {entry.get(column, '')}" for entry in parsed]
            distinct, codes = np.unique(values, return_inverse=True)
            if len(distinct) > 20:
                continue  # a number or an identifier, not a class
            which = np.full(len(self.now), -1)
            which[known] = codes
            asked = (
                f"what is the {name} of this {self.entity}?",
                f"{spec.name}: {name}?",
                f"which {name} does this {self.entity} have?",
            )
            self.ask(asked, distinct.tolist(), which)

    def inactivity(self, horizons: Sequence[int], timed: Sequence[int]) -> None:
        """Whether nothing at all will happen."""
        running = _running(np.isin(self.events.modality, timed))
        for days in horizons:
            span = _SPANS.get(days, f"{days} days")
            asked = (
                f"will this {self.entity} be inactive in the next {days} days?",
                f"will this {self.entity} do nothing at all in the next {span}?",
                f"will this {self.entity} stop and leave within the next {span}?",
            )
            self._yes_no(asked, "inactive", self._count_ahead(running, days) == 0, days)

    def _months(self, own: Any) -> Ints:
        """A number for each (user, four weeks) pair in which something happened [events]."""
        month = self.events.times[own] // (28 * DAY)
        pairs = np.stack((self.events.user[own], month), axis=1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def _any(self, name: str, long: str, running: Ints, horizons: Sequence[int]) -> None:
        for days in horizons:
            span = _SPANS.get(days, f"{days} days")
            asked = (
                f"will this {self.entity} have {long} in the next {days} days?",
                f"will this {self.entity} have {name} in the next {span}?",
                f"will this {self.entity} buy, use or get {name} in the next {span}?",
                f"{name} within {span}?",
                f"is {name} likely in the coming {days} days?",
            )
            self._yes_no(asked, name, self._count_ahead(running, days) > 0, days)

    def _growth(self, spec: ModalitySpec, own: Any, horizons: Sequence[int]) -> None:
        """More in the next n days than in the last n; money where the modality has an amount."""
        weight = self.events.amounts if spec.amount else np.ones(len(own))
        running = _running(np.where(own, weight, 0.0).astype(np.float64))
        start = self.events.times[own].min()
        for days in horizons:
            past = rows_before(self.events, self.rows.user, self.rows.as_of - days * DAY)
            fair = self.rows.as_of - days * DAY >= start  # else the past window is cut short
            before = running[self.now] - running[past]
            after = self._count_ahead(running, days)
            span = _SPANS.get(days, f"{days} days")
            verb = "spend more on" if spec.amount else "have more"
            asked = (
                f"will this {self.entity} {verb} {spec.name} in the next {span} than in the last?",
                f"will {spec.name} grow in the next {days} days?",
                f"more {spec.name} in the coming {span} than before?",
            )
            self._yes_no(asked, f"growing {spec.name}", after > before, days, fair)

    def _clock(self, spec: ModalitySpec, own: Any, horizons: Sequence[int]) -> None:
        """The usual part of the day, so far and in the longest horizon."""
        hours = (self.events.times % DAY) // (DAY // 4)
        if len(np.unique(hours[own])) < 3:
            return  # the clock time of these events is an artefact, such as midnight
        parts = [_running(own & (hours == part)) for part in range(4)]
        days = horizons[-1]
        past = np.stack([self._between(part, self.first, self.now) for part in parts], axis=1)
        ahead = np.stack([self._count_ahead(part, days) for part in parts], axis=1)
        ended = self.rows.as_of + days * DAY <= self.cut
        answers = [f"{part}, {spec.name}" for part in _PARTS_OF_DAY]
        usual = (
            f"at what time of day does this {self.entity} have {spec.name}?",
            f"morning, afternoon, evening or night {spec.name}?",
        )
        coming = (
            f"when will this {self.entity} have {spec.name} in the next {days} days?",
            f"{spec.name} mostly in the morning or evening in the coming {days} days?",
            f"at what time of day will {spec.name} mostly be?",
        )
        self.ask(usual, answers, np.where(past.sum(1) > 0, past.argmax(1), -1))
        self.ask(coming, answers, np.where(ended & (ahead.sum(1) > 0), ahead.argmax(1), -1))

    def _levels(self, question: str, name: str, running: Ints) -> None:
        """How often, per day of history: never, or a third of those who ever did."""
        count = self._between(running, self.first, self.now)
        days = np.maximum(1, (self.rows.as_of - self.events.times[self.first]) / DAY)
        which = _thirds(count / days, count > 0)
        answers = [f"{level}, {name}" for level in ("never", "rarely", "sometimes", "often")]
        self.ask((f"{question}?", f"frequency of {name}?"), answers, which)

    def _spend(self, spec: ModalitySpec, own: Any, total: Ints) -> None:
        running = _running(np.where(own, self.events.amounts, 0.0).astype(np.float64))
        count = self._between(total, self.first, self.now)
        mean = self._between(running, self.first, self.now) / np.maximum(1, count)
        which = _thirds(mean, count > 0)
        which = np.where(which > 0, which - 1, -1)
        asked = (
            f"how much does this {self.entity} spend on {spec.name}?",
            f"amount of {spec.name}?",
        )
        self.ask(asked, [f"{size} {spec.name}" for size in ("small", "medium", "large")], which)

    def _favourite(self, spec: ModalitySpec, names: Sequence[str], counts: list[Ints]) -> None:
        if len(names) < 2:
            return
        table = np.stack(counts, axis=1)
        which = np.where(table.sum(1) > 0, table.argmax(1), -1)
        asked = (
            f"what does this {self.entity} have most in {spec.name}?",
            f"favourite of {spec.name}?",
            f"which {spec.name} does this {self.entity} prefer?",
        )
        self.ask(asked, [f"mostly {name}" for name in names], which)

    def _yes_no(
        self, asked: Sequence[str], name: str, yes: Any, days: int, fair: Any = True
    ) -> None:
        ended = self.rows.as_of + days * DAY <= self.cut  # the window must be over by the cut
        which = np.where(ended & fair, np.where(yes, 0, 1), -1)
        self.ask(asked, (f"yes, {name}", f"no, {name}"), which)

    def _count_ahead(self, running: Any, days: int) -> Any:
        if days not in self.ahead:
            end = self.rows.as_of + days * DAY
            self.ahead[days] = rows_before(self.events, self.rows.user, end)
        return self._between(running, self.now, self.ahead[days])

    @staticmethod
    def _between(running: Any, start: Ints, end: Ints) -> Any:
        return running[end] - running[start]


def _running(values: Any) -> Any:
    """Sum of all earlier values, so that a range's sum is one subtraction: [N + 1]."""
    total = np.float64 if values.dtype.kind == "f" else np.int64
    return np.concatenate((np.zeros(1, total), np.cumsum(values, dtype=total)))


def _thirds(values: Any, any_at_all: Any) -> Ints:
    """0 where there is nothing, else 1, 2 or 3 by terciles of the rest."""
    which = np.zeros(len(values), dtype=np.int64)
    if any_at_all.any():
        low, high = np.quantile(values[any_at_all], (1 / 3, 2 / 3))
        which[any_at_all] = 1 + (values[any_at_all] > low) + (values[any_at_all] > high)
    return which


def _varies(column: Ints) -> bool:
    """Whether a question has two different answers somewhere: else it teaches nothing."""
    return len(np.unique(column[column >= 0])) > 1


FAMILIES: dict[str, Family] = {
    "general": general_corpus,
    "behaviour": behaviour_corpus,
    "attributes": attributes_corpus,
}
"""Name -> maker of one family of questions, in the order of their columns."""
