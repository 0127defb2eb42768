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
    """Each question over one reading; the prefix is computed once."""
    state = model.prefix(
        *(
            torch.from_numpy(array)[None]
            for array in (reading.vectors, reading.features, reading.modality, reading.days)
        )
    )
    events = len(reading.modality)
    plen, now = torch.tensor([[events]]), torch.tensor([[float(reading.now)]])
    context = torch.from_numpy(reading.context)[None, None]
    prompt = torch.zeros(1, model.config.hidden)
    out = []
    for one in asked:
        query = torch.from_numpy(one.vector)[None, None]  # [1,1,E]
        found, summary = model.find_evidence(plen, now, query, state)
        ids = torch.from_numpy(one.ids)[None, None]
        block = model.suffix_tokens(ids, context, query, found, summary, prompt)[0]  # [1,L,D]
        weights = last_row(model.decoder, state, block).narrow(0, model.lead, events)
        relevance = None
        if model.evidence is not None:
            near = model.evidence.relevance(query, state[-2])[0, 0]  # [W,P]
            relevance = near[:, model.lead :].mean(0).numpy()
        out.append(Attended((weights / weights.mean()).numpy(), relevance))
    return out


def last_row(decoder: Decoder, state: Sequence[Tensor], x: Tensor) -> Tensor:
    """What the last token of a block x[1,L,D] behind a state of P tokens attends to: [P+L].

    The mean over layers and heads.
    """
    before, length = state[0].shape[2], x.shape[1]
    at = torch.arange(before, before + length)
    cos, sin = decoder.angles(at[None])
    causal = torch.arange(before + length) <= at.unsqueeze(1)  # [L,P+L]
    weights = []
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, Layer)
        both = zip(state[2 * index : 2 * index + 2], layer.keys_values(x, cos, sin), strict=True)
        key, value = (torch.cat(parts, dim=2) for parts in both)  # [1,K,P+L,d]
        query = layer.queries(x, cos, sin)  # [1,K,G,L,d]
        last = query[:, :, :, -1] * decoder.config.head_dim**-0.5  # [1,K,G,d]
        weights.append((last @ key.transpose(-1, -2)).softmax(-1).mean((0, 1, 2)))
        seen = F.scaled_dot_product_attention(
            query.flatten(1, 2), key, value, attn_mask=causal, enable_gqa=True
        )
        x = layer.finish(x, seen.unflatten(1, query.shape[1:3]))
    return torch.stack(weights).mean(0)
