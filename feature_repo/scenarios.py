"""What we ask about a household: one vector per question, served beside the ranking features."""

from datetime import timedelta
from pathlib import Path

from entities import household
from events import DATA, MODALITIES
from feast import FeatureService
from ranking import household_stats

from feast_anchor.plugin import Scenario, scenario_view

shopper = scenario_view(
    name="shopper_v1",
    entity=household,
    events=MODALITIES,
    scenarios=[
        Scenario(
            "coupon_redeemer",
            "Will this household redeem a coupon in the next four months?",
            score=True,  # adds coupon_redeemer_score, for as long as there are no labels
        ),
        Scenario("fresh_produce", "Will this household buy fresh produce in the next four months?"),
        Scenario("meat_lover", "Will this household buy fresh meat in the next four months?"),
        Scenario(
            "spend_growth",
            "Will this household spend more in the next four months than in the last?",
        ),
        Scenario("churn", "Will this household buy nothing at all in the next four months?"),
        Scenario(
            "morning_shopper",
            "Will this household shop mostly in the morning in the next four months?",
        ),
        Scenario("general", None),  # no question: the control that the others are compared with
    ],
    bundle=Path("models") / "shopper",
    sink=DATA / "shopper_v1",
    ttl=timedelta(days=30),
    snapshots="7d",
    description="Query-conditioned household embeddings, weekly snapshots.",
)

campaign_ranker = FeatureService(name="campaign_ranker", features=[household_stats, shopper])
