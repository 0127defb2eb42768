"""The user states that prompt tuning reads again and again: each prefix is computed once.

The rule: a state depends on a reading alone, never on a question or on its neighbours; padding
stands on the right, and readers skip it by `plen`.

Letters in shape comments: N readings, T events, P prefix tokens, E text width, F event features,
C context features, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .inputs import EVENT_FEATURES, Floats, Ints
from .model import Anchor

_ROWS = 64  # readings per run of the prefix: bounds its memory


@dataclass(frozen=True)
class Reading:
    """What the graphs read of one user at one as-of time; float32, modality int64."""

    user: str
    texts: tuple[str, ...]  # T, as the text encoder is given them
    vectors: Floats  # [T, E]
    features: Floats  # [T, F]
    modality: Ints  # [T]
    days: Floats  # [T]
    now: np.float32
    context: Floats  # [C]


@dataclass(frozen=True)
class States:
    """The user states of N readings, padded to the longest."""

    users: tuple[str, ...]
    lead: int  # prefix tokens before the first event
    plen: Tensor  # int64 [N] events
    now: Tensor  # [N]
    context: Tensor  # [N, C]
    state: tuple[Tensor, ...]  # the decoder's [N, K, P, d]; with evidence, [N, P, ...]

    def take(self, rows: Tensor) -> States:
        """Some rows, cut to the longest of them."""
        plen = self.plen[rows]
        width = self.lead + int(plen.max())
        users = tuple(self.users[row] for row in rows.tolist())
        state = tuple(x[rows].narrow(-2, 0, width) for x in self.state)
        return States(users, self.lead, plen, self.now[rows], self.context[rows], state)


@torch.no_grad()
def user_states(model: Anchor, readings: Sequence[Reading]) -> States:
    """The prefix of every reading, each computed once."""
    lengths = np.array([len(reading.modality) for reading in readings])
    longest = model.lead + int(lengths.max())
    out: list[Tensor] = []
    for rows in np.array_split(np.argsort(lengths, kind="stable"), -(-len(readings) // _ROWS)):
        found = model.prefix(*_padded([readings[row] for row in rows], model.config.text))
        out = out or [x.new_zeros(_shape(x, len(readings), longest)) for x in found]
        for whole, part in zip(out, found, strict=True):
            whole.narrow(-2, 0, part.shape[-2])[torch.from_numpy(rows)] = part
    return States(
        users=tuple(reading.user for reading in readings),
        lead=model.lead,
        plen=torch.from_numpy(lengths),
        now=torch.tensor([float(reading.now) for reading in readings]),
        context=torch.from_numpy(np.stack([reading.context for reading in readings])),
        state=tuple(out),
    )


def _padded(readings: Sequence[Reading], text: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of the prefix, padded on the right: [B,T,E], [B,T,F], [B,T], [B,T]."""
    shape = len(readings), max(len(reading.modality) for reading in readings)
    vectors, days = torch.zeros(*shape, text), torch.zeros(shape)
    features = torch.zeros(*shape, len(EVENT_FEATURES))
    modality = torch.full(shape, -1)
    for row, reading in enumerate(readings):
        end = len(reading.modality)
        vectors[row, :end] = torch.from_numpy(reading.vectors)
        features[row, :end] = torch.from_numpy(reading.features)
        modality[row, :end] = torch.from_numpy(reading.modality)
        days[row, :end] = torch.from_numpy(reading.days)
    return vectors, features, modality, days


def _shape(part: Tensor, rows: int, longest: int) -> tuple[int, ...]:
    """Shape of all rows' state, from that of some."""
    return (rows, *part.shape[1:-2], longest, part.shape[-1])
