"""The command line and the feature repo that ships with the project."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from feast_anchor.plugin.cli import app
from feast_anchor.plugin.demo import SCENARIO_LABELS
from feast_anchor.plugin.train import inside, load_modalities
from shop import END, START, shop_store

REPOSITORY = Path(__file__).resolve().parents[2]
REPO_MODULES = ("entities", "events", "ranking", "scenarios")
WIDE = {"COLUMNS": "200"}


@pytest.fixture(autouse=True)
def _fresh_imports() -> None:
    """Each test imports a feature repo's modules anew."""
    for name in REPO_MODULES:
        sys.modules.pop(name, None)


def test_help_names_every_command_and_the_order_to_use_them() -> None:
    """`feast-anchor` alone teaches: commands with a sentence each, and where to begin."""
    result = CliRunner().invoke(app, ["--help"], env=WIDE)
    assert result.exit_code == 0
    for command in ("demo", "train", "evaluate", "bundle", "runs", "dead-letters"):
        assert re.search(rf"{command} +\S+", result.output)
    assert "feast materialize" in result.output


def test_bundle_verifies_and_describes(shop_bundle: Path) -> None:
    """`feast-anchor bundle` prints digest, modalities and parity of a good bundle."""
    result = CliRunner().invoke(app, ["bundle", str(shop_bundle)], env=WIDE)
    assert result.exit_code == 0
    assert "verified" in result.output
    assert "{item} in {aisle}" in result.output


def test_evaluate_shows_a_file_and_refuses_another_part(tmp_path: Path) -> None:
    """The help holds an evaluation file to start from; a misspelt part names the two there are."""
    shown = CliRunner().invoke(app, ["evaluate", "--help"], env=WIDE)
    assert 'query = "Will this household buy fresh produce' in shown.output
    assert "[scenarios.produce]" in shown.output
    assert "[full]" in shown.output
    file = str(tmp_path / "evaluate.toml")
    wrong = CliRunner().invoke(app, ["evaluate", file, "--part", "train"], env=WIDE)
    assert wrong.exit_code == 1
    assert "expected 'test' or 'validation'" in wrong.stderr
    missing = CliRunner().invoke(app, ["evaluate", file], env=WIDE)
    assert "no evaluation file" in missing.stderr


def test_a_known_error_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    """A missing bundle exits 1 and says what to do; no stack trace."""
    result = CliRunner().invoke(app, ["bundle", str(tmp_path)], env=WIDE)
    assert result.exit_code == 1
    assert "train one with" in result.stderr
    assert "Traceback" not in result.output


def test_runs_and_dead_letters_read_the_catalogue(tmp_path: Path, shop_bundle: Path) -> None:
    """A finished run is listed with its id, and its dead letters can be asked for."""
    with shop_store(tmp_path, shop_bundle) as store:
        store.materialize(START, END)
    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\n"
        "offline_store: {type: duckdb}\nonline_store: {type: sqlite, path: online.db}\n"
        "entity_key_serialization_version: 3\n"
        "batch_engine: {type: feast_anchor.plugin.BeamComputeEngine, "
        "catalog: 'sqlite:///anchor.db'}\n"
    )
    result = CliRunner().invoke(app, ["runs", "--repo", str(tmp_path)], env=WIDE)
    assert result.exit_code == 0, result.output
    assert "SUCCEEDED" in result.output
    found = re.search(r"\b[0-9a-f]{16}\b", result.output)
    assert found
    letters = CliRunner().invoke(app, ["dead-letters", found[0], "--repo", str(tmp_path)], env=WIDE)
    assert letters.exit_code == 0
    unknown = CliRunner().invoke(app, ["dead-letters", "nope", "--repo", str(tmp_path)], env=WIDE)
    assert unknown.exit_code == 1
    assert "0 runs begin with 'nope'" in unknown.stderr


def test_the_shipped_repo_asks_what_the_labels_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every labelled scenario stands in feature_repo/scenarios.py with the same query."""
    text = (REPOSITORY / "feature_repo" / "scenarios.py").read_text("utf-8")
    for name, query in SCENARIO_LABELS.items():
        assert re.search(rf'"{name}",\s+"{re.escape(query)}"', text), name


def test_the_shipped_modalities_load() -> None:
    """feature_repo/events.py declares four modalities, one of them a table."""
    modalities = load_modalities(REPOSITORY / "feature_repo", "events:MODALITIES")
    assert [modality.view.name for modality in modalities] == [
        "purchases",
        "redemptions",
        "mailings",
        "demographics",
    ]
    assert [modality.table for modality in modalities] == [False, False, False, True]


def test_inside_restores_the_working_directory(tmp_path: Path) -> None:
    """Whatever happens within, the caller's directory and import path come back."""
    before, path = Path.cwd(), list(sys.path)
    with pytest.raises(RuntimeError, match="boom"), inside(tmp_path):
        raise RuntimeError("boom")
    assert Path.cwd() == before
    assert sys.path == path
