from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, delete, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

from feast_anchor.onnx_export.errors import CatalogError, RunError, SpecError
from feast_anchor.plugin.catalog import Catalog, DeadLetterRow, RunRecord, ShardRecord
from feast_anchor.plugin.migrations import database
from feast_anchor.plugin.migrations.tables import RUNS
from feast_anchor.plugin.retries import connection_lost, may_pass
from services.postgres import PostgresServer, postgres_server

DAY = datetime(2024, 3, 1, tzinfo=UTC)
RUN = RunRecord("run-1", "shop", "shopper_v1", "sha256:aa", DAY, DAY, 4, {})
SHARD = ShardRecord(
    shard=0,
    rejected={"event:null_key": 3, "user:no_usable_event": 1},
    dead_letter_path="dead.parquet",
    users_in=3, users_embedded=2, users_rejected=1, events_in=9, events_used=6, events_rejected=3,
    events_outside=0, events_over_budget=0, rows_offline=2, rows_online=2, seconds=0.5,
)  # fmt: skip
HIDDEN = "s3cr3t-Passw0rd"


@pytest.fixture(scope="module")
def postgres_url(postgres: PostgresServer) -> str:
    """A PostgreSQL database for all tests here."""
    name = f"retries_{uuid4().hex}"
    postgres.create_database(name)
    return postgres.sqlalchemy_url(name)


@pytest.fixture
def catalog(postgres_url: str) -> Iterator[Catalog]:
    """A catalogue on PostgreSQL that holds one run, which works."""
    with Catalog.open(postgres_url) as opened:
        with opened._engine.begin() as connection:
            connection.execute(delete(RUNS))
        opened.begin_run(RUN)
        yield opened


@contextmanager
def dropped_at(catalog: Catalog, server: PostgresServer, statement: int) -> Iterator[list[str]]:
    """Have the server end the session before its nth statement, counted from 1, once.

    Number 0 is the commit. Gives the statements that were sent.
    """
    sent: list[str] = []

    def cut(connection: Connection) -> None:
        sent.append("-- cut")
        found = connection.connection.driver_connection
        assert found is not None
        with psycopg.connect(server.url(), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [found.info.backend_pid])

    def before(connection: Connection, _: Any, text: str, *__: Any) -> None:
        if len(sent) + 1 == statement:
            cut(connection)
        sent.append(text)

    def commit(connection: Connection) -> None:
        if statement == 0 and "-- cut" not in sent:
            cut(connection)

    event.listen(catalog._engine, "before_cursor_execute", before)
    event.listen(catalog._engine, "commit", commit)
    try:
        yield sent
    finally:
        event.remove(catalog._engine, "before_cursor_execute", before)
        event.remove(catalog._engine, "commit", commit)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about tries."""
    return [one.getMessage() for one in caplog.records if one.name.endswith("retries")]


# --- the catalogue ---------------------------------------------------------------------------


@pytest.mark.parametrize("statement", range(6))
def test_a_write_whose_connection_drops_is_done_again_as_a_whole(
    catalog: Catalog,
    postgres: PostgresServer,
    statement: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At every statement of the transaction and at its end: all is there, and once."""
    with dropped_at(catalog, postgres, statement) as sent:
        catalog.record_shard("run-1", SHARD)

    assert "-- cut" in sent
    assert catalog.shards("run-1") == [SHARD]
    assert catalog.dead_letters("run-1") == [
        DeadLetterRow(0, "event", "null_key", 3, "dead.parquet"),
        DeadLetterRow(0, "user", "no_usable_event", 1, "dead.parquet"),
    ]
    (said,) = warnings(caplog)
    assert said.startswith("writing in the catalogue postgresql+psycopg://postgres@127.0.0.1")
    assert ": try 1 failed (" in said


def test_a_read_whose_connection_drops_is_done_again(
    catalog: Catalog, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows come as if nothing had happened."""
    with dropped_at(catalog, postgres, 1) as sent:
        (run,) = catalog.runs()

    assert "-- cut" in sent
    assert run.run_id == "run-1"
    assert len(warnings(caplog)) == 1


def test_a_row_that_the_database_refuses_is_not_tried_again(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing comes right by itself there: the error is at once, after one transaction."""
    begun: list[Connection] = []
    event.listen(catalog._engine, "begin", begun.append)
    broken = ShardRecord(**vars(SHARD) | {"rejected": {"event:x": None}})
    with pytest.raises(CatalogError, match="Could not write to"):
        catalog.record_shard("run-1", broken)

    assert (len(begun), warnings(caplog)) == (1, [])


@pytest.mark.services
def test_a_restarted_server_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A write while PostgreSQL is down goes through when it is back; so does a read."""
    with postgres_server() as server, Catalog.open(server.sqlalchemy_url()) as catalog:
        catalog.begin_run(RUN)
        server.kill()
        server.start()
        assert catalog.begin_run(RUN) == 2

        def attempt() -> int:
            return catalog.runs()[0].attempt

        for work in (partial(catalog.begin_run, RUN), attempt):
            server.stop()
            back = threading.Timer(0.5, server.start)
            back.start()
            caplog.clear()
            assert work() == 3
            back.join()
            assert len(warnings(caplog)) >= 2

        monkeypatch.setattr(database, "RETRY_S", 0.5)
        server.stop()
        start = time.monotonic()
        with pytest.raises(CatalogError, match="Could not write to"):
            catalog.begin_run(RUN)
        assert time.monotonic() - start < 5
        server.start()
        assert catalog.begin_run(RUN) == 4


def test_a_catalogue_that_was_never_reached_is_refused_at_once(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong name in the URL is not waited for."""
    with pytest.raises(CatalogError, match="does not exist"):
        Catalog.open(postgres.sqlalchemy_url("nowhere"))
    assert warnings(caplog) == []


def test_a_try_that_failed_is_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """A driver that repeats the password is not repeated."""
    url = make_url(f"postgresql://me:{HIDDEN}@host/x")
    errors: list[Exception] = [OperationalError(None, None, OSError(f"no {HIDDEN} at host"))]

    def work() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert database.patient(url, "reading")(work) == "done"
    (said,) = warnings(caplog)
    assert "postgresql://me:***@host/x: try 1 failed (OSError: no *** at host); again in" in said


# --- which faults may pass -------------------------------------------------------------------


def test_only_lost_connections_of_a_database_may_pass() -> None:
    """A statement that failed on a good connection is a mistake, whatever its class."""
    cause = OSError("x")
    assert connection_lost(OperationalError(None, None, cause))
    assert connection_lost(DBAPIError("SELECT 1", {}, cause, connection_invalidated=True))
    assert not connection_lost(OperationalError("SELECT 1", {}, cause))
    assert not connection_lost(ProgrammingError(None, None, cause))
    assert not connection_lost(IntegrityError("INSERT", {}, cause))
    assert not connection_lost(cause)


def test_mistakes_and_interrupts_of_an_online_store_do_not_pass() -> None:
    """Connections, timeouts and what a store's client calls its own do."""
    for passing in (ConnectionError(), TimeoutError(), OSError(), RuntimeError(), Exception()):
        assert may_pass(passing)
    for lasting in (
        RunError(), SpecError(), TypeError(), ValueError(), KeyError(), IndexError(),
        AttributeError(), NotImplementedError(), AssertionError(), ImportError(),
        RecursionError(), KeyboardInterrupt(), SystemExit(),
    ):  # fmt: skip
        assert not may_pass(lasting)
