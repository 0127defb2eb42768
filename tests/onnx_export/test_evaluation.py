from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.evaluation import (
    auc,
    bootstrap_auc_interval,
    count_features,
    frequent_texts,
    interval,
    mean_over_scenarios,
    measure,
    paired_difference,
    paired_ratio,
    pooled,
    resample,
    weighted_auc_ks,
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


def test_weighted_auc_is_that_of_repeated_users() -> None:
    """A user drawn twice counts twice, one not drawn not at all: as scikit-learn on the rows."""
    generator = np.random.default_rng(0)
    y, score = generator.integers(0, 2, 60), generator.integers(0, 12, 60) / 3
    weights = resample(60, 20, seed=1)
    found_auc, found_ks = weighted_auc_ks(y, score, weights)
    for row, one, gap in zip(weights, found_auc, found_ks, strict=True):
        drawn = np.repeat(np.arange(60), row)
        assert one == pytest.approx(roc_auc_score(y[drawn], score[drawn]), abs=1e-12)
        classes = (score[drawn][y[drawn] == value] for value in (0, 1))
        assert gap == pytest.approx(ks_2samp(*classes).statistic, abs=1e-12)


def test_ks_is_the_largest_gap() -> None:
    """Above 2 lie both positives and one of three negatives: 1 - 1/3."""
    y, score = np.array([0, 0, 0, 1, 1]), np.array([1.0, 2.0, 3.5, 3.0, 4.0])
    assert weighted_auc_ks(y, score, np.ones((1, 5)))[1][0] == pytest.approx(2 / 3)


def test_rounds_of_one_class_are_nan_and_skipped() -> None:
    """A round that drew no positive user has no AUC and does not enter the interval."""
    y, score = np.array([1, 0, 0]), np.array([3.0, 1.0, 2.0])
    weights = np.array([[1, 1, 1], [0, 2, 1]], dtype=np.uint16)
    found = weighted_auc_ks(y, score, weights)[0]
    assert found[0] == 1.0
    assert np.isnan(found[1])
    assert interval(1.0, found).low == 1.0


def noisy(labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """One scoring [1, S, N] of some labels, blurred."""
    return (labels + noise * np.random.default_rng(seed).standard_normal(labels.shape))[None]


def test_paired_differences_see_what_single_intervals_cannot() -> None:
    """A score that is a little better on the same users: intervals overlap, the pair decides."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (6, 400))
    shared = generator.standard_normal(labels.shape)
    worse, better = (labels * lift + 2 * shared for lift in (1.0, 1.25))
    weights = resample(400, 400, seed=0)
    one, other = measure(labels, better[None], weights), measure(labels, worse[None], weights)
    estimates = [mean_over_scenarios(m.auc, m.auc_rounds) for m in (one, other)]
    assert estimates[1].high > estimates[0].low
    assert paired_difference(one, other).differs
    assert paired_difference(one, other).value == pytest.approx(
        estimates[0].value - estimates[1].value
    )


def test_a_ratio_is_over_the_scenarios_that_both_have() -> None:
    """A row that was measured in the easy scenario only is not compared with both."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (2, 300))
    scores = np.array([[3.0], [0.5]]) * labels + generator.standard_normal(labels.shape)
    weights = resample(300, 50, seed=0)
    half = scores.copy()
    half[1] = np.nan
    one, other = (measure(labels, each[None], weights) for each in (half, scores))
    found = paired_ratio(one, other)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_equally_good_scores_do_not_differ_in_nineteen_of_twenty_worlds() -> None:
    """Two scores of the same quality: about 5 % of the paired intervals exclude zero."""
    wrong = 0
    for world in range(60):
        labels = np.random.default_rng(world).integers(0, 2, (3, 150))
        weights = resample(150, 200, seed=world)
        pair = [measure(labels, noisy(labels, 2.0, 1000 * k + world), weights) for k in (1, 2)]
        wrong += paired_difference(*pair).differs
    assert wrong <= 9  # more than 9 of 60 has a chance of one in a thousand at 5 %


def test_an_unlabelled_user_and_a_scenario_without_both_classes_do_not_count() -> None:
    """A label of -1 drops the user in that scenario alone; a scenario of one class is NaN."""
    labels = np.array([[1, 0, 1, -1], [1, 1, 1, -1]])
    scores = np.array([[[3.0, 1.0, 2.0, np.nan], [1.0, 2.0, 3.0, 4.0]]])
    found = measure(labels, scores, resample(4, 10, seed=0))
    assert found.auc[0] == 1.0
    assert np.isnan(found.auc[1])
    assert mean_over_scenarios(found.auc, found.auc_rounds).value == 1.0


def test_several_scorings_are_averaged_and_runs_are_pooled() -> None:
    """AUC 1 and AUC 0 average to .5, whether they are two scorings of a run or two runs."""
    labels = np.array([[1, 0, 1, 0]])
    score = np.array([[4.0, 1.0, 3.0, 2.0]])
    weights = resample(4, 20, seed=0)
    both = measure(labels, np.stack([score, -score]), weights)
    runs = pooled([measure(labels, s[None], weights) for s in (score, -score)])
    assert both.auc[0] == runs.auc[0] == 0.5
    np.testing.assert_allclose(both.auc_rounds, runs.auc_rounds)


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
