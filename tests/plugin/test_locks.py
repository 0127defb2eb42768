from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from alone import let_go, line_of, start_python
from feast_anchor.onnx_export.errors import CatalogError, RunError
from feast_anchor.plugin.catalog import Catalog, HeldLock
from feast_anchor.plugin.migrations import database
from services.postgres import PostgresServer, postgres_server

VIEW = ("shop", "shopper_v1")


@pytest.fixture(scope="module")
def postgres_url(postgres: PostgresServer) -> str:
    """A PostgreSQL database for all tests here: they leave nothing in it."""
    name = f"locks_{uuid4().hex}"
    postgres.create_database(name)
    return postgres.sqlalchemy_url(name)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a SQLite file, then of PostgreSQL."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    return str(request.getfixturevalue("postgres_url"))


def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite catalogue of this test."""
    return f"sqlite:///{tmp_path}/anchor.db"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    """A catalogue on each database."""
    with Catalog.open(url) as opened:
        yield opened


HOLD = """
import subprocess, sys
from feast_anchor.plugin.catalog import Catalog
with Catalog.open(sys.argv[1]) as catalog, catalog.lock("shop", "shopper_v1", 30) as lock:
    nowhere = subprocess.DEVNULL
    worker = subprocess.Popen(["sleep", "60"], stdin=nowhere, stdout=nowhere, stderr=nowhere)
    print(worker.pid, flush=True)
    sys.stdin.readline()
    lock.check()
    worker.kill()
    worker.wait()
"""


@contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is let go, with a worker process of its own."""
    process = start_python(HOLD, url)
    worker = int(line_of(process))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def terminate_sessions(url: str, like: str = "feast-anchor process %") -> int:
    """Have PostgreSQL end the sessions that hold locks of ours; returns how many it ended."""
    libpq = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(libpq, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name LIKE %s AND datname = current_database()",
            [like],
        )
        return len(ended.fetchall())


def taken_elsewhere(url: str) -> bool:
    """Whether a second opener of the catalogue is refused the lock."""
    with Catalog.open(url) as other:
        try:
            with other.lock(*VIEW, 0):
                return False
        except RunError:
            return True


# --- waiting ---------------------------------------------------------------------------------


def test_the_second_process_waits_and_then_gets_it(
    url: str, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """It says once for whom it waits, and goes on when that one has ended."""
    with holder(url) as first, ThreadPoolExecutor() as pool:
        lock = catalog.lock(*VIEW, 30)
        entering = pool.submit(lock.__enter__)
        with pytest.raises(TimeoutError):
            entering.result(timeout=1.3)
        let_go(first)
        entering.result(timeout=20).check()
        lock.__exit__(None, None, None)
        assert first.wait(20) == 0

    (said,) = [one.getMessage() for one in caplog.records if one.name.endswith("locks")]
    assert "'shopper_v1' is locked by " in said
    assert f"process {first.pid} on {socket.gethostname()}" in said
    assert "waiting for at most 30 s" in said


def test_a_process_that_waited_enough_is_refused(url: str, catalog: Catalog) -> None:
    """The error names view, holder, how long it waited and what to do; the holder keeps it."""
    with holder(url) as first:
        start = time.monotonic()
        with pytest.raises(RunError) as caught, catalog.lock(*VIEW, 0.7):
            pass
        assert 0.7 <= time.monotonic() - start < 5
        let_go(first)
        assert first.wait(20) == 0

    message = str(caught.value)
    assert "View 'shopper_v1' is locked by" in message
    assert f"process {first.pid} on {socket.gethostname()}" in message
    assert "since 20" in message
    assert "Waited 0.7 s of 0.7 s. Wait until that run has ended, or raise wait_seconds" in message


def test_a_killed_holder_blocks_nobody(url: str, catalog: Catalog) -> None:
    """After SIGKILL the lock is free at once, though a worker of the dead run lives on."""
    with holder(url) as first:
        first.kill()
        first.wait()
        with catalog.lock(*VIEW, 2) as lock:
            lock.check()


def test_a_lock_is_free_again_after_its_block(url: str, catalog: Catalog) -> None:
    """At once, also when the block failed, and as often as one likes."""

    def failing_run() -> None:
        with catalog.lock(*VIEW, 0):
            assert taken_elsewhere(url)
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            failing_run()
    assert not taken_elsewhere(url)


def test_two_runs_of_one_process_exclude_each_other(catalog: Catalog) -> None:
    """The lock is the run's, not the process's."""
    with (
        catalog.lock(*VIEW, 0),
        pytest.raises(RunError, match=f"process {os.getpid()} "),
        catalog.lock(*VIEW, 0),
    ):
        pass


def test_other_views_and_projects_are_not_locked(catalog: Catalog) -> None:
    """Names that are no file names, or alike as such, are as good as others."""
    names = ["shopper_v2", "a/../../b", "a_.._.._b", "a.b", "Ä" * 255, "Ä" * 254, "."]
    with catalog.lock(*VIEW, 0), catalog.lock("shop2", "shopper_v1", 0):
        for name in names:
            with catalog.lock("shop", name, 0) as lock:
                lock.check()
        with catalog.lock("a", "b.c", 0), catalog.lock("a.b", "c", 0):
            pass


# --- losing it -------------------------------------------------------------------------------


def test_a_terminated_session_is_replaced(postgres_url: str) -> None:
    """check() takes the lock again on a new connection, and then it holds as before."""
    with Catalog.open(postgres_url) as catalog, catalog.lock(*VIEW, 0) as lock:
        assert terminate_sessions(postgres_url) == 1
        assert not taken_elsewhere(postgres_url)
        lock.check()
        assert taken_elsewhere(postgres_url)
        lock.check()
    assert not taken_elsewhere(postgres_url)


def test_a_lock_that_somebody_else_took_meanwhile_is_lost(postgres_url: str) -> None:
    """check() names who has it now, again and again, and leaving the block harms nobody."""
    with Catalog.open(postgres_url) as catalog, catalog.lock(*VIEW, 0) as lock:
        terminate_sessions(postgres_url)
        with holder(postgres_url) as second:
            for _ in range(2):
                with pytest.raises(RunError, match=f"process {second.pid} .*has it now"):
                    lock.check()
            let_go(second)
            assert second.wait(20) == 0


def test_a_session_that_drops_while_it_waits_is_replaced(postgres_url: str) -> None:
    """The waiting process connects again, and gets the lock in the end."""
    with (
        Catalog.open(postgres_url) as catalog,
        ThreadPoolExecutor() as pool,
        holder(postgres_url) as first,
    ):
        lock = catalog.lock(*VIEW, 30)
        entering = pool.submit(lock.__enter__)
        with pytest.raises(TimeoutError):
            entering.result(timeout=0.7)
        assert terminate_sessions(postgres_url, f"feast-anchor process {os.getpid()} %") == 1
        with pytest.raises(TimeoutError):
            entering.result(timeout=1)
        let_go(first)
        entering.result(timeout=20).check()
        lock.__exit__(None, None, None)


@pytest.mark.services
def test_a_server_that_stays_away_is_a_lost_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell who has the lock then; after the server is back it is taken again."""
    monkeypatch.setattr(database, "RETRY_S", 0.3)
    with (
        postgres_server() as server,
        Catalog.open(server.sqlalchemy_url()) as catalog,
        catalog.lock(*VIEW, 0) as lock,
    ):
        server.stop()
        with pytest.raises(RunError, match=r"cannot be taken again: .*Run again to resume"):
            lock.check()
        server.start()
        lock.check()


def files(tmp_path: Path) -> Path:
    """The folder of the lock files of that catalogue."""
    return tmp_path / "anchor.db.locks"


@pytest.fixture
def file_lock(tmp_path: Path) -> Iterator[HeldLock]:
    """The lock of that catalogue, held."""
    with Catalog.open(sqlite_url(tmp_path)) as catalog, catalog.lock(*VIEW, 0) as lock:
        yield lock


def test_a_deleted_lock_file_is_made_again(tmp_path: Path, file_lock: HeldLock) -> None:
    """Somebody tidied up: others could lock a new file, so check() does."""
    (files(tmp_path) / "shop.shopper_v1.lock").unlink()
    file_lock.check()

    assert sorted(path.name for path in files(tmp_path).iterdir()) == [
        "shop.shopper_v1.json",
        "shop.shopper_v1.lock",
    ]
    assert taken_elsewhere(sqlite_url(tmp_path))


def test_a_deleted_lock_file_that_another_made_again_is_lost(
    tmp_path: Path, file_lock: HeldLock
) -> None:
    """check() names the other process, whose note stays when this one ends."""
    (files(tmp_path) / "shop.shopper_v1.lock").unlink()
    with holder(sqlite_url(tmp_path)) as second:
        with pytest.raises(RunError, match=f"process {second.pid} .*has it now"):
            file_lock.check()
        assert (files(tmp_path) / "shop.shopper_v1.json").exists()


# --- where the files lie ---------------------------------------------------------------------


def test_a_database_without_locks_needs_a_folder(tmp_path: Path) -> None:
    """The error says how to give one; with one it locks there."""
    with Catalog.open("sqlite://") as catalog:
        with pytest.raises(CatalogError, match=r"'shopper_v1' needs a folder: give lock\("):
            catalog.lock(*VIEW, 0)
        with catalog.lock(*VIEW, 0, tmp_path / "locks"):
            assert (tmp_path / "locks" / "shop.shopper_v1.lock").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A lock that cannot be taken at all is no lock that somebody has."""
    (tmp_path / "locks").write_text("")
    with (
        Catalog.open("sqlite://") as catalog,
        pytest.raises(CatalogError, match=r"Could not lock .*shop\.shopper_v1\.lock"),
        catalog.lock(*VIEW, 0, tmp_path / "locks"),
    ):
        pass


def test_a_holder_without_a_readable_note_still_holds(tmp_path: Path, file_lock: HeldLock) -> None:
    """The note is for the message alone."""
    (files(tmp_path) / "shop.shopper_v1.json").write_text('{"pid": 1')
    with (
        Catalog.open(sqlite_url(tmp_path)) as other,
        pytest.raises(RunError, match="locked by a process that left no name"),
        other.lock(*VIEW, 0),
    ):
        pass


def test_a_disk_without_room_for_the_note_locks_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs at once would be worse than a holder without a name."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with Catalog.open("sqlite://") as catalog, catalog.lock(*VIEW, 0, tmp_path) as lock:
        lock.check()
        assert [path.name for path in tmp_path.iterdir()] == ["shop.shopper_v1.lock"]


def test_the_lock_says_nothing_where_nobody_waits(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock that is free is taken in silence."""
    with caplog.at_level(logging.INFO), catalog.lock(*VIEW, 5):
        pass
    assert not [one for one in caplog.records if one.name.endswith("locks")]
