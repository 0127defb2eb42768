"""One run of a view at a time: the second waits, and is refused when it has waited enough.

The rule: the lock belongs to the operating system or to PostgreSQL, so it ends with its holder
and a killed run blocks nobody. What is written down about the holder only serves the message.

On PostgreSQL it is a session's advisory lock (a connection pooler that hands one session to
several clients, such as PgBouncer in transaction mode, breaks it). Elsewhere it is a locked file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from feast_anchor.onnx_export.errors import CatalogError, RunError
from feast_anchor.plugin.migrations.database import explained, patient

_POLL_S = 0.5

log = logging.getLogger(__name__)


class Lock(Protocol):
    """What can be held by one process at a time."""

    def take(self) -> bool:
        """Try to take it now; False when somebody else has it."""
        ...

    def intact(self) -> bool:
        """Whether it is still held, after it was taken."""
        ...

    def holder(self) -> str:
        """Who has it, as far as that can be told."""
        ...

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        ...


@dataclass(frozen=True)
class HeldLock:
    """The lock of a view, held until its context ends."""

    view: str
    _lock: Lock

    def check(self) -> None:
        """Make sure that the lock is held, or is held again.

        A lock that fell (a dropped connection, a deleted file) is taken once more when nobody
        has it. Raises RunError when somebody has, or when the database cannot be asked.
        """
        try:
            held = self._lock.intact() or self._lock.take()
        except CatalogError as error:
            raise RunError(
                f"The lock of view {self.view!r} fell and cannot be taken again: {error} "
                "Run again to resume."
            ) from None
        if not held:
            raise RunError(
                f"The lock of view {self.view!r} fell while this run worked, and "
                f"{self._lock.holder()} has it now. Let that run end, then run again to resume."
            )


@contextmanager
def holding(lock: Lock, view: str, wait_seconds: float) -> Iterator[HeldLock]:
    """Hold the lock of a view, after waiting for it for at most `wait_seconds`.

    Raises RunError when it is still another's then; it names the holder.
    """
    try:
        _wait(lock, view, wait_seconds)
        yield HeldLock(view, lock)
    finally:
        lock.release()


def _wait(lock: Lock, view: str, wait_seconds: float) -> None:
    start, told = time.monotonic(), False
    while not lock.take():
        waited = time.monotonic() - start
        if waited >= wait_seconds:
            raise RunError(
                f"View {view!r} is locked by {lock.holder()}, and only one run of a view may "
                f"work at a time. Waited {waited:.1f} s of {wait_seconds:g} s. Wait until that "
                "run has ended, or raise wait_seconds."
            )
        if not told:
            log.warning(
                "view %r is locked by %s; waiting for at most %g s",
                view,
                lock.holder(),
                wait_seconds,
            )
            told = True
        time.sleep(min(_POLL_S, max(0.0, wait_seconds - waited)))


class FileLockOfView:
    """A locked file. Beside it lies a note that names the holder."""

    def __init__(self, folder: Path, project: str, view: str) -> None:
        self._path = folder / f"{_file_name(project)}.{_file_name(view)}.lock"
        self._note = self._path.with_suffix(".json")
        # Without flock there is no lock that ends with its holder: then rather an error.
        self._lock = FileLock(self._path, thread_local=False, fallback_to_soft=False)
        self._taken: tuple[int, int] | None = None

    def take(self) -> bool:
        """Try to lock the file; raises CatalogError when the file system cannot."""
        self.release()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            raise CatalogError(
                f"Could not lock {str(self._path)!r}: {type(error).__name__}: {error}. Check that "
                "this user may write to that folder and that its file system has file locks."
            ) from None
        self._taken = _identity(self._path)
        self._sign()
        return True

    def intact(self) -> bool:
        """Whether the locked file is still the one that others would find."""
        return self._taken is not None and _identity(self._path) == self._taken

    def holder(self) -> str:
        """What the note says; a holder writes it a moment after taking the lock."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return f"process {note['pid']} on {note['host']} (since {note['since']})"
        except (OSError, ValueError, LookupError, TypeError):
            return "a process that left no name"

    def release(self) -> None:
        """Unlock the file, and take the note away before that."""
        if self._taken is not None and self.intact():
            with suppress(OSError):
                self._note.unlink(missing_ok=True)
        self._taken = None
        self._lock.release(force=True)

    def _sign(self) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        draft = self._note.with_suffix(".tmp")  # the next holder's too: a killed one leaves none
        try:
            draft.write_text(json.dumps(note), encoding="utf-8")
            draft.replace(self._note)
        except OSError:  # a full disk: the lock holds all the same
            with suppress(OSError):
                draft.unlink(missing_ok=True)


class PostgresLockOfView:
    """An advisory lock of a database session of our own, which does nothing else."""

    def __init__(self, engine: Engine, url: URL, project: str, view: str) -> None:
        self._engine = engine
        self._url = url
        self._key = _key(project, view)
        self._session: Connection | None = None
        self._held = False  # by that session: it may also live on without the lock

    def take(self) -> bool:
        """Try to take the lock, on a new connection if the last one dropped."""
        with explained(self._url, "lock a view in"):
            return patient(self._url, "locking a view")(self._try)

    def intact(self) -> bool:
        """Whether the session that took the lock still lives."""
        if self._session is None or not self._held:
            return False
        try:
            self._session.execute(select(1))
        except SQLAlchemyError:
            self._drop()
        return self._held

    def holder(self) -> str:
        """The session that has the lock, which says its process and host in its name."""
        try:
            with self._engine.connect() as connection:
                row = connection.execute(_HOLDER, _halves(self._key)).one_or_none()
        except SQLAlchemyError:
            row = None
        if row is None:
            return "a session that cannot be seen"
        since = row.backend_start and row.backend_start.astimezone(UTC).isoformat(" ", "seconds")
        return (
            f"{row.application_name or 'a session'} (PostgreSQL backend {row.pid}, client address "
            f"{row.client_addr or 'not visible'}, since {since or 'not visible'})"
        )

    def release(self) -> None:
        """Give the lock back, and end its session."""
        if self._session is not None:
            with suppress(SQLAlchemyError):  # the server may be gone, and the lock with it
                self._session.execute(select(func.pg_advisory_unlock_all()))
        self._drop()

    def _try(self) -> bool:
        try:
            if self._session is None:
                self._connect()
            assert self._session is not None
            taken = self._session.scalar(select(func.pg_try_advisory_lock(self._key)))
        except SQLAlchemyError:
            self._drop()
            raise
        self._held = bool(taken)
        return self._held

    def _connect(self) -> None:
        self._session = self._engine.connect()
        self._session.execution_options(isolation_level="AUTOCOMMIT")  # no transaction for hours
        self._session.detach()  # closing it must end the session, not put it back into the pool
        me = f"feast-anchor process {os.getpid()} on {socket.gethostname()}"
        self._session.execute(_SET_UP, {"me": me[:63]})

    def _drop(self) -> None:
        if self._session is not None:
            with suppress(SQLAlchemyError):
                self._session.close()
        self._session, self._held = None, False


# The server notices within about a minute that the machine of a holder vanished.
_SET_UP = text(
    "SELECT set_config('application_name', :me, false), "
    "set_config('tcp_keepalives_idle', '30', false), "
    "set_config('tcp_keepalives_interval', '10', false), "
    "set_config('tcp_keepalives_count', '3', false)"
)
# Columns of other users' sessions are null, except to members of pg_read_all_stats.
_HOLDER = text(
    "SELECT a.pid, a.application_name, host(a.client_addr) AS client_addr, a.backend_start "
    "FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
    "AND l.classid::bigint = :high AND l.objid::bigint = :low "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def _key(project: str, view: str) -> int:
    """A stable signed 64-bit number; Python's hash() differs from process to process."""
    digest = hashlib.sha256(f"feast-anchor:{project}/{view}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _halves(key: int) -> dict[str, int]:
    """The two unsigned 32-bit numbers that pg_locks shows for a key."""
    return {"high": key >> 32 & 0xFFFFFFFF, "low": key & 0xFFFFFFFF}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _file_name(name: str) -> str:
    """`name` where it is a plain one, else its like with a digest that tells it apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:80]
    if plain == name:
        return name
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
