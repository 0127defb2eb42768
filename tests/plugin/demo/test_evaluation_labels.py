from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.demo import CUT, HORIZON, table_path
from feast_anchor.plugin.demo.evaluation_labels import as_of_times, write_evaluation_labels
from feast_anchor.plugin.demo.tables import DEPARTMENT_SCENARIOS, EVALUATION_SCENARIOS

At = Callable[[str], datetime]
Rows = list[dict[str, Any]]
WriteRows = Callable[[str, Rows], None]


def known(household: str, at: At, **more: Any) -> Rows:
    """Five purchases in August: just enough to be asked about at the cut."""
    row = {"household_id": household, "department": "GROCERY"} | more
    return [row | {"event_timestamp": at(f"2017-08-{day}")} for day in (10, 12, 14, 16, 18)]


def answers(
    folder: Path, write_rows: WriteRows, purchases: Rows, people: Sequence[dict[str, Any]] = ()
) -> Rows:
    write_rows("purchases", purchases)
    write_rows("redemptions", [])
    write_rows("demographics", [{"event_timestamp": CUT} | person for person in people])
    write_evaluation_labels(folder, CUT)
    rows: Rows = pq.read_table(table_path(folder, "evaluation_labels")).to_pylist()
    return rows


def at_cut(rows: Rows, scenario: str) -> dict[str, bool | None]:
    return {r["household_id"]: r[scenario] for r in rows if r["event_timestamp"] == CUT}


def test_the_earlier_windows_are_over_by_the_cut(at: At) -> None:
    """March, April and May end their 122 days by September; June does not."""
    assert as_of_times(CUT) == [at("2017-03-01"), at("2017-04-01"), at("2017-05-01"), CUT]
    assert as_of_times(at("2017-06-01")) == [at("2017-06-01")]


def test_earlier_rows_do_not_see_the_windows_of_the_cut(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """What is bought at or after the cut changes the rows at the cut alone."""
    past = known("a", at) + [
        {"household_id": "a", "event_timestamp": at("2017-01-01") + timedelta(days=day)}
        for day in range(40)
    ]
    later = [{"household_id": "a", "event_timestamp": CUT, "department": "FUEL"}]
    with_it = answers(tmp_path, write_rows, past + later)
    without = answers(tmp_path, write_rows, past)
    assert with_it[:3] == without[:3]
    assert len(with_it) == len(without) == 4
    assert with_it[3] != without[3]


def test_only_who_is_known_before_an_as_of_has_a_row_there(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """Five purchases in August make a row at the cut and none before."""
    rows = answers(tmp_path, write_rows, known("a", at))
    assert [(row["household_id"], row["event_timestamp"]) for row in rows] == [("a", CUT)]


def test_each_department_answers_its_own_scenario(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """A purchase in the window answers its department's question and no other one's."""
    rows: Rows = []
    for scenario, department in DEPARTMENT_SCENARIOS.items():
        bought = {"household_id": scenario, "event_timestamp": CUT, "department": department}
        rows += [*known(scenario, at), bought]
    for row in answers(tmp_path, write_rows, rows):
        found = [scenario for scenario in DEPARTMENT_SCENARIOS if row[scenario]]
        assert found == [row["household_id"]]


def test_a_new_department_is_one_never_bought_in_before(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """A known department, none, or one first bought in before or after the window is not new."""
    end = CUT + HORIZON

    def then(household: str, department: str | None, time: datetime) -> Rows:
        bought = {"household_id": household, "event_timestamp": time, "department": department}
        return [*known(household, at), bought]

    rows = answers(
        tmp_path,
        write_rows,
        then("new", "FUEL", CUT)
        + then("known", "GROCERY", CUT)
        + then("none", None, CUT)
        + then("before", "FUEL", CUT - timedelta(seconds=1))
        + then("late", "FUEL", end),
    )
    assert [key for key, new in at_cut(rows, "new_department").items() if new] == ["new"]


def test_private_label_is_half_of_the_purchases_with_a_brand(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """One of two is half, a purchase of no known brand does not count, none bought is null."""

    def buys(household: str, *brands: str | None) -> Rows:
        own = [
            {"household_id": household, "event_timestamp": CUT, "brand": brand} for brand in brands
        ]
        return known(household, at, brand="Private") + own

    rows = answers(
        tmp_path,
        write_rows,
        buys("half", "Private", "National")
        + buys("third", "Private", "National", "National")
        + buys("unknown too", "Private", None, None)
        + buys("unknown", None)
        + buys("gone"),
    )
    assert at_cut(rows, "private_label") == {
        "half": True,
        "third": False,
        "unknown too": True,
        "unknown": None,
        "gone": None,
    }


def test_growth_compares_spend_per_day_where_the_data_begins_late(
    tmp_path: Path, write_rows: WriteRows, at: At
) -> None:
    """At the first of March 59 days lie before: 59 in them is outdone by 122.5 in the window."""

    def spends(household: str, after: float) -> Rows:
        past = [
            {"household_id": household, "event_timestamp": at(f"2017-01-0{day}"), "sales_value": 1}
            for day in range(1, 6)
        ]
        past[0]["sales_value"] = 55
        window = {"event_timestamp": at("2017-03-01"), "sales_value": after}
        return [*past, {"household_id": household} | window]

    rows = answers(tmp_path, write_rows, spends("more", 122.5) + spends("as much", 122.0))
    first = {r["household_id"]: r["spend_growth"] for r in rows[:2]}
    assert first == {"as much": False, "more": True}


def test_profiles_answer_kids_and_income(tmp_path: Path, write_rows: WriteRows, at: At) -> None:
    """Kids are any number but 0; income is the middle class or above; unknown is null."""
    people: Rows = [
        {"household_id": "low", "kids_count": "0", "income": "Under 15K"},
        {"household_id": "middle", "kids_count": "1", "income": "50-74K"},
        {"household_id": "top", "kids_count": "3+", "income": "125K+"},
        {"household_id": "silent", "kids_count": "unknown", "income": "unknown"},
    ]
    names = [*(person["household_id"] for person in people), "none"]
    rows = answers(tmp_path, write_rows, [row for n in names for row in known(n, at)], people)
    assert at_cut(rows, "kids") == {
        "low": False, "middle": True, "top": True, "silent": None, "none": None,
    }  # fmt: skip
    assert at_cut(rows, "income") == {
        "low": False, "middle": True, "top": True, "silent": None, "none": None,
    }  # fmt: skip


def test_the_marketplace_answers_every_scenario_both_ways(marketplace: Path) -> None:
    """At every as-of each of the sixteen scenarios has yes and no among its answers."""
    table = pq.read_table(table_path(marketplace, "evaluation_labels"))
    for as_of in as_of_times(CUT):
        rows = [row for row in table.to_pylist() if row["event_timestamp"] == as_of]
        for scenario in EVALUATION_SCENARIOS:
            assert {True, False} <= {row[scenario] for row in rows}


def test_a_cut_without_time_zone_is_refused(tmp_path: Path) -> None:
    """A naive cut could mean any instant, so it is an error that shows what was given."""
    with pytest.raises(SpecError, match="has no time zone"):
        write_evaluation_labels(tmp_path, datetime(2017, 9, 1))  # noqa: DTZ001
