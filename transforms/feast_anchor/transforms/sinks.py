"""A shard's results as rows, parts and dead letters, and the writers that take them online."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_anchor.onnx_export.inputs import Floats

from .events import ROW_SCHEMA
from .files import replace_file
from .histories import ShardHistories
from .job import CREATED_TIMESTAMP, EVENT_TIMESTAMP, HISTORY_END, ViewRun
from .manifests import dead_letter_path, staged_path
from .scoring import UserVectors
from .zeroshot import Answers, scores

# A rejected event with its modality by name, or a rejected user, or a label without a row: then the
# event's columns are null, but for the as-of that the label asked for.
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
    users = rows.column(run.key).combine_chunks().dictionary_encode().indices.to_numpy()
    moments = rows.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
    order = np.lexsort((moments, users))
    last = np.append(np.diff(users[order]) != 0, True)  # of each user
    return rows.take(pa.array(np.sort(order[last])))


def write_part(run: ViewRun, shard: int, rows: pa.Table) -> Path:
    """Write a shard's offline part where it waits to be published, and return its path."""
    path = staged_path(run, shard)
    replace_file(path, lambda p: pq.write_table(rows, p, compression="zstd"), last=False)
    return path


def write_dead_letters(
    run: ViewRun, shard: int, histories: ShardHistories, modalities: Sequence[str]
) -> Path | None:
    """Write a shard's rejected events, users and labels with their reasons; None if there are none.

    `modalities` are the names that the events' `modality` column indexes.
    """
    users, labels = histories.rejected_users, histories.rejected_labels
    if not users and not labels and histories.rejected_events.num_rows == 0:
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
    of_labels = pa.Table.from_pylist(
        [
            {"kind": "label", "user": user, "event_timestamp": moment, "rejected": reason}
            for user, moment, reason in labels
        ],
        schema=DEAD_SCHEMA,
    )
    path = dead_letter_path(run, shard)
    letters = pa.concat_tables([of_events, of_users, of_labels])
    replace_file(path, lambda p: pq.write_table(letters, p), last=False)
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
