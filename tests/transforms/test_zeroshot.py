"""Scores by hand, and the same bits in whatever company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.transforms.zeroshot import Answers, score_axes, scores

Floats = np.ndarray[Any, np.dtype[np.float32]]

YES_NO = Answers(("yes",), ("no",))


@dataclass
class FakeBundle:
    """Answers known by heart, and a record of what was encoded."""

    known: dict[str, list[float]]
    asked: list[list[str]] = field(default_factory=list)

    def answer_vectors(self, texts: Sequence[str]) -> Floats:
        """What `Bundle.answer_vectors` gives."""
        self.asked.append(list(texts))
        return np.array([self.known[text] for text in texts], dtype=np.float32)


@pytest.fixture
def fake() -> FakeBundle:
    """Four answers on a plane."""
    return FakeBundle({"yes": [1, 0], "sure": [0.6, 0.8], "no": [-1, 0], "never": [0, -1]})


def axes(fake: FakeBundle, *wanted: Answers) -> dict[Answers, Floats]:
    """Axes of some answers as the fake bundle knows them."""
    return score_axes(cast("Bundle", fake), wanted)


def vectors(*rows: Sequence[float]) -> Floats:
    """User vectors."""
    return np.array(rows, dtype=np.float32)


def test_a_score_runs_from_minus_two_to_two(fake: FakeBundle) -> None:
    """The positive answer itself scores two, the negative one minus two, one between both zero."""
    found = scores(vectors([1, 0], [-1, 0], [0, 1], [0.6, 0.8]), axes(fake, YES_NO)[YES_NO])
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([2, -2, 0, 1.2])


def test_each_side_is_the_mean_over_its_answers(fake: FakeBundle) -> None:
    """Two answers against one: each of the two counts half."""
    answers = Answers(("sure", "yes"), ("never",))
    found = scores(vectors([1, 0], [0, 1]), axes(fake, answers)[answers])
    assert found.tolist() == pytest.approx([(1 + 0.6) / 2 - 0, (0 + 0.8) / 2 + 1])


def test_each_answer_is_encoded_once(fake: FakeBundle) -> None:
    """However many scores use it; without a score nothing is encoded."""
    other = Answers(("no",), ("sure", "yes"))
    assert axes(fake, YES_NO, other, YES_NO).keys() == {YES_NO, other}
    assert fake.asked == [["no", "sure", "yes"]]
    assert axes(fake) == {}
    assert len(fake.asked) == 1


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 300), dim=st.integers(1, 200), seed=st.integers(0, 9))
def test_company_changes_no_bit(rows: int, dim: int, seed: int) -> None:
    """A vector alone, among others, or cut out of a wider array has the same score."""
    generator = np.random.default_rng(seed)
    wide = generator.standard_normal((rows, 3, dim)).astype(np.float32)
    axis = generator.standard_normal(dim).astype(np.float32)
    together = scores(wide[:, 1], axis)
    for row in {0, rows // 2, rows - 1}:
        alone = np.ascontiguousarray(wide[row : row + 1, 1])
        assert scores(alone, axis).tobytes() == together[row : row + 1].tobytes()


def test_an_axis_does_not_depend_on_the_other_answers(shop_bundle: Path) -> None:
    """A real bundle gives one pair of answer lists the same bits alone and among others."""
    bundle = Bundle.open(shop_bundle)
    other = Answers(("bread", "green tea or oat milk"), ("soap",))
    assert (
        score_axes(bundle, [other, YES_NO])[YES_NO].tobytes()
        == score_axes(bundle, [YES_NO])[YES_NO].tobytes()
    )
    positive, negative = bundle.answer_vectors(["yes", "no"])
    np.testing.assert_allclose(
        score_axes(bundle, [YES_NO])[YES_NO], positive - negative, rtol=0, atol=1e-7
    )
