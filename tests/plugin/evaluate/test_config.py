"""The evaluation file: what it takes, and what it says of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.evaluate.config import load_config

SMALL = """
repo = "shop"
cut = 2024-02-15T00:00:00Z
horizon_days = 14

[scenarios.tea]
query = "Will they buy tea?"
topic = { modality = "orders", contains = "tea" }

[scenarios.often]
label = "many"
query = "Will they come often?"
topic = [{ modality = "orders" }, { modality = "visits", hours = [6, 12] }]
"""


def write(folder: Path, text: str) -> Path:
    """Write an evaluation file."""
    path = folder / "evaluate.toml"
    path.write_text(text, "utf-8")
    return path


def test_paths_are_relative_to_the_file_and_topics_are_one_or_many(tmp_path: Path) -> None:
    """The repo lies beside the file, the labels in the repo; a scenario's column has its name."""
    config = load_config(write(tmp_path, SMALL))
    assert config.repo == tmp_path / "shop"
    assert config.labels == tmp_path / "shop" / "data" / "evaluation_labels.parquet"
    assert [config.column(name) for name in config.names] == ["tea", "many"]
    assert [len(scenario.topic) for scenario in config.scenarios.values()] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("14", '"soon"'), "horizon_days"),
        (("horizon_days = 14", ""), "horizon_days: Field required"),
        (("00:00:00Z", "00:00:00"), "cut: Input should have timezone info"),
        (("repo =", "repos ="), "repos: Extra inputs"),
        (("horizon_days", "test_share = 0.9\nhorizon_days"), "leave nobody to train on"),
        (('label = "many"', 'unseen = ["Will they come often?"]'), "among the unseen phrasings"),
        (("[scenarios.tea]", "[scenarios.tea"), "not valid TOML"),
        (("scenarios.tea", "scenarios.green-tea"), "scenario 'green-tea', expected letters"),
        (("Will they buy tea?", " "), "scenarios.tea.query: String should match"),
        (('label = "many"', "positive = []"), "scenarios.often.positive: .* at least 1 item"),
        (("[scenarios.tea]", "[full]\nseeds = []\n[scenarios.tea]"), "full.seeds: .* at least 1"),
        (("[scenarios.tea]", "[[full.variants]]\nname = 'a b'\n[scenarios.tea]"), "pattern"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    """Each wrong setting is refused by name, with the file's path."""
    with pytest.raises(SpecError, match=message) as refused:
        load_config(write(tmp_path, SMALL.replace(*change, 1)))
    assert "evaluate.toml" in str(refused.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """No file: the message says where one was expected and where to read how to write it."""
    with pytest.raises(SpecError, match="no evaluation file at .*docs/evaluate.md"):
        load_config(tmp_path / "evaluate.toml")


def test_the_digest_follows_settings_and_not_places(tmp_path: Path) -> None:
    """The same file elsewhere has the same digest, another query another one."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    first = load_config(write(one, SMALL)).digest()
    assert load_config(write(other, SMALL)).digest() == first
    assert load_config(write(other, SMALL.replace("buy tea", "want tea"))).digest() != first
