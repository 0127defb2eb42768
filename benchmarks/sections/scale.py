"""Ten million events on one machine: how long is each stage, how much memory, and is it linear?

The whole job from Parquet files to a published sink, offline only, in a process of its own, over a
quarter of the users first and then over all of them. A shard holds the same number of users both
times. The model is small on purpose, so that what is not the model's shows.

Linear is said of wall time, as the goal is, and of the processor's time beside it, which a
neighbour on the machine changes less.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..findings import Figure, Found, Goal
from ..lab import Lab
from ..market import write_market
from ..models import Subject

_ROOT = Path(__file__).resolve().parents[2]
_PARTS = 4
_LINEAR = Goal(1.10, at_least=False)
_MEMORY = Goal(4_096, at_least=False)  # MiB
_GOALS_FROM = 200_000  # users
_STAGES = {"reading events": "shuffle", "scoring": "scoring", "publishing": "publish"}


def measure(lab: Lab) -> Found:
    """A quarter of the plan's users, then all of them."""
    subject, users = lab.subject(lab.plan.large), lab.plan.large_users
    quarter, full = (_point(subject, lab, some) for some in (users // _PARTS, users))
    if full["rows"] + full["users_rejected"] != full["users"]:
        raise RuntimeError(f"{full['rows']} rows for {full['users']} users: {full}")
    name = f"{subject.size.name}, {users:,} users"
    figures = [
        Figure(f"{name}: {_STAGES[stage['stage']]}", stage["seconds"], "s", note=_rate(stage, full))
        for stage in full["stages"]
    ]
    goals = (_LINEAR, _MEMORY) if users >= _GOALS_FROM else (None, None)
    growth = full["seconds"] / quarter["seconds"] / _PARTS
    busy = _busy(full) / _busy(quarter) / _PARTS
    events = f"{full['events']:,} events in {full['shards']} shards"
    figures += [
        Figure(f"{name}: whole job", full["seconds"], "s", note=events),
        Figure(f"{name}: growth over a quarter", growth, goal=goals[0], note="1 is linear"),
        Figure(f"{name}: the same, processor time", busy, note="1 is linear"),
        Figure(f"{name}: peak memory", full["peak_mib"], "MiB", goals[1]),
        Figure(f"{users // _PARTS:,} users: peak memory", quarter["peak_mib"], "MiB"),
    ]
    return Found(tuple(figures), {"quarter": quarter, "full": full})


def _rate(stage: dict[str, Any], point: dict[str, Any]) -> str:
    return f"{point['events'] / stage['seconds']:,.0f} events a second"


def _busy(point: dict[str, Any]) -> float:
    return float(sum(stage["busy_s"] for stage in point["stages"]))


def _point(subject: Subject, lab: Lab, users: int) -> dict[str, Any]:
    """One job in a process of its own; its books are checked there."""
    folder = lab.scratch(f"scale-{users}")
    events = write_market(folder / "tables", users)
    command = [sys.executable, "-m", "benchmarks.big_job", str(subject.bundle.folder)]
    command += [str(folder), str(users), *subject.questions(lab.plan.scenarios)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"the job over {users} users failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["events"] != events:
        raise RuntimeError(f"the tables hold {events} events, the shards saw {found['events']}")
    return found
