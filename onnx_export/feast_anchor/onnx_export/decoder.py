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
        """x[B,N,D], cos and sin[B,N,d/2] -> keys, rotated, and values: two [B,K,N,d]."""
        c = self.config
        both = self.key_value(self.attention_norm(x)).chunk(2, dim=-1)  # [B,N,K*d] each
        key, value = (one.unflatten(-1, (c.kv_heads, c.head_dim)) for one in both)  # [B,N,K,d]
        return rotate(self.key_norm(key), cos, sin).transpose(1, 2), value.transpose(1, 2)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x[B,N,D], cos and sin[B,N,d/2] -> queries, rotated: [B,K,G,N,d]."""
        c = self.config
        query = self.query(self.attention_norm(x)).unflatten(-1, (c.heads, c.head_dim))
        query = rotate(self.query_norm(query), cos, sin).transpose(1, 2)  # [B,H,N,d]
        grouped: Tensor = query.unflatten(1, (c.kv_heads, c.heads // c.kv_heads))
        return grouped

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x[B,N,D], attended[B,K,G,N,d] -> [B,N,D]."""
        x = x + self.out(attended.flatten(1, 2).transpose(1, 2).flatten(2))  # [B,N,H*d]
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
        cos, sin = self.angles(at.expand(x.shape[0], -1))  # [B,P,d/2]
        every = torch.arange(start + x.shape[1], device=x.device)  # N = past and P tokens
        mask = _mask(every.unsqueeze(0) <= at.unsqueeze(1))  # [P,N]
        state: list[Tensor] = []
        for index, layer in enumerate(_layers(self.layers)):
            key, value = layer.keys_values(x, cos, sin)
            if past:
                key = torch.cat((past[2 * index], key), dim=2)  # [B,K,N,d]
                value = torch.cat((past[2 * index + 1], value), dim=2)
            state += [key, value]
            if index + 1 < self.config.layers:  # nobody reads the last layer's own output
                query = layer.queries(x, cos, sin)  # [B,K,G,P,d]
                scores = self._scores(query.flatten(2, 3), key)  # [B,K,G*P,N]
                scores = scores.unflatten(2, query.shape[2:4]) + mask  # [B,K,G,P,N]
                weights = scores.softmax(-1).flatten(2, 3)
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
        blocks, length = x.shape[1:3]  # Q,L
        at = torch.arange(length, device=x.device)  # [L]
        rows = at.expand(x.shape[0], blocks, -1)  # [B,Q,L]
        mask, cos, sin = self._block_mask(rows, at, plen, state[0]), *self._block_angles(plen, rows)
        x = x.flatten(1, 2)  # [B,Q*L,D]
        for index, layer in enumerate(_layers(self.layers)):
            both = layer.keys_values(x, cos, sin)  # [B,K,Q*L,d]
            key, value = (one.unflatten(2, (1, blocks, length)) for one in both)  # [B,K,1,Q,L,d]
            if index + 1 == self.config.layers:
                x = x.unflatten(1, (blocks, length))
                x = x.gather(2, keep.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))  # [B,Q,S,D]
                x, rows, plen = (first_again(one) for one in (x, keep, plen))  # Q + 1 from here
                key, value = first_again(key, 3), first_again(value, 3)
                cos, sin = self._block_angles(plen, rows)
                mask = self._block_mask(rows, at, plen, state[0])
                x = x.flatten(1, 2)  # [B,(Q+1)*S,D]
            query = layer.queries(x, cos, sin)  # [B,K,G,Q*L,d]
            past = (state[2 * index], state[2 * index + 1])
            x = layer.finish(x, self._cascade(query, past, (key, value), mask))
        hidden: Tensor = self.final_norm(x).unflatten(1, (-1, keep.shape[2]))
        return hidden[:, :-1]

    def empty_state(self) -> tuple[Tensor, ...]:
        """The state of no prefix, for one history and plen = 0: each [1,K,1,d].

        One slot that nobody sees: ONNX Runtime cannot reshape a prefix of no rows.
        """
        c = self.config
        return (self.frequencies.new_zeros(1, c.kv_heads, 1, c.head_dim),) * (2 * c.layers)

    def full(self, x: Tensor) -> Tensor:
        """One causal forward without padding: x[B,N,D] -> [B,N,D] after the final norm."""
        cos, sin = self.angles(torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1))
        for layer in _layers(self.layers):
            key, value = layer.keys_values(x, cos, sin)  # [B,K,N,d]
            query = layer.queries(x, cos, sin).flatten(1, 2)  # [B,H,N,d]
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            x = layer.finish(x, attended.unflatten(1, (self.config.kv_heads, -1)))
        hidden: Tensor = self.final_norm(x)
        return hidden

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of rotary positions: int64 [...] -> two [..., d/2]."""
        angle = positions.unsqueeze(-1).to(torch.float32) * self.frequencies
        return angle.cos(), angle.sin()

    def _block_angles(self, plen: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows[B,Q,S] of blocks behind plen[B,Q] tokens: two [B,Q*S,d/2]."""
        return self.angles((plen.unsqueeze(-1) + rows).flatten(1))

    def _block_mask(self, rows: Tensor, at: Tensor, plen: Tensor, keys: Tensor) -> Tensor:
        """What rows[B,Q,S] see of their block's tokens at[L], then of keys[B,K,P,d].

        [B,1,1,Q,S,L+P]
        """
        every = torch.arange(keys.shape[2], device=keys.device)
        seen = (every < plen.unsqueeze(-1)).unsqueeze(2)  # [B,Q,1,P]
        own = at <= rows.unsqueeze(-1)  # [B,Q,S,L]
        seen = seen.expand(-1, -1, rows.shape[2], -1)
        return _mask(torch.cat((own, seen), dim=-1))[:, None, None]

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """query[...,N,d], key[...,P,d] -> [...,N,P]."""
        scores: Tensor = query * self.config.head_dim**-0.5 @ key.transpose(-1, -2)
        return scores

    def _cascade(
        self,
        query: Tensor,
        past: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        mask: Tensor,
    ) -> Tensor:
        """Attend to the shared prefix and to one's own block without copying the prefix per block.

        query[B,K,G,Q*S,d], past[B,K,P,d] twice, own[B,K,1,Q,L,d] twice, mask[B,1,1,Q,S,L+P] ->
        [B,K,G,Q*S,d].
        """
        key, value = own
        shape = (query.shape[2], *mask.shape[3:5])  # G,Q,S
        near = self._scores(query.unflatten(3, mask.shape[3:5]), key)  # [B,K,G,Q,S,L]
        far = self._scores(query.flatten(2, 3), past[0]).unflatten(2, shape)  # [B,K,G,Q,S,P]
        # the prefix last: tokens of it that a block may not see then only lengthen the sum by zeros
        weights = (torch.cat((near, far), dim=-1) + mask).softmax(-1)
        near, far = weights.split((key.shape[4], past[0].shape[2]), dim=-1)
        seen = (far.flatten(2, 4) @ past[1]).unflatten(2, query.shape[2:4])  # [B,K,G,Q*S,d]
        attended: Tensor = seen + (near @ value).flatten(3, 4)
        return attended


def first_again(blocks: Tensor, dim: int = 1) -> Tensor:
    """Blocks and the first of them once more, along their own axis."""
    return torch.cat((blocks, blocks.narrow(dim, 0, 1)), dim)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn the pairs (x[i], x[i + d/2]) of every head by their angles.

    x[B,N,H,d], cos and sin[B,N,d/2] -> [B,N,H,d]. In an exported graph it is one operator.
    """
    if torch.onnx.is_in_onnx_export():
        flat = torch.onnx.ops.rotary_embedding(x.flatten(2), cos, sin, num_heads=x.shape[2])
        turned: Tensor = flat.unflatten(2, x.shape[2:])
        return turned
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _mask(seen: Tensor) -> Tensor:
    """What to add to scores: 0 where seen, else so little that its weight is exactly 0."""
    return torch.where(seen, 0.0, _NEVER)


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


def _head_norm(config: DecoderConfig) -> nn.Module:
    return nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()


def _layers(layers: nn.ModuleList) -> list[Layer]:
    return [layer for layer in layers if isinstance(layer, Layer)]
