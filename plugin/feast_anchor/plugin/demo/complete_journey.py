"""Complete Journey 2.0 (84.51 degrees, CC0) as the demo's event tables.

Rule: nothing is known earlier than it could have been. A coupon's redemption date has no time of
day, so its event happens at 23:59:59 of that day on the shop's clock, America/New_York: baskets
with a coupon discount match redemptions on that clock, on the UTC date one in eight would come
before its basket. A mailing happens when the day of its campaign's start begins on that clock.
Purchases keep their stored UTC instant, and a product the catalogue lacks stays null.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.plugin.demo.tables import DEMOGRAPHICS_COLUMNS, PROFILE_TIME, write_query

RAW_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "transactions": (
        "household_id",
        "basket_id",
        "product_id",
        "sales_value",
        "transaction_timestamp",
    ),
    "products": ("product_id", "department", "brand", "product_type"),
    "demographics": ("household_id", *DEMOGRAPHICS_COLUMNS),
    "campaigns": ("campaign_id", "household_id"),
    "campaign_descriptions": ("campaign_id", "campaign_type", "start_date"),
    "coupons": ("coupon_upc", "product_id"),
    "coupon_redemptions": ("household_id", "coupon_upc", "campaign_id", "redemption_date"),
}
"""Raw file (without `.parquet`) -> the columns read from it."""

_PURCHASES = """
SELECT household_id, transaction_timestamp, product_type, department, brand, sales_value, basket_id
FROM read_parquet($transactions) AS transactions
LEFT JOIN read_parquet($products) AS products USING (product_id)
ORDER BY household_id, transaction_timestamp, basket_id, product_id, sales_value
"""

# A coupon listed by several campaigns names the same product again: count each product once.
_REDEMPTIONS = """
WITH counted AS (
    SELECT coupon_upc, department, count(DISTINCT product_id) AS products
    FROM read_parquet($coupons) AS coupons
    JOIN read_parquet($products) AS products USING (product_id)
    WHERE department IS NOT NULL GROUP BY coupon_upc, department
), ranked AS (
    SELECT coupon_upc, department,
           row_number() OVER (PARTITION BY coupon_upc ORDER BY products DESC, department) AS place
    FROM counted
)
SELECT household_id, timezone(
           'America/New_York', date_trunc('day', redemption_date) + INTERVAL 86399 SECONDS
       ) AS t,
       campaign_type, coalesce(department, 'unknown') AS department
FROM read_parquet($coupon_redemptions) AS coupon_redemptions
LEFT JOIN read_parquet($campaign_descriptions) AS described USING (campaign_id)
LEFT JOIN (SELECT * FROM ranked WHERE place = 1) USING (coupon_upc)
ORDER BY household_id, t, campaign_id, coupon_upc
"""

_MAILINGS = """
SELECT household_id, timezone('America/New_York', start_date) AS t, campaign_type
FROM read_parquet($campaigns) AS campaigns
LEFT JOIN read_parquet($campaign_descriptions) AS described USING (campaign_id)
ORDER BY household_id, t, campaign_id
"""

_DEMOGRAPHICS = """
SELECT household_id, $profile_time, coalesce(age, 'unknown'), coalesce(income, 'unknown'),
       coalesce(home_ownership, 'unknown'), coalesce(marital_status, 'unknown'),
       coalesce(household_size, 'unknown'), coalesce(household_comp, 'unknown'),
       coalesce(kids_count, 'unknown')
FROM read_parquet($demographics) ORDER BY household_id
"""


def convert(source: Path, out: Path) -> None:
    """Write purchases, redemptions, mailings and demographics from the raw Parquet folder.

    `source` holds the files of RAW_COLUMNS; times there are UTC, aware or naive. Rows come out
    sorted, so the same input gives the same files. Raises SourceError, before anything is
    written, when a file is missing, is no Parquet or lacks a column.
    """
    paths = {name: _checked(source, name) for name in RAW_COLUMNS}
    _write(out, "purchases", _PURCHASES, paths, "transactions", "products")
    _write(
        out,
        "redemptions",
        _REDEMPTIONS,
        paths,
        "coupons",
        "products",
        "coupon_redemptions",
        "campaign_descriptions",
    )
    _write(out, "mailings", _MAILINGS, paths, "campaigns", "campaign_descriptions")
    values = {"demographics": paths["demographics"], "profile_time": PROFILE_TIME}
    write_query(out, "demographics", _DEMOGRAPHICS, values)


def _write(out: Path, table: str, sql: str, paths: Mapping[str, str], *inputs: str) -> None:
    write_query(out, table, sql, {name: paths[name] for name in inputs})


def _checked(source: Path, name: str) -> str:
    """The path of one raw file whose columns are all there, else SourceError."""
    path = source / f"{name}.parquet"
    if not path.is_file():
        raise SourceError(_complaint(path, "does not exist", name))
    try:
        present = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise SourceError(_complaint(path, f"is no Parquet file ({error})", name)) from error
    missing = [column for column in RAW_COLUMNS[name] if column not in present]
    if missing:
        raise SourceError(_complaint(path, f"lacks the column(s) {missing!r}", name))
    return str(path)


def _complaint(path: Path, fault: str, name: str) -> str:
    return (
        f"{str(path)!r} {fault}; expected the raw Complete Journey file {name}.parquet with the "
        f"columns {list(RAW_COLUMNS[name])!r}. Point --data at the folder that holds it, or leave "
        "--data out to use the generated marketplace"
    )
