"""A Dask cluster of one scheduler and two workers, each a process of its own."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.process import ServerProcess, server_folder

WORKERS = 2


@dataclass(frozen=True)
class DaskCluster:
    """The scheduler's address and the workers' processes."""

    address: str
    workers: tuple[ServerProcess, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Pipeline options that send a job here."""
        return {"dask_client_address": self.address}


@contextmanager
def dask_cluster() -> Iterator[DaskCluster]:
    """Start the cluster on free ports; stop it at the end."""
    with server_folder("dask") as folder:
        file = folder / "scheduler.json"
        scheduler = _process(folder, "scheduler", "--port", "0", "--scheduler-file", str(file))
        scheduler.ready = lambda: _told(file)
        workers = tuple(_worker(folder, file, number) for number in range(WORKERS))
        try:
            scheduler.start()
            for worker in workers:
                worker.start()
            yield DaskCluster(json.loads(file.read_text())["address"], workers)
        finally:
            for process in (*workers, scheduler):
                process.stop()


def _told(file: Path) -> None:
    json.loads(file.read_text())


def _worker(folder: Path, file: Path, number: int) -> ServerProcess:
    worker = _process(
        folder, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny",
        "--local-directory", str(folder), name=f"worker-{number}",
    )  # fmt: skip

    def ready() -> None:
        assert "Registered to" in worker.log.read_text()

    worker.ready = ready
    return worker


def _process(folder: Path, kind: str, *options: str, name: str = "") -> ServerProcess:
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options, "--no-dashboard"]
    log = folder / f"{name or kind}.log"
    return ServerProcess(command, log, lambda: None, stop_signal=signal.SIGTERM)
