"""Event tables behind any other Feast source, pulled through its offline store before a run.

Feast's offline stores answer one query in one process, so the rows are fetched once, by the driver,
into a Parquet file of the run's own; from there on they are read like any other file. A rerun of an
unfinished run finds the file, and a run that succeeded removes it (`release`).

Who reads a file has a mark beside it: one per planned run, since two runs of one view may wait for
each other with the same file. A run that ended without success leaves a mark to its rerun.
"""

from __future__ import annotations

import glob
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource, ValueType
from feast.data_source import DataSource
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.repo_config import RepoConfig

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.manifest import canonical_sha256
from feast_anchor.transforms.events import EventSource, check_schema
from feast_anchor.transforms.files import replace_file
from feast_anchor.transforms.parquet_table import PulledTable

from .sql_source import SqlSource

_PREFIX = "pulled-"
_READER = "reader-"
_FILE = "table.parquet"
_UTC = pa.timestamp("us", tz="UTC")
# Stores compare timestamps without a zone with UTC: no zone is further away than this.
_SLACK = timedelta(days=1)
_ARROW = {
    ValueType.STRING: pa.string(),
    ValueType.UUID: pa.string(),
    ValueType.INT32: pa.int32(),
    ValueType.INT64: pa.int64(),
    ValueType.FLOAT: pa.float32(),
    ValueType.DOUBLE: pa.float64(),
    ValueType.DECIMAL: pa.float64(),
    ValueType.BOOL: pa.bool_(),
    ValueType.BYTES: pa.binary(),
    ValueType.MAP: pa.binary(),
    ValueType.UNIX_TIMESTAMP: _UTC,  # whether it has a zone is seen in the rows
}


@dataclass(frozen=True)
class Pull:
    """Where and through what sources are pulled.

    Args:
        config: the feature store's configuration; it names the offline store.
        folder: the engine's state folder.
        end: the last as-of, UTC; rows from a day later on are left in the store.
        reader: who reads the file, from `new_reader`. The file stays until each of its readers has
            released it.
    """

    config: RepoConfig
    folder: Path
    end: datetime
    reader: str

    def table(self, source: DataSource, columns: Iterable[str]) -> PulledTable:
        """The file that some columns of a source are, or will be, pulled into."""
        proto = source.to_proto()
        proto.ClearField("meta")  # when it was declared
        asked = [proto.SerializeToString(deterministic=True).hex(), sorted(columns)]
        name = canonical_sha256([asked, self.end.isoformat(), _public(self.config)])[:16]
        return PulledTable(str(self.folder.absolute() / f"{_PREFIX}{name}" / _FILE))

    def fill(self, events: EventSource, source: DataSource) -> None:
        """Check the source's columns, then fetch its rows unless their file is there.

        Raises `SourceError` when a column is missing or of the wrong type, or the store fails.
        """
        assert isinstance(events.table, PulledTable)
        path = Path(events.table.path)
        where = f"modality {events.modality!r}: source {source.name!r}"
        types = self._declared_types(where, source)
        if types is not None:
            check_schema(events, where, _expected_schema(events, types, source))
        path.parent.mkdir(parents=True, exist_ok=True)
        _mark(path.parent, self.reader).touch()
        if path.is_file():
            return
        try:
            rows = self._rows(events, source)
            replace_file(path, lambda out: _write(rows, out, types or {}), last=False)
        except Exception as error:  # stores raise what their drivers raise
            raise SourceError(f"{where} could not be pulled: {_told(error)}") from error

    def _declared_types(self, where: str, source: DataSource) -> dict[str, str] | None:
        try:
            return dict(source.get_table_column_names_and_types(self.config))
        except NotImplementedError:
            return None
        except Exception as error:  # stores raise what their drivers raise
            raise SourceError(f"{where} cannot be opened: {_told(error)}") from error

    def _rows(self, events: EventSource, source: DataSource) -> Iterator[pa.Table]:
        stored = events.columns
        key, stamp = stored[events.key], stored[events.timestamp]
        others = [name for name in dict.fromkeys(stored.values()) if name not in (key, stamp)]
        store = get_offline_store_from_config(self.config.offline_store)
        job = store.pull_all_from_table_or_query(
            config=self.config,
            data_source=source,
            join_key_columns=[key],
            feature_name_columns=others,
            timestamp_field=stamp,
            start_date=None,
            end_date=self.end + _SLACK,
        )
        in_batches = getattr(job, "to_arrow_batches", None)
        yield from in_batches() if in_batches is not None else [job.to_arrow()]


def must_pull(source: DataSource | None) -> bool:
    """Whether only Feast's offline store can read a source."""
    return not isinstance(source, FileSource | SqlSource | None)


def new_reader(name: str) -> str:
    """A reader unlike any other, of a view or of whatever `name` says."""
    host = quote(socket.gethostname(), safe="")
    return f"{quote(name, safe='')}@{host}@{os.getpid()}@{uuid4().hex}"


def release(sources: Iterable[EventSource], reader: str, done: bool = True) -> None:
    """Remove the files that were pulled for some sources, where nobody else still reads them.

    Args:
        done: else the files stay for the reader's next try, which has the same name.
    """
    name = reader.partition("@")[0]
    for table in {source.table for source in sources}:
        if not isinstance(table, PulledTable) or not (folder := Path(table.path).parent).is_dir():
            continue
        if not done:
            _mark(folder, name).touch()
        _mark(folder, reader).unlink(missing_ok=True)
        for mark in _tries(folder, name) if done else ():
            mark.unlink(missing_ok=True)
        if not any(folder.glob(f"{_READER}*")):
            shutil.rmtree(folder, ignore_errors=True)


def is_read(folder: Path) -> bool:
    """Whether a process of this machine that lives reads what was pulled into a folder."""
    return any(_is_here(mark) and _is_alive(mark) for mark in folder.glob(f"{_READER}*@*"))


def _mark(folder: Path, reader: str) -> Path:
    return folder / f"{_READER}{reader}"


def _tries(folder: Path, name: str) -> Iterator[Path]:
    """Marks of earlier tries of a reader that have ended."""
    yield _mark(folder, name)
    for mark in folder.glob(f"{_READER}{glob.escape(name)}@*"):
        if _is_here(mark) and not _is_alive(mark):
            yield mark


def _is_here(mark: Path) -> bool:
    return mark.name.split("@")[1] == quote(socket.gethostname(), safe="")


def _is_alive(mark: Path) -> bool:
    """Whether a mark's process, of this machine, is there; on Windows asking would end it."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(int(mark.name.split("@")[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _public(config: RepoConfig) -> dict[str, str]:
    """Which offline store a configuration means, without its secrets."""
    told = config.offline_store.model_dump(mode="json")
    secret = ("pass", "secret", "token", "key")
    return {
        name: str(value)
        for name, value in told.items()
        if not any(part in name.lower() for part in secret)
    }


def _expected_schema(
    events: EventSource, types: Mapping[str, str], source: DataSource
) -> pa.Schema:
    """The columns as the source describes them; a type that Feast cannot name passes for now."""
    stored = events.columns
    passing = {stored[events.key]: pa.type_for_alias(events.key_type)}
    passing[stored[events.timestamp]] = _UTC
    if events.amount is not None:
        passing[stored[events.amount]] = pa.float64()
    fields = []
    for name, raw in types.items():
        known = _ARROW.get(_value_type(source, raw))
        fields.append(pa.field(name, known or passing.get(name, pa.string())))
    return pa.schema(fields)


def _value_type(source: DataSource, raw: str) -> ValueType:
    try:
        return source.source_datatype_to_feast_value_type()(raw)
    except Exception:  # some stores' maps raise for what they do not know
        return ValueType.UNKNOWN


def _write(batches: Iterator[pa.Table], path: Path, types: Mapping[str, str]) -> None:
    """Stream tables into a Parquet file."""
    writer: Any = None
    try:
        for batch in batches:
            table = _as_declared(pa.table(batch.columns, names=batch.schema.names), types)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise SourceError("nothing came, not even a schema")


def _as_declared(table: pa.Table, types: Mapping[str, str]) -> pa.Table:
    """Undo what stores do to times: instants come as naive UTC, and dates as their midnights."""
    for position, field in enumerate(table.schema):
        raw = types.get(field.name, "").lower()
        if not pa.types.is_timestamp(field.type) or field.type.tz is not None:
            continue
        if _is_instant(raw) or raw == "date":
            kind = pa.date32() if raw == "date" else pa.timestamp(field.type.unit, "UTC")
            table = table.set_column(position, field.name, table.column(position).cast(kind))
    return table


def _is_instant(raw: str) -> bool:
    return any(name in raw for name in ("with time zone", "timestamptz", "timestamp_tz"))


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"
