"""`feast-anchor tune` from end to end on the shop, and what it says of labels it cannot use."""

from __future__ import annotations

import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.plugin.cli import app
from feast_anchor.plugin.readings import readings_of
from feast_anchor.plugin.tune import read_rows
from feast_anchor.transforms.histories import micros
from shop import END, QUERIES, START, UTC_STAMP, make_tables, shop_store, write_tables

USERS = 60
MIDDLE = END - timedelta(days=20)
MODULE = """
from pathlib import Path

from shop import modalities

MODALITIES = modalities(Path(__file__).parent / "tables")
"""
KINDS = {"shopper_id": pa.string(), "event_timestamp": UTC_STAMP, "tea": pa.bool_()}


def label_rows(users: int = USERS) -> list[dict[str, Any]]:
    """Whether a shopper buys tea often, asked at three instants, and one shopper nobody knows."""
    orders = make_tables(users)["orders"].to_pandas()
    count = orders[orders["item"] == "green tea"].groupby("shopper_id").size()
    names = [*sorted(set(orders["shopper_id"])), "stranger"]
    return [
        {"shopper_id": user, "event_timestamp": at, "tea": bool(count.get(user, 0) > 3)}
        for user in names
        for at in (START - timedelta(days=2), MIDDLE, END)
    ]


def write_labels(path: Path, rows: list[dict[str, Any]], **kinds: pa.DataType) -> Path:
    """Write label rows as Parquet."""
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(KINDS | kinds)), path)
    return path


@pytest.fixture
def repo(tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A feature repo with tables, labels and a bundle of its own."""
    monkeypatch.delitem(sys.modules, "events", raising=False)
    write_tables(tmp_path / "tables", make_tables(USERS))
    (tmp_path / "events.py").write_text(MODULE)
    write_labels(tmp_path / "labels.parquet", label_rows())
    shutil.copytree(shop_bundle, tmp_path / "model")
    return tmp_path


def tune(repo: Path, *options: str, query: tuple[str, ...] = ("--query", QUERIES["tea"])) -> Result:
    """`feast-anchor tune tea` in a repo, in ten steps."""
    fixed = ["tune", "tea", "--labels", str(repo / "labels.parquet"), "--repo", str(repo)]
    fixed += ["--bundle", str(repo / "model"), "--steps", "10", *query]
    return CliRunner().invoke(app, [*fixed, *options], env={"COLUMNS": "400"})


def test_tune_adds_a_prompt_and_says_what_to_write(repo: Path) -> None:
    """The bundle gets a prompt, the counts of unused rows are shown, and the next step is."""
    before = Bundle.open(repo / "model")
    (repo / "kept.txt").write_text("u0\nu1\n")
    result = tune(repo, "--held-out", str(repo / "kept.txt"))
    assert result.exit_code == 0, result.output
    after = Bundle.open(repo / "model")
    assert after.manifest.digest == before.manifest.digest
    assert after.prompts["tea"].shape == (6, 32)
    record = after.manifest.training["prompts"]["tea"]
    assert record["query"] == QUERIES["tea"]
    assert record["users"] <= USERS - 2
    text = result.output
    assert "6 held out, 3 users without events" in text
    assert "before the first event" in text
    assert "prompt='tea'" in text
    assert before.fingerprint(QUERIES["tea"]) in text
    assert after.fingerprint(QUERIES["tea"], "tea") in text
    again = tune(repo)
    assert again.exit_code == 1
    assert "--replace" in again.stderr
    assert tune(repo, "--replace", "--seed", "1").exit_code == 0
    moved = Bundle.open(repo / "model")
    assert moved.fingerprint("q", "tea") != after.fingerprint("q", "tea")


def test_the_question_comes_from_a_view(repo: Path) -> None:
    """--view takes the scenario's question from the registry; it must know view and scenario."""
    with shop_store(repo, repo / "model", tables=make_tables(USERS)):
        (repo / "feature_store.yaml").write_text(
            "project: shop\nprovider: local\nregistry: registry.db\n"
            "offline_store: {type: duckdb}\nonline_store: {type: sqlite, path: online.db}\n"
            "entity_key_serialization_version: 3\n"
        )
    unknown = tune(repo, query=("--view", "nope"))
    assert unknown.exit_code == 1
    assert "feast apply" in unknown.stderr
    assert tune(repo, query=()).exit_code == 1
    result = tune(repo, query=("--view", "taste_v1"))
    assert result.exit_code == 0, result.output
    record = Bundle.open(repo / "model").manifest.training["prompts"]["tea"]
    assert record["query"] == QUERIES["tea"]


def read(path: Path, column: str = "tea", most: int = 1000) -> Any:
    """The rows of a label file."""
    return read_rows(path, "shopper_id", column, (), most, 0)


def test_labels_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A missing column, naive times, one class and two labels at one time are readable errors."""
    path, rows = tmp_path / "labels.parquet", label_rows(5)
    write_labels(path, rows)
    with pytest.raises(SourceError, match="--label-column"):
        read(path, "coffee")
    with pytest.raises(SourceError, match="a timestamp with a time zone"):
        read(write_labels(path, rows, event_timestamp=pa.timestamp("us")))
    with pytest.raises(SourceError, match="0 positive and 15 negative"):
        read(write_labels(path, [row | {"tea": False} for row in rows[:15]]))
    with pytest.raises(SourceError, match="two labels for shopper_id 'u0'"):
        read(write_labels(path, [*rows, rows[0]]))
    with pytest.raises(SourceError, match="has an event"):
        read(write_labels(path, rows)).known({"nobody"})


def test_unlabelled_rows_and_those_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    """Null labels are left out, and a lot decides who is within the limit."""
    rows = label_rows(10)
    rows[0]["tea"] = None
    found = read(write_labels(tmp_path / "labels.parquet", rows), most=12)
    assert len(found.rows) == len(found.y) == 12
    assert found.left["without a label"] == 1
    assert found.left["beyond the limit of 12"] == len(rows) - 13


def test_a_reading_ends_strictly_before_its_own_as_of(shop_bundle: Path) -> None:
    """Each row reads the events before its as-of, not at it, and none of another row's."""
    bundle = Bundle.open(shop_bundle)
    times = [START + timedelta(days=day) for day in (1, 2, 3)]
    events = pa.table(
        {
            "user": ["a", "b", "a"],
            "event_timestamp": pa.array([times[0], times[1], times[2]], UTC_STAMP),
            "modality": pa.array([0, 0, 0], pa.int16()),
            "text": ["bread in food", "soap in home", "apples in food"],
            "amount": pa.array([1.0, 2.0, 3.0], pa.float32()),
        }
    )

    def read_at(user: str, moment: datetime) -> Any:
        return readings_of(bundle, events, [(user, micros(moment))])[0]

    assert read_at("a", times[0]) is None
    assert read_at("nobody", END) is None
    assert len(read_at("a", times[2]).modality) == 1
    late = read_at("a", times[2] + timedelta(microseconds=1))
    texts = bundle.encode_texts(["bread in food", "apples in food"])
    assert np.array_equal(late.vectors, texts)
    both = readings_of(bundle, events, [("b", micros(END)), ("a", micros(END))])
    assert [reading.user for reading in both if reading] == ["b", "a"]
