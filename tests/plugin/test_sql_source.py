"""`SqlSource` in real Feast: stored, applied, materialized and trained from."""

from __future__ import annotations

import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from feast import FeatureStore, FeatureView, Field, ValueType
from feast.infra.registry.sql import SqlRegistry
from feast.repo_operations import apply_total
from feast.types import Float64, String
from sqlalchemy.pool import NullPool

from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.plugin import Modality, Scenario, SqlSource, scenario_view
from feast_anchor.plugin.train import read_events, sources_of
from services.postgres import PostgresServer
from shop import (
    END,
    QUERIES,
    START,
    Tables,
    config,
    entity,
    make_tables,
    modalities,
    offline_rows,
    shop_store,
    write_tables,
)

SECRET = "hunter2secret"


def write_database(url: str, tables: Tables) -> None:
    """Write the shop's tables as tables of a database, with a number for each row."""
    engine = sa.create_engine(url, poolclass=NullPool)
    kinds: dict[str, Any] = {"string": sa.Text, "double": sa.Float(53)}
    with engine.begin() as connection:
        for name, table in tables.items():
            stamp = sa.DateTime(timezone=True)
            columns = [sa.Column(f.name, kinds.get(str(f.type), stamp)) for f in table.schema]
            columns.append(sa.Column("row_number", sa.BigInteger, primary_key=True))
            made = sa.Table(name, sa.MetaData(), *columns)
            made.create(connection)
            rows = [{**row, "row_number": n} for n, row in enumerate(table.to_pylist())]
            connection.execute(made.insert(), rows)


def sql_view(name: str, *columns: Field, **source: Any) -> FeatureView:
    """A raw feature view over a table of `$EVENTS_DB`."""
    return FeatureView(
        name=name,
        entities=[entity()],
        source=SqlSource(
            name=f"{name}_table",
            url="${EVENTS_DB}",
            table=name,
            timestamp_field="event_timestamp",
            **source,
        ),
        schema=[Field(name="shopper_id", dtype=String), *columns],
        online=False,
    )


def sql_modalities(timezone: str | None) -> list[Modality]:
    """The shop's modalities over a database; orders are read in four ranges."""
    orders = sql_view(
        "orders",
        Field(name="item", dtype=String),
        Field(name="spend", dtype=Float64),
        partition_column="row_number",
        partitions=4,
    )
    profiles = sql_view("profiles", Field(name="age", dtype=String))
    return [
        Modality(
            orders, text="{item} in {aisle}", amount="spend", max_events=16, timezone=timezone
        ),
        Modality(profiles, text="age {age}", table=True, timezone=timezone),
    ]


@pytest.fixture(params=["sqlite", "postgres"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str | None:
    """`$EVENTS_DB` holds the shop's tables; the zone that its timestamps need."""
    url = f"sqlite:///{tmp_path / 'events.db'}"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        name = f"shop_{request.node.name.partition('[')[0][-40:]}"
        server.create_database(name)
        url = server.sqlalchemy_url(name)
    monkeypatch.setenv("EVENTS_DB", url)
    write_database(url, make_tables())
    return "UTC" if request.param == "sqlite" else None


def materialized(repo: Path, bundle: Path, declared: list[Modality]) -> pd.DataFrame:
    """Offline rows of a repo over some modalities."""
    view = scenario_view(
        name="taste_v1",
        entity=entity(),
        events=declared,
        scenarios=[Scenario(name, query) for name, query in QUERIES.items()],
        bundle=bundle,
        sink=repo / "sinks" / "taste_v1",
        ttl=timedelta(days=30),
        snapshots="7d",
    )
    store = FeatureStore(config=config(repo))
    store.apply([entity(), *(modality.view for modality in declared), view])
    store.materialize(START, END)
    return offline_rows(repo)


def bits(frame: pd.DataFrame) -> list[Any]:
    """Rows that can be compared bit for bit."""
    return [
        tuple(v.tobytes() if hasattr(v, "tobytes") else v for v in row)
        for row in frame.itertuples(index=False)
    ]


def test_vectors_from_sql_are_those_from_parquet(
    tmp_path: Path, shop_bundle: Path, database: str | None
) -> None:
    """Apply and materialize over a database write the same rows, bit for bit."""
    for name in ("sql", "parquet"):
        (tmp_path / name).mkdir()
    from_sql = materialized(tmp_path / "sql", shop_bundle, sql_modalities(database))
    with shop_store(tmp_path / "parquet", shop_bundle) as store:
        store.materialize(START, END)
    expected = offline_rows(tmp_path / "parquet")
    assert len(expected) > 100
    assert bits(from_sql) == bits(expected)


def test_training_reads_the_same_events(tmp_path: Path, database: str | None) -> None:
    """What `train` reads before the cut is the same table from SQL as from Parquet."""
    write_tables(tmp_path / "tables", make_tables())
    found = []
    for declared in (sql_modalities(database), modalities(tmp_path / "tables")):
        sources, name = sources_of(declared, tmp_path, END)
        assert name == "shopper"
        events = read_events(sources, END)
        found.append(events.sort_by([(column, "ascending") for column in events.schema.names]))
    assert found[0].num_rows > 100
    assert found[0].equals(found[1])


# --- what is stored ------------------------------------------------------------------------------


def declared_source() -> SqlSource:
    """A source with everything set."""
    return SqlSource(
        name="orders_table",
        url="postgresql+psycopg://reader:${EVENTS_PASSWORD}@db.example/shop",
        table="sales.orders",
        timestamp_field="at",
        field_mapping={"cust": "shopper_id"},
        partition_column="id",
        partitions=8,
        created_timestamp_column="written",
        description="orders",
        tags={"team": "sales"},
        owner="ada",
    )


@pytest.mark.parametrize("registry", ["file", "sql"])
def test_a_source_survives_the_registry(
    tmp_path: Path,
    postgres: PostgresServer,
    registry: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store opened anew has the same source, with its template and without its secret."""
    monkeypatch.setenv("EVENTS_PASSWORD", SECRET)
    settings = config(tmp_path)
    if registry == "sql":
        postgres.create_database("sql_sources")
        path = postgres.sqlalchemy_url("sql_sources")
        settings.registry_config = {"registry_type": "sql", "path": path}
    view = FeatureView(
        name="orders",
        entities=[entity()],
        source=declared_source(),
        schema=[Field(name="shopper_id", dtype=String), Field(name="item", dtype=String)],
        online=False,
    )
    stores = [FeatureStore(config=settings) for _ in range(2)]
    stores[0].apply([entity(), view])
    found = stores[1].get_data_source("orders_table")
    of_view = stores[1].get_feature_view("orders").batch_source
    for store in stores:
        if isinstance(store.registry, SqlRegistry):
            store.registry.write_engine.dispose()  # Feast leaves its connections open
    assert found == declared_source() == of_view
    assert isinstance(found, SqlSource)
    assert found.reader(tmp_path) == declared_source().reader(tmp_path)
    for text in (str(found), repr(found.reader(tmp_path)), str(found.to_proto())):
        assert SECRET not in text


@pytest.mark.parametrize(
    "change",
    [{"url": "sqlite:///x.db"}, {"table": "b"}, {"partitions": 2}, {"timestamp_field": "then"}],
)
def test_sources_that_read_differently_are_not_equal(change: dict[str, Any]) -> None:
    """Feast applies a changed source only where it differs."""
    told: dict[str, Any] = {"name": "s", "url": "${DB}", "table": "a", "timestamp_field": "at"}
    told["partition_column"] = "id"
    assert SqlSource(**told) == SqlSource(**told)
    assert hash(SqlSource(**told)) == hash(SqlSource(**told))
    assert SqlSource(**told) != SqlSource(**told | change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"timestamp_field": ""}, "has no timestamp_field"),
        ({"partitions": 4}, "partitions=4 with partition_column=None"),
        ({"partitions": 0, "partition_column": "id"}, "partitions=0"),
        ({"url": f"postgresql://ada:{SECRET}@db/x"}, "holds a password"),
        ({"url": "events.db"}, "is no database URL"),
    ],
)
def test_a_wrong_declaration_is_refused_at_once(change: dict[str, Any], says: str) -> None:
    """What is wrong is said where it is written, and no secret is repeated."""
    told: dict[str, Any] = {"name": "s", "url": "${DB}", "table": "a", "timestamp_field": "at"}
    with pytest.raises(SpecError, match=says) as caught:
        SqlSource(**told | change)
    assert SECRET not in str(caught.value)


def test_columns_have_feast_types(tmp_path: Path, database: str | None) -> None:
    """Feast infers a view's schema from the table."""
    source = sql_view("orders").batch_source
    assert isinstance(source, SqlSource)
    types = dict(source.get_table_column_names_and_types(config(tmp_path)))
    as_feast = source.source_datatype_to_feast_value_type()
    assert {name: as_feast(raw) for name, raw in types.items()} == {
        "shopper_id": ValueType.STRING,
        "event_timestamp": ValueType.UNIX_TIMESTAMP,
        "item": ValueType.STRING,
        "aisle": ValueType.STRING,
        "spend": ValueType.DOUBLE,
        "row_number": ValueType.INT64,
    }
    assert source.get_table_query_string() == '"orders"'
    source.validate(config(tmp_path))
    with pytest.raises(SourceError, match="has no column 'then', its timestamp_field"):
        SqlSource(name="s", url="${EVENTS_DB}", table="orders", timestamp_field="then").validate(
            config(tmp_path)
        )


REPO_FILES = {
    "feature_store.yaml": """
        project: shop
        provider: local
        registry: registry.db
        offline_store: {type: duckdb}
        online_store: {type: sqlite, path: online.db}
        entity_key_serialization_version: 3
        """,
    "sql_definitions.py": """
        from feast import Entity, FeatureView, Field, ValueType
        from feast.types import String

        from feast_anchor.plugin import SqlSource

        shopper = Entity(name="shopper", join_keys=["shopper_id"], value_type=ValueType.STRING)
        table = SqlSource(
            name="orders_table",
            url="${EVENTS_DB}",
            table="orders",
            timestamp_field="event_timestamp",
        )
        fields = [Field(name="shopper_id", dtype=String), Field(name="item", dtype=String)]
        orders = FeatureView(
            name="orders", entities=[shopper], source=table, schema=fields, online=False
        )
        """,
}


def test_feast_apply_checks_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `feast apply` calls applies a source whose table is there, says which variable is
    missing, and needs neither when it is told to skip the check.
    """
    for name, text in REPO_FILES.items():
        (tmp_path / name).write_text(textwrap.dedent(text), "utf-8")
    write_database(f"sqlite:///{tmp_path / 'events.db'}", {"orders": make_tables()["orders"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("EVENTS_DB", raising=False)
    settings = FeatureStore(repo_path=str(tmp_path)).config
    with pytest.raises(SpecError, match="'EVENTS_DB', which a SqlSource's url names, is not set"):
        apply_total(settings, tmp_path, skip_source_validation=False)
    apply_total(settings, tmp_path, skip_source_validation=True)
    monkeypatch.setenv("EVENTS_DB", "sqlite:///events.db")
    apply_total(settings, tmp_path, skip_source_validation=False)
    stored = FeatureStore(repo_path=str(tmp_path)).get_data_source("orders_table")
    assert isinstance(stored, SqlSource)


def test_a_run_without_the_variable_does_no_work(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Materializing fails at plan time with the variable's name; the sink stays empty."""
    monkeypatch.delenv("EVENTS_DB", raising=False)
    with pytest.raises(SpecError, match="'EVENTS_DB'"):
        materialized(tmp_path, shop_bundle, sql_modalities("UTC"))
    assert offline_rows(tmp_path).empty
