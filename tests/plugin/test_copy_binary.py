from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import psycopg
import pyarrow as pa

from feast_anchor.plugin.copy_binary import copy_binary
from services.postgres import PostgresServer

STAMP = pa.timestamp("us", "UTC")


def test_every_value_comes_back_as_it_was(postgres: PostgresServer) -> None:
    """Texts, 64-bit numbers, instants before 2000 and float32 bits, with nulls and over batches."""
    rows = {
        "name": pa.array(["", "ü", None, "tab\tand\nline", "x" * 300]),
        "number": pa.array([-(2**63), 2**63 - 1, 0, None, 7]),
        "moment": pa.array([datetime(1969, 12, 31, tzinfo=UTC), None, *[EXACT] * 3], STAMP),
        "score": pa.array([1e-45, -0.0, None, 3.4028235e38, 0.1], pa.float32()),
        "vector": pa.array([[0.1, np.inf], [-0.0, 1e-45], [1.0, 2.0], None, [3, 4]], FLOATS),
    }
    types = "name text, number int8, moment timestamptz, score float4, vector float4[]"
    with psycopg.connect(postgres.url()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE told ({types})")
        with cursor.copy("COPY told FROM STDIN (FORMAT BINARY)") as stream:
            for block in copy_binary(pa.table(rows), batch=2):
                stream.write(block)
        cursor.execute("SET timezone TO 'UTC'")
        found = list(zip(*cursor.execute("SELECT * FROM told").fetchall(), strict=True))
    for column, values in zip(rows.values(), found, strict=True):
        assert pa.array(values, column.type).equals(column)
        again = pa.array(values, column.type).to_pylist()
        assert repr(again) == repr(column.to_pylist())  # which tells -0.0 from 0.0


def test_no_row_is_a_stream_too(postgres: PostgresServer) -> None:
    """A table without rows, or with nulls alone, is no special case."""
    empty = pa.table({"vector": pa.array([], FLOATS)})
    nulls = pa.table({"vector": pa.array([None, None], FLOATS)})
    with psycopg.connect(postgres.url()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE few (vector float4[])")
        for rows in (empty, nulls):
            with cursor.copy("COPY few FROM STDIN (FORMAT BINARY)") as stream:
                for block in copy_binary(rows, batch=2):
                    stream.write(block)
        assert cursor.execute("SELECT * FROM few").fetchall() == [(None,), (None,)]


FLOATS = pa.list_(pa.float32())
EXACT = datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)
