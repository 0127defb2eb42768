from __future__ import annotations

import numpy as np

from feast_anchor.onnx_export.topics import field_values, find_topics, template_words


def test_template_is_read_backwards() -> None:
    """The values that were filled into a template come out again, lower-cased."""
    values = field_values("{item} in {shop}", "Red Tomatoes in PRODUCE")
    assert values == {"item": "red tomatoes", "shop": "produce"}
    assert field_values("{item} in {shop}", "something else") == {}


def test_template_that_repeats_a_column_is_read() -> None:
    """A column used twice must hold the same value twice."""
    assert field_values("{a} and {a}", "x and x") == {"a": "x"}
    assert field_values("{a} and {a}", "x and y") == {}


def test_words_of_a_template() -> None:
    """Words that every text has describe the modality; short ones alone say nothing."""
    assert template_words("redeemed a {kind} coupon for {shop}") == "redeemed a coupon for"
    assert template_words("{item} in {shop}") == ""


def test_topics_split_months_most_evenly_first() -> None:
    """A topic of half the months counts, one of a single month or of all months does not."""
    texts = ["tea in all", "ham in all", "soap in all"]
    text_of = np.array([0, 0, 1, 2, 2, 2, 2])
    month_of = np.array([0, 1, 0, 0, 1, 2, 3])
    found = find_topics("{item} in {shop}", texts, text_of, month_of, limit=5)
    assert [(t.name, t.texts) for t in found] == [("tea", (0,))]


def test_topics_with_the_same_months_are_one() -> None:
    """A word that only ever occurs in one value is not asked about twice."""
    texts = ["soft drinks in x", "ham in y"]
    found = find_topics(
        "{item} in {shop}", texts, np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]), limit=9
    )
    assert len(found) == 2
