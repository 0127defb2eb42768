"""Each user's own as-of times, as a label table asks for them, one file per shard.

    labels-00003.parquet   user, as_of (UTC); sorted by both, no pair twice

The driver writes them before any worker starts; a shard's worker reads its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .files import replace_file
from .shards import partition

SCHEMA = pa.schema([pa.field("user", pa.string()), pa.field("as_of", pa.timestamp("us", tz="UTC"))])


def save(folder: Path, labels: pa.Table, shards: int) -> None:
    """Write one file per shard.

    Args:
        labels: `SCHEMA`, without nulls, in any order; a pair that stands twice counts once.
    """
    parts = dict(partition(labels, shards))
    for shard in range(shards):
        part = parts.get(shard, SCHEMA.empty_table())
        unique = part.group_by(["user", "as_of"]).aggregate([]).select(SCHEMA.names)
        rows = unique.sort_by([("user", "ascending"), ("as_of", "ascending")])
        replace_file(_path(folder, shard), partial(pq.write_table, rows))


def load(folder: Path, shard: int) -> dict[str, list[int]]:
    """Per user of a shard the as-of times, ascending, in microseconds since the epoch, UTC."""
    table = pq.read_table(_path(folder, shard), schema=SCHEMA)
    moments = table.column("as_of").cast(pa.int64()).to_numpy()
    users = np.asarray(table.column("user"), dtype=object)
    found: dict[str, list[int]] = {}
    for user, moment in zip(users, moments.tolist(), strict=True):
        found.setdefault(user, []).append(moment)
    return found


def _path(folder: Path, shard: int) -> Path:
    return folder / f"labels-{shard:05d}.parquet"
