"""Which users have nothing new: a digest of the events that a user's newest vector has read.

The rule: a user is unchanged only if the vector at the window's end would read exactly the events
that the newest vector before the window has read. A late event, a corrected amount or a changed
text makes another digest, and the user is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .histories import History

SCHEMA = pa.schema(
    [
        pa.field("user", pa.string()),
        pa.field("digest", pa.binary(16)),
        pa.field("run", pa.string()),  # the run whose part has the user's newest row
    ]
)


@dataclass(frozen=True)
class Newest:
    """What a user's newest vector has read, and the run whose part it stands in."""

    digest: bytes
    run_id: str


def history_digest(history: History, texts: Sequence[str]) -> bytes:
    """16 bytes (BLAKE2b) over the events of the last cut: times, modalities, amounts, texts."""
    at = history.cuts[-1].positions
    state = blake2b(digest_size=16)
    for numbers in (history.times[at], history.modality[at]):
        state.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    state.update(np.ascontiguousarray(history.amounts[at], dtype="<f4").tobytes())
    for text in (texts[number].encode() for number in history.text[at]):
        state.update(len(text).to_bytes(4, "little") + text)  # no two lists of texts run together
    return state.digest()


def save_digests(path: Path, newest: Mapping[str, Newest]) -> None:
    """Write the digests of one shard; the caller makes the file appear as a whole."""
    values = newest.values()
    columns = [
        pa.array(list(newest), pa.string()),
        pa.array([one.digest for one in values], pa.binary(16)),
        pa.array([one.run_id for one in values], pa.string()),
    ]
    pq.write_table(pa.table(columns, schema=SCHEMA), path)


def load_digests(path: Path) -> dict[str, Newest]:
    """The digests of one shard; none if there is no whole file, and then everybody is computed."""
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (FileNotFoundError, pa.ArrowInvalid):  # invalid: somebody cut it short
        return {}
    columns = [table.column(name).to_pylist() for name in SCHEMA.names]
    return {user: Newest(digest, run) for user, digest, run in zip(*columns, strict=True)}
