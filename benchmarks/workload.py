"""Random inputs of the graphs: full histories and questions of one length, nothing padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feast_anchor.onnx_export.inputs import CONTEXT_FEATURES, EVENT_FEATURES

from .cascade import Arrays
from .models import Subject


@dataclass(frozen=True)
class Workload:
    """U histories, each asked the same Q questions: U * Q pairs."""

    histories: tuple[Arrays, ...]  # inputs of the prefix graph, [1,T,...] each
    asked: Arrays  # inputs of the suffix graph beside the state, [1,Q,...]

    @property
    def questions(self) -> int:
        """Q."""
        return int(self.asked["ids"].shape[1])

    def pairs(self) -> Arrays:
        """Inputs of the full graph for all pairs, user by user: [U*Q,...], prompt[R,D]."""
        users, questions = len(self.histories), self.questions
        per_user = {
            name: np.repeat(np.concatenate([h[name] for h in self.histories]), questions, axis=0)
            for name in self.histories[0]
        }
        per_pair = {
            name: np.tile(self.asked[name][0], (users, *[1] * (self.asked[name].ndim - 2)))
            for name in ("ids", "now", "context", "query")
        }
        return {**per_user, **per_pair, "prompt": self.asked["prompt"]}


def workload(subject: Subject, users: int, questions: int, seed: int = 0) -> Workload:
    """Histories of T events and questions of L tokens, with T and L of the subject's size."""
    generator = np.random.default_rng(seed)
    histories = tuple(random_history(subject, subject.size.events, generator) for _ in range(users))
    plen = np.full(questions, subject.size.events)
    return Workload(histories, random_blocks(subject, plen, generator))


def random_history(subject: Subject, events: int, generator: np.random.Generator) -> Arrays:
    """Inputs of the prefix graph for one history of so many events."""
    text, kinds = subject.size.config.text, len(subject.size.modalities)
    return {
        "vectors": _normal(generator, 1, events, text),
        "features": _normal(generator, 1, events, len(EVENT_FEATURES)),
        "modality": generator.integers(0, kinds, (1, events)),
        "days": np.sort(generator.random((1, events), np.float32) * 60, axis=1),
    }


def random_blocks(
    subject: Subject, plen: np.ndarray[Any, Any], generator: np.random.Generator
) -> Arrays:
    """Inputs of the suffix graph beside the state, for blocks that see `plen` events each."""
    special, config = subject.bundle.manifest.special_ids, subject.size.config
    blocks, tokens = len(plen), subject.size.tokens
    ids = generator.integers(0, special.pad, (1, blocks, tokens))
    ids[..., -1] = special.user_emb
    return {
        "ids": ids,
        "qlen": np.full((1, blocks), tokens),
        "plen": plen.astype(np.int64)[None],
        "now": 60 + 30 * generator.random((1, blocks), np.float32),
        "context": np.abs(_normal(generator, 1, blocks, len(CONTEXT_FEATURES))),
        "query": _normal(generator, 1, blocks, config.text),
        "prompt": np.zeros((1, config.hidden), dtype=np.float32),
    }


def _normal(generator: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return generator.standard_normal(shape, dtype=np.float32)
