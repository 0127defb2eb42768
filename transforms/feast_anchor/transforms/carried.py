"""Vectors that a run takes from an earlier one instead of computing them.

The rule: a vector is only taken over where computing it would give the same bits (another run over
the same input and as-of times: a scenario was added), or where the engine's `unchanged` setting
says that the vector of an unchanged history may stand for a later instant. If anything does not
match to the row, it is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .digests import load_digests
from .histories import History
from .job import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ViewRun
from .manifests import digest_path, finished, finished_part
from .sinks import newest_per_user

_STAMP = pa.timestamp("us", tz="UTC")


def unchanged_users(run: ViewRun, shard: int, digests: Mapping[str, bytes]) -> dict[str, str]:
    """The users whose newest vector has read what one would read now, and whose row is there.

    Args:
        digests: per user of the shard, what its newest vector would read now.

    Returns:
        Per user the run whose part has that row.
    """
    if run.earlier is None or run.unchanged == "recompute":
        return {}
    before = load_digests(digest_path(run.other(run.earlier), shard))
    same = {
        user: before[user].run_id
        for user, digest in digests.items()
        if user in before and before[user].digest == digest
    }
    there = {one for one in set(same.values()) if finished(run.other(one), shard) is not None}
    same = {user: one for user, one in same.items() if one in there}
    if run.unchanged == "restamp" and same:
        stored = set(_newest(run, shard).column(run.key).cast(pa.string()).to_pylist())
        same = {user: one for user, one in same.items() if user in stored}
    return same


def restamped(
    run: ViewRun,
    shard: int,
    histories: Sequence[History],
    kept: Collection[str],
    created: int,
) -> pa.Table:
    """Rows of unchanged users at this window's as-of times, with the vectors they had before.

    Args:
        kept: the unchanged users.
        created: microseconds since the epoch, UTC.
    """
    if run.unchanged != "restamp" or not kept:
        return run.schema.empty_table()
    newest = _newest(run, shard)
    users = newest.column(run.key).cast(pa.string()).to_pylist()
    row_of = {user: row for row, user in enumerate(users)}
    own = [one for one in histories if one.user in kept]
    moments = [[m for cut in one.cuts for m in cut.as_of] for one in own]
    rows = np.repeat([row_of[one.user] for one in own], [len(some) for some in moments])
    table = newest.take(pa.array(rows))
    stamps = np.concatenate(moments).astype(np.int64)
    table = _with(table, EVENT_TIMESTAMP, pa.array(stamps).cast(_STAMP))
    table = _with(table, CREATED_TIMESTAMP, pa.array(np.full(len(rows), created)).cast(_STAMP))
    return table.cast(run.schema)


@dataclass(frozen=True)
class Taken:
    """Rows of another run over the same input and as-of times, for the scenarios it has."""

    rows: pa.Table  # sorted by user and as-of
    key: str

    @classmethod
    def of(cls, run: ViewRun, shard: int, histories: Sequence[History]) -> Taken | None:
        """The rows of `run.same`, if they are exactly of these users and as-of times."""
        if run.same is None:
            return None
        part = finished_part(run.other(run.same), shard)
        if part is None:
            return None
        columns = [name for name in run.schema.names if name in _taken_columns(run)]
        rows = _ordered(pq.read_table(part, columns=[run.key, EVENT_TIMESTAMP, *columns]), run.key)
        pairs = [(one.user, m) for one in histories for cut in one.cuts for m in cut.as_of]
        wanted = pa.table(
            {
                run.key: pa.array([user for user, _ in pairs], pa.string()).cast(
                    run.schema.field(run.key).type
                ),
                EVENT_TIMESTAMP: pa.array([m for _, m in pairs], pa.int64()).cast(_STAMP),
            }
        )
        names = [run.key, EVENT_TIMESTAMP]
        matches = rows.select(names).equals(_ordered(wanted, run.key).select(names))
        return cls(rows, run.key) if matches else None

    def joined(self, computed: pa.Table, schema: pa.Schema) -> pa.Table:
        """The computed rows with the columns that were taken, in the schema's order.

        Raises `KeyError` if it is not about the same rows; `of` has seen to it that it is.
        """
        rows = _ordered(computed, self.key)
        known = self.rows
        if known.num_rows != rows.num_rows:  # a user became poison: keep those that are left
            known = _matching(known, rows, self.key)
        names = set(rows.column_names)
        columns = [rows.column(n) if n in names else known.column(n) for n in schema.names]
        return pa.table(columns, schema=schema)


def _taken_columns(run: ViewRun) -> set[str]:
    own = [one for one in run.scenarios if one.name in run.taken]
    return {one.name for one in own} | {one.score.name for one in own if one.score is not None}


def _newest(run: ViewRun, shard: int) -> pa.Table:
    """The earlier run's newest row of each user of a shard."""
    assert run.earlier is not None
    part = finished_part(run.other(run.earlier), shard)
    return run.schema.empty_table() if part is None else newest_per_user(run, pq.read_table(part))


def _matching(known: pa.Table, rows: pa.Table, key: str) -> pa.Table:
    users = pc.unique(rows.column(key))
    return known.filter(pc.is_in(known.column(key), value_set=users))


def _ordered(table: pa.Table, key: str) -> pa.Table:
    return table.sort_by([(key, "ascending"), (EVENT_TIMESTAMP, "ascending")]).combine_chunks()


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)
