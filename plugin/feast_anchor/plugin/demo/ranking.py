"""The "existing ranking features" of the demo: weekly spend and recency per household.

Rule: a row speaks for its snapshot (`event_timestamp`) and reads events strictly before it. This
is the feature view a team already has before it adds embeddings, so it is kept plain and right.
Broken purchases (no household, no timestamp, amount that is no number) are not seen.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from feast_anchor.plugin.demo.tables import END, START, check_cut, table_path, write_query

# Events and snapshots are laid on one time line per household, so each frame is one sorted pass
# instead of a join of every event with the twelve snapshots it counts for. Money is summed as
# DECIMAL: exact, so the result does not depend on the order of addition.
_SQL = """
WITH lines AS (
    SELECT household_id, event_timestamp AS t, basket_id,
           sum(sales_value::DECIMAL(18, 4)) AS amount
    FROM read_parquet($purchases)
    WHERE household_id IS NOT NULL AND event_timestamp IS NOT NULL AND isfinite(sales_value)
    GROUP BY household_id, event_timestamp, basket_id
), visits AS (
    SELECT household_id, t, amount,
           (t = min(t) OVER (PARTITION BY household_id, basket_id))::INT AS basket
    FROM lines
), firsts AS (
    SELECT household_id, min(t) AS first FROM visits GROUP BY household_id
), moments AS (
    SELECT household_id, t, t AS bought, amount, basket, 0 AS redeemed, false AS snapshot
    FROM visits
    UNION ALL
    SELECT household_id, event_timestamp, NULL, 0, 0, 1, false
    FROM read_parquet($redemptions)
    WHERE household_id IS NOT NULL AND event_timestamp IS NOT NULL
    UNION ALL
    SELECT household_id, s, NULL, 0, 0, 0, true
    FROM firsts JOIN (SELECT unnest($snapshots::TIMESTAMPTZ[]) AS s) ON s > first
), framed AS (
    SELECT household_id, t, snapshot,
           sum(amount) OVER four_weeks AS spend_28d, sum(amount) OVER twelve_weeks AS spend_84d,
           sum(basket) OVER four_weeks AS baskets_28d, max(bought) OVER before AS last_bought,
           sum(amount) OVER before AS spend, sum(basket) OVER before AS baskets,
           sum(redeemed) OVER twelve_weeks AS redemptions_84d
    FROM moments
    WINDOW four_weeks AS (PARTITION BY household_id ORDER BY t RANGE BETWEEN
               INTERVAL 28 DAYS PRECEDING AND INTERVAL 1 MICROSECOND PRECEDING),
           twelve_weeks AS (PARTITION BY household_id ORDER BY t RANGE BETWEEN
               INTERVAL 84 DAYS PRECEDING AND INTERVAL 1 MICROSECOND PRECEDING),
           before AS (PARTITION BY household_id ORDER BY t RANGE BETWEEN
               UNBOUNDED PRECEDING AND INTERVAL 1 MICROSECOND PRECEDING)
)
SELECT household_id, t, t, coalesce(spend_28d, 0)::DOUBLE, coalesce(spend_84d, 0)::DOUBLE,
       coalesce(baskets_28d, 0)::BIGINT, (epoch_us(t) - epoch_us(last_bought)) / 86400e6,
       spend::DOUBLE / baskets::DOUBLE, coalesce(redemptions_84d, 0)::BIGINT
FROM framed WHERE snapshot ORDER BY t, household_id
"""


def snapshot_times(cut: datetime) -> list[datetime]:
    """Mondays 00:00 UTC of the data's year, and the cut, in order and without repeats."""
    first = START + timedelta(days=-START.weekday() % 7)
    weeks = range((END - first) // timedelta(weeks=1) + 1)
    mondays = {first + timedelta(weeks=week) for week in weeks}
    return sorted({monday for monday in mondays if monday < END} | {cut})


def write_household_stats(folder: Path, cut: datetime) -> int:
    """Write `household_stats.parquet` from the folder's purchases and redemptions.

    One row per snapshot and household that bought before it: money in the data's currency over
    the last 28 and 84 days, baskets begun in 28 days, days (fractions kept) since the last
    purchase, mean money per basket over all history, coupon redemptions in 84 days.
    `created_timestamp` is the snapshot: the demo's weekly job is taken to be punctual. Returns
    the rows written. Raises SpecError when `cut` has no time zone.
    """
    check_cut(cut)
    values = {
        "purchases": str(table_path(folder, "purchases")),
        "redemptions": str(table_path(folder, "redemptions")),
        "snapshots": snapshot_times(cut),
    }
    return write_query(folder, "household_stats", _SQL, values)
