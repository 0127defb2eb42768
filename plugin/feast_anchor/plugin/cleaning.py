"""Remove what runs left behind that will not be resumed.

The rule: only what no reader can see is removed, and only of runs that did not succeed, that nobody
is working on and that have not been heard of for a while. Offline rows are never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import FeatureStore

from feast_anchor.onnx_export.errors import RunError, SpecError
from feast_anchor.transforms.job import ViewRun
from feast_anchor.transforms.manifests import staging_folder

from .catalog import Catalog, RunStatus, RunSummary
from .planning import view_run
from .repo import Repo
from .spec import is_ours


@dataclass(frozen=True)
class Leftover:
    """A folder of a run that ended without success."""

    run_id: str
    view: str
    path: Path
    size: int  # bytes


def clean(repo: Repo, older_than: timedelta, dry_run: bool = False) -> list[Leftover]:
    """Find the leftovers of runs last heard of longer ago than that, and remove them.

    Raises:
        SpecError: a negative age.
    """
    if older_than < timedelta(0):
        raise SpecError(f"older_than is {older_than}, expected a positive age such as 7 days")
    state = repo.settings.state_folder(repo.folder)
    removed: list[Leftover] = []
    with repo.catalog() as catalog:
        views = _views(repo.store(), state)
        for run in _over(catalog.runs(), older_than):
            found = list(_leftovers(run, state, views.get((run.project, run.view))))
            if found and _unlocked(catalog, run, state):
                removed += found
                for one in found if not dry_run else ():
                    shutil.rmtree(one.path)
    return removed


def _over(runs: Sequence[RunSummary], older_than: timedelta) -> list[RunSummary]:
    newest = datetime.now(UTC) - older_than
    return [
        run for run in runs if run.status is not RunStatus.SUCCEEDED and run.updated_at <= newest
    ]


def _views(store: FeatureStore, state: Path) -> dict[tuple[str, str], ViewRun]:
    project = store.project
    ours = [view for view in store.list_feature_views() if is_ours(view)]
    return {(project, view.name): view_run(view, project, state, "none") for view in ours}


def _leftovers(run: RunSummary, state: Path, view: ViewRun | None) -> Iterator[Leftover]:
    folders = [state / f"run-{run.run_id}", state / f"shuffle-{run.run_id}"]
    if view is not None:  # else it is not in the registry any more, and nobody knows its sink
        folders.append(staging_folder(view.other(run.run_id)))
    for folder in folders:
        if folder.is_dir():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            yield Leftover(run.run_id, run.view, folder, size)


def _unlocked(catalog: Catalog, run: RunSummary, state: Path) -> bool:
    """Whether no run of the view is at work, this one in another process included."""
    try:
        with catalog.lock(run.project, run.view, 0, state / "locks"):
            return True
    except RunError:
        return False
