"""Low-rank adaptation (LoRA, arXiv 2106.09685): train a large decoder by small matrices beside it.

The law of this module: the base weights never change while adapters are on, and a fresh adapter
changes nothing. Each chosen linear map W becomes W + (alpha / rank) B A with A random and B zero;
`merge_lora` adds the product to W once, so that whatever reads the decoder afterwards (an export,
above all) finds plain linear maps and knows nothing of adapters.

Keys and values share one map in our decoder, so they share one A. That is a little less freedom at
the same rank than one adapter for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder import Decoder
from .errors import SpecError

LORA_TARGETS = ("query", "key_value", "out", "gate", "up", "down")


class LoraLinear(nn.Module):
    """A frozen linear map with a trainable low-rank addition."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as nn.Linear starts its own weights

    def forward(self, x: Tensor) -> Tensor:
        """x[..., in] -> [..., out]."""
        added = F.linear(F.linear(x, self.a), self.b)  # [...,in] -> [...,rank] -> [...,out]
        out: Tensor = self.base(x) + self.scale * added
        return out

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base map with the addition inside its weights; this module is spent afterwards."""
        self.base.weight += self.scale * (self.b @ self.a)
        return self.base


def add_lora(
    decoder: Decoder,
    *,
    rank: int = 64,
    alpha: float = 32.0,
    targets: Sequence[str] = LORA_TARGETS,
) -> dict[str, nn.Parameter]:
    """Freeze a decoder and put adapters on its linear maps, in place.

    Args:
        decoder: every parameter it has is frozen, norms and biases too.
        rank: inner width of an adapter.
        alpha: an adapter counts alpha / rank times, so that learning rates carry over to ranks.
        targets: which linear maps of every layer, of `LORA_TARGETS`.

    Returns:
        The new parameters, the only trainable ones; `lora_parameters` gives them again.

    Raises:
        SpecError: a rank below one, no or unknown targets, or adapters are on already.
    """
    unknown = sorted(set(targets) - set(LORA_TARGETS))
    if rank < 1 or unknown or not targets:
        raise SpecError(
            f"rank={rank}, targets={list(targets)}: expected a rank of at least one and targets "
            f"of {list(LORA_TARGETS)}"
        )
    if lora_parameters(decoder):
        raise SpecError("the decoder has adapters already; call merge_lora before adding others")
    decoder.requires_grad_(False)
    for layer in decoder.layers:
        for name in targets:
            base = layer.get_submodule(name)
            assert isinstance(base, nn.Linear)
            setattr(layer, name, LoraLinear(base, rank, alpha))
    return lora_parameters(decoder)


def lora_parameters(decoder: Decoder) -> dict[str, nn.Parameter]:
    """The adapters' parameters by their names in the decoder's state dict; {} without adapters."""
    return {
        f"{layer}.{name}.{side}": parameter
        for layer, name, adapter in _adapters(decoder)
        for side, parameter in (("a", adapter.a), ("b", adapter.b))
    }


def merge_lora(decoder: Decoder) -> None:
    """Fold every adapter into its linear map, in place. The weights stay frozen."""
    for layer, name, adapter in list(_adapters(decoder)):
        setattr(decoder.get_submodule(layer), name, adapter.merged())


def _adapters(decoder: Decoder) -> Iterator[tuple[str, str, LoraLinear]]:
    """Path of the layer, name in it, adapter."""
    for path, module in decoder.named_modules():
        if isinstance(module, LoraLinear):
            layer, _, name = path.rpartition(".")
            yield layer, name, module
