from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.text import answer_ids, render, template_columns, tokenize
from feast_anchor.onnx_export.vocabulary import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer of a few words."""
    return train_tokenizer(["tea in dry", "ham in meat"], 300)


def test_columns_of_a_template_in_order_of_first_use() -> None:
    """Each column is named once."""
    assert template_columns("{b} in {a}, {b}") == ("b", "a")


@pytest.mark.parametrize(
    "template", ["{a[0]}", "{a.b}", "{a!r}", "{a:>9}", "{}", "{0}", "{a b}", "{a", "a}"]
)
def test_templates_hold_plain_column_names_only(template: str) -> None:
    """Indexes, attributes, conversions, formats and stray braces are refused."""
    with pytest.raises(SpecError, match="text template"):
        template_columns(template)


def test_a_template_without_columns_is_refused() -> None:
    """The same text for every row would say nothing."""
    with pytest.raises(SpecError, match="names no column"):
        template_columns("a purchase")


def test_rows_are_rendered_one_by_one() -> None:
    """Values are filled in; braces that are doubled are braces."""
    table = pa.table({"item": ["tea", "ham"], "n": [1, 2]})
    assert render("{{{n}}} {item}!", table).to_pylist() == ["{1} tea!", "{2} ham!"]


def test_null_columns_read_as_unknown_and_null_rows_are_null() -> None:
    """One missing value is said so; a row with nothing in it has no text."""
    table = pa.table({"item": ["tea", None, None], "shop": ["dry", "meat", None]})
    assert render("{item} in {shop}", table).to_pylist() == ["tea in dry", "unknown in meat", None]


def test_values_are_not_read_as_templates() -> None:
    """A value with braces in it is only a value."""
    table = pa.table({"item": ["{shop}"], "shop": ["dry"]})
    assert render("{item} in {shop}", table).to_pylist() == ["{shop} in dry"]


def test_numbers_and_times_render() -> None:
    """Columns that are not strings are cast by Arrow, the same everywhere."""
    when = datetime(2024, 1, 2, tzinfo=UTC)
    table = pa.table({"n": [1.5], "t": pa.array([when], pa.timestamp("us", tz="UTC"))})
    assert render("{n} {t}", table).to_pylist() == ["1.5 2024-01-02 00:00:00.000000Z"]


def test_tokens_are_cut_and_padded_to_one_width(tokenizer: Tokenizer) -> None:
    """The width is the limit, whatever the texts, so neighbours change nothing."""
    alone = tokenize(tokenizer, ["tea in dry"], 5, pad=999)
    both = tokenize(tokenizer, ["tea in dry", "ham in meat ham in meat ham in meat"], 5, pad=999)
    assert alone.shape == (1, 5)
    assert alone[0].tolist() == both[0].tolist()
    assert alone[0, -1] == 999
    assert 999 not in both[1]


def test_empty_text_is_padding_only(tokenizer: Tokenizer) -> None:
    """A text without a token is a row of padding, not an error."""
    assert tokenize(tokenizer, [""], 3, pad=7).tolist() == [[7, 7, 7]]


def test_an_answer_ends_in_eos_and_is_never_cut(tokenizer: Tokenizer) -> None:
    """However long it is and whatever stands beside it; a blank one is <EOS> alone."""
    long = "tea in dry " * 40
    ids = answer_ids(tokenizer, ["tea in dry", long, " "], eos=7)
    own = tokenizer.encode("tea in dry").ids
    assert ids == [[*own, 7], [*own * 40, 7], [7]]
