from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import Tensor

from feast_anchor.onnx_export.backbones import Backbone, read_backbone
from feast_anchor.onnx_export.errors import PretrainedError

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large, so that a swapped matrix shows
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
    "llama": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama-head-dim": ("llama", {"head_dim": 8}),
    "llama-scaled": ("llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
}


def write_tokenizer(folder: Path, tokens: int = 40) -> None:
    words = {f"w{i}": i for i in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))


def make(folder: Path, kind: str, **saving: Any) -> Any:
    """A random model of `transformers`, saved in `folder`."""
    import transformers

    family, settings = KINDS[kind]
    torch.manual_seed(7)
    config: Any = transformers.AutoConfig.for_model(family, **(SIZES | settings))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, value in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # they start at 0 and 1: a mix-up would hide
            value.data += 0.3 * torch.randn_like(value)
    model.save_pretrained(folder, **saving)
    write_tokenizer(folder)
    return model


@torch.no_grad()
def expected_logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


@torch.no_grad()
def whole(backbone: Backbone, ids: Tensor) -> Tensor:
    return F.linear(backbone.decoder().full(backbone.tokens[ids]), backbone.head)


@torch.no_grad()
def in_two(backbone: Backbone, ids: Tensor, cut: int) -> Tensor:
    """Logits of the tokens from `cut` on, answered behind the shared prefix."""
    decoder, x = backbone.decoder(), backbone.tokens[ids]
    rest = ids.shape[1] - cut
    keep = torch.arange(rest).expand(len(ids), 1, rest)
    plen = torch.full((len(ids), 1), cut)
    hidden = decoder.suffix(x[:, None, cut:], keep, plen, decoder.prefix(x[:, :cut]))
    return F.linear(hidden[:, 0], backbone.head)


IDS = torch.randint(40, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """A checkpoint gives the same scores here, at once and cut into prefix and suffix."""
    expected = expected_logits(make(tmp_path, kind), IDS)
    backbone = read_backbone(tmp_path)
    assert (whole(backbone, IDS) - expected).abs().max() < 1e-5
    assert (in_two(backbone, IDS, 41) - expected[:, 41:]).abs().max() < 1e-5
    assert backbone.tied == ("tied" in kind or kind == "qwen3")


def test_a_checkpoint_in_parts_reads_like_one_file(tmp_path: Path) -> None:
    """Several safetensors files behind an index give the same model."""
    expected = expected_logits(make(tmp_path, "qwen2", max_shard_size="4KB"), IDS)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (whole(read_backbone(tmp_path), IDS) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    """Half precision weights are read as float32 of the same values."""
    import transformers

    make(tmp_path, "llama").to(dtype).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    backbone = read_backbone(tmp_path)
    assert all(value.dtype == torch.float32 for value in backbone.weights.values())
    expected = expected_logits(model, IDS)
    assert (whole(backbone, IDS) - expected).abs().max() < 1e-5


def test_older_config_files_say_the_same(tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` beside each other mean what `rope_parameters` means."""
    make(tmp_path, "llama-scaled")
    new = read_backbone(tmp_path).config

    def rewrite(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope

    change(tmp_path, rewrite)
    assert "rope_theta" in (tmp_path / "config.json").read_text()
    assert read_backbone(tmp_path).config == new
    assert new.rope_base == 500_000.0
    assert new.rope_scaling is not None


def test_reading_draws_no_random_numbers(checkpoint: Path) -> None:
    """What is trained beside a backbone starts the same with and without it."""
    before = torch.get_rng_state()
    decoder = read_backbone(checkpoint).decoder()
    assert torch.equal(before, torch.get_rng_state())
    assert not decoder.frequencies.is_meta


def test_tokenizer_neither_cuts_nor_pads(checkpoint: Path) -> None:
    """Lengths are decided by our own code, not by what a checkpoint was saved with."""
    ids = read_backbone(checkpoint).tokenizer.encode("w1").ids
    assert ids == [1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intact Qwen2 checkpoint."""
    folder = tmp_path_factory.mktemp("qwen2")
    make(folder, "qwen2")
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be broken."""
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def save(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


WINDOW = {"use_sliding_window": True, "sliding_window": 8}
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba', expected one of ['qwen2', 'qwen3',"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (WINDOW | {"layer_types": None, "max_window_layers": 1}, "attend to a sliding window"),
        (WINDOW | {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor is None, expected a number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": "16"}, "hidden_size is '16', expected a whole number"),
        ({"num_key_value_heads": 3}, "kv_heads=3: expected an even head_dim"),
        ({"intermediate_size": 25}, "has shape (24, 16), its config.json asks for (25, 16)"),
        ({"num_hidden_layers": 3}, "no tensor 'model.layers.2.input_layernorm.weight'"),
        ({"num_hidden_layers": 1}, "12 tensors that we have no place for"),
        ({"vocab_size": 39}, "has shape (40, 16)"),
    ],
)
def test_a_model_that_would_run_wrong_is_refused(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    """A setting that our decoder does not follow is named, never ignored."""
    change(checkpoint, lambda config: config.update(settings))
    with pytest.raises(PretrainedError) as caught:
        read_backbone(checkpoint)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        WINDOW | {"layer_types": None, "max_window_layers": 2},
        WINDOW | {"layer_types": None, "max_window_layers": 0, "use_sliding_window": False},
        WINDOW | {"layer_types": None, "max_window_layers": 0, "sliding_window": None},
    ],
)
def test_a_window_that_no_layer_uses_is_read(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Qwen writes a window's size into every config.json; it only counts where it is used."""
    change(checkpoint, lambda config: config.update(settings))
    read_backbone(checkpoint)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), "no tensor 'lm_head.weight'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "among them ['extra']"),
        (lambda tensors: tensors.update({NORM: torch.ones(16, dtype=torch.int8)}), "torch.int8"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    checkpoint: Path, edit: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    """Missing, left over and quantised tensors are named."""
    save(checkpoint, edit)
    with pytest.raises(PretrainedError) as caught:
        read_backbone(checkpoint)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_and_broken_files_are_named(checkpoint: Path, name: str) -> None:
    """An incomplete download says which file it lacks or cannot read."""
    (checkpoint / name).write_bytes(b"{cut")
    with pytest.raises(PretrainedError, match=f"{name} (is not JSON|cannot be read)"):
        read_backbone(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(PretrainedError, match=f"{name} does not exist"):
        read_backbone(checkpoint)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x", "a\\b", "", 7])
def test_an_index_stays_in_its_folder(checkpoint: Path, name: Any) -> None:
    """A downloaded index cannot make us read files elsewhere."""
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {NORM: name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PretrainedError, match="plain names inside the folder"):
        read_backbone(checkpoint)


def test_a_part_that_is_missing_is_named(checkpoint: Path) -> None:
    """An index whose part was not downloaded names the part."""
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    index = {"weight_map": {NORM: "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PretrainedError, match="00002-of-00002.safetensors does not exist"):
        read_backbone(checkpoint)


def test_a_tokenizer_of_another_model_is_refused(checkpoint: Path) -> None:
    """A token without a vector is found when reading, not in the middle of training."""
    write_tokenizer(checkpoint, 41)
    with pytest.raises(PretrainedError, match="ids up to 40, the model has vectors for 40"):
        read_backbone(checkpoint)
