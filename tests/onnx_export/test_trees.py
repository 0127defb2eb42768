from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from feast_anchor.onnx_export.baselines import frequent_values, tabular_features
from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.evaluation import auc
from feast_anchor.onnx_export.trees import fit_trees, window_rows, window_trees
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

USERS = [f"u{n:03d}" for n in range(60)]


def test_trees_find_what_no_line_can() -> None:
    """An exclusive-or of two columns among noise is learnt, and the same seed repeats it."""
    x = np.random.default_rng(0).standard_normal((900, 6))
    y = (x[:, 0] > 0) ^ (x[:, 1] > 0)
    trees = fit_trees(x[:600], y[:600], 0)
    assert trees.setting["leaves"] > 2
    assert auc(y[600:], trees.score(x[600:])) > 0.9
    np.testing.assert_array_equal(
        trees.score(x), fit_trees(x[:600], y[:600].astype(float), 0).score(x)
    )


@pytest.mark.parametrize("rows", [4, 12, 25])
def test_few_labels_are_enough_to_fit(rows: int) -> None:
    """With a handful of rows trees still fit, and rank by the column that decides."""
    x = np.arange(rows, dtype=float)[:, None]
    y = x[:, 0] * 2 >= rows
    scores = fit_trees(x, y, 0).score(x)
    assert np.isfinite(scores).all()
    assert rows < 12 or auc(y, scores) > 0.9


def test_two_rows_of_each_class_are_needed() -> None:
    """One positive row cannot be cross-validated."""
    with pytest.raises(SourceError, match="rarer class has 1"):
        fit_trees(np.zeros((4, 1)), np.array([0, 0, 0, 1]), 0)


def labels() -> pa.Table:
    """Who likes produce (even users), at two earlier times and, turned round, at the cut."""
    as_ofs = [datetime(2024, 2, 10, tzinfo=UTC), datetime(2024, 2, 25, tzinfo=UTC), TINY_CUT]
    rows = [(u, t, (int(u[1:]) % 2 == 0) != (t == TINY_CUT)) for t in as_ofs for u in USERS]
    users, times, likes = (list(column) for column in zip(*rows, strict=True))
    likes[0] = None
    return pa.table(
        {
            "customer": users,
            "event_timestamp": pa.array(times),
            "likes": pa.array(likes, pa.bool_()),
        }
    )


def test_window_trees_rank_other_users_by_earlier_labels_alone() -> None:
    """Labels at the cut, here the opposite of the truth, and other users' labels are not read."""
    events, fit, rest = tiny_events(users=60), USERS[:40], USERS[40:]
    values = frequent_values(events, fit, TINY_CUT, TINY_MODALITIES)
    rows = window_rows(events, labels(), fit, TINY_CUT, TINY_MODALITIES, values, key="customer")
    assert len(rows.x) == len(rows.users) == 80
    assert set(rows.users) == set(fit)
    x = tabular_features(events, rest, TINY_CUT, TINY_MODALITIES, values)[1]
    likes = np.array([int(user[1:]) % 2 == 0 for user in rest])
    assert auc(likes, window_trees(rows, "likes", 0).score(x)) > 0.8


def test_window_rows_read_features_as_of_their_own_time() -> None:
    """A row's features are those of its as-of, not of the cut."""
    events = tiny_events(users=60)
    values = frequent_values(events, USERS, TINY_CUT, TINY_MODALITIES)
    rows = window_rows(events, labels(), USERS, TINY_CUT, TINY_MODALITIES, values, key="customer")
    as_of = datetime(2024, 2, 10, tzinfo=UTC)
    expected = tabular_features(events, rows.users[:60], as_of, TINY_MODALITIES, values)[1]
    np.testing.assert_array_equal(rows.x[:60], expected)


def test_without_earlier_labels_there_is_nothing_to_train_on() -> None:
    """A labels table of the cut alone is refused with what is missing."""
    events, cut = tiny_events(), TINY_CUT - timedelta(days=60)
    with pytest.raises(SourceError, match="earlier as-of times"):
        window_rows(events, labels(), USERS, cut, TINY_MODALITIES, (), key="customer")
