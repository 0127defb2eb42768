"""The catalogue: which model made this vector, which run failed where, what mixing would mean.

The rule: only the driver process writes here, every write may be repeated, and each is one
transaction, so a write whose server went away is repeated as a whole. Workers write manifest
files; the driver reports them. A run whose process was killed stays RUNNING until it is begun
again, as the next attempt.

Any SQLAlchemy URL will do: a SQLite file by default, PostgreSQL in production. The tables have
plain names (`spaces`, `runs`, `shards`, `dead_letters`): give them a database or schema of
their own. Every datetime that comes back is UTC and time-zone aware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    case,
    cast,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from feast_anchor.onnx_export.errors import CatalogError
from feast_anchor.plugin.catalog_records import (
    Counts,
    DeadLetterRow,
    RunRecord,
    RunStatus,
    RunSummary,
    ShardRecord,
    SpaceRecord,
)
from feast_anchor.plugin.locks import FileLockOfView, HeldLock, Lock, PostgresLockOfView, holding
from feast_anchor.plugin.migrations.database import (
    connect,
    explained,
    parse_url,
    patient,
    shown,
    sqlite_file,
    without_passwords,
    writing,
)
from feast_anchor.plugin.migrations.tables import DEAD_LETTERS, RUNS, SHARD_COUNTS, SHARDS, SPACES

__all__ = [
    "Catalog",
    "Counts",
    "DeadLetterRow",
    "HeldLock",
    "RunRecord",
    "RunStatus",
    "RunSummary",
    "ShardRecord",
    "SpaceRecord",
]

Result = TypeVar("Result")

_ERROR_CHARS = 2_000


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

    @classmethod
    def existing(cls, url: str) -> Catalog | None:
        """Open a catalogue to read it; None if there is none of this package's schema yet.

        Nothing is created or upgraded. Raises CatalogError as `open` does.
        """
        from feast_anchor.plugin.migrations.upgrade import is_current

        parsed = parse_url(url)
        file = sqlite_file(parsed)
        if file is not None and not file.is_file():
            return None
        with explained(parsed, "read"):
            engine = connect(parsed)
            try:
                if is_current(engine, shown(parsed)):
                    return cls(engine, parsed)
            except BaseException:
                engine.dispose()
                raise
            engine.dispose()
        return None

    def record_spaces(self, spaces: Iterable[SpaceRecord]) -> None:
        """Record that these fields are computed in these spaces now; keeps `first_seen`."""
        now = datetime.now(UTC)
        # One order for all processes, or two of them could wait for each other.
        by_key = sorted(spaces, key=lambda one: (one.project, one.view, one.field, one.fingerprint))

        def work(connection: Connection) -> None:
            for space in by_key:
                row = asdict(space) | {"last_seen": now}
                del row["first_seen"]
                _put(connection, SPACES, row, when_new={"first_seen": now})

        self._write(work)

    def begin_run(self, run: RunRecord) -> int:
        """Record that a run starts or resumes, and return its attempt number, from 1.

        Shards of earlier attempts stay recorded, unless the run is now cut into another number
        of shards. The window becomes this attempt's: two windows may ask for the same as-of times,
        and then they are one run. `created_until` stays, as rows of an earlier attempt may have
        been served. Raises CatalogError if the run id is another project's, view's or bundle's.
        """
        now = datetime.now(UTC)
        row = {one.name: getattr(run, one.name) for one in fields(RunRecord)}
        row |= {"spec": dict(run.spec), "status": RunStatus.RUNNING}
        row |= {"started_at": now, "updated_at": now, "finished_at": None}
        row |= {"rows_offline": None, "rows_online": None, "error_class": None, "error": None}

        def work(connection: Connection) -> int:
            self._reconcile(connection, run)
            # Rows that are served stay those of a materialize, whatever fills the past again.
            served = RUNS.c.kind == "materialize"
            again = {
                "attempt": RUNS.c.attempt + 1,
                "kind": case((served, "materialize"), else_=run.kind),
            }
            _put(connection, RUNS, row | again, when_new={"attempt": 1, "kind": run.kind})
            attempt = select(RUNS.c.attempt).where(RUNS.c.run_id == run.run_id)
            return int(connection.execute(attempt).scalar_one())

        return self._write(work)

    def record_shard(self, run_id: str, shard: ShardRecord) -> None:
        """Record a finished shard and its dead letters, replacing what it had recorded."""
        row = asdict(shard) | {"run_id": run_id}
        letters = _letters(run_id, shard.shard, row.pop("rejected"))

        def work(connection: Connection) -> None:
            self._change_run(connection, run_id)
            _put(connection, SHARDS, row)
            mine = (DEAD_LETTERS.c.run_id == run_id) & (DEAD_LETTERS.c.shard == shard.shard)
            connection.execute(delete(DEAD_LETTERS).where(mine))
            if letters:
                connection.execute(insert(DEAD_LETTERS), letters)

        self._write(work)

    def publishing(self, run_id: str, created_until: datetime) -> None:
        """Record how new the rows are that are about to be published.

        From then on they can be joined, whether or not the run comes to its end.
        """
        row = {"created_until": created_until}
        self._write(lambda connection: self._change_run(connection, run_id, **row))

    def finish_run(
        self,
        run_id: str,
        *,
        rows_offline: int,
        rows_online: int,
        created_until: datetime | None = None,
    ) -> None:
        """Record that the run SUCCEEDED, and the rows it wrote to each store.

        `created_until` is the newest created_timestamp of those rows; None leaves it as it is.
        """
        row: dict[str, Any] = {"status": RunStatus.SUCCEEDED, "finished_at": datetime.now(UTC)}
        row |= {"rows_offline": rows_offline, "rows_online": rows_online}
        row |= {"error_class": None, "error": None}
        if created_until is not None:
            row["created_until"] = created_until
        self._write(lambda connection: self._change_run(connection, run_id, **row))

    def fail_run(self, run_id: str, error: BaseException) -> None:
        """Record that the run FAILED: the error's class and 2,000 characters of its message."""
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        row = {"status": RunStatus.FAILED, "finished_at": datetime.now(UTC)}
        row |= {"error_class": kind[:255], "error": _storable(str(error))}
        self._write(lambda connection: self._change_run(connection, run_id, **row))

    def runs(self, view: str | None = None) -> list[RunSummary]:
        """Every run, or a view's runs, newest attempt first."""
        query = _summaries().order_by(RUNS.c.started_at.desc(), RUNS.c.run_id)
        if view is not None:
            query = query.where(RUNS.c.view == view)
        return [_summary(row) for row in self._rows(query)]

    def newest_created(self, project: str, view: str) -> datetime | None:
        """No row of the view was created later than this (UTC); None when it was never run.

        It is the latest of all runs' `created_until` and `started_at`: runs that did not say how
        new their rows are stamped them before they were begun.
        """
        until, started = func.max(RUNS.c.created_until), func.max(RUNS.c.started_at)
        query = select(until.label("until"), started.label("started")).where(*_of(project, view))
        (row,) = self._rows(query)
        return max((moment for moment in row.values() if moment is not None), default=None)

    def shards(self, run_id: str) -> list[ShardRecord]:
        """The run's recorded shards, by number; empty for a run that recorded none."""
        rejected: dict[int, dict[str, int]] = {}
        for letter in self.dead_letters(run_id):
            rejected.setdefault(letter.shard, {})[f"{letter.kind}:{letter.reason}"] = letter.rows
        query = select(*(c for c in SHARDS.c if c.name != "run_id"))
        query = query.where(SHARDS.c.run_id == run_id).order_by(SHARDS.c.shard)
        rows = self._rows(query)
        return [ShardRecord(**row, rejected=rejected.get(row["shard"], {})) for row in rows]

    def dead_letters(self, run_id: str) -> list[DeadLetterRow]:
        """What the run rejected, by shard, kind and reason."""
        letter, path = DEAD_LETTERS.c, SHARDS.c.dead_letter_path.label("path")
        query = select(letter.shard, letter.kind, letter.reason, letter.rows, path)
        query = query.join(SHARDS).where(letter.run_id == run_id)
        query = query.order_by(letter.shard, letter.kind, letter.reason)
        return [DeadLetterRow(**row) for row in self._rows(query)]

    def spaces(self, view: str | None = None) -> list[SpaceRecord]:
        """Every space a field was computed in, by project, view and field; newest use first."""
        key = SPACES.c
        query = select(SPACES) if view is None else select(SPACES).where(key.view == view)
        query = query.order_by(key.project, key.view, key.field, key.last_seen.desc())
        return [SpaceRecord(**row) for row in self._rows(query)]

    def lock(
        self, project: str, view: str, wait_seconds: float, folder: Path | None = None
    ) -> AbstractContextManager[HeldLock]:
        """Hold the view's lock for the time of a `with` block, so that one run works at a time.

        Args:
            project: the Feast project.
            view: the view's name.
            wait_seconds: how long to wait while another process has it; 0 tries once.
            folder: where the lock's file goes if the database is neither PostgreSQL, which has
                locks of its own, nor a SQLite file, which has it beside itself. All runs of the
                view must name the same one.

        Returns:
            A context manager whose `check()` raises RunError once the lock was lost.

        Raises:
            RunError: on entering, when another process still has it after `wait_seconds`.
        """
        return holding(self._lock_of(project, view, folder), view, wait_seconds)

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Catalog {shown(self._url)}>"

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        """Do `work` in one transaction, and all of it again when the server dropped it."""

        def transaction() -> Result:
            with self._writers.begin() as connection:
                return work(connection)

        with explained(self._url, "write to"):
            return patient(self._url, "writing")(transaction)

    def _rows(self, query: Select[Any]) -> list[dict[str, Any]]:
        def transaction() -> list[dict[str, Any]]:
            with self._engine.connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]

        with explained(self._url, "read"):
            return patient(self._url, "reading")(transaction)

    def _lock_of(self, project: str, view: str, folder: Path | None) -> Lock:
        if self._url.get_backend_name() == "postgresql":
            return PostgresLockOfView(self._engine, self._url, project, view)
        path = sqlite_file(self._url)
        folder = folder if path is None else path.with_name(f"{path.name}.locks")
        if folder is None:
            raise CatalogError(
                f"The catalogue {shown(self._url)} is neither PostgreSQL nor a SQLite file, so "
                f"the lock of view {view!r} needs a folder: give lock(..., folder=...)."
            )
        return FileLockOfView(folder, project, view)

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


def _of(project: str, view: str) -> tuple[ColumnElement[bool], ...]:
    return RUNS.c.project == project, RUNS.c.view == view


def _summaries() -> Select[Any]:
    """Every run with the sums over its shards."""
    sums = [func.sum(SHARDS.c[name]).label(name) for name in (*SHARD_COUNTS, "seconds")]
    done = func.count().label("shards_done")
    totals = select(SHARDS.c.run_id, done, *sums).group_by(SHARDS.c.run_id).subquery()
    written = {"rows_offline", "rows_online"}
    columns: list[ColumnElement[Any]] = [c for c in RUNS.c if c.name not in written]
    for total in totals.c:
        if total.name != "run_id":
            told = [RUNS.c[total.name]] if total.name in written else []
            columns.append(_number(total.name, *told, total))
    return select(*columns).outerjoin_from(RUNS, totals, RUNS.c.run_id == totals.c.run_id)


def _summary(row: Mapping[str, Any]) -> RunSummary:
    return RunSummary(**{**row, "status": RunStatus(row["status"])})


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
