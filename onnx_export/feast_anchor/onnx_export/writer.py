"""An optional writer: a language model that puts our facts and questions in more words.

It is asked for further phrasings of questions that exist, and for questions and answers about
facts of single users. The law of this module: nothing it writes enters the corpus on its word. A
*reflection* sends each item back with what it was written from, and only confirmed ones stay; and
whatever our code can check, it checks against facts computed anew (`facts.user_facts`): the fact
and topic exist, the value is ours, the answer says it and no other number. Facts come from a
`Scope`, which has no held-out user and nothing from the cut on.

Statements about the same fact become one question with one answer per user; a new phrasing joins
the phrasings of its question. Which users and questions are taken, and in what order, is fixed by
the seed, and replies are cached (`endpoint`): the same replies give the same corpus.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .corpus import Corpus
from .endpoint import Client, Endpoint, SpentError
from .facts import KIND, Facts, user_facts
from .families import join
from .future import find_kinds
from .manifest import canonical_sha256
from .scope import Column, Scope

FAMILY = "written"

_LONGEST = 120  # characters of a phrasing or an answer
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

_WRITE = (
    "You write training questions about a {entity} from facts that were computed from its events. "
    "For each of up to {count} facts write a question that could be asked of any {entity} and so "
    "has no numbers in it, a short answer that holds for this one and says the value, numbers in "
    "plain digits, the fact's name and its value."
)
_REFLECT = (
    "Check each statement against the facts. Say true only if question and answer are about the "
    "fact that is named and nothing in them goes beyond the facts. One verdict per statement."
)
_REPHRASE = "Write up to {count} other ways to ask exactly this question, short and plain."
_SAME = (
    "Say of each candidate whether it asks exactly the same as the question, the same time span "
    "included. One verdict per candidate."
)


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Statement(_Reply):
    """A question, one user's answer, and the fact that it rests on."""

    question: str = Field(min_length=3, max_length=_LONGEST)
    answer: str = Field(min_length=1, max_length=_LONGEST)
    fact: str
    value: int | float | str


class Statements(_Reply):
    """What a writer says about one user."""

    statements: tuple[Statement, ...]


class Phrasings(_Reply):
    """Other ways to put one question."""

    phrasings: tuple[str, ...]


class Verdicts(_Reply):
    """Whether each item holds, in the order in which they were given."""

    verdicts: tuple[bool, ...]


@dataclass(frozen=True)
class WriterConfig:
    """How much a writer is asked for."""

    users: int = 50  # users that it writes statements about
    statements: int = 6  # most per user
    questions: int = 50  # questions that it rephrases
    phrasings: int = 4  # most per question
    max_requests: int = 200  # the cost's bound: every attempt counts


class Writer:
    """Writes into one scope's corpus; `kept` and `rejected` count items by reason."""

    def __init__(self, scope: Scope, client: Client, config: WriterConfig) -> None:
        self.scope, self.client, self.config = scope, client, config
        self.kinds = find_kinds(scope)
        self.rejected: Counter[str] = Counter()
        self.kept = 0
        self.complete = True  # whether the number of requests sufficed

    def extend(self, corpus: Corpus) -> Corpus:
        """The corpus with what was written and stood the checks.

        Raises `RunError` when the endpoint fails for good; running again uses the kept replies.
        """
        said: list[tuple[int, Statement]] = []
        phrasings: dict[int, list[str]] = {}
        taken = {_plain(p) for question in corpus.questions for p in question.phrasings}
        try:
            for user, number in self._tasks(corpus):
                if user:
                    said += [(number, statement) for statement in self._statements(number)]
                else:
                    phrasings[number] = self._phrasings(corpus, number, taken)
        except SpentError:
            self.complete = False
        questions = tuple(
            replace(question, phrasings=(*question.phrasings, *phrasings.get(number, ())))
            for number, question in enumerate(corpus.questions)
        )
        written = self.scope.columns(_columns(said, len(corpus.user), taken))
        return join([replace(corpus, questions=questions), written])

    def _tasks(self, corpus: Corpus) -> list[tuple[bool, int]]:
        """(True, row) for each user and (False, question) for each question, in seeded order."""
        generator = np.random.default_rng(self.scope.seed)
        rows = generator.permutation(len(corpus.user))
        newest = np.unique(corpus.user[rows], return_index=True)[1]  # one row for each user
        users = [(True, int(rows[at])) for at in generator.permutation(newest)[: self.config.users]]
        numbers = generator.permutation(len(corpus.questions))[: self.config.questions]
        tasks = users + [(False, int(number)) for number in numbers]
        return [tasks[at] for at in generator.permutation(len(tasks))]

    def _statements(self, row: int) -> list[Statement]:
        facts = user_facts(self.scope, self.kinds, row)
        task = _WRITE.format(entity=self.scope.entity, count=self.config.statements)
        reply = self.client.ask(Statements, task, {"facts": facts})
        if reply is None:
            return []
        items = reply.statements[: self.config.statements]
        content = {"facts": facts, "statements": [item.model_dump() for item in items]}
        return self._confirmed(_REFLECT, content, items, lambda item: objection(item, facts))

    def _phrasings(self, corpus: Corpus, number: int, taken: set[str]) -> list[str]:
        known = corpus.questions[number].phrasings
        task = _REPHRASE.format(count=self.config.phrasings)
        reply = self.client.ask(Phrasings, task, {"question": known[0], "known": known})
        if reply is None:
            return []
        items = tuple(text.strip() for text in reply.phrasings[: self.config.phrasings])

        def wrong(text: str) -> str:
            return phrasing_objection(text, known, taken)

        kept = self._confirmed(_SAME, {"question": known[0], "candidates": items}, items, wrong)
        kept = list({_plain(text): text for text in kept}.values())
        taken.update(map(_plain, kept))
        return kept

    def _confirmed(
        self, task: str, content: Any, items: Sequence[Any], wrong: Callable[[Any], str]
    ) -> list[Any]:
        """Items that neither the model nor our own check objects to."""
        reply = self.client.ask(Verdicts, task, content) if items else None
        verdicts = reply.verdicts if reply else ()
        if len(verdicts) != len(items):
            self.rejected["no verdict for each item"] += len(items)
            return []
        reasons = [
            wrong(item) if verdict else "reflection said no"
            for item, verdict in zip(items, verdicts, strict=True)
        ]
        self.rejected.update(reason for reason in reasons if reason)
        kept = [item for item, reason in zip(items, reasons, strict=True) if not reason]
        self.kept += len(kept)
        return kept


def writer_key(endpoint: Endpoint, config: WriterConfig) -> str:
    """What decides a writer's part of a corpus, for the store's fingerprint."""
    return canonical_sha256([endpoint.url, endpoint.model, asdict(config)])


def objection(statement: Statement, facts: Facts) -> str:
    """Why a statement cannot stand beside the facts; "" if nothing speaks against it."""
    truth = facts.get(statement.fact)
    if truth is None:
        return "no such fact"
    if not _equal(statement.value, truth):
        return "contradicts the data"
    topic = statement.fact[len(KIND) :].casefold() if statement.fact.startswith(KIND) else ""
    question, answer = statement.question.casefold(), statement.answer.casefold()
    if topic not in question + "\n" + answer:
        return "does not name its topic"
    if topic:  # its own digits, as in "7up", are no claim
        question, answer = question.replace(topic, ""), answer.replace(topic, "")
    if _NUMBER.search(question):
        return "question with numbers"
    if isinstance(truth, str):
        return "" if truth.casefold() in answer else "does not say the fact"
    told = [float(number) for number in _NUMBER.findall(answer)]
    if not told:
        return "does not say the fact"  # "none at all" of 12 would stand otherwise
    return "" if all(_equal(number, truth) for number in told) else "tells another number"


def phrasing_objection(text: str, known: Sequence[str], taken: set[str]) -> str:
    """Why a text cannot be another phrasing of a question; "" if it can."""
    if not 3 <= len(text) <= _LONGEST:
        return "phrasing too long or too short"
    if _plain(text) in taken:
        return "phrasing in use"
    numbers = {number for phrasing in known for number in _NUMBER.findall(phrasing)}
    return "" if set(_NUMBER.findall(text)) <= numbers else "phrasing with another number"


def _columns(said: Sequence[tuple[int, Statement]], rows: int, taken: set[str]) -> list[Column]:
    """One column per fact: its questions are the phrasings, each row has its first answer."""
    columns = []
    for fact in sorted({statement.fact for _, statement in said}):
        own = [(row, statement) for row, statement in said if statement.fact == fact]
        asked = {_plain(s.question): s.question for _, s in own if _plain(s.question) not in taken}
        taken.update(asked)
        answers = list(dict.fromkeys(statement.answer for _, statement in own))
        which = np.full(rows, -1, dtype=np.int64)
        for row, statement in reversed(own):
            which[row] = answers.index(statement.answer)
        if asked:
            columns.append(Column(FAMILY, list(asked.values()), answers, which))
    return columns


def _equal(said: float | str, truth: float | str) -> bool:
    if isinstance(said, str) or isinstance(truth, str):
        return str(said).casefold() == str(truth).casefold()
    return math.isclose(said, truth, rel_tol=1e-3, abs_tol=0.005)


def _plain(text: str) -> str:
    """A text without case and punctuation, as the tokenizer reads it."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
