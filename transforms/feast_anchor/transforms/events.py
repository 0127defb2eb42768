"""Event tables: find them, check them, read them, and turn every row into an event or a reason.

The law of this module: no row disappears. A row that cannot be used keeps its place in the table
with `rejected` set to the reason, so that whoever reads further can count. Problems of a whole
table (a missing column, a naive timestamp) are found from its schema, before any work.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.manifest import canonical_sha256
from feast_anchor.onnx_export.text import render, template_columns

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

_BATCH_ROWS = 65_536
_TASK_ROWS = 1_000_000


@dataclass(frozen=True)
class EventSource:
    """One modality's event table, as a view declares it.

    `columns` maps the names used here (key, timestamp, amount, template columns) to the names in
    the files, for Feast field mappings. `timezone` is the zone of timestamps stored without one.
    """

    modality: str
    index: int  # position in the bundle's manifest
    path: str  # a Parquet file, a folder of them or a glob
    key: str
    timestamp: str
    text: str
    amount: str | None = None
    timezone: str | None = None
    key_type: str = "string"  # Arrow type of the entity's join key: "string" or "int64"
    field_mapping: tuple[tuple[str, str], ...] = ()  # (name in the files, name used here)

    @property
    def columns(self) -> dict[str, str]:
        """Every column this source reads: name used here -> name in the files."""
        used = [self.key, self.timestamp, *template_columns(self.text)]
        if self.amount is not None:
            used.append(self.amount)
        physical = {logical: stored for stored, logical in self.field_mapping}
        return {name: physical.get(name, name) for name in dict.fromkeys(used)}


@dataclass(frozen=True)
class ReadTask:
    """A piece of one source that one worker reads: some row groups of one file."""

    source: int  # position in the job's sources
    path: str
    row_groups: tuple[int, ...]
    rows: int


def files_of(source: EventSource) -> list[Path]:
    """The Parquet files behind a source's path, sorted. Raises `SourceError` if there are none."""
    path = Path(source.path)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*.parquet") if p.is_file())
    elif path.is_file():  # before any glob: a folder's own name may hold brackets
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(source.path, recursive=True))
    if not found:
        raise SourceError(
            f"modality {source.modality!r}: no Parquet file at {source.path!r}; expected a file, "
            "a folder or a glob"
        )
    return found


def check_source(source: EventSource) -> None:
    """Compare a source's declaration with its files' schemas.

    Raises:
        SourceError: no file, not Parquet, a missing column, a column of the wrong type, or
            timestamps without a time zone where none was declared.
    """
    for path in files_of(source):
        schema = _schema(source, path)
        missing = [stored for stored in source.columns.values() if stored not in schema.names]
        if missing:
            raise SourceError(
                f"modality {source.modality!r}: {path} has no column {missing}; it has "
                f"{schema.names}. Correct the feature view's schema, field mapping or template"
            )
        _check_types(source, path, schema)


def input_snapshot(sources: tuple[EventSource, ...]) -> str:
    """Fingerprint of the files as they are now: path, size and modification time of each."""
    listing = [
        [source.modality, path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
        for source in sources
        for path in files_of(source)
    ]
    return canonical_sha256([[asdict(source) for source in sources], listing])


def read_tasks(sources: tuple[EventSource, ...]) -> list[ReadTask]:
    """Cut all sources into pieces of about a million rows, at row-group borders."""
    tasks = []
    for index, source in enumerate(sources):
        for path in files_of(source):
            meta = pq.read_metadata(path)
            groups: list[int] = []
            rows = 0
            for group in range(meta.num_row_groups):
                groups.append(group)
                rows += meta.row_group(group).num_rows
                if rows >= _TASK_ROWS:
                    tasks.append(ReadTask(index, str(path), tuple(groups), rows))
                    groups, rows = [], 0
            if groups:
                tasks.append(ReadTask(index, str(path), tuple(groups), rows))
    return tasks


def read(
    source: EventSource, task: ReadTask, only: Callable[[pa.Array], pa.Array] | None = None
) -> Iterator[pa.Table]:
    """Stream one task as tables of `ROW_SCHEMA`, a bounded number of rows at a time.

    Args:
        only: given the keys of some rows as strings, which rows to read (bool); else all.
    """
    for table in _batches(task, source.columns):
        if only is not None:
            table = table.filter(only(pc.cast(table.column(source.key), pa.string())))
        yield canonical(source, table)


def read_keys(source: EventSource, task: ReadTask) -> Iterator[pa.Array]:
    """The distinct keys of each batch of a task, as strings; null among them where rows have none.

    Much quicker than `read`: no other column is touched.
    """
    for table in _batches(task, {source.key: source.columns[source.key]}):
        yield pc.cast(pc.unique(table.column(source.key)), pa.string())


def _batches(task: ReadTask, names: Mapping[str, str]) -> Iterator[pa.Table]:
    """Some columns of a task: name used here -> name in the file."""
    with pq.ParquetFile(task.path) as file:
        for batch in file.iter_batches(
            batch_size=_BATCH_ROWS,
            row_groups=list(task.row_groups),
            columns=list(dict.fromkeys(names.values())),
        ):
            yield pa.table({name: batch.column(stored) for name, stored in names.items()})


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
    amount = pc.cast(table.column(source.amount), pa.float32(), safe=False)
    return amount, pc.invert(pc.fill_null(pc.is_finite(amount), False))


def _to_utc(column: Any, timezone: str | None) -> Any:
    if column.type.tz is None:
        # A clock set back shows an hour twice; the later reading never lets an event be seen
        # before it happened.
        column = pc.assume_timezone(
            column, timezone=timezone or "UTC", ambiguous="latest", nonexistent="latest"
        )
    return pc.cast(column, pa.timestamp("us", tz="UTC"), safe=False)


def _schema(source: EventSource, path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"modality {source.modality!r}: {path} cannot be read as Parquet: {error}"
        ) from error


def _check_types(source: EventSource, path: Path, schema: pa.Schema) -> None:
    where = f"modality {source.modality!r}: {path} column"
    key, stamp = source.columns[source.key], source.columns[source.timestamp]
    if not _is_key(schema.field(key).type):
        raise SourceError(
            f"{where} {key!r} is {schema.field(key).type}, expected a string or integer entity "
            "key (pandas turns integers with nulls into floats: write them as Int64 or strings)"
        )
    if source.key_type == "int64" and not pa.types.is_integer(schema.field(key).type):
        raise SourceError(
            f"{where} {key!r} is {schema.field(key).type}, expected an integer because the entity "
            "is declared with INT64 keys; cast the column, or declare the entity as STRING"
        )
    if not pa.types.is_timestamp(schema.field(stamp).type):
        raise SourceError(
            f"{where} {stamp!r} is {schema.field(stamp).type}, expected a timestamp with a time "
            "zone"
        )
    if schema.field(stamp).type.tz is None and source.timezone is None:
        raise SourceError(
            f"{where} {stamp!r} is {schema.field(stamp).type} without a time zone; write it as "
            "timestamp[us, tz=UTC], or say what zone it is in: Modality(..., timezone='UTC')"
        )
    if source.amount is not None:
        stored = source.columns[source.amount]
        if not _is_number(schema.field(stored).type):
            raise SourceError(
                f"{where} {stored!r} is {schema.field(stored).type}, expected a number because "
                "it is declared as the amount"
            )
    for name in template_columns(source.text):
        stored = source.columns[name]
        if not _is_text(schema.field(stored).type):
            raise SourceError(
                f"{where} {stored!r} is {schema.field(stored).type}, expected text, a number, a "
                f"boolean or a time because the template {source.text!r} reads it"
            )


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
