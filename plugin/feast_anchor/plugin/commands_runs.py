"""The commands around runs: fill the past, look at what was done and what was rejected."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from feast_anchor.onnx_export.errors import SpecError

from .console import RepoOption, console, print_error, readable_errors, wide_console
from .repo import Repo

if TYPE_CHECKING:
    from .backfill import Request

app = typer.Typer()

_WHEN = "UTC, such as 2017-09-01T00:00:00."

ViewsArgument = Annotated[
    list[str] | None, typer.Argument(help="Scenario views; all of the repo by default.")
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Parquet file with the entity's join key and event_timestamp (with a time zone): "
        "one vector exactly as of every row.",
    ),
]
StartOption = Annotated[datetime | None, typer.Option(help=f"Start of the window, {_WHEN}")]
EndOption = Annotated[datetime | None, typer.Option(help=f"End of the window, {_WHEN}")]
SnapshotsOption = Annotated[
    str | None,
    typer.Option(
        help="How far apart the as-of times lie, as 7d or 12h; the view's own by default."
    ),
]


@app.command()
def backfill(
    views: ViewsArgument = None,
    labels: LabelsOption = None,
    start: StartOption = None,
    end: EndOption = None,
    snapshots: SnapshotsOption = None,
    repo: RepoOption = Path("."),
) -> None:
    """Compute vectors of the past for the offline store, for training sets.

    With --labels every label gets a vector as of its own instant, so that
    `get_historical_features` over the same table joins no older one. With --start and --end a
    window is filled with regular snapshots. What is served online, and the watermark of `feast
    materialize-incremental`, stay as they are. A backfill that was stopped goes on when it is
    started again.

        feast-anchor backfill shopper_v1 --labels labels.parquet
        feast-anchor backfill shopper_v1 --snapshots 7d --start 2017-01-01 --end 2017-09-01
    """
    with readable_errors():
        from .backfill import backfill as run_backfill

        request = _request(labels, start, end, snapshots)
        outcomes = run_backfill(Repo.open(repo), views or [], request)
        failures = [one.failure for one in outcomes if one.failure is not None]
        for outcome in outcomes:
            if outcome.failure is None:
                console.print(f"Run {outcome.run_id} succeeded.", highlight=False)
        for failure in failures[1:]:
            print_error(failure)
        if failures:
            raise failures[0]


@app.command()
def plan(
    views: ViewsArgument = None,
    labels: LabelsOption = None,
    start: StartOption = None,
    end: EndOption = None,
    snapshots: SnapshotsOption = None,
    json: Annotated[bool, typer.Option("--json", help="For machines: a list of passes.")] = False,
    repo: RepoOption = Path("."),
) -> None:
    """Say what a run would do and how long it would take, and do nothing of it.

    Reads all keys, a part of the rows, and all rows of some hundred users; scores those users for
    about twenty seconds. Views that share a pass over the events are planned together. Nothing is
    written but temporary files.

        feast-anchor plan --start 2017-01-01 --end 2017-09-01
        feast-anchor plan shopper_v1 --labels labels.parquet --json
    """
    with readable_errors():
        from .plans import as_json, plan_runs, tables

        request = _request(labels, start, end, snapshots)
        found = plan_runs(Repo.open(repo), views or [], request)
        if json:
            typer.echo(as_json(found))
        else:
            console.print(*tables(found), sep="\n\n", highlight=False)


@app.command()
def runs(
    repo: RepoOption = Path("."),
    view: Annotated[str | None, typer.Option(help="Only runs of this view.")] = None,
) -> None:
    """List the runs in the catalogue, newest first, with their counts and errors."""
    with readable_errors():
        names = ("run", "view", "kind", "until", "status", "try", "users", "rows", "dead")
        table = Table(*names, box=None)
        for one in table.columns:
            one.no_wrap = True
        errors = []
        with Repo.open(repo).catalog() as catalog:
            for run in catalog.runs(view=view):
                table.add_row(
                    run.run_id,
                    run.view,
                    run.kind,
                    f"{run.window_end:%Y-%m-%d}",
                    run.status,
                    str(run.attempt),
                    f"{run.users_embedded:,}",
                    f"{run.rows_offline:,}",
                    f"{run.events_rejected + run.users_rejected + run.labels_rejected:,}",
                )
                if run.error:
                    errors.append(f"[red]{run.run_id}[/] {escape(run.error)}")
        wide_console().print(table, *errors, sep="\n")


@app.command("dead-letters")
def dead_letters(
    run_id: Annotated[str, typer.Argument(help="A run id from `feast-anchor runs`, or its start.")],
    repo: RepoOption = Path("."),
) -> None:
    """Say which rows and users a run rejected, why, and in which Parquet files they are."""
    with readable_errors():
        from feast_anchor.transforms.books import rejected_events_path

        totals: Counter[tuple[str, str]] = Counter()
        folders: set[str] = set()
        anchor = Repo.open(repo)
        with anchor.catalog() as catalog:
            runs = {run.run_id: run for run in catalog.runs()}
            run = _one_run(run_id, list(runs))
            for row in catalog.dead_letters(run):
                totals[row.kind, row.reason] += row.rows
                if row.path:
                    folders.add(str(Path(row.path).parent / "dead-*.parquet"))
        refused = rejected_events_path(anchor.settings.state_folder(anchor.folder) / f"run-{run}")
        if not totals and runs[run].status == "FAILED" and refused.is_file():
            totals, folders = _reasons(refused), {str(refused)}
        table = Table("kind", "reason", "rows", box=None)
        for (kind, reason), count in sorted(totals.items()):
            table.add_row(kind, reason, f"{count:,}")
        console.print(table if totals else f"Run {run} rejected nothing.")
        for folder in sorted(folders):
            console.print(f"Rows with their reasons: {folder}", highlight=False)


def _reasons(path: Path) -> Counter[tuple[str, str]]:
    """Why the events were rejected of a run that was refused before any shard was done."""
    import pyarrow.parquet as pq

    counted = pq.read_table(path, columns=["rejected"]).column("rejected").value_counts()
    return Counter({("event", one["values"]): one["counts"] for one in counted.to_pylist()})


@app.command()
def clean(
    older_than: Annotated[
        str, typer.Option(help="Only runs not heard of for so long, as 7d or 12h.")
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is.")] = False,
    repo: RepoOption = Path("."),
) -> None:
    """Remove what runs left behind that failed and were not resumed; offline rows stay.

    After this such a run starts from the beginning, and its dead letters are gone.
    """
    with readable_errors():
        from .cleaning import clean as remove
        from .views import period

        found = remove(Repo.open(repo), period(older_than), dry_run)
        for one in found:
            console.print(f"{one.path}: {one.size / 1e6:,.1f} MB of {one.of}", highlight=False)
        done = "Found" if dry_run else "Removed"
        total = sum(one.size for one in found) / 1e6
        console.print(f"{done} {len(found)} folders, {total:,.1f} MB.", highlight=False)


def _request(
    labels: Path | None, start: datetime | None, end: datetime | None, snapshots: str | None
) -> Request:
    from .backfill import Request
    from .views import period

    return Request(
        labels,
        None if start is None else _utc(start),
        None if end is None else _utc(end),
        None if snapshots is None else period(snapshots),
    )


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _one_run(start: str, known: list[str]) -> str:
    found = [run_id for run_id in known if run_id.startswith(start)]
    if len(found) != 1:
        raise SpecError(f"{len(found)} runs begin with {start!r}; `feast-anchor runs` lists them")
    return found[0]
