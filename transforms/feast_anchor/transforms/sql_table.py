"""Event tables in a SQL database, through SQLAlchemy: streamed, typed once, and watched.

A live table grows while a job runs, so only rows before the last as-of (or without a timestamp)
are asked for, each piece's rows are counted when the job is planned, and a piece that then reads
another number is refused: the table changed. Identifiers come from reflection and are quoted by
SQLAlchemy, values are bound; no SQL is built from strings.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.exc import NoSuchTableError, SAWarning, SQLAlchemyError
from sqlalchemy.pool import NullPool

from feast_anchor.onnx_export.errors import SourceError

from .sql_types import UTC_STAMP, arrow_field, selected
from .sql_url import check_url, expand, public, redacted
from .tables import BATCH_ROWS, Until, stored_type

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A wall clock may have been set back after it showed the as-of: never leave out a row for it.
_CLOCK_CHANGE = timedelta(hours=1)
# SQLite compares timestamps as text, where "2024-03-01T05" comes after "2024-03-01 12", and an
# offset such as "+14:00" counts for nothing.
_TEXT_STAMPS = timedelta(days=2)
_SHOWN = 20  # tables named in a message
_WARNINGS = Lock()  # Python's filters are the whole process's, and pieces are read by threads


@dataclass(frozen=True)
class SqlTable:
    """A table or view of a database.

    Args:
        url: SQLAlchemy URL, or a template with environment variables (see `sql_url`).
        table: "orders" or "schema.orders".
        partition_column: integer column whose ranges are read side by side.
        partitions: how many ranges.
        folder: where a relative SQLite path starts.
    """

    url: str
    table: str
    partition_column: str | None = None
    partitions: int = 1
    folder: str = ""

    def __post_init__(self) -> None:
        check_url(self.url)

    def schemas(self) -> Iterator[tuple[str, pa.Schema]]:
        """The one schema, from the reflected column types; checks the partition column too."""
        with self.connected() as connection:
            found = self.reflected(connection)
        self._check_partition_column(found)
        yield f"table {self.table!r}", pa.schema([arrow_field(column) for column in found.columns])

    def snapshot(self, until: Until) -> list[object]:
        """Which database and table, rows per piece and the newest timestamp, all before `until`.

        A row that is changed in place, without changing any of these, is not seen.
        """
        pieces, newest = self._plan(until)
        url = expand(self.url, self.folder)
        return [public(url), self.table, [piece.rows for piece in pieces], str(newest)]

    def pieces(self, until: Until) -> list[SqlPiece]:
        """The table's key ranges with their rows counted, and its rows without a key."""
        return self._plan(until)[0]

    def _plan(self, until: Until) -> tuple[list[SqlPiece], object]:
        """The pieces, counted by one statement: they belong to one state of the table."""
        with self.connected() as connection:
            found = self.reflected(connection)
            ranges = self._ranges(connection, found, until)
            counts = [
                sa.func.count(sa.case((self.inside(found, bounds), 1))).label(f"rows_{number}")
                for number, bounds in enumerate(ranges)
            ]
            stamp = self.column(found, until.column)
            counted = sa.select(sa.func.max(stamp), *counts).where(self.wanted(found, until))
            with self.well_typed():
                newest, *rows = connection.execute(counted).one()
        pieces = [
            SqlPiece(self, until, bounds, int(number))
            for bounds, number in zip(ranges, rows, strict=True)
        ]
        return pieces, newest

    def _ranges(self, connection: sa.Connection, found: sa.Table, until: Until) -> list[Range]:
        """Ranges of the partition column; open at both ends, so that no new key is overlooked."""
        if self.partition_column is None or self.partitions == 1:
            return [Range()]
        column = self.column(found, self.partition_column)
        ends = sa.select(sa.func.min(column), sa.func.max(column)).where(self.wanted(found, until))
        with self.well_typed():
            low, high = (
                None if end is None else int(end) for end in connection.execute(ends).one()
            )
        if low is None or high is None:
            return [Range(), Range(nulls=True)]
        size = high - low + 1
        steps = [low + size * n // self.partitions for n in range(1, self.partitions)]
        borders = [None, *dict.fromkeys(step for step in steps if step > low), None]
        return [*(Range(a, b) for a, b in pairwise(borders)), Range(nulls=True)]

    def wanted(self, found: sa.Table, until: Until) -> sa.ColumnElement[bool]:
        """The condition on the timestamp: before the end, or null."""
        stamp = self.column(found, until.column)
        moment = _EPOCH + timedelta(microseconds=until.before)
        if arrow_field(stamp).type == UTC_STAMP:
            return sa.or_(stamp < moment, stamp.is_(None))
        moment = _wall_clock(moment, until.timezone) + _CLOCK_CHANGE
        if expand(self.url, self.folder).get_backend_name() != "sqlite":
            return sa.or_(stamp < moment, stamp.is_(None))
        text = sa.type_coerce(stamp, sa.String)  # what is no ISO date is read, and refused
        return sa.or_(stamp < moment + _TEXT_STAMPS, stamp.is_(None), text.not_like("____-__-__%"))

    def inside(self, found: sa.Table, bounds: Range) -> sa.ColumnElement[bool]:
        """The condition on the partition column."""
        if bounds == Range():
            if self.partition_column is None or self.partitions == 1:
                return sa.true()
            return self.column(found, self.partition_column).is_not(None)
        column = self.column(found, str(self.partition_column))
        if bounds.nulls:
            return column.is_(None)
        low = [] if bounds.low is None else [column >= bounds.low]
        high = [] if bounds.high is None else [column < bounds.high]
        return sa.and_(*low, *high)

    @contextmanager
    def connected(self) -> Iterator[sa.Connection]:
        """A connection of its own, closed at the end; errors say no secret."""
        url = expand(self.url, self.folder)
        if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
            raise SourceError(  # SQLite would make an empty database
                f"no SQLite file at {url.database!r} for table {self.table!r}; correct the "
                "SqlSource's url"
            )
        try:
            engine = sa.create_engine(url, poolclass=NullPool)
            with engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, ModuleNotFoundError) as error:
            raise SourceError(f"table {self.table!r}: {_told(error, url)}") from None

    @contextmanager
    def well_typed(self) -> Iterator[None]:
        """SQLite keeps anything in any column: what is not of its type is refused."""
        try:
            yield
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise SourceError(
                f"table {self.table!r} holds a value that is not of its column's type: {error}"
            ) from error

    def reflected(self, connection: sa.Connection) -> sa.Table:
        """The table as the database describes it. Raises `SourceError` when there is none."""
        schema, _, name = self.table.rpartition(".")
        try:
            with _WARNINGS, warnings.catch_warnings():  # of columns that nobody may read
                warnings.simplefilter("ignore", SAWarning)
                return sa.Table(
                    name,
                    sa.MetaData(),
                    schema=schema or None,
                    autoload_with=connection,
                    resolve_fks=False,
                )
        except NoSuchTableError:
            there = sa.inspect(connection)
            names = [*there.get_table_names(schema or None), *there.get_view_names(schema or None)]
            raise SourceError(
                f"no table or view {self.table!r}; its schema has {sorted(names)[:_SHOWN]}. "
                "Correct the SqlSource's table: 'orders' or 'schema.orders'"
            ) from None

    def column(self, found: sa.Table, name: str) -> sa.Column[Any]:
        """One column of the reflected table. Raises `SourceError` when it has none such."""
        if name not in found.columns:
            raise SourceError(
                f"table {self.table!r} has no column {name!r}; it has {found.columns.keys()}"
            )
        return found.columns[name]

    def _check_partition_column(self, found: sa.Table) -> None:
        if self.partition_column is None:
            return
        field = arrow_field(self.column(found, self.partition_column))
        if not pa.types.is_integer(field.type):
            raise SourceError(
                f"table {self.table!r}: partition_column {field.name!r} is {stored_type(field)}, "
                "expected an integer column"
            )


@dataclass(frozen=True)
class Range:
    """Keys from `low` (included) to `high` (not), None for no border; or the rows without a key."""

    low: int | None = None
    high: int | None = None
    nulls: bool = False


@dataclass(frozen=True)
class SqlPiece:
    """One key range of a table, and the rows that it held when it was counted."""

    table: SqlTable
    until: Until
    bounds: Range
    rows: int

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream some columns through a server-side cursor.

        Raises `SourceError` when a value is not of its column's type, the database fails, or the
        number of rows is not the planned one.
        """
        read = 0
        with self.table.connected() as connection:
            found = self.table.reflected(connection)
            chosen = [self.table.column(found, name) for name in columns]
            query = sa.select(*map(selected, chosen)).where(
                self.table.wanted(found, self.until), self.table.inside(found, self.bounds)
            )
            schema = pa.schema([arrow_field(column) for column in chosen])
            streaming = connection.execution_options(yield_per=BATCH_ROWS)
            with closing(streaming.execute(query)) as result:
                for batch in self._typed(result, schema):
                    read += batch.num_rows
                    yield batch
        if read != self.rows:
            raise SourceError(
                f"table {self.table.table!r} changed while it was read: {self.rows} rows were "
                f"planned and {read} read; run it again, on a table that is not written to "
                "before the last as-of"
            )

    def _typed(self, result: sa.CursorResult[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        partitions = result.partitions()
        while True:
            with self.table.well_typed():
                rows = next(partitions, None)
                if rows is None:
                    return
                values = zip(*rows, strict=True)
                columns = [self._array(v, f) for v, f in zip(values, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _array(self, values: tuple[Any, ...], field: pa.Field) -> pa.Array:
        if field.name == self.until.column and self.until.timezone != "UTC":
            _check_offsets(values, field)
        return pa.array(values, field.type)


def _check_offsets(values: tuple[Any, ...], field: pa.Field) -> None:
    """SQLite's text may hold an offset where its column has none; only UTC can mean both."""
    if field.type != UTC_STAMP and any(v is not None and v.tzinfo is not None for v in values):
        raise ValueError(
            f"column {field.name!r} holds timestamps with an offset; declare the modality with "
            "timezone='UTC', in which they are then read"
        )


def _wall_clock(moment: datetime, timezone: str | None) -> datetime:
    """What clocks in a zone show at an instant, by Arrow's tables, as they are read later."""
    stamp = pa.scalar(moment, UTC_STAMP).cast(pa.timestamp("us", tz=timezone or "UTC"))
    shown: datetime = pc.local_timestamp(stamp).as_py()
    return shown


def _told(error: Exception, url: sa.URL) -> str:
    """The first line of a database's complaint, without secrets."""
    if isinstance(error, ModuleNotFoundError):
        return f"the database driver {error.name!r} is not installed; pip install it"
    lines = redacted(str(getattr(error, "orig", None) or error), url).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"
