"""A PostgreSQL table as a view's sink: written by runs, read by Feast's own offline store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from feast import FeatureStore, FeatureView
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
)
from psycopg import sql

from feast_anchor.onnx_export.errors import RunError, SpaceError, SpecError
from feast_anchor.plugin import SqlSource, table_writer
from feast_anchor.plugin.backfill import Request, backfill
from feast_anchor.plugin.plans import plan_runs
from feast_anchor.plugin.sink_schema import prepare_table
from feast_anchor.plugin.table_writer import PostgresWriterFactory
from feast_anchor.transforms import books
from feast_anchor.transforms.job import ScenarioColumn, ViewRun
from feast_anchor.transforms.scoring import Question
from services.postgres import PostgresServer
from shop import (
    END,
    QUERIES,
    SHARDS,
    START,
    config,
    offline_rows,
    online_rows,
    repo_of,
    shop_store,
    shop_view,
)

DATABASE = "sinks"
DAY = timedelta(days=1)
MIDDLE = START + (END - START) / 2
USERS = [f"u{n}" for n in range(20)]
SECRET = "hunter2-of-the-sink"


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> PostgresServer:
    """A PostgreSQL with a database for sinks."""
    postgres.create_database(DATABASE)
    return postgres


@pytest.fixture
def table() -> str:
    """A table name that no other test has."""
    return f"rows_{uuid4().hex}"


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory, shop_bundle: Path) -> Path:
    """A repo that kept the same window's rows as Parquet."""
    repo = tmp_path_factory.mktemp("parquet")
    with shop_store(repo, shop_bundle) as store:
        store.materialize(START, END)
    return repo


def offline(server: PostgresServer, **changes: Any) -> dict[str, Any]:
    """Settings of Feast's PostgreSQL offline store."""
    return {
        "type": "postgres",
        "host": server.host,
        "port": server.port,
        "database": DATABASE,
        "user": "postgres",
        "password": SECRET,
        "sslmode": "disable",
        **changes,
    }


def sink(table: str) -> PostgreSQLSource:
    """The table as a sink."""
    return PostgreSQLSource(
        name=f"{table}_sink",
        table=table,
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )


def views_into(
    table: str, queries: dict[str, str] = QUERIES
) -> Callable[[Path, Path], list[FeatureView]]:
    """The shop's view with a table as its sink."""
    return lambda repo, bundle: [shop_view(repo, bundle, queries=queries, sink=sink(table))]


@contextmanager
def table_store(
    repo: Path, bundle: Path, server: PostgresServer, table: str, **settings: Any
) -> Iterator[FeatureStore]:
    """An applied store whose view has a table as its sink."""
    views, store = views_into(table), offline(server)
    with shop_store(repo, bundle, views=views, offline=store, **settings) as applied:
        yield applied


def rows_of(server: PostgresServer, table: str, created: bool = False) -> pd.DataFrame:
    """Every row of a table, as `offline_rows` gives a folder's."""
    with psycopg.connect(server.url(DATABASE)) as connection:
        connection.execute("SET timezone TO 'UTC'")
        found = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
        names = [column.name for column in found.description or []]
        frame = pd.DataFrame(found.fetchall(), columns=names)
    frame = frame if created else frame.drop(columns="created_timestamp")
    return frame.sort_values(["shopper_id", "event_timestamp"], ignore_index=True)


def same_bits(found: pd.DataFrame, wanted: pd.DataFrame) -> bool:
    """Whether two frames hold the same users, instants and float32 vectors."""
    assert list(found) == list(wanted)
    assert len(found) == len(wanted) > 0
    for name in wanted:
        if name in QUERIES:
            pairs = zip(found[name], wanted[name], strict=True)
            if any(np.float32(a).tobytes() != np.float32(b).tobytes() for a, b in pairs):
                return False
        elif not (found[name].to_numpy() == wanted[name].to_numpy()).all():
            return False
    return True


def training_set(store: FeatureStore, *fields: str) -> pd.DataFrame:
    """A training set as of two instants, sorted; instants as UTC whatever the store returns."""
    labels = pd.DataFrame(
        {"shopper_id": USERS * 2, "event_timestamp": [END] * len(USERS) + [MIDDLE] * len(USERS)}
    )
    names = [f"taste_v1:{name}" for name in fields or (*QUERIES, "history_end")]
    frame: pd.DataFrame = store.get_historical_features(entity_df=labels, features=names).to_df()
    for name in frame.select_dtypes(["datetime", "datetimetz"]):
        frame[name] = pd.to_datetime(frame[name], utc=True).astype("datetime64[us, UTC]")
    return frame.sort_values(["event_timestamp", "shopper_id"], ignore_index=True)


def test_the_table_holds_what_the_parquet_sink_holds(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str, parquet: Path
) -> None:
    """Same rows, bit for bit; joinable from apply on, by Feast's own store; served alike."""
    with table_store(tmp_path, shop_bundle, server, table) as store:
        assert training_set(store, "tea")["tea"].isna().all()
        store.materialize(START, END)
        found, served = training_set(store), online_rows(store, USERS)
    wanted = FeatureStore(config=config(parquet))
    expected = training_set(wanted)
    assert same_bits(rows_of(server, table), offline_rows(parquet))
    assert same_bits(found.fillna(0), expected[list(found)].fillna(0))
    assert served == online_rows(wanted, USERS)


@pytest.mark.slow
def test_workers_in_other_processes_write_the_table(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str, parquet: Path
) -> None:
    """Each connects by itself, from what it was sent."""
    options = {"direct_running_mode": "multi_processing", "direct_num_workers": 2}
    with table_store(tmp_path, shop_bundle, server, table, options=options) as store:
        store.materialize(START, END)
    assert same_bits(rows_of(server, table), offline_rows(parquet))


def test_a_window_again_changes_nothing_and_another_adds(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str, parquet: Path
) -> None:
    """No row stands twice; what somebody took out comes back."""
    with table_store(tmp_path, shop_bundle, server, table) as store:
        store.materialize(START, MIDDLE)
        first = rows_of(server, table, created=True)
        with psycopg.connect(server.url(DATABASE)) as connection:
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE shopper_id = 'u3'").format(sql.Identifier(table))
            )
        store.materialize(START, MIDDLE)
        assert rows_of(server, table, created=True).equals(first)
        store.materialize(MIDDLE, END)
    rows = rows_of(server, table)
    assert not rows.duplicated(["shopper_id", "event_timestamp"]).any()
    in_one = offline_rows(parquet)
    moments = set(first["event_timestamp"]) | set(in_one["event_timestamp"])
    assert set(rows["event_timestamp"]) == moments


def test_a_backfill_fills_the_table(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str
) -> None:
    """Vectors as of every label, and nothing online."""
    labels = pa.table(
        {
            "shopper_id": ["u1", "u2"],
            "event_timestamp": pa.array([END - DAY, END], pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(labels, tmp_path / "labels.parquet")
    with table_store(tmp_path, shop_bundle, server, table) as store:
        (outcome,) = backfill(
            repo_of(store),
            [],
            Request(labels=tmp_path / "labels.parquet"),
        )
        assert outcome.failure is None
        assert online_rows(store, USERS) == {}
    rows = rows_of(server, table)
    assert list(rows["shopper_id"]) == ["u1", "u2"]
    assert list(rows["event_timestamp"]) == [END - DAY, END]


def broken(error: str) -> Callable[..., None]:
    """Something that fails."""

    def fail(*arguments: object) -> None:
        raise RuntimeError(error)

    return fail


def test_nothing_of_a_failed_run_is_in_the_table(
    tmp_path: Path,
    shop_bundle: Path,
    server: PostgresServer,
    table: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All shards are scored, the books do not balance: the table stays empty."""
    with table_store(tmp_path, shop_bundle, server, table) as store:
        monkeypatch.setattr(books, "missing", lambda job, rows: "one row is missing")
        with pytest.raises(RunError, match="one row is missing"):
            store.materialize(START, END)
        assert rows_of(server, table).empty


def test_a_run_killed_between_two_shards_is_finished_by_the_next(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str, parquet: Path
) -> None:
    """SIGKILL amid the third shard's transaction: two shards stand, a rerun brings the rest."""
    with table_store(tmp_path, shop_bundle, server, table) as store:
        process = subprocess.run(
            [
                sys.executable,
                "-c",
                textwrap.dedent(KILLED),
                str(tmp_path),
                server.host,
                str(server.port),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
        before, wanted = rows_of(server, table), offline_rows(parquet)
        assert 0 < len(before) < len(wanted)
        assert online_rows(store, USERS).keys() == set(before["shopper_id"])
        store.materialize(START, END)
        assert same_bits(rows_of(server, table), wanted)
        assert online_rows(store, USERS) == online_rows(FeatureStore(config=config(parquet)), USERS)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from feast import FeatureStore
    from feast_anchor.plugin import table_writer
    from shop import END, START, config

    repo, host, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    offline = {
        "type": "postgres", "host": host, "port": port, "database": "sinks",
        "user": "postgres", "password": "any", "sslmode": "disable",
    }
    copy, calls = table_writer._copy, []

    def third_dies(*arguments):
        copy(*arguments)
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    table_writer._copy = third_dies
    FeatureStore(config=config(repo, offline=offline)).materialize(START, END)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_dropped_connection_repeats_the_shard(
    tmp_path: Path,
    shop_bundle: Path,
    server: PostgresServer,
    table: str,
    parquet: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Dropped before or after its COPY, a transaction is made anew; rows are all there, once."""
    copy, tries = table_writer._copy, []

    def dropped(connection: sa.Connection, *rest: Any) -> None:
        tries.append(moment)
        if moment == "after":
            copy(connection, *rest)
        if len(tries) == 2:
            terminate(server, connection)
        if moment == "before":
            copy(connection, *rest)

    monkeypatch.setattr(table_writer, "_copy", dropped)
    with table_store(tmp_path, shop_bundle, server, table) as store:
        store.materialize(START, END)
    assert len(tries) == SHARDS + 1
    assert same_bits(rows_of(server, table), offline_rows(parquet))


def terminate(server: PostgresServer, connection: sa.Connection) -> None:
    """End the server's side of a connection, as an administrator would."""
    pid = connection.scalar(sa.func.pg_backend_pid())
    with psycopg.connect(server.url(), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_another_space_is_refused_and_a_new_scenario_gets_a_column(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str
) -> None:
    """A changed question is refused at apply; an added one is null until it is computed."""
    with table_store(tmp_path, shop_bundle, server, table) as store:
        store.materialize(MIDDLE, END)
        before = rows_of(server, table)
        changed = views_into(table, {**QUERIES, "tea": "Something else?"})(tmp_path, shop_bundle)
        with pytest.raises(SpaceError, match=rf"table '{table}'.* answers \['tea'\]"):
            store.apply([*changed])
        more = {**QUERIES, "bread": "Will this shopper buy bread?"}
        store.apply([*views_into(table, more)(tmp_path, shop_bundle)])
        assert training_set(store, "bread", "tea")["bread"].isna().all()
        store.materialize(MIDDLE, END)
    rows = rows_of(server, table)
    assert rows["bread"].notna().all()
    assert rows[before.columns].equals(before)
    with psycopg.connect(server.url(DATABASE)) as connection:
        comments = connection.execute(
            "SELECT col_description(%s::regclass, attnum) FROM pg_attribute WHERE attrelid = "
            "%s::regclass AND attname IN ('tea', 'churn', 'bread')",
            [table, table],
        ).fetchall()
    assert len({comment for (comment,) in comments}) == 3
    assert all(comment.startswith("embedding space ") for (comment,) in comments)


def test_a_plan_knows_what_a_run_has_done_for_a_table(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str
) -> None:
    """Finished shards and unchanged users are seen, another space is refused, nothing is made."""
    window = Request(start=MIDDLE, end=END)
    with table_store(tmp_path, shop_bundle, server, table, unchanged="leave") as store:
        store.materialize(MIDDLE, END)
        (done,) = plan_runs(repo_of(store), [], window)
        (next_one,) = plan_runs(repo_of(store), [], Request(start=END, end=END + DAY))
        with psycopg.connect(server.url(DATABASE)) as connection:
            other = "embedding space of others"
            connection.execute(f"COMMENT ON COLUMN {table}.tea IS '{other}'")
        with pytest.raises(SpaceError, match=f"table '{table}'"):
            plan_runs(repo_of(store), [], window)
        with psycopg.connect(server.url(DATABASE)) as connection:
            connection.execute(f"DROP TABLE {table}")
        plan_runs(repo_of(store), [], window)
    assert done.shards_done == SHARDS
    assert next_one.taken_over[0].startswith("100% of the users, unchanged since run")
    with psycopg.connect(server.url(DATABASE)) as connection:
        assert connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,)


# --- the writer alone -----------------------------------------------------------------------


def run_into(table: str, key_type: str = "string", space: str = "space-of-tea") -> ViewRun:
    """A run whose view has a table."""
    return ViewRun(
        run_id="0123",
        view="taste_v1",
        key="shopper_id",
        key_type=key_type,
        scenarios=(ScenarioColumn("tea", Question("Tea?"), space),),
        sink="unused",
        state="unused",
        online=False,
        table=table,
    )


def made_rows(run: ViewRun, users: list[Any], created: int, first: float = 0.1) -> pa.Table:
    """A row per user, as of one instant; `created` in microseconds."""
    stamp = pa.timestamp("us", "UTC")
    columns = [
        pa.array(users, run.schema.field("shopper_id").type),
        *(pa.array([one] * len(users), pa.int64()).cast(stamp) for one in (1_001, created, 7)),
        pa.array([[first, np.nan, -0.0]] * len(users), pa.list_(pa.float32())),
    ]
    return pa.table(columns, schema=run.schema)


def test_an_older_row_never_overwrites_a_newer_one(
    tmp_path: Path, server: PostgresServer, table: str
) -> None:
    """Of one user and as-of the newest created_timestamp stays, in whatever order they come."""
    settings, run = config(tmp_path, offline=offline(server)), run_into(table)
    prepare_table("taste_v1", table, run.schema, settings)
    writer = PostgresWriterFactory(settings, 0)()
    for created, first in ((200, 2.0), (100, 1.0), (300, 3.0), (150, 1.5)):
        writer.write(run, made_rows(run, ["u1", "ü 2"], created, first))
    rows = rows_of(server, table, created=True)
    assert list(rows["shopper_id"]) == ["u1", "ü 2"]
    assert [vector[0] for vector in rows["tea"]] == [3.0, 3.0]
    assert {moment.microsecond for moment in rows["created_timestamp"]} == {300}


def test_integer_keys_are_bigints(tmp_path: Path, server: PostgresServer, table: str) -> None:
    """Keys of 64 bits, microseconds, NaN and negative zero come back as they were."""
    settings, run = config(tmp_path, offline=offline(server)), run_into(table, "int64")
    prepare_table("taste_v1", table, run.schema, settings)
    rows = made_rows(run, [2**62, -1], 5)
    PostgresWriterFactory(settings, 0)().write(run, rows)
    found = rows_of(server, table, created=True)
    assert list(found["shopper_id"]) == [-1, 2**62]
    assert {moment.microsecond for moment in found["event_timestamp"]} == {1_001}
    wanted = np.array([0.1, np.nan, -0.0], dtype=np.float32).tobytes()
    assert {np.float32(vector).tobytes() for vector in found["tea"]} == {wanted}


@pytest.mark.parametrize("name", ["Mixed", '"Mixed Case"', 'public."a ""quoted"" one"'])
def test_a_name_means_what_feasts_queries_mean_by_it(
    tmp_path: Path, server: PostgresServer, name: str
) -> None:
    """Feast puts the name into its SQL as it is; the table that we make is the one it reads."""
    settings, run = config(tmp_path, offline=offline(server)), run_into(name)
    prepare_table("taste_v1", name, run.schema, settings)
    PostgresWriterFactory(settings, 0)().write(run, made_rows(run, ["u1"], 5))
    with psycopg.connect(server.url(DATABASE)) as connection:
        query = f"SELECT count(*) FROM {sink(name).get_table_query_string()}"  # noqa: S608
        assert connection.execute(query).fetchall() == [(1,)]


def test_the_schema_of_the_offline_store_is_the_tables(
    tmp_path: Path, server: PostgresServer, table: str
) -> None:
    """The table is made where Feast looks for it first."""
    with psycopg.connect(server.url(DATABASE)) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS features")
    settings = config(tmp_path, offline=offline(server, db_schema="features"))
    prepare_table("taste_v1", table, run_into(table).schema, settings)
    prepare_table("taste_v1", table, run_into(table).schema, settings)
    with psycopg.connect(server.url(DATABASE)) as connection:
        found = connection.execute(
            "SELECT table_schema FROM information_schema.tables WHERE table_name = %s", [table]
        ).fetchall()
    assert found == [("features",)]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ("shopper_id int", SpaceError, "new fields \\['tea'\\]"),
        ("shopper_id int, tea real[]", SpecError, r"has the primary key \[\], expected"),
        (
            "shopper_id int, event_timestamp timestamptz, tea real[], "
            "PRIMARY KEY (shopper_id, event_timestamp)",
            SpecError,
            "column 'shopper_id' .* is INTEGER, expected TEXT",
        ),
    ],
)
def test_a_table_of_something_else_is_refused(
    tmp_path: Path,
    server: PostgresServer,
    table: str,
    columns: str,
    error: type[Exception],
    message: str,
) -> None:
    """What was made for another purpose is named and left as it is."""
    with psycopg.connect(server.url(DATABASE)) as connection:
        connection.execute(f"CREATE TABLE {table} ({columns})")
        if "tea" in columns:
            note = f"COMMENT ON COLUMN {table}.tea IS 'embedding space space-of-tea'"
            connection.execute(note)
    settings = config(tmp_path, offline=offline(server))
    with pytest.raises(error, match=message):
        prepare_table("taste_v1", table, run_into(table).schema, settings)


def test_no_password_is_shown(
    tmp_path: Path, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by a server that is away, nor in a writer's repr, nor in the log of tries."""
    settings = config(tmp_path, offline=offline(server, port=1))
    run, writer = run_into("rows"), PostgresWriterFactory(settings, 1)
    with pytest.raises(RunError, match="offline_store is up") as caught:
        writer().write(run, made_rows(run, ["u1"], 5))
    assert caught.value.__cause__ is None
    assert "try 1 failed" in caplog.text
    assert SECRET not in f"{caught.value} {writer!r} {writer()!r} {caplog.text}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            PostgreSQLSource(
                name="asked",
                query="SELECT 1",
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
            "is a query, and rows cannot be written into one",
        ),
        (PostgreSQLSource(table="rows", timestamp_field="event_timestamp"), "expected .*created"),
        (sink("rows; DROP TABLE users"), "expected name or schema.name"),
        (sink("order"), "one of SQL's own words"),
        (sink("r" * 64), "at most 63 bytes"),
        (
            SqlSource(name="s", url="sqlite:///x.db", table="rows", timestamp_field="t"),
            "SqlSource, which no offline store of Feast reads",
        ),
    ],
)
def test_a_sink_that_cannot_be_one_is_refused_when_declared(
    tmp_path: Path, shop_bundle: Path, given: Any, message: str
) -> None:
    """A query, a name that Feast's SQL cannot hold, a source that Feast has no reader for."""
    with pytest.raises(SpecError, match=message):
        shop_view(tmp_path, shop_bundle, sink=given)


def test_a_table_needs_the_store_that_reads_it(tmp_path: Path, shop_bundle: Path) -> None:
    """With DuckDB as offline store nobody could join the rows, so apply says so."""
    with (
        pytest.raises(SpecError, match="the offline store 'duckdb' cannot read"),
        shop_store(tmp_path, shop_bundle, views=views_into("rows")),
    ):
        pass
