from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.demo import CUT, table_path
from feast_anchor.plugin.demo.ranking import snapshot_times, write_household_stats
from feast_anchor.plugin.demo.tables import table_writer

At = Callable[[str], datetime]
WriteRows = Callable[[str, list[dict[str, Any]]], None]
Stats = dict[tuple[str, datetime], dict[str, Any]]


def stats(folder: Path) -> Stats:
    write_household_stats(folder, CUT)
    rows = pq.read_table(table_path(folder, "household_stats")).to_pylist()
    return {(row["household_id"], row["event_timestamp"]): row for row in rows}


def bought(household: str | None, time: datetime | None, amount: float, basket: str) -> Any:
    return {
        "household_id": household,
        "event_timestamp": time,
        "sales_value": amount,
        "basket_id": basket,
    }


def test_a_snapshot_of_hand_computed_values(tmp_path: Path, write_rows: WriteRows, at: At) -> None:
    """Two lines of one basket, an older one and a coupon give the sums one works out by hand."""
    write_rows(
        "purchases",
        [
            bought("1", at("2017-08-30T12:00:00"), 1.1, "b"),
            bought("1", at("2017-08-30T12:00:00"), 2.2, "b"),
            bought("1", at("2017-07-10T00:00:00"), 6.0, "a"),
        ],
    )
    write_rows("redemptions", [{"household_id": "1", "event_timestamp": at("2017-08-01")}] * 2)
    assert stats(tmp_path)["1", CUT] == {
        "household_id": "1",
        "event_timestamp": CUT,
        "created_timestamp": CUT,
        "spend_28d": 3.3,
        "spend_84d": 9.3,
        "baskets_28d": 1,
        "days_since_purchase": 1.5,
        "mean_basket": 4.65,
        "redemptions_84d": 2,
    }


def test_only_events_strictly_before_the_snapshot_count(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """An event at the very snapshot belongs to the next one."""
    write_rows(
        "purchases",
        [
            bought("1", CUT - timedelta(microseconds=1), 1.0, "a"),
            bought("1", CUT, 2.0, "b"),
            bought("2", CUT, 4.0, "c"),
        ],
    )
    write_rows("redemptions", [{"household_id": "1", "event_timestamp": CUT}])
    rows = stats(tmp_path)
    monday = at("2017-09-04")
    at_cut, later = rows["1", CUT], rows["1", monday]
    assert (at_cut["spend_28d"], at_cut["redemptions_84d"]) == (1.0, 0)
    assert (later["spend_28d"], later["redemptions_84d"]) == (3.0, 1)
    assert ("2", CUT) not in rows
    assert rows["2", monday]["days_since_purchase"] == 3.0


def test_windows_include_their_first_instant(tmp_path: Path, write_rows: WriteRows, at: At) -> None:
    """28 and 84 days reach back to exactly that long ago, and no microsecond further."""
    tick = timedelta(microseconds=1)
    write_rows(
        "purchases",
        [
            bought("1", CUT - timedelta(days=28), 1.0, "a"),
            bought("1", CUT - timedelta(days=28) - tick, 10.0, "b"),
            bought("1", CUT - timedelta(days=84), 100.0, "c"),
            bought("1", CUT - timedelta(days=84) - tick, 1000.0, "d"),
        ],
    )
    write_rows("redemptions", [{"household_id": "1", "event_timestamp": at("2017-01-02")}])
    row = stats(tmp_path)["1", CUT]
    assert (row["spend_28d"], row["spend_84d"], row["baskets_28d"]) == (1.0, 111.0, 1)
    assert (row["mean_basket"], row["redemptions_84d"]) == (277.75, 0)


def test_broken_rows_are_left_out(tmp_path: Path, write_rows: WriteRows, at: At) -> None:
    """No household, no time or no amount: the row changes nothing and makes no household."""
    day = at("2017-08-30")
    write_rows(
        "purchases",
        [
            bought("1", day, 1.0, "a"),
            bought("1", day, float("nan"), "b"),
            bought("1", None, 2.0, "c"),
            bought(None, day, 4.0, "d"),
            bought("2", day, float("inf"), "e"),
        ],
    )
    write_rows(
        "redemptions",
        [
            {"household_id": None, "event_timestamp": day},
            {"household_id": "1", "event_timestamp": None},
        ],
    )
    rows = stats(tmp_path)
    assert {household for household, _ in rows} == {"1"}
    row = rows["1", CUT]
    assert (row["spend_28d"], row["baskets_28d"], row["redemptions_84d"]) == (1.0, 1, 0)


def test_later_events_never_change_an_earlier_snapshot(marketplace: Path, tmp_path: Path) -> None:
    """Stats up to the cut are the same whether or not the events after it exist."""
    for name in ("purchases", "redemptions"):
        rows = pq.read_table(table_path(marketplace, name))
        with table_writer(tmp_path, name) as writer:
            writer.write_table(rows.filter(pc.less(rows["event_timestamp"], pa.scalar(CUT))))
    write_household_stats(tmp_path, CUT)
    early = pc.field("event_timestamp") <= pa.scalar(CUT)
    known, all_time = (
        pq.read_table(table_path(folder, "household_stats"), filters=early)
        for folder in (tmp_path, marketplace)
    )
    assert known.num_rows > 10_000
    assert known.equals(all_time)


def test_snapshots_are_mondays_and_the_cut(at: At) -> None:
    """52 Mondays of 2017 and the cut, in order; a cut on a Monday adds none."""
    times = snapshot_times(CUT)
    assert times == sorted(times)
    assert (times[0], times[-1], len(times)) == (at("2017-01-02"), at("2017-12-25"), 53)
    assert {time.weekday() for time in times if time != CUT} == {0}
    assert len(snapshot_times(at("2017-09-04"))) == 52


def test_a_cut_without_time_zone_is_refused(tmp_path: Path) -> None:
    """A naive cut could mean any instant, so it is an error that shows what was given."""
    with pytest.raises(SpecError, match="has no time zone"):
        write_household_stats(tmp_path, datetime(2017, 9, 1))  # noqa: DTZ001
