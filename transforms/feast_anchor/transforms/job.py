"""What the pipeline is asked to do, as plain values that any worker can be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from .events import EventSource
from .graphs import Device
from .scoring import Question
from .zeroshot import Answers

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"
HISTORY_END = "history_end"
RESERVED_COLUMNS = (EVENT_TIMESTAMP, CREATED_TIMESTAMP, HISTORY_END)

_STAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class ScoreColumn:
    """A scenario's zero-shot score: the column it fills, its answers and what it means."""

    name: str
    answers: Answers
    space: str  # fingerprint of the scenario's embedding space and the answers


@dataclass(frozen=True)
class ScenarioColumn:
    """One scenario of a view: the column it fills, its question and its embedding space."""

    name: str
    question: Question
    space: str  # fingerprint
    score: ScoreColumn | None = None


def row_schema(key: str, key_type: str, scenarios: Sequence[ScenarioColumn]) -> pa.Schema:
    """Schema of a view's rows; vectors and scores carry their fingerprints as field metadata.

    Args:
        key, key_type: join key column and its Arrow type as text.
        scenarios: one vector each, and beside it the score of those that have one.
    """
    fields = [pa.field(key, pa.type_for_alias(key_type))]
    fields += [pa.field(name, _STAMP) for name in RESERVED_COLUMNS]
    for one in scenarios:
        fields.append(pa.field(one.name, pa.list_(pa.float32()), metadata={"space": one.space}))
        if one.score is not None:
            meaning = {"space": one.score.space}
            fields.append(pa.field(one.score.name, pa.float32(), metadata=meaning))
    return pa.schema(fields)


# What becomes of users without a new event since their newest vector. "recompute" is right at every
# instant, because a vector also knows how long ago the last event was; the others are cheaper.
Unchanged = Literal["recompute", "restamp", "leave"]


@dataclass(frozen=True)
class ViewRun:
    """One view's share of a job: what to compute and where to put it.

    `run_id` is the fingerprint of bundle, spec, input snapshot and window, so a rerun finds its
    own finished shards and never another run's.

    `earlier` is the id of the run that ended where this one's window begins; users whose history
    is as it was then are treated as `unchanged` says. `same` is the id of a finished run over the
    same input and as-of times, `taken` the scenarios whose vectors are taken from its rows.
    """

    run_id: str
    view: str
    key: str  # join key column
    key_type: str  # Arrow type of the join key, as text: "string" or "int64"
    scenarios: tuple[ScenarioColumn, ...]
    sink: str  # folder of the offline parts
    state: str  # folder of this run's shard manifests and dead letters
    online: bool
    unchanged: Unchanged = "recompute"
    earlier: str | None = None
    same: str | None = None
    taken: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[ScenarioColumn, ...]:
        """The scenarios whose vectors this run computes."""
        return tuple(one for one in self.scenarios if one.name not in self.taken)

    def other(self, run_id: str) -> ViewRun:
        """Another run of the same view, to find its files."""
        return replace(self, run_id=run_id, state=str(self.state_folder.parent / f"run-{run_id}"))

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the view's rows; vectors and scores carry their fingerprints."""
        return row_schema(self.key, self.key_type, self.scenarios)

    @property
    def state_folder(self) -> Path:
        """Folder of this run's shard manifests and dead letters."""
        return Path(self.state)


@dataclass(frozen=True)
class Job:
    """One pass over the event tables, for one or more views that read them alike."""

    bundle: str  # folder
    digest: str  # Manifest.digest the bundle must have
    sources: tuple[EventSource, ...]
    snapshot: str  # `events.input_snapshot` of the sources, as the run ids were made from it
    as_of: tuple[int, ...]  # microseconds since the epoch, UTC, ascending; of all users
    shards: int
    views: tuple[ViewRun, ...]
    threads: int | None = None  # per worker; None means one per core
    device: Device = "auto"
    shuffle: Literal["local", "beam"] = "local"
    labels: str | None = None  # folder of `labels.save`: each user's own as-of times
    max_rejected: float = 1.0  # a larger share of rejected events or users fails the job
    created_after: int = 0  # created_timestamps are later than this, whatever the clock says
    hearts: str | None = None  # folder where workers show that they live, if anybody looks
    attempt: str = ""  # names this execution; a repetition of the job has another

    @property
    def before(self) -> int:
        """Events at or after this instant cannot be read by any vector; microseconds, UTC."""
        return self.as_of[-1]
