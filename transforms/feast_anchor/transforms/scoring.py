"""Score histories with a bundle: each prefix once, every scenario from it. No Beam, no Feast.

The law of this module: a vector depends on the user's own events, the as-of time, the scenario
and the bundle, and on nothing else, to the last bit. So nothing is padded to its neighbours: each
run of the prefix and suffix graphs holds one user, a question's width is a function of its own
length (sums over a row come out differently when the row gets longer, even if by zeros), no
question is asked in a run of its own (one row is multiplied in another way than several), and
texts are encoded at widths of their own in fixed batches.

On CPU this is also the fastest way: padding costs more than batching wins. Worker threads over
single-threaded sessions fill the cores, because ONNX Runtime releases the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import (
    Floats,
    Ints,
    context_features,
    days_to_newest,
    event_features,
    suffix_ids,
)
from feast_anchor.onnx_export.manifest import SpecialIds

from .histories import Cut, History

_WIDTH_STEP = 8  # a suffix is padded to a multiple of this
_BLOCKS_PER_RUN = 64  # suffix blocks (as-of times x scenarios) in one run: bounds its memory
_LEAST_BLOCKS = 2  # ONNX Runtime multiplies a lone row by another routine, whose last bits differ


@dataclass(frozen=True)
class Question:
    """One scenario as the scorer sees it: a query (None: general embedding) and a prompt name."""

    query: str | None
    prompt: str | None = None


@dataclass(frozen=True)
class UserVectors:
    """All vectors of one user.

    as_of, history_end: microseconds since the epoch, UTC [S]; history_end is the newest event
    read, always before as_of. vectors: float32 [S, Q, dim], unit length.
    """

    user: str
    as_of: Ints
    history_end: Ints
    vectors: Floats


@dataclass(frozen=True)
class _Group:
    """Questions whose suffixes are padded to the same width."""

    columns: Ints  # their places among all questions
    ids: Ints  # [questions, width]
    lengths: Ints  # real tokens of each
    vectors: Floats  # text vector of each [questions, E]


class Scorer:
    """The three graphs of one bundle, ready to answer a fixed list of questions."""

    def __init__(
        self, bundle: Bundle, questions: Sequence[Question], threads: int | None = None
    ) -> None:
        manifest = bundle.manifest
        self.manifest, self._bundle = manifest, bundle
        self.threads = threads or os.cpu_count() or 1
        self._event = bundle.session("event")
        self._prefix = bundle.session("prefix")
        self._suffix = bundle.session("suffix")
        self._is_table = np.array([spec.kind == "table" for spec in manifest.modalities])
        self._prompts, rows = _stack_prompts(bundle, questions)
        queries = [bundle.query_ids(question.query) for question in questions]
        vectors = bundle.query_vectors([question.query for question in questions], self._event)
        self._groups = _group_by_width(queries, vectors, rows, manifest.special_ids)
        self._questions = len(questions)

    def score(self, histories: Sequence[History], texts: Sequence[str]) -> Iterator[UserVectors]:
        """Vectors of every history, in order.

        Args:
            histories: from `build_histories`; each has at least one cut.
            texts: the distinct texts that the histories index.
        """
        encoded = self._bundle.encode_texts(texts, self._event)
        with ThreadPoolExecutor(self.threads) as pool:
            yield from pool.map(lambda history: self._user(history, encoded), histories)

    def _user(self, history: History, encoded: Floats) -> UserVectors:
        as_of = np.array([m for cut in history.cuts for m in cut.as_of], dtype=np.int64)
        ends = [history.times[cut.positions[-1]] for cut in history.cuts for _ in cut.as_of]
        vectors = [self._cut(history, cut, encoded) for cut in history.cuts]
        return UserVectors(
            history.user, as_of, np.array(ends, dtype=np.int64), np.concatenate(vectors)
        )

    def _cut(self, history: History, cut: Cut, encoded: Floats) -> Floats:
        """One prefix, then every (as-of, scenario) of this cut: float32 [S, Q, dim]."""
        at = cut.positions
        times, modality = history.times[at], history.modality[at]
        is_table = self._is_table[modality]
        state = self._prefix.run(
            list(self.manifest.state),
            {
                "vectors": encoded[history.text[at]][None],  # [1, T, E]
                "features": event_features(times, history.amounts[at], is_table)[None],
                "modality": modality[None],  # [1, T]
                "days": days_to_newest(times, is_table)[None],  # [1, T]
            },
        )
        feed = dict(zip(self.manifest.state, state, strict=True))
        contexts = [context_features(times, is_table, moment) for moment in cut.as_of]
        prefix_tokens = self.manifest.prefix_tokens + len(at)
        dim = self.manifest.dims.embedding
        out = np.empty((len(contexts), self._questions, dim), dtype=np.float32)
        for group in self._groups:
            per_run = max(1, _BLOCKS_PER_RUN // len(group.ids))
            for start in range(0, len(contexts), per_run):
                some = slice(start, start + per_run)
                out[some, group.columns] = self._ask(feed, group, contexts[some], prefix_tokens)
        return out

    def _ask(
        self,
        state: dict[str, Any],
        group: _Group,
        contexts: Sequence[Floats],
        prefix_tokens: int,
    ) -> Floats:
        """Questions of one width at some as-of times: float32 [S, questions of the group, dim]."""
        moments, questions = len(contexts), len(group.ids)
        blocks = moments * questions
        asked: dict[str, Any] = {
            "ids": np.tile(group.ids, (moments, 1)),  # [S*Q, L]
            "qlen": np.tile(group.lengths, moments),  # [S*Q]
            "plen": np.full(blocks, prefix_tokens, dtype=np.int64),
            "context": np.repeat(np.stack(contexts), questions, axis=0),  # [S*Q, C]
            "query": np.tile(group.vectors, (moments, 1)),  # [S*Q, E]
        }
        rows = np.resize(np.arange(blocks), max(_LEAST_BLOCKS, blocks))
        feed = {name: array[rows][None] for name, array in asked.items()}  # [1, blocks or more, ..]
        (embedding,) = self._suffix.run(["embedding"], feed | {"prompt": self._prompts, **state})
        vectors: Floats = embedding[0, :blocks].reshape(moments, questions, -1)
        return vectors


def _group_by_width(
    queries: Sequence[Sequence[int]],
    vectors: Floats,
    prompts: Sequence[range],
    special: SpecialIds,
) -> list[_Group]:
    lengths = [len(query) + len(prompt) + 1 for query, prompt in zip(queries, prompts, strict=True)]
    widths = np.array([-(-length // _WIDTH_STEP) * _WIDTH_STEP for length in lengths])
    groups = []
    for width in np.unique(widths).tolist():
        columns = [column for column, own in enumerate(widths) if own == width]
        ids, real = suffix_ids(
            [queries[c] for c in columns], [prompts[c] for c in columns], special, width
        )
        groups.append(_Group(np.array(columns, dtype=np.int64), ids, real, vectors[columns]))
    return groups


def _stack_prompts(bundle: Bundle, questions: Sequence[Question]) -> tuple[Floats, list[range]]:
    """All tuned prompts under each other, and which rows belong to which question."""
    table = [np.zeros((1, bundle.manifest.dims.hidden), dtype=np.float32)]  # graphs want R >= 1
    rows: list[range] = []
    height = 1
    for question in questions:
        prompt = bundle.prompts[question.prompt] if question.prompt is not None else None
        size = 0 if prompt is None else len(prompt)
        rows.append(range(height, height + size))
        if prompt is not None:
            table.append(prompt.astype(np.float32))
            height += size
    return np.concatenate(table), rows
