"""The driver is killed with SIGKILL at any time; the same command then finishes.

Two ways to choose the time: random points over the length of a run, and every change that a run
makes to the repo's files, one after the other, where a wrong order of writing would show.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from faults.attempt import Conditions
from faults.harness import FULL, NewShop, Shop
from faults.judge import Undisturbed, all_or_nothing, judge
from faults.report import Row, Table

SEEDS = range(50 if FULL else 4)
CHANGES = range(1, 200, 5) if FULL else (3, 40, 110)
SHUFFLES = ("local", "beam")


@pytest.fixture(scope="module")
def pace(undisturbed: Undisturbed) -> list[float]:
    """How long whole runs took, the latest last, in seconds: other work makes them longer."""
    return [undisturbed.seconds]


def kill_after(shop: Shop, seconds: float) -> str:
    """Kill an attempt after some seconds; says how far it was."""
    attempt = shop.start()
    time.sleep(seconds)
    over = attempt.code() is not None
    attempt.kill()
    return "over" if over else f"{seconds:.2f} s, {shop.shards_done()} shards"


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_a_random_point(
    seed: int, make_shop: NewShop, undisturbed: Undisturbed, kills: Table, pace: list[float]
) -> None:
    """Whenever it was killed: all rows or none before the rerun, the same rows after it."""
    rng = np.random.default_rng(seed)
    shuffle = SHUFFLES[seed % 2]
    shop = make_shop(shuffle=shuffle)
    killed = []
    for _ in range(1 + (seed % 3 == 1)):  # every third seed twice
        killed.append(kill_after(shop, rng.uniform(0, max(pace[-3:]))))
        all_or_nothing(shop, undisturbed.rows)
    whole, began = shop.shards_done() == 0, time.monotonic()
    shop.start().succeed()
    if whole:
        pace.append(time.monotonic() - began)
    lost = judge(shop, undisturbed.rows)
    kills.add(Row(f"seed {seed}", shuffle, "; ".join(killed), lost.rows_lost, lost.rows_twice))


@pytest.mark.parametrize("change", CHANGES)
def test_killed_before_a_change_of_its_files(
    change: int, make_shop: NewShop, undisturbed: Undisturbed, kills: Table
) -> None:
    """Whichever file it was about to open, move or remove, nothing depends on it."""
    shuffle = SHUFFLES[change % 2]
    shop = make_shop(shuffle=shuffle)
    attempt = shop.start(Conditions(kill_at_change=change))
    ended = attempt.wait()
    assert ended in (0, -9), attempt.said()
    all_or_nothing(shop, undisturbed.rows)
    killed = f"change {change}, {shop.shards_done()} shards" if ended else "over"
    shop.start().succeed()
    lost = judge(shop, undisturbed.rows)
    kills.add(Row(f"change {change}", shuffle, killed, lost.rows_lost, lost.rows_twice))


def test_most_attempts_were_really_killed(kills: Table) -> None:
    """Else the tests above would also pass where every kill came too late."""
    if not kills.rows:
        pytest.skip("none of the tests above was run")
    assert kills.share_killed >= 0.5, "\n".join(kills.lines())


def test_an_attempt_that_was_over_was_not_killed() -> None:
    """Of a shop with two attempts each counts for itself."""
    table = Table([Row("seed 1", "beam", "over; 0.31 s, 2 shards", 0, 0)])
    assert table.share_killed == 0.5
    table.add(Row("change 3", "beam", "over", 0, 0))
    assert table.share_killed == pytest.approx(1 / 3)
