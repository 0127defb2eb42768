"""Evidence: which events a question is about, and how many, how much, when and how lately.

A small decoder trained from scratch hardly learns to match a question to the events it concerns.
Text vectors shared by questions and events do it at once: cosine similarity says how much an event
is about the question, soft thresholds turn that into weights, and weighted counts and amounts at
several half-lives are numbers that a linear layer can use. An amount is its logarithm
(`inputs.event_features`): ten small purchases weigh more than one of the same money.

The law of this module: what is kept of an event depends neither on the question, nor on the as-of,
nor on any other event. Its day is kept, and how far it has faded is worked out when a question is
asked. So evidence shares the prefix like the KV cache does: one prefix serves every as-of time,
events are appended without touching what is there, and the bits are those of a run of its own.

Letters: B histories, T events (P with the summary tokens before them), Q questions, E text width,
A key width, M modalities, H half-lives, W soft thresholds, V = 6 + M values kept per event,
R = W + M readings: events weighted by relevance, and all events of one modality.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF_LIVES = (7.0, 28.0, 91.0, 10_000.0)  # days; the last one counts everything
FAR = 4.0  # standard deviations; what lies further out is read as this far
THRESHOLDS = 3
_CLOCK = slice(2, 6)  # hour and weekday as sine and cosine, of the event features
_DAY, _AMOUNT, _KEPT_CLOCK, _MEMBER = 0, 1, slice(2, 6), slice(6, None)  # of what is kept
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
        return 6 + modalities

    def keep(
        self, vectors: Tensor, features: Tensor, member: Tensor, days: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the user state keeps of events: keys [B,T,A] of length 1 and values [B,T,V].

        Args:
            vectors: encoded texts [B,T,E].
            features: event features [B,T,F], the amount first.
            member: 1 where an event is of a modality, all 0 at padding [B,T,M].
            days: days from the window's first event to each, or "ageless" [B,T].
        """
        real = member.sum(-1, keepdim=True)  # [B,T,1]
        told = (days.unsqueeze(-1), features[..., :1], features[..., _CLOCK])
        values = torch.cat((*(number * real for number in told), member), dim=-1)
        return F.normalize(self.event_key(vectors), dim=-1, eps=1e-6), values

    @staticmethod
    def newest(values: Tensor) -> Tensor:
        """Membership of the last event of values[B,P,V]: [B,1,M], zeros where there is none."""
        return F.pad(values[..., _MEMBER], (0, 0, 1, 0))[:, -1:]

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
        self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, now: Tensor
    ) -> Tensor:
        """What each question reads: [B,Q,R * (2H + 5)].

        Per reading: log1p of the decayed counts and of the decayed amounts, mean hour and weekday
        as sines and cosines, share of all events.

        Args:
            query: encoded questions [B,Q,E]; zeros ask nothing and find nothing relevant.
            keys, values: what `keep` kept, [B,P,A] and [B,P,V]; zero rows count for nothing.
            seen: 1 for the prefix tokens that this question may see [B,Q,P].
            now: the as-of in days from the window's first event [B,Q].
        """
        asked = (query.abs().amax(-1) > 0).to(query.dtype)[:, :, None, None]  # [B,Q,1,1]
        member = values[..., _MEMBER].transpose(1, 2).unsqueeze(1)  # [B,1,M,P]
        relevant = self.relevance(query, keys) * asked * member.sum(2, keepdim=True)  # [B,Q,W,P]
        weights = torch.cat((relevant, member.expand(-1, relevant.shape[1], -1, -1)), dim=2)
        weights = weights * seen.unsqueeze(2)  # [B,Q,R,P]
        day, amount = values[..., _DAY], values[..., _AMOUNT]  # [B,P]
        age = (now.unsqueeze(-1) - day.unsqueeze(1)).clamp(min=0.0)  # [B,Q,P]
        faded = torch.exp2(-age.unsqueeze(-1) / self.half_lives)  # [B,Q,P,H]
        counts = torch.log1p(weights @ faded)  # [B,Q,R,H]
        amounts = weights @ (faded * amount[:, None, :, None])
        amounts = torch.log1p(amounts.clamp(min=0.0))
        plain = torch.cat((values[..., _KEPT_CLOCK], values[..., _MEMBER]), dim=-1)  # [B,P,4+M]
        sums = (weights.flatten(1, 2) @ plain).unflatten(1, weights.shape[1:3])  # [B,Q,R,4+M]
        number = sums[..., 4:].sum(-1, keepdim=True)  # [B,Q,R,1]
        clock = sums[..., :4] / (number + 1.0)
        total = number[:, :, THRESHOLDS:].sum(2, keepdim=True)  # [B,Q,1,1]
        share = number / (total + 1.0)
        return torch.cat((counts, amounts, clock, share), dim=-1).flatten(2)

    def summary(self, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """What a user's events are about: the mean key of each modality, flat [B,Q,M*A].

        Arguments as of `read`; a modality without events is zeros.
        """
        member = values[..., _MEMBER].transpose(1, 2).unsqueeze(1) * seen.unsqueeze(2)  # [B,Q,M,P]
        sums = (member.flatten(1, 2) @ keys).unflatten(1, member.shape[1:3])  # [B,Q,M,A]
        means: Tensor = sums / member.sum(-1, keepdim=True).clamp(min=1.0)
        return means.flatten(2)


class Standardise(nn.Module):
    """Numbers in standard deviations from their mean, each for itself, at most `FAR` of them.

    Mean and spread are those of training's questions, measured once before training (`measure`);
    they are constants of the graph. A layer norm would take each row's own: then a number that is
    out of line, as with words never trained on, moves how all the others are read.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.gain = nn.Parameter(torch.full((width,), 0.5))
        self.bias = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def measure(self, numbers: Tensor) -> None:
        """Take mean and spread from examples [N,X]; what never changes there keeps its scale."""
        spread, self.mean = torch.std_mean(numbers, dim=0, correction=0)
        self.spread = torch.where(spread > 1e-3, spread, 1.0)

    def forward(self, numbers: Tensor) -> Tensor:
        """numbers[...,X] -> [...,X]."""
        deviations = ((numbers - self.mean) / self.spread).clamp(-FAR, FAR)
        return self.gain * deviations + self.bias
