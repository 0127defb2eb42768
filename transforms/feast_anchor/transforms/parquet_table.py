"""Event tables in Parquet files: a file, a folder of them or a glob, with hive partitions.

A folder named `country=de` gives the files below it the column `country`, unless they have one of
their own. Whatever type it is given, it reads as exactly what the folder says: int64 when every
folder holds a plain integer ("7", but not "007"), date32 when every one holds a date, else text.

Below a folder, names that begin with `_` or `.` are passed over: exports that died or are still
being written leave their files under such names (`_temporary`, `.part.parquet`, `_delta_log`).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from feast_anchor.onnx_export.bundle import sha256_file
from feast_anchor.onnx_export.errors import SourceError

from .tables import BATCH_ROWS, FOLDER, Until

_TASK_ROWS = 1_000_000
_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class ParquetPiece:
    """Some row groups of one file, and the values of the folders above it."""

    path: str
    row_groups: tuple[int, ...]
    rows: int
    partition: tuple[tuple[str, int | str | date | None], ...] = ()
    partition_types: tuple[tuple[str, str], ...] = ()  # Arrow types as text

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch | pa.Table]:
        """Stream some columns of the row groups."""
        with pq.ParquetFile(self.path) as file:
            own = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(
                batch_size=BATCH_ROWS, row_groups=list(self.row_groups), columns=own
            ):
                found = {name: batch.column(name) for name in own}
                for name in set(columns) - set(own):
                    found[name] = pa.repeat(self._folder_value(name), batch.num_rows)
                yield pa.table(found)

    def _folder_value(self, name: str) -> pa.Scalar:
        kind = dict(self.partition_types)[name]
        return pa.scalar(dict(self.partition)[name], pa.type_for_alias(kind))


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file, a folder of `*.parquet` (searched deeply, without hidden names) or a glob."""

    path: str

    def files(self) -> list[Path]:
        """The files behind the path, sorted. Raises `SourceError` if there are none."""
        path = Path(self.path)
        if path.is_dir():
            every = sorted(p for p in path.rglob("*.parquet") if p.is_file())
            found = [p for p in every if not any(map(_is_hidden, p.relative_to(path).parts))]
        elif path.is_file():  # before any glob: a folder's own name may hold brackets
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(self.path, recursive=True))
        if not found:
            raise SourceError(
                f"no Parquet file at {self.path!r}; expected a file, a folder of *.parquet files "
                "(names that begin with _ or . do not count) or a glob"
            )
        return found

    def schemas(self) -> Iterator[tuple[str, pa.Schema]]:
        """Each file's schema, with the columns that its folders add."""
        files = self.files()
        types = _partition_types(files)
        for path in files:
            schema = _schema(path)
            for name in _folders(path):
                if name not in schema.names:
                    schema = schema.append(pa.field(name, types[name], metadata={FOLDER: b""}))
            yield str(path), schema

    def snapshot(self, until: Until) -> list[object]:
        """Path, size and modification time of every file."""
        return [
            [path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in self.files()
        ]

    def pieces(self, until: Until) -> list[ParquetPiece]:
        """Pieces of about a million rows, cut at row-group borders."""
        files = self.files()
        types = _partition_types(files)
        return [
            ParquetPiece(str(path), groups, rows, *_partition(path, types))
            for path in files
            for groups, rows in _cut(pq.read_metadata(path))
        ]


@dataclass(frozen=True)
class PulledTable(ParquetTable):
    """One Parquet file that a run made for itself, known by its bytes."""

    def snapshot(self, until: Until) -> list[object]:
        """SHA-256 of the file."""
        return [sha256_file(Path(self.path))]


def _is_hidden(name: str) -> bool:
    """As Spark has it: `_day=7` is a partition of the column `_day`."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _cut(meta: Any) -> Iterator[tuple[tuple[int, ...], int]]:
    """Runs of row groups with at least `_TASK_ROWS` rows, and what is left."""
    groups: list[int] = []
    rows = 0
    for group in range(meta.num_row_groups):
        groups.append(group)
        rows += meta.row_group(group).num_rows
        if rows >= _TASK_ROWS:
            yield tuple(groups), rows
            groups, rows = [], 0
    if groups:
        yield tuple(groups), rows


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}") from error


def _folders(path: Path) -> dict[str, str | None]:
    """Hive columns that the folders above a file spell, as text; the deepest wins."""
    parts = (part.partition("=") for part in path.parts[:-1])
    found = {unquote(name): unquote(value) for name, mark, value in parts if mark and name}
    return {name: None if value == _NULL else value for name, value in found.items()}


def _partition_types(files: Sequence[Path]) -> dict[str, pa.DataType]:
    values: dict[str, set[str]] = {}
    for path in files:
        for name, value in _folders(path).items():
            values.setdefault(name, set()).update(() if value is None else (value,))
    return {name: _type_of(found) for name, found in values.items()}


def _type_of(values: set[str]) -> pa.DataType:
    """The type that all values can have without reading as anything but what they are."""
    if values and all(_INTEGER.fullmatch(value) for value in values):
        return pa.int64()
    if values and all(_is_date(value) for value in values):
        return pa.date32()
    return pa.string()


def _is_date(value: str) -> bool:
    try:
        return bool(_DATE.fullmatch(value) and date.fromisoformat(value))
    except ValueError:
        return False


def _partition(
    path: Path, types: Mapping[str, pa.DataType]
) -> tuple[tuple[tuple[str, int | str | date | None], ...], tuple[tuple[str, str], ...]]:
    """A file's hive values, each of its column's type, and those types."""
    folders = _folders(path)
    values = tuple((name, _value(text, types[name])) for name, text in folders.items())
    return values, tuple((name, _alias(types[name])) for name in folders)


def _value(text: str | None, kind: pa.DataType) -> int | str | date | None:
    if text is None or pa.types.is_string(kind):
        return text
    return int(text) if pa.types.is_integer(kind) else date.fromisoformat(text)


def _alias(kind: pa.DataType) -> str:
    return "date32" if pa.types.is_date32(kind) else str(kind)
