"""The Feast compute engine: `batch_engine: {type: feast_anchor.plugin.BeamComputeEngine}`.

Feast hands over every view of the repo. Views made by `scenario_view` are planned, grouped so
that views over the same events share one pass, and run on Beam; all others go to Feast's own
local engine. Every failure comes back as a failed job with its cause, because only such a job
makes Feast raise and leave the watermark where it was.

Beam and ONNX Runtime are imported when a run starts: with most stores `feast apply` builds this
engine too, and must stay fast.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from feast import Entity, FeatureView
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig

from feast_anchor.onnx_export.errors import BooksError, RunError
from feast_anchor.transforms.job import Job, ViewRun
from feast_anchor.transforms.sinks import ShardManifest, finished

from .catalog import Catalog, RunRecord, ShardRecord
from .config import parse_config
from .online import FeastOnlineWriterFactory
from .planning import PlannedView, group_jobs, job_of, plan_view, view_run
from .progress import shown
from .pulled import release
from .spaces import check_catalogue, prepare_sink, space_records
from .spec import is_ours

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnchorJob(MaterializationJob):
    """The finished outcome of one task."""

    task: MaterializationTask
    run_id: str
    failure: BaseException | None = None

    def status(self) -> MaterializationJobStatus:
        """ERROR with a cause, or SUCCEEDED: runs are over when they return."""
        failed = self.failure is not None
        return MaterializationJobStatus.ERROR if failed else MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        """What made it fail."""
        return self.failure

    def should_be_retried(self) -> bool:
        """True when running the same command again resumes the work."""
        return isinstance(self.failure, RunError)

    def job_id(self) -> str:
        """The run id in the catalogue."""
        return self.run_id

    def url(self) -> str | None:
        """Runs have no page of their own."""
        return None


class BeamComputeEngine(ComputeEngine):
    """Computes scenario views with Apache Beam and leaves every other view to Feast.

    Settings (`EngineConfig`) come from the `batch_engine` block; an unknown or wrong one raises
    `SpecError` when Feast builds the engine: at the first materialize with the local provider and
    SQLite, at `feast apply` with any other.
    """

    def __init__(
        self,
        *,
        repo_config: RepoConfig,
        offline_store: OfflineStore,
        online_store: OnlineStore,
        **settings: Any,
    ) -> None:
        super().__init__(
            repo_config=repo_config, offline_store=offline_store, online_store=online_store
        )
        self.settings = parse_config(settings)
        if str(getattr(repo_config.offline_store, "type", "")) in ("file", "dask"):
            log.warning(
                "the offline store 'file' (dask) silently drops entity rows whose only vectors are "
                "older than the ttl; prefer offline_store: {type: duckdb}"
            )
        self.repo = Path(repo_config.repo_path or Path.cwd()).absolute()

    @property
    def supports_batch(self) -> bool:
        """Take all tasks of one `feast materialize` at once, so that views share passes."""
        return True

    @cached_property
    def _local(self) -> LocalComputeEngine:
        return LocalComputeEngine(
            repo_config=self.repo_config,
            offline_store=self.offline_store,
            online_store=self.online_store,
        )

    @property
    def _state(self) -> Path:
        return self.settings.state_folder(self.repo)

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
    ) -> None:
        """Make every scenario view joinable at apply, and refuse a mix of embedding spaces."""
        for view in views_to_keep:
            if is_ours(view):
                _prepare(view_run(view, self._state, run_id="empty"))

    def teardown_infra(self, project: str, fvs: Sequence[Any], entities: Sequence[Entity]) -> None:
        """Offline rows and the catalogue are a team's data: teardown leaves them."""

    def materialize(
        self,
        registry: BaseRegistry,
        tasks: MaterializationTask | list[MaterializationTask],
        **kwargs: Any,
    ) -> list[MaterializationJob]:
        """Materialize tasks; returns one finished job per task, in their order."""
        tasks = [tasks] if isinstance(tasks, MaterializationTask) else list(tasks)
        ours = [task for task in tasks if is_ours(task.feature_view)]
        jobs: dict[int, MaterializationJob] = {}
        planned: list[PlannedView] = []
        for task in ours:
            try:
                planned.append(
                    plan_view(task, registry, self.settings, self.repo, self.repo_config)
                )
            except Exception as error:  # one view's trouble must not take the others with it
                jobs[id(task)] = AnchorJob(task, f"{task.feature_view.name}-not-planned", error)
        for group in group_jobs(planned):
            for view, failure in zip(group, self._run(group), strict=True):
                jobs[id(view.task)] = AnchorJob(view.task, view.run.run_id, failure)
                if failure is None:
                    release(view.sources, view.run.view)
        for task in tasks:
            if id(task) not in jobs:
                jobs[id(task)] = self._delegate(registry, task, **kwargs)
        return [jobs[id(task)] for task in tasks]

    def _delegate(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> MaterializationJob:
        """Let Feast's local engine do a view that is not ours."""
        try:
            return self._local.materialize(registry, task, **kwargs)[0]
        except Exception as error:  # as above
            return AnchorJob(task, f"{task.feature_view.name}-local", error)

    def _run(self, group: list[PlannedView]) -> list[BaseException | None]:
        """Run one pass and record it; returns for each view what made it fail, if anything."""
        _quieten("apache_beam", "alembic")
        try:
            with Catalog.open(self.settings.catalog_url(self.repo)) as catalog:
                refused = [_attempt(partial(_admit, catalog, planned)) for planned in group]
                admitted = [p for p, error in zip(group, refused, strict=True) if error is None]
                failure = self._recorded(catalog, admitted) if admitted else None
        except Exception as error:  # Feast must get every failure as a job with a cause
            return [error] * len(group)
        return [error or failure for error in refused]

    def _recorded(self, catalog: Catalog, group: list[PlannedView]) -> BaseException | None:
        job = job_of(group, self.settings)
        for planned in group:
            project, view = planned.task.project, planned.run.view
            catalog.record_spaces(space_records(project, view, planned.spec))
            catalog.begin_run(_run_record(planned, job))
        failure = _attempt(partial(self._beam, group, job))
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
            )
        return failure

    def _beam(self, group: list[PlannedView], job: Job) -> None:
        from feast_anchor.transforms.pipeline import run_job

        views = tuple(_feature_view(planned) for planned in group)
        online = FeastOnlineWriterFactory(self.repo_config, views)
        names = ", ".join(planned.run.view for planned in group)
        with shown(job, names):
            try:
                run_job(job, online, self.settings.runner, self.settings.options)
            except BooksError:
                raise
            except Exception as error:
                runs = ", ".join(planned.run.run_id for planned in group)
                done = sum(len(_finished_shards(planned, job)) for planned in group)
                raise RunError(
                    f"run {runs} of {names} failed after {done} of {job.shards * len(group)} "
                    f"shards: {_cause(error)}. Finished shards are kept: run the same command to "
                    "resume"
                ) from error


def _quieten(*names: str) -> None:
    """Feast's command line logs everything at INFO, which would bury the progress of a run."""
    for name in names:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def _prepare(run: ViewRun) -> None:
    prepare_sink(run.view, Path(run.sink), run.schema)


def _admit(catalog: Catalog, planned: PlannedView) -> None:
    """Refuse a view that would mix embedding spaces, and make its sink ready."""
    check_catalogue(catalog, planned.task.project, planned.run)
    _prepare(planned.run)


def _attempt(work: Callable[[], None]) -> BaseException | None:
    try:
        work()
    except Exception as error:  # recorded in the catalogue and handed to Feast by the caller
        return error
    return None


def _cause(error: BaseException) -> str:
    """The first line of what a worker raised; Beam appends where in the pipeline it was."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"


def _feature_view(planned: PlannedView) -> FeatureView:
    view = planned.task.feature_view
    assert isinstance(view, FeatureView)
    return view


def _finished_shards(planned: PlannedView, job: Job) -> list[ShardManifest]:
    found = (finished(planned.run, shard) for shard in range(job.shards))
    return [manifest for manifest in found if manifest is not None]


def _run_record(planned: PlannedView, job: Job) -> RunRecord:
    return RunRecord(
        run_id=planned.run.run_id,
        project=planned.task.project,
        view=planned.run.view,
        bundle_digest=planned.spec.digest,
        window_start=planned.start,
        window_end=planned.end,
        shards=job.shards,
        spec=planned.spec.model_dump(mode="json"),
    )


def _shard_record(manifest: ShardManifest) -> ShardRecord:
    shared = {f.name for f in fields(ShardRecord)} & {f.name for f in fields(ShardManifest)}
    values = {name: value for name, value in asdict(manifest).items() if name in shared}
    return ShardRecord(**values, dead_letter_path=manifest.dead_letters)
