"""Score histories with a bundle: each prefix once, every scenario from it. No Beam, no Feast.

The law of this module: a vector depends on the user's own events, the as-of time, the scenario
and the bundle, and on nothing else, to the last bit. ONNX Runtime's matrix products give a row the
same bits whatever rows stand beside it and whatever zeros stand behind its sum, with one
exception: a lone row or column is multiplied by another routine. So no run has fewer than two
events or two questions. Otherwise every run of the prefix and suffix graphs holds one user, a
question's width is a function of its own length, and texts are encoded at widths of their own in
fixed batches.

As-of times whose histories begin with the same event share one prefix where the bundle reads
events first: a question about an earlier time sees the first events only.

On CPU one user a run is also the fastest way: padding costs more than batching wins. Worker
threads over single-threaded sessions fill the cores, because ONNX Runtime releases the GIL.
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
    days_since_first,
    days_to_as_of,
    event_features,
    suffix_ids,
)
from feast_anchor.onnx_export.manifest import SpecialIds

from .histories import Cut, History

_WIDTH_STEP = 8  # a suffix is padded to a multiple of this
_BLOCKS_PER_RUN = 64  # suffix blocks (as-of times x scenarios) in one run: bounds its memory
_LEAST = 2  # events or blocks in one run


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
class _Asked:
    """One as-of time of a prefix: how many of its events count, and what the suffix is told."""

    events: int
    now: np.float32
    context: Floats  # [C]


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
        vectors = [
            self._prefix_of(history, cuts, encoded)
            for cuts in _share(history.cuts, self.manifest.shares_prefixes)
        ]
        return UserVectors(
            history.user, as_of, np.array(ends, dtype=np.int64), np.concatenate(vectors)
        )

    def _prefix_of(self, history: History, cuts: Sequence[Cut], encoded: Floats) -> Floats:
        """One prefix, then every (as-of, scenario) of its cuts: float32 [S, Q, dim]."""
        at = cuts[-1].positions  # the longest; the others are its first ones
        times, modality = history.times[at], history.modality[at]
        is_table = self._is_table[modality]
        state = self._prefix.run(
            list(self.manifest.state),
            {
                "vectors": _at_least(encoded[history.text[at]], 0.0)[None],  # [1, T, E]
                "features": _at_least(event_features(times, history.amounts[at], is_table), 0.0)[
                    None
                ],
                "modality": _at_least(modality, -1)[None],  # [1, T]
                "days": _at_least(days_since_first(times, is_table), 0.0)[None],  # [1, T]
            },
        )
        feed = dict(zip(self.manifest.state, state, strict=True))
        asked = [
            _Asked(
                len(cut.positions),
                days_to_as_of(times, is_table, moment),
                context_features(
                    times[: len(cut.positions)], is_table[: len(cut.positions)], moment
                ),
            )
            for cut in cuts
            for moment in cut.as_of
        ]
        dim = self.manifest.dims.embedding
        out = np.empty((len(asked), self._questions, dim), dtype=np.float32)
        for group in self._groups:
            per_run = max(1, _BLOCKS_PER_RUN // len(group.ids))
            for start in range(0, len(asked), per_run):
                some = slice(start, start + per_run)
                out[some, group.columns] = self._ask(feed, group, asked[some])
        return out

    def _ask(self, state: dict[str, Any], group: _Group, asked: Sequence[_Asked]) -> Floats:
        """Questions of one width at some as-of times: float32 [S, questions of the group, dim]."""
        moments, questions = len(asked), len(group.ids)
        blocks = moments * questions
        plen = np.array([one.events for one in asked], dtype=np.int64)
        inputs: dict[str, Any] = {
            "ids": np.tile(group.ids, (moments, 1)),  # [S*Q, L]
            "qlen": np.tile(group.lengths, moments),  # [S*Q]
            "plen": np.repeat(plen, questions),
            "now": np.repeat(np.array([one.now for one in asked]), questions),
            "context": np.repeat(np.stack([one.context for one in asked]), questions, axis=0),
            "query": np.tile(group.vectors, (moments, 1)),  # [S*Q, E]
        }
        rows = np.resize(np.arange(blocks), max(_LEAST, blocks))
        feed = {name: array[rows][None] for name, array in inputs.items()}  # [1, blocks or more,..]
        (embedding,) = self._suffix.run(["embedding"], feed | {"prompt": self._prompts, **state})
        vectors: Floats = embedding[0, :blocks].reshape(moments, questions, -1)
        return vectors


def _share(cuts: Sequence[Cut], shared: bool) -> list[list[Cut]]:
    """Runs of cuts, each the beginning of the next one; every cut for itself if not `shared`."""
    groups: list[list[Cut]] = []
    for cut in cuts:
        last = groups[-1][-1].positions if groups else None
        if shared and last is not None and np.array_equal(cut.positions[: len(last)], last):
            groups[-1].append(cut)
        else:
            groups.append([cut])
    return groups


def _at_least(rows: np.ndarray[Any, Any], padding: float) -> np.ndarray[Any, Any]:
    """`rows`, padded to `_LEAST` of them."""
    missing = max(0, _LEAST - len(rows))
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=padding)


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
