from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.plugin.demo import SCHEMAS, make_tables, table_path
from feast_anchor.plugin.demo.complete_journey import RAW_COLUMNS, convert
from feast_anchor.plugin.demo.tables import PROFILE_TIME

At = Callable[[str], datetime]

TEXT = pa.string()
DAY = pa.timestamp("ms")  # the raw files' dates: naive, at midnight
TYPES = {
    "sales_value": pa.float64(),
    "transaction_timestamp": pa.timestamp("us", tz="UTC"),
    "start_date": DAY,
    "redemption_date": DAY,
}


@pytest.fixture
def raw(tmp_path: Path, at: At) -> Path:
    """A raw folder of a few rows: product 9 is unknown, coupon "tie" has two equal departments."""
    moment, day = at("2017-09-02T01:30:00"), datetime(2017, 5, 3)  # noqa: DTZ001
    rows: dict[str, list[tuple[Any, ...]]] = {
        "transactions": [("1", "b1", "1", 2.5, moment), ("1", "b1", "9", 0.0, moment)],
        "products": [
            ("1", "PRODUCE", "Private", "BANANAS"),
            ("2", "GROCERY", "National", "COOKIES"),
            ("3", "GROCERY", "National", None),
            ("4", None, None, None),
        ],
        "demographics": [("1", "65+", None, None, "Married", "2", "2 Adults No Kids", "0")],
        "campaigns": [("c", "1")],
        "campaign_descriptions": [("c", "Type A", day)],
        "coupons": [
            ("tie", "1"),
            ("tie", "2"),
            *[("most", "1")] * 3,  # listed by three campaigns: still one product
            ("most", "2"),
            ("most", "3"),
            ("none", "4"),
        ],
        "coupon_redemptions": [("1", coupon, "c", day) for coupon in ("tie", "most", "none", "?")],
    }
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, columns in RAW_COLUMNS.items():
        schema = pa.schema({column: TYPES.get(column, TEXT) for column in columns})
        made = [dict(zip(columns, row, strict=True)) for row in rows[name]]
        pq.write_table(pa.Table.from_pylist(made, schema=schema), folder / f"{name}.parquet")
    return folder


def converted(raw: Path, name: str) -> list[dict[str, Any]]:
    out = raw.parent / "out"
    convert(raw, out)
    rows: list[dict[str, Any]] = pq.read_table(table_path(out, name)).to_pylist()
    return rows


def test_purchases_keep_their_instant_and_their_unknown_products(raw: Path, at: At) -> None:
    """Products are looked up; one that the catalogue lacks leaves nulls, not a lost row."""
    known, unknown = converted(raw, "purchases")
    assert known == {
        "household_id": "1",
        "event_timestamp": at("2017-09-02T01:30:00"),
        "product_type": "BANANAS",
        "department": "PRODUCE",
        "brand": "Private",
        "sales_value": 2.5,
        "basket_id": "b1",
    }
    assert [unknown[name] for name in ("product_type", "department", "brand")] == [None] * 3


def test_a_redemption_is_known_when_its_day_is_over(raw: Path, at: At) -> None:
    """A date becomes the last second of its day on the shop's clock: never read too early."""
    times = {row["event_timestamp"] for row in converted(raw, "redemptions")}
    assert times == {at("2017-05-04T03:59:59")}


def test_a_coupon_stands_for_its_most_frequent_department(raw: Path) -> None:
    """Products count once each, ties go by alphabet, and no department is "unknown"."""
    rows = converted(raw, "redemptions")
    # Sorted by coupon: "?", "most" (two of GROCERY, one of PRODUCE), "none", "tie".
    assert [row["department"] for row in rows] == ["unknown", "GROCERY", "unknown", "GROCERY"]
    assert {row["campaign_type"] for row in rows} == {"Type A"}


def test_mailings_happen_when_the_campaign_starts(raw: Path, at: At) -> None:
    """A mailing is dated when its campaign's first day begins on the shop's clock."""
    assert converted(raw, "mailings") == [
        {
            "household_id": "1",
            "event_timestamp": at("2017-05-03T04:00:00"),
            "campaign_type": "Type A",
        }
    ]


def test_an_unknown_profile_cell_says_so(raw: Path) -> None:
    """Profiles precede the data, and a null cell becomes the word "unknown"."""
    (row,) = converted(raw, "demographics")
    assert row["event_timestamp"] == PROFILE_TIME
    assert (row["age"], row["income"], row["home_ownership"]) == ("65+", "unknown", "unknown")


@pytest.mark.parametrize("name", RAW_COLUMNS)
def test_a_missing_file_is_named_with_the_way_out(raw: Path, name: str) -> None:
    """The error names the file, its columns and that the generator needs no --data."""
    (raw / f"{name}.parquet").unlink()
    with pytest.raises(SourceError, match=rf"{name}\.parquet' does not exist.*leave --data out"):
        convert(raw, raw.parent / "out")
    assert not (raw.parent / "out").exists()


def test_a_missing_column_is_named(raw: Path) -> None:
    """A file without a column that is read fails before anything is written."""
    path = raw / "coupons.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["product_id"]), path)
    with pytest.raises(SourceError, match=r"coupons.*lacks the column\(s\) \['product_id'\]"):
        convert(raw, raw.parent / "out")
    assert not (raw.parent / "out").exists()


def test_a_file_that_is_no_parquet_is_refused(raw: Path) -> None:
    """A CSV under a Parquet name is a SourceError, not an Arrow traceback."""
    (raw / "products.parquet").write_text("product_id,department\n")
    with pytest.raises(SourceError, match="is no Parquet file"):
        convert(raw, raw.parent / "out")


def test_the_real_data_gives_the_known_counts(data_dir: Path, tmp_path: Path) -> None:
    """No row is lost or doubled, and labels have the positive shares measured beforehand."""
    rows = make_tables(tmp_path, data_dir / "complete_journey")
    assert {name: rows[name] for name in ("purchases", "redemptions", "mailings")} == {
        "purchases": 75_000,
        "redemptions": 2_102,
        "mailings": 6_589,
    }
    assert (rows["demographics"], rows["labels"]) == (801, 1_844)
    assert rows["evaluation_labels"] == 966 + 1_260 + 1_451 + 1_844
    for name, schema in SCHEMAS.items():
        assert pq.read_schema(table_path(tmp_path, name)).equals(schema)
    labels = pq.read_table(table_path(tmp_path, "labels"))
    share = {name: pc.mean(labels[name]).as_py() for name in labels.column_names[2:]}
    # Published as .151 on the date of redemption; the day before the cut ends after it in UTC.
    assert share["coupon_redeemer"] == pytest.approx(0.153, abs=0.001)
    # Published over all events after the cut; three households first buy in the hours after
    # the window's end, 2018-01-01 00:00 UTC.
    assert share["fresh_produce"] == pytest.approx(0.518, abs=0.002)
    assert share["meat_lover"] == pytest.approx(0.291, abs=0.001)
    assert all(0.05 < value < 0.95 for value in share.values())
