"""The catalogue: which model made this vector, which run failed where, what mixing would mean.

The rule: only the driver process writes here, every write may be repeated, and each is one
transaction. Workers write manifest files; the driver reports them. A run whose process was killed
stays RUNNING until it is begun again, as the next attempt.

Any SQLAlchemy URL will do: a SQLite file by default, PostgreSQL in production. The tables have
plain names (`spaces`, `runs`, `shards`, `dead_letters`): give them a database or schema of
their own. Every datetime that comes back is UTC and time-zone aware.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Table,
    cast,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from feast_anchor.onnx_export.errors import CatalogError
from feast_anchor.plugin.migrations.database import (
    connect,
    explained,
    parse_url,
    shown,
    without_passwords,
    writing,
)
from feast_anchor.plugin.migrations.tables import DEAD_LETTERS, RUNS, SHARD_COUNTS, SHARDS, SPACES

_ERROR_CHARS = 2_000


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
    """A run as it is begun. The window's ends are aware datetimes; `spec` is JSON."""

    run_id: str
    project: str
    view: str
    bundle_digest: str
    window_start: datetime
    window_end: datetime
    shards: int
    spec: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("window_start", "window_end"):
            value = getattr(self, name)
            if value.tzinfo is None:
                raise CatalogError(f"{name} is {value!r}; give a time-zone aware datetime.")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a shard counts, in rows; `seconds` is wall time."""

    users_in: int
    users_embedded: int
    users_rejected: int
    events_in: int
    events_used: int
    events_rejected: int
    events_outside: int
    events_over_budget: int
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
            if not re.match(r"(event|user):.", key):
                raise CatalogError(
                    f"Shard {self.shard} rejected rows for {key!r}; "
                    "write the reason as 'event:<reason>' or 'user:<reason>'."
                )


@dataclass(frozen=True)
class DeadLetterRow:
    """How many rows of a kind ("event" or "user") a shard rejected for a reason, and where to."""

    shard: int
    kind: str
    reason: str
    rows: int
    path: str | None


@dataclass(frozen=True)
class RunSummary(RunRecord, Counts):
    """A run as it stands. Counts are sums over the `shards_done` shards recorded so far.

    `started_at` is when the current attempt began, `updated_at` when the run was last heard of.
    Once the run succeeded, `rows_offline` and `rows_online` are what `finish_run` was told.
    """

    status: RunStatus
    attempt: int
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    error_class: str | None
    error: str | None
    shards_done: int


class Catalog:
    """An open catalogue. Every method raises CatalogError when the database cannot do it."""

    def __init__(self, engine: Engine, url: URL) -> None:
        self._engine = engine
        self._writers = writing(engine)
        self._url = url

    @classmethod
    def open(cls, url: str) -> Catalog:
        """Open the catalogue at a SQLAlchemy URL; create or upgrade its tables.

        Raises CatalogError if it cannot be reached, or if its schema is newer than this package.
        """
        from feast_anchor.plugin.migrations.upgrade import upgrade  # Alembic is slow to import

        parsed = parse_url(url)
        with explained(parsed, "open"):
            engine = connect(parsed)
            try:
                upgrade(engine, shown(parsed))
            except BaseException:
                engine.dispose()
                raise
        return cls(engine, parsed)

    def record_spaces(self, spaces: Iterable[SpaceRecord]) -> None:
        """Record that these fields are computed in these spaces now; keeps `first_seen`."""
        now = datetime.now(UTC)
        # One order for all processes, or two of them could wait for each other.
        by_key = sorted(spaces, key=lambda one: (one.project, one.view, one.field, one.fingerprint))
        with self._writing() as connection:
            for space in by_key:
                row = asdict(space) | {"last_seen": now}
                del row["first_seen"]
                _put(connection, SPACES, row, when_new={"first_seen": now})

    def begin_run(self, run: RunRecord) -> int:
        """Record that a run starts or resumes, and return its attempt number, from 1.

        Shards of earlier attempts stay recorded, unless the run is now cut into another number
        of shards. The window becomes this attempt's: two windows may ask for the same as-of times,
        and then they are one run. Raises CatalogError if the run id is another project's, view's
        or bundle's.
        """
        now = datetime.now(UTC)
        row = {one.name: getattr(run, one.name) for one in fields(RunRecord)}
        row |= {"spec": dict(run.spec), "status": RunStatus.RUNNING}
        row |= {"started_at": now, "updated_at": now, "finished_at": None}
        row |= {"rows_offline": None, "rows_online": None, "error_class": None, "error": None}
        with self._writing() as connection:
            self._reconcile(connection, run)
            _put(connection, RUNS, row | {"attempt": RUNS.c.attempt + 1}, when_new={"attempt": 1})
            attempt = select(RUNS.c.attempt).where(RUNS.c.run_id == run.run_id)
            return int(connection.execute(attempt).scalar_one())

    def record_shard(self, run_id: str, shard: ShardRecord) -> None:
        """Record a finished shard and its dead letters, replacing what it had recorded."""
        row = asdict(shard) | {"run_id": run_id}
        letters = _letters(run_id, shard.shard, row.pop("rejected"))
        with self._writing() as connection:
            self._change_run(connection, run_id)
            _put(connection, SHARDS, row)
            mine = (DEAD_LETTERS.c.run_id == run_id) & (DEAD_LETTERS.c.shard == shard.shard)
            connection.execute(delete(DEAD_LETTERS).where(mine))
            if letters:
                connection.execute(insert(DEAD_LETTERS), letters)

    def finish_run(self, run_id: str, *, rows_offline: int, rows_online: int) -> None:
        """Record that the run SUCCEEDED, and the rows it wrote to each store."""
        row = {"status": RunStatus.SUCCEEDED, "finished_at": datetime.now(UTC)}
        row |= {"rows_offline": rows_offline, "rows_online": rows_online}
        row |= {"error_class": None, "error": None}
        with self._writing() as connection:
            self._change_run(connection, run_id, **row)

    def fail_run(self, run_id: str, error: BaseException) -> None:
        """Record that the run FAILED: the error's class and 2,000 characters of its message."""
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        row = {"status": RunStatus.FAILED, "finished_at": datetime.now(UTC)}
        row |= {"error_class": kind[:255], "error": _storable(str(error))}
        with self._writing() as connection:
            self._change_run(connection, run_id, **row)

    def runs(self, view: str | None = None) -> list[RunSummary]:
        """Every run, or a view's runs, newest attempt first."""
        sums = [func.sum(SHARDS.c[name]).label(name) for name in (*SHARD_COUNTS, "seconds")]
        done = func.count().label("shards_done")
        totals = select(SHARDS.c.run_id, done, *sums).group_by(SHARDS.c.run_id).subquery()
        written = {"rows_offline", "rows_online"}
        columns: list[ColumnElement[Any]] = [c for c in RUNS.c if c.name not in written]
        for total in totals.c:
            if total.name != "run_id":
                told = [RUNS.c[total.name]] if total.name in written else []
                columns.append(_number(total.name, *told, total))
        query = select(*columns).outerjoin_from(RUNS, totals, RUNS.c.run_id == totals.c.run_id)
        if view is not None:
            query = query.where(RUNS.c.view == view)
        with self._reading() as connection:
            found = connection.execute(query.order_by(RUNS.c.started_at.desc(), RUNS.c.run_id))
            rows = [dict(row) for row in found.mappings()]
        return [RunSummary(**row | {"status": RunStatus(row["status"])}) for row in rows]

    def shards(self, run_id: str) -> list[ShardRecord]:
        """The run's recorded shards, by number; empty for a run that recorded none."""
        rejected: dict[int, dict[str, int]] = {}
        for letter in self.dead_letters(run_id):
            rejected.setdefault(letter.shard, {})[f"{letter.kind}:{letter.reason}"] = letter.rows
        query = select(*(c for c in SHARDS.c if c.name != "run_id"))
        query = query.where(SHARDS.c.run_id == run_id).order_by(SHARDS.c.shard)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [ShardRecord(**row, rejected=rejected.get(row["shard"], {})) for row in rows]

    def dead_letters(self, run_id: str) -> list[DeadLetterRow]:
        """What the run rejected, by shard, kind and reason."""
        letter, path = DEAD_LETTERS.c, SHARDS.c.dead_letter_path.label("path")
        query = select(letter.shard, letter.kind, letter.reason, letter.rows, path)
        query = query.join(SHARDS).where(letter.run_id == run_id)
        query = query.order_by(letter.shard, letter.kind, letter.reason)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [DeadLetterRow(**row) for row in rows]

    def spaces(self, view: str | None = None) -> list[SpaceRecord]:
        """Every space a field was computed in, by project, view and field; newest use first."""
        key = SPACES.c
        query = select(SPACES) if view is None else select(SPACES).where(key.view == view)
        query = query.order_by(key.project, key.view, key.field, key.last_seen.desc())
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [SpaceRecord(**row) for row in rows]

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Catalog {shown(self._url)}>"

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with explained(self._url, "write to"), self._writers.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with explained(self._url, "read"), self._engine.connect() as connection:
            yield connection

    def _change_run(self, connection: Connection, run_id: str, **row: Any) -> None:
        row |= {"updated_at": datetime.now(UTC)}
        change = update(RUNS).where(RUNS.c.run_id == run_id).values(row)
        if not connection.execute(change).rowcount:
            raise CatalogError(
                f"Run {run_id!r} is not in the catalogue {shown(self._url)}; begin it first."
            )

    def _reconcile(self, connection: Connection, run: RunRecord) -> None:
        """Refuse a run id that means another run; forget shards of another cut."""
        query = select(RUNS).where(RUNS.c.run_id == run.run_id)
        known = connection.execute(query).mappings().one_or_none()
        if known is None:
            return
        for name in ("project", "view", "bundle_digest"):
            if known[name] != getattr(run, name):
                raise CatalogError(
                    f"Run {run.run_id!r} is recorded with {name} {known[name]!r}, and is now begun "
                    f"with {getattr(run, name)!r}; a run id must name one run only."
                )
        if known["shards"] != run.shards:
            connection.execute(delete(SHARDS).where(SHARDS.c.run_id == run.run_id))


def _put(
    connection: Connection,
    table: Table,
    row: Mapping[str, Any],
    when_new: Mapping[str, Any] | None = None,
) -> None:
    """Update the row with this primary key or insert it; `when_new` is for inserting only."""
    same_key = [column == row[column.name] for column in table.primary_key]
    change = update(table).where(*same_key).values(row)
    if connection.execute(change).rowcount:
        return
    try:
        with connection.begin_nested():
            connection.execute(insert(table).values({**row, **(when_new or {})}))
    except IntegrityError:
        # Another process was faster, or else the row itself is wrong.
        if not connection.execute(change).rowcount:
            raise


def _number(name: str, *values: ColumnElement[Any]) -> ColumnElement[Any]:
    """The first value that is there, else 0. PostgreSQL sums to a decimal: cast it back."""
    present = func.coalesce(*values, 0)
    return (present if name == "seconds" else cast(present, BigInteger)).label(name)


def _letters(run_id: str, shard: int, rejected: Mapping[str, int]) -> list[dict[str, Any]]:
    letters = []
    for key, rows in rejected.items():
        kind, _, reason = key.partition(":")
        where = {"run_id": run_id, "shard": shard}
        letters.append(where | {"kind": kind, "reason": reason, "rows": rows})
    return letters


def _storable(text: str) -> str:
    """The start of a message; PostgreSQL takes no NUL, and no database a lone surrogate."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
    return without_passwords(text)[:_ERROR_CHARS]
