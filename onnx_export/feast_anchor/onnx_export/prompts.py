"""Cluster-based soft prompt tuning (Query-as-Anchor, arXiv 2602.14492): a few tokens per scenario.

The rule: everything is frozen but the prompt's tokens and one prototype per class. The prompt
stands after the query and before `<USER_EMB>`, so no user's prefix can change: it is computed once
per labelled row and every step reads it again. That is why tuning takes minutes on a CPU.

Loss: cross-entropy over the cosine similarities of a vector to the prototypes, divided by a
temperature, with classes weighted so that each counts the same. The prototypes begin as the mean
vectors of the classes without a prompt; what is served is the prompt alone. Part of the users
choose the step that is kept. A prompt that does not help is not refused: the record says so.

Letters in shape comments: B labelled rows, L tokens of a question, E text width, R prompt tokens,
D hidden width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SourceError, SpecError
from .inputs import Floats, Ints, suffix_ids
from .model import Anchor
from .probe import rank_auc
from .states import States
from .threads import one_thread
from .words import OwnWords

_ROWS = 64  # per run without gradients: bounds its memory
_LEAST = 10  # rows of each class, in training and validation together


@dataclass(frozen=True)
class PromptConfig:
    """How a prompt is tuned."""

    tokens: int = 6  # R
    steps: int = 300  # most optimiser steps
    batch: int = 64  # labelled rows per step
    learning_rate: float = 1e-2  # peak; falls as a cosine
    weight_decay: float = 0.01  # AdamW
    temperature: float = 0.1  # of the similarities to the prototypes
    validation_share: float = 0.25  # of the users; they choose the step that is kept
    evaluate_every: int = 20  # steps between two looks at them
    patience: int = 4  # stop after so many looks without a better one
    seed: int = 0  # fixes every random choice

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "batch", "evaluate_every", "patience", "temperature"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name}={getattr(self, name)!r}, expected more than 0")
        if not 0 < self.validation_share < 1:
            raise SpecError(f"validation_share={self.validation_share!r}, expected between 0 and 1")


@dataclass(frozen=True)
class Query:
    """A scenario's question: token ids, and the text vector [E] that stands for it."""

    ids: Sequence[int]
    vector: Floats


@dataclass(frozen=True)
class Tuned:
    """A tuned prompt float32 [R, D], and how tuning went, as JSON for the bundle's manifest."""

    prompt: Floats
    record: dict[str, Any]


def tune_prompt(
    model: Anchor,
    states: States,
    query: Query,
    labels: np.ndarray[Any, Any],
    config: PromptConfig | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Tuned:
    """Tune the prompt of one scenario.

    Args:
        model: frozen and in evaluation mode, as `weights.read_model` returns it.
        states: from `user_states`; a user may have several rows, at several as-of times.
        query: the scenario's question.
        labels: one per row of `states`: 1, 0, or -1 where there is none.
        config: the defaults when None.
        on_progress: called with the share of the steps done.

    Raises:
        SourceError: too few rows of one class, or all of them are of too few users.
    """
    config = config or PromptConfig()
    began, y = time.monotonic(), np.asarray(labels, dtype=np.int64)
    train, held = _split(states.users, y, config)
    with one_thread():
        task = _Task(model, states, query, y, config)
        start = task.class_means(train)
        before = task.auc(held, None, start)
        best, trace = _descend(task, train, held, start, on_progress)
        after = task.auc(held, best.prompt, best.prototypes)
    users = {states.users[row] for row in np.flatnonzero(y >= 0)}
    record = {
        "config": asdict(config),
        "rows": len(train) + len(held),
        "users": len(users),
        "positives": int(np.sum(y == 1)),
        "validation": {"rows": len(held), "auc_before": before, "auc_after": after},
        **trace,
        "seconds": round(time.monotonic() - began, 1),
    }
    return Tuned(best.prompt.numpy(), record)


@dataclass(frozen=True)
class _Look:
    """Prompt and prototypes after a step, and their loss on the validation rows."""

    step: int
    loss: float
    prompt: Tensor
    prototypes: Tensor


class _Task:
    """One scenario's rows, its question and its loss."""

    def __init__(
        self, model: Anchor, states: States, query: Query, y: Ints, config: PromptConfig
    ) -> None:
        self.model, self.states, self.query, self.y, self.config = model, states, query, y, config
        counts = torch.from_numpy(np.bincount(y[y >= 0], minlength=2)).to(torch.float32)
        self.class_weights = counts.sum() / (2 * counts)

    def vectors(self, rows: Ints, prompt: Tensor | None) -> Tensor:
        """Vectors [B, embedding] of some rows, with a prompt [R, D] or without one."""
        some, size = self.states.take(torch.from_numpy(rows)), len(rows)
        table = torch.zeros(1, self.model.config.hidden) if prompt is None else prompt
        own = range(0 if prompt is None else len(table))
        ids, length = suffix_ids([self.query.ids], [own], self.model.special)  # [1,L], [1]
        vectors = self.model.suffix(
            torch.from_numpy(ids).expand(size, 1, -1),  # [B,1,L]
            torch.from_numpy(length).expand(size, 1),
            some.plen.unsqueeze(1),
            some.now.unsqueeze(1),
            some.context.unsqueeze(1),
            torch.from_numpy(self.query.vector).expand(size, 1, -1),
            table,
            some.state,
        )
        return vectors.squeeze(1)

    @torch.no_grad()
    def all_vectors(self, rows: Ints, prompt: Tensor | None) -> Tensor:
        """The same without gradients, in runs of a few rows."""
        parts = np.array_split(rows, -(-len(rows) // _ROWS))
        return torch.cat([self.vectors(part, prompt) for part in parts])

    def class_means(self, rows: Ints) -> Tensor:
        """Mean vector of each class without a prompt: [2, embedding]."""
        return torch.stack(
            [self.all_vectors(rows[self.y[rows] == c], None).mean(0) for c in (0, 1)]
        )

    def loss(self, vectors: Tensor, rows: Ints, prototypes: Tensor) -> Tensor:
        """Weighted cross-entropy over the classes' prototypes [2, embedding]."""
        similarity = vectors @ F.normalize(prototypes, dim=-1).T  # [B,2]
        target = torch.from_numpy(self.y[rows])
        return F.cross_entropy(similarity / self.config.temperature, target, self.class_weights)

    def auc(self, rows: Ints, prompt: Tensor | None, prototypes: Tensor) -> float:
        """AUC of the similarity to the positive prototype minus that to the other."""
        vectors = self.all_vectors(rows, prompt)
        similarity = (vectors @ F.normalize(prototypes, dim=-1).T).numpy()  # [B,2]
        return round(rank_auc(self.y[rows], similarity[:, 1] - similarity[:, 0]), 5)

    def look(self, step: int, rows: Ints, prompt: Tensor, prototypes: Tensor) -> _Look:
        """How good prompt and prototypes are now; they are copied."""
        prompt, prototypes = prompt.detach().clone(), prototypes.detach().clone()
        loss = self.loss(self.all_vectors(rows, prompt), rows, prototypes)
        return _Look(step, round(float(loss), 5), prompt, prototypes)


def _descend(
    task: _Task,
    train: Ints,
    held: Ints,
    start: Tensor,
    on_progress: Callable[[float], None] | None,
) -> tuple[_Look, dict[str, Any]]:
    """The best look at the validation rows, and the record of all of them."""
    config, generator = task.config, np.random.default_rng(task.config.seed)
    prompt = _first_prompt(task, generator).requires_grad_()
    prototypes = start.clone().requires_grad_()
    optimiser = torch.optim.AdamW([prompt, prototypes], weight_decay=config.weight_decay)
    batches, step = _batches(train, config.batch, generator), 0
    looks: list[dict[str, Any]] = []
    best = task.look(0, held, prompt, prototypes)  # replaced at the first look
    while step < config.steps and not _is_stale(looks, config.patience):
        rows = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _cosine(step / config.steps)
        optimiser.zero_grad()
        loss = task.loss(task.vectors(rows, prompt), rows, prototypes)
        loss.backward()
        optimiser.step()
        step += 1
        if step % config.evaluate_every == 0 or step == config.steps:
            look = task.look(step, held, prompt, prototypes)
            looks.append({"step": step, "loss": look.loss})
            best = look if step == looks[0]["step"] or look.loss < best.loss else best
            if on_progress is not None:
                on_progress(step / config.steps)
    return best, {"steps": step, "kept_step": best.step, "looks": looks}


def _is_stale(looks: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether none of the last `patience` looks was better than all before them."""
    losses = [look["loss"] for look in looks]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _first_prompt(task: _Task, generator: np.random.Generator) -> Tensor:
    """Random tokens as long as those of the vocabulary are: [R, D]."""
    table = task.model.words
    assert isinstance(table, OwnWords)  # an export leaves no other kind
    words = table.weight.detach()
    noise = generator.standard_normal((task.config.tokens, words.shape[1])).astype(np.float32)
    return torch.from_numpy(noise) * float(words.std())


def _split(users: Sequence[str], y: Ints, config: PromptConfig) -> tuple[Ints, Ints]:
    """Rows to train on and rows to validate on: no user has both, each has both classes.

    Stratified: the validation share is taken of the users with a positive row and of the others.
    """
    known = np.flatnonzero(y >= 0)
    own = [users[row] for row in known.tolist()]
    names, user_of = np.unique(np.array(own), return_inverse=True)
    positive = np.bincount(user_of, weights=y[known], minlength=len(names)) > 0
    generator = np.random.default_rng(config.seed)
    held = np.zeros(len(names), dtype=bool)
    for stratum in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        count = round(config.validation_share * len(stratum))
        held[generator.permutation(stratum)[:count]] = True
    parts = known[~held[user_of]], known[held[user_of]]
    _check_classes(y, parts, len(names))
    return parts


def _check_classes(y: Ints, parts: tuple[Ints, Ints], users: int) -> None:
    counts = np.bincount(y[y >= 0], minlength=2)
    if counts.min() < _LEAST or any(len(np.unique(y[rows])) < 2 for rows in parts):
        raise SourceError(
            f"{counts[1]} positive and {counts[0]} negative label rows of {users} users, expected "
            f"at least {_LEAST} of each, of enough users to train on some and validate on others"
        )


def _batches(rows: Ints, size: int, generator: np.random.Generator) -> Iterator[Ints]:
    """Batches of shuffled rows for ever; every row once before any comes again."""
    left = rows[:0]
    while True:
        if len(left) < min(size, len(rows)):
            left = np.concatenate((left, generator.permutation(rows)))
        yield left[:size]
        left = left[size:]


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
