"""Event tables: find them, check them, read them, and turn every row into an event or a reason.

The law of this module: no row disappears. A row that cannot be used keeps its place in the table
with `rejected` set to the reason, so that whoever reads further can count. Problems of a whole
table (a missing column, a naive timestamp) are found from its schema, before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.manifest import canonical_sha256
from feast_anchor.onnx_export.text import render, template_columns

from .parquet_table import ParquetPiece, ParquetTable
from .sql_table import SqlPiece, SqlTable
from .tables import FOLDER, Until, stored_type

# An event as it travels: the canonical event, or what is left of it and why it was rejected.
ROW_SCHEMA = pa.schema(
    [
        pa.field("user", pa.string()),
        pa.field("event_timestamp", pa.timestamp("us", tz="UTC")),
        pa.field("modality", pa.int16()),
        pa.field("text", pa.string()),
        pa.field("amount", pa.float32()),
        pa.field("rejected", pa.string()),
    ]
)

NULL_KEY = "null_key"
NULL_TIMESTAMP = "null_timestamp"
BAD_AMOUNT = "amount_not_finite"
NO_TEXT = "no_text"

_ONE_DAY = pa.scalar(86_400_000_000, pa.duration("us"))
_MICROSECOND = pa.scalar(1, pa.duration("us"))


@dataclass(frozen=True)
class EventSource:
    """One modality's event table, as a view declares it.

    `columns` maps the names used here (key, timestamp, amount, template columns) to the names in
    the table, for Feast field mappings. `timezone` is the zone of timestamps stored without one.
    """

    modality: str
    index: int  # position in the bundle's manifest
    table: ParquetTable | SqlTable
    key: str
    timestamp: str
    text: str
    amount: str | None = None
    timezone: str | None = None
    key_type: str = "string"  # Arrow type of the entity's join key: "string" or "int64"
    field_mapping: tuple[tuple[str, str], ...] = ()  # (name in the table, name used here)

    @property
    def columns(self) -> dict[str, str]:
        """Every column this source reads: name used here -> name in the table."""
        used = [self.key, self.timestamp, *template_columns(self.text)]
        if self.amount is not None:
            used.append(self.amount)
        physical = {logical: stored for stored, logical in self.field_mapping}
        return {name: physical.get(name, name) for name in dict.fromkeys(used)}


@dataclass(frozen=True)
class ReadTask:
    """A piece of one source that one worker reads."""

    source: int  # position in the job's sources
    piece: ParquetPiece | SqlPiece

    @property
    def rows(self) -> int:
        """How many rows the piece holds."""
        return self.piece.rows


def check_source(source: EventSource) -> None:
    """Compare a source's declaration with its table's schemas.

    Raises:
        SourceError: no table, one that cannot be opened, a missing column, a column of the wrong
            type, or timestamps without a time zone where none was declared.
        SpecError: a database URL whose environment variable is not set.
    """
    with _named(source):
        for where, schema in source.table.schemas():
            check_schema(source, where, schema)


def check_schema(source: EventSource, where: str, schema: pa.Schema) -> None:
    """Compare a source's declaration with one schema, found at `where`; raises `SourceError`."""
    missing = [stored for stored in source.columns.values() if stored not in schema.names]
    if missing:
        raise SourceError(
            f"{where} has no column {missing}; it has {schema.names}. Correct the feature view's "
            "schema, field mapping or template"
        )
    _check_types(source, f"{where} column", schema)


def input_snapshot(sources: tuple[EventSource, ...], before: int) -> str:
    """Fingerprint of the tables as they are now, and of how they are read.

    Args:
        sources: checked sources.
        before: last as-of, microseconds since the epoch, UTC; later rows of a SQL table do not
            count. Parquet files are known by path, size and modification time.
    """
    listing = []
    for source in sources:
        with _named(source):
            listing.append([source.modality, *source.table.snapshot(_until(source, before))])
    return canonical_sha256([[asdict(source) for source in sources], listing])


def read_tasks(sources: tuple[EventSource, ...], before: int) -> list[ReadTask]:
    """Cut all sources into pieces whose rows are counted; `before` as of `input_snapshot`."""
    tasks = []
    for index, source in enumerate(sources):
        with _named(source):
            pieces = source.table.pieces(_until(source, before))
        tasks += [ReadTask(index, piece) for piece in pieces]
    return tasks


def read(
    source: EventSource, task: ReadTask, only: Callable[[pa.Array], pa.Array] | None = None
) -> Iterator[pa.Table]:
    """Stream one task as tables of `ROW_SCHEMA`, a bounded number of rows at a time.

    Args:
        only: given the keys of some rows as strings, which rows to read (bool); else all.

    Raises `SourceError` when the table is no longer what was planned.
    """
    names = source.columns
    with _named(source):
        for batch in task.piece.batches(tuple(dict.fromkeys(names.values()))):
            table = pa.table({name: batch.column(stored) for name, stored in names.items()})
            if only is not None:
                table = table.filter(only(pc.cast(table.column(source.key), pa.string())))
            yield canonical(source, table)


def read_keys(source: EventSource, task: ReadTask) -> Iterator[pa.Array]:
    """The distinct keys of each batch of a task, as strings; null among them where rows have none.

    Much quicker than `read`: no other column is touched.
    """
    stored = source.columns[source.key]
    with _named(source):
        for batch in task.piece.batches((stored,)):
            yield pc.cast(pc.unique(batch.column(stored)), pa.string())


def canonical(source: EventSource, table: pa.Table) -> pa.Table:
    """Turn rows of one table into `ROW_SCHEMA`, each an event or a rejected row with its reason.

    Reasons, first that applies: `null_key` (null or empty), `null_timestamp`,
    `amount_not_finite` (null, NaN or infinite where an amount is declared), `no_text` (every
    column of the template is null).
    """
    user = pc.cast(table.column(source.key), pa.string())
    timestamp = _to_utc(table.column(source.timestamp), source.timezone)
    text = render(source.text, table)
    amount, bad_amount = _amount(source, table)
    null_key = pc.or_kleene(pc.is_null(user), pc.equal(pc.fill_null(user, ""), ""))
    reason = pc.case_when(
        pc.make_struct(null_key, pc.is_null(timestamp), bad_amount, pc.is_null(text)),
        *(pa.scalar(name) for name in (NULL_KEY, NULL_TIMESTAMP, BAD_AMOUNT, NO_TEXT)),
    )
    modality = pa.repeat(pa.scalar(source.index, pa.int16()), table.num_rows)
    columns = [user, timestamp, modality, text, amount, reason]
    return pa.table(
        [pc.cast(column, field.type) for column, field in zip(columns, ROW_SCHEMA, strict=True)],
        schema=ROW_SCHEMA,
    )


def _amount(source: EventSource, table: pa.Table) -> tuple[Any, Any]:
    rows = table.num_rows
    if source.amount is None:
        return pa.repeat(pa.scalar(0.0, pa.float32()), rows), pa.repeat(pa.scalar(False), rows)
    amount = table.column(source.amount)
    if pa.types.is_decimal(amount.type):  # cast directly, 0.10 is not the float32 nearest to 0.1
        amount = pc.cast(pc.cast(amount, pa.string()), pa.float64())
    amount = pc.cast(amount, pa.float32(), safe=False)
    return amount, pc.invert(pc.fill_null(pc.is_finite(amount), False))


def _until(source: EventSource, before: int) -> Until:
    return Until(source.columns[source.timestamp], before, source.timezone)


@contextmanager
def _named(source: EventSource) -> Iterator[None]:
    """Say in a table's errors whose table it is."""
    try:
        yield
    except SourceError as error:
        told = SourceError(f"modality {source.modality!r}: {error}")
        raise told.with_traceback(error.__traceback__) from error.__cause__


def _to_utc(column: Any, timezone: str | None) -> Any:
    if pa.types.is_date32(column.type):  # a folder's: the day's last instant, for the same reason
        midnight = pc.cast(column, pa.timestamp("us"))
        column = pc.subtract(pc.add(midnight, _ONE_DAY), _MICROSECOND)
    if column.type.tz is None:
        # A clock set back shows an hour twice; the later reading never lets an event be seen
        # before it happened.
        column = pc.assume_timezone(
            column, timezone=timezone or "UTC", ambiguous="latest", nonexistent="latest"
        )
    return pc.cast(column, pa.timestamp("us", tz="UTC"), safe=False)


def _check_types(source: EventSource, where: str, schema: pa.Schema) -> None:
    def check(name: str, *, good: bool, expected: str) -> None:
        field = schema.field(source.columns[name])
        if not good:
            raise SourceError(f"{where} {field.name!r} is {stored_type(field)}{expected}")

    def kind(name: str) -> pa.DataType:
        return schema.field(source.columns[name]).type

    check(
        source.key,
        good=_is_key(kind(source.key)),
        expected=", expected a string or integer entity key (pandas turns integers with nulls "
        "into floats: write them as Int64 or strings)",
    )
    check(
        source.key,
        good=source.key_type != "int64" or pa.types.is_integer(kind(source.key)),
        expected=", expected an integer because the entity is declared with INT64 keys; cast the "
        "column, or declare the entity as STRING",
    )
    stamp = schema.field(source.columns[source.timestamp])
    check(
        source.timestamp,
        good=pa.types.is_timestamp(stamp.type) or _is_folder_date(stamp),
        expected=", expected a timestamp with a time zone",
    )
    check(
        source.timestamp,
        good=source.timezone is not None or getattr(stamp.type, "tz", None) is not None,
        expected=" without a time zone; write it as timestamp[us, tz=UTC], or say what zone it is "
        "in: Modality(..., timezone='UTC')",
    )
    if source.amount is not None:
        check(
            source.amount,
            good=_is_number(kind(source.amount)),
            expected=", expected a number because it is declared as the amount",
        )
    for name in template_columns(source.text):
        check(
            name,
            good=_is_text(kind(name)),
            expected=f", expected text, a number, a boolean or a time because the template "
            f"{source.text!r} reads it",
        )


def _is_folder_date(field: pa.Field) -> bool:
    """A date that a folder's name holds; a date in the table may be a mistaken choice of column."""
    return pa.types.is_date32(field.type) and FOLDER in (field.metadata or {})


def _is_key(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_integer(plain)
    )


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    # Bytes would be cast too, until one of them is not UTF-8.
    return not (
        pa.types.is_nested(plain)
        or pa.types.is_binary(plain)
        or pa.types.is_large_binary(plain)
        or pa.types.is_binary_view(plain)
        or pa.types.is_fixed_size_binary(plain)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
