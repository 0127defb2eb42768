from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.registry.sql import SqlRegistry
from feast.types import Array, Float32

from services.postgres import PostgresServer
from services.valkey import ValkeyServer

AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
VECTORS = {"ada": [0.6, 0.8], "bo": [1.0, 0.0]}


def write_vectors(path: Path) -> None:
    """One row per shopper: key, as-of, a vector of two float32."""
    table = pa.table(
        {
            "shopper_id": pa.array(VECTORS),
            "event_timestamp": pa.array([AS_OF] * len(VECTORS), pa.timestamp("us", "UTC")),
            "taste": pa.array(VECTORS.values(), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, path)


def taste_view(path: Path) -> tuple[Entity, FeatureView]:
    """A plain feature view over the file `path`, and its entity."""
    shopper = Entity(name="shopper", join_keys=["shopper_id"], value_type=ValueType.STRING)
    source = FileSource(path=str(path), timestamp_field="event_timestamp")
    fields = [Field(name="taste", dtype=Array(Float32))]
    view = FeatureView(
        name="taste", entities=[shopper], ttl=timedelta(days=30), schema=fields, source=source
    )
    return shopper, view


@contextmanager
def open_store(
    folder: Path, postgres: PostgresServer, valkey: ValkeyServer
) -> Iterator[FeatureStore]:
    """A store with its registry on PostgreSQL and its online rows on Valkey."""
    config = RepoConfig(
        project="services",
        provider="local",
        registry={"registry_type": "sql", "path": postgres.sqlalchemy_url("feast_registry")},
        offline_store={"type": "duckdb"},
        online_store={"type": "redis", "connection_string": valkey.connection_string},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    try:
        yield store
    finally:
        assert isinstance(store.registry, SqlRegistry)
        store.registry.write_engine.dispose()  # Feast leaves its connections open


@pytest.fixture
def repository(tmp_path: Path, postgres: PostgresServer) -> Path:
    """A folder for the event file, and an empty database for the registry."""
    postgres.create_database("feast_registry")
    write_vectors(tmp_path / "taste.parquet")
    return tmp_path


def test_feast_materializes_to_valkey_with_its_registry_on_postgres(
    repository: Path, postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    """A store opened anew reads the view from PostgreSQL and its vectors from Valkey."""
    with open_store(repository, postgres, valkey) as store:
        store.apply([*taste_view(repository / "taste.parquet")])
        store.materialize(AS_OF - timedelta(days=1), AS_OF + timedelta(days=1))
    (repository / "taste.parquet").unlink()  # from here on only the servers can answer

    rows = [{"shopper_id": name} for name in (*VECTORS, "nobody")]
    with open_store(repository, postgres, valkey) as reader:
        answer = reader.get_online_features(["taste:taste"], rows).to_dict()

    assert answer["taste"][:2] == [pytest.approx(vector) for vector in VECTORS.values()]
    assert answer["taste"][2] is None
    with psycopg.connect(postgres.url("feast_registry")) as connection:
        names = connection.execute("SELECT feature_view_name FROM feature_views").fetchall()
    assert names == [("taste",)]
