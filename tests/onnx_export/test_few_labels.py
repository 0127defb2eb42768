"""The label-efficiency curve: draws, comparisons, intervals."""

from __future__ import annotations

import numpy as np
import pytest

from feast_anchor.onnx_export.evaluation import resample
from feast_anchor.onnx_export.few_labels import Array, Curve, Method, few_labels, joined
from feast_anchor.onnx_export.probe import fit_probe

USERS, SCENARIOS = 240, 3


@pytest.fixture(scope="module")
def world() -> tuple[Array, Array, dict[str, Method]]:
    """Labels, columns that tell them, and a learner beside a score that needs no labels."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((USERS, 12))
    noise = generator.standard_normal((SCENARIOS, USERS))
    labels = (x[:, :SCENARIOS].T + 0.6 * noise > 0.6).astype(int)
    hints = labels + 1.5 * generator.standard_normal(labels.shape)

    def learned(scenario: int, known: Array, y: Array, scored: Array, seed: int) -> Array:
        return fit_probe(x[known], y, seed).score(x[scored])

    def given(scenario: int, known: Array, y: Array, scored: Array, seed: int) -> Array:
        found: Array = hints[scenario, scored]
        return found

    return labels, x, {"learned": learned, "given": given}


def test_learning_pays_with_labels_and_a_given_score_does_not(
    world: tuple[Array, Array, dict[str, Method]],
) -> None:
    """The learner is worse at 20 labels and better at 160; the given score stays where it is."""
    labels, _, methods = world
    curve = few_labels(labels, methods, resample(USERS, 60, seed=0), sizes=(20, 160, 400), draws=6)
    assert curve.sizes == (20, 160)
    assert curve.mean("learned", 160).value > curve.mean("learned", 20).value + 0.03
    assert abs(curve.mean("given", 160).value - curve.mean("given", 20).value) < 0.03
    gain = curve.difference("learned", "given", 160)
    assert gain.differs
    assert gain.low < gain.value < gain.high


def test_threads_change_nothing(world: tuple[Array, Array, dict[str, Method]]) -> None:
    """Two threads give the numbers of one."""
    labels, _, methods = world
    weights = resample(USERS, 5, seed=0)
    one, two = (
        few_labels(labels, methods, weights, sizes=(30,), draws=3, threads=t) for t in (1, 2)
    )
    np.testing.assert_array_equal(one.rounds["learned", 30], two.rounds["learned", 30])


def test_each_draw_labels_both_classes_and_scores_the_others() -> None:
    """With 5 % positives, 25 labels hold two of each class, and no labelled user is scored."""
    labels = (np.arange(200) % 20 == 0).astype(int)[None]
    labels[0, :10] = -1
    seen = []

    def watch(scenario: int, known: Array, y: Array, scored: Array, seed: int) -> Array:
        seen.append((known, y, scored))
        return scored.astype(float)

    few_labels(labels, {"watch": watch}, resample(200, 2, seed=0), sizes=(25,), draws=8)
    assert len(seen) == 8
    for known, y, scored in seen:
        assert len(known) == 25
        assert min(np.sum(y == 0), np.sum(y == 1)) >= 2
        assert not set(known) & set(scored)
        assert len(known) + len(scored) == 190
    assert len({known.tobytes() for known, _, _ in seen}) == 8


def test_a_scenario_with_too_few_positives_is_left_out() -> None:
    """Two positives cannot be labelled and leave one to score: that scenario is NaN, others not."""
    labels = np.zeros((2, 100), dtype=int)
    labels[0, :2] = 1
    labels[1, ::2] = 1
    methods: dict[str, Method] = {"any": lambda s, known, y, scored, seed: scored.astype(float)}
    curve = few_labels(labels, methods, resample(100, 4, seed=0), sizes=(25,), draws=2)
    assert np.isnan(curve.auc["any", 25][:, 0]).all()
    assert not np.isnan(curve.mean("any", 25).value)


def test_a_size_that_leaves_too_few_to_score_is_left_out_of_that_scenario() -> None:
    """Of 30 known users 25 are more than four fifths; the scenario that knows all 200 keeps 25."""
    labels = np.tile([0, 1], (2, 100))
    labels[0, 30:] = -1
    methods: dict[str, Method] = {"any": lambda s, known, y, scored, seed: scored.astype(float)}
    curve = few_labels(labels, methods, resample(200, 4, seed=0), sizes=(20, 25), draws=2)
    assert not np.isnan(curve.auc["any", 20]).any()
    assert np.isnan(curve.auc["any", 25][:, 0]).all()
    assert curve.scenarios(25) == 1


def test_joined_curves_are_the_mean_of_what_all_measured() -> None:
    """Draws of several runs stand side by side; a method or size that one lacks is left out."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, (2, 200))
    weights = resample(200, 30, seed=0)

    def curve(strength: float, sizes: tuple[int, ...], *names: str) -> Curve:
        score = strength * labels + generator.standard_normal(labels.shape)
        methods = {name: lambda s, known, y, to, seed: score[s, to] for name in names}
        return few_labels(labels, methods, weights, sizes=sizes, draws=4)

    weak, strong = curve(0.2, (25, 50), "a", "b"), curve(3.0, (25,), "a")
    both = joined([weak, strong])
    assert both.sizes == (25,)
    assert list(both.auc) == [("a", 25)]
    found = both.mean("a", 25)
    assert found.value == pytest.approx(
        (weak.mean("a", 25).value + strong.mean("a", 25).value) / 2, abs=1e-12
    )
    assert found.low < found.value < found.high
