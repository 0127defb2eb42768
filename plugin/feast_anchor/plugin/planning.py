"""From Feast's tasks to jobs for the pipeline: everything that can be wrong is found here first.

Planning reads declarations, schemas and file listings, counts the rows of SQL tables and pulls what
only a Feast offline store can read. Views that read the same events with the same bundle and window
share one job, so a user's history is read once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pyarrow as pa
from feast import FeatureView, FileSource, RepoConfig
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.registry.base_registry import BaseRegistry

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BundleError, SourceError, SpaceError, SpecError
from feast_anchor.onnx_export.manifest import canonical_sha256
from feast_anchor.transforms.events import EventSource, check_source, input_snapshot
from feast_anchor.transforms.histories import EPOCH, as_of_times, micros
from feast_anchor.transforms.job import Job, ViewRun
from feast_anchor.transforms.parquet_table import ParquetTable, PulledTable
from feast_anchor.transforms.sql_table import SqlTable

from .config import EngineConfig
from .pulled import Pull, new_reader
from .sink_table import sink_of
from .spec import ARROW_KEYS, ModalityDecl, ViewSpec, check_modalities, spec_of
from .sql_source import SqlSource

COMPUTED_BY = 1
"""Raised whenever a vector's bits, or what a shard leaves behind, change: no run then resumes, or
takes vectors from, one that an older version began."""


@dataclass(frozen=True)
class Labels:
    """The as-of times that a label table asks for: `labels.SCHEMA`, no pair twice."""

    table: pa.Table
    digest: str  # of its content


@dataclass(frozen=True)
class Wanted:
    """What a run is asked for: the window it reports, and its as-of times.

    `as_of` are microseconds since the epoch, UTC, ascending, of all users; with `labels` each user
    has its own, and `as_of` is the newest of them.
    """

    start: datetime
    end: datetime
    as_of: tuple[int, ...]
    kind: Literal["materialize", "backfill"] = "materialize"
    labels: Labels | None = None

    @classmethod
    def window(
        cls,
        start: datetime,
        end: datetime,
        snapshots: timedelta | None,
        kind: Literal["materialize", "backfill"] = "materialize",
    ) -> Wanted:
        """The end of a window and every snapshot in it. Raises `SpecError` for an odd window."""
        start, end = _utc(start), _utc(end)
        moments = as_of_times(start, end, snapshots)
        return cls(start, end, tuple(micros(moment) for moment in moments), kind)


@dataclass(frozen=True)
class PlannedView:
    """One view's run, planned."""

    view: FeatureView
    project: str
    wanted: Wanted
    spec: ViewSpec
    run: ViewRun
    bundle: str
    sources: tuple[EventSource, ...]
    snapshot: str
    base: str  # fingerprint of all that decides a vector but its question
    reader: str  # of pulled tables


def plan_view(
    view: FeatureView,
    project: str,
    wanted: Wanted,
    registry: BaseRegistry,
    config: EngineConfig,
    repo: Path,
    store: RepoConfig | None = None,
) -> PlannedView:
    """Plan one run of one view.

    `store` names the offline store that reads what is neither Parquet nor a `SqlSource`.

    Raises:
        SpecError, BundleError, SourceError: what is wrong and what to do, before any work.
    """
    spec = spec_of(view)
    folder = repo / spec.bundle
    _check_bundle(view.name, spec, folder)
    key, key_type = join_key(view)
    end = EPOCH + timedelta(microseconds=wanted.as_of[-1])
    reader = new_reader(view.name)
    pull = None if store is None else Pull(store, config.state_folder(repo), end, reader)
    declared = [(decl, registry.get_feature_view(decl.view, project)) for decl in spec.events]
    sources = event_sources(declared, key, key_type, repo, pull)
    snapshot = input_snapshot(sources, wanted.as_of[-1])
    read = {
        "code": COMPUTED_BY,
        "input": snapshot,
        "window": list(wanted.as_of),
        "labels": None if wanted.labels is None else wanted.labels.digest,
        "shards": config.shards,
    }
    said = spec.model_dump(mode="json")
    run_id = canonical_sha256({"view": [project, view.name, said], **read})[:16]
    but_scenarios = [project, view.name, {**said, "scenarios": None}]
    run = view_run(view, project, config.state_folder(repo), run_id)
    if wanted.kind == "backfill":
        run = replace(run, online=False)  # what rankers are served is not of the past
    base = canonical_sha256({"view": but_scenarios, **read})
    return PlannedView(
        view, project, wanted, spec, run, str(folder), sources, snapshot, base, reader
    )


def view_run(view: FeatureView, project: str, state: Path, run_id: str) -> ViewRun:
    """The pipeline's description of a view: columns, spaces, sink and state folder."""
    spec = spec_of(view)
    key, key_type = join_key(view)
    folder, table = sink_of(view, state / "parts" / project / view.name)
    return ViewRun(
        run_id=run_id,
        view=view.name,
        key=key,
        key_type=key_type,
        scenarios=tuple(scenario.as_column() for scenario in spec.scenarios),
        sink=folder,
        table=table,
        state=str(state / f"run-{run_id}"),
        online=view.online,
    )


def group_jobs(planned: list[PlannedView]) -> list[list[PlannedView]]:
    """Views that can share one pass over the events, in the order they came."""
    groups: dict[object, list[PlannedView]] = {}
    for one in planned:
        labels = None if one.wanted.labels is None else one.wanted.labels.digest
        same = (one.bundle, one.sources, one.snapshot, one.wanted.as_of, labels)
        groups.setdefault(same, []).append(one)
    return list(groups.values())


def job_of(group: list[PlannedView], config: EngineConfig, created_after: int = 0) -> Job:
    """The pipeline's job for views that share a pass.

    Args:
        created_after: microseconds since the epoch, UTC; created_timestamps are later.
    """
    first = group[0]
    return Job(
        bundle=first.bundle,
        digest=first.spec.digest,
        sources=first.sources,
        snapshot=first.snapshot,
        as_of=first.wanted.as_of,
        shards=config.shards,
        views=tuple(view.run for view in group),
        threads=config.threads,
        device=config.device,
        shuffle=config.chosen_shuffle,
        labels=None if first.wanted.labels is None else first.run.state,
        max_rejected=config.max_rejected,
        created_after=created_after,
        attempt=uuid4().hex,
    )


def event_sources(
    declared: Sequence[tuple[ModalityDecl, FeatureView]],
    key: str,
    key_type: str,
    repo: Path,
    pull: Pull | None,
) -> tuple[EventSource, ...]:
    """How to read the event tables behind some modalities, each checked.

    What must be pulled comes last, so that nothing is pulled when another table is refused.
    """
    sources = [
        event_source(decl, view, index, key, key_type, repo, pull)
        for index, (decl, view) in enumerate(declared)
    ]
    for source in sorted(sources, key=_is_pulled):
        origin = declared[source.index][1].batch_source
        if pull is not None and origin is not None and _is_pulled(source):
            pull.fill(source, origin)
        check_source(source)
    return tuple(sources)


def event_source(
    decl: ModalityDecl,
    view: FeatureView,
    index: int,
    key: str,
    key_type: str,
    repo: Path,
    pull: Pull | None = None,
) -> EventSource:
    """How to read the event table behind a modality's feature view; nothing is opened yet.

    Raises `SourceError` for a source without a timestamp, for files that are no Parquet, and where
    `pull` is missing and needed.
    """
    source = view.batch_source
    if source is None or not source.timestamp_field:
        raise SourceError(
            f"modality {decl.name!r}: the source of {view.name!r} has no timestamp_field; say "
            "which column holds the event timestamp"
        )
    unread = EventSource(
        modality=decl.name,
        index=index,
        table=ParquetTable(""),
        key=key,
        key_type=key_type,
        timestamp=source.timestamp_field,
        text=decl.text,
        amount=decl.amount,
        timezone=decl.timezone,
        field_mapping=tuple(sorted((source.field_mapping or {}).items())),
    )
    return replace(unread, table=_table(unread, source, repo, pull))


def _table(
    events: EventSource, source: DataSource, repo: Path, pull: Pull | None
) -> ParquetTable | SqlTable:
    if isinstance(source, SqlSource):
        return source.reader(repo)
    if isinstance(source, FileSource):
        if not isinstance(source.file_format, ParquetFormat | None):
            raise SourceError(
                f"modality {events.modality!r}: its FileSource is "
                f"{type(source.file_format).__name__}, expected Parquet; write the table as Parquet"
            )
        return ParquetTable(str(repo / source.path.removeprefix("file://")))
    if pull is None:
        raise SourceError(
            f"modality {events.modality!r} reads a {type(source).__name__}, which only an offline "
            "store can read, and none is given; expected a FileSource on Parquet or a SqlSource"
        )
    return pull.table(source, events.columns.values())


def _is_pulled(source: EventSource) -> bool:
    return isinstance(source.table, PulledTable)


def join_key(view: FeatureView) -> tuple[str, str]:
    """Join key column of a scenario view and its Arrow type as text."""
    if len(view.entity_columns) != 1:
        names = [column.name for column in view.entity_columns]
        raise SpecError(f"view {view.name!r} has the join keys {names}, expected exactly one")
    (column,) = view.entity_columns
    return column.name, ARROW_KEYS[column.dtype.to_value_type()]


def _check_bundle(view: str, spec: ViewSpec, folder: Path) -> None:
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    if manifest.dims.embedding != spec.dim:
        raise BundleError(
            f"view {view!r} declares vectors of {spec.dim} numbers, the bundle at {folder} makes "
            f"{manifest.dims.embedding}; declare a new view name for the new model and run "
            "`feast apply`"
        )
    check_modalities(view, spec.events, manifest)
    if manifest.digest != spec.digest:
        raise BundleError(
            f"view {view!r} was declared with another model: the bundle at {folder} has digest "
            f"{manifest.digest[:12]}…, the view pins {spec.digest[:12]}…; put the old bundle "
            "back, or declare a new view name for the new model and run `feast apply`"
        )
    for scenario in spec.scenarios:
        if bundle.fingerprint(scenario.query, scenario.prompt) != scenario.space:
            raise SpaceError(
                f"view {view!r}, scenario {scenario.name!r}: the bundle at {folder} now puts it in "
                "another embedding space than the view was declared with; declare a new view name "
                "for it and run `feast apply`"
            )


def _utc(moment: datetime) -> datetime:
    """Feast hands over naive datetimes in UTC in places."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
