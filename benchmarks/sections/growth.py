"""Does the pipeline's time grow with its users alone, and does its memory stay bounded?

Every point is a process of its own, so that peak memory is that of one job. A shard holds the same
number of users throughout. The model is small on purpose: what grows here is not the model's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..events import write_events
from ..findings import Figure, Found, Goal
from ..lab import Lab
from ..models import Subject

_ROOT = Path(__file__).resolve().parents[2]
_MEMORY_USERS = 100_000
_MEMORY_GOAL = Goal(2_048, at_least=False)  # MiB


def measure(lab: Lab) -> Found:
    """Every number of users of the plan."""
    subject = lab.subject(lab.plan.grown)
    points = [
        _point(subject, lab.scratch(f"growth-{users}"), users, lab.plan.scenarios)
        for users in lab.plan.growth_users
    ]
    figures = []
    for point in points:
        users, name = point["users"], subject.size.name
        goal = _MEMORY_GOAL if users >= _MEMORY_USERS else None
        figures.append(Figure(f"{name}, {users:,} users: time", point["seconds"], "s"))
        figures.append(
            Figure(f"{name}, {users:,} users: peak memory", point["peak_mib"], "MiB", goal)
        )
    return Found(tuple(figures), {"size": subject.size.name, "points": points})


def _point(subject: Subject, folder: Path, users: int, scenarios: int) -> dict[str, Any]:
    """One job in a process of its own."""
    write_events(folder / "tables", users)
    command = [sys.executable, "-m", "benchmarks.one_job", str(subject.bundle.folder)]
    command += [str(folder), str(users), *subject.questions(scenarios)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"the job over {users} users failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"users": users, **found}
