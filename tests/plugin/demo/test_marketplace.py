from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.demo import CUT, SCENARIO_LABELS, SCHEMAS, table_path
from feast_anchor.plugin.demo.marketplace import CHUNK, DEPARTMENTS, generate, season

EVENT_TABLES = ("purchases", "redemptions", "mailings", "demographics")


def read(folder: Path, name: str) -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(table_path(folder, name)).to_pandas()
    return frame


@pytest.mark.parametrize("name", EVENT_TABLES)
def test_the_same_seed_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    """Two runs with one seed agree in every value and row order; another seed does not."""
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / folder, users=150, seed=seed)
    first, again, other = (pq.read_table(table_path(tmp_path / f, name)) for f in "abc")
    # pandas treats NaN as equal to itself, Arrow does not.
    pd.testing.assert_frame_equal(first.to_pandas(), again.to_pandas())
    assert not first.to_pandas().equals(other.to_pandas())


@pytest.mark.parametrize("name", SCHEMAS)
def test_tables_have_the_declared_schema(marketplace: Path, name: str) -> None:
    """Every generated or derived file has exactly its schema, so one feature repo fits."""
    assert pq.read_schema(table_path(marketplace, name)).equals(SCHEMAS[name])


def test_broken_rows_are_there_and_rare(marketplace: Path) -> None:
    """Each fault occurs at least five times, all faults together in about one row of 1,000."""
    rows = pq.read_table(table_path(marketplace, "purchases"))
    faults = [
        pc.is_null(rows["household_id"]),
        pc.is_null(rows["event_timestamp"]),
        pc.is_nan(rows["sales_value"]),
        pc.and_(pc.is_null(rows["product_type"]), pc.is_null(rows["department"])),
    ]
    counts = [pc.sum(fault).as_py() for fault in faults]
    assert min(counts) >= 5
    assert 0.0005 < sum(counts) / rows.num_rows < 0.002
    assert pc.sum(pc.is_null(rows["basket_id"])).as_py() == 0


def test_rows_are_not_sorted_by_household_or_time(marketplace: Path) -> None:
    """Row order carries nothing: about half of all neighbours are out of order."""
    rows = read(marketplace, "purchases").dropna()
    for column in ("household_id", "event_timestamp"):
        values = rows[column].to_numpy()
        assert 0.4 < np.mean(values[1:] < values[:-1]) < 0.6


def test_the_mean_number_of_events_is_as_asked(tmp_path: Path) -> None:
    """`events_per_user` is the mean number of purchase rows per household."""
    generate(tmp_path, users=1000, events_per_user=12.0)
    assert pq.read_metadata(table_path(tmp_path, "purchases")).num_rows == pytest.approx(
        12_000, rel=0.05
    )


def test_every_event_lies_in_the_year(marketplace: Path) -> None:
    """Events cover the calendar year 2017 in UTC and nothing beyond it."""
    for name in ("purchases", "redemptions", "mailings"):
        times = read(marketplace, name)["event_timestamp"].dropna()
        assert times.min() >= pd.Timestamp("2017-01-01", tz="UTC")
        assert times.max() < pd.Timestamp("2018-01-01", tz="UTC")


def test_departments_have_seasons(marketplace: Path) -> None:
    """Shares of demand follow the calendar: produce peaks in summer, pastry in December."""
    rows = read(marketplace, "purchases").dropna()
    months = rows["event_timestamp"].dt.month
    share = pd.crosstab(months, rows["department"], normalize="index")
    assert share.loc[[6, 7, 8], "PRODUCE"].mean() > 1.6 * share.loc[[1, 2, 12], "PRODUCE"].mean()
    assert share.loc[[11, 12], "PASTRY"].mean() > 1.6 * share.loc[[5, 6, 7], "PASTRY"].mean()


def test_season_is_one_on_average() -> None:
    """Seasons move demand within the year and leave a department's yearly demand alone."""
    demand = season()
    assert demand.shape == (365, len(DEPARTMENTS))
    assert demand.min() > 0
    np.testing.assert_allclose(demand.mean(axis=0), 1.0, atol=1e-12)


def test_households_of_several_chunks_do_not_collide(tmp_path: Path) -> None:
    """Beyond one chunk, a basket still belongs to one household and files grow by row group."""
    generate(tmp_path, users=CHUNK + 1, events_per_user=3.0)
    rows = read(tmp_path, "purchases").dropna()
    assert rows.groupby("basket_id")["household_id"].nunique().max() == 1
    assert pq.read_metadata(table_path(tmp_path, "purchases")).num_row_groups == 2
    assert rows["household_id"].nunique() > 0.5 * CHUNK


@pytest.mark.parametrize("wrong", [{"users": 0}, {"events_per_user": 0.0}])
def test_an_empty_marketplace_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """No users or no events is a mistake, said before a file is written."""
    with pytest.raises(SpecError, match="expected at least one user"):
        generate(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scenario", SCENARIO_LABELS)
def test_no_label_is_nearly_constant(marketplace: Path, scenario: str) -> None:
    """Each scenario has between 5 % and 95 % positive households, enough to learn from."""
    assert 0.05 < read(marketplace, "labels")[scenario].mean() < 0.95


def test_history_predicts_the_future_but_not_perfectly(marketplace: Path) -> None:
    """Department counts before the cut rank future produce buyers well, with room to improve."""
    labels = read(marketplace, "labels").set_index("household_id")
    rows = read(marketplace, "purchases").dropna()
    past = rows[rows["event_timestamp"] < CUT]
    counts = pd.crosstab(past["household_id"], past["department"]).reindex(labels.index)
    features = np.log1p(counts.fillna(0).to_numpy())
    wanted, test = labels["fresh_produce"].to_numpy(), labels["held_out"].to_numpy()
    model = LogisticRegression(C=0.1, max_iter=1000).fit(features[~test], wanted[~test])
    auc = roc_auc_score(wanted[test], model.predict_proba(features[test])[:, 1])
    assert 0.6 < auc < 0.95
