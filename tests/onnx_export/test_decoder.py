from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from feast_anchor.onnx_export.decoder import Decoder, DecoderConfig, RopeScaling, rotate
from feast_anchor.onnx_export.errors import SpecError

PLAIN = DecoderConfig(
    hidden=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff=24, rope_base=10_000.0
)
VARIANTS = {
    "plain": PLAIN,
    "qwen2": replace(PLAIN, qkv_bias=True, kv_heads=1),
    "qwen3": replace(PLAIN, qk_norm=True, head_dim=6),
    "llama3": replace(PLAIN, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), kv_heads=4),
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_prefix_and_suffix_equal_full(variant: str) -> None:
    """Cutting a sequence into a padded prefix and a padded block changes no hidden state."""
    torch.manual_seed(0)
    decoder = Decoder(VARIANTS[variant])
    x = torch.randn(2, 9, 16)
    padding = torch.randn(2, 3, 16)
    state = decoder.prefix(torch.cat((x[:, :5], padding), dim=1))
    block = torch.cat((x[:, 5:], padding), dim=1).unsqueeze(1)  # [2,1,7,16]
    keep = torch.arange(4).expand(2, 1, 4)
    hidden = decoder.suffix(block, keep, torch.full((2, 1), 5), state)
    torch.testing.assert_close(hidden[:, 0], decoder.full(x)[:, 5:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_block_behind_no_prefix_equals_full() -> None:
    """The empty state is the state of a history without tokens."""
    torch.manual_seed(0)
    decoder = Decoder(PLAIN)
    x = torch.randn(1, 3, 4, 16)  # three blocks
    keep, plen = torch.arange(4).expand(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64)
    hidden = decoder.suffix(x, keep, plen, decoder.empty_state())
    torch.testing.assert_close(hidden[0], decoder.full(x[0]), atol=1e-5, rtol=0)


def test_stretching_slows_only_the_slow_rotations() -> None:
    """Llama 3 scaling keeps short wavelengths and multiplies the long ones by the factor."""
    wide = replace(PLAIN, head_dim=16)
    plain = Decoder(wide).frequencies
    scaled = Decoder(replace(wide, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))).frequencies
    assert scaled[0] == plain[0]
    assert scaled[-1] == plain[-1] / 8
    assert ((plain / 8 <= scaled) & (scaled <= plain)).all()


@pytest.mark.parametrize("sizes", [{"head_dim": 5}, {"kv_heads": 3}])
def test_heads_that_do_not_divide_are_refused(sizes: dict[str, Any]) -> None:
    """An odd head or a broken group of heads is named in the error."""
    with pytest.raises(SpecError, match=f"{next(iter(sizes))}={next(iter(sizes.values()))}"):
        replace(PLAIN, **sizes)


def test_rotation_keeps_only_the_distance() -> None:
    """A score depends on how far two tokens are apart, not on where they stand."""
    q, k = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    angle = torch.tensor([[[0.3]]])

    def score(a: int, b: int) -> float:
        left = rotate(q.reshape(1, 1, 1, 2), (a * angle).cos(), (a * angle).sin())
        right = rotate(k.reshape(1, 1, 1, 2), (b * angle).cos(), (b * angle).sin())
        return float((left * right).sum())

    assert score(5, 2) == pytest.approx(score(13, 10), abs=1e-6)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-2)
