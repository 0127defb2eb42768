"""Sources that only Feast's offline store can read: PostgreSQLSource on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field, RepoConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
)
from feast.types import Float64, String

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.plugin import Modality, Scenario, pulled, scenario_view, train
from feast_anchor.plugin.planning import event_sources
from feast_anchor.plugin.pulled import Pull, new_reader, release
from feast_anchor.transforms.events import EventSource, input_snapshot, read, read_tasks
from feast_anchor.transforms.histories import micros
from feast_anchor.transforms.parquet_table import PulledTable
from services.postgres import PostgresServer
from shop import (
    END,
    QUERIES,
    START,
    config,
    entity,
    make_tables,
    modalities,
    offline_rows,
    shop_store,
    write_tables,
)

DATABASE = "pulled"
COLUMNS = {
    "orders": "shopper_id text, event_timestamp timestamptz, item text, aisle text, spend float8",
    "profiles": "shopper_id text, event_timestamp timestamptz, age text",
}


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> PostgresServer:
    """A PostgreSQL whose database holds the shop's tables."""
    postgres.create_database(DATABASE)
    with psycopg.connect(postgres.url(DATABASE)) as connection:
        for name, table in make_tables().items():
            connection.execute(f"CREATE TABLE {name} ({COLUMNS[name]})")
            marks = ", ".join(["%s"] * table.num_columns)
            connection.cursor().executemany(
                f"INSERT INTO {name} VALUES ({marks})",  # noqa: S608
                [tuple(row.values()) for row in table.to_pylist()],
            )
    return postgres


def postgres_config(repo: Path, server: PostgresServer) -> RepoConfig:
    """The shop's configuration with Feast's PostgreSQL offline store."""
    settings = config(repo).model_dump(by_alias=True, exclude_none=True)
    settings["offline_store"] = {
        "type": "postgres",
        "host": server.host,
        "port": server.port,
        "database": DATABASE,
        "db_schema": "public",
        "user": "postgres",
        "password": "",
        "sslmode": "disable",
    }
    return RepoConfig(**settings)


def postgres_modalities(**changes: Any) -> list[Modality]:
    """The shop's modalities over Feast's own PostgreSQL sources."""

    def view(name: str, *fields: Field) -> FeatureView:
        told: dict[str, Any] = {"name": f"{name}_table", "table": name}
        told["timestamp_field"] = "event_timestamp"
        if name == "orders":
            told |= changes
        return FeatureView(
            name=name,
            entities=[entity()],
            source=PostgreSQLSource(**told),
            schema=[Field(name="shopper_id", dtype=String), *fields],
            online=False,
        )

    orders = view("orders", Field(name="item", dtype=String), Field(name="spend", dtype=Float64))
    profiles = view("profiles", Field(name="age", dtype=String))
    return [
        Modality(orders, text="{item} in {aisle}", amount="spend", max_events=16),
        Modality(profiles, text="age {age}", table=True),
    ]


@pytest.fixture
def pull(tmp_path: Path, server: PostgresServer) -> Pull:
    """A pull of one view's run."""
    return Pull(postgres_config(tmp_path, server), tmp_path / "state", END, new_reader("taste_v1"))


def planned(pull: Pull, **changes: Any) -> tuple[EventSource, ...]:
    """The checked sources of the shop's modalities."""
    declared = [(one.declaration(), one.view) for one in postgres_modalities(**changes)]
    return event_sources(declared, "shopper_id", "string", pull.folder.parent, pull)


def files(pull: Pull) -> list[Path]:
    """Everything under the state folder."""
    return sorted(path for path in pull.folder.rglob("*") if path.is_file())


def test_vectors_from_a_feast_source_are_those_from_parquet(
    tmp_path: Path, shop_bundle: Path, server: PostgresServer
) -> None:
    """Materialized through Feast's offline store: the same rows bit for bit, and no file left."""
    (tmp_path / "feast").mkdir()
    (tmp_path / "parquet").mkdir()
    declared = postgres_modalities()
    view = scenario_view(
        name="taste_v1",
        entity=entity(),
        events=declared,
        scenarios=[Scenario(name, query) for name, query in QUERIES.items()],
        bundle=shop_bundle,
        sink=tmp_path / "feast" / "sinks" / "taste_v1",
        ttl=timedelta(days=30),
    )
    store = FeatureStore(config=postgres_config(tmp_path / "feast", server))
    store.apply([entity(), *(modality.view for modality in declared), view])
    store.materialize(START, END)
    with shop_store(tmp_path / "parquet", shop_bundle) as other:
        other.materialize(START, END)
    found, expected = offline_rows(tmp_path / "feast"), offline_rows(tmp_path / "parquet")
    assert len(expected) > 100
    for name in QUERIES:
        assert [v.tobytes() for v in found[name]] == [v.tobytes() for v in expected[name]]
    assert found.drop(columns=list(QUERIES)).equals(expected.drop(columns=list(QUERIES)))
    assert list((tmp_path / "feast" / "state").glob("pulled-*")) == []


def test_training_reads_a_feast_source(
    tmp_path: Path, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` pulls through the repo's own offline store and leaves no file."""
    settings = postgres_config(tmp_path, server)

    class Store:
        def __init__(self, repo_path: str) -> None:
            self.config = settings

    monkeypatch.setattr(train, "FeatureStore", Store)
    write_tables(tmp_path / "tables", make_tables())
    found = []
    for declared in (postgres_modalities(), modalities(tmp_path / "tables")):
        sources, _ = train.sources_of(declared, tmp_path, END)
        events = train.read_events(sources, END)
        found.append(events.sort_by([(column, "ascending") for column in events.schema.names]))
    assert found[0].equals(found[1])
    assert not list(tmp_path.rglob("pulled-*"))


def test_a_rerun_finds_what_was_pulled(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan reads the same bytes without asking the store again; another end is another
    file.
    """
    first = input_snapshot(planned(pull), micros(END))
    pulls = []

    def counted(self: Pull, *told: Any) -> Iterator[pa.Table]:
        pulls.append(told)
        return original(self, *told)

    original = Pull._rows
    monkeypatch.setattr(Pull, "_rows", counted)
    assert input_snapshot(planned(pull), micros(END)) == first
    assert pulls == []
    planned(replace(pull, end=END + timedelta(days=3)))
    assert len(pulls) == 2
    assert all(path.name in (pulled._FILE, f"reader-{pull.reader}") for path in files(pull))


def test_another_password_finds_the_same_file_and_another_database_does_not(pull: Pull) -> None:
    """What a file is known by holds the store's place and none of its secrets."""
    source = postgres_modalities()[0].view.batch_source
    assert source is not None

    def path(**changes: str) -> str:
        store = pull.config.offline_store.model_copy(update=changes)
        config = pull.config.model_copy()
        config._offline_store = store
        return replace(pull, config=config).table(source, ["item"]).path

    assert path(password="another") == path()
    assert path(database="another") != path()


def test_a_file_stays_until_its_last_reader_has_released_it(pull: Pull) -> None:
    """Two views that share a table share its file, and the first to finish does not take it."""
    sources = planned(pull)
    other = new_reader("other/v2@x")
    assert planned(replace(pull, reader=other)) == sources
    release(sources, pull.reader)
    assert sum(task.rows for task in read_tasks(sources, micros(END))) > 100
    release(sources, other)
    assert files(pull) == []


def test_two_runs_of_one_view_do_not_take_each_others_file(pull: Pull) -> None:
    """The second one planned with the file and waits for the first one's lock."""
    sources = planned(pull)
    second = new_reader("taste_v1")
    assert planned(replace(pull, reader=second)) == sources
    release(sources, pull.reader)
    assert sum(task.rows for task in read_tasks(sources, micros(END))) > 100
    release(sources, second)
    assert files(pull) == []


def test_a_file_waits_for_the_next_try_of_each_reader(pull: Pull) -> None:
    """A run that failed or was killed finds it again; its own success is what takes it away."""
    sources = planned(pull)
    host = pull.reader.split("@")[1]
    killed = f"other_v1@{host}@{2**30}@0"  # no process has such a number
    planned(replace(pull, reader=killed))
    failed, other, again = new_reader("other_v1"), new_reader("other_v1"), pull.reader
    planned(replace(pull, reader=failed))
    release(sources, failed, done=False)
    release(sources, again)
    assert read_tasks(sources, micros(END))
    planned(replace(pull, reader=other))
    release(sources, other)
    assert files(pull) == []


def test_a_pull_that_dies_leaves_no_file(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a table is never taken for a whole one."""

    def dying(self: Pull, *told: Any) -> Iterator[pa.Table]:
        yield pa.table({"shopper_id": ["ada"]})
        raise ConnectionError("gone\nin the middle")

    with monkeypatch.context() as patch:
        patch.setattr(Pull, "_rows", dying)
        with pytest.raises(SourceError, match="could not be pulled: ConnectionError: gone$"):
            planned(pull)
    assert [path.name for path in files(pull)] == [f"reader-{pull.reader}"]
    assert read_tasks(planned(pull), micros(END))


def test_a_store_that_offers_batches_is_streamed(
    pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are written as they come, each in a row group of its own."""
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import (
        PostgreSQLRetrievalJob,
    )

    def batches(self: PostgreSQLRetrievalJob) -> Iterator[pa.RecordBatch]:
        yield from self.to_arrow().to_batches(max_chunksize=50)

    monkeypatch.setattr(PostgreSQLRetrievalJob, "to_arrow_batches", batches, raising=False)
    orders = planned(pull)[0].table
    assert isinstance(orders, PulledTable)
    assert pq.read_metadata(orders.path).num_row_groups > 3


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT shopper_id, event_timestamp, item, aisle FROM orders", r"no column \['spend'\]"),
        (
            "SELECT shopper_id, event_timestamp, item, aisle, 'x' AS spend FROM orders",
            "'spend' is string, expected a number",
        ),
        ("SELECT * FROM nothing", "cannot be opened: UndefinedTable"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_is_pulled(
    pull: Pull, query: str, says: str
) -> None:
    """Columns and types come from the source, not from its rows."""
    with pytest.raises(SourceError, match=f"modality 'orders': source 'orders_table'.*{says}"):
        planned(pull, query=query, table=None)
    assert not [path for path in files(pull) if path.suffix == ".parquet"]


def test_times_and_dates_come_back_as_the_source_has_them(
    pull: Pull, server: PostgresServer
) -> None:
    """Instants are UTC, a naive clock is read in its declared zone to its last row, and a date is
    a date.
    """
    with psycopg.connect(server.url(DATABASE)) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS clocks AS SELECT 'ada' AS shopper_id, "
            "'2024-03-01T08:59:59'::timestamp AS at, '2024-02-29'::date AS day"
        )
    source = PostgreSQLSource(name="clocks", table="clocks", timestamp_field="at")
    view = FeatureView(
        name="clocks", entities=[entity()], source=source,
        schema=[Field(name="shopper_id", dtype=String)], online=False,
    )  # fmt: skip
    declared = Modality(view, text="{day}", timezone="Asia/Tokyo").declaration()
    sources = event_sources([(declared, view)], "shopper_id", "string", pull.folder, pull)
    (task,) = read_tasks(sources, micros(END))
    (table,) = read(sources[0], task)
    (row,) = table.to_pylist()
    assert row["event_timestamp"] == datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)
    assert row["text"] == "2024-02-29"
