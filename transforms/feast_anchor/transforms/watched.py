"""Beam pipelines that come to an end: a dead worker fails the run and never leaves it waiting.

Local worker processes are ours, and we see them end. PortableRunner's leave signs of life that go
missing within half a minute. Dask, Flink and Spark give a dead worker's elements to another, or
fail by themselves.
"""

# No `from __future__ import annotations` here: Beam reads annotations of what it is given.

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from feast_anchor.onnx_export.errors import RunError

from .heartbeats import Watch, watched
from .quiet import quiet_beam
from .runners import beam_runner
from .worker_processes import DIED  # which also makes Beam start worker processes our way

_LOOK_SECONDS = 1.0
_UNWIND_SECONDS = 15.0  # for Beam's own threads to see that the job is over
_RESUME = "Finished shards are kept: run the same command again to resume"


class WatchedPipeline(beam.Pipeline):
    """A pipeline whose `run` returns when it is done and leaves nothing behind.

    Args:
        runner: name of the runner.
        settings: Beam's options.
        hearts: folder of the workers' signs of life, for runners that need them.
    """

    def __init__(self, runner: str, settings: Mapping[str, Any], hearts: str | None) -> None:
        options = PipelineOptions.from_dictionary(dict(settings))
        super().__init__(runner=beam_runner(runner), options=options)
        self._hearts = None if hearts is None else Path(hearts)

    def run(self, test_runner_api: bool | str = "AUTO") -> PipelineResult:
        """Run to the end. Raises RunError when a worker died, else what a worker raised."""
        with ExitStack() as until, _resumable():
            until.enter_context(quiet_beam())
            watch = until.enter_context(watched(self._hearts)) if self._hearts else None
            result = super().run(test_runner_api)
            client = getattr(result, "client", None)
            if client is not None:  # of Dask, with the cluster that it may have started
                until.callback(client.close)
            _wait(result, watch)
        return _Done()


class _Done(PipelineResult):
    def __init__(self) -> None:
        super().__init__(PipelineState.DONE)  # type: ignore[no-untyped-call]

    def wait_until_finish(self, duration: int | None = None) -> str:
        return str(self._state)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(DIED):
            raise
        raise RunError(f"{error}. {_RESUME}") from None


def _wait(result: PipelineResult, watch: Watch | None) -> None:
    if watch is None:
        result.wait_until_finish()
        return
    failure = list[BaseException]()
    waiting = threading.Thread(target=_attempt, args=(result.wait_until_finish, failure))
    waiting.daemon = True
    waiting.start()
    while waiting.is_alive():
        waiting.join(_LOOK_SECONDS)
        trouble = watch.trouble()
        if trouble is not None and waiting.is_alive():
            with suppress(Exception):  # the job service may be what is gone
                result.cancel()
            waiting.join(_UNWIND_SECONDS)
            raise RunError(f"{trouble}. {_RESUME}")
    if failure:
        raise failure[0]


def _attempt(work: Callable[[], Any], failure: list[BaseException]) -> None:
    try:
        work()
    except Exception as error:  # raised again by the thread that waits
        failure.append(error)
