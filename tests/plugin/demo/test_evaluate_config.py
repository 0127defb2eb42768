"""The shipped evaluation config fits the shipped feature repo and the tables of both makers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.text import render
from feast_anchor.plugin.demo import CUT, HORIZON, table_path
from feast_anchor.plugin.demo.tables import EVALUATION_SCENARIOS
from feast_anchor.plugin.train import load_modalities
from tiny import TINY_CUT, TINY_MODALITIES, build_corpus, tiny_events

REPOSITORY = Path(__file__).resolve().parents[3] / "feature_repo"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "evaluate.toml").read_text("utf-8"))


def topics(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    found = scenario.get("topic", [])
    return found if isinstance(found, list) else [found]


def test_every_label_column_is_a_scenario_and_the_other_way_round(config: dict[str, Any]) -> None:
    """Scenarios, cut and window of the config are those of the labels table."""
    assert list(config["scenarios"]) == list(EVALUATION_SCENARIOS)
    assert (config["cut"], config["horizon_days"]) == (CUT, HORIZON.days)


def test_every_phrasing_is_there_and_stands_once(config: dict[str, Any]) -> None:
    """Each scenario asks in one trained and three unseen ways, none used twice."""
    scenarios = config["scenarios"].values()
    asked = [text for s in scenarios for text in (s["query"], *s["unseen"])]
    assert len(set(asked)) == len(asked) == 4 * len(scenarios)


def test_unseen_phrasings_share_few_words_with_the_query(config: dict[str, Any]) -> None:
    """No unseen phrasing repeats half of the words of the question it stands for."""
    for scenario in config["scenarios"].values():
        words = set(runs(scenario["query"], 1))
        for unseen in scenario["unseen"]:
            assert len(words & set(runs(unseen, 1))) * 2 < len(words)


def test_unseen_phrasings_share_few_words_with_what_training_asks(config: dict[str, Any]) -> None:
    """None has five words in a row that a phrasing of the corpus has too, whatever it is about."""
    corpus = build_corpus(tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="household")
    trained = {run for q in corpus.questions for text in q.phrasings for run in runs(text, 5)}
    assert "mostly in the first half" in trained
    for scenario in config["scenarios"].values():
        for text in scenario["unseen"]:
            assert not trained & set(runs(text, 5)), text


def runs(text: str, length: int) -> list[str]:
    """Every run of so many words, without case and punctuation."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return [" ".join(words[at : at + length]) for at in range(len(words) - length + 1)]


def test_topics_name_some_but_not_all_events(config: dict[str, Any], marketplace: Path) -> None:
    """Each topic's text stands in events of its modality; department topics meet no other."""
    texts = {
        modality.view.name: pc.drop_null(
            render(modality.text, pq.read_table(table_path(marketplace, modality.view.name)))
        )
        for modality in load_modalities(REPOSITORY, config["modalities"])
    }
    for name, scenario in config["scenarios"].items():
        for topic in topics(scenario):
            about = pc.match_substring(texts[topic["modality"]], topic["contains"])
            assert pc.any(about).as_py(), name
    meat = pc.match_substring(texts["purchases"], config["scenarios"]["meat"]["topic"]["contains"])
    assert not pc.any(pc.match_substring(texts["purchases"].filter(meat), "PCKGD")).as_py()
