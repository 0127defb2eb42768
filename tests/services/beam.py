"""Beam's local job service and a pool of EXTERNAL workers, each a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.process import ServerProcess, free_port, server_folder


@dataclass(frozen=True)
class BeamServices:
    """What a PortableRunner needs, and the processes behind it."""

    job_port: int
    pool_port: int
    jobs: ServerProcess
    pool: ServerProcess

    @property
    def options(self) -> dict[str, Any]:
        """Pipeline options that send a job here."""
        return {
            "job_endpoint": f"localhost:{self.job_port}",
            "environment_type": "EXTERNAL",
            "environment_config": f"localhost:{self.pool_port}",
        }


@contextmanager
def beam_services() -> Iterator[BeamServices]:
    """Start both on free ports; stop them, and with the pool its workers, at the end."""
    with server_folder("beam") as folder:
        job_port, pool_port = free_port(), free_port()
        jobs = _process(
            folder, job_port, "portability.local_job_service_main", "--port", "--staging_dir",
            str(folder / "staging"),
        )  # fmt: skip
        pool = _process(folder, pool_port, "worker.worker_pool_main", "--service_port")
        pool.stop_signal = signal.SIGINT  # ends its workers too
        try:
            jobs.start()
            pool.start()
            yield BeamServices(job_port, pool_port, jobs, pool)
        finally:
            jobs.stop()
            pool.stop()


def _process(folder: Path, port: int, module: str, option: str, *more: str) -> ServerProcess:
    # The pool starts its workers as "python", whichever comes first.
    path = f"PATH={Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    module = f"apache_beam.runners.{module}"
    command = ["env", path, sys.executable, "-m", module, option, str(port), *more]

    def ready() -> None:
        socket.create_connection(("localhost", port), 1).close()

    return ServerProcess(command, folder / f"{port}.log", ready)
