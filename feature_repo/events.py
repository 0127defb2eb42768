"""What households do: one raw feature view per event table, and how the model reads each.

The views are `online=False`: they are inputs, nobody looks them up. Columns beyond those named in
`text` and `amount` stay unread.
"""

from pathlib import Path

from entities import household
from feast import FeatureView, Field, FileSource
from feast.types import Float64, String

from feast_anchor.plugin import Modality

DATA = Path(__file__).parent / "data"


def event_view(name: str, *columns: Field) -> FeatureView:
    """A feature view over the event table `data/<name>.parquet`."""
    return FeatureView(
        name=name,
        entities=[household],
        source=FileSource(
            name=f"{name}_table",
            path=str(DATA / f"{name}.parquet"),
            timestamp_field="event_timestamp",
        ),
        schema=[Field(name="household_id", dtype=String), *columns],
        online=False,
    )


purchases = event_view(
    "purchases",
    Field(name="product_type", dtype=String),
    Field(name="department", dtype=String),
    Field(name="brand", dtype=String),
    Field(name="sales_value", dtype=Float64),
)
redemptions = event_view(
    "redemptions",
    Field(name="campaign_type", dtype=String),
    Field(name="department", dtype=String),
)
mailings = event_view("mailings", Field(name="campaign_type", dtype=String))
demographics = event_view(
    "demographics",
    Field(name="age", dtype=String),
    Field(name="income", dtype=String),
    Field(name="home_ownership", dtype=String),
    Field(name="marital_status", dtype=String),
    Field(name="household_size", dtype=String),
    Field(name="household_comp", dtype=String),
    Field(name="kids_count", dtype=String),
)

BEHAVIOUR = [  # what households did, without who they are: `kids` and `income` stay questions
    Modality(purchases, text="{product_type} in {department}, {brand}", amount="sales_value"),
    Modality(redemptions, text="redeemed a {campaign_type} coupon for {department}", max_events=32),
    Modality(mailings, text="was mailed campaign {campaign_type}", max_events=32),
]

MODALITIES = [
    *BEHAVIOUR,
    Modality(
        demographics,
        text="age {age}, income {income}, {household_size} people, {household_comp}, "
        "{kids_count} kids, {home_ownership}, {marital_status}",
        table=True,
    ),
]
