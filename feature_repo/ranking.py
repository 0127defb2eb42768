"""A ranking feature view as the team already had it: spend, frequency, recency."""

from datetime import timedelta

from entities import household
from events import DATA
from feast import FeatureView, Field, FileSource
from feast.types import Float64, Int64, String

household_stats = FeatureView(
    name="household_stats",
    entities=[household],
    source=FileSource(
        name="household_stats_table",
        path=str(DATA / "household_stats.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    ),
    schema=[
        Field(name="household_id", dtype=String),
        Field(name="spend_28d", dtype=Float64),
        Field(name="spend_84d", dtype=Float64),
        Field(name="baskets_28d", dtype=Int64),
        Field(name="days_since_purchase", dtype=Float64),
        Field(name="mean_basket", dtype=Float64),
        Field(name="redemptions_84d", dtype=Int64),
    ],
    ttl=timedelta(days=30),
)
