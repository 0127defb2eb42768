"""Which events each scenario's question attends to, by their texts, over some reported users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import suffix_ids
from feast_anchor.transforms.histories import micros

from .config import EvaluationConfig
from .features import Stage

Array = np.ndarray[Any, Any]

_USERS = 400  # enough for the texts that are common
_SHARE = 0.001  # of all events that were read: rarer texts are left out
_KEPT = 8  # texts per scenario


def attended_texts(
    config: EvaluationConfig, bundle: Bundle, events: pa.Table, users: Sequence[str], stage: Stage
) -> dict[str, Any]:
    """What questions look at: scenario -> {"all": entry, "texts": entries}, ready for JSON.

    An entry has a text and its modality, how many events have it, and two means over them:
    `attention`, 1 for a question that looks at all events alike, and `relevance`, 0 to 1 (None for
    a model without evidence). "texts" are the `_KEPT` common ones of highest relevance, or else
    attention; "all" is over all events.
    """
    from feast_anchor.onnx_export.attention import Asked, attended
    from feast_anchor.onnx_export.weights import read_model

    from ..readings import readings_of

    model, special = read_model(bundle), bundle.manifest.special_ids
    queries = [scenario.query for scenario in config.scenarios.values()]
    vectors = bundle.query_vectors(queries)
    asked = [
        Asked(suffix_ids([bundle.query_ids(query)], [range(0)], special)[0][0], vector)
        for query, vector in zip(queries, vectors, strict=True)
    ]
    drawn = np.random.default_rng(config.seed).permutation(len(users))[:_USERS]
    rows = [(users[number], micros(config.cut)) for number in drawn]
    # text and modality -> per scenario: events, summed attention, summed relevance
    sums: dict[tuple[str, int], Any] = defaultdict(lambda: np.zeros((len(asked), 3)))
    for done, reading in enumerate(readings_of(bundle, events, rows), start=1):
        if reading is None:
            continue
        for row, found in enumerate(attended(model, reading, asked)):
            relevance = 0 * found.attention if found.relevance is None else found.relevance
            kinds = zip(reading.texts, reading.modality.tolist(), strict=True)
            for key, weight, near in zip(kinds, found.attention, relevance, strict=True):
                sums[key][row] += (1, weight, near)
        stage(f"attention of {len(rows)} users", done / len(rows))
    names = [spec.name for spec in bundle.manifest.modalities]
    evidence = model.evidence is not None
    out: dict[str, Any] = {}
    for number, scenario in enumerate(config.names):
        whole = sum(own[number] for own in sums.values())
        entries = [
            _entry(own[number], evidence, text, names[modality])
            for (text, modality), own in sorted(sums.items())
            if own[number, 0] >= _SHARE * whole[0]
        ]
        by = "relevance" if evidence else "attention"
        best = sorted(entries, key=lambda entry: -entry[by])[:_KEPT]
        out[scenario] = {"all": _entry(whole, evidence), "texts": best}
    return out


def _entry(own: Array, evidence: bool, text: str = "", modality: str = "") -> dict[str, Any]:
    count, attention, relevance = own.tolist()
    return {
        "text": text,
        "modality": modality,
        "events": int(count),
        "attention": round(attention / count, 3),
        "relevance": round(relevance / count, 3) if evidence else None,
    }
