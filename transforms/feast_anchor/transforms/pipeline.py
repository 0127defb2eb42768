"""The Beam pipeline: bring each user's events together, score, and publish what came out right.

    local shuffle    driver: read, partition on disk
                     Create(shards) -> Reshuffle -> ScoreStored
    Beam shuffle     Create(read tasks) -> Reshuffle -> ReadRows -> (shard, Arrow bytes)
                     -> GroupByKey -> ScoreGrouped
    then             driver: books of all shards -> publish offline
                     Create(shards) -> Reshuffle -> PublishRows (SQL table, online store)

The element is a shard number or an Arrow table (as an IPC stream), never a row: Beam's cost per
element then hardly counts. One shard is one unit of work, of memory and of retry. All workers do
their own I/O in the order that `manifests` lays down, so a run killed anywhere is resumed by
running it again.
"""

# No `from __future__ import annotations` here: Beam reads the annotations of DoFns as types.

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq

from feast_anchor.onnx_export.errors import BooksError

from . import books, manifests, sinks
from .events import ROW_SCHEMA, ReadTask, input_snapshot, read, read_tasks
from .heartbeats import beating
from .job import Job, ViewRun
from .local_shuffle import Shuffled, complete, rejected_rows, shard_rows, shuffle
from .runners import is_watched, pipeline_options, threads_of
from .shard_work import ShardWork
from .shards import from_bytes, partition, to_bytes
from .watched import WatchedPipeline

_CHANGED = (
    "the event tables changed after it was planned. Run it again on tables that stay as they are"
)

Report = Callable[[str], None]


def run_job(
    job: Job,
    online: sinks.OnlineWriterFactory | None,
    runner: str = "FnApiRunner",
    options: Mapping[str, Any] | None = None,
    report: Report = lambda text: None,
    guard: Callable[[], None] = lambda: None,
    table: sinks.TableWriterFactory | None = None,
) -> None:
    """Run a job to its end; on return all rows of every view are published.

    Args:
        online: writes what rankers are served; None leaves the online store alone.
        report: told in a few words what is going on between shards.
        guard: called before anything is published; what it raises stops the job.
        table: writes the rows of views that have a SQL table.

    Raises:
        BooksError: the shards together did not see exactly the rows of unchanged tables, or more
            was rejected than `Job.max_rejected` allows. Nothing was published.
        RunError and Beam's own errors: a worker failed. Finished shards are kept.
    """
    settings = pipeline_options(runner, options or {})
    hearts = f"{_folder(job, 'hearts')}-{job.attempt}" if is_watched(runner) else None
    job = replace(job, threads=threads_of(job.threads, runner, settings), hearts=hearts)
    for run in job.views:
        manifests.clear_temporaries(run)

    def pipeline() -> beam.Pipeline:
        return WatchedPipeline(runner, settings, hearts)

    score = _score_stored if job.shuffle == "local" else _score_grouped
    _check_outcome(job, score(job, pipeline, report))
    guard()
    report("publishing")
    for run in job.views:
        manifests.publish(run)
    writers = sinks.Writers(online, table)
    if any(writers.wanted(run) for run in job.views):
        _publish_rows(job, writers, pipeline)
    shutil.rmtree(_folder(job, "shuffle"), ignore_errors=True)


def _all_finished(job: Job) -> bool:
    return all(
        manifests.finished(run, shard) is not None
        for run in job.views
        for shard in range(job.shards)
    )


def _folder(job: Job, kind: str) -> Path:
    first = min(job.views, key=lambda run: run.run_id)
    return first.state_folder.parent / f"{kind}-{first.run_id}"


def _score_stored(job: Job, pipeline: Callable[[], beam.Pipeline], report: Report) -> int:
    """Score what the local shuffle holds, and return how many rows that is.

    Once it is complete the events stand still: tables may grow while they are scored.
    """
    folder = _folder(job, "shuffle")
    stored = complete(folder, job.shards)
    if stored is None and _all_finished(job):
        return sum(task.rows for task in read_tasks(job.sources, job.before))
    if stored is None:
        stored = _shuffled(job, folder, report)
    _refuse_bad_input(job, stored, folder)
    if not _all_finished(job):
        report("scoring")
        with pipeline() as p:
            _ = (
                p
                | "Shards" >> beam.Create(range(job.shards))
                | beam.Reshuffle()
                | "ScoreStored" >> beam.ParDo(ScoreStored(job, str(folder))).with_output_types(int)
            )
    return stored.rows


def _shuffled(job: Job, folder: Path, report: Report) -> Shuffled:
    """Shuffle, and refuse tables that changed meanwhile."""
    tasks = read_tasks(job.sources, job.before)
    total = sum(task.rows for task in tasks)

    def read_so_far(rows: int) -> None:
        report(f"reading events, {rows:,} of {total:,}")

    found = shuffle(job.sources, tasks, job.shards, folder, read_so_far)
    if found.rows != total or _changed(job):
        raise _take_back(job, _CHANGED)
    return found


def _refuse_bad_input(job: Job, found: Shuffled, folder: Path) -> None:
    """Too many rejects are known before the expensive part, at every attempt."""
    reason = books.too_many("events", found.rejected, found.rows, job.max_rejected)
    if reason:
        kept = [books.keep_rejected(run, rejected_rows(folder, job.shards)) for run in job.views]
        raise BooksError(f"{books.names(job)}: {reason}. The rejected rows are in {kept[0]}")


def _score_grouped(job: Job, pipeline: Callable[[], beam.Pipeline], report: Report) -> int:
    """Score what Beam brings together, and return how many rows there were to read."""
    tasks = read_tasks(job.sources, job.before)
    if not _all_finished(job):
        report("reading events")
        _score_tables(job, tasks, pipeline)
    if _changed(job):
        raise _take_back(job, _CHANGED)
    return sum(task.rows for task in tasks)


def _score_tables(
    job: Job, tasks: Sequence[ReadTask], pipeline: Callable[[], beam.Pipeline]
) -> None:
    with pipeline() as p:
        tables = (
            p
            | "ReadTasks" >> beam.Create(range(len(tasks)))
            | beam.Reshuffle()
            | "ReadRows" >> beam.ParDo(ReadRows(job, tasks)).with_output_types(tuple[int, bytes])
        )
        # Every shard must come by, also one that no row falls into: its manifest says "done".
        shards = p | "Shards" >> beam.Create([(shard, b"") for shard in range(job.shards)])
        _ = (
            (tables, shards)
            | beam.Flatten()
            | beam.GroupByKey()
            | "ScoreGrouped" >> beam.ParDo(ScoreGrouped(job)).with_output_types(int)
        )


def _publish_rows(job: Job, writers: sinks.Writers, pipeline: Callable[[], beam.Pipeline]) -> None:
    with pipeline() as p:
        _ = (
            p
            | "Published" >> beam.Create(range(job.shards))
            | beam.Reshuffle()
            | "PublishRows" >> beam.ParDo(PublishRows(job, writers)).with_output_types(int)
        )
    books.check_published(job, [run for run in job.views if writers.wanted(run)])


def _changed(job: Job) -> bool:
    return input_snapshot(job.sources, job.before) != job.snapshot


def _check_outcome(job: Job, rows: int) -> None:
    """Every row came by in exactly one shard: some runners lose data silently."""
    wrong = books.missing(job, rows)
    if wrong:
        raise _take_back(job, f"{wrong}. Run it again, with a tested runner such as FnApiRunner")
    reason = books.rejected_too_many(job)
    if reason:
        raise BooksError(f"{books.names(job)}: {reason}")


def _take_back(job: Job, wrong: str) -> BooksError:
    """Remove shards that cannot be trusted, or a rerun would believe them; returns the error."""
    for run in job.views:
        manifests.discard(run, job.shards)
    shutil.rmtree(_folder(job, "shuffle"), ignore_errors=True)
    return BooksError(f"{books.names(job)}: nothing was published, because {wrong}")


class ReadRows(beam.DoFn):
    """Read one task, given by its number, and split its rows by shard."""

    def __init__(self, job: Job, tasks: Sequence[ReadTask]) -> None:
        self._job = job
        self._tasks = tasks

    def process(self, element: int) -> Iterator[tuple[int, bytes]]:
        """Yield (shard, Arrow IPC bytes of `ROW_SCHEMA`) for every piece of the task."""
        task = self._tasks[element]
        with beating(self._job.hearts, f"reading-{element}"):
            for table in read(self._job.sources[task.source], task):
                for shard, part in partition(table, self._job.shards):
                    yield shard, to_bytes(part)


class ScoreGrouped(beam.DoFn):
    """Finish one shard from the tables that Beam brought together."""

    def __init__(self, job: Job) -> None:
        self._work = ShardWork(job)
        self._hearts = job.hearts

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[int]:
        """Yield the number of rows written."""
        shard, blobs = element
        with beating(self._hearts, f"scoring-{shard}"):
            rows = self._work.finish(shard, lambda: from_bytes(blobs, ROW_SCHEMA))
        yield rows


class ScoreStored(beam.DoFn):
    """Finish one shard from the local shuffle's file."""

    def __init__(self, job: Job, folder: str) -> None:
        self._work = ShardWork(job)
        self._folder = folder
        self._hearts = job.hearts

    def process(self, element: int) -> Iterator[int]:
        """Yield the number of rows written."""
        with beating(self._hearts, f"scoring-{element}"):
            rows = self._work.finish(element, lambda: shard_rows(Path(self._folder), element))
        yield rows


class PublishRows(beam.DoFn):
    """Write the rows of one shard into SQL tables and the online store, from its published parts.

    A finished shard is written again too: whoever runs a window again may have emptied a store
    since.
    """

    def __init__(self, job: Job, writers: sinks.Writers) -> None:
        self._job = job
        self._writers = writers

    def process(self, element: int) -> Iterator[int]:
        """Yield the number of online rows written."""
        with beating(self._job.hearts, f"publishing-{element}"):
            views = [run for run in self._job.views if self._writers.wanted(run)]
            written = sum(self._publish(run, element) for run in views)
        yield written

    def _publish(self, run: ViewRun, shard: int) -> int:
        done, part = manifests.finished(run, shard), manifests.finished_part(run, shard)
        if done is None or part is None:
            return 0
        written = self._writers.write(run, pq.read_table(part, schema=run.schema))
        replace(done, rows_online=written, published_by=self._job.attempt).save(run.state_folder)
        return written
