"""The linear probe against scikit-learn, and the folds it is measured with."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.probe import (
    Array,
    fit_probe,
    out_of_fold,
    quantiles,
    rank_auc,
    stratified_folds,
    transferred,
)


def two_classes(users: int, columns: int, seed: int = 0) -> tuple[Array, Array]:
    """Correlated columns of very different scales, and labels that lean on two of them."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((users, columns)) * np.logspace(-2, 3, columns)
    x[:, 1] += x[:, 0]
    y = x[:, 0] / x[:, 0].std() + x[:, -1] / x[:, -1].std() + generator.standard_normal(users) > 0.5
    return x, y.astype(int)


@pytest.mark.parametrize(("users", "columns"), [(300, 12), (40, 60)])
def test_probe_is_the_regression_scikit_learn_fits(users: int, columns: int) -> None:
    """With the strength it chose, scores agree to 1e-5, with more rows or more columns."""
    x, y = two_classes(users, columns)
    probe = fit_probe(x, y)
    plain = LogisticRegression(C=probe.strength, tol=1e-10, max_iter=10_000)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(probe.score(x), plain.fit(z, y).decision_function(z), atol=1e-5)


def test_probe_finds_a_direction_and_no_noise() -> None:
    """A column that decides is found among noise; labels of chance give an AUC near .5."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((800, 10)) * np.array([1, 50, *[1] * 8])
    y = (x[:, 0] > 0.5).astype(int)
    chance = generator.integers(0, 2, 800)
    assert rank_auc(y[400:], fit_probe(x[:400], y[:400]).score(x[400:])) > 0.95
    found = rank_auc(chance[400:], fit_probe(x[:400], chance[:400]).score(x[400:]))
    assert abs(found - 0.5) < 0.1


def test_probe_is_repeatable_and_ignores_constant_columns() -> None:
    """The same data give the same bits, and a constant column changes no score."""
    x, y = two_classes(100, 5)
    np.testing.assert_array_equal(fit_probe(x, y).score(x), fit_probe(x, y).score(x))
    wider = np.hstack([x, np.full((100, 1), 3.0)])
    np.testing.assert_allclose(
        fit_probe(wider, y).score(wider), fit_probe(x, y).score(x), atol=1e-6
    )


def test_the_columns_of_one_vector_share_one_scale() -> None:
    """Its columns keep their proportions; columns beside it have each its own scale, and scores
    are those of scikit-learn on columns scaled in this way.
    """
    x, y = two_classes(200, 8)
    vector = slice(2, 6)
    probe, scale = fit_probe(x, y, vector=vector), x.std(axis=0)
    scale[vector] = scale[vector].mean()
    np.testing.assert_allclose(probe.scale, scale)
    z = (x - x.mean(axis=0)) / scale
    plain = LogisticRegression(C=probe.strength, tol=1e-10, max_iter=10_000)
    np.testing.assert_allclose(probe.score(x), plain.fit(z, y).decision_function(z), atol=1e-5)


def test_probe_needs_two_of_each_class() -> None:
    """One positive user cannot be cross-validated."""
    with pytest.raises(SourceError, match="rarer class has 1"):
        fit_probe(np.zeros((4, 1)), np.array([0, 0, 0, 1]))


def test_folds_hold_each_class_in_equal_parts() -> None:
    """Five folds of 103 users with 12 positives: sizes differ by one at most, so do positives."""
    y = np.array([1] * 12 + [0] * 91)
    folds = stratified_folds(y, 5, seed=3)
    assert np.ptp(np.bincount(folds)) <= 1
    assert np.ptp(np.bincount(folds[y == 1])) <= 1
    np.testing.assert_array_equal(folds, stratified_folds(y, 5, seed=3))
    assert (folds != stratified_folds(y, 5, seed=4)).any()


def test_a_held_out_label_never_reaches_its_own_score() -> None:
    """Flipping one user's label leaves the scores of its own fold as they were."""
    x, y = two_classes(120, 8)
    folds = stratified_folds(y, 5, seed=0)
    flipped = y.copy()
    flipped[7] = 1 - flipped[7]
    same_fold = folds == folds[7]
    before, after = out_of_fold(x, y, folds), out_of_fold(x, flipped, folds)
    np.testing.assert_array_equal(before[same_fold], after[same_fold])
    assert (before != after).any()


def test_out_of_fold_is_honest_about_noise_and_good_on_signal() -> None:
    """Labels of chance score near .5 over many columns; a signal is found."""
    generator = np.random.default_rng(1)
    noise, chance = generator.standard_normal((400, 50)), generator.integers(0, 2, 400)
    folds = stratified_folds(chance, 5, seed=0)
    assert abs(rank_auc(chance, out_of_fold(noise, chance, folds)) - 0.5) < 0.08
    x, y = two_classes(400, 10)
    assert rank_auc(y, out_of_fold(x, y, stratified_folds(y, 5, seed=0))) > 0.85


def test_a_probe_trained_on_one_matrix_scores_another() -> None:
    """Columns turned to noise in the second matrix lose the signal; the same matrix keeps it."""
    x, y = two_classes(300, 6)
    folds = stratified_folds(y, 5, seed=0)
    noise = np.random.default_rng(5).permutation(x)
    same, lost = transferred(x, [x, noise], y, folds)
    assert rank_auc(y, lost) < 0.6
    np.testing.assert_array_equal(same, out_of_fold(x, y, folds))


def test_a_score_among_the_columns_is_kept_when_labels_are_few() -> None:
    """With ten labels, a good score that starts at weight 1 outdoes one learned anew."""
    generator = np.random.default_rng(4)
    y = generator.integers(0, 2, 600)
    good = y + generator.standard_normal(600)
    x = np.column_stack([generator.standard_normal((600, 40)), good])
    start = np.append(np.zeros(40), 1.0)
    few = np.r_[np.flatnonzero(y == 0)[:5], np.flatnonzero(y == 1)[:5]]
    kept, anew = (fit_probe(x[few], y[few], start=s).score(x) for s in (start, None))
    assert rank_auc(y, kept) > rank_auc(y, anew) + 0.05
    assert rank_auc(y, kept) > rank_auc(y, good) - 0.03


def test_rank_auc_and_quantiles_count_ties_half() -> None:
    """AUC agrees with scikit-learn on scores full of ties; equal scores share one quantile."""
    generator = np.random.default_rng(2)
    y, score = generator.integers(0, 2, 200), generator.integers(0, 6, 200)
    assert rank_auc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    np.testing.assert_allclose(quantiles(np.array([2.0, 1.0, 2.0, 9.0])), [0.5, 0.125, 0.5, 0.875])
