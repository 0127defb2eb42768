"""The zero-shot score: is a vector nearer to the positive answers of its scenario or to the others?

    score = mean cosine to the positive answers - mean cosine to the negative ones,  in [-2, 2]

It needs no label, so it is what a team has on the first day. All vectors have length one: a cosine
is a dot product, and a mean of dot products is one dot product with the mean. So two lists of
answers become one axis, and a score costs one dot product.

The law of this module: a score depends on the vector and the answers and on nothing else, to the
last bit. A product of a matrix by BLAS adds in an order that depends on the number of rows, so
each row is multiplied and summed on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import Floats


@dataclass(frozen=True)
class Answers:
    """What a positive and what a negative user of a scenario would answer; at least one each."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def score_axes(bundle: Bundle, wanted: Iterable[Answers]) -> dict[Answers, Floats]:
    """For each pair of answer lists the axis that vectors are scored on: float32 [dim].

    Every answer counts the same within its list. Raises `BundleError` when one has no tokens.
    """
    pairs = list(dict.fromkeys(wanted))
    texts = sorted({text for pair in pairs for text in (*pair.positive, *pair.negative)})
    if not texts:
        return {}
    vectors = dict(zip(texts, bundle.answer_vectors(texts), strict=True))

    def mean(answers: tuple[str, ...]) -> Any:
        return np.mean([vectors[text] for text in answers], axis=0, dtype=np.float64)  # [dim]

    return {pair: (mean(pair.positive) - mean(pair.negative)).astype(np.float32) for pair in pairs}


def scores(vectors: Floats, axis: Floats) -> Floats:
    """The score of each vector: float32 [rows, dim] and [dim] -> float32 [rows]."""
    products = np.ascontiguousarray(vectors) * axis  # [rows, dim]
    summed: Floats = products.sum(axis=1, dtype=np.float32)
    return summed
