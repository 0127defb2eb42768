"""A small made-up shop: enough events to train a bundle of a few steps, shared by many tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_anchor.onnx_export.families import FAMILIES, join
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.onnx_export.scope import make_scope

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from feast_anchor.onnx_export.corpus import Corpus
    from feast_anchor.onnx_export.sentence import SentenceEncoder
    from feast_anchor.onnx_export.settings import TrainConfig
    from feast_anchor.onnx_export.vocabulary import Words

TINY_START = datetime(2024, 1, 1, tzinfo=UTC)
TINY_CUT = datetime(2024, 4, 1, tzinfo=UTC)
"""Training ends here; events go on for another month."""

TINY_MODALITIES = (
    ModalitySpec(name="visits", text="{item} in {shop}", amount=True, max_events=16),
    ModalitySpec(name="coupons", text="redeemed a coupon for {shop}", max_events=4),
    ModalitySpec(name="profile", kind="table", text="age {age}, {city}", max_events=1),
)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
BERT_WORDS = (*_SPECIAL, "tomato", "##es", "fresh", "milk", "wine", "##s", "a")
"""The whole vocabulary of `tiny_bert`."""

_ITEMS = (
    "apples in produce",
    "tomatoes in produce",
    "ham in meat",
    "soap in household",
    "tea in dry",
)


def tiny_events(users: int = 30, seed: int = 0) -> pa.Table:
    """Canonical events of `users` users u000, u001, ... from January to April 2024.

    Every user has a profile, from the day before the first event. Even users like produce, every
    third one redeems coupons.
    """
    generator = np.random.default_rng(seed)
    rows: list[tuple[str, datetime, int, str, float]] = []
    for number in range(users):
        user = f"u{number:03d}"
        age, city = ("18-34", "35-64", "65+")[number % 3], ("north", "south")[number % 2]
        rows.append((user, TINY_START - timedelta(days=1), 2, f"age {age}, {city}", 0.0))
        likes = np.array([4, 4, 1, 1, 1]) if number % 2 == 0 else np.array([1, 1, 4, 1, 1])
        for minute in generator.integers(0, 120 * 24 * 60, 20):
            item = _ITEMS[generator.choice(5, p=likes / likes.sum())]
            when = TINY_START + timedelta(minutes=int(minute))
            rows.append((user, when, 0, item, float(generator.integers(1, 50))))
            if number % 3 == 0 and generator.random() < 0.2:
                rows.append((user, when, 1, "redeemed a coupon for produce", 0.0))
    columns = [list(column) for column in zip(*rows, strict=True)]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


def tiny_config() -> TrainConfig:
    """Four steps of a model as small as it gets."""
    from feast_anchor.onnx_export.model import ModelConfig
    from feast_anchor.onnx_export.settings import TrainConfig

    sizes = ModelConfig(
        query_tokens=True,
        text=16,
        key=8,
        hidden=32,
        ff=48,
        readout=32,
        head_hidden=32,
        embedding=16,
    )
    return TrainConfig(
        model=sizes,
        steps=4,
        histories=8,
        questions=6,
        snapshots=3,
        topics=4,
        validation_share=0.3,
    )


def tiny_words(corpus: Corpus) -> Words:
    """How a small model with a text encoder of its own reads the words of a corpus."""
    from feast_anchor.onnx_export.training import _words

    return _words(corpus, tiny_config())


def tiny_bundle(folder: Path) -> Path:
    """Train and export a bundle of a few steps into `folder`/tiny; half a minute, so share it."""
    from feast_anchor.onnx_export.training import train_bundle

    out = folder / "tiny"
    train_bundle(
        tiny_events(),
        TINY_MODALITIES,
        cut=TINY_CUT,
        out=out,
        entity="customer_id",
        config=tiny_config(),
    )
    return out


def tiny_bert(folder: Path) -> Any:
    """Save a random BERT of `transformers` with its tokenizer into `folder` and return it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(BERT_WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=20,
        initializer_range=0.3,
    )
    model = transformers.BertModel(config).eval()
    for name, value in model.named_parameters():
        if "LayerNorm" in name or "bias" in name:  # they start at 0 and 1: a mix-up would hide
            value.data += 0.2 * torch.randn_like(value)
    model.save_pretrained(folder)
    _bert_tokenizer().save(str(folder / "tokenizer.json"))
    return model


def tiny_sentence_encoder() -> tuple[SentenceEncoder, Tokenizer]:
    """A random sentence encoder with the vocabulary of `tiny_bert`, always the same."""
    import torch

    from feast_anchor.onnx_export.sentence import SentenceConfig, SentenceEncoder

    torch.manual_seed(0)
    sizes = {"hidden": 16, "layers": 2, "heads": 4, "ff": 24}
    config = SentenceConfig(
        vocabulary=len(BERT_WORDS), positions=20, norm_eps=1e-12, pad=0, pooling="mean", **sizes
    )
    tokenizer = _bert_tokenizer()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return SentenceEncoder(config).eval(), tokenizer


def sentence_bundle(folder: Path) -> Path:
    """Export an untrained model with `tiny_sentence_encoder` and without query tokens."""
    from dataclasses import replace

    from feast_anchor.onnx_export.export import BundleInfo, export_bundle
    from feast_anchor.onnx_export.model import Anchor
    from feast_anchor.onnx_export.text_encoder import PretrainedTextEncoder
    from feast_anchor.onnx_export.vocabulary import special_ids, train_tokenizer

    tokenizer = train_tokenizer(["will this customer have fresh milk or wine"], 300)
    encoder, text_tokenizer = tiny_sentence_encoder()
    config = replace(tiny_config().model, query_tokens=False)
    texts = PretrainedTextEncoder(encoder)
    model = Anchor(config, special_ids(tokenizer), len(TINY_MODALITIES), texts)
    info = BundleInfo("sentence", "customer_id", TINY_MODALITIES, 12, 32, {})
    export_bundle(model, tokenizer, info, folder / "sentence", text_tokenizer=text_tokenizer)
    return folder / "sentence"


def _bert_tokenizer() -> Tokenizer:
    """As many are published: cutting and padding, which readers of the file must not keep."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(BERT_WORDS)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    return tokenizer


def build_corpus(
    events: pa.Table, modalities: Sequence[ModalitySpec], *, cut: datetime, **options: Any
) -> Corpus:
    """All families' questions about some events; options as of `make_scope`, entity included."""
    scope = make_scope(events, modalities, cut=cut, **options)
    return join([make(scope) for make in FAMILIES.values()])
