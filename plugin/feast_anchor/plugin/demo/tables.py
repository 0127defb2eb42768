"""The seven demo tables: their columns, their clock and the one way to write them.

Rule: both makers, the generator and the converter, write exactly these columns, so one static
feature repo serves either. A file appears under its name only when it is complete: rows go to a
temporary file beside it, which replaces the old one at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feast_anchor.onnx_export.errors import SpecError

START = datetime(2017, 1, 1, tzinfo=UTC)
"""First instant of the data; both makers cover the calendar year 2017."""

END = datetime(2018, 1, 1, tzinfo=UTC)
"""First instant after the year."""

CUT = datetime(2017, 9, 1, tzinfo=UTC)
"""Default cut: history lies strictly before it, labels at or after it."""

HORIZON = timedelta(days=122)
"""Length of the label window `[cut, cut + HORIZON)`."""

PROFILE_TIME = START - timedelta(days=1)
"""Event timestamp of every demographics row: known before the first purchase."""

TIMESTAMP = pa.timestamp("us", tz="UTC")


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema({"household_id": pa.string(), "event_timestamp": TIMESTAMP, **types})


DEMOGRAPHICS_COLUMNS = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)

SCENARIOS = (
    "coupon_redeemer",
    "fresh_produce",
    "meat_lover",
    "spend_growth",
    "churn",
    "morning_shopper",
)

DEPARTMENT_SCENARIOS: Mapping[str, str] = {
    "produce": "PRODUCE",
    "meat": "MEAT",
    "deli": "DELI",
    "pastry": "PASTRY",
    "fuel": "FUEL",
    "nutrition": "NUTRITION",
    "cosmetics": "COSMETICS",
    "salad_bar": "SALAD BAR",
}
"""Scenario of the evaluation -> the department that it asks about."""

EVALUATION_SCENARIOS = (
    "coupon_redeemer",
    *DEPARTMENT_SCENARIOS,
    "spend_growth",
    "churn",
    "new_department",
    "morning_shopper",
    "private_label",
    "kids",
    "income",
)

SCHEMAS: Mapping[str, pa.Schema] = {
    "purchases": _schema(
        product_type=pa.string(),
        department=pa.string(),
        brand=pa.string(),
        sales_value=pa.float64(),
        basket_id=pa.string(),
    ),
    "redemptions": _schema(campaign_type=pa.string(), department=pa.string()),
    "mailings": _schema(campaign_type=pa.string()),
    "demographics": _schema(**{name: pa.string() for name in DEMOGRAPHICS_COLUMNS}),
    "household_stats": _schema(
        created_timestamp=TIMESTAMP,
        spend_28d=pa.float64(),
        spend_84d=pa.float64(),
        baskets_28d=pa.int64(),
        days_since_purchase=pa.float64(),
        mean_basket=pa.float64(),
        redemptions_84d=pa.int64(),
    ),
    "evaluation_labels": _schema(**{name: pa.bool_() for name in EVALUATION_SCENARIOS}),
    "labels": _schema(held_out=pa.bool_(), **{name: pa.bool_() for name in SCENARIOS}),
}
"""Table name -> Arrow schema; the file is `<name>.parquet`."""


def table_path(folder: Path, name: str) -> Path:
    """Where table `name` lies in `folder`. KeyError for a name that is not a demo table."""
    SCHEMAS[name]
    return folder / f"{name}.parquet"


def check_cut(cut: datetime) -> None:
    """Raise SpecError unless `cut` has a time zone."""
    if cut.tzinfo is None:
        raise SpecError(f"cut={cut!r} has no time zone; expected an aware datetime, such as UTC")


@contextmanager
def table_writer(folder: Path, name: str) -> Iterator[pq.ParquetWriter]:
    """A Parquet writer for one table; the file takes its name when the block ends well.

    Every `write_table` becomes at least one row group, so memory is bounded by the caller's
    chunk. When the block raises, the half-written file is removed and an older one is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = table_path(folder, name)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(unfinished, SCHEMAS[name], compression="zstd") as writer:
            yield writer
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_query(folder: Path, name: str, sql: str, values: Mapping[str, Any]) -> int:
    """Run one DuckDB query with bound `values` and write its rows as table `name`.

    Columns are taken by position and cast to the table's schema. The session's clock is UTC.
    Returns the number of rows written.
    """
    schema, rows = SCHEMAS[name], 0
    with duckdb.connect() as session, table_writer(folder, name) as out:
        session.execute("SET TimeZone = 'UTC'")
        for batch in session.sql(sql, params=dict(values)).to_arrow_reader(131_072):
            columns = [batch.column(i).cast(field.type) for i, field in enumerate(schema)]
            out.write_table(pa.Table.from_arrays(columns, schema=schema))
            rows += batch.num_rows
    return rows
