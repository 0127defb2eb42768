from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.transforms.shards import from_bytes, partition, shard_of, to_bytes

USERS = st.text(st.characters(codec="utf-8"), max_size=12)
SCHEMA = pa.schema({"user": pa.string(), "row": pa.int64()})

# Written down once: a resumed run must find its finished shards in any later version.
KNOWN = {"ada": 13, "bo": 15, "": 9, "household 7": 1, "Ünï🫖": 4, "1": 13, "2": 15}


def table_of(users: list[str | None]) -> pa.Table:
    """A row per user, numbered."""
    return pa.table([pa.array(users, pa.string()), pa.array(range(len(users)))], schema=SCHEMA)


def test_shards_never_move() -> None:
    """The shards of some users are those that earlier versions gave them."""
    assert {user: shard_of(user, 16) for user in KNOWN} == KNOWN


@settings(deadline=None, max_examples=20)
@given(users=st.lists(USERS, min_size=1, max_size=50), shards=st.integers(1, 4096))
def test_a_shard_is_what_duckdb_computes(users: list[str], shards: int) -> None:
    """`md5_number_lower(user) % shards` in SQL finds the same shard for any text."""
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT md5_number_lower(u) % ? FROM (SELECT unnest(?::VARCHAR[]) AS u)",
            [shards, users],
        ).fetchall()
    assert [int(shard) for (shard,) in found] == [shard_of(user, shards) for user in users]


def test_users_spread_evenly() -> None:
    """No shard of 16 gets much more than its share of 8,000 consecutive ids."""
    counts = [0] * 16
    for number in range(8_000):
        counts[shard_of(str(number), 16)] += 1
    assert min(counts) > 400
    assert max(counts) < 600


@settings(deadline=None)
@given(users=st.lists(st.none() | USERS, max_size=60), shards=st.integers(1, 40))
def test_partition_loses_and_doubles_nothing(users: list[str | None], shards: int) -> None:
    """Each row lands once, in its user's shard, in its old order; empty shards are left out."""
    table = table_of(users)
    pieces = dict(partition(table, shards))
    assert len(pieces) == len({shard_of(user, shards) for user in users})
    rows = []
    for shard, piece in pieces.items():
        assert piece.schema == SCHEMA
        assert {shard_of(user, shards) for user in piece["user"].to_pylist()} == {shard}
        assert piece["row"].to_pylist() == sorted(piece["row"].to_pylist())
        rows += piece.to_pylist()
    assert sorted(rows, key=lambda row: row["row"]) == table.to_pylist()


@given(users=st.lists(st.none() | USERS, max_size=20), cut=st.integers(0, 20))
def test_tables_survive_as_bytes(users: list[str | None], cut: int) -> None:
    """Slices sent as bytes come back as one table, and only their own rows travel."""
    table = table_of(users)
    blobs = [to_bytes(table.slice(0, cut)), b"", to_bytes(table.slice(cut))]
    assert from_bytes(blobs, SCHEMA).equals(table.combine_chunks())


def test_no_bytes_are_an_empty_table() -> None:
    """A shard that no row fell into is a table of the right columns."""
    assert from_bytes([b""], SCHEMA).equals(SCHEMA.empty_table())
    assert from_bytes([], SCHEMA).equals(SCHEMA.empty_table())


def test_bytes_of_a_slice_hold_the_slice_alone() -> None:
    """Sending one row of many does not send the others with it."""
    table = table_of(["someone with a long name"] * 10_000)
    assert len(to_bytes(table.slice(5_000, 1))) < 2_000


def test_bytes_of_another_schema_are_refused() -> None:
    """Columns that do not fit are an error, never silently filled."""
    blob = to_bytes(table_of(["ada"]).drop_columns("row"))
    with pytest.raises(pa.ArrowInvalid):
        from_bytes([blob], SCHEMA)
