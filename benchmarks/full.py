"""The baseline: one plain causal forward over [history, question] for each pair of them.

It is the model's own mathematics and weights without the split into prefix and suffix, and as fast
as we can make it: no padding, attention in the form that won in the cascade (grouped heads folded
into rows, plain matrix products). It comes in two kinds: what exporting a causal model gives, and
trimmed, which computes of the last layer only the row that is read out. Both are exported to ONNX
as same-runtime baselines; the trimmed one runs in torch as a peer.

Letters as in `feast_anchor.onnx_export.model`; B pairs, N = T + L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feast_anchor.onnx_export.decoder import Layer
from feast_anchor.onnx_export.export import _Entry, _free, _write
from feast_anchor.onnx_export.model import Anchor
from feast_anchor.onnx_export.parity import random_inputs

INPUTS = (
    *("vectors", "features", "modality", "days"),
    *("ids", "now", "context", "query", "prompt"),
)
# query[B,K,G,S,d], key[B,K,N,d], value[B,K,N,d] -> [B,K,G,S,d]; S is N (causal) or 1 (sees all)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

_NEVER = -1e9


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Two matrix products around a softmax."""
    shape = query.shape[2:4]  # G,S
    scores = query.flatten(2, 3) * key.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    scores = scores.unflatten(2, shape)  # [B,K,G,S,N]
    if query.shape[3] > 1:
        at = torch.arange(key.shape[2], device=key.device)
        scores = scores + torch.where(at.unsqueeze(0) <= at.unsqueeze(1), 0.0, _NEVER)
    weights = scores.softmax(-1).flatten(2, 3)  # [B,K,G*S,N]
    attended: Tensor = (weights @ value).unflatten(2, shape)
    return attended


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Torch's scaled dot product attention."""
    groups = query.shape[1:3]  # K,G
    causal = query.shape[3] > 1
    out = F.scaled_dot_product_attention(
        query.flatten(1, 2), key, value, is_causal=causal, enable_gqa=True
    )  # [B,H,S,d]
    attended: Tensor = out.unflatten(1, groups)
    return attended


class Full(nn.Module):
    """Vectors [B,embedding] of B pairs of a history and a question, nothing padded."""

    def __init__(self, model: Anchor, attention: Attention = plain, *, trim: bool = True) -> None:
        super().__init__()
        self.model, self.attention, self.trim = model, attention, trim

    def forward(
        self,
        vectors: Tensor,
        features: Tensor,
        modality: Tensor,
        days: Tensor,
        ids: Tensor,
        now: Tensor,
        context: Tensor,
        query: Tensor,
        prompt: Tensor,
    ) -> Tensor:
        """vectors[B,T,E], features[B,T,F], modality[B,T], days[B,T], ids[B,L], now[B],
        context[B,C], query[B,E], prompt[R,D].
        """
        model = self.model
        member = modality.unsqueeze(-1) == torch.arange(model.modalities)
        member = member.to(torch.float32)  # [B,T,M]
        history = model.prefix_tokens(vectors, features, member)  # [B,T,D]
        plen = torch.full_like(modality[:, :1], modality.shape[1])  # [B,1]
        asked, told = query.unsqueeze(1), context.unsqueeze(1)  # one question each
        kept: tuple[Tensor, ...] = ()
        if model.evidence is not None:
            kept = model.evidence.keep(vectors, features, member, days)
        found, summary = model.find_evidence(plen, now.unsqueeze(1), asked, kept)
        block = model.suffix_tokens(ids.unsqueeze(1), told, asked, found, summary, prompt)
        hidden = self.last_row(torch.cat((history, block.squeeze(1)), dim=1))  # [B,1,D]
        served: Tensor = model.readout(hidden, asked, found)
        return served.squeeze(1)

    def last_row(self, x: Tensor) -> Tensor:
        """x[B,N,D] -> the last row after the final norm, [B,1,D]."""
        decoder = self.model.decoder
        at = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        cos, sin = decoder.angles(at)
        for index, layer in enumerate(decoder.layers):
            assert isinstance(layer, Layer)
            key, value = layer.keys_values(x, cos, sin)  # [B,K,N,d]
            if self.trim and index + 1 == decoder.config.layers:
                x, cos, sin = x[:, -1:], cos[:, -1:], sin[:, -1:]
            query = layer.queries(x, cos, sin)  # [B,K,G,S,d]
            x = layer.finish(x, self.attention(query, key, value))
        out: Tensor = decoder.final_norm(x[:, -1:])
        return out


def export_full(model: Anchor, folder: Path) -> None:
    """Write `folder`/full.onnx and trimmed.onnx as the bundle's own graphs are written."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = random_inputs(model, (3, 5, 1, 6), np.random.default_rng(0))
    per_pair = ("ids", "now", "context", "query")  # [B,1,...] -> [B,...]
    given = {name: array[:, 0] if name in per_pair else array for name, array in arrays.items()}
    for name, trim in (("full", False), ("trimmed", True)):
        _write(
            _Entry(model, Full(model, trim=trim).forward),
            tuple(torch.from_numpy(given[name].copy()) for name in INPUTS),
            [*[_free(0, 1)] * 5, *[_free(0)] * 4],
            folder / f"{name}.onnx",
            INPUTS,
            ["embedding"],
        )
