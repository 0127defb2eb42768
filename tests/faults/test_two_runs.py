"""Two attempts at one view at the same time: they take turns, or the second is refused."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest

from faults.harness import NewShop
from faults.judge import Undisturbed, judge, runs
from services.postgres import PostgresServer

SAVED = "feast_anchor.transforms.manifests:ShardManifest.save"


@pytest.fixture(params=["sqlite", "postgres"])
def catalog(request: pytest.FixtureRequest) -> str:
    """The URL of an empty catalogue of each kind: they lock in different ways."""
    if request.param == "sqlite":
        return "sqlite:///anchor.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    name = f"faults_{uuid4().hex}"
    postgres.create_database(name)
    return postgres.sqlalchemy_url(name)


def test_the_second_waits_and_finds_the_work_done(
    catalog: str, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """It begins when the first has ended, and computes nothing again."""
    shop = make_shop(catalog=catalog)
    first = shop.pause(SAVED, 3)
    second = shop.start()
    while "is locked by" not in second.said():
        assert second.code() is None, second.said()
        time.sleep(0.01)
    (run,) = runs(shop)
    assert run.attempt == 1  # the second has not begun
    shop.go_on()
    first.succeed()
    parts = {path: path.stat().st_mtime_ns for path in shop.sink.glob("run-*/part-*")}
    second.succeed()
    judge(shop, undisturbed.rows, attempts=2)
    computed = {path: path.stat().st_mtime_ns for path in shop.sink.glob("run-*[0-9a-f]/part-*")}
    assert computed.items() <= parts.items()


def test_the_second_is_refused_where_nobody_waits(
    catalog: str, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """With wait_seconds 0 it fails at once, names the holder, and disturbs nothing."""
    shop = make_shop(catalog=catalog, wait_seconds=0)
    first = shop.pause(SAVED, 3)
    shop.start().fail("is locked by", f"process {first.pid} on", "raise wait_seconds")
    shop.go_on()
    first.succeed()
    judge(shop, undisturbed.rows, attempts=1)
