"""Torch on the same weights: eager, a pair at a time, and with its own attention, pairs batched.

Settings: float32, one thread as in the sessions it is compared with, `inference_mode`, nothing
padded, of the last layer only the row that is read out. Tried on small: batches of 1, 4 and 16
pairs (4 is 14 % quicker than 16), key heads repeated in memory instead of `enable_gqa` (the same),
attention written out in batches (5 % slower). `torch.compile` is left out: it needs a C++ compiler
where it runs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from feast_anchor.onnx_export.inputs import Floats

from ..cascade import Arrays
from ..full import INPUTS, Attention, Full, fused, plain
from ..models import Subject

_PAIRS_PER_RUN = 4


class TorchPairs:
    """The full forward of pairs [N,...], so many at a time: vectors [N,embedding]."""

    def __init__(self, subject: Subject, attention: Attention, pairs_per_run: int) -> None:
        self._module = Full(subject.model, attention).eval()
        self._per_run = pairs_per_run

    def __call__(self, pairs: Arrays) -> Floats:
        """Run all pairs; inputs as `Workload.pairs` gives them."""
        given = {name: torch.from_numpy(pairs[name]) for name in INPUTS}
        found: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(given["ids"]), self._per_run):
                some = slice(start, start + self._per_run)
                rows = [x if name == "prompt" else x[some] for name, x in given.items()]
                found.append(self._module(*rows))
        return np.concatenate([x.numpy() for x in found])


def eager(subject: Subject) -> TorchPairs:
    """A pair at a time, attention written out."""
    return TorchPairs(subject, plain, 1)


def batched(subject: Subject) -> TorchPairs:
    """Pairs batched, `scaled_dot_product_attention`."""
    return TorchPairs(subject, fused, _PAIRS_PER_RUN)
