"""`feast-anchor plan`: estimates of runs, as a table for people and as JSON for machines.

The rule: a figure that was scaled up from a sample is marked as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from tempfile import TemporaryDirectory

from feast import FeatureView
from rich.table import Table

from .backfill import Request
from .backfill import wanted as wanted_of_backfill
from .estimates import Estimate
from .estimating import estimate
from .planning import PlannedView, Wanted, group_jobs, view_run
from .progress import clock
from .repo import Repo, scenario_views
from .spec import spec_of


def plan_runs(repo: Repo, views: Sequence[str], request: Request) -> list[Estimate]:
    """One estimate per pass over the events: views that read the same ones share it.

    Raises:
        SpecError, BundleError, SourceError, SpaceError, CatalogError: as the run would.
    """
    store = repo.store()
    chosen = scenario_views(store, views)
    with TemporaryDirectory(prefix="feast-anchor-plan-") as scratch:
        # Planning pulls tables that only an offline store can read: not into the repo.
        settings = repo.settings.model_copy(update={"state": scratch})
        elsewhere = replace(repo, settings=settings)
        planned = [
            _at_home(elsewhere.plan(store, view, _wanted(view, request)), repo) for view in chosen
        ]
        return [
            estimate(group, store.config, repo.settings, repo.folder)
            for group in group_jobs(planned)
        ]


def _at_home(planned: PlannedView, repo: Repo) -> PlannedView:
    """The planned view with the folders of a real run, where earlier attempts are found.

    The parts of a view whose sink is a table lie in the state folder, too.
    """
    state, planned_run = repo.settings.state_folder(repo.folder), planned.run
    run = view_run(planned.view, planned.project, state, planned_run.run_id)
    return replace(planned, run=replace(run, online=planned_run.online))


def _wanted(view: FeatureView, request: Request) -> Wanted:
    """Of a window with the view's own snapshots, what `feast materialize` does; else a backfill."""
    if request.start is None or request.end is None or request.snapshots is not None:
        return wanted_of_backfill(view, request)
    return Wanted.window(request.start, request.end, spec_of(view).snapshots)


def as_json(found: Sequence[Estimate]) -> str:
    """A list with one object per pass: the fields of `Estimate`, and the sums of its seconds."""
    totals = [
        {
            "backfill_seconds": one.offline_seconds,
            "materialize_seconds": sum(one.seconds.values()),
        }
        for one in found
    ]
    passes = [{**asdict(one), **total} for one, total in zip(found, totals, strict=True)]
    return json.dumps(passes, indent=2)


def tables(found: Sequence[Estimate]) -> Iterator[Table]:
    """A table per pass."""
    for one in found:
        table = Table(
            title=f"{', '.join(one.views)}: run {', '.join(one.run_ids)}",
            title_justify="left",
            title_style="bold",
            show_header=False,
            box=None,
        )
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for row in (*_counts(one), ("", "", ""), *_costs(one)):
            table.add_row(*row)
        yield table


def _counts(one: Estimate) -> Iterator[tuple[str, str, str]]:
    def count(name: str) -> str:
        return ("≈ " if name in one.estimated else "") + f"{getattr(one, name):,}"

    yield "events", f"{sum(one.events.values()):,}", _listed(one.events)
    yield "rejected events", count("events_rejected"), ""
    yield "users", count("users"), f"{one.sampled_users:,} of them looked at"
    yield "users with vectors", count("users_embedded"), ""
    yield "as-of times", f"{one.as_of_times:,}", ""
    yield "rows", count("rows"), "of every view"
    yield "vectors", count("vectors"), ""
    done = f"{one.shards_done:,} of {one.shards * len(one.views):,} are done already"
    yield "shards", f"{one.shards:,}", done if one.shards_done else ""
    for words in filter(None, one.taken_over):
        yield "taken over", "", words


def _costs(one: Estimate) -> Iterator[tuple[str, str, str]]:
    cores = f"{one.workers} × {one.threads} threads, on a machine like this one"
    for stage, seconds in one.seconds.items():
        if stage != "online write":
            yield stage, _time(seconds), cores if stage == "score" else ""
    yield "in all, offline", _time(one.offline_seconds), "feast-anchor backfill"
    if one.rows_online:
        online = one.seconds["online write"]
        yield "online write", _time(online), f"{one.rows_online:,} rows"
        yield "in all", _time(one.offline_seconds + online), "feast materialize"
    yield "on disk", _bytes(one.sink_bytes), "in the sink"
    yield "for the time of the run", _bytes(one.scratch_bytes), "beside the run's state"
    yield "memory", _bytes(one.memory_bytes), "peak of a worker"


def _listed(events: dict[str, int]) -> str:
    return ", ".join(f"{name} {rows:,}" for name, rows in events.items())


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else clock(seconds)


def _bytes(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1_000:
            return f"{number:.0f} {unit}" if unit in ("B", "KB", "MB") else f"{number:.1f} {unit}"
        number /= 1_000
    return f"{number:.1f} TB"
