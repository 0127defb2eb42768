"""The local shuffle: events partitioned on disk, out of core, one Arrow IPC file per shard.

    <state>/shuffle-<id>/events-00003.arrow    the rows of shard 3, `ROW_SCHEMA`, in any order
    <state>/shuffle-<id>/rows.json             <- last: the shuffle is complete

Memory is bounded by the tables that are read at once and a few thousand rows per shard, whatever
the number of events. An interrupted shuffle is made anew; a complete one serves every attempt of
its run and is removed when the run has succeeded.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from .events import ROW_SCHEMA, EventSource, ReadTask, read
from .files import replace_file
from .shards import partition

_BUFFERED_ROWS = 500_000  # over all shards, before they are written
_SPARE_FILES = 256  # that the process may have open beside the shards
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")

Report = Callable[[int], None]


@dataclass(frozen=True)
class Shuffled:
    """What a complete shuffle holds."""

    rows: int
    rejected: int  # rows that cannot be used, with their reason in them
    sizes: tuple[int, ...]  # bytes of each shard's file; 0 for one without rows


def shuffle(
    sources: Sequence[EventSource],
    tasks: Sequence[ReadTask],
    shards: int,
    folder: Path,
    report: Report = lambda rows: None,
) -> Shuffled:
    """Partition all rows of the tasks into `folder`, unless a complete shuffle is there.

    Args:
        report: told now and then how many rows have been read.
    """
    done = complete(folder, shards)
    if done is not None:
        return done
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _allow_open_files(shards + _SPARE_FILES)
    with _Shards(folder, shards, report) as files, ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda task: files.add_all(read(sources[task.source], task)), tasks):
            pass
    found = Shuffled(files.rows, files.rejected, _sizes(folder, shards))
    replace_file(folder / "rows.json", lambda path: path.write_text(json.dumps(asdict(found))))
    return found


def shard_rows(folder: Path, shard: int) -> pa.Table:
    """The rows of one shard, `ROW_SCHEMA`."""
    path = _path(folder, shard)
    if not path.is_file():
        return ROW_SCHEMA.empty_table()
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all().combine_chunks()


def rejected_rows(folder: Path, shards: int) -> Iterator[pa.Table]:
    """The rows that cannot be used, `ROW_SCHEMA`, one shard after the other."""
    for shard in range(shards):
        rows = shard_rows(folder, shard)
        yield rows.filter(pc.is_valid(rows.column("rejected")))


def _allow_open_files(wanted: int) -> None:
    """Raise the process's own limit as far as the system lets it; Windows has none."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _path(folder: Path, shard: int) -> Path:
    return folder / f"events-{shard:05d}.arrow"


def complete(folder: Path, shards: int) -> Shuffled | None:
    """What a complete shuffle noted; None if there is none, or if a file is not as it was then.

    An Arrow stream that was cut between two tables reads without an error, hence the sizes.
    """
    try:
        noted = json.loads((folder / "rows.json").read_text("utf-8"))
        found = Shuffled(**{**noted, "sizes": tuple(noted["sizes"])})
    except (FileNotFoundError, ValueError, TypeError, LookupError):
        return None
    return found if found.sizes == _sizes(folder, shards) else None


def _sizes(folder: Path, shards: int) -> tuple[int, ...]:
    paths = (_path(folder, shard) for shard in range(shards))
    return tuple(path.stat().st_size if path.is_file() else 0 for path in paths)


class _Shards:
    """One open file per shard, made at its first row; any thread may add tables."""

    def __init__(self, folder: Path, shards: int, report: Report) -> None:
        self._folder, self._shards, self._report = folder, shards, report
        self._files: dict[int, _ShardFile] = {}
        self._lock = threading.Lock()
        self.rows = self.rejected = 0

    def add_all(self, tables: Iterator[pa.Table]) -> None:
        for table in tables:
            self._add(table)

    def _add(self, table: pa.Table) -> None:
        for shard, part in partition(table, self._shards):
            self._file(shard).add(part)
        with self._lock:
            self.rows += table.num_rows
            self.rejected += table.num_rows - table.column("rejected").null_count
            self._report(self.rows)

    def _file(self, shard: int) -> _ShardFile:
        with self._lock:
            if shard not in self._files:
                buffered = max(1, _BUFFERED_ROWS // self._shards)
                self._files[shard] = _ShardFile(_path(self._folder, shard), buffered)
            return self._files[shard]

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for file in self._files.values():
            file.close(flush=kind is None)


class _ShardFile:
    """Rows of one shard, written some thousands at a time."""

    def __init__(self, path: Path, buffered: int) -> None:
        self._buffered = buffered
        self._writer = pa.ipc.new_stream(str(path), ROW_SCHEMA, options=_OPTIONS)
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._lock = threading.Lock()

    def add(self, rows: pa.Table) -> None:
        with self._lock:
            self._waiting.append(rows)
            self._rows += rows.num_rows
            if self._rows >= self._buffered:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
        self._waiting, self._rows = [], 0

    def close(self, flush: bool) -> None:
        with self._lock:
            try:
                if flush:
                    self._flush()
            finally:
                self._writer.close()
