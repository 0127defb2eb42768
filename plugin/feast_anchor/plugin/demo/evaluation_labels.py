"""Sixteen yes/no answers per household at several as-of times: what the evaluation asks.

Rule: an answer reads events in `[as-of, as-of + HORIZON)` only; who is asked, the spend that
growth is measured against and the departments already known come from before the as-of. The rows
at the cut are for testing. Earlier rows end their window by the cut, so whoever trains on them
knows nothing that happens after it. Broken purchases (no household, no timestamp, amount that is
no number) are not seen.

`kids` and `income` are facts of the profile table, not of the future: a model that reads that
table reads the answer, so the evaluation's histories leave it out.

Morning means before noon on the shop's clock, America/New_York. Complete Journey stores UTC:
baskets are rarest at 08:00 and peak at 22:00 there, which is 03:00-04:00 and 17:00-18:00 on that
clock. "Before 12:00 UTC" would have meant late-evening shoppers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from feast_anchor.plugin.demo.tables import (
    DEPARTMENT_SCENARIOS,
    HORIZON,
    START,
    check_cut,
    table_path,
    write_query,
)

_DEPARTMENTS = ", ".join(
    f"coalesce(list_contains(bought, '{department}'), false)"
    for department in DEPARTMENT_SCENARIOS.values()
)

# Money is summed as DECIMAL: exact, so the answer does not depend on the order of addition.
# The window before an early as-of begins before the data does: growth compares spend per day.
_SQL = f"""
WITH as_ofs AS (
    SELECT unnest($as_ofs::TIMESTAMPTZ[]) AS as_of
), valid AS (
    SELECT household_id, event_timestamp AS t, department, brand, basket_id,
           sales_value::DECIMAL(18, 4) AS amount
    FROM read_parquet($purchases)
    WHERE household_id IS NOT NULL AND event_timestamp IS NOT NULL AND isfinite(sales_value)
), past AS (
    SELECT as_of, household_id,
           coalesce(sum(amount) FILTER (t >= as_of - $horizon), 0) AS spend,
           date_diff('day', greatest(as_of - $horizon, $start), as_of) AS days
    FROM valid JOIN as_ofs ON t < as_of GROUP BY as_of, household_id HAVING count(*) >= 5
), ahead AS (
    SELECT * FROM valid JOIN as_ofs ON t >= as_of AND t < as_of + $horizon
), future AS (
    SELECT as_of, household_id, sum(amount) AS spend, list(DISTINCT department) AS bought,
           2 * count(*) FILTER (brand = 'Private') >= nullif(count(brand), 0) AS private_label
    FROM ahead GROUP BY as_of, household_id
), baskets AS (
    SELECT as_of, household_id, hour(timezone('America/New_York', min(t))) < 12 AS early
    FROM ahead GROUP BY as_of, household_id, basket_id
), mornings AS (
    SELECT as_of, household_id, 2 * count(*) FILTER (early) >= count(*) AS morning
    FROM baskets GROUP BY as_of, household_id
), firsts AS (
    SELECT household_id, min(t) AS t FROM valid WHERE department IS NOT NULL
    GROUP BY household_id, department
), explorers AS (
    SELECT DISTINCT as_of, household_id
    FROM firsts JOIN as_ofs ON t >= as_of AND t < as_of + $horizon
), redeemers AS (
    SELECT DISTINCT as_of, household_id FROM read_parquet($redemptions)
    JOIN as_ofs ON event_timestamp >= as_of AND event_timestamp < as_of + $horizon
), classes AS (
    SELECT household_id, nullif(kids_count, 'unknown') <> '0' AS kids,
           CASE WHEN income LIKE 'Under%' THEN 0
                ELSE try_cast(regexp_extract(income, '[0-9]+') AS INTEGER) END AS class
    FROM read_parquet($demographics)
), profiles AS (
    SELECT household_id, kids,
           class >= (SELECT quantile_disc(class, 0.5) FROM classes) AS income
    FROM classes
)
SELECT past.household_id, past.as_of, redeemers.household_id IS NOT NULL, {_DEPARTMENTS},
       coalesce(future.spend, 0) * past.days > past.spend * $days,
       future.household_id IS NULL, explorers.household_id IS NOT NULL, coalesce(morning, false),
       private_label, kids, income
FROM past
LEFT JOIN future USING (as_of, household_id)
LEFT JOIN mornings USING (as_of, household_id)
LEFT JOIN explorers USING (as_of, household_id)
LEFT JOIN redeemers USING (as_of, household_id)
LEFT JOIN profiles USING (household_id)
ORDER BY past.as_of, past.household_id
"""  # noqa: S608  # the only text put in is the list of departments above


def as_of_times(cut: datetime) -> list[datetime]:
    """The cut, after the firsts of months whose window is over by then; March is the earliest."""
    firsts = [datetime(START.year, month, 1, tzinfo=UTC) for month in range(3, 13)]
    return [*(first for first in firsts if first + HORIZON <= cut), cut]


def write_evaluation_labels(folder: Path, cut: datetime) -> int:
    """Write `evaluation_labels.parquet` from the folder's event tables; returns its rows.

    One row per as-of time (`event_timestamp`) and household with five or more valid purchases
    before it, in that order. `private_label` is null for who buys nothing of a known brand, `kids`
    and `income` for who has no profile. Raises SpecError when `cut` has no time zone.
    """
    check_cut(cut)
    tables = ("purchases", "redemptions", "demographics")
    values = {name: str(table_path(folder, name)) for name in tables} | {
        "as_ofs": as_of_times(cut),
        "horizon": HORIZON,
        "days": HORIZON.days,
        "start": START,
    }
    return write_query(folder, "evaluation_labels", _SQL, values)
