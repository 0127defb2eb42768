"""What to measure, how long, and where things lie: one object that every section is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .models import Subject, size, subject
from .timing import Budget


@dataclass(frozen=True)
class Plan:
    """Sizes, counts and times of a run. The defaults are the goals' and take about 20 minutes."""

    sizes: tuple[str, ...] = ("small", "medium")
    medium_layers: int = 4
    blocks: tuple[int, ...] = (1, 4, 16, 64)  # Q
    snapshots: tuple[int, ...] = (1, 4, 16)  # S
    budget: Budget = field(default_factory=Budget)  # of one comparison of graphs
    served: str = "small"  # size behind the sections on Beam, workers and the pipeline
    scenarios: int = 4  # questions of those sections
    beam_users: int = 128
    requests: int = 1_000  # of each kind of stored state
    worker_users: int = 300
    pipeline_users: tuple[int, ...] = (2_000, 8_000)
    grown: str = "nano"  # size behind the section on growth: memory is not the model's there
    growth_users: tuple[int, ...] = (6_250, 25_000, 100_000)
    large: str = "nano-market"  # size behind the section on scale
    large_users: int = 200_000  # with 50 events each


# Every section in a few minutes: enough to see a change of tens of percent.
QUICK = Plan(
    medium_layers=2,
    budget=Budget(rounds=5, seconds=3.0, least=2),
    beam_users=24,
    requests=200,
    worker_users=100,
    pipeline_users=(500,),
    growth_users=(500, 2_000, 8_000),
    large_users=8_000,
)


@dataclass(frozen=True)
class Lab:
    """A plan and the folder of this run."""

    plan: Plan
    out: Path

    def subject(self, name: str) -> Subject:
        """The bundle of a size, exported when first asked for."""
        return subject(size(name, self.plan.medium_layers), self.out / "models")

    def scratch(self, name: str) -> Path:
        """A folder for files that only one section needs."""
        folder = self.out / "scratch" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
