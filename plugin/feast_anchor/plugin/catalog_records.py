"""What the catalogue keeps, as records: spaces, runs, shards and dead letters.

The rule: a record that cannot be kept is refused when it is made. Every datetime is an aware one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from feast_anchor.onnx_export.errors import CatalogError

RUN_KINDS = ("materialize", "backfill")


class RunStatus(StrEnum):
    """Where a run stands. RUNNING also holds for a run whose process vanished."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class SpaceRecord:
    """The embedding space that one field of one view is computed in.

    The catalogue sets `first_seen` and `last_seen` (UTC): they are not read when writing and
    not compared.
    """

    fingerprint: str
    project: str
    view: str
    field: str
    bundle_digest: str
    query: str | None
    prompt: str | None
    dim: int
    first_seen: datetime | None = dataclasses.field(default=None, compare=False)
    last_seen: datetime | None = dataclasses.field(default=None, compare=False)


@dataclass(frozen=True)
class RunRecord:
    """A run as it is begun. The window's ends are aware datetimes; `spec` is JSON.

    `kind` says what asked for it: "materialize" (Feast) or "backfill" (our command line).
    """

    run_id: str
    project: str
    view: str
    bundle_digest: str
    window_start: datetime
    window_end: datetime
    shards: int
    spec: Mapping[str, Any]
    kind: str = "materialize"

    def __post_init__(self) -> None:
        if self.kind not in RUN_KINDS:
            raise CatalogError(f"kind is {self.kind!r}; a run is one of {RUN_KINDS}.")
        for name in ("window_start", "window_end"):
            value = getattr(self, name)
            if value.tzinfo is None:
                raise CatalogError(f"{name} is {value!r}; give a time-zone aware datetime.")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a shard counts, in rows; `seconds` is wall time.

    Unchanged users have no event since their last vector, and unchanged events are theirs.
    Labels are rows of a table that asked for vectors as of given times.
    """

    users_in: int
    users_embedded: int
    users_unchanged: int = 0
    users_rejected: int
    events_in: int
    events_used: int
    events_unchanged: int = 0
    events_rejected: int
    events_outside: int
    events_over_budget: int
    labels_in: int = 0
    labels_rejected: int = 0
    rows_offline: int
    rows_online: int
    seconds: float


@dataclass(frozen=True)
class ShardRecord(Counts):
    """One finished shard. `rejected` has rows per "event:<reason>" or "user:<reason>"."""

    shard: int
    rejected: Mapping[str, int]
    dead_letter_path: str | None

    def __post_init__(self) -> None:
        for key in self.rejected:
            if not re.match(r"(event|user|label):.", key):
                raise CatalogError(
                    f"Shard {self.shard} rejected rows for {key!r}; "
                    "write the reason as 'event:<reason>', 'user:<reason>' or 'label:<reason>'."
                )


@dataclass(frozen=True)
class DeadLetterRow:
    """How many rows of a kind ("event" or "user") a shard rejected for a reason, and where to."""

    shard: int
    kind: str
    reason: str
    rows: int
    path: str | None


@dataclass(frozen=True, kw_only=True)
class RunSummary(RunRecord, Counts):
    """A run as it stands. Counts are sums over the `shards_done` shards recorded so far.

    `started_at` is when the current attempt began, `updated_at` when the run was last heard of.
    Once the run succeeded, `rows_offline`, `rows_online` and `created_until` (the newest
    created_timestamp its rows carry, None where nobody said) are what `finish_run` was told.
    """

    status: RunStatus
    attempt: int
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    created_until: datetime | None
    error_class: str | None
    error: str | None
    shards_done: int
