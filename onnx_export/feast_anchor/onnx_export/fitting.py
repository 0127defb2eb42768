"""The training loop: steps, looks at validation users, checkpoints, and going on from one.

The rule: on a CPU, a run that was killed and taken up again ends in the same weights, bit for
bit, as one that was not. So a step may depend on nothing but its number, the weights and the
optimiser's state: batches are a function of their number, the learning rate of the step.

On a CUDA device, found by itself, forward passes run in bfloat16 where that is safe (weights and
losses stay float32) and bits are not promised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batches import Batch, Batches
from .checkpoints import (
    Tensors,
    load,
    pack,
    read_checkpoint,
    trainable,
    trained,
    under,
    unpack,
    write_checkpoint,
)
from .inputs import Ints
from .model import Anchor
from .objective import backward
from .settings import TrainConfig
from .validation import evaluate

Progress = Callable[[str, float], None]

_LOOKED_AT = 8  # validation batches, the same at every look
_NOISE = 0.01  # of `matched`: about a standard error with a few hundred validation users


@dataclass
class Trace:
    """What a run did so far, as numbers and lists that JSON can hold."""

    losses: list[float] = field(default_factory=list)  # one a step
    looks: list[dict[str, float]] = field(default_factory=list)  # `Scores` and the step
    pairs: int = 0  # (history, question) pairs trained on
    best: int | None = None  # position in looks of the weights kept, None before the first
    seconds: float = 0.0  # of all parts of an interrupted run

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    @property
    def kept(self) -> dict[str, float] | None:
        """The look at the weights that are kept; None where there are no validation users."""
        return None if self.best is None else self.looks[self.best]

    def worn_out(self, patience: int) -> bool:
        """Whether the last `patience` looks brought nothing better; never for 0."""
        figures = [look["matched"] for look in self.looks]
        return 0 < patience < len(figures) and max(figures[-patience:]) <= max(figures[:-patience])

    def look(self, scores: dict[str, float]) -> bool:
        """Note a look; returns whether its weights are to be kept.

        They are unless an earlier look was better by more than noise: between equals the longer
        trained weights are the better guess.
        """
        self.looks.append(scores)
        if scores["matched"] < max(look["matched"] for look in self.looks) - _NOISE:
            return False
        self.best = len(self.looks) - 1
        return True


@dataclass(frozen=True)
class Store:
    """Where a run's checkpoint lies and whose it is."""

    path: Path
    identity: Mapping[str, Any]


def fit(
    model: Anchor,
    batches: Batches,
    parts: tuple[Ints, Ints],
    config: TrainConfig,
    store: Store | None = None,
    report: Progress = lambda message, fraction: None,
) -> Trace:
    """Train `model` in place; it ends on the CPU with the weights that validated best.

    Args:
        model: freshly made, from the seed; overwritten where there is a checkpoint.
        batches: of the whole corpus.
        parts: snapshots to train on and to validate on, from `validation.split`.
        config: what to do.
        store: where to keep the checkpoint; None for no checkpoints.
        report: called after each step with a sentence and the share of steps done.

    Raises:
        SpecError: the checkpoint in `store` is of another run.
    """
    run = _Run(model, batches, parts, config, store)
    run.resume(report)
    train = batches.draw(
        config.histories,
        config.questions,
        config.noise,
        config.seed,
        silent=config.silent,
        twice=config.alike > 0,
        first=run.trace.step * config.accumulate,
        among=parts[0],
    )
    while run.trace.step < config.steps and not run.trace.worn_out(config.patience):
        run.advance(list(islice(train, config.accumulate)))
        report(run.sentence(), run.trace.step / config.steps)
    run.finish()
    return run.trace


def device() -> torch.device:
    """Where training runs: the first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step `step`, counted from 0: a linear warm-up, then a cosine to 0."""
    warm = max(1, config.steps // 20)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    along = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


class _Run:
    """The moving parts of one run."""

    def __init__(
        self,
        model: Anchor,
        batches: Batches,
        parts: tuple[Ints, Ints],
        config: TrainConfig,
        store: Store | None,
    ) -> None:
        self.device = device()
        self.model, self.config, self.store = model.to(self.device), config, store
        self.parameters = trainable(model)  # frozen weights cost neither gradient nor moments
        self.optimiser = torch.optim.AdamW(self.parameters, weight_decay=config.weight_decay)
        self.trace, self.best = Trace(), Tensors()
        self.validation: list[Batch] = []
        if len(parts[1]):
            size = min(config.histories, len(parts[1]))
            drawn = batches.draw(size, config.questions, 0.0, config.seed, among=parts[1])
            self.validation = [self._moved(batch) for batch in islice(drawn, _LOOKED_AT)]
        self.started = time.perf_counter()

    def resume(self, report: Progress) -> None:
        """Take up the checkpoint, if there is one."""
        found = read_checkpoint(self.store.path, self.store.identity) if self.store else None
        if found is None:
            return
        tensors, record = found
        unpack(tensors, self.model, self.optimiser)
        self.best = under("best.", tensors)
        self.trace = Trace(**record)
        self.started -= self.trace.seconds
        report(f"going on after step {self.trace.step}", self.trace.step / self.config.steps)

    def advance(self, batches: list[Batch]) -> None:
        """One step, and a look and a checkpoint where they are due."""
        self._step(batches)
        step, every = self.trace.step, self.config.checkpoint_every
        last = step == self.config.steps
        if self.validation and (last or step % self.config.evaluate_every == 0):
            self._look()
        if self.store and every and step % every == 0:
            self._save(self.store)

    def finish(self) -> None:
        """Leave the model on the CPU with the weights to keep."""
        self.trace.seconds = time.perf_counter() - self.started
        if self.best:
            load(self.model, self.best)
        self.model.cpu()

    def sentence(self) -> str:
        """Where the run is."""
        trace = self.trace
        text = f"step {trace.step} of {self.config.steps}, loss {trace.losses[-1]:.2f}"
        if trace.looks:
            text += f", held-out users told apart {trace.looks[-1]['matched']:.3f}"
        return text

    def _step(self, batches: list[Batch]) -> None:
        step = self.trace.step
        write = self.config.ntp_questions if step % self.config.ntp_every == 0 else 0
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        torch.manual_seed(1_000_003 * self.config.seed + step)  # dropout and noise of this step
        self.model.train()
        for batch in map(self._moved, batches):
            total += backward(self.model, batch, self.config, write, 1 / len(batches))
            self.trace.pairs += int((batch.target >= 0).sum())
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.config, step)
        self.optimiser.step()
        self.trace.losses.append(total)

    def _look(self) -> None:
        self.model.eval()
        scores = asdict(evaluate(self.model, self.validation, self.config))
        if self.trace.look({"step": self.trace.step, **scores}):
            self.best = {k: t.detach().clone() for k, t in trained(self.model).items()}

    def _save(self, store: Store) -> None:
        self.trace.seconds = time.perf_counter() - self.started
        tensors = pack(self.model, self.optimiser)
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        write_checkpoint(store.path, store.identity, tensors, asdict(self.trace))

    def _moved(self, batch: Batch) -> Batch:
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        moved = {n: v.to(self.device) for n, v in values.items() if isinstance(v, Tensor)}
        return replace(batch, **moved)
