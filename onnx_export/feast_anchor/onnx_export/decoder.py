"""A plain causal decoder behind three entry points: one prefix, many suffixes, or all at once.

The law of this module: a token of the prefix never depends on a suffix, and a suffix never depends
on another suffix. So `prefix` runs once, `suffix` answers any number of blocks against its keys
and values, and both give what `full`, one plain causal forward over [prefix, one block], gives.
`full` is slow, plain, and the reference for parity.

Letters in shape comments: B histories, P prefix tokens, Q blocks, L tokens of a block, S rows kept
of the last layer, N tokens of a whole sequence, D hidden width, H heads, K key/value heads,
G = H / K, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import SpecError

_NEVER = -1e9  # a masked score: exp of it is exactly 0, and a row of nothing else is not NaN


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of slow rotations, so that a model reads further than it was trained."""

    factor: float  # how many times longer the slow wavelengths become
    low_freq_factor: float  # wavelengths above original_positions / this are stretched in full
    high_freq_factor: float  # wavelengths below original_positions / this stay; between: a blend
    original_positions: int  # tokens of context before stretching


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and variants of a decoder: our own small one, or one of the Qwen and Llama families."""

    hidden: int  # D: width of a token
    layers: int  # decoder layers
    heads: int  # H: query heads
    kv_heads: int  # K: key/value heads; heads must be a multiple
    head_dim: int  # d: width of one head, even; heads * head_dim need not be hidden
    ff: int  # inner width of SwiGLU
    rope_base: float  # slowest rotation: one turn in about 6 * rope_base tokens
    norm_eps: float = 1e-6  # added to the mean square in every RMS norm
    qkv_bias: bool = False  # biases on queries, keys and values (Qwen2)
    qk_norm: bool = False  # RMS norm of each query and key head before rotation (Qwen3)
    rope_scaling: RopeScaling | None = None  # Llama 3.1 and later

    def __post_init__(self) -> None:
        if self.head_dim % 2 or self.heads % self.kv_heads:
            raise SpecError(
                f"head_dim={self.head_dim}, heads={self.heads}, kv_heads={self.kv_heads}: "
                "expected an even head_dim and a whole heads / kv_heads"
            )


class Layer(nn.Module):
    """One decoder layer: grouped-query attention and SwiGLU, each behind an RMS norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = c = config
        width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.attention_norm = nn.RMSNorm(c.hidden, eps=c.norm_eps)
        self.query = nn.Linear(c.hidden, width, bias=c.qkv_bias)
        self.key_value = nn.Linear(c.hidden, 2 * kv_width, bias=c.qkv_bias)
        self.query_norm = _head_norm(c)
        self.key_norm = _head_norm(c)
        self.out = nn.Linear(width, c.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(c.hidden, eps=c.norm_eps)
        self.gate = nn.Linear(c.hidden, c.ff, bias=False)
        self.up = nn.Linear(c.hidden, c.ff, bias=False)
        self.down = nn.Linear(c.ff, c.hidden, bias=False)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x[B,...,N,D], cos and sin broadcastable to [B,K,...,N,d/2] -> two [B,K,...,N,d]."""
        both = self.key_value(self.attention_norm(x))
        both = both.unflatten(-1, (2, self.config.kv_heads, self.config.head_dim))
        key, value = both.movedim((-3, -2), (0, 2)).unbind()  # [B,..,N,2,K,d] -> [2,B,K,..,N,d]
        return rotate(self.key_norm(key), cos, sin), value

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x[B,...,N,D], cos and sin broadcastable to [B,K,...,G,N,d/2] -> [B,K,...,G,N,d].

        Queries are scaled here, once, so that no attention has to.
        """
        c = self.config
        query = self.query(self.attention_norm(x))
        query = query.unflatten(-1, (c.kv_heads, c.heads // c.kv_heads, c.head_dim))
        query = self.query_norm(query) * c.head_dim**-0.5  # [B,..,N,K,G,d]
        return rotate(query.movedim((-3, -2), (1, -3)), cos, sin)  # [B,K,..,G,N,d]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x[B,...,N,D], attended[B,K,...,G,N,d] -> [B,...,N,D]."""
        x = x + self.out(attended.movedim((1, -3), (-3, -2)).flatten(-3))  # [B,..,N,K,G,d]
        inner = self.mlp_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(inner)) * self.up(inner))
        return out


class Decoder(nn.Module):
    """Layers and final norm. It knows vectors only: no tokens, no vocabulary, no output head."""

    frequencies: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        # not persistent: the configuration decides it, a checkpoint has nothing to say
        self.register_buffer("frequencies", _frequencies(config), persistent=False)

    def prefix(self, x: Tensor, past: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """The state of decoder inputs x[B,P,D]: (k_0, v_0, k_1, ...), each [B,K,P,d]; k rotated.

        Padding stands on the right, so causality alone keeps it out of every real token; readers
        of the state skip it by `plen`. `past` is the state of tokens before x, without padding:
        what is returned is then the state of both, as if they had been read at once.
        """
        start = past[0].shape[2] if past else 0
        at = start + torch.arange(x.shape[1], device=x.device)
        cos, sin = self._angles(at)  # [P,d/2]
        every = torch.arange(start + x.shape[1], device=x.device)  # N = past and P tokens
        causal = every.unsqueeze(0) <= at.unsqueeze(1)  # [P,N]
        state: list[Tensor] = []
        for index, layer in enumerate(_layers(self.layers)):
            key, value = layer.keys_values(x, cos, sin)
            if past:
                key = torch.cat((past[2 * index], key), dim=2)  # [B,K,N,d]
                value = torch.cat((past[2 * index + 1], value), dim=2)
            state += [key, value]
            if index + 1 < self.config.layers:  # nobody reads the last layer's own output
                query = layer.queries(x, cos, sin)  # [B,K,G,P,d]
                folded = query.flatten(2, 3)  # [B,K,G*P,d]
                scores = folded @ key.transpose(-1, -2)  # [B,K,G*P,N]
                scores = scores.unflatten(2, query.shape[2:4])  # [B,K,G,P,N]
                weights = torch.where(causal, scores, _NEVER).softmax(-1).flatten(2, 3)
                x = layer.finish(x, (weights @ value).unflatten(2, query.shape[2:4]))
        return tuple(state)

    def suffix(self, x: Tensor, keep: Tensor, plen: Tensor, state: Sequence[Tensor]) -> Tensor:
        """Run blocks behind the shared prefix.

        Each row sees the first `plen` prefix tokens and the rows of its own block up to itself,
        so padding on the right of a block needs no mask of its own. The kept rows of the first
        block are computed twice: a lone row would be multiplied by another routine, and have other
        bits than among others.

        Args:
            x: decoder inputs [B,Q,L,D].
            keep: rows of the last layer to compute, int64 [B,Q,S].
            plen: real prefix tokens of each block's history, int64 [B,Q].
            state: what `prefix` returned.

        Returns:
            Hidden states [B,Q,S,D] after the final norm.
        """
        at = torch.arange(x.shape[2], device=x.device)  # [L]
        cos, sin = self._angles(plen.unsqueeze(-1) + at)  # [B,Q,L,d/2]
        rows = at.expand(x.shape[0], x.shape[1], -1)  # [B,Q,L]
        for index, layer in enumerate(_layers(self.layers)):
            key, value = layer.keys_values(x, cos.unsqueeze(1), sin.unsqueeze(1))  # [B,K,Q,L,d]
            if index + 1 == self.config.layers:
                x = x.gather(2, keep.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))  # [B,Q,S,D]
                x, rows, plen = (first_again(one) for one in (x, keep, plen))  # Q + 1 from here
                key, value = first_again(key, 2), first_again(value, 2)
                cos, sin = self._angles(plen.unsqueeze(-1) + rows)  # [B,Q,S,d/2]
            query = layer.queries(x, cos[:, None, :, None], sin[:, None, :, None])
            past = (state[2 * index], state[2 * index + 1])
            own = (at <= rows.unsqueeze(-1))[:, None, :, None]  # [B,1,Q,1,S,L]
            seen = _seen(plen, past[0])  # [B,1,Q,1,1,P]
            x = layer.finish(x, _cascade(query, past, (key, value), seen, own))
        hidden: Tensor = self.final_norm(x)
        return hidden[:, :-1]

    def empty_state(self) -> tuple[Tensor, ...]:
        """The state of no prefix, for one history and plen = 0: each [1,K,1,d].

        One slot that nobody sees: ONNX Runtime cannot reshape a prefix of no rows.
        """
        c = self.config
        return (self.frequencies.new_zeros(1, c.kv_heads, 1, c.head_dim),) * (2 * c.layers)

    def full(self, x: Tensor) -> Tensor:
        """One causal forward without padding: x[B,N,D] -> [B,N,D] after the final norm."""
        cos, sin = self._angles(torch.arange(x.shape[1], device=x.device))
        for layer in _layers(self.layers):
            key, value = layer.keys_values(x, cos, sin)  # [B,K,N,d]
            query = layer.queries(x, cos, sin).flatten(1, 2)  # [B,H,N,d]
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=1.0, enable_gqa=True
            )
            x = layer.finish(x, attended.unflatten(1, (self.config.kv_heads, -1)))
        hidden: Tensor = self.final_norm(x)
        return hidden

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions.unsqueeze(-1).to(torch.float32) * self.frequencies
        return angle.cos(), angle.sin()


def first_again(blocks: Tensor, dim: int = 1) -> Tensor:
    """Blocks and the first of them once more, along their own axis."""
    return torch.cat((blocks, blocks.narrow(dim, 0, 1)), dim)


def _seen(plen: Tensor, keys: Tensor) -> Tensor:
    """Which tokens of keys[B,K,P,d] the blocks of plen[B,Q] may see: [B,1,Q,1,1,P]."""
    at = torch.arange(keys.shape[2], device=keys.device)
    return (at < plen.unsqueeze(-1))[:, None, :, None, None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn the pair (x[i], x[i + d/2]) by its angle; x[..., d]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _frequencies(config: DecoderConfig) -> Tensor:
    """Radians per token of each pair: [d/2].

    In the very order of operations in which pretrained models were computed: far from the start
    of a sequence the last bit of a frequency is no longer the last bit of an angle. On the CPU
    even where a decoder is made on the meta device, because no checkpoint fills it in later.
    """
    half = config.head_dim // 2
    plain = 1.0 / config.rope_base ** (torch.arange(half, device="cpu") / half)
    return plain if config.rope_scaling is None else _stretched(plain, config.rope_scaling)


def _stretched(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies divided by the factor, fast ones kept, a linear blend between: [d/2]."""
    turns = scaling.original_positions * plain / (2 * torch.pi)  # in the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow, 1: fast
    return (1 - kept) * plain / scaling.factor + kept * plain


def _cascade(
    query: Tensor,
    past: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    past_mask: Tensor,
    own_mask: Tensor,
) -> Tensor:
    """Attend to the shared prefix and to one's own block without copying the prefix per block.

    query[B,K,Q,G,S,d], past[B,K,P,d] twice, own[B,K,Q,L,d] twice -> [B,K,Q,G,S,d].
    """
    shape, (key, value) = query.shape[2:5], own  # Q,G,S
    folded = query.flatten(2, 4)  # [B,K,Q*G*S,d]
    near_query = query.flatten(3, 4)  # [B,K,Q,G*S,d]
    far = (folded @ past[0].transpose(-1, -2)).unflatten(2, shape)  # [B,K,Q,G,S,P]
    near = (near_query @ key.transpose(-1, -2)).unflatten(3, shape[1:])  # [B,K,Q,G,S,L]
    # the prefix last: tokens of it that a block may not see then only lengthen the sum by zeros
    scores = torch.cat(
        (torch.where(own_mask, near, _NEVER), torch.where(past_mask, far, _NEVER)), dim=-1
    )
    weights = scores.softmax(-1)  # [B,K,Q,G,S,L+P]
    near, far = weights.split((key.shape[3], past[0].shape[2]), dim=-1)
    out = (far.flatten(2, 4) @ past[1]).unflatten(2, shape)  # [B,K,Q,G,S,d]
    attended: Tensor = out + (near.flatten(3, 4) @ value).unflatten(3, shape[1:])
    return attended


def _head_norm(config: DecoderConfig) -> nn.Module:
    return nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()


def _layers(layers: nn.ModuleList) -> list[Layer]:
    return [layer for layer in layers if isinstance(layer, Layer)]
