"""Scoring at request time: from a stored user state to vectors, and new events into the state.

The rule: a state that events were appended to is, bit for bit, that of the whole history read at
once (in float32, on CPU), and so are the vectors. What cannot keep that promise is refused: an
event that is not newer than those in the state, and one with which the aligned window drops others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feast_anchor.onnx_export.errors import BundleError, SpecError, StateError
from feast_anchor.onnx_export.inputs import Floats, Ints, Moment, window

from .feeds import Reading, prefix_feed
from .graphs import State
from .scoring import Scorer
from .user_state import UserState


@dataclass(frozen=True)
class Events:
    """Some events of one user, in any order; [N] each, or `SpecError`.

    They are put in the order of the pipeline: time, modality, text, amount.
    """

    times: Ints  # microseconds since the epoch, UTC
    modality: Ints  # position in the manifest
    texts: tuple[str, ...]
    amounts: Floats  # 0 where a modality has none

    def __post_init__(self) -> None:
        times, modality = np.asarray(self.times), np.asarray(self.modality)
        amounts = np.asarray(self.amounts, dtype=np.float32)  # as the pipeline reads them
        sizes = {len(times), len(modality), len(self.texts), len(amounts)}
        if len(sizes) > 1 or not all(isinstance(text, str) for text in self.texts):
            raise SpecError(
                f"{len(times)} times, {len(modality)} modalities, {len(self.texts)} texts and "
                f"{len(amounts)} amounts; expected one of each per event, texts as str"
            )
        if len(times) and not all(array.dtype.kind in "iu" for array in (times, modality)):
            raise SpecError(
                f"times are {times.dtype} and modalities {modality.dtype}; expected whole numbers: "
                "microseconds since the epoch (UTC), and positions in the manifest"
            )
        if not np.isfinite(amounts).all():
            raise SpecError("an amount is NaN or infinite; leave the event out, or give it 0")
        keys = zip(times.tolist(), modality.tolist(), self.texts, amounts.tolist(), strict=True)
        order = [number for number, _ in sorted(enumerate(keys), key=lambda item: item[1])]
        at = np.array(order, dtype=np.int64)
        object.__setattr__(self, "times", times[at].astype(np.int64))
        object.__setattr__(self, "modality", modality[at].astype(np.int64))
        object.__setattr__(self, "texts", tuple(self.texts[number] for number in order))
        object.__setattr__(self, "amounts", amounts[at])

    def take(self, at: Ints) -> Events:
        """The events at some positions."""
        texts = tuple(self.texts[n] for n in at)
        return Events(self.times[at], self.modality[at], texts, self.amounts[at])


class RequestScorer:
    """Reads, continues and asks user states with the graphs and questions of a scorer."""

    def __init__(self, scorer: Scorer) -> None:
        """Raises `BundleError` for a bundle whose prefix cannot be appended to."""
        self._scorer, self._manifest = scorer, scorer.manifest
        if not self._manifest.appends:
            raise BundleError(
                f"bundle {self._manifest.name!r} cannot append to a state: it reads its summary "
                "first, or marks runs of a modality without evidence; train one with [model] "
                'order = "events first" and evidence'
            )
        self.shapes = scorer.graphs.state_shapes
        self._digest = self._manifest.digest  # hashing it takes as long as a small answer

    def begin(self, events: Events) -> UserState:
        """Read a history: the state of its window. Raises `SpecError` without any event."""
        if not len(events.times):
            raise SpecError("a user state of no events; expected at least one")
        seen, specs = self._counts(events), self._manifest.modalities
        at = window(events.times, events.modality, int(events.times[-1]) + 1, specs)
        return self._read(events.take(at), seen, None)

    def append(self, state: UserState, events: Events) -> UserState:
        """The state with later events behind it.

        Raises `StateError` where the state cannot be continued: the bundle is another, an event is
        not newer than `state.history_end`, or the window drops old events. `begin` then reads the
        history anew.
        """
        self._check(state)
        if not len(events.times):
            return state
        if events.times[0] <= state.history_end:
            raise StateError(
                f"an event at {events.times[0]} (microseconds, UTC) is not newer than the state's "
                f"last at {state.history_end}; read the history anew"
            )
        new = self._counts(events)
        if not state.keeps(self._manifest, new):
            raise StateError(
                f"with {len(events.times)} more events the window drops old ones, which stand at "
                "the state's beginning; read the history anew"
            )
        seen = tuple(a + b for a, b in zip(state.seen, new, strict=True))
        return self._read(events, seen, state)

    def answer(self, state: UserState, as_of: int) -> Floats:
        """Vectors of all questions: float32 [Q, dim], unit length.

        Args:
            state: of this scorer's bundle.
            as_of: microseconds since the epoch, UTC, after every event of the state.

        Raises:
            StateError: the state is another bundle's, or holds an event at or after the as-of.
        """
        self._check(state)
        if as_of <= state.history_end:
            raise StateError(
                f"as-of {as_of} is not after the newest event of the state, {state.history_end} "
                "(microseconds, UTC): its vector would know the future; read the history as of then"
            )
        moment = Moment.of(state.clock, state.events, as_of)
        vectors: Floats = self._scorer.answer(state.tensors, [[moment]])[0, 0]
        return vectors

    def unpack(self, packed: bytes) -> UserState:
        """Read a state that `UserState.pack` wrote. Raises `StateError` for any other bytes."""
        return UserState.unpack(packed, self._digest, self.shapes)

    def _read(self, events: Events, seen: tuple[int, ...], past: UserState | None) -> UserState:
        scorer = self._scorer
        reading = Reading.of(
            events.times,
            events.modality,
            events.amounts,
            scorer.bundle.encode_texts(events.texts, scorer.event),
            scorer.is_table,
            past.clock if past else None,
        )
        state = scorer.graphs.read(prefix_feed([reading]), past.tensors if past else None)
        rows = len(events.times) + (past.events if past else 0)
        return UserState(
            bundle=self._digest,
            tensors=_without_padding(state, rows),
            clock=reading.clock,
            history_end=int(events.times[-1]),
            seen=seen,
        )

    def _counts(self, events: Events) -> tuple[int, ...]:
        kinds = len(self._manifest.modalities)
        unknown = sorted({*events.modality.tolist()} - {*range(kinds)})
        if unknown:
            raise SpecError(
                f"modalities {unknown}; bundle {self._manifest.name!r} has {kinds}, numbered from 0"
            )
        return tuple(np.bincount(events.modality, minlength=kinds).tolist())

    def _check(self, state: UserState) -> None:
        if state.bundle != self._digest:
            raise StateError(
                f"a user state of bundle {state.bundle[:12]}…, expected {self._digest[:12]}…: "
                "another model cannot read it; read the history anew with this bundle"
            )


def _without_padding(state: State, rows: int) -> dict[str, Floats]:
    out = {}
    for name, tensor in state.items():
        array = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()  # of a GPU
        out[name] = np.ascontiguousarray(array[..., :rows, :])
    return out
