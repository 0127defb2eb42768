"""Which families of questions there are, and how they become one corpus.

A new family is a function from a `Scope` to a corpus over the scope's rows, and a line in
`FAMILIES`. It may use several names in `Question.family`: training draws those evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .asked_events import ask_about_all, ask_about_events
from .asked_profiles import ask_about_profile
from .attributes import attributes_corpus
from .corpus import Corpus, Question
from .future import behaviour_corpus
from .inputs import Ints
from .questions import Maker
from .scope import Scope

Family = Callable[[Scope], Corpus]
"""Makes the questions of one family over the rows of a scope."""


def general_corpus(scope: Scope) -> Corpus:
    """Yes/no, frequency and profile questions about modalities, topics and columns."""
    maker = Maker(scope.columns(()), scope.entity, scope.cut, scope.horizons, scope.timezone)
    for index, spec in enumerate(scope.modalities):
        if spec.kind == "table":
            ask_about_profile(maker, index, spec)
        else:
            ask_about_events(maker, index, spec, scope.topics)
    ask_about_all(maker, scope.modalities)
    return maker.corpus()


FAMILIES: dict[str, Family] = {
    "general": general_corpus,
    "behaviour": behaviour_corpus,
    "attributes": attributes_corpus,
}
"""Name -> maker of one family of questions, in the order of their columns."""


def join(families: Sequence[Corpus]) -> Corpus:
    """Corpora over the same rows as one.

    Questions without two different answers teach nothing and are left out, and so are answers
    that then belong to no row.
    """
    answers: dict[str, int] = {}
    says: dict[int, int] = {}
    questions: list[Question] = []
    columns: list[Ints] = []
    for family in families:
        for question, column in zip(family.questions, family.labels.T, strict=True):
            used = np.unique(column[column >= 0])
            if len(used) < 2:
                continue
            table = np.full(len(family.answers) + 1, -1, dtype=np.int64)  # its last is for -1
            for answer in used.tolist():
                number = answers.setdefault(family.answers[answer], len(answers))
                table[answer] = number
                if (
                    says.get(number, -1) < 0
                ):  # a family that cannot tell (a writer's) unsays nothing
                    says[number] = int(family.says[answer])
            questions.append(question)
            columns.append(table[column])
    return replace(
        families[0],
        questions=tuple(questions),
        answers=tuple(answers),
        says=np.array([says[number] for number in range(len(answers))], dtype=np.int64),
        labels=np.stack(columns, axis=1) if columns else families[0].labels[:, :0],
    )
