"""Questions about how a user behaves: regularity, prices, novelty, weekdays, recency, trend.

Each timed modality is asked the same questions, whatever it holds. *Past* questions are answered
from events strictly before the as-of, *coming* ones from the window after it, which must be over
by the cut. The limits that part "cheap" from "dear" or "regular" from "irregular" are terciles of
the training data, never numbers that somebody knew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .corpus import DAY, Corpus
from .inputs import Ints
from .manifest import ModalitySpec
from .questions import local_times, running_sum, span, thirds
from .scope import Bools, Column, Scope

FAMILY = "attributes"

_FEW = 3  # events or gaps below which nothing is said about a habit
_GROUP = 9  # amounts below which a text has no price level of its own
_RARE = 50  # a question that fewer than one row in so many can answer is not asked
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0

_ASKED = {
    "regularity": (
        "how regular are the {name} of this {who}?",
        "does this {who} have {name} at even intervals?",
        "are {name} regular or irregular?",
        "steady rhythm of {name}?",
    ),
    "price": (
        "is this {who} price sensitive in {name}?",
        "does this {who} choose cheap {name}?",
        "cheap or expensive {name}?",
        "how much does price matter to this {who} in {name}?",
    ),
    "novelty": (
        "does this {who} try new things in {name}?",
        "how much of the {name} of this {who} was new lately?",
        "new or familiar {name} in the last {span}?",
        "is this {who} looking for variety in {name}?",
    ),
    "weekday": (
        "does this {who} have {name} on weekdays or at the weekend?",
        "weekday or weekend {name}?",
        "on which days of the week are {name}?",
    ),
    "recency": (
        "when did this {who} last have {name}?",
        "how long ago were the last {name}?",
        "time since {name}?",
        "how recent are the {name} of this {who}?",
    ),
    "trend": (
        "do {name} of this {who} rise or fall?",
        "are {name} of the last {span} more than before?",
        "trend of {name}?",
        "did this {who} have more or fewer {name} lately?",
    ),
    "coming price": (
        "will this {who} choose cheap {name} in the next {span}?",
        "cheap or expensive {name} in the coming {days} days?",
        "how price sensitive will {name} be within {span}?",
    ),
    "coming novelty": (
        "will this {who} try new {name} in the next {span}?",
        "new or familiar {name} in the coming {days} days?",
        "how much of the next {name} will be new to this {who}?",
    ),
    "coming weekday": (
        "will {name} be on weekdays or at the weekend in the next {span}?",
        "weekday or weekend {name} in the coming {days} days?",
        "on which days of the week will this {who} have {name}?",
    ),
    "coming start": (
        "how soon will this {who} have {name} within {span}?",
        "when in the next {days} days are the first {name}?",
        "{name} soon, later or not at all in the coming {days} days?",
        "time until the next {name} within {span}?",
    ),
}

_PRICES = ("mostly cheap {}", "mixed price {}", "mostly expensive {}")
_NEWNESS = ("familiar {}", "some new {}", "mostly new {}")
_DAYS = ("weekday {}", "{} on any day", "weekend {}")


def attributes_corpus(scope: Scope) -> Corpus:
    """The attribute questions of every timed modality."""
    return scope.columns(_columns(scope))


def _columns(scope: Scope) -> Iterator[Column]:
    for index, spec in enumerate(scope.modalities):
        if spec.kind == "events" and (scope.events.modality == index).any():
            for column in _Asker(scope, index, spec).columns():
                if (column.which >= 0).mean() * _RARE >= 1:
                    yield column


class _Asker:
    """The questions of one modality; `own` rows are its events."""

    def __init__(self, scope: Scope, index: int, spec: ModalitySpec) -> None:
        self.scope, self.spec = scope, spec
        self.rows = np.flatnonzero(scope.events.modality == index)  # [E] its rows in the table
        self.own = scope.events.modality == index
        self.count = running_sum(self.own)
        self.long, self.short = scope.horizons[-1], scope.horizons[0]
        self.end = scope.after(self.long)
        self.day = local_times(scope.events.times, scope.timezone) // DAY  # [N]

    def columns(self) -> Iterator[Column]:
        """All of them, past before coming."""
        scope = self.scope
        yield self.regularity()
        yield self.recency()
        yield self.trend()
        lately, ended = scope.after(-self.short), scope.ended(self.long)
        warm = scope.as_of - scope.events.times[scope.first] >= 2 * self.short * DAY
        yield self.novelty("novelty", np.maximum(lately, scope.first), scope.now, warm, self.short)
        yield self.novelty("coming novelty", scope.now, self.end, ended, self.long)
        everything = np.ones(len(ended), dtype=bool)
        yield self.weekday("weekday", scope.first, scope.now, everything)
        yield self.weekday("coming weekday", scope.now, self.end, ended)
        if self.spec.amount:
            yield self.price("price", scope.first, scope.now, everything)
            yield self.price("coming price", scope.now, self.end, ended)
        for days in scope.horizons:
            yield self.start(days)

    def ask(self, what: str, answers: tuple[str, ...], which: Ints, days: int = 0) -> Column:
        """A column about the modality; `days` is how far the question looks."""
        days = days or self.long
        words = {"who": self.scope.entity, "name": self.spec.name, "days": days, "span": span(days)}
        asked = [phrasing.format(**words) for phrasing in _ASKED[what]]
        return Column(FAMILY, asked, [answer.format(self.spec.name) for answer in answers], which)

    def regularity(self) -> Column:
        """Standard deviation of the gaps between active days over their mean, in terciles."""
        scope = self.scope
        spread = np.full(len(scope.user), np.nan)
        first, last = np.searchsorted(self.rows, (scope.first, scope.now))
        for row, (start, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            gaps = np.diff(np.unique(self.day[self.rows[start:end]]))
            if len(gaps) >= _FEW:
                spread[row] = gaps.std() / gaps.mean()
        answers = ("regular {}", "fairly regular {}", "irregular {}")
        return self.ask("regularity", answers, thirds(spread, ~np.isnan(spread)) - 1)

    def recency(self) -> Column:
        """Days from the newest event to the as-of, in spans of a week, four weeks, three months."""
        scope = self.scope
        newest = self.rows[np.searchsorted(self.rows, scope.now) - 1]  # wraps where there is none
        some = self._between(self.count, scope.first, scope.now) > 0
        days = (scope.as_of - scope.events.times[newest]) / DAY
        which = np.where(some, np.searchsorted((7, 28, 91), days), 4)
        answers = (
            "{} within the last week",
            "{} within the last four weeks",
            "{} within the last three months",
            "{} longer ago",
            "never {}",
        )
        return self.ask("recency", answers, which)

    def trend(self) -> Column:
        """Events of the last days against those of as many days before."""
        scope, days = self.scope, self.short
        middle = np.maximum(scope.after(-days), scope.first)
        start = np.maximum(scope.after(-2 * days), scope.first)
        before = self._between(self.count, start, middle)
        lately = self._between(self.count, middle, scope.now)
        begun = scope.events.times[self.rows].min() <= scope.as_of - 2 * days * DAY
        which = np.where(begun & (before + lately > 0), 1 + np.sign(lately - before), -1)
        return self.ask("trend", ("falling {}", "steady {}", "rising {}"), which, days)

    def novelty(self, what: str, start: Ints, end: Ints, known: Bools, days: int) -> Column:
        """Share of events whose text the user never had before: none, up to half, more."""
        count = self._between(self.count, start, end)
        new = self._between(running_sum(self._first_time()), start, end)
        which = np.where(new == 0, 0, np.where(2 * new <= count, 1, 2))
        return self.ask(what, _NEWNESS, np.where(known & (count > 0), which, -1), days)

    def weekday(self, what: str, start: Ints, end: Ints, known: Bools) -> Column:
        """Share of events on Saturday and Sunday: below 1/7, up to a half, more."""
        weekday = (self.day + _EPOCH_WEEKDAY) % 7
        count = self._between(self.count, start, end)
        weekend = self._between(running_sum(self.own & (weekday >= 5)), start, end)
        which = np.where(7 * weekend < count, 0, np.where(2 * weekend <= count, 1, 2))
        return self.ask(what, _DAYS, np.where(known & (count >= _FEW), which, -1))

    def price(self, what: str, start: Ints, end: Ints, known: Bools) -> Column:
        """Share of events in the cheapest third of their text's amounts, in terciles."""
        count = self._between(self.count, start, end)
        cheap = self._between(running_sum(self._cheap()), start, end)
        share = 1 - cheap / np.maximum(1, count)
        return self.ask(what, _PRICES, thirds(share, known & (count >= _FEW)) - 1)

    def start(self, days: int) -> Column:
        """Whether the first event of the window comes in its first quarter, later or never."""
        scope = self.scope
        early = self._between(self.count, scope.now, scope.after(days / 4)) > 0
        ever = self._between(self.count, scope.now, scope.after(days)) > 0
        which = np.where(early, 0, np.where(ever, 1, 2))
        answers = ("{} soon", "{} later", "no {} at all")
        return self.ask("coming start", answers, np.where(scope.ended(days), which, -1), days)

    def _first_time(self) -> Bools:
        """Whether an event is the first of its user with its text [N], for own events."""
        events = self.scope.events
        pairs = np.stack((events.user[self.rows], events.text[self.rows]), axis=1)
        new = np.zeros(len(self.own), dtype=bool)
        new[self.rows[np.unique(pairs, axis=0, return_index=True)[1]]] = True
        return new

    def _cheap(self) -> Bools:
        """Whether an event's amount lies in the lowest third of its text, for own events [N].

        Texts of few events are compared with all of the modality.
        """
        amounts, text = self.scope.events.amounts[self.rows], self.scope.events.text[self.rows]
        order = np.lexsort((amounts, text))
        starts = np.flatnonzero(np.diff(text[order], prepend=-1))
        sizes = np.diff(starts, append=len(order))
        group = np.repeat(np.arange(len(starts)), sizes)  # [E] in order
        own = amounts[order][starts + (sizes - 1) // 3][group]
        limit = np.where(sizes[group] >= _GROUP, own, np.quantile(amounts, 1 / 3))
        cheap = np.zeros(len(self.own), dtype=bool)
        cheap[self.rows[order]] = amounts[order] <= limit
        return cheap

    @staticmethod
    def _between(running: Any, start: Ints, end: Ints) -> Any:
        return running[end] - running[start]
