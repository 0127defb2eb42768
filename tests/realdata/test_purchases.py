"""The real purchases through the shipped feature repo: point-in-time joins of 1,000 rows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from feast_anchor.plugin.demo import CUT, make_tables
from feast_anchor.plugin.demo.run import MODALITIES, VIEW
from feast_anchor.plugin.demo.tables import START, table_path
from feast_anchor.plugin.train import load_modalities
from shop import export_random

SHIPPED = Path(__file__).resolve().parents[2] / "feature_repo"
FEAST = str(Path(sys.executable).with_name("feast"))
MODULES = ("entities", "events", "ranking", "scenarios")
HOUSEHOLDS = 150
ROWS = 1_000


@pytest.fixture
def repo(tmp_path: Path, data_dir: Path) -> Path:
    """The shipped repo over some real households, with a model of random weights."""
    folder = tmp_path / "repo"
    folder.mkdir()
    for path in SHIPPED.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    make_tables(folder / "data", data_dir / "complete_journey")
    labels = pq.read_table(table_path(folder / "data", "labels")).to_pandas()
    kept = set(labels["household_id"].iloc[:HOUSEHOLDS])
    for path in (folder / "data").glob("*.parquet"):
        table = pq.read_table(path)
        mask = [household in kept for household in table["household_id"].to_pylist()]
        pq.write_table(table.filter(mask), path)
    for name in MODULES:
        sys.modules.pop(name, None)
    specs = [m.declaration().as_spec() for m in load_modalities(folder, MODALITIES)]
    export_random(folder / "models" / "shopper", specs, "household")
    return folder


def feast(repo: Path, *arguments: str) -> None:
    """Run Feast's command line in the repo."""
    subprocess.run([FEAST, *arguments], cwd=repo, check=True, capture_output=True, timeout=600)


def stamp(moment: datetime) -> str:
    """A time as the command line takes it."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}"


def test_a_thousand_joined_rows_know_only_their_past(repo: Path) -> None:
    """By command line: apply, materialize; every joined vector is finite, unit and of the past."""
    feast(repo, "apply")
    feast(repo, "materialize", stamp(START), stamp(CUT))
    sink = pq.read_table(repo / "data" / VIEW).to_pandas()
    first = sink.groupby("household_id")["event_timestamp"].min()
    rng = np.random.default_rng(0)
    asked = first.iloc[rng.integers(0, len(first), ROWS)].reset_index()
    asked["event_timestamp"] += (CUT - asked["event_timestamp"]) * rng.random(ROWS)
    features = [f"{VIEW}:{name}" for name in ("coupon_redeemer", "churn", "general", "history_end")]
    store = FeatureStore(str(repo))
    joined = store.get_historical_features(entity_df=asked, features=features).to_df()
    assert len(joined) == ROWS
    assert (pd.to_datetime(joined["history_end"], utc=True) < joined["event_timestamp"]).all()
    events = pq.read_table(table_path(repo / "data", "purchases")).to_pandas()
    newest = events.groupby("household_id")["event_timestamp"].max()
    assert (newest.loc[joined["household_id"]].to_numpy() > joined["history_end"].to_numpy()).any()
    for name in ("coupon_redeemer", "churn", "general"):
        vectors = np.stack(joined[name].tolist())
        assert vectors.shape == (ROWS, 128)
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
