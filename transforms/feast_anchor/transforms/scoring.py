"""Score histories with a bundle: each prefix once, every scenario from it. No Beam, no Feast.

The law of this module: a vector depends on the user's own events, the as-of time, the scenario
and the bundle, and on nothing else, to the last bit (on CPU; a GPU rounds as it likes). ONNX
Runtime's matrix products give a row the same bits whatever rows stand beside it and whatever zeros
stand behind its sum, with one exception: a lone row is multiplied by another routine. So no run
reads fewer than two events or two tokens of questions, and what the suffix computes once per
question it computes for the first one twice. A question's width is a function of its own
length, and texts are encoded at widths of their own in fixed batches. What shares a run is then a
matter of speed alone, and `packing` decides it.

As-of times whose histories begin with the same event share one prefix where the bundle reads
events first: a question about an earlier time sees the first events only.

Worker threads over single-threaded sessions fill the cores: ONNX Runtime releases the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import Clock, Floats, Ints, Moment

from .feeds import Group, Question, Reading, group_questions, prefix_feed, suffix_feed
from .graphs import Device, Graphs, State
from .histories import Cut, History
from .packing import pack

__all__ = ["Question", "Scorer", "UserVectors"]

_HISTORIES_AT_ONCE = 4_096  # packed together: bounds what is held beside the vectors


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
class _Piece:
    """One prefix to read, and the as-of times that ask about it."""

    history: History
    cuts: Sequence[Cut]  # each the beginning of the next one
    out: Floats  # [S, Q, dim], where the vectors go

    @property
    def events(self) -> int:
        return len(self.cuts[-1].positions)


class Scorer:
    """The graphs of one bundle, ready to answer a fixed list of questions."""

    def __init__(
        self,
        bundle: Bundle,
        questions: Sequence[Question],
        threads: int | None = None,
        device: Device = "auto",
    ) -> None:
        """Raises `BundleError` for a question the bundle cannot read, `SpecError` for no GPU."""
        self.manifest, self.bundle = bundle.manifest, bundle
        self.graphs = Graphs(bundle, device)
        on_gpu = self.graphs.device == "cuda"  # one prepares a pack while another runs
        self.threads = threads or (2 if on_gpu else os.cpu_count() or 1)
        self.event = bundle.session("event", self.graphs.device)
        self.is_table = np.array([spec.kind == "table" for spec in self.manifest.modalities])
        self.groups, self.prompts = group_questions(
            bundle, questions, self.event, self.graphs.policy.tokens
        )
        self.questions = len(questions)

    def score(self, histories: Sequence[History], texts: Sequence[str]) -> Iterator[UserVectors]:
        """Vectors of every history, in order.

        Args:
            histories: from `build_histories`; each has at least one cut.
            texts: the distinct texts that the histories index.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            encoded = self.bundle.encode_texts(texts, self.event, pool)
            for start in range(0, len(histories), _HISTORIES_AT_ONCE):
                some = [self._begun(one) for one in histories[start : start + _HISTORIES_AT_ONCE]]
                pieces = [piece for user in some for piece in self._pieces(*user)]
                packs = pack(
                    [piece.events for piece in pieces],
                    [len(piece.out) for piece in pieces],
                    max(group.ids.size for group in self.groups),
                    self.graphs.policy,
                )
                work = [[pieces[number] for number in numbers] for numbers in packs]
                list(pool.map(partial(self._fill, encoded=encoded), work))
                yield from (vectors for _, vectors in some)

    def answer(self, state: State, moments: Sequence[Sequence[Moment]]) -> Floats:
        """Every question at S moments of B histories behind a state: float32 [B, S, Q, dim]."""
        shape = (len(moments), len(moments[0]), self.questions, self.manifest.dims.embedding)
        out: Floats = np.empty(shape, dtype=np.float32)
        for group in self.groups:
            per_run = max(1, self.graphs.policy.tokens // (len(moments) * group.ids.size))
            for start in range(0, shape[1], per_run):
                some = slice(start, start + per_run)
                out[:, some, group.columns] = self._ask(state, group, [m[some] for m in moments])
        return out

    def _ask(self, state: State, group: Group, moments: Sequence[Sequence[Moment]]) -> Floats:
        """Questions of one width: float32 [B, S, questions of the group, dim]."""
        feed = suffix_feed(group, moments) | {"prompt": self.prompts}
        vectors = self.graphs.ask(feed, state)  # [B, S*Q or more, dim]
        shape = (len(moments), len(moments[0]), len(group.ids), -1)
        return vectors[:, : shape[1] * shape[2]].reshape(shape)

    def _fill(self, pieces: Sequence[_Piece], encoded: Floats) -> None:
        """Read the prefixes of a pack in one run, and let every as-of ask."""
        state = self.graphs.read(prefix_feed([self._reading(one, encoded) for one in pieces]))
        found = self.answer(state, [self._moments(piece) for piece in pieces])
        for piece, vectors in zip(pieces, found, strict=True):
            piece.out[:] = vectors

    def _begun(self, history: History) -> tuple[History, UserVectors]:
        """A history and the place of its vectors, still empty."""
        as_of = np.array([m for cut in history.cuts for m in cut.as_of], dtype=np.int64)
        ends = [history.times[cut.positions[-1]] for cut in history.cuts for _ in cut.as_of]
        shape = (len(as_of), self.questions, self.manifest.dims.embedding)
        vectors = np.empty(shape, dtype=np.float32)
        return history, UserVectors(history.user, as_of, np.array(ends, dtype=np.int64), vectors)

    def _pieces(self, history: History, user: UserVectors) -> Iterator[_Piece]:
        start = 0
        for cuts in _share(history.cuts, self.manifest.shares_prefixes):
            end = start + sum(len(cut.as_of) for cut in cuts)
            yield _Piece(history, cuts, user.vectors[start:end])
            start = end

    def _reading(self, piece: _Piece, encoded: Floats) -> Reading:
        history, at = piece.history, piece.cuts[-1].positions  # the longest; others begin it
        return Reading.of(
            history.times[at],
            history.modality[at],
            history.amounts[at],
            encoded[history.text[at]],
            self.is_table,
        )

    def _moments(self, piece: _Piece) -> list[Moment]:
        history, moments = piece.history, []
        for cut in piece.cuts:
            at = cut.positions
            clock = Clock.of(history.times[at], self.is_table[history.modality[at]])
            moments += [Moment.of(clock, len(at), as_of) for as_of in cut.as_of]
        return moments


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
