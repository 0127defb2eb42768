"""A campaign ranker: who should get the coupon? Train on an offline join, score online.

    python ranker.py

It uses Feast, NumPy, pandas and scikit-learn alone. Training joins labels with the features as
they were at each label's time; scoring looks up the same feature service online. The vector of the
scenario `coupon_redeemer` is one more group of columns beside the ranking features.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from feast import FeatureStore
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

REPO = Path(__file__).parent
LABEL = SCENARIO = "coupon_redeemer"
VECTOR_SCALE = 10.0  # a coordinate of a unit vector is about .1
RANKING = ["spend_28d", "spend_84d", "baskets_28d", "days_since_purchase", "redemptions_84d"]


def train(store: FeatureStore) -> Pipeline:
    """Fit on the labelled households that are not held out, each as of its label's time."""
    labels = pd.read_parquet(REPO / "data" / "labels.parquet")
    labels = labels.loc[~labels["held_out"], ["household_id", "event_timestamp", LABEL]]
    joined = store.get_historical_features(
        entity_df=labels.rename(columns={LABEL: "label"}),
        features=store.get_feature_service("campaign_ranker"),
    ).to_df()
    joined = joined[joined[SCENARIO].notna()]
    scale = ColumnTransformer(
        [
            ("ranking", StandardScaler(), slice(0, len(RANKING))),
            # one scale for the whole vector, not one per coordinate: most of them hardly vary
            ("vector", StandardScaler(with_std=False), slice(len(RANKING), None)),
        ]
    )
    model = make_pipeline(scale, LogisticRegression(C=0.01, max_iter=1000))
    return model.fit(_matrix(joined), joined["label"])


def rank(store: FeatureStore, model: Pipeline, households: list[str]) -> pd.DataFrame:
    """Score candidate households from the online store, best first."""
    found = store.get_online_features(
        features=store.get_feature_service("campaign_ranker"),
        entity_rows=[{"household_id": household} for household in households],
    ).to_df()
    found = found[found[SCENARIO].notna()].copy()
    found["score"] = model.predict_proba(_matrix(found))[:, 1]
    return found.sort_values("score", ascending=False, ignore_index=True)


def _matrix(features: pd.DataFrame) -> np.ndarray:
    """Ranking features and the scenario vector side by side, [households, 5 + dim]."""
    never = {"days_since_purchase": 365.0}  # no purchase yet is long ago, not just now
    ranking = features[RANKING].fillna(never).fillna(0.0).to_numpy(dtype=np.float64)
    vectors = np.stack(features[SCENARIO].to_numpy())
    return np.hstack([np.log1p(np.maximum(ranking, 0.0)), VECTOR_SCALE * vectors])


def main() -> None:
    """Train, score the held-out households and print the ten best."""
    store = FeatureStore(str(REPO))
    labels = pd.read_parquet(REPO / "data" / "labels.parquet")
    candidates = labels.loc[labels["held_out"], "household_id"].tolist()
    ranked = rank(store, train(store), candidates)
    print(f"{len(ranked)} candidates scored, best first:")
    columns = ["household_id", "score", f"{SCENARIO}_score", "redemptions_84d", "history_end"]
    print(ranked.head(10)[columns].to_string(index=False))


if __name__ == "__main__":
    main()
