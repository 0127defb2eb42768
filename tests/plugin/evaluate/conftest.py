"""A shop to evaluate: a feature repo, labels at three as-of times and an evaluation file."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shop import UTC_STAMP, make_tables, write_tables

# On a busy machine torch's threads wait for each other many times longer than they compute.
torch.set_num_threads(1)

USERS = 140
CUT = datetime(2024, 2, 15, tzinfo=UTC)
EARLIER = (datetime(2024, 1, 20, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC))
TOO_LATE = datetime(2024, 2, 10, tzinfo=UTC)  # its window is not over by the cut

DEFINITIONS = """
    from pathlib import Path

    from shop import modalities

    MODALITIES = modalities(Path(__file__).parent / "tables")
    """

CONFIG = """
    repo = "."
    modalities = "definitions:MODALITIES"
    labels = "labels.parquet"
    cut = 2024-02-15T00:00:00Z
    horizon_days = 14
    rounds = 100
    draws = 2

    [train]
    steps = 3
    histories = 8
    questions = 6
    snapshots = 2
    topics = 4
    model = { text = 16, hidden = 32, ff = 48, head_hidden = 32, embedding = 16 }

    [scenarios.tea]
    query = "Will this shopper buy tea next month?"
    unseen = ["Is green tea something they will get?", "Do they drink tea?"]
    topic = { modality = "orders", contains = "green tea" }

    [scenarios.active]
    label = "many"
    query = "Will this shopper come often?"
    """


def labels_table(seed: int = 0) -> pa.Table:
    """Labels of every user at every as-of: tea by chance, many by the number of orders."""
    orders = make_tables(USERS)["orders"].to_pandas()
    count = orders.groupby("shopper_id").size()
    rng = np.random.default_rng(seed)
    rows = [
        {
            "shopper_id": user,
            "event_timestamp": moment,
            "tea": None if rng.random() < 0.05 else bool(rng.random() < 0.4),
            "many": bool(count[user] > 20),
        }
        for moment in (*EARLIER, TOO_LATE, CUT)
        for user in sorted(count.index)
    ]
    kinds = {"shopper_id": pa.string(), "event_timestamp": UTC_STAMP}
    return pa.Table.from_pylist(rows, pa.schema({**kinds, "tea": pa.bool_(), "many": pa.bool_()}))


WriteEvaluation = Callable[..., Path]


def write_evaluation(folder: Path, labels: pa.Table | None = None, text: str = CONFIG) -> Path:
    """Write the shop's repo, labels and evaluation file into a folder; returns the file."""
    write_tables(folder / "tables", make_tables(USERS))
    (folder / "definitions.py").write_text(textwrap.dedent(DEFINITIONS), "utf-8")
    pq.write_table(labels_table() if labels is None else labels, folder / "labels.parquet")
    path = folder / "evaluate.toml"
    path.write_text(textwrap.dedent(text), "utf-8")
    return path


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteEvaluation:
    """Writes the shop to evaluate into a folder; takes other labels or another text."""
    import sys

    monkeypatch.delitem(sys.modules, "definitions", raising=False)

    def write(**changes: Any) -> Path:
        return write_evaluation(tmp_path, **changes)

    return write
