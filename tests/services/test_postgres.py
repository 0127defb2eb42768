from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from services.postgres import PostgresServer, postgres_server


@pytest.fixture
def own_postgres(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server of this test's own, because it is going to be killed."""
    with postgres_server() as server:
        assert server.port != postgres.port
        yield server


def test_two_servers_run_side_by_side_on_their_own_data(
    postgres: PostgresServer, own_postgres: PostgresServer
) -> None:
    """A second server has its own port and sees none of the first one's databases."""
    postgres.create_database("side_by_side")

    psycopg.connect(postgres.url("side_by_side")).close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(own_postgres.url("side_by_side"))


def test_committed_rows_survive_a_kill_and_open_ones_do_not(own_postgres: PostgresServer) -> None:
    """After SIGKILL and a start, what was committed is there and what was not is gone."""
    with psycopg.connect(own_postgres.url()) as connection:
        connection.execute("CREATE TABLE kept (name text)")
        connection.execute("INSERT INTO kept VALUES ('committed')")
    cut_off = psycopg.connect(own_postgres.url())
    cut_off.execute("INSERT INTO kept VALUES ('open')")

    own_postgres.kill()
    assert not own_postgres.process.running
    with pytest.raises(psycopg.OperationalError):
        cut_off.execute("SELECT 1")
    cut_off.close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own_postgres.url(), connect_timeout=2)
    own_postgres.start()

    with psycopg.connect(own_postgres.url()) as connection:
        assert connection.execute("SELECT name FROM kept").fetchall() == [("committed",)]
