"""Train a bundle from an event table: corpus, tokenizer, model, export, in one call.

The same events, configuration and library versions give the same bundle on one machine without a
GPU: the number of steps is fixed and every random choice comes from one seed. Wall time decides
nothing, and neither does being interrupted: a second call takes up the first one's checkpoint.

Beside the bundle `out` stand `out.card/` (run card and curves) and, while training is not done,
`out.training.safetensors` (the checkpoint).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import torch
from tokenizers import Tokenizer

from .batches import Batches, special_ids, train_tokenizer
from .card import identity, run_card, write_card
from .corpus import Corpus
from .errors import SourceError, SpecError
from .export import BundleInfo, export_bundle
from .fitting import Progress, Store, fit
from .manifest import Manifest, ModalitySpec
from .model import Anchor
from .questions import build_corpus
from .settings import TrainConfig
from .validation import split

__all__ = ["TrainConfig", "train_bundle"]


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
        out: the bundle's folder; it appears, or is replaced, when the bundle is complete, and
            then the checkpoint beside it goes.
        entity: the entity's name or join key; questions say "household" for "household_id".
        held_out: users that never enter training.
        config: budget and sizes; the default suits a laptop.
        on_progress: called with what is being done and the share done, 0 to 1.

    Raises:
        SourceError: there is nothing to train on or the table is not as declared.
        SpecError: the checkpoint is of another run, or the model's sizes do not fit.
        BundleError: the exported graphs disagree with the model, or `out` is something else.
    """
    config = config or TrainConfig()
    report = on_progress or (lambda message, fraction: None)
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
    parts = split(corpus, config.validation_share)
    store = Store(
        _beside(out, ".training.safetensors"), identity(corpus, modalities, entity, cut, config)
    )
    with _deterministic(config.seed):
        model = _model(config, tokenizer, modalities)
        batches = Batches(
            corpus,
            modalities,
            tokenizer,
            model.special,
            config.max_text_tokens,
            config.max_query_tokens,
        )
        trace = fit(
            model,
            batches,
            parts,
            config,
            store,
            lambda text, done: report(text, 0.05 + 0.85 * done),
        )
        report("exporting", 0.9)
        info = BundleInfo(
            name=out.name,
            entity=entity,
            modalities=tuple(modalities),
            max_text_tokens=config.max_text_tokens,
            max_query_tokens=config.max_query_tokens,
            training=run_card(corpus, parts, config, cut, trace),
        )
        manifest = export_bundle(model, tokenizer, info, out)
    write_card(_beside(out, ".card"), manifest, config, trace)
    store.path.unlink(missing_ok=True)
    report("done", 1.0)
    return manifest


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


def _model(config: TrainConfig, tokenizer: Tokenizer, modalities: Sequence[ModalitySpec]) -> Anchor:
    try:
        return Anchor(config.model, special_ids(tokenizer), len(modalities))
    except ValueError as error:
        raise SpecError(f"the model's sizes do not fit each other: {error}") from error


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


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch for the block and keep it to one thread, without disturbing the caller.

    One thread, because sums then do not depend on the number of cores, and because with matrices
    this small a second thread gains little on an idle machine and halves the speed on a busy one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
