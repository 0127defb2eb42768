"""Progress of a run, read from the shard manifests while Beam works.

A Beam runner blocks until it is done and tells nothing in between, so a thread watches the state
folder: a bar on a terminal, a plain line now and then in a log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from feast_anchor.transforms.job import Job
from feast_anchor.transforms.sinks import ShardManifest

_POLL_SECONDS = 0.5
_LOG_SECONDS = 10.0


@dataclass(frozen=True)
class Snapshot:
    """How far a job is, summed over its views."""

    shards: int
    users: int
    rows: int
    rejected: int

    def __str__(self) -> str:
        return f"{self.users:,} users, {self.rows:,} rows, {self.rejected:,} dead letters"


@contextmanager
def shown(job: Job, label: str) -> Iterator[None]:
    """Show the progress of a job while the body runs."""
    stop = threading.Event()
    console = Console(file=sys.stderr)
    show = _bar if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(job, label, stop, console), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Watch:
    """Reads each manifest once, when it appears."""

    def __init__(self, job: Job) -> None:
        self._waiting = [(run, shard) for run in job.views for shard in range(job.shards)]
        self.done: list[ShardManifest] = []
        self.total = len(self._waiting)

    def look(self) -> Snapshot:
        still = []
        for run, shard in self._waiting:
            manifest = ShardManifest.load(run.state_folder, shard)
            if manifest is None:
                still.append((run, shard))
            else:
                self.done.append(manifest)
        self._waiting = still
        return summary(self.done)


def summary(manifests: Sequence[ShardManifest]) -> Snapshot:
    """Sum up some finished shards."""
    return Snapshot(
        shards=len(manifests),
        users=sum(m.users_embedded for m in manifests),
        rows=sum(m.rows_offline for m in manifests),
        rejected=sum(m.events_rejected + m.users_rejected for m in manifests),
    )


def _bar(job: Job, label: str, stop: threading.Event, console: Console) -> None:
    watch = _Watch(job)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards · {task.fields[now]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=watch.total, now="reading events")
        while not stop.wait(_POLL_SECONDS):
            _update(progress, task, watch)
        _update(progress, task, watch)


def _update(progress: Progress, task: object, watch: _Watch) -> None:
    now = watch.look()
    text = str(now) if now.shards else "reading events"
    progress.update(task, completed=now.shards, now=text)  # type: ignore[arg-type]  # rich's NewType


def _lines(job: Job, label: str, stop: threading.Event, console: Console) -> None:
    watch = _Watch(job)
    began = last = time.monotonic()
    while not stop.wait(_POLL_SECONDS):
        if time.monotonic() - last >= _LOG_SECONDS:
            last = time.monotonic()
            _line(console, label, watch, last - began)
    _line(console, label, watch, time.monotonic() - began)


def _line(console: Console, label: str, watch: _Watch, seconds: float) -> None:
    now = watch.look()
    console.print(
        f"{label}: {now.shards} of {watch.total} shards, {now}, {seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
