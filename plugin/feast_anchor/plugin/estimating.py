"""What a run would read, write and take, from a sample: nothing is written but temporary files.

The rule: what is timed is what a run does, on users of the run with their whole histories; only the
scaling up is arithmetic. Counts that can be had exactly are exact, and all of them are where the
sample is everybody.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import RepoConfig

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.transforms.events import ReadTask, read_tasks
from feast_anchor.transforms.histories import History
from feast_anchor.transforms.job import Job, ViewRun
from feast_anchor.transforms.manifests import finished
from feast_anchor.transforms.runners import pipeline_options, threads_of, workers_of
from feast_anchor.transforms.sampling import Cells, count_users, some_tasks
from feast_anchor.transforms.sinks import newest_per_user
from feast_anchor.transforms.trial import (
    Read,
    Sample,
    Scored,
    as_ofs_of,
    take_sample,
    try_scoring,
    try_shuffle,
)

from .carry_over import carried_over
from .catalog import Catalog
from .config import EngineConfig
from .estimates import Estimate
from .online import write_seconds
from .planning import PlannedView, job_of
from .sink_schema import check_table
from .spaces import check_catalogue, check_part, first_parts

_USERS = 500  # in the sample, at least
_MOST_USERS = 2_000  # of one shard
_READ_ROWS = 2_000_000  # that the shuffle is timed on
_SCORING_S = 20.0  # for which scoring is timed
_ONLINE_ROWS = 500  # one batch

# What a shard's rows and vectors take beside themselves while it is worked on: the sorted copy,
# NumPy's arrays and texts of the rows; the table and the encoder's buffers of the vectors.
_ROW_COPIES, _VECTOR_COPIES = 4, 3


def estimate(
    group: Sequence[PlannedView], config: RepoConfig, settings: EngineConfig, repo: Path
) -> Estimate:
    """Estimate the run of views that share a pass.

    Raises:
        SpaceError, BundleError, SourceError, CatalogError: as the run would, before its work.
    """
    current = _admitted(group, config, settings, repo)
    began = time.perf_counter()
    import feast_anchor.transforms.pipeline  # noqa: F401  # so does a run, and it takes its time

    importing = time.perf_counter() - began
    with TemporaryDirectory(prefix="feast-anchor-plan-") as folder:
        trial = _Trial.of(current, settings, Path(folder))
        found = trial.estimate(importing)
        online = _online_seconds(trial, config, Path(folder))
    return replace(found, seconds={**found.seconds, "online write": online})


def _admitted(
    group: Sequence[PlannedView], config: RepoConfig, settings: EngineConfig, repo: Path
) -> list[PlannedView]:
    """The views as the run would see them, refused where the run would refuse them."""
    for planned in group:
        run = planned.run
        if run.table is not None:
            check_table(run.view, run.table, run.schema, config, settings.retry_seconds)
        for part in first_parts(Path(planned.run.sink)):
            check_part(planned.run.view, planned.run.schema, part)
    catalog = Catalog.existing(settings.catalog_url(repo))
    if catalog is None:
        return list(group)
    with catalog:
        for planned in group:
            check_catalogue(catalog, planned.project, planned.run)
        return [carried_over(one, catalog.runs(one.run.view), settings) for one in group]


@dataclass(frozen=True)
class _Trial:
    """What was measured, and what it was measured on."""

    group: Sequence[PlannedView]
    job: Job
    tasks: Sequence[ReadTask]
    users: int
    users_exact: bool
    read: Read
    sample: Sample
    scored: Scored
    workers: int
    threads: int

    @classmethod
    def of(cls, group: Sequence[PlannedView], settings: EngineConfig, scratch: Path) -> _Trial:
        """Read, shuffle and score a sample in a scratch folder."""
        options = pipeline_options(settings.runner, settings.options)
        workers = workers_of(options)
        threads = threads_of(settings.threads, settings.runner, options)
        job = job_of(list(group), settings)
        # All workers at once are timed as one with all their threads.
        job = replace(job, threads=None if threads is None else workers * threads)
        asked = None if (labels := group[0].wanted.labels) is None else labels.table
        if asked is not None:
            job = replace(job, labels=str(scratch / "labels"))
        tasks = read_tasks(job.sources, job.before)
        counted = count_users(job.sources, tasks)
        users = counted.users if asked is None else pc.count_distinct(asked.column("user")).as_py()
        cells = Cells.holding(users, job.shards, _USERS, _MOST_USERS)
        read = try_shuffle(job, some_tasks(tasks, _READ_ROWS), scratch)
        sample = take_sample(job, tasks, cells, asked)
        scored = try_scoring(job, sample, scratch, _SCORING_S)
        exact = asked is not None or counted.is_exact
        each = threads or os.cpu_count() or 1
        return cls(group, job, tasks, users, exact, read, sample, scored, workers, each)

    @property
    def total(self) -> int:
        """Rows of all tables."""
        return sum(task.rows for task in self.tasks)

    @property
    def embedded(self) -> int:
        """Users that get vectors."""
        return self._of_users(self.sample.books("users_embedded"))

    @property
    def left(self) -> list[History]:
        """Users of the sample that get no row: every view leaves them as they were."""
        if any(run.unchanged != "leave" for run in self.job.views):
            return []
        return self.sample.unchanged(self.job.views)

    @property
    def written(self) -> int:
        """Users that get rows."""
        return self._of_users(self.sample.books("users_embedded") - len(self.left))

    def estimate(self, importing: float) -> Estimate:
        """All but the online store. `importing`: seconds in which a run imports its libraries."""
        views = [planned.run for planned in self.group]
        rows = self._of_users(self.sample.as_ofs - as_ofs_of(self.left))
        labels = self.group[0].wanted.labels
        exact_rejected = self.read.rows == self.total
        estimated = [] if exact_rejected else ["events_rejected"]
        estimated += [] if self.users_exact else ["users"]
        if self.sample.cells.share < 1:
            estimated += ["users_embedded", "rows", "vectors", "rows_online"]
        remaining = self._remaining()
        seconds = {
            "start": importing + self.scored.opening,
            "read and shuffle": self._of_rows(self.read.seconds) if remaining else 0.0,
            "score": self._scoring_seconds() * remaining * self._changed(),
            "online write": 0.0,
        }
        written = self.scored.sink_bytes * _over(rows * len(views), self.scored.rows)
        return Estimate(
            views=tuple(run.view for run in views),
            run_ids=tuple(run.run_id for run in views),
            events=self._events(),
            events_rejected=round(self._of_rows(self.read.rejected)),
            users=self.users,
            users_embedded=self.embedded,
            as_of_times=len(self.job.as_of) if labels is None else labels.table.num_rows,
            rows=rows,
            vectors=rows * sum(len(run.scenarios) for run in views),
            rows_online=self.written * sum(run.online for run in views),
            shards=self.job.shards,
            shards_done=sum(_done(self.job, at) for at in range(len(views))),
            taken_over=tuple(filter(None, (self._taken_over(run) for run in views))),
            workers=self.workers,
            threads=self.threads,
            sampled_users=self.sample.books("users_in"),
            estimated=tuple(estimated),
            seconds=seconds,
            sink_bytes=round(written * _columns(self.group)),
            scratch_bytes=round(self._of_rows(self.read.bytes)) * (self.job.shuffle == "local"),
            memory_bytes=self._memory_bytes(),
        )

    def _of_users(self, number: float) -> int:
        return round(number * _over(self.users, self.sample.books("users_in")))

    def _of_rows(self, number: float) -> float:
        return number * _over(self.total, self.read.rows)

    def _events(self) -> dict[str, int]:
        found = {source.modality: 0 for source in self.job.sources}
        for task in self.tasks:
            found[self.job.sources[task.source].modality] += task.rows
        return found

    def _remaining(self) -> float:
        """Share of the shards that some view has not finished."""
        waiting = [
            any(finished(run, shard) is None for run in self.job.views)
            for shard in range(self.job.shards)
        ]
        return sum(waiting) / self.job.shards

    def _changed(self) -> float:
        """Share of the users whose vectors are computed, not taken over."""
        known = self.sample.unchanged(self.job.views)
        return 1 - _over(len(known), self.sample.books("users_embedded"))

    def _taken_over(self, run: ViewRun) -> str:
        if run.same is not None:
            return f"{', '.join(run.taken)} of run {run.same}"
        if run.earlier is not None:
            return f"{1 - self._changed():.0%} of the users, unchanged since run {run.earlier}"
        return ""

    def _scoring_seconds(self) -> float:
        """Tokens of events grow with the events, those of questions with the users."""
        scored = self.scored
        by_users = _over(self.embedded, scored.embedded)
        # How many of a table's rows are of the users that a label table names is not known.
        by_events = by_users if self.job.labels else _over(self.total, scored.events)
        manifest = Bundle.open(self.job.bundle).manifest
        events = self.sample.prefix_events(manifest.shares_prefixes)
        share = _over(events, events + self.sample.as_ofs * self._question_tokens())
        others = scored.seconds - scored.text_seconds
        return others * (share * by_events + (1 - share) * by_users) + self._text_seconds()

    def _question_tokens(self) -> int:
        bundle = Bundle.open(self.job.bundle)
        asked = {one.question.query for run in self.job.views for one in run.asked}
        return sum(len(bundle.query_ids(query)) + 1 for query in asked)

    def _text_seconds(self) -> float:
        """A shard encodes each of its texts once; most users have texts that others have."""
        scored, job = self.scored, self.job
        if not scored.texts:
            return 0.0
        larger = max(1.0, _over(self.embedded / job.shards, scored.embedded / scored.shards))
        per_shard = scored.texts / scored.shards * larger**scored.text_growth
        return float(scored.text_seconds / scored.texts * per_shard * job.shards)

    def _memory_bytes(self) -> int:
        """What this process has held, and what a whole shard takes beyond the sample's."""
        rows = sum(table.num_rows for table in self.sample.rows.values())
        row_bytes = _over(sum(table.nbytes for table in self.sample.rows.values()), rows)
        events = self.total / self.job.shards - self.scored.events / max(1, self.scored.shards)
        vector = 4 * Bundle.open(self.job.bundle).manifest.dims.embedding
        asked = sum(len(run.asked) for run in self.job.views)
        per_user = _over(self.sample.as_ofs, self.sample.books("users_embedded")) * asked * vector
        users = self.embedded / self.job.shards - self.scored.embedded / max(1, self.scored.shards)
        more = _ROW_COPIES * row_bytes * events + _VECTOR_COPIES * per_user * users
        return round(_peak_bytes() + max(0.0, more))


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _done(job: Job, view: int) -> int:
    return sum(finished(job.views[view], shard) is not None for shard in range(job.shards))


def _columns(group: Sequence[PlannedView]) -> float:
    """Columns of vectors that are written, over those that are computed."""
    runs = [planned.run for planned in group]
    return _over(sum(len(r.scenarios) for r in runs), sum(len(r.asked) for r in runs))


def _peak_bytes() -> int:
    """The most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux hands the parent's peak on to `getrusage`
        lines = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) << 10
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _online_seconds(trial: _Trial, config: RepoConfig, scratch: Path) -> float:
    """For all views that are served; measured on rows of the sample."""
    seconds = 0.0
    for planned in trial.group:
        run, part = planned.run, trial.scored.parts.get(planned.run.view)
        if not run.online or part is None:
            continue
        for _ in range(2):  # the second time is that of all further parts
            start = time.perf_counter()
            newest = newest_per_user(run, pq.read_table(part))
            reading = time.perf_counter() - start
        some = newest.slice(0, _ONLINE_ROWS)
        rows = pa.table([_column(some, field) for field in run.schema], schema=run.schema)
        writing = write_seconds(config, planned.view, rows, scratch)
        seconds += reading * _over(trial.written, newest.num_rows)
        seconds += writing * _over(trial.written, rows.num_rows)
    return seconds


def _column(rows: pa.Table, field: pa.Field) -> Any:
    """A column, or another of its type for one that the sample's run would take over."""
    if field.name in rows.column_names:
        return rows.column(field.name)
    alike = [name for name in rows.column_names if rows.schema.field(name).type == field.type]
    return rows.column(alike[0]) if alike else pa.array([0.0] * len(rows), field.type)
