"""PostgreSQL, which holds the catalogue and the lock of the view, drops out in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from faults.attempt import Conditions
from faults.harness import NewShop
from faults.judge import Undisturbed, judge, runs, watermarks
from feast_anchor.plugin.catalog import RunStatus
from services.postgres import PostgresServer, postgres_server

SCORING = "feast_anchor.transforms.manifests:ShardManifest.save"
PUBLISHING = "feast_anchor.transforms.manifests:publish"
RECORDING = "feast_anchor.plugin.catalog:Catalog.record_shard"


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server of this module's own, because it is going to be killed."""
    with postgres_server() as own:
        yield own


@pytest.fixture
def catalog(server: PostgresServer) -> str:
    """The URL of an empty database."""
    name = f"faults_{uuid4().hex}"
    server.create_database(name)
    return server.sqlalchemy_url(name)


def drop_all(server: PostgresServer, url: str) -> int:
    """End every session of the database; returns how many there were."""
    database = url.rpartition("/")[2]
    ask = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        return len(connection.execute(ask, [database]).fetchall())


@pytest.mark.parametrize("where", [SCORING, PUBLISHING, RECORDING])
def test_dropped_sessions_are_replaced(
    where: str, server: PostgresServer, catalog: str, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """With all its sessions ended amid its work, the run goes on and loses nothing."""
    shop = make_shop(catalog=catalog)
    attempt = shop.pause(where, 1 if where == PUBLISHING else 3)
    assert drop_all(server, catalog) >= 1
    shop.go_on()
    attempt.succeed()
    judge(shop, undisturbed.rows, attempts=1)


@pytest.mark.parametrize("where", [SCORING, RECORDING])
def test_a_killed_server_that_is_started_again_is_waited_for(
    where: str, server: PostgresServer, catalog: str, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """Killed with SIGKILL and started again, it has the whole run on record."""
    shop = make_shop(catalog=catalog)
    attempt = shop.pause(where, 3)
    server.kill()
    shop.go_on()
    server.start()
    attempt.succeed()
    judge(shop, undisturbed.rows, attempts=1)


def test_a_server_that_stays_away_fails_the_run(
    server: PostgresServer, catalog: str, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """Nobody can write down that it failed, but Feast is told, and the rerun puts it right."""
    shop = make_shop(catalog=catalog)
    attempt = shop.pause(RECORDING, 3, catalog_retry=0.5)
    server.kill()
    shop.go_on()
    attempt.fail("Could not write to the catalogue")
    assert watermarks(shop) == []
    server.start()
    (run,) = runs(shop)
    assert run.status is RunStatus.RUNNING
    shop.start(Conditions()).succeed()
    judge(shop, undisturbed.rows, attempts=2)
