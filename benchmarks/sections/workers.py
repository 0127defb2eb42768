"""How much do two worker threads of the scorer gain over one?

Two threads can only gain what the machine has to give, so the cores that they really got are
noted: under two, others were at work on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from feast_anchor.transforms.histories import ShardHistories, build_histories
from feast_anchor.transforms.scoring import Question, Scorer

from ..events import AS_OF, shard_tables, write_events
from ..findings import Figure, Found, Goal
from ..lab import Lab
from ..models import Subject
from ..timing import alternate

_GOAL = Goal(1.85)


@dataclass
class _Worked:
    """One scorer on one shard; notes how many cores each call kept busy."""

    scorer: Scorer
    shard: ShardHistories
    cores: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in self.scorer.score(self.shard.histories, self.shard.texts):
            pass
        self.cores.append((time.process_time() - cpu) / (time.perf_counter() - start))


def measure(lab: Lab) -> Found:
    """The same histories and questions with one scorer of each kind."""
    subject = lab.subject(lab.plan.served)
    shard = _shard(lab, subject)
    asked = [Question(query) for query in subject.questions(lab.plan.scenarios)]
    one, two = (_Worked(scorer, shard) for scorer in _scorers(subject, asked))
    timings = alternate({"1 thread": one, "2 threads": two}, lab.plan.budget)
    ratio = timings.ratio("1 thread", "2 threads")
    cores = float(np.median(two.cores))
    note = f"{len(shard.histories)} users; two threads got {cores:.2f} cores"
    title = f"{subject.size.name}: two worker threads over one"
    details = {"seconds": timings.as_json(), "ratio": ratio.as_json(), "cores": cores}
    return Found((Figure(title, ratio.value, goal=_GOAL, note=note),), details)


def _shard(lab: Lab, subject: Subject) -> ShardHistories:
    folder = lab.scratch("workers")
    write_events(folder, lab.plan.worker_users)
    (rows,) = shard_tables(subject.size.modalities, folder, 1)
    return build_histories(rows, [AS_OF], subject.size.modalities)


def _scorers(subject: Subject, asked: Sequence[Question]) -> tuple[Scorer, Scorer]:
    return Scorer(subject.bundle, asked, threads=1), Scorer(subject.bundle, asked, threads=2)
