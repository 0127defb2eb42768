"""Vectors of the past: as of every label of a table, or at regular instants of a window.

The rule: a backfill is a run like any other, but for the offline store alone: what rankers are
served, and Feast's watermark, belong to `feast materialize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView

from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.transforms import labels as label_files
from feast_anchor.transforms.histories import EPOCH

from .labels import TIMESTAMP, read_label_table
from .planning import Labels, Wanted, group_jobs, join_key
from .repo import Repo, scenario_views
from .runs import Outcome, Runs
from .spec import spec_of


@dataclass(frozen=True)
class Request:
    """What to fill: the as-of times of a label table, or a window with its snapshots."""

    labels: Path | None = None
    start: datetime | None = None
    end: datetime | None = None
    snapshots: timedelta | None = None  # None: the view's own

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.end is None):
            raise SpecError("give either --labels, or --start and --end")
        if self.labels is None and self.start is None:
            raise SpecError("--end needs --start: snapshots fall into (start, end]")
        if self.labels is not None and (self.start or self.snapshots):
            raise SpecError("--labels says every instant itself; leave --start and --snapshots out")


def backfill(repo: Repo, views: Sequence[str], request: Request) -> list[Outcome]:
    """Run the backfill of some scenario views, of all if none is named.

    Raises:
        SpecError, BundleError, SourceError, SpaceError: what is wrong, before any work.
    """
    store = repo.store()
    planned = [
        repo.plan(store, view, wanted(view, request)) for view in scenario_views(store, views)
    ]
    runs = Runs(store.config, repo.settings, repo.folder)
    return [outcome for group in group_jobs(planned) for outcome in runs.run(group)]


def wanted(view: FeatureView, request: Request) -> Wanted:
    """The as-of times of a backfill of one view."""
    if request.labels is not None:
        return _of_labels(read_labels(request.labels, join_key(view)[0]))
    assert request.start is not None
    assert request.end is not None
    period = request.snapshots or spec_of(view).snapshots
    return Wanted.window(request.start, request.end, period, "backfill")


def read_labels(path: Path, key: str) -> Labels:
    """The users and as-of times of a label table, no pair twice.

    Args:
        path: Parquet with the join key and `event_timestamp`, with a time zone; other columns are
            not read.

    Raises:
        SourceError: no such file or column, a wrong type, null keys or times, or no row.
    """
    table = read_label_table(path, key, [], "Other columns may be there and are not read.")
    kind = table.schema.field(key).type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    ):
        raise SourceError(f"{path} column {key!r} is {kind}, expected strings or integers")
    nulls = {name: table.column(name).null_count for name in (key, TIMESTAMP)}
    if any(nulls.values()) or table.num_rows == 0:
        raise SourceError(
            f"{path} has {table.num_rows} rows, of which null: {nulls}; expected a user and an "
            "instant in every row. Drop the others, then run it again"
        )
    rows = pa.table(
        {
            "user": pc.cast(table.column(key), pa.string()),
            "as_of": pc.cast(table.column(TIMESTAMP), pa.timestamp("us", tz="UTC"), safe=False),
        },
        schema=label_files.SCHEMA,
    )
    unique = rows.group_by(["user", "as_of"]).aggregate([]).select(label_files.SCHEMA.names)
    ordered = unique.sort_by([("user", "ascending"), ("as_of", "ascending")]).combine_chunks()
    return Labels(ordered, _digest(ordered))


def _of_labels(labels: Labels) -> Wanted:
    moments = labels.table.column("as_of").cast(pa.int64())
    found = pc.min_max(moments).as_py()
    first, last = (EPOCH + timedelta(microseconds=found[name]) for name in ("min", "max"))
    return Wanted(first, last, (found["max"],), "backfill", labels)


def _digest(table: pa.Table) -> str:
    """SHA-256 of the pairs, in their order."""
    digest = sha256()
    users, moments = table.column("user").to_pylist(), table.column("as_of").cast(pa.int64())
    for user, moment in zip(users, moments.to_pylist(), strict=True):
        digest.update(f"{len(user)}:{user}:{moment};".encode())
    return digest.hexdigest()
