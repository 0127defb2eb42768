"""Where a shard's results go, in an order that survives a kill at any instant.

    offline part    temporary file, then rename      part-00003.parquet
    dead letters    temporary file, then rename      dead-00003.parquet
    online rows     keyed upsert, newest as-of only
    shard manifest  temporary file, then rename      shard-00003.json      <- last

A shard without a manifest is not done and is computed again; every step overwrites what a dead
attempt left, so nothing stands twice. A shard with a manifest is never computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_anchor.onnx_export.inputs import Floats

from .events import ROW_SCHEMA
from .histories import ShardHistories
from .job import CREATED_TIMESTAMP, EVENT_TIMESTAMP, HISTORY_END, ViewRun
from .scoring import UserVectors
from .zeroshot import Answers, scores

# A rejected event (or user, then without the event's columns), with its modality by name.
DEAD_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string()),
        *(pa.field(f.name, pa.string() if f.name == "modality" else f.type) for f in ROW_SCHEMA),
    ]
)


class OnlineWriter(Protocol):
    """Writes rows of a view where rankers read them; one is made per worker process."""

    def write(self, view: str, rows: pa.Table) -> int:
        """Upsert one row per user and return how many were written."""
        ...


OnlineWriterFactory = Callable[[], OnlineWriter]


@dataclass(frozen=True)
class ShardManifest:
    """The record that a shard of a run is done, and what happened in it. Times in seconds."""

    run_id: str
    view: str
    shard: int
    users_in: int
    users_embedded: int
    users_rejected: int
    events_in: int
    events_used: int
    events_rejected: int
    events_outside: int
    events_over_budget: int
    rows_offline: int
    rows_online: int
    rejected: dict[str, int]
    seconds: float
    part: str  # path of the offline part
    dead_letters: str | None  # path of the dead-letter file

    def save(self, folder: Path) -> None:
        """Write it: from here on the shard counts as done."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        replace_file(shard_path(folder, self.shard), lambda p: p.write_text(text, "utf-8"))

    @classmethod
    def load(cls, folder: Path, shard: int) -> ShardManifest | None:
        """The manifest of a finished shard; None if it is not done or cannot be read."""
        try:
            text = shard_path(folder, shard).read_text("utf-8")
            return cls(**json.loads(text))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None


def finished(run: ViewRun, shard: int) -> ShardManifest | None:
    """The manifest of a shard that is done and whose part stands in the view's sink, else None."""
    manifest = ShardManifest.load(run.state_folder, shard)
    part = part_path(run, shard)
    done = manifest is not None and manifest.part == str(part) and part.is_file()
    return manifest if done else None


def discard(run: ViewRun, shards: int) -> None:
    """Undo the shards of a run whose rows cannot be trusted: manifests first, then parts."""
    for shard in range(shards):
        shard_path(run.state_folder, shard).unlink(missing_ok=True)
        part_path(run, shard).unlink(missing_ok=True)


def shard_path(folder: Path, shard: int) -> Path:
    """Path of a shard's manifest in a run's state folder."""
    return folder / f"shard-{shard:05d}.json"


def part_path(run: ViewRun, shard: int) -> Path:
    """Path of a shard's part in the view's sink."""
    return Path(run.sink) / f"run-{run.run_id}" / f"part-{shard:05d}.parquet"


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that its name only ever shows the whole of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, too; platforms without folder handles skip it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear_temporaries(run: ViewRun) -> None:
    """Remove what a killed attempt of this run was amid writing. Call before any worker starts."""
    for folder in (run.state_folder, part_path(run, 0).parent):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


def rows_table(
    run: ViewRun,
    columns: list[int],
    scored: list[UserVectors],
    created: int,
    axes: Mapping[Answers, Floats] = MappingProxyType({}),
) -> pa.Table:
    """The view's rows, one per user and as-of.

    Args:
        columns: position of each of the view's scenarios among the questions that were asked.
        scored: vectors of every user, each float32 [S, Q, dim].
        created: microseconds since the epoch, UTC, when they were computed.
        axes: from `score_axes`, for the answers of the view's scores; float32 [dim] each.
    """
    if not scored:
        return run.schema.empty_table()
    counts = [len(user.as_of) for user in scored]
    users = pa.array([user.user for user in scored]).take(
        pa.array(np.repeat(np.arange(len(scored)), counts))
    )
    vectors = np.concatenate([user.vectors for user in scored])  # [rows, Q, dim]
    by_name: dict[str, Any] = {
        run.key: pc.cast(users, run.schema.field(run.key).type),
        EVENT_TIMESTAMP: np.concatenate([user.as_of for user in scored]),
        CREATED_TIMESTAMP: np.full(len(users), created),
        HISTORY_END: np.concatenate([user.history_end for user in scored]),
    }
    for scenario, column in zip(run.scenarios, columns, strict=True):
        own = vectors[:, column]  # [rows, dim]
        by_name[scenario.name] = _vector_array(own)
        if scenario.score is not None:
            by_name[scenario.score.name] = pa.array(scores(own, axes[scenario.score.answers]))
    return pa.table([_typed(by_name[f.name], f.type) for f in run.schema], schema=run.schema)


def newest_per_user(run: ViewRun, rows: pa.Table) -> pa.Table:
    """The row of each user's newest as-of: what the online store serves."""
    if rows.num_rows == 0:
        return rows
    newest = rows.group_by(run.key).aggregate([(EVENT_TIMESTAMP, "max")])
    wanted = dict(
        zip(
            newest.column(run.key).to_pylist(),
            newest.column(f"{EVENT_TIMESTAMP}_max").to_pylist(),
            strict=True,
        )
    )
    pairs = zip(
        rows.column(run.key).to_pylist(), rows.column(EVENT_TIMESTAMP).to_pylist(), strict=True
    )
    return rows.filter(pa.array([wanted[user] == moment for user, moment in pairs]))


def write_part(run: ViewRun, shard: int, rows: pa.Table) -> Path:
    """Write a shard's offline part and return its path."""
    path = part_path(run, shard)
    replace_file(path, lambda p: pq.write_table(rows, p, compression="zstd"))
    return path


def write_dead_letters(
    run: ViewRun, shard: int, histories: ShardHistories, modalities: Sequence[str]
) -> Path | None:
    """Write a shard's rejected events and users with their reasons; None if there are none.

    `modalities` are the names that the events' `modality` column indexes.
    """
    users = histories.rejected_users
    if not users and histories.rejected_events.num_rows == 0:
        return None
    events = histories.rejected_events
    kind = pa.array(["event"] * events.num_rows, pa.string())
    named = pa.array(modalities, pa.string()).take(events.column("modality").combine_chunks())
    at = events.schema.get_field_index("modality")
    events = events.set_column(at, pa.field("modality", pa.string()), named)
    of_events = pa.table([kind, *events.columns], schema=DEAD_SCHEMA)
    of_users = pa.Table.from_pylist(
        [{"kind": "user", "user": user, "rejected": reason} for user, reason in users.items()],
        schema=DEAD_SCHEMA,
    )
    path = run.state_folder / f"dead-{shard:05d}.parquet"
    replace_file(path, lambda p: pq.write_table(pa.concat_tables([of_events, of_users]), p))
    return path


def _vector_array(vectors: np.ndarray[Any, Any]) -> pa.Array:
    rows, dim = vectors.shape
    offsets = pa.array(np.arange(0, rows * dim + 1, dim, dtype=np.int32))
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))  # [rows*dim]
    return pa.ListArray.from_arrays(offsets, flat)


def _typed(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    return values
