"""Remove what runs left behind that will not be resumed.

The rule: only what no reader can see is removed, and only of runs that did not succeed, that nobody
is working on and that have not been heard of for a while. The view's lock is held meanwhile, so no
run can begin with what is being removed. Offline rows are never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import FeatureStore

from feast_anchor.onnx_export.errors import RunError, SpecError
from feast_anchor.transforms.job import ViewRun
from feast_anchor.transforms.manifests import staging_folder

from .catalog import Catalog, RunStatus, RunSummary
from .planning import view_run
from .pulled import is_read
from .repo import Repo
from .spec import is_ours

_OF_PASSES = ("pulled", "shuffle", "hearts")  # what folders are called that views may share


@dataclass(frozen=True)
class Leftover:
    """A folder that no run will go on with."""

    path: Path
    size: int  # bytes
    of: str  # whose it was


def clean(repo: Repo, older_than: timedelta, dry_run: bool = False) -> list[Leftover]:
    """Find the leftovers of runs last heard of longer ago than that, and remove them.

    Raises:
        SpecError: a negative age.
    """
    if older_than < timedelta(0):
        raise SpecError(f"older_than is {older_than}, expected a positive age such as 7 days")
    state = repo.settings.state_folder(repo.folder)
    newest = datetime.now(UTC) - older_than
    store = repo.store()
    removed: list[Leftover] = []
    with repo.catalog() as catalog:
        views = _views(store, state)
        for run in _over(catalog.runs(), newest):
            view = views.get((run.project, run.view))
            if any(_leftovers(run, state, view)):
                removed += _removed_of_run(catalog, run, newest, state, view, dry_run)
        known = {one.path for one in removed}
        removed += _removed_of_passes(catalog, store.project, views, newest, state, known, dry_run)
    return removed


def _removed_of_run(
    catalog: Catalog,
    run: RunSummary,
    newest: datetime,
    state: Path,
    view: ViewRun | None,
    dry_run: bool,
) -> list[Leftover]:
    """Nothing while a run of the view is at work, or if this run was since it was looked at."""
    with ExitStack() as locks:
        if not _locked(locks, catalog, [(run.project, run.view)], state):
            return []
        runs = [one for one in catalog.runs(run.view) if one.run_id == run.run_id]
        if not _over(runs, newest):
            return []
        return _removed(list(_leftovers(run, state, view)), dry_run)


def _removed_of_passes(
    catalog: Catalog,
    project: str,
    views: Iterable[tuple[str, str]],
    newest: datetime,
    state: Path,
    known: set[Path],
    dry_run: bool,
) -> list[Leftover]:
    """What runs shared and no one of them owns; nothing while any run of the repo is at work."""
    with ExitStack() as locks:
        waiting = [run for run in catalog.runs() if run.status is not RunStatus.SUCCEEDED]
        ours = {(run.project, run.view) for run in waiting if run.project == project}
        if not _locked(locks, catalog, sorted(ours.union(views)), state):
            return []
        young = {run.run_id for run in waiting if run.updated_at > newest}
        found = [
            _leftover(path, "no view at work")
            for path in sorted(state.glob("*-*"))
            if path not in known and _is_over(path, young, newest)
        ]
        return _removed(found, dry_run)


def _is_over(path: Path, young: set[str], newest: datetime) -> bool:
    """Whether a folder is of a pass that nobody goes on with."""
    kind, run_id = path.name.split("-")[:2]
    if kind not in _OF_PASSES or not path.is_dir() or run_id in young or is_read(path):
        return False
    changed = max(one.stat().st_mtime for one in (path, *path.rglob("*")))
    return datetime.fromtimestamp(changed, UTC) <= newest


def _removed(found: list[Leftover], dry_run: bool) -> list[Leftover]:
    for one in found if not dry_run else ():
        shutil.rmtree(one.path)
    return found


def _over(runs: Sequence[RunSummary], newest: datetime) -> list[RunSummary]:
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
            yield _leftover(folder, run.view)


def _leftover(folder: Path, of: str) -> Leftover:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Leftover(folder, size, of)


def _locked(
    locks: ExitStack, catalog: Catalog, views: Sequence[tuple[str, str]], state: Path
) -> bool:
    """Take the locks of views; False if a run of one is at work, in whichever process."""
    try:
        for project, view in views:
            locks.enter_context(catalog.lock(project, view, 0, state / "locks"))
    except RunError:
        return False
    return True
