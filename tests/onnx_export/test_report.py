"""The report: numbers in tables and JSON, plots that are drawn."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from feast_anchor.onnx_export.evaluation import Array, Estimate, measure, resample
from feast_anchor.onnx_export.few_labels import Method, few_labels
from feast_anchor.onnx_export.plots import write_plots
from feast_anchor.onnx_export.report import (
    Findings,
    print_tables,
    shown,
    shown_difference,
    sizes_shown,
    summary,
    tables,
    write_summary,
)

USERS = 150


@pytest.fixture(scope="module")
def findings() -> Findings:
    """Three scenarios, four rows (one of them lacks a scenario), a curve and two ablations."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (3, USERS))
    labels[2, :10] = -1
    weights = resample(USERS, 100, seed=0)

    def scores(signal: float) -> Array:
        return (signal * labels + generator.standard_normal(labels.shape))[None]

    made = {"right query": scores(1.5), "no query": scores(0.7), "prompt-tuned": scores(1.6),
            "ideal conditioning": scores(1.0)}  # fmt: skip
    made["prompt-tuned"][:, 1] = np.nan
    rows = {name: measure(labels, row, weights) for name, row in made.items()}

    def method(row: str) -> Method:
        return lambda scenario, known, y, scored, seed: made[row][0, scenario, scored]

    methods = {"vector": method("right query"), "trees": method("no query")}
    return Findings(
        scenarios=("tea_buyer", "churn", "often"),
        rows=rows,
        against=("right query", "ideal conditioning"),
        positives=(labels == 1).mean(axis=1),
        users=(labels >= 0).sum(axis=1),
        pairs=(("right query", "no query"), ("right query", "wrong query")),
        ratio=("no query", "right query"),
        curve=few_labels(labels, methods, weights, sizes=(25, 50), draws=3),
        with_all={"vector": "right query"},
        compared=("trees",),
        ablations={
            "main": {"right query": rows["right query"], "no query": rows["no query"]},
            "without": {"right query": rows["no query"], "no query": rows["no query"]},
        },
        plane=generator.standard_normal((3, USERS, 2)),
        labels=labels,
        attended={
            name: {
                "all": {"text": "", "attention": 1.0, "relevance": 0.1},
                "texts": [
                    {"text": "green tea " * repeated, "attention": 1.3, "relevance": 0.8}
                    for repeated in (1, 9)
                ],
            }
            for name in ("tea_buyer", "churn", "often")
        },
        facts={"part": "test"},
    )


def test_json_holds_every_number_with_its_interval(findings: Findings, tmp_path: Path) -> None:
    """Means, differences, scenarios, ratio, few labels and ablations; what is missing is null."""
    write_summary(findings, tmp_path / "deep" / "summary.json")
    read = json.loads((tmp_path / "deep" / "summary.json").read_text("utf-8"))
    assert read == summary(findings)
    right = read["rows"]["right query"]
    assert right["auc"]["low"] < right["auc"]["value"] < right["auc"]["high"]
    assert read["rows"]["no query"]["minus right query"]["high"] < 0
    assert read["rows"]["prompt-tuned"]["scenarios"] == 2
    assert read["scenarios"]["churn"]["rows"]["prompt-tuned"]["auc"]["value"] is None
    assert read["scenarios"]["often"]["users"] == USERS - 10
    assert list(read["differences"]) == ["right query minus no query"]
    difference = read["differences"]["right query minus no query"]
    assert difference["value"] == -read["rows"]["no query"]["minus right query"]["value"]
    assert read["no query / right query"]["value"] < 1
    assert read["few labels"]["vector"]["25"]["minus trees"]["low"] > 0
    without = read["ablations"]["without"]
    assert without["right query"]["minus the first"]["high"] < 0
    assert without["no query"]["minus the first"]["value"] == 0
    assert read["part"] == "test"


def test_tables_say_what_is_ahead_and_what_is_missing(findings: Findings) -> None:
    """Stars mark differences, a row with fewer scenarios says how many, best ones are there."""
    out = io.StringIO()
    for table in tables(findings):
        Console(file=out, width=130).print(table)
    text = out.getvalue()
    assert "prompt-tuned (2 scenarios)" in text
    assert "*-." in text
    assert "tea_buyer" in text
    assert "right query minus no query" in text
    assert "no query / right query" in text
    assert "Ablations" in text
    assert "labelled users" in text


def test_tables_are_not_cut_to_a_narrow_terminal(findings: Findings) -> None:
    """On forty columns every name and number is there, and the console is left as it was."""
    console = Console(file=(out := io.StringIO()), width=40)
    print_tables(findings, console)
    assert "…" not in out.getvalue()
    assert "prompt-tuned (2 scenarios)" in out.getvalue()
    assert console.width == 40


def test_a_size_says_how_many_scenarios_are_left(findings: Findings) -> None:
    """A mean over fewer scenarios than its neighbour is not on the same line without a word."""
    curve = findings.curve
    assert curve is not None
    assert sizes_shown(findings, curve) == ["25", "50"]
    cut = {key: auc.copy() for key, auc in curve.auc.items()}
    for method in ("vector", "trees"):
        cut[method, 50][:, 1] = np.nan
    fewer = replace(curve, auc=cut)
    assert sizes_shown(findings, fewer) == ["25", "50\n(2 scenarios)"]


def test_a_scenario_that_one_draw_lacks_counts_nowhere(findings: Findings) -> None:
    """Neither in the number of scenarios, nor in the mean, nor in any round of its interval."""
    curve = findings.curve
    assert curve is not None
    key = ("vector", 50)
    auc, rounds = curve.auc[key].copy(), curve.rounds[key].copy()
    auc[0, 1], rounds[0, 1] = np.nan, np.nan
    holed = replace(curve, auc={key: auc}, rounds={key: rounds})
    two = replace(curve, auc={key: auc[:, [0, 2]]}, rounds={key: rounds[:, [0, 2]]})
    assert holed.scenarios(50) == 2
    assert holed.mean(*key) == two.mean(*key)


def test_estimates_are_short() -> None:
    """Three digits, no leading zero, a star where zero is excluded, a dash for nothing."""
    assert shown(Estimate(0.7, 0.65, 0.75)) == ".700 [dim].650-.750[/]"
    assert shown_difference(Estimate(0.02, 0.01, 0.03)) == "*+.020 [dim]+.010 +.030[/]"
    assert shown_difference(Estimate(-0.02, -0.05, 0.01)) == "-.020 [dim]-.050 +.010[/]"
    assert shown(Estimate(float("nan"), 0.0, 0.0)) == "-"


def test_every_plot_is_drawn(findings: Findings, tmp_path: Path) -> None:
    """Four PNG files; with nothing but the table one is left."""
    drawn = write_plots(findings, tmp_path)
    names = ["scenarios.png", "few_labels.png", "map.png", "attention.png"]
    assert [path.name for path in drawn] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    bare = Findings(
        scenarios=findings.scenarios,
        rows=findings.rows,
        against=(),
        positives=findings.positives,
        users=findings.users,
    )
    assert [path.name for path in write_plots(bare, tmp_path)] == ["scenarios.png"]
