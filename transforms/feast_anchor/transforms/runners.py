"""Beam's runners by name, and what each can do here.

Two shuffles bring a user's events together. "local": the driver partitions them on its disk, and
workers are only sent shard numbers; they must see the driver's files. "beam": the runner's own
GroupByKey, for engines with a real shuffle. FnApiRunner keeps its shuffle in memory, and DaskRunner
silently loses elements of a pipeline with more than one branch, so both get the local one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from feast_anchor.onnx_export.errors import SpecError

Shuffle = Literal["local", "beam"]

_DASK = ("dask", "DaskRunner")
_WATCHED = ("PortableRunner",)  # Beam's local job service waits for a dead worker for ever
_LOCAL = ("FnApiRunner", "DirectRunner", "InteractiveRunner", *_DASK)


def shuffle_of(runner: str, wanted: Literal["auto", "local", "beam"]) -> Shuffle:
    """The shuffle for a runner. Raises `SpecError` where the wanted one loses rows."""
    if wanted == "beam" and runner in _DASK:
        raise SpecError(
            f"shuffle='beam' with runner={runner!r}: Beam's DaskRunner silently loses rows of a "
            "pipeline with several branches; use shuffle: local, on disks that all workers see"
        )
    if wanted != "auto":
        return wanted
    return "local" if runner in _LOCAL else "beam"


def beam_runner(name: str) -> Any:
    """What `beam.Pipeline(runner=...)` is given for a runner's name."""
    if name not in _DASK:
        return name
    try:
        from apache_beam.runners.dask.dask_runner import DaskRunner
    except ImportError as error:
        raise SpecError(
            f"runner={name!r} needs Dask's scheduler: pip install 'dask[distributed]' ({error})"
        ) from error
    return DaskRunner()


def is_watched(runner: str) -> bool:
    """Whether workers have to show that they live, because nobody else notices when one dies."""
    return runner in _WATCHED


def pipeline_options(runner: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Beam's options with the defaults that a runner needs to be right or worth its while."""
    defaults: dict[str, Any] = {}
    if runner in _DASK:
        defaults["dask_partition_size"] = 1  # the default puts all shards into one process
    if options.get("direct_running_mode") == "multi_processing":
        defaults["direct_num_workers"] = 0  # one per core; Beam's own default is a single one
    return {**defaults, **options}


def workers_of(options: Mapping[str, Any]) -> int:
    """Processes on this machine that share a job."""
    if options.get("direct_running_mode") != "multi_processing":
        return 1
    return int(options.get("direct_num_workers") or 0) or os.cpu_count() or 1


def threads_of(threads: int | None, runner: str, options: Mapping[str, Any]) -> int | None:
    """Scoring threads per worker: cores are divided between the processes on this machine.

    Dask runs as many elements at once as its workers have cores.
    """
    if threads is None and runner in _DASK:
        return 1
    if threads is not None or workers_of(options) == 1:
        return threads
    return max(1, (os.cpu_count() or 1) // workers_of(options))
