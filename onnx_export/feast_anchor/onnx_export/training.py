"""Train a bundle from an event table: corpus, tokenizer, model, export, in one call.

The same events, configuration and library versions give the same bundle on one machine without a
GPU: the number of steps is fixed and every random choice comes from one seed. Wall time decides
nothing, and neither does being interrupted: a second call takes up the first one's checkpoint.

Beside the bundle `out` stand `out.card/` (run card and curves) and, while training is not done,
`out.training.safetensors` (the checkpoint).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from tokenizers import Tokenizer

from .backbones import Backbone, read_backbone
from .batches import YES_NO, Batches
from .card import identity, run_card, write_card
from .corpus import Corpus
from .corpus_store import read_for
from .errors import SourceError, SpecError
from .export import BundleInfo, export_bundle
from .families import FAMILIES, Family, join
from .fitting import Progress, Store, fit
from .inputs import Ints
from .lora import add_lora, merge_lora
from .manifest import Manifest, ModalitySpec
from .model import Anchor
from .objective import evidence_numbers
from .scope import Scope, make_scope
from .sentence import read_sentence_encoder
from .settings import TrainConfig
from .text_encoder import OwnTextEncoder, PretrainedTextEncoder, TextEncoder
from .threads import one_thread
from .validation import split
from .vocabulary import Words, special_ids, train_tokenizer
from .words import PretrainedWords

__all__ = ["TrainConfig", "train_bundle"]

_MEASURED = 8  # batches, to know how evidence is distributed


def train_bundle(
    events: pa.Table,
    modalities: Sequence[ModalitySpec],
    *,
    cut: datetime,
    out: Path,
    entity: str,
    held_out: Collection[str] = (),
    config: TrainConfig | None = None,
    corpus_folder: Path | None = None,
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
        corpus_folder: a stored corpus of the same events and settings, which may hold a writer's
            questions; None to ask the questions anew.
        on_progress: called with what is being done and the share done, 0 to 1.

    Raises:
        SourceError: there is nothing to train on, the table is not as declared, or the stored
            corpus is of other events or settings.
        SpecError: the checkpoint is of another run, or the model's sizes do not fit.
        BundleError: the exported graphs disagree with the model, or `out` is something else.
    """
    config = config or TrainConfig()
    report = on_progress or (lambda message, fraction: None)
    report("building training examples", 0.0)
    scope = training_scope(
        events, modalities, cut=cut, entity=entity, held_out=held_out, config=config
    )
    if warning := scope.warning():
        report(warning, 0.0)
    families = training_families(config)
    if corpus_folder is None:
        corpus, stored = join([make(scope) for make in families.values()]), None
    else:
        corpus, stored = read_for(corpus_folder, scope, families)
    _require_examples(corpus)
    parts = split(corpus, config.validation_share)
    store = Store(
        _beside(out, ".training.safetensors"),
        identity(corpus, modalities, entity, cut, config, stored),
    )
    with one_thread(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        backbone = None if config.backbone is None else read_backbone(config.backbone)
        words = _words(corpus, config, backbone)
        batches = Batches(corpus, modalities, words, config.even)
        if isinstance(words.texts, PretrainedTextEncoder):
            words.texts.centre(batches.texts)
        model = _model(config, words, modalities, backbone)
        if isinstance(words.texts, PretrainedTextEncoder) and model.evidence is not None:
            model.evidence.start_from(words.texts.vectors(batches.texts))
        _measure_evidence(model, batches, parts[0], config)
        trace = fit(
            model,
            batches,
            parts,
            config,
            store,
            lambda text, done: report(text, 0.05 + 0.85 * done),
        )
        _make_plain(model)
        report("exporting", 0.9)
        info = BundleInfo(
            name=out.name,
            entity=entity,
            modalities=tuple(modalities),
            max_text_tokens=config.max_text_tokens,
            max_query_tokens=config.max_query_tokens,
            training=run_card(corpus, parts, config, cut, trace, stored),
        )
        manifest = export_bundle(
            model, words.tokenizer, info, out, text_tokenizer=words.text_tokenizer
        )
    write_card(_beside(out, ".card"), manifest, config, trace)
    store.path.unlink(missing_ok=True)
    report("done", 1.0)
    return manifest


def training_scope(
    events: pa.Table,
    modalities: Sequence[ModalitySpec],
    *,
    cut: datetime,
    entity: str,
    held_out: Collection[str],
    config: TrainConfig,
) -> Scope:
    """What a run of these settings may ask about; arguments and errors as of `train_bundle`."""
    return make_scope(
        _drawn(events, held_out, config),
        modalities,
        cut=cut,
        entity=entity,
        held_out=held_out,
        snapshots_per_user=config.snapshots,
        topics=config.topics,
        timezone=config.timezone,
        seed=config.seed,
    )


def _drawn(events: pa.Table, held_out: Collection[str], config: TrainConfig) -> pa.Table:
    """The events of at most `config.users` users; of fewer users, some of the same."""
    users = sorted(set(pc.unique(events.column("user")).to_pylist()) - set(held_out))
    if not 0 < config.users < len(users):
        return events
    users.sort(key=lambda user: hashlib.sha256(f"users:{config.seed}:{user}".encode()).digest())
    kept = pa.array(users[: config.users], pa.string())
    return events.filter(pc.is_in(events.column("user"), value_set=kept))


def training_families(config: TrainConfig) -> dict[str, Family]:
    """Who asks in a run of these settings, by name."""
    return {name: make for name, make in FAMILIES.items() if name in config.families}


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


def _model(
    config: TrainConfig,
    words: Words,
    modalities: Sequence[ModalitySpec],
    backbone: Backbone | None = None,
) -> Anchor:
    try:
        model = Anchor(config.model, words.special, len(modalities), words.texts, backbone)
    except ValueError as error:
        raise SpecError(f"the model's sizes do not fit each other: {error}") from error
    if backbone is not None:
        add_lora(model.decoder, rank=config.lora_rank, alpha=config.lora_alpha)
    return model


def _measure_evidence(model: Anchor, batches: Batches, among: Ints, config: TrainConfig) -> None:
    """Tell the readout how evidence is distributed, on batches drawn as those of training are."""
    if model.evidence is None:
        return
    size, questions = config.histories, config.questions
    drawn = batches.draw(size, questions, 0.0, config.seed, silent=config.silent, among=among)
    numbers = [evidence_numbers(model, batch, config.chunk) for batch in islice(drawn, _MEASURED)]
    model.readout.norm.measure(torch.cat(numbers))


def _make_plain(model: Anchor) -> None:
    """Fold what training put beside frozen weights into them: an export knows one kind of model."""
    merge_lora(model.decoder)
    if isinstance(model.words, PretrainedWords):
        model.words = model.words.plain()


def _words(corpus: Corpus, config: TrainConfig, backbone: Backbone | None = None) -> Words:
    asked = [phrasing for question in corpus.questions for phrasing in question.phrasings]
    seen = [*corpus.events.texts, *asked, *corpus.answers, *YES_NO]
    own = train_tokenizer(seen, config.vocab)
    tokenizer = own if backbone is None else backbone.tokenizer
    text_tokenizer, texts = _text_encoder(config, own)
    return Words(
        tokenizer,
        special_ids(tokenizer),
        text_tokenizer,
        texts,
        config.max_text_tokens,
        config.max_query_tokens,
        config.model.query_tokens,
    )


def _text_encoder(config: TrainConfig, own: Tokenizer) -> tuple[Tokenizer, TextEncoder]:
    """The encoder of texts and its tokenizer; `own` is the one made of the data at hand."""
    if config.text_encoder is None:
        special = special_ids(own)
        return own, OwnTextEncoder(special.first_prompt, config.model.text, special.pad)
    encoder, tokenizer = read_sentence_encoder(config.text_encoder)
    if config.max_text_tokens > encoder.config.positions:
        raise SpecError(
            f"max_text_tokens={config.max_text_tokens}, but {config.text_encoder} reads at most "
            f"{encoder.config.positions} tokens of a text; give a smaller number"
        )
    return tokenizer, PretrainedTextEncoder(encoder)


def _require_examples(corpus: Corpus) -> None:
    if not (corpus.labels >= 0).any():
        raise SourceError(
            f"no training examples: {len(corpus.events.times)} events of "
            f"{len(corpus.events.users)} users give no question with two different answers; "
            "expected at least two users with events on several days before the cut"
        )
