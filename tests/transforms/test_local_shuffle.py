from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_anchor.transforms import local_shuffle
from feast_anchor.transforms.events import ROW_SCHEMA, EventSource, read, read_tasks
from feast_anchor.transforms.local_shuffle import Shuffled, rejected_rows, shard_rows, shuffle
from feast_anchor.transforms.parquet_table import ParquetTable
from feast_anchor.transforms.shards import partition

SHARDS = 5
BEFORE = 10**18


def sources_in(folder: Path, files: int = 3, users: int = 50) -> tuple[EventSource, ...]:
    """An event table of several files with several row groups, some rows without a key."""
    folder.mkdir()
    for number in range(files):
        rows = [
            {
                "user": None if row % 17 == 0 else f"u{(row * 7 + number) % users}",
                "at": row * 1_000_003 + number,
                "item": f"item {row % 11}",
            }
            for row in range(400)
        ]
        kind = pa.schema(
            {"user": pa.string(), "at": pa.timestamp("us", tz="UTC"), "item": pa.string()}
        )
        table = pa.Table.from_pylist(rows, kind)
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=100)
    return (source_of(folder),)


def source_of(folder: Path) -> EventSource:
    """How to read them."""
    return EventSource(
        modality="orders",
        index=0,
        table=ParquetTable(str(folder)),
        key="user",
        timestamp="at",
        text="{item}",
    )


def ordered(table: pa.Table) -> pa.Table:
    """Rows in one order, to compare."""
    return table.sort_by([(name, "ascending") for name in ROW_SCHEMA.names]).combine_chunks()


def by_beam(sources: tuple[EventSource, ...]) -> dict[int, pa.Table]:
    """What the Beam shuffle brings together."""
    parts: dict[int, list[pa.Table]] = {shard: [] for shard in range(SHARDS)}
    for task in read_tasks(sources, BEFORE):
        for table in read(sources[task.source], task):
            for shard, part in partition(table, SHARDS):
                parts[shard].append(part)
    return {shard: pa.concat_tables([ROW_SCHEMA.empty_table(), *p]) for shard, p in parts.items()}


@pytest.mark.parametrize("buffered", [1, 700, 500_000])
def test_every_row_is_in_the_shard_of_its_user_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: int
) -> None:
    """The same rows per shard as the other shuffle, however many are held back in memory."""
    monkeypatch.setattr(local_shuffle, "_BUFFERED_ROWS", buffered)
    sources = sources_in(tmp_path / "events")
    found = shuffle(sources, read_tasks(sources, BEFORE), SHARDS, tmp_path / "shuffle")
    assert (found.rows, found.rejected) == (1200, 3 * 24)
    for shard, expected in by_beam(sources).items():
        assert ordered(shard_rows(tmp_path / "shuffle", shard)).equals(ordered(expected))
    rejected = pa.concat_tables(rejected_rows(tmp_path / "shuffle", SHARDS))
    assert rejected["rejected"].to_pylist() == ["null_key"] * 72


def test_a_complete_shuffle_is_used_again_and_an_interrupted_one_is_not(tmp_path: Path) -> None:
    """Rows that a dead attempt left are gone; a finished one's are not read a second time."""
    sources = sources_in(tmp_path / "events")
    folder = tmp_path / "shuffle"
    done = shuffle(sources, read_tasks(sources, BEFORE), SHARDS, folder)
    (tmp_path / "events").rename(tmp_path / "gone")
    assert shuffle(sources, [], SHARDS, folder) == done
    (folder / "rows.json").unlink()
    assert shuffle(sources, [], SHARDS, folder) == Shuffled(0, 0, (0,) * SHARDS)
    assert sum(shard_rows(folder, shard).num_rows for shard in range(SHARDS)) == 0


@pytest.mark.parametrize("kept", [0, 100, -8])
def test_a_shuffle_with_a_file_cut_short_is_made_anew(tmp_path: Path, kept: int) -> None:
    """Also without its last eight bytes, the end mark: then it reads without an error."""
    sources = sources_in(tmp_path / "events")
    folder, tasks = tmp_path / "shuffle", read_tasks(sources, BEFORE)
    done = shuffle(sources, tasks, SHARDS, folder)
    path = min(folder.glob("events-*.arrow"))
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    again = shuffle(sources, tasks, SHARDS, folder)
    # Pieces are read side by side: the order of rows, and with it the size, may be another one.
    assert (again.rows, again.rejected) == (done.rows, done.rejected)
    assert len(path.read_bytes()) == again.sizes[0]
    assert sum(shard_rows(folder, shard).num_rows for shard in range(SHARDS)) == done.rows


def test_a_shuffle_that_fails_says_so_and_is_not_complete(tmp_path: Path) -> None:
    """The error of a reading thread reaches the caller; nothing says "done"."""
    sources = sources_in(tmp_path / "events")
    tasks = read_tasks(sources, BEFORE)
    (tmp_path / "events" / "1.parquet").write_bytes(b"PAR1 not any more")
    with pytest.raises(Exception, match="[Pp]arquet"):
        shuffle(sources, tasks, SHARDS, tmp_path / "shuffle")
    assert not (tmp_path / "shuffle" / "rows.json").exists()


def test_progress_is_told_to_the_last_row(tmp_path: Path) -> None:
    """The counts only grow, and end with all rows."""
    sources = sources_in(tmp_path / "events")
    told: list[int] = []
    shuffle(sources, read_tasks(sources, BEFORE), SHARDS, tmp_path / "shuffle", told.append)
    assert told == sorted(told)
    assert told[-1] == 1200
    assert json.loads((tmp_path / "shuffle" / "rows.json").read_text())["rows"] == 1200


def test_a_shard_without_rows_is_empty(tmp_path: Path) -> None:
    """More shards than users leaves some without a file."""
    sources = sources_in(tmp_path / "events", files=1, users=1)
    shuffle(sources, read_tasks(sources, BEFORE), SHARDS, tmp_path / "shuffle")
    sizes = [shard_rows(tmp_path / "shuffle", shard).num_rows for shard in range(SHARDS)]
    assert sum(sizes) == 400
    assert sizes.count(0) >= SHARDS - 2
