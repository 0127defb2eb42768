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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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

from feast_anchor.onnx_export.errors import RunError

from .config import parse_config
from .planning import PlannedView, Wanted, group_jobs, plan_view, view_run
from .runs import Runs
from .spaces import prepare_sink
from .spec import is_ours, spec_of

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
                run = view_run(view, self.settings.state_folder(self.repo), run_id="empty")
                prepare_sink(run.view, Path(run.sink), run.schema)

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
        of_view: dict[str, MaterializationTask] = {}
        for task in ours:
            try:
                planned.append(self._plan(task, registry))
                of_view[task.feature_view.name] = task
            except Exception as error:  # one view's trouble must not take the others with it
                jobs[id(task)] = AnchorJob(task, f"{task.feature_view.name}-not-planned", error)
        runs = Runs(self.repo_config, self.settings, self.repo)
        for group in group_jobs(planned):
            for view, outcome in zip(group, runs.run(group), strict=True):
                task = of_view[view.run.view]
                jobs[id(task)] = AnchorJob(task, outcome.run_id, outcome.failure)
        for task in tasks:
            if id(task) not in jobs:
                jobs[id(task)] = self._delegate(registry, task, **kwargs)
        return [jobs[id(task)] for task in tasks]

    def _plan(self, task: MaterializationTask, registry: BaseRegistry) -> PlannedView:
        view = task.feature_view
        assert isinstance(view, FeatureView)
        wanted = Wanted.window(task.start_time, task.end_time, spec_of(view).snapshots)
        return plan_view(
            view, task.project, wanted, registry, self.settings, self.repo, self.repo_config
        )

    def _delegate(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> MaterializationJob:
        """Let Feast's local engine do a view that is not ours."""
        try:
            return self._local.materialize(registry, task, **kwargs)[0]
        except Exception as error:  # as above
            return AnchorJob(task, f"{task.feature_view.name}-local", error)
