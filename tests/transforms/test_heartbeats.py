from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from feast_anchor.onnx_export.errors import RunError
from feast_anchor.transforms.heartbeats import Watch, beating, watched

WORKER = """
import sys, time
from feast_anchor.transforms.heartbeats import beating
with beating(sys.argv[1], "scoring-3"):
    print("at work", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def worker(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A process that is at work for some seconds."""
    command = [sys.executable, "-c", WORKER, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"at work\n"
    return process


def impatient(watch: Watch, dead: float = 60, idle: float = 60) -> Watch:
    """The same watch with other limits, seconds."""
    watch.dead_seconds, watch.idle_seconds = dead, idle
    return watch


def test_a_killed_worker_is_missed(tmp_path: Path) -> None:
    """A file that no longer changes says which element its worker was at."""
    with watched(tmp_path / "hearts-run-one") as watch:
        process = worker(tmp_path / "hearts-run-one", 60)
        assert impatient(watch, dead=2.5).trouble() is None
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while (trouble := watch.trouble()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
    assert trouble == "a worker died: no sign of life for 2.5 s from scoring-3"


def test_a_worker_that_beats_is_alive(tmp_path: Path) -> None:
    """Work on one element may take far longer than the limit."""
    with watched(tmp_path / "hearts-run-one") as watch:
        impatient(watch, dead=1.8)
        with beating(str(tmp_path / "hearts-run-one"), "scoring-0"):
            for _ in range(40):
                assert watch.trouble() is None
                time.sleep(0.1)
        assert watch.trouble() is None  # what is done is not missed


def test_a_worker_that_raises_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Its error reaches the driver in Beam's own way."""
    folder = tmp_path / "hearts-run-one"
    with watched(folder) as watch:
        with pytest.raises(ValueError, match="bad"), beating(str(folder), "reading-0"):
            raise ValueError("bad")
        assert not list(folder.iterdir())
        assert impatient(watch, dead=0).trouble() is None


def test_nobody_at_work_is_noticed(tmp_path: Path) -> None:
    """A worker may also die between two elements."""
    with watched(tmp_path / "hearts-run-one") as watch:
        assert impatient(watch, idle=0.2).trouble() is None
        time.sleep(0.3)
        assert watch.trouble() == "no worker has been at work for 0.2 s"


def test_a_worker_ends_when_its_driver_has_gone(tmp_path: Path) -> None:
    """Another attempt takes the folder of the one before away, and with it its workers."""
    with watched(tmp_path / "hearts-run-one"):
        process = worker(tmp_path / "hearts-run-one", 60)
        with watched(tmp_path / "hearts-run-two"):
            assert not (tmp_path / "hearts-run-one").exists()
            assert process.wait(10) == 1
    assert not list(tmp_path.iterdir())


def test_a_worker_without_its_drivers_folder_refuses_to_work(tmp_path: Path) -> None:
    """It is another attempt's, or cannot see the driver's disks."""
    with (
        pytest.raises(RunError, match="scoring-1: .*hearts.* is not there: its driver is gone"),
        beating(str(tmp_path / "hearts"), "scoring-1"),
    ):
        pass
