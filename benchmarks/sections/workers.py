"""How much do two worker threads of the scorer gain over one, on two cores?"""

from __future__ import annotations

import os
from functools import partial

from feast_anchor.transforms.histories import build_histories
from feast_anchor.transforms.scoring import Question, Scorer

from ..events import AS_OF, shard_tables, write_events
from ..findings import Figure, Found, Goal
from ..lab import Lab
from ..timing import alternate

_GOAL = Goal(1.85)


def measure(lab: Lab) -> Found:
    """The same histories and questions with one scorer of each kind."""
    subject, folder = lab.subject(lab.plan.served), lab.scratch("workers")
    write_events(folder, lab.plan.worker_users)
    (rows,) = shard_tables(subject.size.modalities, folder, 1)
    shard = build_histories(rows, [AS_OF], subject.size.modalities)
    asked = [Question(query) for query in subject.questions(lab.plan.scenarios)]
    scorers = {f"{n} threads": Scorer(subject.bundle, asked, threads=n) for n in (1, 2)}

    def score(scorer: Scorer) -> None:
        for _ in scorer.score(shard.histories, shard.texts):
            pass

    calls = {name: partial(score, scorer) for name, scorer in scorers.items()}
    timings = alternate(calls, lab.plan.budget)
    ratio = timings.ratio("1 threads", "2 threads")
    cores = os.cpu_count() or 1
    note = f"{len(shard.histories)} users, {cores} cores as the system counts them"
    title = f"{subject.size.name}: two worker threads over one"
    figure = Figure(title, ratio.value, goal=_GOAL, note=note)
    return Found((figure,), {"seconds": timings.as_json(), "ratio": ratio.as_json()})
