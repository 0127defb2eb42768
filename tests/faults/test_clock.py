"""The clock is set back between two runs; Feast must still join the newer rows."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faults.attempt import Conditions
from faults.harness import USERS, VIEW, NewShop, Shop
from faults.judge import ALL_USERS, Undisturbed, judge, runs
from feast_anchor.transforms.job import CREATED_TIMESTAMP
from shop import END, UTC_STAMP, make_tables, write_tables

TWO_DAYS_BACK = Conditions(clock_days=-2)
KEY_AND_TEA = ("shopper_id", "tea")
ONLINE = "feast_anchor.plugin.online:FeastOnlineWriter.write"


def new_export(shop: Shop) -> None:
    """Write the tables anew with other orders of the same users."""
    write_tables(shop.path / "tables", make_tables(USERS, seed=7))


def rows_of(shop: Shop, run_id: str) -> pa.Table:
    """All rows of one run."""
    parts = sorted((shop.sink / f"run-{run_id}").glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def assert_second_run_is_joined(shop: Shop, first: str) -> None:
    """Assert that the run that came second is the one that a training set gets."""
    (second,) = {run.run_id for run in runs(shop)} - {first}
    newer, older = rows_of(shop, second), rows_of(shop, first)
    stamps = newer[CREATED_TIMESTAMP].to_pylist(), older[CREATED_TIMESTAMP].to_pylist()
    assert min(stamps[0]) > max(stamps[1])
    asked = pd.DataFrame({"shopper_id": ALL_USERS, "event_timestamp": [END] * USERS})
    joined = shop.store().get_historical_features(
        entity_df=asked, features=[f"{VIEW}:tea", f"{VIEW}:history_end"]
    )
    frame = joined.to_df()
    found = dict(zip(frame["shopper_id"], frame["tea"], strict=True))
    wanted = newer.filter(pc.equal(newer["event_timestamp"], pa.scalar(END, UTC_STAMP)))
    assert len(frame) == wanted.num_rows == USERS
    for user, vector in zip(*(wanted[name].to_pylist() for name in KEY_AND_TEA), strict=True):
        assert list(found[user]) == vector


def test_the_newer_run_wins_though_its_clock_is_behind(make_shop: NewShop) -> None:
    """Of two runs over one window Feast joins the one that was computed later."""
    shop = make_shop()
    shop.start().succeed()
    (first,) = runs(shop)
    new_export(shop)
    shop.start(TWO_DAYS_BACK).succeed()
    assert_second_run_is_joined(shop, first.run_id)


def test_the_newer_run_wins_over_one_that_was_killed_after_it_published(
    make_shop: NewShop,
) -> None:
    """A killed run never said how new its rows are, and they can be joined all the same."""
    shop = make_shop()
    shop.kill_at(ONLINE)
    assert len(list(shop.sink.iterdir())) == 2  # published
    (first,) = runs(shop)
    new_export(shop)
    shop.start(TWO_DAYS_BACK).succeed()
    assert_second_run_is_joined(shop, first.run_id)


def test_a_run_goes_on_with_its_clock_set_back(
    make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """Killed halfway and resumed two days earlier, it ends as if nothing had happened."""
    shop = make_shop()
    shop.kill_at("feast_anchor.transforms.manifests:ShardManifest.save", 5)
    shop.start(TWO_DAYS_BACK).succeed()
    judge(shop, undisturbed.rows, attempts=2)
