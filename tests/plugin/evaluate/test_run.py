"""`feast-anchor evaluate` from end to end on a shop of a hundred users."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from feast_anchor.plugin.evaluate import evaluate, rows
from feast_anchor.plugin.evaluate.run import merged
from plugin.evaluate.conftest import CONFIG, WriteEvaluation, write_evaluation


def quiet() -> Console:
    """A console that shows nothing but keeps what it was told."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """One evaluation: its folder, its summary and what it printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    sys.modules.pop("definitions", None)
    console = quiet()
    evaluate(write_evaluation(folder), folder / "out", console=console)
    summary = json.loads((folder / "out" / "summary.json").read_text("utf-8"))
    assert isinstance(console.file, io.StringIO)
    return folder / "out", summary, console.file.getvalue()


def test_every_row_has_a_mean_an_interval_and_two_differences(
    evaluated: tuple[Path, dict[str, Any], str],
) -> None:
    """All variants and baselines stand in the JSON, each compared with the two references."""
    _, summary, _ = evaluated
    assert list(summary["rows"]) == [
        rows.RIGHT, rows.NONE, rows.WRONG, rows.SHUFFLED, rows.UNSEEN, rows.TUNED,
        rows.RIGHT_ZERO, rows.ZERO, rows.WITH_FEATURES, rows.WITH_ALL, rows.TREES, rows.LOGISTIC,
        rows.WINDOW, rows.WINDOW_LOGISTIC, rows.IDEAL, rows.ACTIVITY, rows.FACTORISATION, rows.SEQUENCE,
    ]  # fmt: skip
    for name, row in summary["rows"].items():
        assert row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"], name
        compared = {key for key in row if key.startswith("minus ")}
        assert compared == {f"minus {r}" for r in (rows.RIGHT, rows.IDEAL) if r != name}
    assert summary["rows"][rows.UNSEEN]["scenarios"] == 1
    assert set(summary["scenarios"]["tea"]["rows"]) == set(summary["rows"])


def test_what_counts_tell_is_found_and_what_is_chance_is_not(
    evaluated: tuple[Path, dict[str, Any], str],
) -> None:
    """Whether orders are many follows from those so far; tea was drawn by lot."""
    _, summary, _ = evaluated
    tell = summary["scenarios"]["active"]["rows"][rows.ACTIVITY]["auc"]["value"]
    chance = summary["scenarios"]["tea"]["rows"][rows.ACTIVITY]["auc"]["value"]
    assert tell > 0.9
    assert 0.25 < chance < 0.75


def test_the_report_is_complete(evaluated: tuple[Path, dict[str, Any], str]) -> None:
    """Plots are there, stages are timed and shown, few labels have their sizes."""
    out, summary, printed = evaluated
    for name in ("scenarios.png", "few_labels.png", "map.png"):
        assert (out / name).stat().st_size > 10_000
    assert {"train", "vectors", "probes", "baselines", "few labels"} <= set(summary["seconds"])
    assert "Mean over 2 scenarios" in printed
    assert "25" in summary["few labels"]["vector"]
    assert "minus trees" in summary["few labels"]["vector + zero-shot"]["25"]
    assert summary["users"]["reported"] + summary["users"]["trained on"] <= 140


def test_full_pools_cells_and_reads_those_that_are_finished(
    evaluation: WriteEvaluation, tmp_path: Path
) -> None:
    """Two seeds and an ablation: a second call computes nothing and says the same."""
    text = CONFIG.replace("[train]", "[full]\nseeds = [0, 1]\nsplits = [0]\n[train]") + (
        '\n    [[full.variants]]\n    name = "narrow"\n    train = { model = { embedding = 8 } }\n'
    )
    path, out = evaluation(text=text), tmp_path / "out"
    evaluate(path, out, full=True, console=quiet())
    first = json.loads((out / "summary.json").read_text("utf-8"))
    assert list(first["cells"]) == [
        f"{name}-split0-seed{seed}" for name in ("main", "narrow") for seed in (0, 1)
    ]
    assert list(first["ablations"]) == ["main", "narrow"]
    stamps = [p.stat().st_mtime_ns for p in sorted(out.glob("cells/*/cell.json"))]
    evaluate(path, out, full=True, console=quiet())
    assert [p.stat().st_mtime_ns for p in sorted(out.glob("cells/*/cell.json"))] == stamps
    assert json.loads((out / "summary.json").read_text("utf-8")) == first


def test_merged_changes_a_table_field_by_field() -> None:
    """An ablation names only what it changes, also inside a table."""
    settings = {"steps": 3, "model": {"hidden": 32, "text": 16}}
    assert merged(settings, {"model": {"text": 8}}) == {
        "steps": 3,
        "model": {"hidden": 32, "text": 8},
    }
    assert settings["model"] == {"hidden": 32, "text": 16}
    assert np.isscalar(merged(settings, {"steps": 4})["steps"])
