"""What households do after the cut: one row of yes/no answers per household.

Rule: a label reads events in `[cut, cut + HORIZON)` only; who is asked about, and the spend that
growth is measured against, come from before the cut. Broken purchases (no household, no
timestamp, amount that is no number) are not seen.

Morning means before noon on the shop's clock, America/New_York. Complete Journey stores UTC:
baskets are rarest at 08:00 and peak at 22:00 there, which is 03:00-04:00 and 17:00-18:00 on that
clock. "Before 12:00 UTC" would have meant late-evening shoppers.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import md5
from pathlib import Path

from feast_anchor.plugin.demo.tables import HORIZON, check_cut, table_path, write_query

SCENARIO_LABELS: dict[str, str] = {
    "coupon_redeemer": "Will this household redeem a coupon in the next four months?",
    "fresh_produce": "Will this household buy fresh produce in the next four months?",
    "meat_lover": "Will this household buy fresh meat in the next four months?",
    "spend_growth": "Will this household spend more in the next four months than in the last?",
    "churn": "Will this household buy nothing at all in the next four months?",
    "morning_shopper": "Will this household shop mostly in the morning in the next four months?",
}
"""Scenario name (a bool column of the labels table) -> its query in plain words."""

# Money is summed as DECIMAL: exact, so the answer does not depend on the order of addition.
_SQL = """
WITH valid AS (
    SELECT household_id, event_timestamp AS t, department, basket_id,
           sales_value::DECIMAL(18, 4) AS amount
    FROM read_parquet($purchases)
    WHERE household_id IS NOT NULL AND event_timestamp IS NOT NULL AND isfinite(sales_value)
), past AS (
    SELECT household_id, coalesce(sum(amount) FILTER (t >= $spend_start), 0) AS spend
    FROM valid WHERE t < $cut GROUP BY household_id HAVING count(*) >= 5
), future AS (
    SELECT household_id, sum(amount) AS spend, bool_or(department = 'PRODUCE') AS produce,
           bool_or(department = 'MEAT') AS meat
    FROM valid WHERE t >= $cut AND t < $window_end GROUP BY household_id
), baskets AS (
    SELECT household_id, hour(timezone('America/New_York', min(t))) < 12 AS early
    FROM valid WHERE t >= $cut AND t < $window_end GROUP BY household_id, basket_id
), mornings AS (
    SELECT household_id, 2 * count(*) FILTER (early) >= count(*) AS morning
    FROM baskets GROUP BY household_id
), redeemers AS (
    SELECT DISTINCT household_id FROM read_parquet($redemptions)
    WHERE event_timestamp >= $cut AND event_timestamp < $window_end
)
SELECT past.household_id, $cut, md5_number_lower(past.household_id) % 100 < 40,
       redeemers.household_id IS NOT NULL, coalesce(produce, false), coalesce(meat, false),
       coalesce(future.spend, 0) > past.spend, future.household_id IS NULL,
       coalesce(morning, false)
FROM past
LEFT JOIN future USING (household_id)
LEFT JOIN mornings USING (household_id)
LEFT JOIN redeemers USING (household_id)
ORDER BY past.household_id
"""


def is_held_out(household_id: str) -> bool:
    """Whether a household belongs to the 40 % kept for testing; the same on every machine.

    The labels query uses DuckDB's `md5_number_lower`, which is this number.
    """
    digest = md5(household_id.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little") % 100 < 40


def write_labels(folder: Path, cut: datetime) -> int:
    """Write `labels.parquet` from the folder's purchases and redemptions; returns its rows.

    One row per household with five or more valid purchases before `cut` (tz-aware, else
    SpecError), `event_timestamp` = cut, sorted by household.
    """
    check_cut(cut)
    values = {
        "purchases": str(table_path(folder, "purchases")),
        "redemptions": str(table_path(folder, "redemptions")),
        "cut": cut,
        "spend_start": cut - HORIZON,
        "window_end": cut + HORIZON,
    }
    return write_query(folder, "labels", _SQL, values)
