"""Samples of users: whole histories of whom the hash picks, counts, and rows spread over tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_anchor.transforms.events import EventSource, read, read_tasks
from feast_anchor.transforms.parquet_table import ParquetTable
from feast_anchor.transforms.sampling import (
    Cells,
    UserCount,
    cell_rows,
    count_users,
    some_tasks,
)
from feast_anchor.transforms.shards import hashes, shard_of
from shop import END, make_tables

BEFORE = int(END.timestamp() * 1_000_000)
SHARDS = 4


def source(folder: Path, users: int = 60, group: int = 100) -> EventSource:
    """The shop's orders, in row groups of so many rows, with a row without a key."""
    table = make_tables(users)["orders"]
    nobody = table.slice(0, 1).set_column(0, "shopper_id", pa.array([None], pa.string()))
    pq.write_table(
        pa.concat_tables([table, nobody]), folder / "orders.parquet", row_group_size=group
    )
    return EventSource(
        modality="orders",
        index=0,
        table=ParquetTable(str(folder / "orders.parquet")),
        key="shopper_id",
        timestamp="event_timestamp",
        text="{item} in {aisle}",
        amount="spend",
    )


def all_rows(one: EventSource) -> pa.Table:
    """Every row as an event."""
    return pa.concat_tables([t for task in read_tasks((one,), BEFORE) for t in read(one, task)])


@pytest.mark.parametrize("parts", [1, 3])
def test_a_cell_is_all_that_its_users_did(tmp_path: Path, parts: int) -> None:
    """The sample has every event of its users, nobody else's, and each in its user's shard."""
    one = source(tmp_path)
    cells = Cells(SHARDS, 2, parts)
    found = cell_rows((one,), read_tasks((one,), BEFORE), cells)

    everything = all_rows(one).to_pylist()
    assert list(found) == [0, 1]
    for shard, rows in found.items():
        users = set(rows.column("user").to_pylist())
        assert users
        assert {shard_of(user, SHARDS) for user in users} == {shard}
        wanted = [row for row in everything if row["user"] in users]
        assert sorted(rows.to_pylist(), key=str) == sorted(wanted, key=str)
    known = {row["user"] for row in everything} - {None}
    own = {user for user in known if hashes([user])[0] % np.uint64(SHARDS * parts) < 2}
    assert own == {user for rows in found.values() for user in rows.column("user").to_pylist()}


def test_cells_hold_about_as_many_users_as_are_wanted() -> None:
    """Few users: everybody; many: whole shards; very many: a part of one shard."""
    assert Cells.holding(20, 4, 500, 2_000) == Cells(4, 4)
    assert Cells.holding(2_400, 16, 500, 2_000) == Cells(16, 4)
    large = Cells.holding(10_000_000, 100, 500, 2_000)
    assert (large.count, large.parts) == (1, 50)
    assert large.share * 10_000_000 == 2_000


def test_users_are_counted(tmp_path: Path) -> None:
    """Exactly, without those that have no key; beyond the limit to within a few percent."""
    one = source(tmp_path)
    counted = count_users((one,), read_tasks((one,), BEFORE))
    assert (counted.users, counted.is_exact) == (60, True)

    sketch = UserCount(exact=1_000)
    names = [f"user {number}" for number in range(20_000)]
    for start in (0, 5_000, 10_000):
        sketch.add(hashes(names[start : start + 10_000]))
    assert not sketch.is_exact
    assert sketch.users == pytest.approx(20_000, rel=0.1)


def test_some_tasks_come_from_everywhere(tmp_path: Path) -> None:
    """A part of a table is row groups spread over it; a small table is taken whole."""
    one = source(tmp_path)
    tasks = read_tasks((one,), BEFORE)
    total = sum(task.rows for task in tasks)
    assert some_tasks(tasks, total) == tasks
    few = some_tasks(tasks, total // 3)
    groups = [task.piece.row_groups[0] for task in few]  # type: ignore[union-attr]
    assert len(groups) == len(set(groups)) == total // 3 // 100
    assert max(groups) - min(groups) >= 5
    assert sum(task.rows for task in few) <= total // 3
