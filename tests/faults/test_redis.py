"""The online store goes away in the middle of the online writes, and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from faults.harness import NewShop
from faults.judge import Undisturbed, all_or_nothing, judge, runs, watermarks
from feast_anchor.plugin.catalog import RunStatus
from services.valkey import ValkeyServer, valkey_server

A_BATCH = "feast_anchor.plugin.online:FeastOnlineWriter._persist"


@pytest.fixture
def durable(valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    """A server of this test's own that keeps what it was given through a kill."""
    with valkey_server(durable=True) as server:
        yield server


def online(server: ValkeyServer) -> dict[str, Any]:
    """The online store's settings for a server."""
    return {"type": "redis", "connection_string": server.connection_string}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_store_that_comes_back_is_waited_for(
    end: str, durable: ValkeyServer, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """Stopped or killed between two batches and started again, it has every row of one attempt."""
    shop = make_shop(online=online(durable))
    attempt = shop.pause(A_BATCH, 4)
    getattr(durable, end)()
    shop.go_on()
    time.sleep(0.5)
    assert attempt.code() is None, attempt.said()  # it waits
    durable.start()
    attempt.succeed()
    judge(shop, undisturbed.rows, attempts=1)


def test_a_store_that_stays_away_fails_the_run(
    durable: ValkeyServer, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """After retry_seconds the run has failed, and the rerun writes what the store has lost."""
    shop = make_shop(online=online(durable), retry_seconds=0.5)
    attempt = shop.pause(A_BATCH, 4)
    durable.stop()
    shop.go_on()
    attempt.fail("took no rows for", "retry_seconds is 0.5")
    assert watermarks(shop) == []
    assert all_or_nothing(shop, undisturbed.rows)  # offline they were published before
    (run,) = runs(shop)
    assert run.status is RunStatus.FAILED
    assert "took no rows for" in (run.error or "")
    durable.start()
    with durable.client() as client:
        client.flushall()
    shop.start().succeed()
    judge(shop, undisturbed.rows, attempts=2)
