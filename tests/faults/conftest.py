"""What all faults share: the fork server, and what an undisturbed run leaves.

The full form (`make test-faults`, FEAST_ANCHOR_FAULTS=full) tries many more points; everything else
is the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.forkserver import ForkServer
from faults.harness import FULL, NewShop, Shop, new_shop
from faults.judge import Rows, Undisturbed, judge
from faults.report import Table

REPOSITORY = Path(__file__).resolve().parents[2]
_MEASURED = 3  # runs, of which the quickest counts


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A process that forks attempts."""
    server = ForkServer(tmp_path_factory.mktemp("forkserver") / "server.log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer, shop_bundle: Path
) -> Undisturbed:
    """The rows of a shop that was materialized in one go, and how long that takes."""
    seconds = []
    for number in range(_MEASURED):
        path = tmp_path_factory.mktemp("undisturbed") / f"shop{number}"
        shop = new_shop(path, fork_server, shop_bundle)
        began = time.monotonic()
        shop.start().succeed()
        seconds.append(time.monotonic() - began)
    rows = Rows.of(shop)
    assert len(rows.offline) > 200
    judge(shop, rows, attempts=1)
    return Undisturbed(rows, min(seconds))


@pytest.fixture
def make_shop(tmp_path: Path, fork_server: ForkServer, shop_bundle: Path) -> NewShop:
    """Makes applied shops: `make_shop(shuffle="beam")`."""

    def make(name: str = "shop", bundle: Path = shop_bundle, **settings: Any) -> Shop:
        return new_shop(tmp_path / name, fork_server, bundle, **settings)

    return make


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Notes every disturbed run; the full form prints them and writes build/faults."""
    table, began = Table(), time.monotonic()
    yield table
    if not FULL:
        return
    table.save(REPOSITORY / "build" / "faults" / "summary.json", time.monotonic() - began)
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    for line in ("", *table.lines()):
        reporter.write_line(line)
