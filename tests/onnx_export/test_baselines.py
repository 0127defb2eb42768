from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feast_anchor.onnx_export.baselines import (
    EventTopic,
    FieldValue,
    activity_features,
    factorisation,
    frequent_values,
    tabular_features,
    topic_features,
)
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

USERS = [f"u{n:03d}" for n in range(30)]
NEVER = math.log1p(548)


def by_hand(*rows: tuple[str, float, int, str, float]) -> pa.Table:
    """Canonical events from (user, days before the cut, modality, text, amount)."""
    dated = [(user, TINY_CUT - timedelta(days=days), *rest) for user, days, *rest in rows]
    columns = [list(column) for column in zip(*dated, strict=True)]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


SHOP = by_hand(
    ("a", 3.0, 0, "tea in dry", 6.0),
    ("a", 50.0, 0, "tea in dry", 4.0),
    ("a", 50.0, 0, "ham in meat", 2.0),
    ("a", 200.0, 0, "ham in meat", 1.0),
    ("a", 1.0, 1, "redeemed a coupon for dry", 0.0),
    ("b", 1.0, 2, "age 65+, north", 0.0),
)


def column(features: tuple[tuple[str, ...], np.ndarray[Any, Any]], name: str) -> list[float]:
    names, x = features
    return [round(float(v), 9) for v in x[:, names.index(name)]]


def log(*numbers: float) -> list[float]:
    return [round(math.log1p(n), 9) for n in numbers]


def test_activity_is_what_one_counts_by_hand() -> None:
    """Visits have an amount, so they alone are activity; who has none is long ago and zero."""
    x = activity_features(SHOP, ["b", "a"], TINY_CUT, TINY_MODALITIES)
    assert x.shape == (2, 10)
    np.testing.assert_allclose(x[1], log(3, 1, 1, 3, 4, 6, 12, 13, 200, 3))
    np.testing.assert_allclose(x[0], [NEVER, *[0] * 9], atol=1e-12)


def test_activity_without_amounts_is_that_of_all_timed_modalities() -> None:
    """Where no modality has an amount every timed event counts, profiles still do not."""
    plain = [TINY_MODALITIES[0].model_copy(update={"amount": False}), *TINY_MODALITIES[1:]]
    x = activity_features(SHOP, ["b", "a"], TINY_CUT, plain)
    np.testing.assert_allclose(x[:, 4], log(0, 5))


def test_topic_features_count_the_topic_alone() -> None:
    """Two of four visits are about meat, one in 91 days, the newest 50 days ago."""
    x = topic_features(SHOP, ["a", "b"], TINY_CUT, TINY_MODALITIES, EventTopic("visits", "in meat"))
    np.testing.assert_allclose(x[0], [*log(2, 1, 50), 0.5])
    np.testing.assert_allclose(x[1], [0, 0, NEVER, 0], atol=1e-12)


def test_a_topic_may_be_hours_of_the_day() -> None:
    """The first hour belongs to a range, the last does not; times are UTC."""
    events = by_hand(("a", 1.0, 0, "x", 0.0), ("a", 1.5, 0, "x", 0.0), ("a", 1.25, 0, "x", 0.0))
    topic = EventTopic("visits", hours=(12, 18))  # 00:00, 12:00 and 18:00
    x = topic_features(events, ["a"], TINY_CUT, TINY_MODALITIES, topic)
    np.testing.assert_allclose(x[0], [*log(1, 1, 1.5), 1 / 3])


def test_a_topic_of_an_unknown_modality_is_refused() -> None:
    """The error names the modalities there are."""
    with pytest.raises(SpecError, match="no modality 'visit'"):
        topic_features(SHOP, ["a"], TINY_CUT, TINY_MODALITIES, EventTopic("visit", "x"))


def test_values_are_those_of_the_fitting_users() -> None:
    """Values come from each template's columns, most users first, of the named users alone."""
    events = pa.concat_tables([SHOP, by_hand(("c", 1.0, 0, "gold in safe", 0.0))])
    found = frequent_values(events, ["a", "b"], TINY_CUT, TINY_MODALITIES)
    assert found == (
        FieldValue(0, "item", "ham"),
        FieldValue(0, "item", "tea"),
        FieldValue(0, "shop", "dry"),
        FieldValue(0, "shop", "meat"),
        FieldValue(1, "shop", "dry"),
        FieldValue(2, "age", "65+"),
        FieldValue(2, "city", "north"),
    )
    assert frequent_values(events, ["a"], TINY_CUT, TINY_MODALITIES, limit=1)[:2] == (
        FieldValue(0, "item", "ham"),
        FieldValue(0, "shop", "dry"),
    )


def test_table_columns_are_those_counted_by_hand() -> None:
    """Counts, recency and shares per value; trend and visits per modality; facts of a profile."""
    values = frequent_values(SHOP, ["a", "b"], TINY_CUT, TINY_MODALITIES)
    found = tabular_features(SHOP, ["a", "b"], TINY_CUT, TINY_MODALITIES, values)
    assert column(found, "visits: item = tea, events") == log(2, 0)
    assert column(found, "visits: shop = meat, events in 91 days") == log(1, 0)
    assert column(found, "visits: shop = meat, recency") == log(50, 548)
    assert column(found, "visits: shop = meat, share") == [0.5, 0]
    assert column(found, "coupons: shop = dry, events") == log(1, 0)
    assert column(found, "profile: city = north, events") == log(0, 1)
    assert column(found, "visits: trend") == log(3, 0)
    assert column(found, "visits: visits") == log(3, 0)
    assert column(found, "visits: distinct shop") == log(2, 0)
    assert column(found, "visits: hours 0-4") == [1, 0]


def test_values_that_nobody_here_has_are_zero() -> None:
    """Users without events get the same columns as the users the values came from."""
    values = frequent_values(SHOP, ["a", "b"], TINY_CUT, TINY_MODALITIES)
    names, x = tabular_features(SHOP, ["z"], TINY_CUT, TINY_MODALITIES, values)
    assert names == tabular_features(SHOP, ["a"], TINY_CUT, TINY_MODALITIES, values)[0]
    assert set(np.round(x[0], 6)) == {0.0, round(NEVER, 6)}


def test_no_feature_sees_the_as_of() -> None:
    """Events at or after the as-of change no feature, no choice of values and no axis."""
    events = tiny_events()
    before = events.filter(pc.less(events.column("event_timestamp"), pa.scalar(TINY_CUT)))
    assert before.num_rows < events.num_rows
    topic = EventTopic("visits", "in produce")
    made = []
    for table in (events, before):
        values = frequent_values(table, USERS, TINY_CUT, TINY_MODALITIES)
        made.append(
            (
                activity_features(table, USERS, TINY_CUT, TINY_MODALITIES),
                topic_features(table, USERS, TINY_CUT, TINY_MODALITIES, topic),
                tabular_features(table, USERS, TINY_CUT, TINY_MODALITIES, values)[1],
                factorisation(table, USERS, TINY_CUT, USERS, dim=3),
            )
        )
    for one, two in zip(*made, strict=True):
        np.testing.assert_array_equal(one, two)


def test_features_do_not_depend_on_the_order_of_the_events() -> None:
    """Shuffled rows give the same features to the last bit."""
    events = tiny_events()
    shuffled = events.take(pa.array(np.random.default_rng(0).permutation(events.num_rows)))
    values = frequent_values(events, USERS, TINY_CUT, TINY_MODALITIES)
    assert values == frequent_values(shuffled, USERS, TINY_CUT, TINY_MODALITIES)
    one, two = (
        tabular_features(table, USERS, TINY_CUT, TINY_MODALITIES, values)[1]
        for table in (events, shuffled)
    )
    np.testing.assert_array_equal(one, two)


def test_factorisation_tells_tastes_apart_for_users_it_was_not_fitted_on() -> None:
    """Produce lovers and meat lovers lie on two sides of an axis fitted on other users."""
    events = tiny_events(users=60)
    fit, rest = [f"u{n:03d}" for n in range(40)], [f"u{n:03d}" for n in range(40, 60)]
    visits = events.filter(pc.equal(events.column("modality"), 0))
    vectors = factorisation(visits, rest, TINY_CUT, fit, dim=2)
    assert vectors.shape == (20, 2)
    even = np.arange(20) % 2 == 0
    gap = np.abs(vectors[even].mean(axis=0) - vectors[~even].mean(axis=0))
    assert (gap / vectors.std(axis=0)).max() > 1.5


def test_one_text_for_all_events_factorises_to_nothing() -> None:
    """Where every event reads alike there is no axis: one column of zeros, not an error."""
    events = tiny_events().slice(0, 1)
    user = events.column("user")[0].as_py()
    assert factorisation(events, [user], TINY_CUT, [user]).tolist() == [[0.0]]


def test_factorisation_learns_nothing_from_the_users_it_scores() -> None:
    """A user's vector does not depend on which other users are scored beside it."""
    events = tiny_events()
    alone = factorisation(events, USERS[20:21], TINY_CUT, USERS[:20], dim=4)
    together = factorisation(events, USERS[20:], TINY_CUT, USERS[:20], dim=4)
    np.testing.assert_allclose(alone[0], together[0], atol=1e-12)
