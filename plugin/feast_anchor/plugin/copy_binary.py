"""Rows in PostgreSQL's binary COPY format, without a Python object per number.

A row is the count of its fields (int16), then each field's size in bytes (int32) and its value; all
is big-endian. A null has the size -1 and no value. An array's elements have a size each, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np
import pyarrow as pa

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, no flags, no extension
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_YEAR_2000 = 946_684_800_000_000  # PostgreSQL counts microseconds from there
_FLOAT4 = 700  # oid of the element type
_ARRAY = [("size", ">i4"), ("ndim", ">i4"), ("nulls", ">i4"), ("oid", ">i4"), ("dim", ">i4")]
_ARRAY += [("first", ">i4")]  # index of the first element: 1
_ELEMENT = np.dtype([("size", ">i4"), ("value", ">f4")])


def copy_binary(rows: pa.Table, batch: int) -> Iterator[bytes]:
    """The whole COPY stream of some rows, `batch` rows at a time.

    Args:
        rows: columns of strings, int64, timestamps in microseconds, float32, and vectors of
            float32 that have one length per column; nulls anywhere.
    """
    yield _HEADER
    count = rows.num_columns.to_bytes(2, "big")
    for part in rows.to_batches(max_chunksize=batch):
        fields = zip(repeat(count), *(_nullable(column) for column in part.columns))
        yield b"".join(chain.from_iterable(fields))
    yield _TRAILER


def _nullable(column: pa.Array) -> list[bytes]:
    """Every row's field."""
    if column.null_count == 0:
        return _fields(column)
    known = iter(_fields(column.drop_null()))
    return [next(known) if valid else _NULL for valid in column.is_valid().to_pylist()]


def _fields(column: pa.Array) -> list[bytes]:
    kind = column.type
    if pa.types.is_string(kind):
        texts = [text.encode() for text in column.to_pylist()]
        return [len(text).to_bytes(4, "big") + text for text in texts]
    if pa.types.is_list(kind):
        return _vectors(column)
    if pa.types.is_timestamp(kind):
        return _numbers(column.cast(pa.int64()).to_numpy() - _YEAR_2000, ">i8")
    return _numbers(column.to_numpy(), ">i8" if pa.types.is_integer(kind) else ">f4")


def _numbers(values: np.ndarray[Any, Any], kind: str) -> list[bytes]:
    fields = np.empty(len(values), [("size", ">i4"), ("value", kind)])
    fields["size"], fields["value"] = fields.dtype["value"].itemsize, values
    return _cut(fields)


def _vectors(column: pa.Array) -> list[bytes]:
    values = column.flatten().to_numpy()
    matrix = values.reshape(len(column), -1) if len(column) else values.reshape(0, 0)  # [rows, dim]
    dim = matrix.shape[1]
    fields = np.zeros(len(matrix), [*_ARRAY, ("elements", _ELEMENT, (dim,))])
    fields["size"] = fields.dtype.itemsize - 4
    fields["ndim"], fields["oid"], fields["dim"], fields["first"] = 1, _FLOAT4, dim, 1
    fields["elements"]["size"], fields["elements"]["value"] = 4, matrix
    return _cut(fields)


def _cut(fields: np.ndarray[Any, Any]) -> list[bytes]:
    raw, size = fields.tobytes(), fields.dtype.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
