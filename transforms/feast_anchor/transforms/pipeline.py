"""The Beam pipeline: read tables, shuffle by user shard, score, write.

    Create(read tasks) -> Reshuffle -> ReadRows -> (shard, Arrow bytes) -> GroupByKey -> ScoreShard

The element is an Arrow table (as an IPC stream), not a row: Beam's cost per element then hardly
counts. One shard is one unit of work, of memory and of retry. ScoreShard does its own I/O in the
order that `sinks` lays down, so a run killed anywhere is resumed by running it again.
"""

# No `from __future__ import annotations` here: Beam reads the annotations of DoFns as types.

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BooksError
from feast_anchor.onnx_export.inputs import Floats

from . import sinks
from .events import ROW_SCHEMA, ReadTask, input_snapshot, read, read_tasks
from .histories import ShardHistories, build_histories
from .job import Job, ViewRun
from .scoring import Question, Scorer
from .shards import from_bytes, partition, to_bytes
from .zeroshot import Answers, score_axes


def run_job(
    job: Job,
    online: sinks.OnlineWriterFactory | None,
    runner: str = "FnApiRunner",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Run a job to its end; on return every shard of every view has its manifest.

    Raises:
        BooksError: the shards together did not see exactly the rows of unchanged files.
        RunError and Beam's own errors: a worker failed. Finished shards are kept.
    """
    for run in job.views:
        sinks.clear_temporaries(run)
    tasks = read_tasks(job.sources, job.as_of[-1])
    with beam.Pipeline(runner=runner, options=PipelineOptions.from_dictionary(options or {})) as p:
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
            | "ScoreShard" >> beam.ParDo(ScoreShard(job, online)).with_output_types(int)
        )
    _check_outcome(job, sum(task.rows for task in tasks))


def _check_outcome(job: Job, rows: int) -> None:
    """Every row of unchanged files came by in exactly one shard: some runners lose data silently.

    Shards that cannot be trusted are taken back, or a rerun would believe them.
    """
    wrong = None
    if input_snapshot(job.sources, job.as_of[-1]) != job.snapshot:
        wrong = "the event files changed after it was planned"
    for run in job.views:
        done = [sinks.finished(run, shard) for shard in range(job.shards)]
        seen = sum(manifest.events_in for manifest in done if manifest is not None)
        if None in done:
            wrong = wrong or f"only {job.shards - done.count(None)} of {job.shards} shards came out"
        elif seen != rows:
            wrong = wrong or f"it read {rows} rows but its shards saw {seen}"
    if wrong:
        for run in job.views:
            sinks.discard(run, job.shards)
        runs = ", ".join(f"{run.run_id} of {run.view!r}" for run in job.views)
        raise BooksError(
            f"run {runs}: {wrong}, so the rows it wrote offline were taken back. Run it again on "
            "files that stay as they are, with the runner FnApiRunner"
        )


class ReadRows(beam.DoFn):
    """Read one task, given by its number, and split its rows by shard."""

    def __init__(self, job: Job, tasks: Sequence[ReadTask]) -> None:
        self._job = job
        self._tasks = tasks

    def process(self, element: int) -> Iterator[tuple[int, bytes]]:
        """Yield (shard, Arrow IPC bytes of `ROW_SCHEMA`) for every piece of the task."""
        task = self._tasks[element]
        for table in read(self._job.sources[task.source], task):
            for shard, part in partition(table, self._job.shards):
                yield shard, to_bytes(part)


class ScoreShard(beam.DoFn):
    """Build, score and write one shard for every view of the job."""

    def __init__(self, job: Job, online: sinks.OnlineWriterFactory | None) -> None:
        self._job = job
        self._online_factory = online
        self._scorer: Scorer | None = None
        self._axes: dict[Answers, Floats] = {}
        self._online: sinks.OnlineWriter | None = None

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[int]:
        """Finish one shard; yields the number of rows written offline."""
        shard, blobs = element
        waiting = []
        for run in self._job.views:
            done = sinks.finished(run, shard)
            if done is None:
                waiting.append(run)
            else:
                self._publish_again(run, done)
        if waiting:
            yield self._compute(shard, from_bytes(blobs, ROW_SCHEMA), waiting)

    def _compute(self, shard: int, rows: pa.Table, waiting: list[ViewRun]) -> int:
        began = time.monotonic()
        scorer = self._scorer_of_job()
        histories = build_histories(rows, self._job.as_of, scorer.manifest.modalities)
        if not histories.books.balances():
            raise BooksError(f"shard {shard}: the books do not balance: {histories.books}")
        scored = list(scorer.score(histories.histories, histories.texts))
        created = time.time_ns() // 1000
        questions = _questions(self._job)
        written = 0
        for run in waiting:
            columns = [questions.index(scenario.question) for scenario in run.scenarios]
            table = sinks.rows_table(run, columns, scored, created, self._axes)
            self._write(run, shard, table, histories, began)
            written += len(table)
        return written

    def _write(
        self, run: ViewRun, shard: int, rows: pa.Table, histories: ShardHistories, began: float
    ) -> None:
        part = sinks.write_part(run, shard, rows)
        names = [spec.name for spec in self._scorer_of_job().manifest.modalities]
        dead = sinks.write_dead_letters(run, shard, histories, names)
        online = self._publish(run, rows)
        books = histories.books
        sinks.ShardManifest(
            run_id=run.run_id,
            view=run.view,
            shard=shard,
            users_in=books.users_in,
            users_embedded=books.users_embedded,
            users_rejected=books.users_rejected,
            events_in=books.events_in,
            events_used=books.events_used,
            events_rejected=books.events_rejected,
            events_outside=books.events_outside,
            events_over_budget=books.events_over_budget,
            rows_offline=rows.num_rows,
            rows_online=online,
            rejected=histories.rejections,
            seconds=time.monotonic() - began,
            part=str(part),
            dead_letters=None if dead is None else str(dead),
        ).save(run.state_folder)

    def _publish(self, run: ViewRun, rows: pa.Table) -> int:
        if not run.online or self._online_factory is None:
            return 0
        if self._online is None:
            self._online = self._online_factory()
        return self._online.write(run.view, sinks.newest_per_user(run, rows))

    def _publish_again(self, run: ViewRun, done: sinks.ShardManifest) -> None:
        """Write a finished shard's online rows once more, from its part.

        Whoever runs a window again may have emptied the online store since, and a finished shard
        costs only this write.
        """
        self._publish(run, pq.read_table(done.part, schema=run.schema))

    def _scorer_of_job(self) -> Scorer:
        if self._scorer is None:
            bundle = Bundle.open(self._job.bundle, expect_digest=self._job.digest)
            self._axes = score_axes(bundle, _answers(self._job))
            self._scorer = Scorer(
                bundle, _questions(self._job), self._job.threads, self._job.device
            )
        return self._scorer


def _questions(job: Job) -> list[Question]:
    """Every distinct question of the job's views, in a fixed order."""
    return list(dict.fromkeys(s.question for run in job.views for s in run.scenarios))


def _answers(job: Job) -> list[Answers]:
    """The answers of every score of the job's views."""
    scenarios = [scenario for run in job.views for scenario in run.scenarios]
    return [scenario.score.answers for scenario in scenarios if scenario.score is not None]
