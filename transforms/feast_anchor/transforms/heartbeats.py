"""Signs of life: how the driver notices that a worker is gone where Beam itself never does.

Beam's local job service waits for a killed worker for ever. So a worker touches a file every second
while it works on an element, and takes it away when it is done or has failed in order; a file that
is there and grows old belongs to a worker that is dead, or as good as dead.

Only the driver's own clock is asked, and only how long a file has not changed: clocks of machines
differ.

The folder is the driver's and lives as long as it watches. A worker that finds it gone ends at
once: nobody waits for its work, and the next attempt must not have it at its side.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from feast_anchor.onnx_export.errors import RunError

BEAT_SECONDS = 1.0
DEAD_SECONDS = 20.0  # without a beat, in the middle of an element
IDLE_SECONDS = 600.0  # without any worker at work: startup and Beam's own shuffle lie in between


@contextmanager
def beating(folder: str | None, element: str) -> Iterator[None]:
    """Show that this process is at work on an element while the body runs; None: nobody watches."""
    if folder is None:
        yield
        return
    if not Path(folder).is_dir():
        raise RunError(f"{element}: {folder!r} is not there: its driver is gone, or on other disks")
    path = Path(folder) / f"{element}-{uuid4().hex}"
    path.write_text("0", "utf-8")  # before any work: a worker killed early is missed too
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
    while not stop.wait(BEAT_SECONDS):
        count += 1
        try:
            path.write_text(str(count), "utf-8")
        except FileNotFoundError:
            if _driving:  # this worker is a thread of its driver
                return
            os._exit(1)


_driving = False  # whether this process watches others


@contextmanager
def watched(folder: Path) -> Iterator[Watch]:
    """The driver's side: make the folder, and remove it with those of dead drivers of this run.

    Args:
        folder: its name is the run's and, after the last "-", the attempt's.
    """
    global _driving
    _driving = True
    for old in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield Watch(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Watch:
    """Asked now and then, it says what is wrong."""

    dead_seconds = DEAD_SECONDS
    idle_seconds = IDLE_SECONDS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
        silent = [
            name for name, (_, since) in self._seen.items() if now - since > self.dead_seconds
        ]
        if silent:
            elements = ", ".join(sorted(name.rpartition("-")[0] for name in silent))
            return f"a worker died: no sign of life for {self.dead_seconds:g} s from {elements}"
        if not beats and now - self._moved > self.idle_seconds:
            return f"no worker has been at work for {self.idle_seconds:g} s"
        return None

    def _beats(self) -> dict[str, str]:
        found = {}
        for path in self._folder.glob("*-*"):
            try:
                found[path.name] = path.read_text("utf-8")
            except FileNotFoundError:  # done in this moment
                continue
        return found
