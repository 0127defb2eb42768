"""How many users there are, and a sample of them with their whole histories.

The rule: the stable hash of a key alone decides who is in a sample. It is the hash that decides the
shard, so the users of a cell are all users of a shard, or a known share of them, and whatever runs
on a shard runs on a cell. Memory is bounded by the sample and a sketch, whatever the tables hold.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from .events import ROW_SCHEMA, EventSource, ReadTask, read, read_keys
from .parquet_table import ParquetPiece
from .shards import Hashes, hashes, partition

_EXACT = 1_000_000  # users that are counted one by one: 8 MB of hashes
_HASHES = 2.0**64


class UserCount:
    """Counts distinct users: exactly up to `exact`, beyond from the smallest hashes (to 0.2 %)."""

    def __init__(self, exact: int = _EXACT) -> None:
        self._most = exact
        self._smallest: Hashes = np.empty(0, dtype=np.uint64)
        self._waiting: list[Hashes] = []
        self.is_exact = True

    def add(self, found: Hashes) -> None:
        """Count some hashes, of which any may have been counted before."""
        if not self.is_exact:
            found = found[found < self._smallest[-1]]
        self._waiting.append(found)
        if sum(map(len, self._waiting)) >= self._most:
            self._merge()

    @property
    def users(self) -> int:
        """How many there are."""
        self._merge()
        if self.is_exact:
            return len(self._smallest)
        return round((len(self._smallest) - 1) * _HASHES / float(self._smallest[-1]))

    def _merge(self) -> None:
        self._smallest = np.unique(np.concatenate([self._smallest, *self._waiting]))
        self._waiting = []
        if len(self._smallest) > self._most:
            self._smallest, self.is_exact = self._smallest[: self._most], False


@dataclass(frozen=True)
class Cells:
    """Some users of each of the shards 0, 1, ... up to `count`: those of one `parts`-th of it."""

    shards: int
    count: int
    parts: int = 1

    @classmethod
    def holding(cls, users: int, shards: int, wanted: int, most: int) -> Cells:
        """Cells of at most about `most` users each, and as many of them as hold `wanted` users."""
        parts = max(1, -(-users // (shards * most)))
        each = max(1.0, users / (shards * parts))
        return cls(shards, min(shards, max(1, -int(-wanted // each))), parts)

    @property
    def share(self) -> float:
        """Part of all users that the cells hold, on average."""
        return self.count / (self.shards * self.parts)

    def holds(self, keys: pa.Array) -> pa.Array:
        """Which of some keys are in a cell: bool. Rows without a key are in none."""
        encoded = keys.dictionary_encode(null_encoding="encode")
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        users = encoded.dictionary.to_pylist()
        cell = hashes(users) % np.uint64(self.shards * self.parts)
        held = (cell < self.count) & np.array([bool(user) for user in users], dtype=bool)
        return pa.array(held[encoded.indices.to_numpy(zero_copy_only=False)])


def count_users(sources: Sequence[EventSource], tasks: Sequence[ReadTask]) -> UserCount:
    """Read the keys of all rows, and count the different ones; null and empty ones are no user."""
    count = UserCount()

    def hashed(task: ReadTask) -> list[Hashes]:
        batches = read_keys(sources[task.source], task)
        return [hashes([user for user in keys.to_pylist() if user]) for keys in batches]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(hashed, tasks):
            for some in found:
                count.add(some)
    return count


def cell_rows(
    sources: Sequence[EventSource], tasks: Sequence[ReadTask], cells: Cells
) -> dict[int, pa.Table]:
    """The rows of all users of the cells, `ROW_SCHEMA`, by shard."""
    parts: dict[int, list[pa.Table]] = {shard: [] for shard in range(cells.count)}

    def own(task: ReadTask) -> list[pa.Table]:
        return [table for table in read(sources[task.source], task, cells.holds) if len(table)]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for tables in pool.map(own, tasks):
            for table in tables:
                for shard, rows in partition(table, cells.shards):
                    parts[shard].append(rows)
    return {
        shard: pa.concat_tables([ROW_SCHEMA.empty_table(), *tables]).combine_chunks()
        for shard, tables in parts.items()
    }


def some_tasks(tasks: Sequence[ReadTask], rows: int) -> list[ReadTask]:
    """Tasks of about so many rows, evenly from all of them; all if they hold no more."""
    total = sum(task.rows for task in tasks)
    if total <= rows:
        return list(tasks)
    pieces = [piece for task in tasks for piece in _split(task)]
    ends = np.cumsum([piece.rows for piece in pieces])
    largest = max(piece.rows for piece in pieces)
    count = max(1, min(len(pieces), rows // largest))
    # The middle of equal stretches of rows: a table of few rows is met as rarely as it is read.
    at = np.searchsorted(ends, (np.arange(count) + 0.5) * total / count, side="right")
    return [pieces[number] for number in dict.fromkeys(at.tolist())]


def _split(task: ReadTask) -> list[ReadTask]:
    """A task of several row groups as one task each, with rows as they are on average."""
    piece = task.piece
    if not isinstance(piece, ParquetPiece):
        return [task]
    rows = max(1, piece.rows // len(piece.row_groups))
    return [
        replace(task, piece=replace(piece, row_groups=(group,), rows=rows))
        for group in piece.row_groups
    ]
