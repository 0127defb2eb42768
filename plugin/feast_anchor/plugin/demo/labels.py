"""The six questions of the demo: one row of yes/no answers per household, at the cut.

Rule: an answer has one definition, the one in `evaluation_labels`; this table only picks columns
and says which households are held out for testing.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import md5
from pathlib import Path

from feast_anchor.plugin.demo.tables import check_cut, table_path, write_query

SCENARIO_LABELS: dict[str, str] = {
    "coupon_redeemer": "Will this household redeem a coupon in the next four months?",
    "fresh_produce": "Will this household buy fresh produce in the next four months?",
    "meat_lover": "Will this household buy fresh meat in the next four months?",
    "spend_growth": "Will this household spend more in the next four months than in the last?",
    "churn": "Will this household buy nothing at all in the next four months?",
    "morning_shopper": "Will this household shop mostly in the morning in the next four months?",
}
"""Scenario name (a bool column of the labels table) -> its query in plain words."""

_SQL = """
SELECT household_id, event_timestamp, md5_number_lower(household_id) % 100 < 40,
       coupon_redeemer, produce, meat, spend_growth, churn, morning_shopper
FROM read_parquet($labels) WHERE event_timestamp = $cut ORDER BY household_id
"""


def is_held_out(household_id: str) -> bool:
    """Whether a household belongs to the 40 % kept for testing; the same on every machine.

    The labels query uses DuckDB's `md5_number_lower`, which is this number.
    """
    digest = md5(household_id.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little") % 100 < 40


def write_labels(folder: Path, cut: datetime) -> int:
    """Write `labels.parquet` from the folder's evaluation labels; returns its rows.

    One row per household with five or more valid purchases before `cut` (tz-aware, else
    SpecError), `event_timestamp` = cut, sorted by household.
    """
    check_cut(cut)
    values = {"labels": str(table_path(folder, "evaluation_labels")), "cut": cut}
    return write_query(folder, "labels", _SQL, values)
