"""A small shop for tests: event tables, a bundle that reads them, and a Feast repo over both.

The bundle has random weights: what the pipeline does with a model does not depend on how good the
model is, and exporting one takes seconds where training takes minutes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_source import DataSource
from feast.types import Float64, String

from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.plugin import Modality, Scenario, scenario_view
from feast_anchor.plugin.config import parse_config
from feast_anchor.plugin.repo import Repo
from feast_anchor.transforms.events import ROW_SCHEMA
from feast_anchor.transforms.histories import ShardHistories, build_histories
from feast_anchor.transforms.scoring import Question

START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2024, 3, 1, tzinfo=UTC)
UTC_STAMP = pa.timestamp("us", tz="UTC")
SHARDS = 4

SPECS = (
    ModalitySpec(name="orders", text="{item} in {aisle}", amount=True, max_events=16),
    ModalitySpec(name="profiles", kind="table", text="age {age}", max_events=1),
)
TEXTS = ("green tea in drinks", "soap in home", "bread in food", "age old")
"""Texts of events; the last is a profile's."""
QUESTIONS = (
    Question("Will this shopper buy tea next month?"),
    Question("churn?"),
    Question(None),
    Question("Will this shopper buy green tea or oat milk or bread next month in food?"),
    Question("Will this shopper stop?"),
)
Users = dict[str, list[tuple[int, int, float]]]
"""Per user its events: microseconds, number of the text, amount."""
QUERIES = {
    "tea": "Will this shopper buy tea next month?",
    "churn": "Will this shopper stop coming?",
}

Tables = Mapping[str, pa.Table]


def make_tables(users: int = 20, seed: int = 0) -> dict[str, pa.Table]:
    """Orders of two months, from the first day on, and profiles; events per user 1 to 40."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for user in range(users):
        for _ in range(int(rng.integers(1, 40))):
            seconds = int(rng.integers(0, int((END - START).total_seconds())))
            rows.append(
                {
                    "shopper_id": f"u{user}",
                    "event_timestamp": START + timedelta(seconds=seconds),
                    "item": rng.choice(["green tea", "oat milk", "bread", "apples", "soap"]),
                    "aisle": rng.choice(["drinks", "food", "home"]),
                    "spend": float(np.round(rng.gamma(2, 3), 2)),
                }
            )
    profiles = [
        {
            "shopper_id": f"u{user}",
            "event_timestamp": START - timedelta(days=1),
            "age": rng.choice(["young", "old"]),
        }
        for user in range(0, users, 2)
    ]
    return {"orders": orders(rows), "profiles": profile_rows(profiles)}


def orders(rows: list[dict[str, Any]]) -> pa.Table:
    """Order rows as a table."""
    return pa.Table.from_pylist(
        rows,
        pa.schema(
            {
                "shopper_id": pa.string(),
                "event_timestamp": UTC_STAMP,
                "item": pa.string(),
                "aisle": pa.string(),
                "spend": pa.float64(),
            }
        ),
    )


def profile_rows(rows: list[dict[str, Any]]) -> pa.Table:
    """Profile rows as a table."""
    return pa.Table.from_pylist(
        rows,
        pa.schema({"shopper_id": pa.string(), "event_timestamp": UTC_STAMP, "age": pa.string()}),
    )


def write_tables(folder: Path, tables: Tables) -> None:
    """Write each table as `folder/<name>.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")


def write_bundle(folder: Path, seed: int = 0, embedding: int = 128) -> Path:
    """Export a bundle with random weights that reads `SPECS`."""
    return export_random(folder, SPECS, "shopper", seed, embedding)


def export_random(
    folder: Path, specs: Sequence[ModalitySpec], entity: str, seed: int = 0, embedding: int = 128
) -> Path:
    """Export a bundle with random weights for some modalities."""
    import torch

    from feast_anchor.onnx_export.export import BundleInfo, export_bundle
    from feast_anchor.onnx_export.model import Anchor, ModelConfig
    from feast_anchor.onnx_export.vocabulary import special_ids, train_tokenizer

    words = ["green tea oat milk bread apples soap", "in drinks food home age young old"]
    tokenizer = train_tokenizer([*words, *QUERIES.values()] * 4, 400)
    torch.manual_seed(seed)
    config = ModelConfig(
        query_tokens=True, text=16, hidden=32, ff=48, readout=32, embedding=embedding
    )
    model = Anchor(config, special_ids(tokenizer), len(specs))
    info = BundleInfo("random", entity, tuple(specs), 48, 48, {})
    export_bundle(model, tokenizer, info, folder)
    return folder


def entity() -> Entity:
    """The shopper."""
    return Entity(name="shopper", join_keys=["shopper_id"], value_type=ValueType.STRING)


def event_view(folder: Path, name: str, *columns: Field, **source: Any) -> FeatureView:
    """A raw feature view over `folder/<name>.parquet`."""
    return FeatureView(
        name=name,
        entities=[entity()],
        source=FileSource(
            name=f"{name}_table",
            path=str(folder / f"{name}.parquet"),
            timestamp_field="event_timestamp",
            **source,
        ),
        schema=[Field(name="shopper_id", dtype=String), *columns],
        online=False,
    )


def modalities(folder: Path) -> list[Modality]:
    """The modalities of `SPECS` over the tables in a folder."""
    orders_view = event_view(
        folder, "orders", Field(name="item", dtype=String), Field(name="spend", dtype=Float64)
    )
    profiles_view = event_view(folder, "profiles", Field(name="age", dtype=String))
    return [
        Modality(orders_view, text="{item} in {aisle}", amount="spend", max_events=16),
        Modality(profiles_view, text="age {age}", table=True),
    ]


def shop_view(
    repo: Path,
    bundle: Path,
    name: str = "taste_v1",
    queries: Mapping[str, str] = QUERIES,
    sink: Path | DataSource | None = None,
) -> FeatureView:
    """A scenario view over the shop's tables."""
    return scenario_view(
        name=name,
        entity=entity(),
        events=modalities(repo / "tables"),
        scenarios=[Scenario(key, query) for key, query in queries.items()],
        bundle=bundle,
        sink=sink or repo / "sinks" / name,
        ttl=timedelta(days=30),
        snapshots="7d",
    )


def config(
    repo: Path,
    online: Mapping[str, Any] | None = None,
    offline: Mapping[str, Any] | None = None,
    **engine: Any,
) -> RepoConfig:
    """A repo's configuration: embedded stores unless told otherwise."""
    return RepoConfig(
        project="shop",
        provider="local",
        registry=str(repo / "registry.db"),
        offline_store=dict(offline or {"type": "duckdb"}),
        online_store=dict(online or {"type": "sqlite", "path": str(repo / "online.db")}),
        batch_engine={
            "type": "feast_anchor.plugin.BeamComputeEngine",
            "shards": SHARDS,
            "catalog": "sqlite:///anchor.db",
            "state": "state",
            **engine,
        },
        entity_key_serialization_version=3,
        repo_path=repo,
    )


@contextmanager
def shop_store(
    repo: Path,
    bundle: Path,
    tables: Tables | None = None,
    views: Callable[[Path, Path], list[FeatureView]] | None = None,
    **settings: Any,
) -> Iterator[FeatureStore]:
    """An applied feature store over tables written into the repo."""
    write_tables(repo / "tables", make_tables() if tables is None else tables)
    declared = views(repo, bundle) if views else [shop_view(repo, bundle)]
    store = FeatureStore(config=config(repo, **settings))
    raw = {m.view.name: m.view for m in modalities(repo / "tables")}
    store.apply([entity(), *raw.values(), *declared])
    yield store


def repo_of(store: FeatureStore) -> Repo:
    """The repo as our commands see it; its settings stand in the store, not in a file."""

    class InMemory(Repo):
        def store(self) -> FeatureStore:
            return store

    folder = Path(str(store.config.repo_path))
    return InMemory(folder, parse_config(store.config.batch_engine_config))


def offline_rows(repo: Path, view: str = "taste_v1") -> pd.DataFrame:
    """Every row of a view's sink, in a fixed order, without the time of computing."""
    parts = sorted((repo / "sinks" / view).glob("run-*/part-*.parquet"))
    frame: pd.DataFrame = pa.concat_tables([pq.read_table(part) for part in parts]).to_pandas()
    frame = frame.drop(columns="created_timestamp")
    return frame.sort_values(["shopper_id", "event_timestamp"], ignore_index=True)


def online_rows(
    store: FeatureStore, users: list[str], view: str = "taste_v1", field: str = "tea"
) -> dict[str, bytes]:
    """Each user's stored vector as bytes, from the online store; users without one are left out."""
    response = store.get_online_features(
        features=[f"{view}:{field}"], entity_rows=[{"shopper_id": user} for user in users]
    ).to_dict()
    return {
        user: np.asarray(vector, dtype="<f4").tobytes()
        for user, vector in zip(response["shopper_id"], response[field], strict=True)
        if vector is not None
    }


REPO_FILES = {
    "feature_store.yaml": """
        project: shop
        provider: local
        registry: registry.db
        offline_store: {type: duckdb}
        online_store: {type: sqlite, path: online.db}
        entity_key_serialization_version: 3
        batch_engine:
          type: feast_anchor.plugin.BeamComputeEngine
          shards: 4
          threads: 1
          catalog: sqlite:///anchor.db
          state: state
        """,
    "definitions.py": """
        from pathlib import Path

        from shop import entity, modalities, shop_view

        REPO = Path(__file__).parent
        shopper = entity()
        orders, profiles = (modality.view for modality in modalities(REPO / "tables"))
        taste = shop_view(REPO, REPO / "model")
        """,
}


def write_repo(repo: Path) -> None:
    """Write the repo's files as a team has them, for tests that run Feast's own command line."""
    for name, text in REPO_FILES.items():
        (repo / name).write_text(textwrap.dedent(text), "utf-8")


def histories_of(
    users: Users, as_of: list[int], specs: Sequence[ModalitySpec] = SPECS
) -> ShardHistories:
    """Histories of some users cut at each as-of."""
    rows = [
        {
            "user": user,
            "event_timestamp": time,
            "modality": int(text == 3),
            "text": TEXTS[text],
            "amount": amount,
        }
        for user, events in users.items()
        for time, text, amount in events
    ]
    return build_histories(pa.Table.from_pylist(rows, ROW_SCHEMA), as_of, specs)
