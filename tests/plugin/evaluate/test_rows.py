from __future__ import annotations

import numpy as np
import pytest

from feast_anchor.plugin.evaluate import rows


def test_two_rows_are_averaged_as_log_odds() -> None:
    """By hand: odds of 3 and 1/3 make even, equal ones stay, no label stays none."""
    one = np.array([[[0.75, 0.9, np.nan]]])
    other = np.array([[[0.25, 0.9, np.nan]]])
    found = rows.averaged(one, other)
    np.testing.assert_allclose(found, [[[0.0, np.log(9.0), np.nan]]], atol=1e-12)


def test_averages_are_of_the_regression_and_the_row_that_they_name() -> None:
    """Each of the averaged rows ranks by both of its parts."""
    levels = {
        rows.LOGISTIC: 0.5,
        rows.RIGHT: 0.6,
        rows.RIGHT_ZERO: 0.7,
        rows.TREES: 0.8,
        rows.NONE: 0.9,
    }
    found = dict(rows.averaged_rows({n: np.full((1, 1, 1), q) for n, q in levels.items()}))
    expected = {
        rows.AND_RIGHT: np.log(0.6 / 0.4) / 2,
        rows.AND_RIGHT_ZERO: np.log(0.7 / 0.3) / 2,
        rows.AND_TREES: np.log(0.8 / 0.2) / 2,
        rows.AND_NONE: np.log(0.9 / 0.1) / 2,
    }
    assert {name: row.item() for name, row in found.items()} == pytest.approx(expected)
