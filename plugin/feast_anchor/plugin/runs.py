"""Runs from their plan to their record: admit, lock, take over, compute, publish, write it down.

The rule: whatever a run comes to that has begun is in the catalogue, and one that fails says why
and how to go on. One view has one run at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from feast import RepoConfig

from feast_anchor.onnx_export.errors import AnchorError, RunError
from feast_anchor.transforms import labels
from feast_anchor.transforms.histories import EPOCH, micros
from feast_anchor.transforms.job import Job, ViewRun
from feast_anchor.transforms.manifests import ShardManifest, finished
from feast_anchor.transforms.quiet import quiet_beam

from .carry_over import BASE, CODE, carried_over
from .catalog import Catalog, RunRecord, ShardRecord
from .config import EngineConfig
from .locks import HeldLock
from .online import FeastOnlineWriterFactory
from .planning import COMPUTED_BY, PlannedView, job_of
from .progress import shown
from .pulled import release
from .sink_schema import prepare_table
from .spaces import check_catalogue, prepare_sink, space_records
from .table_writer import PostgresWriterFactory


@dataclass(frozen=True)
class Outcome:
    """How one view's run ended; `run_id` is what the catalogue knows it by."""

    run_id: str
    failure: BaseException | None = None


@dataclass(frozen=True)
class Runs:
    """Executes planned runs of one feature repo."""

    config: RepoConfig
    settings: EngineConfig
    repo: Path

    def run(self, group: Sequence[PlannedView]) -> list[Outcome]:
        """Run one pass for views that share it; every failure is returned, not raised."""
        _quieten("apache_beam", "alembic")
        try:
            with Catalog.open(self.settings.catalog_url(self.repo)) as catalog:
                return self._run(catalog, group)
        except Exception as error:  # Feast must get every failure as a job with a cause
            return [Outcome(planned.run.run_id, error) for planned in group]

    def _run(self, catalog: Catalog, group: Sequence[PlannedView]) -> list[Outcome]:
        refused: dict[str, BaseException | None] = {}
        held: list[HeldLock] = []
        with ExitStack() as locks:
            for planned in sorted(group, key=lambda one: one.run.view):
                # In one order everywhere, or two processes could wait for each other.
                admit = partial(self._admit, catalog, planned, locks, held)
                refused[planned.run.view] = _attempt(admit)
            current = [
                carried_over(planned, catalog.runs(planned.run.view), self.settings)
                for planned in group
                if refused[planned.run.view] is None
            ]
            failure = self._recorded(catalog, current, held) if current else None
            for planned in group:
                done = refused[planned.run.view] is None and failure is None
                release(planned.sources, planned.reader, done=done)
        ids = {planned.run.view: planned.run.run_id for planned in current}
        return [
            Outcome(
                ids.get(planned.run.view, planned.run.run_id), refused[planned.run.view] or failure
            )
            for planned in group
        ]

    def _admit(
        self, catalog: Catalog, planned: PlannedView, locks: ExitStack, held: list[HeldLock]
    ) -> None:
        """Lock a view, refuse it if it would mix embedding spaces, and make its sink ready."""
        folder = self.settings.state_folder(self.repo) / "locks"
        wait = self.settings.wait_seconds
        lock = catalog.lock(planned.project, planned.run.view, wait, folder)
        held.append(locks.enter_context(lock))
        check_catalogue(catalog, planned.project, planned.run)
        prepare(planned.run, self.config, self.settings.retry_seconds)

    def _recorded(
        self, catalog: Catalog, group: Sequence[PlannedView], held: Sequence[HeldLock]
    ) -> BaseException | None:
        job = job_of(list(group), self.settings, _created_after(catalog, group))
        for planned in group:
            catalog.record_spaces(space_records(planned.project, planned.run.view, planned.spec))
            catalog.begin_run(_run_record(planned, job))

        def before_publishing() -> None:
            for planned in group:
                catalog.publishing(planned.run.run_id, _created_until(planned, job))
            for lock in held:
                lock.check()

        failure = _attempt(partial(self._compute, group, job, before_publishing))
        unrecorded = _attempt(partial(self._record_end, catalog, group, job, failure))
        if failure is not None and unrecorded is not None:
            failure.add_note(f"and it could not be recorded: {unrecorded}")
        return failure or unrecorded

    def _record_end(
        self,
        catalog: Catalog,
        group: Sequence[PlannedView],
        job: Job,
        failure: BaseException | None,
    ) -> None:
        for planned in group:
            shards = _finished_shards(planned, job)
            for shard in shards:
                catalog.record_shard(planned.run.run_id, _shard_record(shard))
            if failure is not None:
                catalog.fail_run(planned.run.run_id, failure)
                continue
            catalog.finish_run(
                planned.run.run_id,
                rows_offline=sum(shard.rows_offline for shard in shards),
                rows_online=sum(shard.rows_online for shard in shards),
                created_until=_created_until(planned, job),
            )

    def _compute(self, group: Sequence[PlannedView], job: Job, guard: Callable[[], None]) -> None:
        with quiet_beam():
            from feast_anchor.transforms.pipeline import run_job  # Beam is slow to import

        views = tuple(planned.view for planned in group)
        online = FeastOnlineWriterFactory(self.config, views, self.settings.retry_seconds)
        table = PostgresWriterFactory(self.config, self.settings.retry_seconds)
        names = ", ".join(planned.run.view for planned in group)
        wanted = group[0].wanted.labels
        if job.labels is not None and wanted is not None:
            labels.save(Path(job.labels), wanted.table, job.shards)
        with shown(job, names) as report:
            try:
                runner, options = self.settings.runner, self.settings.options
                run_job(job, online, runner, options, report, guard, table)
            except AnchorError:
                raise
            except Exception as error:
                runs = ", ".join(planned.run.run_id for planned in group)
                done = sum(len(_finished_shards(planned, job)) for planned in group)
                raise RunError(
                    f"run {runs} of {names} failed after {done} of {job.shards * len(group)} "
                    f"shards: {_cause(error)}. Finished shards are kept: run the same command to "
                    "resume"
                ) from error


def prepare(run: ViewRun, config: RepoConfig, retry_seconds: float = 0) -> None:
    """Make a view's sink ready to be joined and written. Raises `SpaceError` for another space."""
    if run.table is not None:
        prepare_table(run.view, run.table, run.schema, config, retry_seconds)
    prepare_sink(run.view, Path(run.sink), run.schema)


def _quieten(*names: str) -> None:
    """Feast's command line logs everything at INFO, which would bury the progress of a run."""
    for name in names:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def _attempt(work: Callable[[], None]) -> BaseException | None:
    try:
        work()
    except Exception as error:  # recorded in the catalogue and handed to Feast by the caller
        return error
    return None


def _cause(error: BaseException) -> str:
    """The first line of what a worker raised; Beam appends where in the pipeline it was.

    From another process it comes as a traceback, whose last line it is.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        lines = lines[-1:]
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"


def _created_after(catalog: Catalog, group: Sequence[PlannedView]) -> int:
    """The newest created_timestamp that these views' rows carry already; a clock may go back."""
    known = [catalog.newest_created(planned.project, planned.run.view) for planned in group]
    return max((micros(moment) for moment in known if moment is not None), default=0)


def _created_until(planned: PlannedView, job: Job) -> datetime:
    return max(_utc(shard.created_until) for shard in _finished_shards(planned, job))


def _finished_shards(planned: PlannedView, job: Job) -> list[ShardManifest]:
    found = (finished(planned.run, shard) for shard in range(job.shards))
    return [manifest for manifest in found if manifest is not None]


def _run_record(planned: PlannedView, job: Job) -> RunRecord:
    return RunRecord(
        run_id=planned.run.run_id,
        project=planned.project,
        view=planned.run.view,
        bundle_digest=planned.spec.digest,
        window_start=planned.wanted.start,
        window_end=planned.wanted.end,
        shards=job.shards,
        spec={**planned.spec.model_dump(mode="json"), BASE: planned.base, CODE: COMPUTED_BY},
        kind=planned.wanted.kind,
    )


def _shard_record(manifest: ShardManifest) -> ShardRecord:
    shared = {f.name for f in fields(ShardRecord)} & {f.name for f in fields(ShardManifest)}
    values = {name: value for name, value in asdict(manifest).items() if name in shared}
    return ShardRecord(**values, dead_letter_path=manifest.dead_letters)


def _utc(moment: int) -> datetime:
    return EPOCH + timedelta(microseconds=moment)
