from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feast_anchor.onnx_export.decoder import Decoder, DecoderConfig
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.lora import LORA_TARGETS, add_lora, lora_parameters, merge_lora

CONFIG = DecoderConfig(
    hidden=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff=24, rope_base=1e4, qkv_bias=True
)
X = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoder() -> Decoder:
    """A random decoder without adapters."""
    torch.manual_seed(1)
    return Decoder(CONFIG)


def train(decoder: Decoder, steps: int = 3) -> None:
    """A few steps of something that moves every adapter."""
    optimiser = torch.optim.SGD(lora_parameters(decoder).values(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        decoder.full(X).square().mul(torch.arange(16)).mean().backward()
        optimiser.step()


def frozen(decoder: Decoder) -> dict[str, Tensor]:
    adapters = lora_parameters(decoder)
    return {n: p.detach().clone() for n, p in decoder.named_parameters() if n not in adapters}


@torch.no_grad()
def test_fresh_adapters_change_nothing(decoder: Decoder) -> None:
    """Training starts from the very output of the pretrained decoder."""
    before = decoder.full(X)
    add_lora(decoder, rank=4)
    assert torch.equal(before, decoder.full(X))


def test_only_adapters_are_trainable(decoder: Decoder) -> None:
    """Every layer has two new matrices per target, of the rank that was asked for, and no more."""
    parameters = add_lora(decoder, rank=4)
    names = {f"layers.{i}.{t}.{side}" for i in range(2) for t in LORA_TARGETS for side in "ab"}
    assert set(parameters) == names
    assert {n for n, p in decoder.named_parameters() if p.requires_grad} == names
    assert parameters["layers.1.gate.a"].shape == (4, 16)
    assert parameters["layers.1.gate.b"].shape == (24, 4)


def test_gradients_reach_adapters_only(decoder: Decoder) -> None:
    """A step moves every adapter and leaves every base weight as it was."""
    parameters = add_lora(decoder, rank=4)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    base = frozen(decoder)
    train(decoder)
    assert all(not torch.equal(start[name], parameters[name]) for name in parameters)
    assert all(torch.equal(value, base[name]) for name, value in frozen(decoder).items())
    assert all(p.grad is None for n, p in decoder.named_parameters() if n not in parameters)


def test_merging_keeps_the_output_and_leaves_plain_maps(decoder: Decoder) -> None:
    """A merged decoder gives the same numbers and has the parameters of an untouched one."""
    untouched = copy.deepcopy(decoder)
    add_lora(decoder, rank=4)
    train(decoder)
    with torch.no_grad():
        before = decoder.full(X)
        assert (before - untouched.full(X)).abs().max() > 1e-3
        merge_lora(decoder)
        assert (decoder.full(X) - before).abs().max() < 1e-6
    assert lora_parameters(decoder) == {}
    assert decoder.state_dict().keys() == untouched.state_dict().keys()
    assert type(decoder.layers[0].get_submodule("query")) is nn.Linear


def test_alpha_over_rank_scales_the_addition(decoder: Decoder) -> None:
    """Twice the alpha is twice the addition; the rank divides it."""
    before = decoder.layers[0].get_submodule("out").get_parameter("weight").clone()
    parameters = add_lora(decoder, rank=2, alpha=6.0, targets=("out",))
    a, b = parameters["layers.0.out.a"], parameters["layers.0.out.b"]
    nn.init.ones_(b)
    merge_lora(decoder)
    after = decoder.layers[0].get_submodule("out").get_parameter("weight")
    torch.testing.assert_close(after - before, 3.0 * (b @ a))


@pytest.mark.parametrize(
    "asked", [{"rank": 0}, {"targets": ("query", "value")}, {"targets": ()}, {"targets": "query"}]
)
def test_wrong_settings_are_refused(decoder: Decoder, asked: dict[str, Any]) -> None:
    """An impossible rank or target is named, and the decoder is left as it was."""
    with pytest.raises(SpecError, match="expected a rank of at least one and targets"):
        add_lora(decoder, **asked)
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_adapters_are_not_stacked(decoder: Decoder) -> None:
    """Adding adapters twice is refused; after a merge it is possible."""
    add_lora(decoder, rank=2)
    with pytest.raises(SpecError, match="has adapters already"):
        add_lora(decoder, rank=2)
    merge_lora(decoder)
    assert len(add_lora(decoder, rank=2)) == 24
