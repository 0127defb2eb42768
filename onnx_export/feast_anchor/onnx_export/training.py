"""Train a bundle from an event table: corpus, tokenizer, model, export, in one call.

The same events, configuration and library versions give the same bundle on one machine: the
number of steps is fixed and every random choice comes from one seed. Wall time decides nothing.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from .batches import Batches, special_ids, train_tokenizer
from .corpus import Corpus
from .errors import SourceError
from .export import BundleInfo, export_bundle
from .manifest import Manifest, ModalitySpec
from .model import Anchor
from .objective import batch_loss
from .questions import build_corpus
from .settings import TrainConfig

Progress = Callable[[str, float], None]


def train_bundle(
    events: pa.Table,
    modalities: Sequence[ModalitySpec],
    *,
    cut: datetime,
    out: Path,
    entity: str,
    held_out: Collection[str] = (),
    config: TrainConfig | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Train a model on the events before `cut` and write it as a bundle.

    Args:
        events: canonical events (`inputs.EVENT_SCHEMA`), in any order.
        modalities: what the column `modality` indexes; they become the manifest's.
        cut: tz-aware; nothing at or after it is read.
        out: the bundle's folder; it appears, or is replaced, when the bundle is complete.
        entity: the entity's name or join key; questions say "household" for "household_id".
        held_out: users that never enter training.
        config: budget and sizes; the default suits a laptop.
        on_progress: called with what is being done and the share done, 0 to 1.

    Raises:
        SourceError: there is nothing to train on or the table is not as declared.
        BundleError: the exported graphs disagree with the model, or `out` is something else.
    """
    config = config or TrainConfig()
    report = on_progress or (lambda message, fraction: None)
    started = time.perf_counter()
    report("building training examples", 0.0)
    corpus = build_corpus(
        events,
        modalities,
        cut=cut,
        entity=entity.removesuffix("_id").replace("_", " "),
        held_out=held_out,
        snapshots_per_user=config.snapshots,
        topics=config.topics,
        seed=config.seed,
    )
    _require_examples(corpus)
    tokenizer = _tokenizer(corpus, config)
    with _deterministic(config.seed):
        model = Anchor(config.model, special_ids(tokenizer), len(modalities))
        losses, pairs = _fit(model, corpus, modalities, tokenizer, config, report)
        report("exporting", 0.9)
        seconds = time.perf_counter() - started
        info = BundleInfo(
            name=out.name,
            entity=entity,
            modalities=tuple(modalities),
            max_text_tokens=config.max_text_tokens,
            max_query_tokens=config.max_query_tokens,
            training=_provenance(corpus, config, cut, losses, pairs, seconds),
        )
        manifest = export_bundle(model, tokenizer, info, out)
    report("done", 1.0)
    return manifest


def _fit(
    model: Anchor,
    corpus: Corpus,
    modalities: Sequence[ModalitySpec],
    tokenizer: Tokenizer,
    config: TrainConfig,
    report: Progress,
) -> tuple[list[float], int]:
    """Run the steps; returns the mean loss of each tenth and the number of pairs seen."""
    batches = Batches(
        corpus,
        modalities,
        tokenizer,
        model.special,
        config.max_text_tokens,
        config.max_query_tokens,
    ).draw(config.histories, config.questions, config.noise, np.random.default_rng(config.seed))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, config.steps))
    losses, pairs = [], 0
    for step in range(config.steps):
        batch = next(batches)
        write = config.ntp_questions if step % config.ntp_every == 0 else 0
        loss = batch_loss(model, batch, write)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        pairs += int((batch.target >= 0).sum())
        text = f"step {step + 1} of {config.steps}, loss {losses[-1]:.2f}"
        report(text, 0.05 + 0.85 * (step + 1) / config.steps)
    tenths = np.array_split(np.array(losses), min(10, len(losses)))
    return [round(float(part.mean()), 4) for part in tenths], pairs


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _tokenizer(corpus: Corpus, config: TrainConfig) -> Tokenizer:
    asked = [phrasing for question in corpus.questions for phrasing in question.phrasings]
    return train_tokenizer([*corpus.events.texts, *asked, *corpus.answers], config.vocab)


def _require_examples(corpus: Corpus) -> None:
    if not (corpus.labels >= 0).any():
        raise SourceError(
            f"no training examples: {len(corpus.events.times)} events of "
            f"{len(corpus.events.users)} users give no question with two different answers; "
            "expected at least two users with events on several days before the cut"
        )


def _provenance(
    corpus: Corpus,
    config: TrainConfig,
    cut: datetime,
    losses: Sequence[float],
    pairs: int,
    seconds: float,
) -> dict[str, Any]:
    runtime = "onnxruntime" if sys.platform == "darwin" else "onnxruntime-gpu"
    packages = ("torch", "onnx", runtime, "tokenizers", "numpy", "pyarrow")
    return {
        "config": asdict(config),
        "cut": cut.isoformat(),
        "users": len(corpus.events.users),
        "events": len(corpus.events.times),
        "histories": len(corpus.user),
        "questions": len(corpus.questions),
        "answers": len(corpus.answers),
        "pairs": pairs,
        "loss_by_tenth": list(losses),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch for the block and keep it to one thread, without disturbing the caller.

    One thread, because sums then do not depend on the number of cores, and because with matrices
    this small a second thread gains little on an idle machine and halves the speed on a busy one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
