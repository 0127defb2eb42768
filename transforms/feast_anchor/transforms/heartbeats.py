"""Signs of life: how the driver notices that a worker is gone where Beam itself never does.

Beam's local job service waits for a killed worker for ever. So a worker touches a file every second
while it works on an element, and takes it away when it is done or has failed in order; a file that
is there and grows old belongs to a worker that is dead, or as good as dead.

Only the driver's own clock is asked, and only how long a file has not changed: clocks of machines
differ.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

BEAT_SECONDS = 1.0
DEAD_SECONDS = 20.0  # without a beat, in the middle of an element
IDLE_SECONDS = 600.0  # without any worker at work: startup and Beam's own shuffle lie in between


@contextmanager
def beating(folder: str | None, element: str) -> Iterator[None]:
    """Show that this process is at work on an element while the body runs; None: nobody watches."""
    if folder is None:
        yield
        return
    path = Path(folder) / f"{element}-{uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    count = 0
    while True:
        path.write_text(str(count))  # its size or time changes on every file system
        count += 1
        if stop.wait(BEAT_SECONDS):
            return


class Watch:
    """The driver's side: asked now and then, it says what is wrong."""

    def __init__(
        self, folder: Path, dead_seconds: float = DEAD_SECONDS, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._folder = folder
        self._dead, self._idle = dead_seconds, idle_seconds
        self._seen: dict[str, tuple[str, float]] = {}  # last beat, and when it was first seen
        self._moved = time.monotonic()

    def trouble(self) -> str | None:
        """Why this run will not come to its end, or None as long as somebody is at work."""
        now = time.monotonic()
        beats = self._beats()
        if beats.keys() != self._seen.keys():
            self._moved = now
        for name, beat in beats.items():
            if self._seen.get(name, ("", 0.0))[0] != beat:
                self._seen[name] = (beat, now)
        self._seen = {name: self._seen[name] for name in beats}
        silent = [name for name, (_, since) in self._seen.items() if now - since > self._dead]
        if silent:
            elements = ", ".join(sorted(name.rpartition("-")[0] for name in silent))
            return f"a worker died: no sign of life for {self._dead:.0f} s from {elements}"
        if not beats and now - self._moved > self._idle:
            return f"no worker has been at work for {self._idle:.0f} s"
        return None

    def _beats(self) -> dict[str, str]:
        found = {}
        for path in self._folder.glob("*-*"):
            try:
                found[path.name] = path.read_text()
            except FileNotFoundError:  # done in this moment
                continue
        return found
