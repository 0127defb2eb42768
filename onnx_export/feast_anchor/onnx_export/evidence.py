"""Evidence: which events a question is about, and how many, how much, when and how lately.

A small decoder trained from scratch hardly learns to match a question to the events it concerns.
Text vectors shared by questions and events do it at once: cosine similarity says how much an event
is about the question, soft thresholds turn that into weights, and weighted counts and amounts at
several half-lives are numbers that a linear layer can use.

The law of this module: what is kept of an event depends neither on the question nor on the as-of.
Decay factorises, 2^(-(days to newest + days since newest) / h): the first factor is kept in the
user state, the second is applied when a question is asked. So evidence shares the prefix like the
KV cache does, and costs one matrix product per question.

Letters: B histories, T events (P with the summary tokens before them), Q questions, E text width,
A key width, M modalities, H half-lives, W soft thresholds, V = 2H + 4 + M values kept per event,
R = W + M readings: events weighted by relevance, and all events of one modality.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF_LIVES = (7.0, 28.0, 91.0, 10_000.0)  # days; the last one counts everything
THRESHOLDS = 3
_CLOCK = slice(2, 6)  # hour and weekday as sine and cosine, of the event features
_PER_READING = 2 * len(HALF_LIVES) + 4 + 1


class Evidence(nn.Module):
    """Keys and values of events, and what a question reads from them."""

    half_lives: Tensor

    def __init__(self, text: int, key: int, modalities: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.event_key = nn.Linear(text, key, bias=False)
        self.query_key = nn.Linear(text, key, bias=False)
        self.start_from(torch.eye(text))
        self.scale = nn.Parameter(torch.linspace(8.0, 16.0, THRESHOLDS))
        self.threshold = nn.Parameter(torch.linspace(0.2, 0.5, THRESHOLDS))
        self.own_threshold = nn.Linear(key, THRESHOLDS, bias=False)  # some words are broader
        nn.init.zeros_(self.own_threshold.weight)
        self.register_buffer("half_lives", torch.tensor(HALF_LIVES), persistent=False)

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Let both keys start as the leading principal axes of some text vectors [N,E].

        So that similar texts have similar keys before anything is learned.
        """
        axes = torch.linalg.svd(vectors, full_matrices=False).Vh
        rows = min(len(self.event_key.weight), len(axes))
        for layer in (self.event_key, self.query_key):
            layer.weight.zero_()[:rows] = axes[:rows]

    @staticmethod
    def width(modalities: int) -> int:
        """Numbers that one question reads."""
        return (THRESHOLDS + modalities) * _PER_READING

    @staticmethod
    def values(modalities: int) -> int:
        """V: numbers kept per event."""
        return 2 * len(HALF_LIVES) + 4 + modalities

    def keep(
        self, vectors: Tensor, features: Tensor, member: Tensor, days: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the user state keeps of events: keys [B,T,A] of length 1 and values [B,T,V].

        Args:
            vectors: encoded texts [B,T,E].
            features: event features [B,T,F], the amount first.
            member: 1 where an event is of a modality, all 0 at padding [B,T,M].
            days: days from the event to the newest one, not negative [B,T].
        """
        real = member.sum(-1, keepdim=True)  # [B,T,1]
        decayed = torch.exp2(-days.unsqueeze(-1) / self.half_lives) * real  # [B,T,H]
        clock = features[..., _CLOCK] * real
        values = torch.cat((decayed, decayed * features[..., :1], clock, member), dim=-1)
        return F.normalize(self.event_key(vectors), dim=-1, eps=1e-6), values

    def similarity(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine of questions [B,Q,E] and kept keys [B,P,A]: [B,Q,P]; and the question's key."""
        key = F.normalize(self.query_key(query), dim=-1, eps=1e-6)
        return key @ keys.transpose(1, 2), key

    def relevance(self, query: Tensor, keys: Tensor) -> Tensor:
        """How much each event is about each question, by every soft threshold: [B,Q,W,P]."""
        similarity, key = self.similarity(query, keys)
        limit = self.threshold + self.own_threshold(key)  # [B,Q,W]
        scaled = self.scale.unsqueeze(-1) * (similarity.unsqueeze(2) - limit.unsqueeze(-1))
        return torch.sigmoid(scaled)

    def read(
        self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, elapsed: Tensor
    ) -> Tensor:
        """What each question reads: [B,Q,R * (2H + 5)].

        Per reading: log1p of the decayed counts and of the decayed amounts, mean hour and weekday
        as sines and cosines, share of all events.

        Args:
            query: encoded questions [B,Q,E]; zeros ask nothing and find nothing relevant.
            keys, values: what `keep` kept, [B,P,A] and [B,P,V]; zero rows count for nothing.
            seen: 1 for the prefix tokens that this question may see [B,Q,P].
            elapsed: days from the newest event to the as-of [B,Q].
        """
        asked = (query.abs().amax(-1) > 0).to(query.dtype)[:, :, None, None]  # [B,Q,1,1]
        member = values[..., -self.modalities :].transpose(1, 2).unsqueeze(1)  # [B,1,M,P]
        relevant = self.relevance(query, keys) * asked  # [B,Q,W,P]
        weights = torch.cat((relevant, member.expand(-1, relevant.shape[1], -1, -1)), dim=2)
        weights = (weights * seen.unsqueeze(2)).flatten(1, 2)  # [B,Q*R,P]
        sums = (weights @ values).unflatten(1, (-1, THRESHOLDS + self.modalities))  # [B,Q,R,V]
        half = len(HALF_LIVES)
        decay = torch.exp2(-elapsed.unsqueeze(-1) / self.half_lives).unsqueeze(2)  # [B,Q,1,H]
        number = sums[..., -self.modalities :].sum(-1, keepdim=True)  # [B,Q,R,1]
        counts = torch.log1p(sums[..., :half] * decay)
        amounts = torch.log1p((sums[..., half : 2 * half] * decay).clamp(min=0.0))
        clock = sums[..., 2 * half : 2 * half + 4] / (number + 1.0)
        total = number[:, :, THRESHOLDS:].sum(2, keepdim=True)  # [B,Q,1,1]
        share = number / (total + 1.0)
        return torch.cat((counts, amounts, clock, share), dim=-1).flatten(2)
