"""A worker process is killed with SIGKILL at a random point; the run ends, and a rerun finishes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from faults.harness import FULL, SHARDS, Attempt, NewShop
from faults.judge import Undisturbed, assert_untouched, judge, runs
from faults.report import Row, Table
from feast_anchor.plugin.catalog import RunStatus

SEEDS = range(4 if FULL else 1)
WORKERS = 2
MODULE = b"feast_anchor.transforms.worker_main"
_PATIENCE_S = 120.0


def workers_of(attempt: Attempt) -> list[int]:
    """The worker processes of an attempt: they are in its process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            group = os.getpgid(int(entry.name))
            command = (entry / "cmdline").read_bytes()
        except (ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
            continue
        if group == attempt.pid and MODULE in command:
            found.append(int(entry.name))
    return sorted(found)


def wait_for_workers(attempt: Attempt) -> list[int]:
    """The workers of an attempt, once all have started."""
    deadline = time.monotonic() + _PATIENCE_S
    while len(found := workers_of(attempt)) < WORKERS:
        assert attempt.code() is None, attempt.said()
        assert time.monotonic() < deadline, attempt.said()
        time.sleep(0.01)
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds workers in /proc")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_worker_fails_the_run_and_a_rerun_finishes_it(
    seed: int, make_shop: NewShop, undisturbed: Undisturbed, kills: Table
) -> None:
    """Killed while it starts or after some shards: the error says so, nobody hangs or lives on."""
    rng = np.random.default_rng(seed)
    options = {"direct_running_mode": "multi_processing", "direct_num_workers": WORKERS}
    shuffle = ("local", "beam")[seed % 2]
    shop = make_shop(options=options, shuffle=shuffle)
    attempt = shop.start()
    victim = wait_for_workers(attempt)[rng.integers(WORKERS)]
    wanted = rng.integers(SHARDS // 2)
    while shop.shards_done() < wanted:
        assert attempt.code() is None, attempt.said()
        time.sleep(0.002)
    os.kill(victim, signal.SIGKILL)
    killed = f"a worker, {shop.shards_done()} shards"
    attempt.fail("a worker process died (exit code -9)", "run the same command again to resume")
    assert workers_of(attempt) == []
    assert_untouched(shop)
    (run,) = runs(shop)
    assert run.status is RunStatus.FAILED
    shop.start().succeed()
    lost = judge(shop, undisturbed.rows, attempts=2)
    kills.add(Row(f"worker {seed}", shuffle, killed, lost.rows_lost, lost.rows_twice))
