"""The bundle's own graphs as the scorer runs them: one prefix a user, every question behind it.

The one place of the benchmarks that knows what the graphs are called with. Packs are those that the
scorer's policy for the CPU makes, and a lone question of one token is asked twice, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle, empty_past
from feast_anchor.onnx_export.inputs import Floats
from feast_anchor.transforms.graphs import Graphs, State
from feast_anchor.transforms.packing import pack

Arrays = Mapping[str, np.ndarray[Any, Any]]

_LEAST = 2  # tokens of questions in one run


class Cascade:
    """Prefix and suffix of a bundle on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        self._graphs = Graphs(bundle, "cpu")

    def prefix_feed(self, history: Arrays) -> dict[str, Any]:
        """All inputs of the prefix graph, where nothing stands before the history."""
        return {**history, **empty_past(self._graphs.prefix, len(history["modality"]))}

    def run_prefix(self, history: Arrays, past: State | None = None) -> State:
        """The state of vectors[B,T,E], features[B,T,F], modality and days[B,T], behind `past`."""
        return self._graphs.read(history, past)

    def run_suffix(self, state: State, asked: Arrays) -> Floats:
        """Vectors [B,Q,embedding] of blocks; `asked` holds inputs [B,Q,...] and the prompts."""
        return self._graphs.ask(asked, state)

    def answer(self, histories: Sequence[Arrays], asked: Arrays) -> Floats:
        """Every block behind every history of one length: [U*Q,embedding], user by user."""
        policy = self._graphs.policy
        lengths = [history["modality"].shape[1] for history in histories]
        found = [np.empty(0)] * len(histories)
        for members in pack(lengths, [1] * len(histories), asked["ids"][0].size, policy):
            feed = {
                name: np.concatenate([histories[number][name] for number in members])
                for name in histories[0]
            }
            vectors = self._ask(self.run_prefix(feed), asked, len(members))
            for number, own in zip(members, vectors, strict=True):
                found[number] = own
        return np.concatenate(found)

    def _ask(self, state: State, asked: Arrays, histories: int) -> Floats:
        """So many tokens a run as the policy allows: [histories,Q,embedding]."""
        blocks, tokens = asked["ids"].shape[1:]
        most = max(1, self._graphs.policy.tokens // (histories * tokens))
        found = []
        for start in range(0, blocks, most):
            rows = np.arange(start, min(blocks, start + most))
            some = take(asked, np.resize(rows, max(-(-_LEAST // tokens), len(rows))), histories)
            found.append(self.run_suffix(state, some)[:, : len(rows)])
        return np.concatenate(found, axis=1)


def take(asked: Arrays, rows: np.ndarray[Any, Any], histories: int = 1) -> Arrays:
    """Some of the blocks for each of some histories, prompts aside: [histories,rows,...]."""
    return {
        name: x if name == "prompt" else np.repeat(x[:, rows], histories, axis=0)
        for name, x in asked.items()
    }
