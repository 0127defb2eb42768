"""The query-conditioned user model: one small causal decoder behind three entry points.

The law of this module: a token of the prefix never depends on the question, and a question never
depends on another question. So `prefix` runs once per history, `suffix` answers any number of
questions against its keys and values, and both give what one plain causal forward over
[prefix, one question] gives. `full` is that forward: slow, plain, and the reference for parity.

Letters in shape comments: B histories, T events, M modalities, P = 1 + M + T prefix tokens,
Q questions, L tokens of a question, S rows kept of the last layer, E text width, D hidden width,
H heads, K key/value heads, G = H / K, d head width, F event features, C context features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inputs import CONTEXT_FEATURES, EVENT_FEATURES
from .manifest import Dims, SpecialIds

_NEVER = -1e9  # a masked score: exp of it is exactly 0, and a row of nothing else is not NaN


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model, in numbers of floats, layers and heads."""

    text: int = 64  # E: width of the token table and of one encoded event text
    hidden: int = 64  # D: width of the decoder
    layers: int = 2  # decoder layers
    heads: int = 4  # query heads; hidden must be a multiple
    kv_heads: int = 2  # key/value heads; heads must be a multiple
    ff: int = 192  # inner width of SwiGLU
    head_hidden: int = 512  # inner width of the embedding head
    embedding: int = 128  # width of the vector that is served
    rope_base: float = 10_000.0  # slowest rotation: one turn in about 6 * rope_base tokens

    @property
    def head_dim(self) -> int:
        """d: width of one head."""
        return self.hidden // self.heads

    def dims(self) -> Dims:
        """The sizes that readers of a bundle need."""
        return Dims(
            text=self.text,
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            embedding=self.embedding,
        )


class Layer(nn.Module):
    """One decoder layer: grouped-query attention and SwiGLU, each behind an RMS norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.hidden, config.kv_heads * config.head_dim
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * kv_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.gate_up = nn.Linear(width, 2 * config.ff, bias=False)
        self.down = nn.Linear(config.ff, width, bias=False)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x[..., N, D], cos and sin broadcastable to [..., K, N, d/2] -> two [..., K, N, d]."""
        both = self.key_value(self.attention_norm(x))
        both = both.unflatten(-1, (2, self.config.kv_heads, self.config.head_dim))  # [..,N,2,K,d]
        key, value = both.movedim(-4, -2).unbind(-4)  # [..,2,K,N,d] -> [..,K,N,d] each
        return rotate(key, cos, sin), value

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x[..., N, D], cos and sin broadcastable to [..., K, G, N, d/2] -> [..., K, G, N, d]."""
        c = self.config
        query = self.query(self.attention_norm(x)) * c.head_dim**-0.5
        query = query.unflatten(-1, (c.kv_heads, c.heads // c.kv_heads, c.head_dim))  # [..,N,K,G,d]
        return rotate(query.movedim(-4, -2), cos, sin)  # [..,K,G,N,d]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x[..., N, D], attended[..., K, G, N, d] -> [..., N, D]."""
        x = x + self.out(attended.movedim(-2, -4).flatten(-3))  # [..,N,K,G,d] -> [..,N,D]
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


class Anchor(nn.Module):
    """The whole model. `modalities` is M; the vocabulary is `special.pad` tokens long."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig, special: SpecialIds, modalities: int) -> None:
        super().__init__()
        if config.hidden % (2 * config.heads) or config.heads % config.kv_heads:
            raise ValueError(
                f"hidden={config.hidden}, heads={config.heads}, kv_heads={config.kv_heads}: "
                "expected an even hidden / heads and a whole heads / kv_heads"
            )
        self.config, self.special, self.modalities = config, special, modalities
        text, hidden = config.text, config.hidden
        self.tokens = nn.Embedding(special.first_prompt, text)
        self.text_mlp = _adapter(text, text)
        self.token_in = nn.Linear(text, hidden, bias=False)
        self.event_in = _adapter(text, hidden)
        self.event_numbers = nn.Linear(len(EVENT_FEATURES), hidden, bias=False)
        self.modal_in = _adapter(text, hidden)
        self.modal_numbers = nn.Linear(len(EVENT_FEATURES) + 1, hidden, bias=False)
        self.user_in = _adapter(text, hidden)
        self.context_in = nn.Linear(len(CONTEXT_FEATURES), hidden)
        self.event_kind = nn.Parameter(0.1 * torch.randn(modalities, hidden))
        self.modal_kind = nn.Parameter(0.1 * torch.randn(modalities, hidden))
        self.absent = nn.Parameter(0.1 * torch.randn(modalities, hidden))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.head = nn.Sequential(
            nn.Linear(hidden, config.head_hidden),
            nn.ReLU(),
            nn.Linear(config.head_hidden, config.embedding),
        )
        self.token_out = nn.Linear(hidden, text, bias=False)
        half = config.head_dim // 2
        self.register_buffer("frequencies", config.rope_base ** -(torch.arange(half) / half))

    def event(self, ids: Tensor) -> Tensor:
        """Encode texts: ids int64 [N, L] -> [N, E]. A row of padding only is a constant vector."""
        real = (ids != self.special.pad).unsqueeze(-1).to(torch.float32)  # [N,L,1]
        mean = (self.tokens(ids) * real).sum(1) / real.sum(1).clamp(min=1.0)  # [N,E]
        vector: Tensor = mean + self.text_mlp(mean)
        return vector

    def prefix_tokens(self, vectors: Tensor, features: Tensor, modality: Tensor) -> Tensor:
        """vectors[B,T,E], features[B,T,F], modality int64 [B,T] -> decoder inputs [B,P,D]."""
        kinds = torch.arange(self.modalities, device=modality.device)
        member = (modality.unsqueeze(-1) == kinds).to(torch.float32)  # [B,T,M]
        events = self.event_in(vectors) + self.event_numbers(features) + member @ self.event_kind
        count = member.sum(1).unsqueeze(-1)  # [B,M,1]
        per_event = member.transpose(1, 2)  # [B,M,T]
        mean = per_event @ vectors / count.clamp(min=1.0)  # [B,M,E]
        numbers = per_event @ features / count.clamp(min=1.0)  # [B,M,F]
        numbers = torch.cat((numbers, torch.log1p(count)), dim=-1)  # [B,M,F+1]
        modal = self.modal_in(mean) + self.modal_numbers(numbers) + self.modal_kind
        modal = torch.where(count > 0, modal, self.absent)  # [B,M,D]
        present = (count > 0).to(torch.float32)  # [B,M,1]
        user = (mean * present).sum(1) / present.sum(1).clamp(min=1.0)  # [B,E]
        return torch.cat((self.user_in(user).unsqueeze(1), modal, events), dim=1)  # [B,1+M+T,D]

    def prefix(self, vectors: Tensor, features: Tensor, modality: Tensor) -> tuple[Tensor, ...]:
        """The user state: (k_0, v_0, k_1, ...), each [B,K,P,d]; k is already rotated.

        Events are padded on the right with modality -1, so causality alone keeps padding out of
        every real token; readers of the state skip it by `plen`.
        """
        x = self.prefix_tokens(vectors, features, modality)
        at = torch.arange(x.shape[1], device=x.device)
        cos, sin = self._angles(at)  # [P,d/2]
        causal = at.unsqueeze(0) <= at.unsqueeze(1)  # [P,P]
        state: list[Tensor] = []
        for index, layer in enumerate(_layers(self.layers)):
            key, value = layer.keys_values(x, cos, sin)
            state += [key, value]
            if index + 1 < self.config.layers:  # nobody reads the last layer's own output
                query = layer.queries(x, cos, sin)  # [B,K,G,P,d]
                folded = query.flatten(2, 3)  # [B,K,G*P,d]
                scores = folded @ key.transpose(-1, -2)  # [B,K,G*P,P]
                scores = scores.unflatten(2, (-1, x.shape[1]))  # [B,K,G,P,P]
                weights = torch.where(causal, scores, _NEVER).softmax(-1).flatten(2, 3)
                x = layer.finish(x, (weights @ value).unflatten(2, (-1, x.shape[1])))
        return tuple(state)

    def suffix_tokens(self, ids: Tensor, context: Tensor, prompt: Tensor) -> Tensor:
        """Decoder inputs [B,Q,L,D] of ids int64 [B,Q,L], context[B,Q,C], prompt[R,D]."""
        first = self.special.first_prompt
        words = self.token_in(self.tokens(ids.clamp(max=first - 1)))  # [B,Q,L,D]
        soft = prompt[(ids - first).clamp(min=0)]  # [B,Q,L,D]
        x = torch.where((ids >= first).unsqueeze(-1), soft, words)
        anchor = (ids == self.special.user_emb).unsqueeze(-1).to(x.dtype)  # [B,Q,L,1]
        told: Tensor = anchor * self.context_in(context).unsqueeze(2)
        return x + told

    def suffix_hidden(
        self, x: Tensor, keep: Tensor, plen: Tensor, state: Sequence[Tensor]
    ) -> Tensor:
        """Run question blocks behind the shared prefix.

        Each row sees the first `plen` prefix tokens and the rows of its own block up to itself,
        so padding on the right of a block needs no mask of its own.

        Args:
            x: decoder inputs [B,Q,L,D].
            keep: rows of the last layer to compute, int64 [B,Q,S].
            plen: real prefix tokens of each question's history, int64 [B,Q].
            state: what `prefix` returned.

        Returns:
            Hidden states [B,Q,S,D] after the final norm.
        """
        at = torch.arange(x.shape[2], device=x.device)  # [L]
        cos, sin = self._angles(plen.unsqueeze(-1) + at)  # [B,Q,L,d/2]
        prefix_at = torch.arange(state[0].shape[2], device=x.device)
        seen = (prefix_at < plen.unsqueeze(-1))[:, None, :, None, None, :]  # [B,1,Q,1,1,P]
        rows = at.expand(x.shape[0], x.shape[1], -1)  # [B,Q,L]
        for index, layer in enumerate(_layers(self.layers)):
            key, value = layer.keys_values(x, cos.unsqueeze(2), sin.unsqueeze(2))  # [B,Q,K,L,d]
            if index + 1 == self.config.layers:
                rows = keep
                x = x.gather(2, keep.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))  # [B,Q,S,D]
                cos, sin = self._angles(plen.unsqueeze(-1) + keep)  # [B,Q,S,d/2]
            query = layer.queries(x, cos[:, :, None, None], sin[:, :, None, None])
            past = (state[2 * index], state[2 * index + 1])
            own = (at <= rows.unsqueeze(-1))[:, None, :, None]  # [B,1,Q,1,S,L]
            x = layer.finish(x, _cascade(query, past, (key, value), seen, own))
        hidden: Tensor = self.final_norm(x)
        return hidden

    def suffix(
        self,
        ids: Tensor,
        qlen: Tensor,
        plen: Tensor,
        context: Tensor,
        prompt: Tensor,
        state: Sequence[Tensor],
    ) -> Tensor:
        """Embeddings [B,Q,embedding], each of length 1; shapes as in `bundle`."""
        keep = (qlen - 1).clamp(min=0).unsqueeze(-1)  # [B,Q,1]: where <USER_EMB> stands
        x = self.suffix_tokens(ids, context, prompt)
        return self.embed(self.suffix_hidden(x, keep, plen, state).squeeze(2))

    def answer(self, ids: Tensor, length: Tensor) -> Tensor:
        """Encode answers without a prefix: ids int64 [A,L], length int64 [A] -> [A,embedding]."""
        c = self.config
        # One slot that plen = 0 hides: ONNX Runtime cannot reshape a prefix of no rows.
        nothing = self.frequencies.new_zeros(1, c.kv_heads, 1, c.head_dim)
        x = self.token_in(self.tokens(ids)).unsqueeze(0)  # [1,A,L,D]
        keep = (length - 1).reshape(1, -1, 1)
        plen = torch.zeros_like(length).unsqueeze(0)
        hidden = self.suffix_hidden(x, keep, plen, [nothing] * (2 * c.layers))  # [1,A,1,D]
        return self.embed(hidden[0, :, 0])

    def embed(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., embedding] of length 1."""
        return F.normalize(self.head(hidden), dim=-1, eps=1e-12)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [..., first_prompt] of hidden states [..., D]."""
        return F.linear(self.token_out(hidden), self.tokens.weight)

    def full(
        self,
        vectors: Tensor,
        features: Tensor,
        modality: Tensor,
        ids: Tensor,
        context: Tensor,
        prompt: Tensor,
    ) -> Tensor:
        """One history, one question, nothing padded, one causal forward: [embedding].

        vectors[T,E], features[T,F], modality[T], ids[L], context[C], prompt[R,D].
        """
        history = self.prefix_tokens(vectors[None], features[None], modality[None])  # [1,P,D]
        block = self.suffix_tokens(ids[None, None], context[None, None], prompt)[0]  # [1,L,D]
        x = torch.cat((history, block), dim=1)
        cos, sin = self._angles(torch.arange(x.shape[1]))
        for layer in _layers(self.layers):
            key, value = layer.keys_values(x, cos, sin)  # [1,K,N,d]
            query = layer.queries(x, cos, sin).flatten(1, 2)  # [1,H,N,d]
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=1.0, enable_gqa=True
            )
            x = layer.finish(x, attended.unflatten(1, (self.config.kv_heads, -1)))
        return self.embed(self.final_norm(x[0, -1]))

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions.unsqueeze(-1).to(torch.float32) * self.frequencies
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn the pair (x[i], x[i + d/2]) by its angle; x[..., d]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _cascade(
    query: Tensor,
    past: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    past_mask: Tensor,
    own_mask: Tensor,
) -> Tensor:
    """Attend to the shared prefix and to one's own block without copying the prefix per question.

    query[B,Q,K,G,S,d], past[B,K,P,d] twice, own[B,Q,K,L,d] twice -> [B,Q,K,G,S,d].
    """
    by_head = query.transpose(1, 2)  # [B,K,Q,G,S,d]
    shape = by_head.shape[2:5]  # Q,G,S
    folded = by_head.flatten(2, 4)  # [B,K,Q*G*S,d]
    near_query = by_head.flatten(3, 4)  # [B,K,Q,G*S,d]
    key, value = (side.transpose(1, 2) for side in own)  # [B,K,Q,L,d]
    far = (folded @ past[0].transpose(-1, -2)).unflatten(2, shape)  # [B,K,Q,G,S,P]
    near = (near_query @ key.transpose(-1, -2)).unflatten(3, shape[1:])  # [B,K,Q,G,S,L]
    scores = torch.cat(
        (torch.where(past_mask, far, _NEVER), torch.where(own_mask, near, _NEVER)), dim=-1
    )
    weights = scores.softmax(-1)  # [B,K,Q,G,S,P+L]
    far, near = weights.split((past[0].shape[2], key.shape[3]), dim=-1)
    out = (far.flatten(2, 4) @ past[1]).unflatten(2, shape)  # [B,K,Q,G,S,d]
    out = out + (near.flatten(3, 4) @ value).unflatten(3, shape[1:])
    attended: Tensor = out.transpose(1, 2)  # [B,Q,K,G,S,d]
    return attended


def _adapter(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def _layers(layers: nn.ModuleList) -> list[Layer]:
    return [layer for layer in layers if isinstance(layer, Layer)]
