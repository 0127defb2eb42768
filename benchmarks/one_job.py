"""One job in a process of its own, for `sections.growth`: prints seconds and peak memory as JSON.

No torch here, so that what is measured is what a worker holds.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from feast_anchor.onnx_export.bundle import Bundle

from .events import run_pipeline


def main(bundle: str, folder: str, users: str, *questions: str) -> None:
    """Run the job over the tables in `folder`/tables: `python -m benchmarks.one_job` and these."""
    opened, tables, out = Bundle.open(bundle), Path(folder) / "tables", Path(folder) / "run"
    before, start = peak_mib(), time.perf_counter()
    run_pipeline(opened, questions, tables, out, int(users))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(), "start_mib": before}))


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB.

    Linux hands the parent's peak on to `getrusage`, so the program's own is read where it stands.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    main(*sys.argv[1:])
