"""The same job on every runner that is tested here: the same rows, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, SparkRunnerOptions

from feast_anchor.onnx_export.errors import RunError
from feast_anchor.transforms import heartbeats
from feast_anchor.transforms.pipeline import run_job
from feast_anchor.transforms.watched import WatchedPipeline
from runners.jobs import rows, shop_job
from runners.processes import children, is_alive
from services.beam import BeamServices, beam_services
from services.dask import DaskCluster, dask_cluster

MULTI: dict[str, Any] = {"direct_running_mode": "multi_processing", "direct_num_workers": 2}
SHUFFLES = ("local", "beam")
MANY = 400  # users, so that a shard takes a moment
_PATIENCE_SECONDS = 60.0

Shuffle = Literal["local", "beam"]


@pytest.fixture(scope="module")
def beam_cluster() -> Iterator[BeamServices]:
    """A job service and its workers, for the tests that leave it as it was."""
    with beam_services() as services:
        yield services


@pytest.fixture
def dask() -> Iterator[DaskCluster]:
    """A Dask cluster of two workers."""
    if find_spec("distributed") is None:
        reason = "no Dask scheduler: pip install 'dask[distributed]', or the extra dask"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with dask_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, shop_bundle: Path) -> pd.DataFrame:
    """Rows of an undisturbed run in one process, which everything is compared with."""
    return result(tmp_path_factory.mktemp("one"), shop_bundle, "FnApiRunner", {})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, shop_bundle: Path) -> pd.DataFrame:
    """The same of more users."""
    return result(tmp_path_factory.mktemp("many"), shop_bundle, "FnApiRunner", {}, users=MANY)


def result(
    folder: Path,
    bundle: Path,
    runner: str,
    options: dict[str, Any],
    shuffle: Shuffle = "local",
    users: int = 40,
) -> pd.DataFrame:
    """What a run of the shop's job leaves."""
    run_job(shop_job(folder, bundle, shuffle, users), None, runner, options)
    return rows(folder)


def test_both_shuffles_in_one_process(
    tmp_path: Path, shop_bundle: Path, one_process: pd.DataFrame
) -> None:
    """Beam's shuffle gives the rows of the local one."""
    assert len(one_process) > 40
    beam = result(tmp_path, shop_bundle, "FnApiRunner", {}, "beam")
    pd.testing.assert_frame_equal(beam, one_process)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_worker_processes_of_this_machine(
    tmp_path: Path, shop_bundle: Path, one_process: pd.DataFrame, shuffle: Shuffle
) -> None:
    """Two worker processes give the rows of one process, and are gone afterwards."""
    found = result(tmp_path, shop_bundle, "FnApiRunner", MULTI, shuffle)
    pd.testing.assert_frame_equal(found, one_process)
    assert not children(os.getpid(), "worker_main")


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_job_service_and_external_workers(
    tmp_path: Path,
    shop_bundle: Path,
    one_process: pd.DataFrame,
    beam_cluster: BeamServices,
    shuffle: Shuffle,
) -> None:
    """What a job service sends to workers that never saw the driver gives the same rows."""
    found = result(tmp_path, shop_bundle, "PortableRunner", beam_cluster.options, shuffle)
    pd.testing.assert_frame_equal(found, one_process)


def test_a_pool_that_is_not_there_fails_the_run(tmp_path: Path, shop_bundle: Path) -> None:
    """What goes wrong at the job service comes back in words, not as a hang."""
    job = shop_job(tmp_path, shop_bundle)
    with beam_services() as services:
        services.pool.kill()
        with pytest.raises(RuntimeError, match="StatusCode.UNAVAILABLE|Connection refused"):
            run_job(job, None, "PortableRunner", services.options)


def test_dask_workers(
    tmp_path: Path, shop_bundle: Path, one_process: pd.DataFrame, dask: DaskCluster
) -> None:
    """Two Dask workers give the rows of one process."""
    found = result(tmp_path, shop_bundle, "dask", dask.options)
    pd.testing.assert_frame_equal(found, one_process)


def test_dask_gives_a_dead_workers_shards_to_another(
    tmp_path: Path, shop_bundle: Path, many: pd.DataFrame, dask: DaskCluster
) -> None:
    """With a Dask worker killed amid scoring, the run ends with the undisturbed rows."""
    with once_scoring(tmp_path, dask.workers[0].kill):
        found = result(tmp_path, shop_bundle, "dask", dask.options, users=MANY)
    pd.testing.assert_frame_equal(found, many)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_killed_worker_process_fails_the_run_and_a_rerun_resumes(
    tmp_path: Path, shop_bundle: Path, many: pd.DataFrame, shuffle: Shuffle
) -> None:
    """The driver notices at once, ends the other worker, and loses and repeats nothing."""
    with once_scoring(tmp_path, lambda: kill_one(os.getpid(), "worker_main")) as killed:
        with pytest.raises(RunError, match="a worker process died .*to resume"):
            result(tmp_path, shop_bundle, "FnApiRunner", MULTI, shuffle, MANY)
        assert time.monotonic() - killed[0] < 20
    assert not children(os.getpid(), "worker_main")
    assert not (tmp_path / "sinks" / "taste_v1").exists()  # nothing of it can be read
    found = result(tmp_path, shop_bundle, "FnApiRunner", MULTI, shuffle, MANY)
    pd.testing.assert_frame_equal(found, many)


def test_a_killed_external_worker_fails_the_run_and_a_rerun_resumes(
    tmp_path: Path,
    shop_bundle: Path,
    many: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job service would wait for it for ever; the driver misses its signs of life."""
    monkeypatch.setattr(heartbeats.Watch, "dead_seconds", 4.0)
    with beam_services() as services:
        pool = services.pool.pid
        with once_scoring(tmp_path, lambda: kill_one(pool, "SdkHarness")) as killed:
            with pytest.raises(RunError, match="a worker died: .* from scoring-.*to resume"):
                result(tmp_path, shop_bundle, "PortableRunner", services.options, users=MANY)
            assert time.monotonic() - killed[0] < 15
        found = result(tmp_path, shop_bundle, "PortableRunner", services.options, users=MANY)
    pd.testing.assert_frame_equal(found, many)
    assert not list((tmp_path / "state").glob("hearts-*"))


_DRIVER = """
import json, sys
from pathlib import Path
from feast_anchor.transforms.pipeline import run_job
from runners.jobs import shop_job
folder, bundle, options = sys.argv[1:]
job = shop_job(Path(folder), Path(bundle), users=400)
run_job(job, None, "FnApiRunner", json.loads(options))
"""


def test_workers_end_with_a_killed_driver(
    tmp_path: Path, shop_bundle: Path, many: pd.DataFrame
) -> None:
    """They would work beside those of the next attempt, which gives the undisturbed rows."""
    tests = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(tmp_path), str(shop_bundle), json.dumps(MULTI)],
        env={**os.environ, "PYTHONPATH": path},
    )
    with once_scoring(tmp_path, driver.kill):
        workers = wait_for(lambda: children(driver.pid, "worker_main"))
        driver.wait(_PATIENCE_SECONDS)
    wait_for(lambda: not any(map(is_alive, workers)))
    found = result(tmp_path, shop_bundle, "FnApiRunner", {}, users=MANY)
    pd.testing.assert_frame_equal(found, many)


@pytest.mark.parametrize(
    ("runner", "options", "variable"),
    [
        ("FlinkRunner", "flink_job_server_jar", "FEAST_ANCHOR_FLINK_JAR"),
        ("SparkRunner", "spark_job_server_jar", "FEAST_ANCHOR_SPARK_JAR"),
    ],
)
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_job_servers_of_beam(
    tmp_path: Path,
    shop_bundle: Path,
    one_process: pd.DataFrame,
    runner: str,
    options: str,
    variable: str,
    shuffle: Shuffle,
) -> None:
    """Flink and Spark, each in Beam's job server, give the rows of one process."""
    jar = os.environ.get(variable)
    if not jar:
        pytest.skip(f"{variable} names no jar: see docs/runners.md for where it comes from")
    settings = {options: jar, "environment_type": "LOOPBACK"}
    found = result(tmp_path, shop_bundle, runner, settings, shuffle)
    pd.testing.assert_frame_equal(found, one_process)


def test_options_reach_beam() -> None:
    """What stands under `options` is what Beam's own runners are given."""
    flink = WatchedPipeline("FlinkRunner", {"flink_master": "host:1", "parallelism": 3}, None)
    seen = flink.options.view_as(FlinkRunnerOptions)
    assert seen.flink_master == "host:1"
    spark = WatchedPipeline("SparkRunner", {"spark_master_url": "spark://host:1"}, None)
    assert spark.options.view_as(SparkRunnerOptions).spark_master_url == "spark://host:1"


def kill_one(parent: int, name: str) -> None:
    """SIGKILL a worker process, which must not have loaded torch."""
    worker = children(parent, name)[0]
    assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text()
    os.kill(worker, signal.SIGKILL)


T = TypeVar("T")


def wait_for(ask: Callable[[], T]) -> T:
    """The first answer that is true."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (answer := ask()):
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.01)
    return answer


class once_scoring:
    """Does something once, as soon as the first shard is done; gives when that was."""

    def __init__(self, folder: Path, action: Callable[[], None]) -> None:
        self._folder, self._action = folder, action
        self._when: list[float] = []
        self._thread = threading.Thread(target=self._wait)

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not list((self._folder / "state").glob("run-*/shard-*.json")):
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)
        self._action()
        self._when.append(time.monotonic())

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self._when

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        assert self._when, "no shard was ever done, or the action failed"
