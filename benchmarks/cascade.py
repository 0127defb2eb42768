"""The bundle's own graphs as the scorer runs them: one prefix a user, every question behind it.

The one place of the benchmarks that knows what the graphs are called with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import Floats

if TYPE_CHECKING:
    import onnxruntime as ort

Arrays = Mapping[str, np.ndarray[Any, Any]]

_BLOCKS_PER_RUN = 64  # as in the scorer
_LEAST = 2  # blocks of one run, as in the scorer: it asks a lone question twice


@dataclass(frozen=True)
class Cascade:
    """Sessions of the prefix and suffix graphs."""

    prefix: ort.InferenceSession
    suffix: ort.InferenceSession
    state: tuple[str, ...]  # names of the tensors that pass between them

    @classmethod
    def of(cls, bundle: Bundle) -> Cascade:
        """With the bundle's own session settings."""
        return cls(bundle.session("prefix"), bundle.session("suffix"), bundle.manifest.state)

    def prefix_feed(self, history: Arrays) -> dict[str, Any]:
        """What the prefix graph is given: vectors[1,T,E], features[1,T,F], modality, days[1,T]."""
        return dict(history)

    def run_prefix(self, history: Arrays) -> Arrays:
        """The user state of a history."""
        found = self.prefix.run(list(self.state), self.prefix_feed(history))
        return dict(zip(self.state, found, strict=True))

    def run_suffix(self, state: Arrays, asked: Arrays) -> Floats:
        """Vectors [1,Q,embedding] of Q blocks; `asked` holds the suffix's inputs [1,Q,...]."""
        (vectors,) = self.suffix.run(["embedding"], {**asked, **state})
        found: Floats = vectors
        return found

    def answer(self, history: Arrays, asked: Arrays) -> Floats:
        """Prefix and all blocks, in the runs that the scorer would make: [Q,embedding]."""
        state = self.run_prefix(history)
        blocks = asked["ids"].shape[1]
        found = []
        for start in range(0, blocks, _BLOCKS_PER_RUN):
            rows = np.arange(start, min(blocks, start + _BLOCKS_PER_RUN))
            some = take(asked, np.resize(rows, max(_LEAST, len(rows))))
            found.append(self.run_suffix(state, some)[0, : len(rows)])
        return np.concatenate(found)


def take(asked: Arrays, rows: np.ndarray[Any, Any]) -> Arrays:
    """Some of the blocks, prompts aside."""
    return {name: x if name == "prompt" else x[:, rows] for name, x in asked.items()}
