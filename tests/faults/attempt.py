"""One attempt at `feast materialize`, in a process of its own that a test may disturb.

Everything here runs in a process that `forkserver` has forked. The window is always the whole of
the shop's; what goes wrong is said by `Conditions`, and is done by the system, not imitated: a
small disk is a small disk. Only a pause and the clock are ours.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, cast

from feast import FeatureStore

from faults.disks import file_limit, small_disk
from feast_anchor.plugin import catalog
from feast_anchor.plugin.migrations import database
from shop import END, START

PAUSED = "paused"  # a file in the repo while an attempt waits
_PATIENCE_S = 120.0
_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect")


@dataclass(frozen=True)
class Conditions:
    """What an attempt meets; by default nothing."""

    pause_at: str | None = None  # "module:attribute", before whose call the attempt waits
    pause_call: int = 1
    disk: str | None = None  # folder in the repo that gets a small disk of its own
    disk_bytes: int = 0
    limited: str | None = None  # "module:attribute" in which no file may grow beyond a limit
    limit_bytes: int = 0
    limit_call: int = 1
    clock_days: float = 0.0  # how far the wall clock is off
    kill_at_change: int = 0  # of the repo's files, counted from 1, before which it is killed
    next_window: bool = False  # the week after the shop's window, instead of it
    catalog_retry: float | None = None  # seconds that a catalogue's server may stay away

    def to_json(self) -> str:
        """The conditions as they travel."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Conditions:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def materialize(repo: Path, conditions: Conditions) -> None:
    """Do what `feast materialize START END` does, under conditions."""
    if conditions.catalog_retry is not None:
        database.RETRY_S = conditions.catalog_retry
    if conditions.clock_days:
        set_clock(timedelta(days=conditions.clock_days))
    if conditions.pause_at is not None:
        before_call(conditions.pause_at, conditions.pause_call, lambda: pause(repo))
    if conditions.limited is not None:
        limit = conditions.limit_bytes
        within_call(conditions.limited, conditions.limit_call, lambda: file_limit(limit))
    if conditions.kill_at_change:
        kill_at_change(repo, conditions.kill_at_change)
    window = (END, END + timedelta(days=7)) if conditions.next_window else (START, END)
    size = conditions.disk_bytes
    with small_disk(repo / conditions.disk, size) if conditions.disk else nullcontext():
        FeatureStore(str(repo)).materialize(*window)


def kill_at_change(repo: Path, number: int) -> None:
    """Kill this process with SIGKILL before one change of the repo's files that Python makes."""
    folder, seen = f"{repo}{os.sep}", 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _CHANGES or folder not in str(arguments[0]):
            return
        if event == "open" and not int(arguments[2]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def pause(repo: Path) -> None:
    """Wait until the test has removed the file that says so."""
    mark = repo / PAUSED
    mark.touch()
    deadline = time.monotonic() + _PATIENCE_S
    while mark.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def before_call(where: str, call: int, action: Callable[[], None]) -> None:
    """Do something before one call of a function, counted from 1."""

    @contextmanager
    def around() -> Iterator[None]:
        action()
        yield

    within_call(where, call, around)


def within_call(where: str, call: int, around: Callable[[], Any]) -> None:
    """Put a context manager around one call of a function, counted from 1."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    real, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return real(*args, **kwargs)
        with around():
            return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def set_clock(off: timedelta) -> None:
    """Set this process's wall clock, as far as our code reads it; the monotonic one goes on."""
    true_ns = time.time_ns

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Shifted:
            return cast(Shifted, datetime.now(tz) + off)

    shift = int(off.total_seconds() * 1e9)
    time.time_ns = lambda: true_ns() + shift
    vars(catalog)["datetime"] = Shifted
