"""The command line and the feature repo that ships with the project."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.cli import app
from feast_anchor.plugin.demo import SCENARIO_LABELS
from feast_anchor.plugin.train import inside, load_modalities
from shop import END, START, make_tables, shop_store, write_tables

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
    for command in ("demo", "train", "evaluate", "bundle", "quantize", "runs", "dead-letters"):
        assert re.search(rf"{command} +\S+", result.output)
    assert "feast materialize" in result.output


def test_bundle_verifies_and_describes(shop_bundle: Path) -> None:
    """`feast-anchor bundle` prints digest, modalities and parity of a good bundle."""
    result = CliRunner().invoke(app, ["bundle", str(shop_bundle)], env=WIDE)
    assert result.exit_code == 0
    assert "verified" in result.output
    assert "{item} in {aisle}" in result.output


def test_quantize_writes_a_bundle_and_says_how_near_it_is(
    shop_bundle: Path, tmp_path: Path
) -> None:
    """Sizes, cosines and speed are printed, and `bundle` shows what the manifest keeps of them; a
    gate that is not reached is one message and no bundle.
    """
    out = str(tmp_path / "int8")
    few = ["--users", "4", "--out", out]
    refused = CliRunner().invoke(app, ["quantize", str(shop_bundle), *few, "--gate", "1"], env=WIDE)
    assert refused.exit_code == 1
    assert "stay with the fp32 bundle" in refused.stderr
    assert not Path(out).exists()
    done = CliRunner().invoke(app, ["quantize", str(shop_bundle), *few], env=WIDE)
    assert done.exit_code == 0
    for words in ("prefix.onnx 0.", "99 % at least 0.99", "times fp32's", f"Wrote {out}"):
        assert words in done.output
    shown = CliRunner().invoke(app, ["bundle", out], env=WIDE)
    assert re.search(r"decoder +\S int8 per token", shown.output)
    assert re.search(r"quantisation source +\S [0-9a-f]{64}", shown.output)


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


def test_a_repo_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    """The folder is named, and the import path is as it was."""
    path = list(sys.path)
    with (
        pytest.raises(SpecError, match="no feature repo at .*nowhere"),
        inside(tmp_path / "nowhere"),
    ):
        pass
    assert sys.path == path


TRAINABLE = """
from pathlib import Path

from shop import modalities

MODALITIES = modalities(Path(__file__).parent / "tables")
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A repo with event tables, and the configurations that training is called with in it."""
    from feast_anchor.onnx_export import training

    configs: list[Any] = []

    def train_bundle(events: Any, modalities: Any, *, config: Any, **rest: Any) -> Any:
        configs.append(config)
        return SimpleNamespace(digest=f"of {events.num_rows} events")

    monkeypatch.setattr(training, "train_bundle", train_bundle)
    write_tables(tmp_path / "tables", make_tables())
    (tmp_path / "events.py").write_text(TRAINABLE)
    return configs


def train(repo: Path, *options: str) -> Result:
    """`feast-anchor train` in a repo."""
    fixed = ["train", "--cut", "2024-03-01", "--repo", str(repo), "--out", str(repo / "bundle")]
    return CliRunner().invoke(app, [*fixed, *options], env=WIDE)


def test_train_takes_its_settings_from_a_file(tmp_path: Path, told: list[Any]) -> None:
    """--config sets what the file says; options replace it and say that they do."""
    (tmp_path / "train.toml").write_text("steps = 7\nhistories = 5\nseed = 3\n")
    file = ("--config", str(tmp_path / "train.toml"))
    plain = train(tmp_path, *file)
    assert plain.exit_code == 0, plain.output
    assert (told[0].steps, told[0].histories, told[0].seed) == (7, 5, 3)
    assert "replaces" not in plain.output
    result = train(tmp_path, *file, "--steps", "9", "--seed", "3")
    assert (told[1].steps, told[1].histories, told[1].seed) == (9, 5, 3)
    assert "steps=9 replaces 7 of train.toml" in result.output
    assert "seed=3 replaces" not in result.output


def test_train_without_a_file_uses_the_defaults(tmp_path: Path, told: list[Any]) -> None:
    """Options alone change what they name and nothing else."""
    from feast_anchor.onnx_export.settings import TrainConfig

    assert train(tmp_path, "--seed", "4").exit_code == 0
    assert told == [TrainConfig(seed=4)]


def test_train_refuses_a_place_that_is_no_bundles(tmp_path: Path, told: list[Any]) -> None:
    """A folder with other files, or a file, is refused before anything is trained."""
    for name in ("tables", "events.py"):
        result = train(tmp_path, "--out", str(tmp_path / name))
        assert result.exit_code == 1
        assert "not empty and not a bundle" in result.stderr
    assert told == []


def test_train_refuses_a_mistyped_setting(tmp_path: Path, told: list[Any]) -> None:
    """An unknown key is one message with the nearest known name, and nothing is trained."""
    (tmp_path / "train.toml").write_text("step = 7\n")
    result = train(tmp_path, "--config", str(tmp_path / "train.toml"))
    assert result.exit_code == 1
    assert "did you mean 'steps'?" in result.stderr
    assert told == []
