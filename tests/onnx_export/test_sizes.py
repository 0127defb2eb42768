from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from feast_anchor.onnx_export.decoder import Decoder, DecoderConfig, RopeScaling
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.sizes import ModelConfig


def test_without_a_word_the_decoder_is_nano() -> None:
    """The default is the smallest size, with a head of 16."""
    dims = ModelConfig().dims()
    assert (dims.hidden, dims.layers, dims.heads, dims.kv_heads, dims.head_dim) == (64, 2, 4, 2, 16)
    assert ModelConfig(size="nano").decoder() == ModelConfig().decoder()


@pytest.mark.parametrize(("size", "millions"), [("nano", 0.1), ("small", 3.9), ("base", 31.5)])
def test_named_sizes_have_the_parameters_that_the_docs_say(size: str, millions: float) -> None:
    """docs/training.md names the number of weights of each size's decoder."""
    with torch.device("meta"):
        decoder = Decoder(ModelConfig(size=size).decoder())  # type: ignore[arg-type]
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert round(count / 1e6, 1) == millions


def test_a_number_goes_before_the_named_size() -> None:
    """What is given explicitly stays; the rest is the size's, also when the size is changed."""
    config = replace(ModelConfig(size="small", layers=3), size="base").decoder()
    assert (config.hidden, config.layers, config.ff) == (512, 3, 2048)


def test_a_pretrained_decoder_decides_sizes_and_variants() -> None:
    """Every number of a checkpoint comes through, the width of its heads and its rotations too."""
    scaling = RopeScaling(8.0, 1.0, 4.0, 16)
    given = DecoderConfig(
        hidden=16, layers=3, heads=4, kv_heads=1, head_dim=6, ff=24, rope_base=5e5, norm_eps=1e-5,
        qkv_bias=True, qk_norm=True, rope_scaling=scaling,
    )  # fmt: skip
    around = ModelConfig(text=8).around(given, tied=False)
    assert around.decoder() == given
    assert (around.text, around.tied, around.dims().head_dim) == (8, False, 6)
    assert around.of_decoder()
    assert ModelConfig(text=8, evidence=False).of_decoder() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "huge"}, "size='huge', expected one of"),
        ({"layers": -1}, "layers=-1, expected at least 1, or 0"),
        ({"hidden": 30}, "hidden=30, heads=4"),
        ({"kv_heads": 3}, "kv_heads=3"),
        ({"head_dim": 5}, "head_dim=5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, int], message: str) -> None:
    """Unknown names, negative sizes and heads that do not divide are named in the error."""
    with pytest.raises(SpecError, match=message):
        ModelConfig(**settings).decoder()  # type: ignore[arg-type]
