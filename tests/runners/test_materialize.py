"""`feast materialize` with a runner's settings in feature_store.yaml, as an operator runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore

from services.beam import beam_services
from shop import END, START, make_tables, offline_rows, online_rows, write_repo, write_tables

FEAST = str(Path(sys.executable).with_name("feast"))
USERS = [f"u{number}" for number in range(20)]


def materialized(
    repo: Path, bundle: Path, settings: Mapping[str, Any]
) -> tuple[pd.DataFrame, dict[str, bytes], str]:
    """Offline rows, online rows and the output of a materialize with some engine settings."""
    repo.mkdir()
    write_repo(repo)
    with (repo / "feature_store.yaml").open("a", encoding="utf-8") as file:
        for name, value in settings.items():
            file.write(f"  {name}: {json.dumps(value)}\n")
    write_tables(repo / "tables", make_tables())
    shutil.copytree(bundle, repo / "model")
    feast(repo, "apply")
    said = feast(repo, "materialize", f"{START:%Y-%m-%dT%H:%M:%S}", f"{END:%Y-%m-%dT%H:%M:%S}")
    return offline_rows(repo), online_rows(FeatureStore(str(repo)), USERS), said


def feast(repo: Path, *arguments: str) -> str:
    """Run Feast's command line, which must succeed; returns what it said."""
    tests = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [FEAST, *arguments],
        cwd=repo,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, shop_bundle: Path
) -> tuple[pd.DataFrame, dict[str, bytes]]:
    """Rows of a materialize in one process."""
    rows, served, _ = materialized(tmp_path_factory.mktemp("one") / "repo", shop_bundle, {})
    assert served.keys() == set(USERS)
    return rows, served


def check(
    found: tuple[pd.DataFrame, dict[str, bytes], str],
    expected: tuple[pd.DataFrame, dict[str, bytes]],
) -> None:
    """The same rows offline and online, and nothing of Beam's on the terminal."""
    rows, served, said = found
    pd.testing.assert_frame_equal(rows, expected[0])
    assert served == expected[1]
    assert "apache_beam" not in said
    assert "apitools" not in said
    assert "severity" not in said  # of log entries that came from workers


def test_materialize_with_worker_processes(
    tmp_path: Path, shop_bundle: Path, expected: tuple[pd.DataFrame, dict[str, bytes]]
) -> None:
    """Two worker processes fill both stores as one process does."""
    options = {"direct_running_mode": "multi_processing", "direct_num_workers": 2}
    settings = {"options": options, "shuffle": "local"}
    check(materialized(tmp_path / "repo", shop_bundle, settings), expected)


def test_materialize_with_external_workers(
    tmp_path: Path, shop_bundle: Path, expected: tuple[pd.DataFrame, dict[str, bytes]]
) -> None:
    """External workers, which never saw the repo's definitions, fill both stores alike."""
    with beam_services() as services:
        settings = {"runner": "PortableRunner", "options": services.options}
        check(materialized(tmp_path / "repo", shop_bundle, settings), expected)
