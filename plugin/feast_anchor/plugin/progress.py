"""Progress of a run, read from the shard manifests while Beam works.

A Beam runner blocks until it is done and tells nothing in between, so a thread watches the state
folder: a bar on a terminal, a plain line now and then in a log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from feast_anchor.transforms.job import Job
from feast_anchor.transforms.manifests import ShardManifest

_POLL_SECONDS = 0.5
_LOG_SECONDS = 10.0
_FEW_SHARDS = 2  # of this attempt, from which on a rate tells something


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
def shown(job: Job, label: str) -> Iterator[Callable[[str], None]]:
    """Show the progress of a job while the body runs; yields what tells it the current stage."""
    stop = threading.Event()
    console = Console(file=sys.stderr)
    show = _bar if console.is_terminal else _lines
    watch = _Watch(job)
    thread = threading.Thread(target=show, args=(watch, label, stop, console), daemon=True)
    thread.start()
    try:
        yield watch.at
    finally:
        stop.set()
        thread.join()


class _Watch:
    """Reads each manifest once, when it appears, and puts what it knows into words."""

    def __init__(self, job: Job) -> None:
        self._waiting = [(run, shard) for run in job.views for shard in range(job.shards)]
        self.total = len(self._waiting)
        self._found: list[ShardManifest] = []
        self._stage = "planning"
        self._began = self._scoring = time.monotonic()
        self._look()
        self._before = summary(self._found)  # done by earlier attempts

    def at(self, stage: str) -> None:
        """Told by the pipeline what it is doing."""
        self._stage = stage
        if stage == "scoring":
            self._scoring = time.monotonic()

    @property
    def done(self) -> int:
        """Shards that are done."""
        return len(self._found)

    def words(self) -> str:
        """Look again; stage, counts, users per second and the time that is left."""
        self._look()
        now = summary(self._found)
        seconds = time.monotonic() - self._scoring
        fresh = now.shards - self._before.shards
        words = self._stage if now.shards in (0, self.total) else "scoring"
        if now.shards:
            words += f" · {now}"
        if fresh >= _FEW_SHARDS and now.shards < self.total:
            left = seconds / fresh * (self.total - now.shards)
            words += f", {(now.users - self._before.users) / seconds:,.0f} users/s"
            words += f", {clock(left)} left"
        return f"{words} · {clock(time.monotonic() - self._began)}"

    def _look(self) -> None:
        still = []
        for run, shard in self._waiting:
            manifest = ShardManifest.load(run.state_folder, shard)
            if manifest is None:
                still.append((run, shard))
            else:
                self._found.append(manifest)
        self._waiting = still


def summary(manifests: Sequence[ShardManifest]) -> Snapshot:
    """Sum up some finished shards."""
    return Snapshot(
        shards=len(manifests),
        users=sum(m.users_embedded + m.users_unchanged for m in manifests),
        rows=sum(m.rows_offline for m in manifests),
        rejected=sum(m.events_rejected + m.users_rejected + m.labels_rejected for m in manifests),
    )


def clock(seconds: float) -> str:
    """A duration as people write it: 42 s, 3 min 5 s, 2 h 7 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _bar(watch: _Watch, label: str, stop: threading.Event, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards · {task.fields[now]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=watch.total, now="")
        while not stop.wait(_POLL_SECONDS):
            _update(progress, task, watch)
        _update(progress, task, watch)


def _update(progress: Progress, task: TaskID, watch: _Watch) -> None:
    words = watch.words()
    progress.update(task, completed=watch.done, now=words)


def _lines(watch: _Watch, label: str, stop: threading.Event, console: Console) -> None:
    last = time.monotonic()
    while not stop.wait(_POLL_SECONDS):
        if time.monotonic() - last >= _LOG_SECONDS:
            last = time.monotonic()
            _line(console, label, watch)
    _line(console, label, watch)


def _line(console: Console, label: str, watch: _Watch) -> None:
    words = watch.words()
    console.print(
        f"{label}: {watch.done} of {watch.total} shards, {words}", highlight=False, soft_wrap=True
    )
