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
from feast_anchor.plugin.config import parse_config
from feast_anchor.plugin.repo import Repo
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
    make_tables,
    offline_rows,
    online_rows,
    shop_store,
    shop_view,
)

DATABASE = "sinks"
MIDDLE = START + (END - START) / 2
USERS = [f"u{n}" for n in range(20)]
SECRET = "hunter2-of-the-sink"


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> PostgresServer:
    """A PostgreSQL with a database for sinks."""
    postgres.create_database(DATABASE)
    return postgres


@pytest.fixture
def table(request: pytest.FixtureRequest) -> str:
    """A table name that no other test has."""
    return f"rows_{abs(hash(request.node.nodeid)):x}"


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


def repo_of(store: FeatureStore) -> Repo:
    """The repo as the commands see it; its settings stand in the store, not in a file."""

    class InMemory(Repo):
        def store(self) -> FeatureStore:
            return store

    return InMemory(Path(str(store.config.repo_path)), parse_config(store.config.batch_engine_config))


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


def test_a_window_again_changes_nothing_and_another_adds(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer, table: str, parquet: Path
) -> None:
    """No row stands twice; what somebody took out comes back."""
    with table_store(tmp_path, shop_bundle, server, table) as store:
        store.materialize(START, MIDDLE)
        first = rows_of(server, table, created=True)
        with psycopg.connect(server.url(DATABASE)) as connection:
            connection.execute(sql.SQL("DELETE FROM {} WHERE shopper_id = 'u3'").format(
                sql.Identifier(table)))
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
            "event_timestamp": pa.array([MIDDLE, END], pa.timestamp("us", "UTC")),
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
    assert list(rows["event_timestamp"]) == [MIDDLE, END]
