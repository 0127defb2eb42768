"""The books of a whole job: did every row come by, was it published, and was too much rejected?

Every question is answered from the shards' manifests, never from what a runner reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feast_anchor.onnx_export.errors import RunError

from . import manifests
from .events import ROW_SCHEMA
from .files import replace_file
from .histories import NO_EVENT_BEFORE_AS_OF
from .job import Job, ViewRun
from .manifests import ShardManifest

# Who came after the window is no bad input.
_EXPECTED = f"user:{NO_EVENT_BEFORE_AS_OF}"


def names(job: Job) -> str:
    """The job's runs, for messages."""
    return "run " + ", ".join(f"{run.run_id} of {run.view!r}" for run in job.views)


def missing(job: Job, rows: int) -> str | None:
    """What is wrong if the shards did not see `rows` rows once each, or None."""
    for run in job.views:
        done = _manifests(run, job)
        if len(done) < job.shards:
            return f"only {len(done)} of {job.shards} shards came out"
        seen = sum(one.events_in for one in done)
        if seen != rows:
            return f"it read {rows} rows but its shards saw {seen}"
    return None


def rejected_too_many(job: Job) -> str | None:
    """What to say if a larger share was rejected than the job allows, or None.

    Users whose first event is at or after the last as-of do not count.
    """
    for run in job.views:
        done = _manifests(run, job)
        late = sum(one.rejected.get(_EXPECTED, 0) for one in done)
        events = too_many(
            "events",
            sum(one.events_rejected for one in done),
            sum(one.events_in for one in done),
            job.max_rejected,
        )
        users = too_many(
            "users",
            sum(one.users_rejected for one in done) - late,
            sum(one.users_in for one in done) - late,
            job.max_rejected,
        )
        if events or users:
            return events or users
    return None


def too_many(what: str, rejected: int, of: int, allowed: float) -> str | None:
    """What to say if more of something was rejected than the share that is allowed, or None."""
    if rejected <= allowed * of:
        return None
    return (
        f"{rejected:,} of {of:,} {what} were rejected, more than max_rejected={allowed:g} allows, "
        "so nothing was published. Look at the dead letters, then mend the table; or raise "
        "max_rejected in feature_store.yaml, and run it again"
    )


def keep_rejected(run: ViewRun, tables: Iterable[pa.Table]) -> Path:
    """Write the rejected rows of a job that was refused before any shard was done."""
    path = rejected_events_path(run.state_folder)

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, ROW_SCHEMA) as file:
            for table in tables:
                file.write_table(table)

    replace_file(path, write)
    return path


def rejected_events_path(state: Path) -> Path:
    """Where `keep_rejected` writes, in a run's state folder."""
    return state / "rejected-events.parquet"


def check_published(job: Job, runs: Iterable[ViewRun]) -> None:
    """Raises `RunError` if this attempt did not write the rows of every shard of some runs."""
    for run in runs:
        written = sum(one.published_by == job.attempt for one in _manifests(run, job))
        if written < job.shards:
            raise RunError(
                f"run {run.run_id} of {run.view!r}: the rows of only {written} of {job.shards} "
                "shards were written into its stores; run it again"
            )


def _manifests(run: ViewRun, job: Job) -> list[ShardManifest]:
    found = (manifests.finished(run, shard) for shard in range(job.shards))
    return [manifest for manifest in found if manifest is not None]
