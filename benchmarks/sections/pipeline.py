"""What does the whole Beam pipeline cost over the bare scoring loop on the same shards?

The pipeline opens the bundle, reads Parquet files, shuffles, scores and writes; the bare loop has
the rows of every shard and a scorer in memory, builds histories and scores. Both use one thread per
core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from feast_anchor.transforms.histories import build_histories
from feast_anchor.transforms.scoring import Question, Scorer

from ..events import AS_OF, run_pipeline, shard_tables, shards_of, write_events
from ..findings import Figure, Found, Goal
from ..lab import Lab
from ..models import Subject
from ..timing import Budget, Timings, alternate_cold

_GOAL = Goal(1.10, at_least=False)
_GOAL_FROM = 2_000  # users
_SECONDS = 100.0  # of one comparison


def measure(lab: Lab) -> Found:
    """Every number of users of the plan."""
    subject = lab.subject(lab.plan.served)
    queries = subject.questions(lab.plan.scenarios)
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for users in lab.plan.pipeline_users:
        timings = _compare(subject, queries, lab.scratch(f"pipeline-{users}"), users)
        ratio = timings.ratio("pipeline", "bare loop")
        goal = _GOAL if users >= _GOAL_FROM else None
        title = f"{subject.size.name}, {users:,} users: pipeline over bare loop"
        note = f"{users / timings.median('pipeline'):,.0f} users a second in the pipeline"
        figures.append(Figure(title, ratio.value, goal=goal, note=note))
        details[str(users)] = {"seconds": timings.as_json(), "ratio": ratio.as_json()}
    return Found(tuple(figures), details)


def _compare(subject: Subject, queries: list[str], folder: Path, users: int) -> Timings:
    tables = folder / "tables"
    write_events(tables, users)
    shards = shard_tables(subject.size.modalities, tables, shards_of(users))
    scorer = Scorer(subject.bundle, [Question(query) for query in queries])
    calls = {
        "pipeline": partial(run_pipeline, subject.bundle, queries, tables, folder / "run", users),
        "bare loop": partial(_bare_loop, subject, scorer, shards),
    }
    return alternate_cold(calls, Budget(3, _SECONDS, least=1))


def _bare_loop(subject: Subject, scorer: Scorer, shards: list[pa.Table]) -> None:
    for rows in shards:
        shard = build_histories(rows, [AS_OF], subject.size.modalities)
        list(scorer.score(shard.histories, shard.texts))
