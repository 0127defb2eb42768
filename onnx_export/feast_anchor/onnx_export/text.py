"""From rows to the texts that the model reads, and from texts to token ids.

A modality's template, such as "{product_type} in {department}", turns each row into one short
text. Training and serving must render the same row to the same text, so both do it here.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import SpecError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MISSING = "unknown"  # what a null column reads as


def template_columns(template: str) -> tuple[str, ...]:
    """Names of the columns a template reads, in order of first use.

    Raises `SpecError` unless every placeholder is a plain column name: no indexes, attributes,
    conversions or format specifications, and at least one placeholder.
    """
    names = [name for _, name in _parts(template) if name is not None]
    if not names:
        raise SpecError(
            f"text template {template!r} names no column; expected something like "
            "'{product} in {department}'"
        )
    return tuple(dict.fromkeys(names))


def render(template: str, table: pa.Table | pa.RecordBatch) -> pa.ChunkedArray | pa.Array:
    """Render one text per row; a null or blank column reads as "unknown".

    Rows with nothing but nulls and blanks are null.

    Args:
        template: the modality's template.
        table: has every column that the template names.

    Returns:
        Arrow strings, as many as the table has rows.
    """
    columns = {name: _words(table.column(name)) for name in template_columns(template)}
    pieces: list[Any] = []
    for literal, name in _parts(template):
        if literal:
            pieces.append(literal)
        if name is not None:
            pieces.append(pc.fill_null(columns[name], MISSING))
    text = pc.binary_join_element_wise(*pieces, "")
    has_any = pc.is_valid(pc.coalesce(*columns.values()))
    return pc.if_else(has_any, text, pa.scalar(None, pa.string()))


def _words(column: Any) -> Any:
    """A column as strings, blanks as nulls."""
    words = pc.cast(column, pa.string())
    blank = pc.equal(pc.utf8_trim_whitespace(words), "")
    return pc.if_else(pc.fill_null(blank, False), pa.scalar(None, pa.string()), words)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, pad: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Token ids int64 [len(texts), max_tokens], cut and right-padded with `pad`.

    The width never depends on the other texts, so neither do the encoded vectors.
    """
    ids = np.full((len(texts), max_tokens), pad, dtype=np.int64)
    tokenizer.enable_truncation(max_tokens)  # keeps the special tokens that its post-processor adds
    for row, encoding in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        row[: len(encoding.ids)] = encoding.ids
    tokenizer.no_truncation()  # the decoder may read with the same tokenizer
    return ids


def answer_ids(tokenizer: Tokenizer, texts: Sequence[str], eos: int) -> list[list[int]]:
    """Token ids of each answer as the answer tower reads it: never cut, ending in `eos`."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[*encoding.ids, eos] for encoding in encodings]


def _parts(template: str) -> list[tuple[str, str | None]]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SpecError(f"text template {template!r} cannot be read: {error}") from error
    for _, name, spec, conversion in parsed:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise SpecError(
                f"text template {template!r} holds the placeholder {name!r}; expected plain "
                "column names in braces, without indexes, attributes or formats"
            )
    return [(literal, name) for literal, name, _, _ in parsed]
