from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.demo import CUT, HORIZON, SCENARIO_LABELS, SCHEMAS, table_path
from feast_anchor.plugin.demo.evaluation_labels import write_evaluation_labels
from feast_anchor.plugin.demo.labels import is_held_out, write_labels
from feast_anchor.plugin.demo.tables import table_writer

At = Callable[[str], datetime]
WriteRows = Callable[[str, list[dict[str, Any]]], None]


def regular(household: str, at: At, amount: float = 1.0) -> list[dict[str, Any]]:
    """Five purchases in the 122 days before the cut: just enough to be asked about."""
    return [
        {"household_id": household, "event_timestamp": at(day), "sales_value": amount}
        for day in ("2017-06-01", "2017-06-08", "2017-07-01", "2017-08-01", "2017-08-31T23:59:59")
    ]


def labels(folder: Path) -> dict[str, dict[str, Any]]:
    with table_writer(folder, "demographics"):
        pass  # nobody has a profile
    write_evaluation_labels(folder, CUT)
    write_labels(folder, CUT)
    rows = pq.read_table(table_path(folder, "labels")).to_pylist()
    return {row["household_id"]: row for row in rows}


def test_only_households_with_five_valid_purchases_before_the_cut_are_asked_about(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """A fifth purchase at the cut, or one that is broken, does not make a household known."""
    late = [*regular("late", at)[:4], {"household_id": "late", "event_timestamp": CUT}]
    broken = regular("broken", at)
    broken[0]["sales_value"] = float("nan")
    timeless = regular("timeless", at)
    timeless[0]["event_timestamp"] = None
    nobody = regular("", at)
    for row in nobody:
        row["household_id"] = None
    write_rows("purchases", [*regular("known", at), *late, *broken, *timeless, *nobody])
    write_rows("redemptions", [])
    assert list(labels(tmp_path)) == ["known"]


def test_labels_read_the_window_from_the_cut_on(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """The cut belongs to the window, its end and everything before the cut do not."""
    end = CUT + HORIZON
    assert end == at("2018-01-01")

    def buys(household: str, time: datetime) -> list[dict[str, Any]]:
        bought = {"household_id": household, "event_timestamp": time, "department": "PRODUCE"}
        return [*regular(household, at), bought]

    write_rows(
        "purchases",
        buys("before", at("2017-08-31T23:59:59")) + buys("at cut", CUT) + buys("at end", end),
    )
    write_rows(
        "redemptions",
        [
            {"household_id": "before", "event_timestamp": at("2017-08-31T23:59:59")},
            {"household_id": "at cut", "event_timestamp": CUT},
            {"household_id": "at end", "event_timestamp": end},
            {"household_id": None, "event_timestamp": CUT},
            {"household_id": "before", "event_timestamp": None},
        ],
    )
    rows = labels(tmp_path)
    for name in ("fresh_produce", "coupon_redeemer"):
        assert {key: row[name] for key, row in rows.items()} == {
            "before": False,
            "at cut": True,
            "at end": False,
        }
    assert {key: row["churn"] for key, row in rows.items()} == {
        "before": True,
        "at cut": False,
        "at end": True,
    }
    assert {row["event_timestamp"] for row in rows.values()} == {CUT}


def test_spend_growth_compares_windows_of_equal_length(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """Spend of the window is held against the 122 days before the cut, to the exact cent."""
    start = CUT - HORIZON
    assert start == at("2017-05-02")

    def spends(household: str, *more: tuple[datetime, float]) -> list[dict[str, Any]]:
        extra = [
            {"household_id": household, "event_timestamp": time, "sales_value": amount}
            for time, amount in more
        ]
        return [*regular(household, at, 0.1), *extra]  # 5 x 0.10 in the 122 days before

    october, april = at("2017-10-01"), at("2017-05-01T23:59:59")
    write_rows(
        "purchases",
        spends("equal", (october, 0.5))
        + spends("more", (october, 0.51))
        + spends("old spend", (april, 9.0), (october, 0.51))
        + spends("first day", (start, 9.0), (october, 0.51))
        + spends("gone"),
    )
    write_rows("redemptions", [])
    assert {key: row["spend_growth"] for key, row in labels(tmp_path).items()} == {
        "equal": False,
        "more": True,
        "old spend": True,
        "first day": False,
        "gone": False,
    }


def test_morning_is_before_noon_in_new_york_for_half_of_the_baskets(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """15:59 UTC is morning in summer, 16:59 in winter; lines of one basket count once."""

    def shops(household: str, *times: str) -> list[dict[str, Any]]:
        return [
            *regular(household, at),
            *({"household_id": household, "event_timestamp": at(time)} for time in times),
        ]

    one_basket = [
        {
            "household_id": "one basket",
            "event_timestamp": at("2017-09-02T20:00:00"),
            "basket_id": "evening",
        }
        for _ in range(3)
    ]
    write_rows(
        "purchases",
        shops("summer", "2017-09-02T15:59:59")
        + shops("summer noon", "2017-09-02T16:00:00")
        + shops("winter", "2017-12-02T16:59:59")
        + shops("half", "2017-09-02T14:00:00", "2017-09-03T20:00:00")
        + shops("third", "2017-09-02T14:00:00", "2017-09-03T20:00:00", "2017-09-04T20:00:00")
        + shops("gone")
        + [*shops("one basket", "2017-09-03T14:00:00"), *one_basket],
    )
    write_rows("redemptions", [])
    assert {key: row["morning_shopper"] for key, row in labels(tmp_path).items()} == {
        "summer": True,
        "summer noon": False,
        "winter": True,
        "half": True,
        "third": False,
        "gone": False,
        "one basket": True,
    }


def test_departments_are_told_apart(tmp_path: Path, write_rows: WriteRows, at: At) -> None:
    """Packed meat is not meat, and a purchase without a department answers neither question."""
    window = at("2017-10-01")
    write_rows(
        "purchases",
        [
            *regular("meat", at),
            {"household_id": "meat", "event_timestamp": window, "department": "MEAT"},
            *regular("packed", at),
            {"household_id": "packed", "event_timestamp": window, "department": "MEAT-PCKGD"},
            *regular("nameless", at),
            {"household_id": "nameless", "event_timestamp": window, "department": None},
        ],
    )
    write_rows("redemptions", [])
    rows = labels(tmp_path)
    assert {key: (row["meat_lover"], row["fresh_produce"]) for key, row in rows.items()} == {
        "meat": (True, False),
        "packed": (False, False),
        "nameless": (False, False),
    }
    assert not any(row["churn"] for row in rows.values())


def test_the_split_is_the_md5_rule(marketplace: Path) -> None:
    """Four households in ten are held out, by the hash that anybody can compute."""
    rows = pq.read_table(table_path(marketplace, "labels")).to_pylist()
    assert all(row["held_out"] == is_held_out(row["household_id"]) for row in rows)
    assert 0.35 < sum(row["held_out"] for row in rows) / len(rows) < 0.45
    # md5sum of "1" ends in 0dcc509a6f75849b, read backwards 0x9b84756f9a50cc0d, which ends in 01.
    assert is_held_out("1")
    assert not is_held_out("H000001")


def test_every_scenario_has_a_column_and_a_question() -> None:
    """Labels table and queries name the same scenarios, and each query is a question."""
    assert list(SCENARIO_LABELS) == SCHEMAS["labels"].names[3:]
    assert all(query.endswith("?") for query in SCENARIO_LABELS.values())


def test_a_cut_without_time_zone_is_refused(tmp_path: Path) -> None:
    """A naive cut could mean any instant, so it is an error that shows what was given."""
    with pytest.raises(SpecError, match="has no time zone"):
        write_labels(tmp_path, datetime(2017, 9, 1))  # noqa: DTZ001
