"""`feast materialize` killed with SIGKILL and run again, as an operator would see it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from feast import FeatureStore

from shop import END, START, make_tables, offline_rows, online_rows, write_repo, write_tables

FEAST = str(Path(sys.executable).with_name("feast"))
WINDOW = ("materialize", f"{START:%Y-%m-%dT%H:%M:%S}", f"{END:%Y-%m-%dT%H:%M:%S}")
USERS = 400
SHARDS = 12
_PATIENCE_SECONDS = 120.0


def feast(repo: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start Feast's command line in a repo; its output goes to a log beside it."""
    tests = str(Path(__file__).resolve().parents[1])
    with (repo / "feast.log").open("ab") as log:
        return subprocess.Popen(
            [FEAST, *arguments],
            cwd=repo,
            env={**os.environ, "PYTHONPATH": tests},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(repo: Path, *arguments: str) -> None:
    """Run Feast's command line to its end; it must succeed."""
    code = feast(repo, *arguments).wait(timeout=600)
    assert code == 0, (repo / "feast.log").read_text("utf-8", "replace")[-3000:]


def finished_shards(repo: Path) -> int:
    """How many shards of the repo's runs have their manifest."""
    return len(list((repo / "state").glob("run-*/shard-*.json")))


def kill_when(repo: Path, shards: int) -> int:
    """Kill a materialize with SIGKILL once so many shards are done; returns how many were."""
    process = feast(repo, *WINDOW)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while finished_shards(repo) < shards or not (repo / "anchor.db").exists():
        assert process.poll() is None, (repo / "feast.log").read_text("utf-8", "replace")[-3000:]
        assert time.monotonic() < deadline, "materialize never got as far as this test wants"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return finished_shards(repo)


def new_repo(folder: Path, bundle: Path) -> Path:
    """An applied repo with its own copy of the model."""
    folder.mkdir()
    write_repo(folder)
    settings = folder / "feature_store.yaml"
    settings.write_text(settings.read_text("utf-8").replace("shards: 4", f"shards: {SHARDS}"))
    write_tables(folder / "tables", make_tables(USERS))
    shutil.copytree(bundle, folder / "model")
    finish(folder, "apply")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shop_bundle: Path) -> Path:
    """A repo whose materialize ran through in one go."""
    repo = new_repo(tmp_path_factory.mktemp("undisturbed") / "repo", shop_bundle)
    finish(repo, *WINDOW)
    return repo


def served(repo: Path) -> dict[str, bytes]:
    """Every user's vector in the online store."""
    return online_rows(FeatureStore(str(repo)), [f"u{n}" for n in range(USERS)])


@pytest.mark.parametrize("shards", [0, 1, SHARDS // 2])
def test_a_killed_run_continues_where_it_stopped(
    tmp_path: Path, undisturbed: Path, shop_bundle: Path, shards: int
) -> None:
    """Killed at the start, after a shard or halfway, a rerun ends with the undisturbed rows."""
    repo = new_repo(tmp_path / "repo", shop_bundle)
    done = kill_when(repo, shards)
    assert shards <= done < SHARDS
    kept = {path: path.stat().st_mtime_ns for path in (repo / "state").glob("run-*/shard-*.json")}
    finish(repo, *WINDOW)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not computed again
    rows = offline_rows(repo)
    pd.testing.assert_frame_equal(rows, offline_rows(undisturbed))
    assert not rows.duplicated(["shopper_id", "event_timestamp"]).any()
    assert len(served(repo)) == USERS
    assert served(repo) == served(undisturbed)
    assert not list(repo.rglob("*.tmp"))
