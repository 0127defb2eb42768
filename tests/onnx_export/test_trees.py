from __future__ import annotations

import numpy as np
import pytest

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.evaluation import auc
from feast_anchor.onnx_export.trees import Array, _folds, fit_trees, window_scores


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


def drifting(users: int, moment: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Counts that grow from moment to moment, of which the first tells who says yes."""
    taste = generator.standard_normal(users)
    x = np.stack((taste + 10 * moment, generator.standard_normal(users)), axis=1)
    return x, taste + 0.3 * generator.standard_normal(users) > 0


def test_earlier_windows_rank_users_of_a_later_time() -> None:
    """Where counts have doubled since, ranks within each moment still tell who will say yes."""
    generator = np.random.default_rng(0)
    early = [drifting(150, moment, generator) for moment in (1, 2)]
    x, y = (np.concatenate(parts) for parts in zip(*early, strict=True))
    groups = [f"u{n}" for n in range(150)] * 2
    later, truth = drifting(150, 5, generator)
    scores = window_scores(x, y, np.repeat([1, 2], 150), groups, later, 0)
    assert auc(truth, scores) > 0.9
    np.testing.assert_array_equal(
        scores, window_scores(x, y, np.repeat([1, 2], 150), groups, later, 0)
    )


def test_rows_of_one_group_share_a_fold() -> None:
    """No user is on both sides of a fold, and every fold has both classes on both sides."""
    y, groups = np.repeat([0, 1, 0, 1] * 10, 5), np.repeat(np.arange(40), 5)
    folds = _folds(y, groups, 3, 0)
    assert len(folds) == 3
    for fit, held in folds:
        assert not set(groups[fit]) & set(groups[held])
        assert set(y[fit]) == set(y[held]) == {0, 1}
