"""Arrays in the shapes that the graphs take: readings of histories, moments, groups of questions.

The rule: nothing here depends on what else is in a run, except for padding, which stands on the
right where no graph looks. Inputs and their shapes are those of `bundle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import Clock, Floats, Ints, Moment, Numbers, suffix_ids
from feast_anchor.onnx_export.manifest import SpecialIds

_WIDTHS = (1, 2, 4, 8)  # tokens a suffix is padded to; longer ones to a multiple of the last
_LEAST = 2  # events, or tokens of questions, in one run: a lone row is multiplied otherwise

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Question:
    """One scenario as the scorer sees it: a query (None: general embedding) and a prompt name."""

    query: str | None
    prompt: str | None = None


@dataclass(frozen=True)
class Reading:
    """What the prefix reads of one history, and the clock of its events."""

    vectors: Floats  # [T, E]
    features: Floats  # [T, F]
    modality: Ints  # [T]
    days: Floats  # [T]
    clock: Clock  # of these events and of those before them

    @classmethod
    def of(
        cls,
        times: Ints,
        modality: Ints,
        amounts: Floats,
        vectors: Floats,
        is_table: Array,
        before: Clock | None = None,
    ) -> Reading:
        """The reading of events in order, [T] each; is_table is by modality.

        `before` is the clock of the events that these are appended to.
        """
        numbers = Numbers.of(times, amounts, is_table[modality], before)
        return cls(vectors, numbers.features, modality, numbers.days, numbers.clock)


@dataclass(frozen=True)
class Group:
    """Questions whose suffixes are padded to the same width."""

    columns: Ints  # their places among all questions
    ids: Ints  # [questions, width]
    lengths: Ints  # real tokens of each
    vectors: Floats  # text vector of each [questions, E]


def prefix_feed(readings: Sequence[Reading]) -> dict[str, Array]:
    """Inputs of the prefix for some histories, padded to the longest."""
    longest = max(_LEAST, *(len(one.modality) for one in readings))
    return {
        "vectors": _padded([one.vectors for one in readings], longest),  # [B, T, E]
        "features": _padded([one.features for one in readings], longest),  # [B, T, F]
        "modality": _padded([one.modality for one in readings], longest, -1),  # [B, T]
        "days": _padded([one.days for one in readings], longest),  # [B, T]
    }


def suffix_feed(group: Group, moments: Sequence[Sequence[Moment]]) -> dict[str, Array]:
    """Inputs of the suffix beside state and prompt: every question at every moment.

    Args:
        group: Q questions.
        moments: S of them for each of B histories.

    Returns:
        Arrays [B, S * Q, ...], moments outside; padded with repetitions to the least number.
    """
    histories, questions = len(moments), len(group.ids)
    blocks = len(moments[0]) * questions
    least = -(-_LEAST // group.ids.shape[1])
    rows = np.resize(np.arange(blocks), max(least, blocks))
    moment, question = rows // questions, rows % questions
    plen = np.array([[one.events for one in own] for own in moments], dtype=np.int64)  # [B, S]
    now = np.array([[one.now for one in own] for own in moments], dtype=np.float32)
    context = np.array([[one.context for one in own] for own in moments])  # [B, S, C]

    def every(array: Array) -> Array:
        return np.broadcast_to(array[question], (histories, len(rows), *array.shape[1:]))

    return {
        "ids": every(group.ids),  # [B, S*Q, L]
        "qlen": every(group.lengths),  # [B, S*Q]
        "query": every(group.vectors),  # [B, S*Q, E]
        "plen": plen[:, moment],
        "now": now[:, moment],
        "context": context[:, moment],  # [B, S*Q, C]
    }


def group_questions(
    bundle: Bundle, questions: Sequence[Question], event: Any, most: int
) -> tuple[list[Group], Floats]:
    """Questions by the width of their suffixes, up to `most` tokens a group, and the prompt table.

    `event` is a session of the event graph. Raises `BundleError` for a query that is too long or
    a prompt that the bundle does not have.
    """
    table, prompts = _stack_prompts(bundle, questions)
    queries = [bundle.query_ids(question.query) for question in questions]
    vectors = bundle.query_vectors([question.query for question in questions], event)
    lengths = [len(query) + len(prompt) + 1 for query, prompt in zip(queries, prompts, strict=True)]
    widths = np.array([_width(length) for length in lengths])
    special = bundle.manifest.special_ids
    groups = []
    for width in np.unique(widths).tolist():
        columns, each = np.flatnonzero(widths == width), max(1, most // width)
        for some in np.split(columns, range(each, len(columns), each)):
            groups.append(_group(some, queries, prompts, vectors, special, width))
    return groups, table


def _width(length: int) -> int:
    """Of a suffix of so many tokens; of nothing else, or its bits would depend on its company."""
    step = _WIDTHS[-1]
    return next((width for width in _WIDTHS if width >= length), -(-length // step) * step)


def _group(
    columns: Ints,
    queries: Sequence[Sequence[int]],
    prompts: Sequence[range],
    vectors: Floats,
    special: SpecialIds,
    width: int,
) -> Group:
    ids, lengths = suffix_ids(
        [queries[c] for c in columns], [prompts[c] for c in columns], special, width
    )
    return Group(columns, ids, lengths, vectors[columns])


def _stack_prompts(bundle: Bundle, questions: Sequence[Question]) -> tuple[Floats, list[range]]:
    """All tuned prompts under each other, and which rows belong to which question."""
    table = [np.zeros((1, bundle.manifest.dims.hidden), dtype=np.float32)]  # graphs want R >= 1
    rows: list[range] = []
    height = 1
    for question in questions:
        size = 0
        if question.prompt is not None:
            prompt = bundle.prompt(question.prompt)
            table.append(prompt.astype(np.float32))
            size = len(prompt)
        rows.append(range(height, height + size))
        height += size
    return np.concatenate(table), rows


def _padded(rows: Sequence[Array], longest: int, padding: int = 0) -> Array:
    """Arrays [T, ...] under each other, filled up on the right: [B, longest, ...]."""
    shape = (len(rows), longest, *rows[0].shape[1:])
    out: Array = np.full(shape, padding, dtype=rows[0].dtype)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out
