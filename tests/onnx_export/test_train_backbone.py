from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open

from feast_anchor.onnx_export import export, fitting, training
from feast_anchor.onnx_export.backbones import read_backbone
from feast_anchor.onnx_export.batches import Batches
from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.card import pretrained_digests
from feast_anchor.onnx_export.errors import BundleError, SpecError
from feast_anchor.onnx_export.fitting import Progress, Store
from feast_anchor.onnx_export.lora import lora_parameters
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.settings import TrainConfig
from feast_anchor.onnx_export.text_encoder import OwnTextEncoder
from feast_anchor.onnx_export.threads import one_thread
from feast_anchor.onnx_export.training import train_bundle
from feast_anchor.onnx_export.validation import split
from feast_anchor.onnx_export.vocabulary import train_tokenizer
from feast_anchor.onnx_export.weights import read_model
from feast_anchor.transforms.events import ROW_SCHEMA
from feast_anchor.transforms.histories import build_histories
from feast_anchor.transforms.scoring import Question, Scorer
from tiny import TINY_CUT, TINY_MODALITIES, build_corpus, tiny_events

VOCABULARY = 320  # of the table; the tokenizer has fewer, as with real checkpoints
RANK = 13  # no other width of the model
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
        model=sizes, backbone=str(folder), lora_rank=RANK, steps=3, histories=8, questions=6,
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
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        assert settings.backbone is not None
        backbone = read_backbone(settings.backbone)
        words = training._words(corpus, settings, backbone)
        model = training._model(settings, words, TINY_MODALITIES, backbone)
        batches = Batches(corpus, TINY_MODALITIES, words)
        parts = split(corpus, settings.validation_share)
        fitting.fit(model, batches, parts, settings, store, report)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an output head of its own; do not write into it."""
    return checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_a_backbone_is_trained_exported_and_served(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each family goes the whole way: the bundle's sizes are the checkpoint's, its graphs agree
    with the model and hold no adapter, questions get vectors of their own, and weights too large
    for a graph lie beside it, vouched for by the manifest.
    """
    outside = family == "llama"
    if outside:
        monkeypatch.setattr(export, "EXTERNAL_ABOVE", 20_000)
    folder = checkpoint(tmp_path / "model", family)
    manifest = train_bundle(
        tiny_events(), TINY_MODALITIES, cut=TINY_CUT, out=tmp_path / "bundle",
        entity="customer_id", config=config(folder),
    )  # fmt: skip
    dims = manifest.dims
    assert (dims.hidden, dims.heads, dims.kv_heads) == (16, 4, 2)
    assert dims.head_dim == {"qwen2": 4, "qwen3": 6, "llama": 8}[family]
    assert max(manifest.parity["max_abs_difference"].values()) < 1e-5
    assert sorted(manifest.training["pretrained"]["backbone"]) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    beside = {name for name in manifest.files if name.endswith(".onnx.data")}
    assert ({"suffix.onnx.data", "answer.onnx.data"} <= beside) == outside
    bundle = Bundle.open(tmp_path / "bundle")
    backbone, model = read_backbone(folder), read_model(bundle)
    assert model.config.decoder() == backbone.config
    assert {n: w.shape for n, w in model.decoder.state_dict().items()} == {
        n: w.shape for n, w in backbone.weights.items()
    }
    assert RANK not in widths(bundle.folder / "suffix.onnx")
    vectors = served(bundle)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    if outside:
        data = bundle.folder / "suffix.onnx.data"
        data.write_bytes(data.read_bytes()[:-1] + b"\xff")
        with pytest.raises(BundleError, match=r"suffix\.onnx\.data was changed"):
            Bundle.open(bundle.folder)


def widths(graph: Path) -> set[int]:
    """Sizes of all matrices in a graph; an adapter would add matrices of its rank."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    return {size for tensor in tensors if len(tensor.dims) == 2 for size in tensor.dims}


def served(bundle: Bundle) -> np.ndarray[Any, Any]:
    """Vectors of one user, asked something and asked nothing: [2, N]."""
    scorer = Scorer(bundle, [Question("Will this customer buy produce?"), Question(None)])
    rows = [
        {"user": "u", "event_timestamp": 0, "modality": 0, "text": "ham in meat", "amount": 1.0}
    ]
    table = pa.Table.from_pylist(rows, ROW_SCHEMA)
    shard = build_histories(table, [86_400_000_000], bundle.manifest.modalities)
    (found,) = scorer.score(shard.histories, shard.texts)
    vectors: np.ndarray[Any, Any] = found.vectors[0]
    return vectors


def frozen(model: Anchor) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}


def test_only_what_stands_beside_the_checkpoint_is_trained(llama: Path) -> None:
    """The checkpoint's weights stay the same bits; adapters and the three new words move."""
    settings, backbone = config(llama), read_backbone(llama)
    model = fit(settings)
    kept = frozen(model)
    assert torch.equal(kept["words.known"], backbone.tokens[: model.special.pad])
    assert torch.equal(kept["words.known_head"], backbone.head[: model.special.pad])
    for name, weight in backbone.weights.items():
        layer, _, last = name.rpartition(".")
        found = kept.get(f"decoder.{layer}.base.{last}", kept.get(f"decoder.{name}"))
        assert found is not None
        assert torch.equal(found, weight)
    adapters = lora_parameters(model.decoder)
    assert all(bool(p.any()) for name, p in adapters.items() if name.endswith(".b"))
    assert {"words.new", "words.new_head", "event_kind"}.isdisjoint(kept)


def test_what_is_exported_is_an_ordinary_model(llama: Path) -> None:
    """Folded, the model computes the same, and its own sizes are enough to make it again."""
    model = fit(config(llama)).eval()
    before = answered(model)
    training._make_plain(model)
    after = answered(model)
    assert lora_parameters(model.decoder) == {}
    assert (before - after).abs().max() < 1e-6
    texts = OwnTextEncoder(model.texts.vocabulary, model.texts.width, model.texts.pad)
    again = Anchor(model.config, model.special, model.modalities, texts)
    again.load_state_dict(model.state_dict())
    assert torch.equal(answered(again.eval()), after)


@torch.no_grad()
def answered(model: Anchor) -> torch.Tensor:
    """Vector of one answer, and next-token scores of a hidden state of ones: [N + V]."""
    ids, length = torch.tensor([[5, 9, model.special.eos]]), torch.tensor([3])
    vector = model.answer(ids, length, torch.ones(1, model.config.text))[0]
    return torch.cat((vector, model.logits(torch.ones(model.config.hidden))))


class Killed(Exception):
    """What a killed process is to this one: nothing after it happens."""


def kill_after_two(text: str, done: float) -> None:
    if text.startswith("step 2 of"):
        raise Killed


def test_a_resumed_run_equals_an_uninterrupted_one(llama: Path, tmp_path: Path) -> None:
    """Killed between two checkpoints and taken up: the same bits, and no frozen weight was kept."""
    settings = config(llama, steps=4, checkpoint_every=1)
    whole = fit(settings)
    store = Store(tmp_path / "run.safetensors", {"run": 1})
    with pytest.raises(Killed):
        fit(settings, store, kill_after_two)
    with safe_open(store.path, framework="pt") as file:
        names = list(file.keys())
    assert any("query.a" in name for name in names)
    assert not any("known" in name or ".base." in name for name in names)
    resumed = fit(settings, store)
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


def test_a_changed_checkpoint_is_another_run(tmp_path: Path) -> None:
    """The identity of a run names the backbone's files by what is in them."""
    folder = checkpoint(tmp_path / "model", "qwen2")
    before = pretrained_digests(config(folder))
    assert pretrained_digests(config(folder)) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    after = pretrained_digests(config(folder))["backbone"]
    assert [name for name in after if after[name] != before["backbone"][name]] == [weights.name]


def test_settings_that_contradict_a_backbone_are_refused(llama: Path) -> None:
    """A size beside a backbone, no such folder, no adapter: errors before anything is read."""
    for sizes, named in ((ModelConfig(size="nano"), "size"), (ModelConfig(hidden=64), "hidden")):
        with pytest.raises(SpecError, match=rf"gives \['{named}'\] as well; remove them"):
            config(llama, model=sizes)
    with pytest.raises(SpecError, match="is no folder of a pretrained model; expected one with"):
        TrainConfig(backbone=str(llama / "nope"))
    with pytest.raises(SpecError, match="lora_rank=0, expected at least 1"):
        TrainConfig(lora_rank=0)
    with pytest.raises(SpecError, match=r"lora_alpha=0\.0, expected a number above 0"):
        TrainConfig(lora_alpha=0.0)
