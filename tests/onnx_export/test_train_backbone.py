from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feast_anchor.onnx_export import fitting, training
from feast_anchor.onnx_export.backbones import read_backbone
from feast_anchor.onnx_export.batches import Batches
from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.fitting import Progress, Store
from feast_anchor.onnx_export.inputs import suffix_ids
from feast_anchor.onnx_export.lora import lora_parameters
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.questions import build_corpus
from feast_anchor.onnx_export.settings import TrainConfig
from feast_anchor.onnx_export.training import train_bundle
from feast_anchor.onnx_export.validation import split
from feast_anchor.onnx_export.vocabulary import train_tokenizer
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

VOCABULARY = 320  # of the table; the tokenizer has fewer, as with real checkpoints
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 6},
    "llama": {"head_dim": 8, "tie_word_embeddings": False},
}


def checkpoint(folder: Path, family: str) -> Path:
    """A random model of `transformers` with a tokenizer that knows a few words, in `folder`."""
    import transformers

    torch.manual_seed(7)
    config: Any = transformers.AutoConfig.for_model(family, **(SIZES | KINDS[family]))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = train_tokenizer(["will this customer buy produce again, yes or no"], 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def config(folder: Path, **settings: Any) -> TrainConfig:
    sizes = ModelConfig(text=16, readout=16, head_hidden=16, embedding=16)
    base = TrainConfig(
        model=sizes, backbone=str(folder), lora_rank=4, steps=3, histories=8, questions=6,
        snapshots=2, topics=3, ntp_every=1, validation_share=0.3, evaluate_every=2,
    )  # fmt: skip
    return replace(base, **settings)


def fit(
    settings: TrainConfig,
    store: Store | None = None,
    report: Progress = lambda text, done: None,
) -> Anchor:
    """Training without the export, as `train_bundle` does it."""
    corpus = build_corpus(
        tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer", snapshots_per_user=2,
        topics=3,
    )  # fmt: skip
    with training._deterministic(settings.seed):
        assert settings.backbone is not None
        backbone = read_backbone(settings.backbone)
        words = training._words(corpus, settings, backbone)
        model = training._model(settings, words, TINY_MODALITIES, backbone)
        batches = Batches(corpus, TINY_MODALITIES, words)
        parts = split(corpus, settings.validation_share)
        fitting.fit(model, batches, parts, settings, store, report)
    return model


@pytest.mark.parametrize("family", KINDS)
def test_a_backbone_is_trained_exported_and_served(family: str, tmp_path: Path) -> None:
    """Each family goes the whole way: the bundle's sizes are the checkpoint's, its graphs agree
    with the model, and questions get vectors of their own.
    """
    folder = checkpoint(tmp_path / "model", family)
    manifest = train_bundle(
        tiny_events(), TINY_MODALITIES, cut=TINY_CUT, out=tmp_path / "bundle",
        entity="customer_id", config=config(folder),
    )  # fmt: skip
    dims = manifest.dims
    assert (dims.hidden, dims.heads, dims.kv_heads) == (16, 4, 2)
    assert dims.head_dim == {"qwen2": 4, "qwen3": 6, "llama": 8}[family]
    assert max(manifest.parity["max_abs_difference"].values()) < 1e-5
    assert sorted(manifest.training["pretrained"]) == ["backbone"]
    vectors = Bundle.open(tmp_path / "bundle").answer_vectors(["yes", "no"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
