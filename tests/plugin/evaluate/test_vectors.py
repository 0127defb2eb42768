"""The variants' vectors: what shuffling keeps, and what never reaches a vector or a model."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from feast_anchor.plugin.evaluate.config import load_config
from feast_anchor.plugin.evaluate.vectors import history_of, make_vectors, shuffle_histories
from plugin.evaluate.conftest import CUT, WriteEvaluation
from shop import START


def events() -> pa.Table:
    """Events of two users before the cut and one after it."""
    rows = [
        (user, START + timedelta(days=day), 0, f"{item} in food", float(day))
        for user in ("u1", "u2")
        for day, item in enumerate(["green tea", "oat milk", "bread", "apples", "soap", "ham"])
    ]
    rows.append(("u1", CUT, 0, "poison in food", 1e6))
    columns = zip(*rows, strict=True)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


def test_shuffling_keeps_what_happened_and_when_but_not_what_happened_when() -> None:
    """Each user's times and events stay; their pairing is another, by seed and user."""
    before = history_of(events(), ["u1", "u2"], CUT)
    after = shuffle_histories(before, seed=0)
    assert after.schema.names == before.schema.names
    for user in ("u1", "u2"):
        own, dealt = (t.filter(pc.equal(t.column("user"), user)) for t in (before, after))
        assert own.column("event_timestamp").equals(dealt.column("event_timestamp"))
        texts = [t.column("text").to_pylist() for t in (own, dealt)]
        assert sorted(texts[0]) == sorted(texts[1])
        assert texts[0] != texts[1]
        pairs = [set(zip(*(t.column(c).to_pylist() for c in ("text", "amount")), strict=True))
                 for t in (own, dealt)]  # fmt: skip
        assert pairs[0] == pairs[1]
    assert after.equals(shuffle_histories(before, seed=0))
    alone = shuffle_histories(history_of(events(), ["u2"], CUT), seed=0)
    assert alone.equals(after.filter(pc.equal(after.column("user"), "u2")))


def test_every_variant_has_its_vectors_and_none_sees_the_cut(
    evaluation: WriteEvaluation, shop_bundle: Path
) -> None:
    """Shapes, unit length and differences; an event at the cut changes no bit of any vector."""
    config = load_config(evaluation())
    bundle = Bundle.open(shop_bundle)
    table = events()
    found, clean = (
        make_vectors(bundle, config, t, ["u2", "u1"], {}, lambda done: None)
        for t in (table, history_of(table, ["u1", "u2"], CUT))
    )
    dim = bundle.manifest.dims.embedding
    assert found.right.shape == found.shuffled.shape == (2, 2, dim)
    assert [len(own) for own in found.unseen] == [2, 0]
    assert found.zero_shot.shape == (2, 2)
    np.testing.assert_allclose(np.linalg.norm(found.right, axis=2), 1, atol=1e-5)
    assert not np.allclose(found.right[0], found.none)
    assert not np.allclose(found.right, found.shuffled)
    np.testing.assert_array_equal(found.right, clean.right)
    np.testing.assert_array_equal(found.shuffled, clean.shuffled)
    np.testing.assert_array_equal(found.none, clean.none)
