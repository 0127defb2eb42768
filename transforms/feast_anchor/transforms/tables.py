"""What an event table must offer to be read, whatever it is kept in.

The law of this module: a table is cut into pieces of known size before any row is read, and every
piece can be read alone, on any worker, with a bounded number of rows in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

BATCH_ROWS = 65_536

# Field metadata: the column is in no file, the name of a folder holds its value.
FOLDER = b"folder"
# Field metadata: the type as the table's own system calls it, for messages.
STORED_AS = b"stored_as"


@dataclass(frozen=True)
class Until:
    """Which rows matter: those whose timestamp is before an instant, or null.

    Tables that grow while they are read (SQL) leave later rows out; files ignore it.
    """

    column: str  # the timestamp's name in the table
    before: int  # microseconds since the epoch, UTC
    timezone: str | None  # zone of timestamps stored without one


class Piece(Protocol):
    """A part of a table that one worker reads. A plain value: Beam sends it to other processes."""

    @property
    def rows(self) -> int:
        """How many rows it holds."""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch | pa.Table]:
        """Stream some columns, at most `BATCH_ROWS` rows at a time.

        Raises `SourceError` when the rows cannot be read or are no longer those planned.
        """


class Table(Protocol):
    """An event table. A plain value too: it holds no connection and no open file."""

    def schemas(self) -> Iterator[tuple[str, pa.Schema]]:
        """Every part that has a schema of its own: what to call it, and its Arrow schema."""

    def snapshot(self, until: Until) -> list[object]:
        """What changes when the rows change, as JSON values."""

    def pieces(self, until: Until) -> Sequence[Piece]:
        """The table's pieces; together they hold each row that matters once."""


def stored_type(field: pa.Field) -> str:
    """A column's type for messages: as the table's own system calls it where it says so."""
    name = (field.metadata or {}).get(STORED_AS)
    return str(field.type) if name is None else name.decode()
