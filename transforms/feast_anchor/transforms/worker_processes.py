"""FnApiRunner's worker processes (`direct_running_mode: multi_processing`), watched.

Beam waits for the answer of a killed worker for ever. Here the end of a worker answers whatever it
was asked, with an error, and takes its siblings along: a run that has lost a worker is over, and
what its shards have finished is kept. The state of Beam's that this needs is not public; it is
touched in this module alone.

Importing this module is what makes Beam start workers this way.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any
from weakref import WeakKeyDictionary

import grpc
from apache_beam.portability import python_urns
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    endpoints_pb2,
)
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcServer,
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.worker.log_handler import LOGENTRY_TO_LOG_LEVEL_MAP
from apache_beam.utils import thread_pool_executor
from google.protobuf import text_format

log = logging.getLogger(__name__)

DIED = "a worker process died"
"""What the errors of a run begin with that has lost a worker."""

_COMMAND = [sys.executable, "-m", "feast_anchor.transforms.worker_main"]
_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 0.2
_TAIL = 2000  # characters of a dead worker's log that an error shows


class _Crew:
    """The workers of one pipeline; the first to die decides why all of them end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[WatchedWorker] = []
        self.reason: str | None = None

    def add(self, worker: WatchedWorker) -> None:
        with self._lock:
            self._workers.append(worker)

    def end(self, reason: str) -> None:
        with self._lock:
            if self.reason is None:
                self.reason = reason
                for worker in self._workers:
                    worker.kill()


_crews: WeakKeyDictionary[GrpcServer, _Crew] = WeakKeyDictionary()


class _Logging(beam_fn_api_pb2_grpc.BeamFnLoggingServicer):
    """Warnings of a worker, as the driver's own."""

    def Logging(self, bundles: Iterable[Any], context: Any = None) -> Iterable[Any]:
        for bundle in bundles:
            for entry in bundle.log_entries:
                level = LOGENTRY_TO_LOG_LEVEL_MAP[entry.severity]
                log.log(level, "worker: %s", entry.message)
        return iter(())


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class WatchedWorker(GrpcWorkerHandler):
    """One worker process and the thread that waits for its end."""

    def __init__(self, command: bytes, state: Any, provision_info: Any, server: Any) -> None:
        super().__init__(state, provision_info, server)
        self._crew = _crews.setdefault(server, _Crew())
        self._closing, self._closed = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        """Start the process; it connects by itself."""
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, closed by stop_worker
        self._logging = grpc.server(thread_pool_executor.shared_unbounded_instance())
        port = self._logging.add_insecure_port("localhost:0")
        beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(_Logging(), self._logging)
        self._logging.start()
        environment = {
            **os.environ,
            "WORKER_ID": self.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": _service(self.control_address),
            "LOGGING_API_SERVICE_DESCRIPTOR": _service(f"localhost:{port}"),
        }
        self._process = subprocess.Popen(  # noqa: S603, the command is ours
            _COMMAND, stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, env=environment
        )
        self._crew.add(self)
        threading.Thread(target=self._watch, daemon=True).start()

    def kill(self) -> None:
        """End the process at once; what it was writing is not there for anybody."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Called by Beam when the pipeline is over, whichever way: from here on it may end."""
        self._closing.set()
        try:
            super().close()
        except grpc.RpcError:  # the connection broke with its process
            if self._crew.reason is None:
                raise
            self.stop_worker()

    def stop_worker(self) -> None:
        """Wait for the process, which was told that there is no more work."""
        self._closed.set()
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._logging.stop(0)
        self._log.close()

    def _watch(self) -> None:
        assert self._process is not None
        code = self._process.wait()
        if not self._closing.is_set():
            self._crew.end(f"{DIED} (exit code {code}){self._last_words()}")
        while not self._closed.wait(_ANSWER_SECONDS):  # Beam may ask it more until then
            self._answer(str(self._crew.reason))
            self._swallow()

    def _last_words(self) -> str:
        with suppress(ValueError):  # closed
            self._log.seek(0)
            text = self._log.read().decode("utf-8", "replace").strip()[-_TAIL:]
            return f"; the end of its log:\n{text}" if text else ""
        return ""

    def _answer(self, error: str) -> None:
        for name, future in list(self.control_conn._futures_by_id.items()):
            if not future.is_done():
                response = beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=error)
                future.set(response)

    def _swallow(self) -> None:
        """Whoever sends to the process waits for room in a queue that nobody empties now."""
        with suppress(queue.Empty):
            while True:
                self.data_conn._to_send.get(block=False)


def _service(address: str) -> str:
    return str(text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=address)))
