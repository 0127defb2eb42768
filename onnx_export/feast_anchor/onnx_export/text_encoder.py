"""Text vectors shared by events, questions and answers, so that similar words meet.

Two kinds behind one interface: our own (the mean of token vectors and a small network, trained with
everything else) and a pretrained sentence encoder read from a local folder (frozen). `raw` is the
part that never changes while training, so it is computed once per distinct text; `vectors` is the
rest. What is exported is `forward`: both, from token ids.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from .sentence import SentenceEncoder

_SCALE = 8.0


class TextEncoder(Protocol):
    """Token ids int64 [N,L], padded on the right -> text vectors [N,E]."""

    pad: int
    vocabulary: int  # ids below it have a vector
    width: int  # E

    def raw(self, ids: Tensor) -> Tensor:
        """What training need not compute again: [N,...]."""

    def vectors(self, raw: Tensor) -> Tensor:
        """Text vectors [N,E] of what `raw` returned."""

    def forward(self, ids: Tensor) -> Tensor:
        """Text vectors [N,E]."""


class OwnTextEncoder(nn.Module):
    """The mean of a text's token vectors and a small network on it. Word order does not count."""

    def __init__(self, vocabulary: int, width: int, pad: int) -> None:
        super().__init__()
        self.pad, self.vocabulary, self.width = pad, vocabulary, width
        self.tokens = nn.Embedding(vocabulary, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def raw(self, ids: Tensor) -> Tensor:
        """The ids themselves: everything else is trained."""
        return ids

    def vectors(self, raw: Tensor) -> Tensor:
        """Ids int64 [N,L] -> [N,E]. A row of padding only is a constant vector."""
        real = (raw != self.pad).unsqueeze(-1).to(torch.float32)  # [N,L,1]
        mean = (self.tokens(raw) * real).sum(1) / real.sum(1).clamp(min=1.0)  # [N,E]
        vector: Tensor = mean + self.mlp(mean)
        return vector

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 [N,L] -> [N,E]."""
        return self.vectors(ids)


class PretrainedTextEncoder(nn.Module):
    """A frozen sentence encoder. What all texts share is taken off: it says nothing."""

    mean: Tensor

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.pad, self.vocabulary = encoder.config.pad, encoder.config.vocabulary
        self.width = encoder.config.hidden
        self.register_buffer("mean", torch.zeros(self.width))

    @torch.no_grad()
    def centre(self, raw: Tensor) -> None:
        """Take the mean of some texts [N,D] as what all texts share."""
        self.mean.copy_(raw.mean(0))

    @torch.no_grad()
    def raw(self, ids: Tensor) -> Tensor:
        """Vectors of the sentence encoder, of length 1: ids int64 [N,L] -> [N,D]."""
        vectors: Tensor = self.encoder(ids)
        return vectors

    def vectors(self, raw: Tensor) -> Tensor:
        """Centred, and scaled so that a coordinate is about as large as others: [N,D] -> [N,D]."""
        return (raw - self.mean) * _SCALE

    def forward(self, ids: Tensor) -> Tensor:
        """Text vectors of ids int64 [N,L]: [N,D]."""
        return self.vectors(self.encoder(ids))
