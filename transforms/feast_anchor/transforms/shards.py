"""Which shard a user belongs to, and Arrow tables as bytes on the way there.

The hash must give the same shard in every process, on every platform, in every version, because
a resumed run finds its finished shards by number: so MD5, never Python's or DuckDB's own hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa


def shard_of(user: str | None, shards: int) -> int:
    """Shard of a user: the upper 8 bytes of MD5(user), little endian, modulo `shards`.

    Rows without a key go to shard 0. Equals DuckDB's `md5_number_lower(user) % shards`.
    """
    if user is None:
        return 0
    digest = hashlib.md5(user.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little") % shards


def partition(table: pa.Table, shards: int) -> Iterator[tuple[int, pa.Table]]:
    """Split a table by the shard of its `user` column; empty shards are left out."""
    if table.num_rows == 0:
        return
    encoded = table.column("user").combine_chunks().dictionary_encode(null_encoding="encode")
    of_user = np.array([shard_of(user, shards) for user in encoded.dictionary.to_pylist()])
    shard = of_user[encoded.indices.to_numpy(zero_copy_only=False)]
    order = np.argsort(shard, kind="stable")
    found, starts = np.unique(shard[order], return_index=True)
    grouped = table.take(pa.array(order))
    for number, start, end in zip(found, starts, [*starts[1:], len(order)], strict=True):
        yield int(number), grouped.slice(int(start), int(end - start))


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def from_bytes(blobs: Iterable[bytes], schema: pa.Schema) -> pa.Table:
    """All tables of some Arrow IPC streams as one, empty if there are none."""
    tables = [pa.ipc.open_stream(blob).read_all() for blob in blobs if blob]
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
