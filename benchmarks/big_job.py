"""One large job in a process of its own, for `sections.scale`: prints its stages as JSON.

No torch here, so that what is measured is what a worker holds.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.transforms.manifests import finished
from feast_anchor.transforms.pipeline import run_job

from .market import market_job
from .one_job import peak_mib


class _Stages:
    """Told by the pipeline what it does; keeps when each stage began and the memory until then."""

    def __init__(self) -> None:
        self._began: list[tuple[str, float, float, float]] = []

    def at(self, words: str) -> None:
        """A report of the pipeline: the stage is what stands before the comma."""
        stage = words.partition(",")[0]
        if not self._began or self._began[-1][0] != stage:
            now, busy = time.perf_counter(), time.process_time()
            self._began.append((stage, now, busy, peak_mib()))

    def as_json(self) -> list[dict[str, Any]]:
        """Seconds of each stage, those of all cores, and the peak of the process when it ended."""
        self.at("end")
        return [
            {"stage": stage, "seconds": end - start, "busy_s": until - busy, "peak_mib": peak}
            for (stage, start, busy, _), (_, end, until, peak) in zip(
                self._began, self._began[1:], strict=False
            )
        ]


def main(bundle: str, folder: str, users: str, *questions: str) -> None:
    """Run the job over `folder`/tables: `python -m benchmarks.big_job` and these."""
    logging.disable(logging.WARNING)
    opened, out = Bundle.open(bundle), Path(folder) / "run"
    shutil.rmtree(out, ignore_errors=True)
    job = market_job(opened, questions, Path(folder) / "tables", out, int(users))
    stages, before, start = _Stages(), peak_mib(), time.perf_counter()
    stages.at("reading events")
    run_job(job, online=None, report=stages.at)
    seconds = time.perf_counter() - start
    done = [finished(job.views[0], shard) for shard in range(job.shards)]
    assert all(one is not None and one.books.balances() for one in done)
    found = {
        "seconds": seconds,
        "stages": stages.as_json(),
        "peak_mib": peak_mib(),
        "start_mib": before,
        "shards": job.shards,
        "events": sum(one.events_in for one in done if one),
        "rejected": sum(one.events_rejected for one in done if one),
        "users": sum(one.users_in for one in done if one),
        "users_rejected": sum(one.users_rejected for one in done if one),
        "rows": sum(one.rows_offline for one in done if one),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
