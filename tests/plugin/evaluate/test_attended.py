from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feast_anchor.onnx_export import attention, weights
from feast_anchor.onnx_export.attention import Attended
from feast_anchor.onnx_export.manifest import SpecialIds
from feast_anchor.plugin import readings
from feast_anchor.plugin.evaluate import attended as module
from feast_anchor.plugin.evaluate.attended import attended_texts

# user -> texts and modalities of the events
HISTORIES: dict[str, Any] = {
    "a": (("tea", "milk", "tea"), [0, 0, 0]),
    "b": (("milk", "tea", "rare"), [0, 1, 0]),  # the same text in another table is another one
    "nobody": None,
}
CONFIG: Any = SimpleNamespace(
    seed=0,
    cut=datetime(2024, 1, 1, tzinfo=UTC),
    names=("likes_tea", "likes_milk"),
    scenarios={name: SimpleNamespace(query=f"{name}?") for name in ("likes_tea", "likes_milk")},
)
BUNDLE: Any = SimpleNamespace(
    manifest=SimpleNamespace(
        special_ids=SpecialIds(pad=0, user_emb=1, eos=2, first_prompt=3),
        modalities=[SimpleNamespace(name="orders"), SimpleNamespace(name="gifts")],
    ),
    query_vectors=lambda queries: np.zeros((len(queries), 4), dtype=np.float32),
    query_ids=lambda query: [],
)


def of(monkeypatch: pytest.MonkeyPatch, *, evidence: bool) -> dict[str, Any]:
    """What is gathered when each question finds its own word relevant by .9, others by .1, and
    attends to the n-th event of a history by n.
    """

    def read(bundle: Any, events: Any, rows: Any) -> list[Any]:
        found = [HISTORIES[user] for user, _ in rows]
        return [one and SimpleNamespace(texts=one[0], modality=np.array(one[1])) for one in found]

    def look(model: Any, reading: Any, asked: Any) -> list[Attended]:
        weight = np.arange(1.0, 4.0, dtype=np.float32)
        words = ("tea", "milk")
        near = [np.where(np.array(reading.texts) == word, 0.9, 0.1) for word in words]
        return [Attended(weight, one if evidence else None) for one in near]

    model = SimpleNamespace(evidence=object() if evidence else None)
    monkeypatch.setattr(weights, "read_model", lambda bundle: model)
    monkeypatch.setattr(readings, "readings_of", read)
    monkeypatch.setattr(attention, "attended", look)
    monkeypatch.setattr(module, "_SHARE", 0.2)
    return attended_texts(CONFIG, BUNDLE, pa.table({}), list(HISTORIES), lambda *_: None)


def test_texts_are_gathered_over_users_the_most_relevant_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Means are over a text's events in one table; what is rarer than the limit is left out."""
    found = of(monkeypatch, evidence=True)
    everything = {"text": "", "modality": "", "events": 6, "attention": 2.0}
    tea = {"text": "tea", "modality": "orders", "events": 2, "attention": 2.0}  # events 1 and 3
    milk = {"text": "milk", "modality": "orders", "events": 2, "attention": 1.5}  # 2 and 1
    assert found == {
        "likes_tea": {
            "all": everything | {"relevance": pytest.approx(0.5)},
            "texts": [tea | {"relevance": 0.9}, milk | {"relevance": 0.1}],
        },
        "likes_milk": {
            "all": everything | {"relevance": pytest.approx(2.2 / 6, abs=1e-3)},
            "texts": [milk | {"relevance": 0.9}, tea | {"relevance": 0.1}],
        },
    }


def test_without_evidence_attention_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no relevance to tell of, in the order neither."""
    texts = of(monkeypatch, evidence=False)["likes_milk"]["texts"]
    assert [(one["text"], one["attention"], one["relevance"]) for one in texts] == [
        ("tea", 2.0, None),
        ("milk", 1.5, None),
    ]
