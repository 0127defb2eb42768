"""What a corpus holds, in numbers that show a bad one before hours of training do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .corpus import Corpus, rows_before


@dataclass(frozen=True)
class FamilyStatistics:
    """Size of one family of questions."""

    name: str
    questions: int
    phrasings: int
    answers: int  # distinct answer texts
    triples: int  # (history, question, answer), phrasings not counted


@dataclass(frozen=True)
class Balance:
    """How unevenly one question is answered."""

    question: str  # its first phrasing
    answer: str  # the most frequent one
    share: float  # of the rows that have an answer
    rows: int  # that have an answer


@dataclass(frozen=True)
class Statistics:
    """A corpus at a glance."""

    users: int
    snapshots: int
    events: int
    median_history: float  # events before the as-of
    answers: int
    triples: int
    families: tuple[FamilyStatistics, ...]
    unbalanced: tuple[Balance, ...]  # the questions whose main answer has the largest share

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self)


def statistics(corpus: Corpus, worst: int = 10) -> Statistics:
    """Count users, rows, questions, answers and triples; name the `worst` balanced questions."""
    first = corpus.events.starts[corpus.user]
    history = rows_before(corpus.events, corpus.user, corpus.as_of) - first
    names = dict.fromkeys(question.family for question in corpus.questions)
    balances = sorted(
        (_balance(corpus, number) for number in range(len(corpus.questions))),
        key=lambda entry: (-entry.share, entry.question),
    )
    return Statistics(
        users=len(np.unique(corpus.user)),
        snapshots=len(corpus.user),
        events=len(corpus.events.times),
        median_history=float(np.median(history)) if len(history) else 0.0,
        answers=len(corpus.answers),
        triples=int((corpus.labels >= 0).sum()),
        families=tuple(_family(corpus, name) for name in names),
        unbalanced=tuple(balances[:worst]),
    )


def _family(corpus: Corpus, name: str) -> FamilyStatistics:
    own: Sequence[int] = [k for k, q in enumerate(corpus.questions) if q.family == name]
    labels = corpus.labels[:, own]
    return FamilyStatistics(
        name=name,
        questions=len(own),
        phrasings=sum(len(corpus.questions[number].phrasings) for number in own),
        answers=len(np.unique(labels[labels >= 0])),
        triples=int((labels >= 0).sum()),
    )


def _balance(corpus: Corpus, number: int) -> Balance:
    column = corpus.labels[:, number]
    counts = np.bincount(column[column >= 0], minlength=1)
    most, rows = int(counts.argmax()), int(counts.sum())
    share = round(float(counts[most]) / max(1, rows), 4)
    return Balance(corpus.questions[number].phrasings[0], corpus.answers[most], share, rows)
