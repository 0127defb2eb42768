"""Real server processes for tests: start, stop, kill, start again.

The rule: a test that says it ran against a server ran against a server. Nothing here imitates
one; a server that cannot be found or does not come up is an error with a reason.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class ServerNotFoundError(RuntimeError):
    """No binary of this server on this machine; the message says how to get one."""


class ServerStartError(RuntimeError):
    """The server was found and did not come up; the message holds the end of its log."""


@dataclass(frozen=True)
class Owner:
    """The system user a server runs as, where it refuses to run as root."""

    uid: int
    gid: int

    def popen_options(self) -> dict[str, object]:
        """The keyword arguments of `subprocess` that drop to this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, folder: Path) -> None:
        """Hand `folder`, empty or not, to this user."""
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


def unprivileged_owner() -> Owner | None:
    """`nobody` when we are root, None when we are an ordinary user already."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Owner(nobody.pw_uid, nobody.pw_gid)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server_folder(name: str) -> Iterator[Path]:
    """A temporary folder that any user may enter, removed at the end.

    Not pytest's tmp_path: its parents are closed to the user a server drops to.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"anchor-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class ServerProcess:
    """One server's process, which may come and go while its folder and port stay.

    `ready` raises as long as the server does not answer.
    """

    command: Sequence[str]
    log: Path
    ready: Callable[[], None]
    owner: Owner | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        """Start and wait until the server answers; ServerStartError after 20 seconds.

        A process that ends early is started again: right after a kill, what the dead one
        held (shared memory, the port) may take a moment to go.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.running:
                self._spawn()
            try:
                self.ready()
            except Exception as error:  # each client library has its own tree of errors
                last = error
                time.sleep(0.05)
            else:
                return
        self.kill()
        raise ServerStartError(
            f"{self.command[0]!r} did not answer within {START_SECONDS:.0f} s: {last}\n"
            f"end of its log:\n{self.log.read_text(errors='replace')[-2000:]}"
        )

    def stop(self) -> None:
        """Shut down in order, or by force after ten seconds; harmless when not running."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """SIGKILL, as a crash would: the server writes nothing more."""
        self._end(signal.SIGKILL)

    def _spawn(self) -> None:
        options = self.owner.popen_options() if self.owner else {}
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(  # type: ignore[call-overload]
                self.command,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in pytest must not reach it before teardown
                **options,
            )

    def _end(self, how: signal.Signals) -> None:
        if self._popen is None:
            return
        if self.running:
            self._popen.send_signal(how)
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(STOP_SECONDS)
        self._popen = None
