"""The questions a model is trained on, and their answers, for any set of modalities.

Two families of families. *Future* questions look at the window [as-of, as-of + n days), which must
end at or before the cut. *Profile* questions look back from the as-of. Answers are short texts that
differ within a question ("yes, produce" / "no, produce"), so that each is a hard negative of the
other. What is asked is in `asked_events` and `asked_profiles`; this module keeps the books.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from .corpus import DAY, Corpus, Question, rows_before
from .inputs import Ints

_OTHERS = ("this customer", "this user", "this person")
_SPANS = {7: "week", 28: "four weeks", 91: "three months"}


class Maker:
    """Collects questions and their label columns, and counts in windows for those who ask."""

    def __init__(
        self, rows: Corpus, entity: str, cut: int, horizons: Sequence[int], timezone: str
    ) -> None:
        self.rows, self.events, self.entity = rows, rows.events, entity
        self.cut, self.horizons = cut, tuple(horizons)
        self.first = self.events.starts[rows.user]  # [S] first row of the user
        self.now = rows_before(self.events, rows.user, rows.as_of)  # [S] row after the history
        self.local = local_times(self.events.times, timezone)  # [N] microseconds on that clock
        self.short: dict[str, int] = {}  # topic -> modality that may be asked about by topic only
        self._questions: list[Question] = []
        self._columns: list[Ints] = []
        self._answers: dict[str, int] = {}
        self._says: dict[str, int] = {}
        self._ahead: dict[int, Ints] = {}

    def corpus(self) -> Corpus:
        """What was asked so far, without questions that everybody answers alike."""
        columns = np.stack(self._columns, axis=1) if self._columns else self.rows.labels
        kept = [k for k in range(columns.shape[1]) if _varies(columns[:, k])]
        return Corpus(
            self.events,
            self.rows.user,
            self.rows.as_of,
            tuple(self._questions[k] for k in kept),
            tuple(self._answers),
            np.array([self._says.get(text, -1) for text in self._answers], dtype=np.int64),
            columns[:, kept],
        )

    def ask(
        self, family: str, phrasings: Sequence[str], answers: Sequence[str], which: Ints
    ) -> None:
        """Add a question; `which` [S] picks one of `answers`, -1 for none.

        Every second phrasing is also put with another word for the user, because a team will not
        always say "household".
        """
        ids = [self._answers.setdefault(text, len(self._answers)) for text in answers]
        table = np.array([*ids, -1], dtype=np.int64)
        theirs = f"this {self.entity}"
        others = [
            phrasing.replace(theirs, _OTHERS[number // 2 % len(_OTHERS)])
            for number, phrasing in enumerate(phrasings)
            if number % 2 == 0
        ]
        self._questions.append(Question(tuple(dict.fromkeys([*phrasings, *others])), family))
        self._columns.append(table[which])

    def ask_yes_no(
        self, family: str, asked: Sequence[str], name: str, yes: Any, days: int, fair: Any = True
    ) -> None:
        """Add a question about the next `days`; rows that are not `fair` are not asked.

        Nor are rows whose window is not over by the cut: their answer is not known yet.
        """
        which = np.where(self.ended(days) & fair, np.where(yes, 0, 1), -1)
        answers = (f"yes, {name}", f"no, {name}")
        self._says |= {answers[0]: 1, answers[1]: 0}
        self.ask(family, asked, answers, which)

    def ended(self, days: int) -> Any:
        """Whether the window of so many days after the as-of is over by the cut: bool [S]."""
        return self.rows.as_of + days * DAY <= self.cut

    def ahead(self, running: Any, days: int) -> Any:
        """Sum over the next `days` of what `running_sum` has summed up [S]."""
        if days not in self._ahead:
            end = self.rows.as_of + days * DAY
            self._ahead[days] = rows_before(self.events, self.rows.user, end)
        return running[self._ahead[days]] - running[self.now]

    def behind(self, running: Any, days: int | None = None) -> Any:
        """Sum over the history, or its last `days`, of what `running_sum` has summed up [S]."""
        if days is None:
            return running[self.now] - running[self.first]
        start = rows_before(self.events, self.rows.user, self.rows.as_of - days * DAY)
        return running[self.now] - running[start]


def running_sum(values: Any) -> Any:
    """Sum of all earlier values, so that a range's sum is one subtraction: [N + 1, ...]."""
    total = np.float64 if values.dtype.kind == "f" else np.int64
    start = np.zeros((1, *values.shape[1:]), total)
    return np.concatenate((start, np.cumsum(values, axis=0, dtype=total)))


def thirds(values: Any, any_at_all: Any) -> Ints:
    """0 where there is nothing, else 1, 2 or 3 by terciles of the rest."""
    which = np.zeros(len(values), dtype=np.int64)
    if any_at_all.any():
        low, high = np.quantile(values[any_at_all], (1 / 3, 2 / 3))
        which[any_at_all] = 1 + (values[any_at_all] > low) + (values[any_at_all] > high)
    return which


def span(days: int) -> str:
    """A horizon in words: "four weeks" for 28."""
    return _SPANS.get(days, f"{days} days")


def local_times(times: Ints, timezone: str) -> Ints:
    """UTC microseconds as microseconds on the wall clock of a time zone [N]; to the hour it holds.

    The zone's offset is looked up once per day of the data, which is right but for the few hours
    around a change of clocks.
    """
    zone = ZoneInfo(timezone)
    days, day_of = np.unique(times // DAY, return_inverse=True)
    offsets = []
    for day in days.tolist():
        noon = datetime.fromtimestamp((day + 0.5) * DAY / 1e6, zone)
        delta = noon.utcoffset()
        offsets.append(0 if delta is None else round(delta.total_seconds() * 1e6))
    local: Ints = times + np.array(offsets, dtype=np.int64)[day_of]
    return local


def _varies(column: Ints) -> bool:
    """Whether a question has two different answers somewhere: else it teaches nothing."""
    return len(np.unique(column[column >= 0])) > 1
