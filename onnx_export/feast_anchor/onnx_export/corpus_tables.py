"""A corpus as Arrow tables and back: the schemas of the stored files.

    events     the events, in the schema of `inputs.EVENT_SCHEMA`, sorted
    snapshots  one row per (user, as_of), with the number of events before it
    questions  question, family, phrasing: one row per phrasing
    answers    answer, text, says: 1 for yes, 0 for no, -1 for neither
    labels     snapshot, question, answer: only pairs that have an answer

A corpus and what is read back of its tables are equal, order included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from .corpus import Corpus, Question, event_arrays, rows_before
from .inputs import EVENT_SCHEMA
from .scope import Column

TABLES = {
    "events": EVENT_SCHEMA,
    "snapshots": pa.schema(
        {"user": pa.string(), "as_of": pa.timestamp("us", tz="UTC"), "history": pa.int32()}
    ),
    "questions": pa.schema(
        {"question": pa.int32(), "family": pa.string(), "phrasing": pa.string()}
    ),
    "answers": pa.schema({"answer": pa.int32(), "text": pa.string(), "says": pa.int8()}),
    "labels": pa.schema({"snapshot": pa.int32(), "question": pa.int32(), "answer": pa.int32()}),
}
PART = pa.schema(
    {
        "family": pa.string(),
        "phrasings": pa.list_(pa.string()),
        "answers": pa.list_(pa.string()),
        "which": pa.list_(pa.int32()),  # [S] position in answers, -1 for none
        "says": pa.list_(pa.int8()),
    }
)


def from_tables(tables: Mapping[str, pa.Table]) -> Corpus:
    """The corpus that some tables of the schemas `TABLES` hold."""
    events = event_arrays(tables["events"])
    rows, stored = tables["snapshots"], tables["labels"]
    position = {user: number for number, user in enumerate(events.users)}
    user = np.array([position[name] for name in rows.column("user").to_pylist()], dtype=np.int64)
    questions = _questions(tables["questions"])
    answers = tuple(tables["answers"].column("text").to_pylist())
    says = tables["answers"].column("says").to_numpy().astype(np.int64)
    as_of = rows.column("as_of").cast(pa.int64()).to_numpy()
    labels = np.full((len(user), len(questions)), -1, dtype=np.int64)
    snapshot, question, answer = (stored.column(c).to_numpy() for c in stored.column_names)
    labels[snapshot, question] = answer
    return Corpus(events, user, as_of, questions, answers, says, labels)


def to_tables(corpus: Corpus) -> dict[str, pa.Table]:
    """A corpus as tables of the schemas `TABLES`."""
    snapshot, question = np.nonzero(corpus.labels >= 0)
    columns = {
        "events": _event_columns(corpus),
        "snapshots": _snapshot_columns(corpus),
        "questions": _question_columns(corpus),
        "answers": [np.arange(len(corpus.answers)), list(corpus.answers), corpus.says],
        "labels": [snapshot, question, corpus.labels[snapshot, question]],
    }
    return {name: _table(columns[name], schema) for name, schema in TABLES.items()}


def pack(family: Corpus) -> pa.Table:
    """One family's questions, one a row, as a table of the schema `PART`."""
    rows = [_packed(question, family, k) for k, question in enumerate(family.questions)]
    return pa.Table.from_pylist(rows, PART)


def unpack(table: pa.Table) -> Iterator[Column]:
    """The columns that `pack` wrote."""
    for row in table.to_pylist():
        yield Column(**row | {"which": np.array(row["which"], dtype=np.int64)})


def _event_columns(corpus: Corpus) -> list[Any]:
    events = corpus.events
    users, texts = np.array(events.users, dtype=object), np.array(events.texts, dtype=object)
    return [users[events.user], events.times, events.modality, texts[events.text], events.amounts]


def _snapshot_columns(corpus: Corpus) -> list[Any]:
    events = corpus.events
    history = rows_before(events, corpus.user, corpus.as_of) - events.starts[corpus.user]
    return [np.array(events.users, dtype=object)[corpus.user], corpus.as_of, history]


def _question_columns(corpus: Corpus) -> list[Any]:
    rows = [
        (number, question.family, phrasing)
        for number, question in enumerate(corpus.questions)
        for phrasing in question.phrasings
    ]
    return [list(column) for column in zip(*rows, strict=True)] or [[], [], []]


def _table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    arrays = [
        pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _packed(question: Question, corpus: Corpus, number: int) -> dict[str, Any]:
    column = corpus.labels[:, number]
    used = np.unique(column[column >= 0])
    which = np.where(column >= 0, np.searchsorted(used, column), -1)
    return {
        "family": question.family,
        "phrasings": question.phrasings,
        "answers": [corpus.answers[answer] for answer in used],
        "which": which.tolist(),
        "says": corpus.says[used].tolist(),
    }


def _questions(table: pa.Table) -> tuple[Question, ...]:
    """Phrasings of the same number, in order, as one question."""
    grouped: dict[int, list[str]] = {}
    families: dict[int, str] = {}
    for number, family, phrasing in zip(*(c.to_pylist() for c in table.columns), strict=True):
        grouped.setdefault(number, []).append(phrasing)
        families[number] = family
    return tuple(Question(tuple(asked), families[number]) for number, asked in grouped.items())
