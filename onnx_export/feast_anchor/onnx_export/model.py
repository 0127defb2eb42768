"""The query-conditioned user model: tokens of a history and of questions around one decoder.

The law of this module: a token of the prefix never depends on the question, and a question never
depends on another question. So `prefix` runs once per history, `suffix` answers any number of
questions against its keys and values, and both give what one plain causal forward over
[prefix, one question] gives. `full` is that forward, and the reference for parity.

Letters in shape comments: B histories, T events, M modalities, P = 1 + M + T prefix tokens,
Q questions, L tokens of a question, E text width, D hidden width, K key/value heads, d head width,
F event features, C context features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder import Decoder, DecoderConfig
from .inputs import CONTEXT_FEATURES, EVENT_FEATURES
from .manifest import Dims, SpecialIds


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

    def decoder(self) -> DecoderConfig:
        """The sizes of the decoder inside the model."""
        return DecoderConfig(
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            ff=self.ff,
            rope_base=self.rope_base,
        )

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


class Anchor(nn.Module):
    """The whole model. `modalities` is M; the vocabulary is `special.pad` tokens long."""

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
        self.decoder = Decoder(config.decoder())
        self.head = nn.Sequential(
            nn.Linear(hidden, config.head_hidden),
            nn.ReLU(),
            nn.Linear(config.head_hidden, config.embedding),
        )
        self.token_out = nn.Linear(hidden, text, bias=False)

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
        return self.decoder.prefix(self.prefix_tokens(vectors, features, modality))

    def suffix_tokens(self, ids: Tensor, context: Tensor, prompt: Tensor) -> Tensor:
        """Decoder inputs [B,Q,L,D] of ids int64 [B,Q,L], context[B,Q,C], prompt[R,D]."""
        first = self.special.first_prompt
        words = self.token_in(self.tokens(ids.clamp(max=first - 1)))  # [B,Q,L,D]
        soft = prompt[(ids - first).clamp(min=0)]  # [B,Q,L,D]
        x = torch.where((ids >= first).unsqueeze(-1), soft, words)
        anchor = (ids == self.special.user_emb).unsqueeze(-1).to(x.dtype)  # [B,Q,L,1]
        told: Tensor = anchor * self.context_in(context).unsqueeze(2)
        return x + told

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
        return self.embed(self.decoder.suffix(x, keep, plen, state).squeeze(2))

    def answer(self, ids: Tensor, length: Tensor) -> Tensor:
        """Encode answers without a prefix: ids int64 [A,L], length int64 [A] -> [A,embedding]."""
        x = self.token_in(self.tokens(ids)).unsqueeze(0)  # [1,A,L,D]
        keep = (length - 1).reshape(1, -1, 1)
        plen = torch.zeros_like(length).unsqueeze(0)
        hidden = self.decoder.suffix(x, keep, plen, self.decoder.empty_state())  # [1,A,1,D]
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
        hidden = self.decoder.full(torch.cat((history, block), dim=1))  # [1,P+L,D]
        return self.embed(hidden[0, -1])


def _adapter(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
