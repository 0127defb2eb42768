"""Event tables on a real SQLite file and a real PostgreSQL, against the same rows in Parquet."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from apache_beam.internal import pickler
from sqlalchemy.pool import NullPool

from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.transforms.events import (
    ROW_SCHEMA,
    EventSource,
    check_source,
    input_snapshot,
    read,
    read_tasks,
)
from feast_anchor.transforms.histories import micros
from feast_anchor.transforms.parquet_table import ParquetTable
from feast_anchor.transforms.sql_table import SqlTable
from feast_anchor.transforms.sql_url import expand
from services.postgres import PostgresServer

AS_OF = datetime(2025, 6, 1, tzinfo=UTC)
BEFORE = micros(AS_OF)
EVERYTHING = [(name, "ascending") for name in ROW_SCHEMA.names]
URL = "${EVENTS_DB}"

SQLITE = "sqlite"
POSTGRES = "postgres"


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    """URL of an empty PostgreSQL database."""
    postgres.create_database("events")
    return postgres.sqlalchemy_url("events")


@pytest.fixture(params=[SQLITE, POSTGRES])
def db(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sa.Engine]:
    """An empty database of either kind, which `$EVENTS_DB` names."""
    url = f"sqlite:///{tmp_path / 'events.db'}"
    if request.param == POSTGRES:
        url = request.getfixturevalue("database")
    monkeypatch.setenv("EVENTS_DB", url)
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        if request.param == POSTGRES:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
    yield engine
    engine.dispose()


def source_of(table: ParquetTable | SqlTable, **changes: Any) -> EventSource:
    """Visits with an amount and a naive clock in Berlin, unless told otherwise."""
    told: dict[str, Any] = {
        "key": "user",
        "timestamp": "at",
        "text": "{item} on {day} at {hour}, {again}",
        "amount": "spend",
        "timezone": "Europe/Berlin",
        **changes,
    }
    return EventSource("visits", 3, table, **told)


def read_all(source: EventSource, before: int = BEFORE) -> pa.Table:
    """Every row of a checked source, as a run reads it, in one fixed order."""
    check_source(source)
    tables = [table for task in read_tasks((source,), before) for table in read(source, task)]
    return pa.concat_tables([ROW_SCHEMA.empty_table(), *tables]).sort_by(EVERYTHING)


# --- the same rows are the same events, wherever they are stored --------------------------------


def wall(text: str) -> datetime:
    """What a clock showed."""
    return datetime.fromisoformat(text)


ROWS: list[dict[str, Any]] = [
    {
        "user": number,
        "at": at,
        "item": item,
        "spend": spend,
        "day": date(2024, 2, 29),
        "hour": time(7, 30),
        "again": number != 7,
    }
    for number, at, item, spend in [
        (7, wall("2024-01-01T12:30:15.123456"), "Grüße 🫖", Decimal("2.50")),
        (2**62, wall("2024-10-27T02:30:00"), "the hour shown twice", Decimal("0.10")),
        (-1, wall("2024-03-31T02:30:00"), "the hour never shown", Decimal("-12345678.90")),
        (7, wall("2024-10-27T01:59:59.999999"), "before the change", Decimal("0")),
        (None, wall("2024-01-01T00:00:00"), "nobody's", Decimal("1")),
        (8, None, "never", Decimal("1")),
        (9, wall("1969-07-20T20:17:40"), "before the epoch", None),
        (10, wall("2024-05-05T05:05:05"), None, Decimal("99999999.99")),
    ]
]
ROWS.append(dict.fromkeys(ROWS[0]) | {"user": 11, "at": wall("2024-01-02"), "spend": Decimal(1)})
SCHEMA = pa.schema(
    {
        "user": pa.int64(),
        "at": pa.timestamp("us"),
        "item": pa.string(),
        "spend": pa.decimal128(10, 2),
        "day": pa.date32(),
        "hour": pa.time64("us"),
        "again": pa.bool_(),
    }
)
COLUMNS: dict[str, Any] = {
    "user": sa.BigInteger,
    "at": sa.DateTime,
    "item": sa.Text,
    "spend": sa.Numeric(10, 2, asdecimal=False),
    "day": sa.Date,
    "hour": sa.Time,
    "again": sa.Boolean,
}


def store(
    engine: sa.Engine, rows: list[dict[str, Any]], name: str = "visits", **types: Any
) -> sa.Table:
    """Write rows as a table of a database."""
    kinds = {column: (COLUMNS | types)[column] for column in rows[0]}
    made = sa.Table(name, sa.MetaData(), *(sa.Column(c, kind) for c, kind in kinds.items()))
    with engine.begin() as connection:
        made.create(connection)
        connection.execute(made.insert(), rows)
    return made


def as_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> ParquetTable:
    """Write rows as a Parquet file."""
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return ParquetTable(str(path))


def test_the_same_rows_are_the_same_events_in_sql_as_in_parquet(
    db: sa.Engine, tmp_path: Path
) -> None:
    """Nulls, decimals, int64 keys, Unicode and clock changes arrive bit for bit alike, each row
    with an event or the same reason.
    """
    store(db, ROWS)
    expected = read_all(source_of(as_parquet(tmp_path / "visits.parquet", ROWS)))

    found = read_all(source_of(SqlTable(URL, "visits")))

    assert found.equals(expected)
    assert found.num_rows == len(ROWS)
    reasons = [reason for reason in found["rejected"].to_pylist() if reason]
    assert sorted(reasons) == ["amount_not_finite", "no_text", "null_key", "null_timestamp"]


def test_aware_timestamps_keep_their_instant(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timestamptz is the same instant as Parquet's, whatever zone its session and file speak."""
    monkeypatch.setenv("EVENTS_DB", database)
    monkeypatch.setenv("PGTZ", "America/New_York")
    rows = [{**row, "at": row["at"] and row["at"].replace(tzinfo=UTC)} for row in ROWS]
    engine = sa.create_engine(database, poolclass=NullPool)
    store(engine, rows, "aware", at=sa.DateTime(timezone=True))
    schema = SCHEMA.set(1, pa.field("at", pa.timestamp("us", "Asia/Tokyo")))
    expected = read_all(source_of(as_parquet(tmp_path / "a.parquet", rows, schema), timezone=None))

    assert read_all(source_of(SqlTable(URL, "aware"), timezone=None)).equals(expected)


@pytest.mark.parametrize("partitions", [2, 3, 7, 30])
def test_ranges_of_a_key_hold_every_row_once(db: sa.Engine, partitions: int) -> None:
    """However many ranges, with gaps and null keys: the same rows as in one piece."""
    store(db, ROWS)
    whole = read_all(source_of(SqlTable(URL, "visits")))
    table = SqlTable(URL, "visits", "user", partitions)

    tasks = read_tasks((source_of(table),), BEFORE)

    assert read_all(source_of(table)).equals(whole)
    assert sum(task.rows for task in tasks) == len(ROWS)
    assert tasks[-1].rows == 1  # nobody's
    assert len(tasks) == partitions + 1


@pytest.mark.parametrize("rows", [[], [ROWS[4]]], ids=["empty", "null keys only"])
def test_a_table_without_keys_is_read_in_ranges(db: sa.Engine, rows: list[dict[str, Any]]) -> None:
    """Where there is no smallest key, there is one range, and the rows without a key."""
    made = store(db, ROWS)
    with db.begin() as connection:
        connection.execute(made.delete())
        if rows:
            connection.execute(made.insert(), rows)
    source = source_of(SqlTable(URL, "visits", "user", 4))
    assert read_all(source).num_rows == len(rows)
    assert [task.rows for task in read_tasks((source,), BEFORE)] == [0, len(rows)]


def test_names_are_quoted_and_mapped(db: sa.Engine, tmp_path: Path) -> None:
    """Columns and tables with capitals, blanks, quotes and keywords are read, through a field
    mapping too.
    """
    names = {"user": "Kunde Nr", "at": "order", "item": 'the "item"', "spend": "SUM(x)"}
    rows = [{names[k]: row[k] for k in names} for row in ROWS]
    kinds = {stored: COLUMNS[name] for name, stored in names.items()}
    store(db, rows, 'Visits; DROP TABLE "x"', **kinds)
    mapping = tuple((stored, name) for name, stored in names.items())
    table = SqlTable(URL, 'Visits; DROP TABLE "x"', "Kunde Nr", 3)
    source = source_of(table, text="{item}", field_mapping=mapping)
    plain = source_of(as_parquet(tmp_path / "visits.parquet", ROWS), text="{item}")
    assert read_all(source).equals(read_all(plain))


def test_a_view_of_a_schema_is_read(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`schema.view` names a view, and a PostgreSQL domain is what it is made of."""
    monkeypatch.setenv("EVENTS_DB", database)
    engine = sa.create_engine(database, poolclass=NullPool)
    store(engine, ROWS, "base")
    with engine.begin() as connection:
        for line in (
            "CREATE SCHEMA shop",
            "CREATE DOMAIN price AS numeric(10, 2)",
            'CREATE VIEW shop.visits AS SELECT "user", at, item, spend::price AS spend, '
            "gen_random_uuid() AS id FROM base",
        ):
            connection.execute(sa.text(line))
    source = source_of(SqlTable(URL, "shop.visits"), text="{item}")
    plain = source_of(as_parquet(tmp_path / "visits.parquet", ROWS), text="{item}")
    assert read_all(source).equals(read_all(plain))
    uuids = read_all(source_of(SqlTable(URL, "shop.visits"), text="{id}"))["text"].drop_null()
    assert all(len(text) == 36 for text in uuids.to_pylist())


# --- a table that lives -------------------------------------------------------------------------


def visit(at: datetime, user: int = 1, item: str = "tea") -> dict[str, Any]:
    """One visit."""
    return {"user": user, "at": at, "item": item, "spend": 1.0}


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "+05:30"])
def test_later_rows_stay_in_the_database(db: sa.Engine, zone: str) -> None:
    """Every event before the last as-of is read in any zone, and what happens a week later is not
    read, nor counted, nor part of the snapshot.
    """
    made = store(db, [visit(wall("2025-05-31T00:00:00"))])
    source = source_of(SqlTable(URL, "visits"), text="{item}", timezone=zone)
    with db.begin() as connection:
        last = pa.scalar(AS_OF - timedelta(microseconds=1), pa.timestamp("us", zone))
        shown = pa.compute.local_timestamp(last).as_py()
        connection.execute(made.insert(), [visit(shown, item="last before the as-of")])
    first = input_snapshot((source,), BEFORE)
    with db.begin() as connection:
        connection.execute(made.insert(), [visit(wall("2025-06-08T00:00:00"), item="later")])
    found = read_all(source)
    assert set(found["text"].to_pylist()) == {"tea", "last before the as-of"}
    assert input_snapshot((source,), BEFORE) == first
    assert input_snapshot((source,), micros(AS_OF + timedelta(days=30))) != first


@pytest.mark.parametrize("change", ["insert", "delete", "null timestamp"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_table_that_changes_before_it_is_read_is_refused(
    db: sa.Engine, change: str, partitions: int
) -> None:
    """A row more, or one less, than was planned is never passed over in silence."""
    made = store(db, [visit(wall("2025-01-01T00:00:00"), user) for user in range(9)])
    table = SqlTable(URL, "visits", "user", partitions)
    source = source_of(table, text="{item}")
    tasks = read_tasks((source,), BEFORE)
    first = input_snapshot((source,), BEFORE)
    with db.begin() as connection:
        late = visit(wall("2025-02-01T00:00:00"), 100)
        if change == "delete":
            connection.execute(made.delete().where(made.c.user == 4))
        else:
            connection.execute(made.insert(), [late | ({"at": None} if "null" in change else {})])
    with pytest.raises(SourceError, match="'visits' changed while it was read: .* run it again"):
        [table for task in tasks for table in read(source, task)]
    assert input_snapshot((source,), BEFORE) != first


def test_a_large_table_streams(db: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """300,000 rows come in batches, of which Python holds one at a time and PostgreSQL's client
    no more: the cursor is the server's.
    """
    rows = 300_000
    made = store(db, [visit(wall("2025-01-01T00:00:00"))])
    with db.begin() as connection:
        numbers = sa.select(sa.literal(1).label("n")).cte("numbers", recursive=True)
        numbers = numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < rows - 1))
        first = sa.select(made.c.at).scalar_subquery()
        many = sa.select(numbers.c.n, first, sa.literal("an item of some length"), sa.literal(2.5))
        connection.execute(made.insert().from_select(["user", "at", "item", "spend"], many))
    source = source_of(SqlTable(URL, "visits"), text="{item}")
    (task,) = read_tasks((source,), BEFORE)
    cursors: set[str] = set()

    def seen(connection: Any, cursor: Any, *told: Any) -> None:
        cursors.add(type(cursor).__name__)

    sa.event.listen(sa.Engine, "before_cursor_execute", seen)
    try:
        reading = read(source, task)
        tracemalloc.start()
        sizes = [next(reading).num_rows]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        sizes += [table.num_rows for table in reading]
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", seen)
    assert sum(sizes) == task.rows == rows
    assert max(sizes) <= 65_536
    assert peak < 60_000_000  # bytes; all rows at once take 130,000,000
    if db.dialect.name == POSTGRES + "ql":
        assert "ServerCursor" in cursors


# --- what is refused, and how -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": "customer"}, r"has no column \['customer'\]; it has \['user', 'at'"),
        ({"text": "{item} in {shop}"}, r"has no column \['shop'\]"),
        ({"key": "spend"}, "'spend' is NUMERIC, expected a string or integer entity key"),
        ({"timestamp": "item"}, "'item' is TEXT, expected a timestamp"),
        ({"timestamp": "day"}, "'day' is DATE, expected a timestamp"),
        ({"amount": "item"}, "'item' is TEXT, expected a number"),
        ({"timezone": None}, "without a time zone"),
        ({"key": "item", "key_type": "int64"}, "'item' is TEXT, expected an integer because"),
    ],
)
def test_a_declaration_that_the_table_does_not_fit_is_refused(
    db: sa.Engine, changes: dict[str, Any], says: str
) -> None:
    """Columns and types are checked from the schema, with the database's own type names."""
    store(db, ROWS)
    with pytest.raises(SourceError, match=f"^modality 'visits': table 'visits' .*{says}"):
        check_source(source_of(SqlTable(URL, "visits"), **changes))


@pytest.mark.parametrize(
    ("column", "says"), [("visitor", "has no column 'visitor'"), ("item", "'item' is TEXT")]
)
def test_a_partition_column_that_cannot_be_cut_is_refused(
    db: sa.Engine, column: str, says: str
) -> None:
    """Ranges need an integer column that is there."""
    store(db, ROWS)
    with pytest.raises(SourceError, match=says):
        check_source(source_of(SqlTable(URL, "visits", column, 4)))


def test_a_table_that_is_not_there_is_refused_with_those_that_are(db: sa.Engine) -> None:
    """The message lists the schema's tables."""
    store(db, ROWS)
    with pytest.raises(
        SourceError, match=r"no table or view 'orders'; its schema has \['visits'\]"
    ):
        check_source(source_of(SqlTable(URL, "orders")))


def test_a_column_nobody_can_read_is_refused_only_where_it_is_needed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON beside the columns that are read is no trouble; in a template it is named."""
    monkeypatch.setenv("EVENTS_DB", database)
    engine = sa.create_engine(database, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE j (u int, at timestamptz, item text, extra jsonb)")
        )
    source = source_of(SqlTable(URL, "j"), key="u", text="{item}", amount=None)
    check_source(source)
    with pytest.raises(SourceError, match="'extra' is JSONB, expected text"):
        check_source(source_of(SqlTable(URL, "j"), key="u", text="{extra}", amount=None))


@pytest.mark.parametrize(
    ("column", "value"), [("spend", "a lot"), ("user", "ada"), ("at", "soon"), ("at", 1700000000)]
)
def test_a_value_that_sqlite_let_through_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, value: Any
) -> None:
    """SQLite keeps anything in any column: what is not of its type is never guessed at."""
    monkeypatch.setenv("EVENTS_DB", f"sqlite:///{tmp_path / 'events.db'}")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'events.db'}", poolclass=NullPool)
    store(engine, [visit(wall("2025-01-01T00:00:00"))])
    with engine.begin() as connection:
        name = sa.quoted_name(column, quote=True)
        line = sa.text(f"UPDATE visits SET {name} = :value")  # noqa: S608
        connection.execute(line, {"value": value})
    source = source_of(SqlTable(URL, "visits"), text="{item}")
    with pytest.raises(SourceError, match="modality 'visits': table 'visits' "):
        read_all(source)


def test_sqlite_text_with_an_offset_is_read_in_utc_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ISO text with an offset is an instant; where the column is read in another zone it is
    refused, because the column could mean either.
    """
    monkeypatch.setenv("EVENTS_DB", f"sqlite:///{tmp_path / 'events.db'}")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'events.db'}", poolclass=NullPool)
    store(engine, [visit(wall("2025-01-01T00:00:00"))])
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE visits SET at = '2025-05-31T23:30:00-02:00'"))
    (row,) = read_all(source_of(SqlTable(URL, "visits"), text="{item}", timezone="UTC")).to_pylist()
    assert row["event_timestamp"] == datetime(2025, 6, 1, 1, 30, tzinfo=UTC)
    with pytest.raises(SourceError, match="offset; declare the modality with timezone='UTC'"):
        read_all(source_of(SqlTable(URL, "visits"), text="{item}"))


def test_a_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    """A misspelt path is refused, and no empty database appears."""
    table = SqlTable("sqlite:///data/evnets.db", "visits", folder=str(tmp_path))
    with pytest.raises(SourceError, match="no SQLite file at .*data/evnets.db"):
        check_source(source_of(table))
    assert list(tmp_path.iterdir()) == []


# --- secrets ------------------------------------------------------------------------------------

SECRET = "s3cr/t@:pass"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ada:{SECRET}@db/events",
        "postgresql://ada:${PW}hunter2@db/events",
        f"mysql://db/events?user=ada&password={SECRET}",
        SECRET,
    ],
)
def test_a_literal_password_is_refused(url: str) -> None:
    """The error says where secrets belong, and does not repeat one."""
    with pytest.raises(SpecError) as caught:
        SqlTable(url, "visits")
    assert "EVENTS_DB" in str(caught.value)
    assert "s3cr" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work, with the name of the variable."""
    monkeypatch.delenv("EVENTS_DB", raising=False)
    with pytest.raises(SpecError, match="variable 'EVENTS_DB', .* is not set"):
        check_source(source_of(SqlTable(URL, "visits")))


def test_variables_may_be_parts_of_a_url() -> None:
    """A password is taken as it is, without percent encoding; so is every other part."""
    environment = {"PW": SECRET, "WHO": "ada", "HOST": "db.example", "DB": "events"}
    url = expand("postgresql+psycopg://$WHO:${PW}@${HOST}:5433/$DB", "", environment)
    assert (url.username, url.password, url.host) == ("ada", SECRET, "db.example")
    assert (url.port, url.database, url.drivername) == (5433, "events", "postgresql+psycopg")


def test_a_password_is_in_no_error_and_no_plan(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a refused connection nor the table, its tasks or a traceback show it."""
    url = sa.make_url(postgres.sqlalchemy_url("no_such_database")).set(password=SECRET)
    monkeypatch.setenv("EVENTS_DB", url.render_as_string(hide_password=False))
    source = source_of(SqlTable(URL, "visits"))
    with pytest.raises(SourceError, match='database "no_such_database" does not exist') as caught:
        check_source(source)
    seen = [str(caught.value), repr(source), str(caught.getrepr(style="long"))]
    assert caught.value.__cause__ is None
    assert not any("s3cr" in text for text in seen)


def test_what_a_driver_says_is_cleared_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some drivers quote their connection string: no form of it comes through."""
    url = sa.make_url("postgresql+psycopg://ada@db/x?options=tok-123456").set(password=SECRET)

    def quoting(*args: Any, **kwargs: Any) -> None:
        text = url.render_as_string(hide_password=False)
        raise sa.exc.OperationalError("connect", {}, Exception(f"{text} {SECRET} tok-123456"))

    monkeypatch.setenv("EVENTS_DB", url.render_as_string(hide_password=False))
    monkeypatch.setattr(sa, "create_engine", quoting)
    with pytest.raises(SourceError) as caught:
        check_source(source_of(SqlTable(URL, "visits")))
    assert "s3cr" not in str(caught.value)
    assert "tok-123456" not in str(caught.value)


def test_another_password_is_the_same_table(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotated password changes no snapshot, so a run goes on."""
    engine = sa.create_engine(database, poolclass=NullPool)
    store(engine, ROWS, "rotated")
    source = source_of(SqlTable(URL, "rotated"))
    found = set()
    for password in ("one", "two"):
        url = sa.make_url(database).set(password=password)
        monkeypatch.setenv("EVENTS_DB", url.render_as_string(hide_password=False))
        found.add(input_snapshot((source,), BEFORE))
    assert len(found) == 1


def test_pieces_are_read_by_threads_and_other_processes(db: sa.Engine) -> None:
    """A piece is a plain value that can be sent away, and reading several at once is reading
    them one by one.
    """
    store(db, ROWS)
    source = source_of(SqlTable(URL, "visits", "user", 8))
    expected = read_all(source)
    tasks = read_tasks((source,), BEFORE)
    sent = [pickler.loads(pickler.dumps((source, task))) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        found = [t for tables in pool.map(lambda one: [*read(*one)], sent) for t in tables]
    assert pa.concat_tables(found).sort_by(EVERYTHING).equals(expected)
