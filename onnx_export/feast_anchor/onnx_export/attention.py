"""Which events a question attends to: what `<USER_EMB>` weighs in one reading, event by event.

A question meets events in two places, and both are read here from the torch model: the attention
of the decoder's last token, and the relevance that the evidence gives each event. Neither is an
explanation of a vector; they show what a question looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder, Layer
from .inputs import Floats, Ints
from .model import Anchor
from .states import Reading


@dataclass(frozen=True)
class Asked:
    """One question as the suffix reads it."""

    ids: Ints  # [L], ending in <USER_EMB>
    vector: Floats  # [E]


@dataclass(frozen=True)
class Attended:
    """What one question made of T events."""

    attention: Floats  # [T] mean over layers and heads; 1 is what a question without taste gives
    relevance: Floats | None  # [T] 0 to 1, mean over the soft thresholds; None without evidence


@torch.no_grad()
def attended(model: Anchor, reading: Reading, asked: Sequence[Asked]) -> list[Attended]:
    """Each question over one reading, one plain causal forward each."""
    vectors, features, modality, days = (
        torch.from_numpy(array)
        for array in (reading.vectors, reading.features, reading.modality, reading.days)
    )
    member = (modality.unsqueeze(-1) == torch.arange(model.modalities)).to(torch.float32)
    history = model.prefix_tokens(vectors[None], features[None], member[None])  # [1,P,D]
    kept: tuple[Tensor, ...] = ()
    if model.evidence is not None:
        rows = model.evidence.keep(vectors[None], features[None], member[None], days[None])
        kept = tuple(F.pad(one, (0, 0, model.lead, 0)) for one in rows)
    plen, now = torch.tensor([[len(modality)]]), torch.tensor([[float(reading.now)]])
    context = torch.from_numpy(reading.context)[None, None]
    prompt = torch.zeros(1, model.config.hidden)
    out = []
    for one in asked:
        query = torch.from_numpy(one.vector)[None, None]  # [1,1,E]
        found, summary = model.find_evidence(plen, now, query, kept)
        ids = torch.from_numpy(one.ids)[None, None]
        block = model.suffix_tokens(ids, context, query, found, summary, prompt)[0]  # [1,L,D]
        weights = _last_row(model.decoder, torch.cat((history, block), dim=1))
        events = weights[model.lead : model.lead + len(modality)]
        relevance = None
        if model.evidence is not None:
            relevance = model.evidence.relevance(query, kept[0])[0, 0, :, model.lead :].mean(0)
        lift = (events / events.mean()).numpy()
        out.append(Attended(lift, None if relevance is None else relevance.numpy()))
    return out


def _last_row(decoder: Decoder, x: Tensor) -> Tensor:
    """What the last token of x[1,N,D] attends to, the mean over layers and heads: [N]."""
    cos, sin = decoder.angles(torch.arange(x.shape[1])[None])
    weights = []
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        key, value = layer.keys_values(x, cos, sin)  # [1,K,N,d]
        query = layer.queries(x, cos, sin)  # [1,K,G,N,d]
        last = query[:, :, :, -1] * decoder.config.head_dim**-0.5  # [1,K,G,d]
        weights.append((last @ key.transpose(-1, -2)).softmax(-1).mean((0, 1, 2)))
        attended = F.scaled_dot_product_attention(
            query.flatten(1, 2), key, value, is_causal=True, enable_gqa=True
        )
        x = layer.finish(x, attended.unflatten(1, query.shape[1:3]))
    return torch.stack(weights).mean(0)
