"""From a database's column types to Arrow types, decided once per table and never per batch.

Integers become int64, every other number float64 (decimals too: the model reads float32), text and
UUIDs string, dates date32, timestamps microseconds: UTC where the database knows the instant, naive
where it does not. SQLite has no timestamps: columns declared DATETIME or TIMESTAMP hold ISO text,
which SQLAlchemy reads, and are naive. Every other type can be in the table, but not be read.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

from .tables import STORED_AS

UTC_STAMP = pa.timestamp("us", tz="UTC")
NAIVE_STAMP = pa.timestamp("us")
UNREADABLE = pa.binary()  # nothing that an event is made of


def arrow_field(column: sa.Column[Any]) -> pa.Field:
    """The Arrow field that a reflected column is read as."""
    kind = _plain(column.type)
    return pa.field(column.name, _arrow_type(kind), metadata={STORED_AS: _name(column.type)})


def selected(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """A reflected column as it is asked for: numbers as floats, UUIDs as text."""
    kind = _plain(column.type)
    if isinstance(kind, sa.Numeric | sa.Float):
        return sa.type_coerce(column, sa.Float(53)).label(column.name)
    if isinstance(kind, sa.Uuid):
        return sa.type_coerce(column, sa.Uuid(as_uuid=False)).label(column.name)
    return column


def _arrow_type(kind: TypeEngine[Any]) -> pa.DataType:
    if isinstance(kind, sa.DateTime):
        return UTC_STAMP if kind.timezone else NAIVE_STAMP
    # a Boolean is no Integer here, and Text, Enum and Unicode are Strings
    for family, arrow in (
        (sa.Boolean, pa.bool_()),
        (sa.Integer, pa.int64()),
        ((sa.Numeric, sa.Float), pa.float64()),
        ((sa.String, sa.Uuid), pa.string()),
        (sa.Date, pa.date32()),
        (sa.Time, pa.time64("us")),
    ):
        if isinstance(kind, family):
            return arrow
    return UNREADABLE


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """What a PostgreSQL domain is made of; any other type as it is."""
    return _plain(kind.data_type) if hasattr(kind, "data_type") else kind


def _name(kind: TypeEngine[Any]) -> str:
    unknown = isinstance(kind, sa.types.NullType)
    return "of a type that SQLAlchemy does not know" if unknown else type(kind).__name__
