from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.evaluation import (
    auc,
    bootstrap_auc_interval,
    count_features,
    frequent_texts,
    linear_probe,
)
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events


def by_hand(*rows: tuple[str, float, int, str, float]) -> pa.Table:
    """Canonical events from (user, days before the cut, modality, text, amount)."""
    dated = [(user, TINY_CUT - timedelta(days=days), *rest) for user, days, *rest in rows]
    columns = [list(column) for column in zip(*dated, strict=True)]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


def test_auc_counts_pairs() -> None:
    """Of four pairs three are in order and one is a tie: (3 + .5) / 4."""
    assert auc(np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 2.0, 3.0])) == 0.875


def test_auc_of_one_class_is_refused() -> None:
    """Without both classes there is nothing to rank."""
    with pytest.raises(SourceError, match="both classes"):
        auc(np.ones(3), np.arange(3))


def test_probe_finds_a_direction_and_no_noise() -> None:
    """A column that decides is found among noise; labels of chance give an AUC near .5."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((800, 10)) * np.array([1, 50, *[1] * 8])
    y = (x[:, 0] > 0.5).astype(int)
    chance = generator.integers(0, 2, 800)
    assert auc(y[400:], linear_probe(x[:400], y[:400], x[400:])) > 0.95
    assert abs(auc(chance[400:], linear_probe(x[:400], chance[:400], x[400:])) - 0.5) < 0.1


def test_probe_needs_two_of_each_class() -> None:
    """One positive user cannot be cross-validated."""
    with pytest.raises(SourceError, match="rarer class has 1"):
        linear_probe(np.zeros((4, 1)), np.array([0, 0, 0, 1]), np.zeros((1, 1)))


def test_interval_holds_the_auc_and_is_repeatable() -> None:
    """The interval surrounds the point estimate, narrows with users and depends on the seed."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 400)
    score = y + 2 * generator.standard_normal(400)
    low, high = bootstrap_auc_interval(y, score, 1)
    assert low < auc(y, score) < high
    assert (low, high) == bootstrap_auc_interval(y, score, 1)
    small = bootstrap_auc_interval(y[:60], score[:60], 1)
    assert high - low < small[1] - small[0]


def test_counts_are_those_counted_by_hand() -> None:
    """Two visits of which one in the last 28 days, and one tea, for the user who has them."""
    events = by_hand(("a", 3.0, 0, "tea", 6.0), ("a", 50.0, 0, "ham", 4.0), ("b", 1.0, 1, "x", 0.0))
    x = count_features(events, ["b", "a", "c"], TINY_CUT, TINY_MODALITIES[:2], [(0, "tea")])
    log = math.log1p
    assert x.shape == (3, 9)
    np.testing.assert_allclose(
        x[1], [log(2), log(3), log(1), log(10), 0, log(548), 0, 0, log(1)], atol=1e-12
    )
    np.testing.assert_allclose(x[2], [0, log(548), 0, 0, 0, log(548), 0, 0, 0], atol=1e-12)


def test_counts_do_not_see_the_as_of() -> None:
    """Events at or after the as-of change no feature and no choice of texts."""
    events = tiny_events()
    before = events.filter(pc.less(events.column("event_timestamp"), pa.scalar(TINY_CUT)))
    assert before.num_rows < events.num_rows
    users = [f"u{n:03d}" for n in range(30)]
    texts = frequent_texts(events, users, TINY_CUT)
    assert texts == frequent_texts(before, users, TINY_CUT)
    one, two = (
        count_features(t, users, TINY_CUT, TINY_MODALITIES, texts) for t in (events, before)
    )
    np.testing.assert_array_equal(one, two)


def test_texts_are_chosen_on_training_users_only() -> None:
    """A text that only other users have is not counted."""
    events = by_hand(
        ("a", 1.0, 0, "tea", 0.0),
        ("a", 2.0, 0, "tea", 0.0),
        ("a", 3.0, 0, "ham", 0.0),
        ("b", 1.0, 0, "gold", 0.0),
    )
    assert frequent_texts(events, ["a"], TINY_CUT, limit=2) == ((0, "tea"), (0, "ham"))
