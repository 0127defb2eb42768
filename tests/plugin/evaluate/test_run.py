"""`feast-anchor evaluate` from end to end on a shop of a hundred users."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.evaluation import measure, resample
from feast_anchor.onnx_export.few_labels import few_labels
from feast_anchor.onnx_export.report import Findings, print_tables
from feast_anchor.plugin.evaluate import cell, evaluate, rows, run
from feast_anchor.plugin.evaluate.cell import Stages, Tables, check_cell, read_tables, run_cell
from feast_anchor.plugin.evaluate.config import EvaluationConfig, Part, load_config
from feast_anchor.plugin.evaluate.run import merged
from feast_anchor.plugin.evaluate.store import Cell, load_cell, save_cell
from feast_anchor.plugin.evaluate.users import divide, part_of
from plugin.evaluate.conftest import CONFIG, WriteEvaluation, write_evaluation
from tiny import tiny_bert

ABLATED = (rows.RIGHT, rows.NONE, rows.UNSEEN, rows.ZERO)


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
        rows.RIGHT_ZERO, rows.ZERO, rows.WITH_FEATURES, rows.AND_RIGHT, rows.AND_RIGHT_ZERO,
        rows.AND_NONE, rows.AND_TREES, rows.TREES, rows.LOGISTIC, rows.WINDOW,
        rows.WINDOW_LOGISTIC, rows.IDEAL, rows.ACTIVITY, rows.FACTORISATION, rows.SEQUENCE,
    ]  # fmt: skip
    for name, row in summary["rows"].items():
        assert row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"], name
        compared = {key for key in row if key.startswith("minus ")}
        assert compared == {f"minus {r}" for r in (rows.RIGHT, rows.IDEAL) if r != name}
    assert summary["rows"][rows.UNSEEN]["scenarios"] == 1
    assert list(summary["differences"]) == [f"{one} minus {other}" for one, other in run._PAIRS]
    assert set(summary["scenarios"]["tea"]["rows"]) == set(summary["rows"])


def test_what_counts_tell_is_found_and_what_is_chance_is_not(
    evaluated: tuple[Path, dict[str, Any], str],
) -> None:
    """Whether orders are many follows from those so far; tea was drawn by lot."""
    _, summary, _ = evaluated
    tell = summary["scenarios"]["active"]["rows"][rows.ACTIVITY]["auc"]["value"]
    chance = summary["scenarios"]["tea"]["rows"][rows.ACTIVITY]["auc"]["value"]
    assert tell > 0.9
    assert chance < 0.75  # 53 users: out of fold, chance also falls far below .5


def test_the_report_is_complete(evaluated: tuple[Path, dict[str, Any], str]) -> None:
    """Plots are there, stages are timed and shown, few labels have their sizes."""
    out, summary, printed = evaluated
    for name in ("scenarios.png", "few_labels.png", "map.png", "attention.png"):
        assert (out / name).stat().st_size > 10_000
    assert {"train", "vectors", "probes", "baselines", "few labels"} <= set(summary["seconds"])
    assert "Mean over 2 scenarios" in printed
    assert "25" in summary["few labels"]["vector"]
    assert "minus trees" in summary["few labels"]["vector + zero-shot"]["25"]
    assert set(summary["attended"]) == set(summary["scenarios"])
    for looked_at in summary["attended"].values():
        relevance = [entry["relevance"] for entry in looked_at["texts"]]
        assert relevance == sorted(relevance, reverse=True)
        assert relevance[0] > looked_at["all"]["relevance"] > 0
        assert looked_at["all"]["attention"] == pytest.approx(1.0, abs=1e-3)
    assert summary["users"]["reported"] + summary["users"]["trained on"] <= 140


@pytest.mark.parametrize("part", ["test", "validation"])
def test_training_is_told_the_cut_and_whom_to_leave_out(
    evaluation: WriteEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    """Everybody who is reported is held out, labelled or not, and so is the whole test part."""
    given: dict[str, Any] = {}

    class Enough(Exception):
        """Stops the cell once training was asked for."""

    def train(*arguments: Any, **settings: Any) -> None:
        given.update(settings)
        raise Enough

    monkeypatch.setattr(cell, "train_bundle_from_repo", train)
    config, stages = load_config(evaluation()), Stages(quiet())
    tables = read_tables(config, stages)
    with pytest.raises(Enough):
        run_cell(config, tables, part, tmp_path / "cell", stages, baselines=False, draws=0)
    everyone = set(tables.events.column("user").to_pylist())
    unseen = {"test"} if part == "test" else {"test", "validation"}
    assert given["held_out"] == {u for u in everyone if part_of(u, 0, config) in unseen}
    assert given["cut"] == config.cut
    assert given["config"].seed == config.seed


def test_full_covers_every_cell_and_compares_the_ablations(
    evaluation: WriteEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two splits, two seeds and an ablation that ruins the scores: it falls behind the main one."""
    asked: list[tuple[str, int, int, dict[str, Any], bool]] = []
    drawn: list[int] = []

    def fake(
        config: EvaluationConfig,
        tables: Tables,
        part: Part,
        folder: Path,
        stages: Stages,
        *,
        baselines: bool,
        draws: int,
    ) -> Cell:
        asked.append((folder.name, config.split, config.seed, config.train["model"], baselines))
        drawn.append(draws)
        users = sorted(divide(tables.at_cut.users, config, part)[0])
        y = tables.at_cut.take(users).y
        noise = np.random.default_rng(config.seed).standard_normal(y.shape)
        signal = 0.0 if "narrow" in folder.name else 2.0
        scores = dict.fromkeys(ABLATED, (signal * y + noise)[None])
        return Cell(tuple(users), y, scores, None, {})

    monkeypatch.setattr(run, "run_cell", fake)
    text = CONFIG.replace("[train]", "[full]\nseeds = [0, 1]\nsplits = [0, 1]\n[train]") + (
        '\n    [[full.variants]]\n    name = "narrow"\n    train = { model = { embedding = 8 } }\n'
    )
    evaluate(evaluation(text=text), tmp_path / "out", full=True, console=quiet())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert [name for name, *_ in asked] == list(summary["cells"])
    cells = [(split, seed) for _, split, seed, _, _ in asked]
    assert cells == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1)]  # the ablation: first split
    assert [baselines for *_, baselines in asked] == [True] * 4 + [False] * 2
    assert drawn == [1] * 4 + [0] * 2  # of labels; at least as many in all as the file says
    assert asked[0][3]["embedding"] == 16
    assert asked[-1][3] == {**asked[0][3], "embedding": 8}
    assert [list(found) for found in summary["ablations"].values()] == [list(ABLATED)] * 2
    for row in ABLATED:
        assert summary["ablations"]["narrow"][row]["minus the first"]["high"] < 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'modality = "orders"',
            'modality = "order"',
            "topic of scenario 'tea' is of modality 'ord",
        ),
        ("tea next month?", "tea " * 40, "asks .*44 tokens or more, and .*max_text_tokens is 40"),
        ("steps = 3", "step = 3", "unknown key 'step'"),
    ],
)
def test_what_training_cannot_see_is_refused_before_it(
    evaluation: WriteEvaluation, old: str, new: str, message: str
) -> None:
    """A mistyped topic or an endless question costs nobody a training."""
    path = evaluation(text=CONFIG.replace(old, new, 1))
    config = load_config(path)
    with pytest.raises(SpecError, match=message):
        check_cell(config, read_tables(config, Stages(quiet())), "test")


def test_a_pretrained_encoder_counts_what_it_will_read(tmp_path: Path) -> None:
    """Its own tokens, and the two that stand around every text."""
    tiny_bert(tmp_path)
    assert cell._counter(str(tmp_path))("fresh tomatoes") == 5


def test_full_checks_every_cell_before_the_first(
    evaluation: WriteEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo in the last variant, or a seed beside --full, is said before anything is trained."""
    monkeypatch.setattr(run, "run_cell", lambda *_, **__: pytest.fail("a cell was run"))
    for change, message in (
        ("step = 3", "unknown key 'step'"),
        ("max_text_tokens = 5", "7 tokens or more, and .*max_text_tokens is 5"),
        ("max_query_tokens = 6, model = { query_tokens = true }", "max_query_tokens is 6"),
    ):
        variant = f'\n    [[full.variants]]\n    name = "late"\n    train = {{ {change} }}\n'
        path = evaluation(text=CONFIG + variant)
        with pytest.raises(SpecError, match=message):
            evaluate(path, tmp_path / "out", full=True, console=quiet())
    with pytest.raises(SpecError, match="give one of the two"):
        evaluate(path, tmp_path / "out", full=True, seed=1, console=quiet())


def test_a_finished_cell_is_read_unless_a_setting_changed(
    evaluated: tuple[Path, dict[str, Any], str],
    evaluation: WriteEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second call trains nothing and gives the same arrays; another seed is another cell."""
    trained: list[int] = []

    def train(config: EvaluationConfig, *_: Any) -> Bundle:
        trained.append(config.seed)
        return Bundle.open(evaluated[0] / "model" / "bundle")

    monkeypatch.setattr(cell, "_train", train)
    config, stages = load_config(evaluation()), Stages(quiet())
    tables = read_tables(config, stages)

    def call(config: EvaluationConfig) -> Cell:
        folder = tmp_path / "cell"
        return run_cell(config, tables, "test", folder, stages, baselines=False, draws=0)

    first, again = call(config), call(config)
    assert trained == [0]
    assert first.facts == again.facts
    assert first.users == again.users
    assert list(first.rows) == list(again.rows)
    for name, scores in first.rows.items():
        np.testing.assert_array_equal(scores, again.rows[name])
    call(config.model_copy(update={"seed": 5}))
    assert trained == [0, 5]
    monkeypatch.setattr(cell, "version", lambda name: f"another {name}")
    call(config.model_copy(update={"seed": 5}))
    assert trained == [0, 5, 5]


def test_a_cell_that_is_broken_off_is_no_cell(
    evaluated: tuple[Path, dict[str, Any], str],
    evaluation: WriteEvaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once another training began in its folder, a finished cell is not read again."""
    finished = Bundle.open(evaluated[0] / "model" / "bundle")
    config, stages, folder = load_config(evaluation()), Stages(quiet()), tmp_path / "cell"
    tables = read_tables(config, stages)

    def call(seed: int, train: Callable[..., Bundle]) -> None:
        monkeypatch.setattr(cell, "_train", train)
        own = config.model_copy(update={"seed": seed})
        run_cell(own, tables, "test", folder, stages, baselines=False, draws=0)

    def killed(*_: Any) -> Bundle:
        raise KeyboardInterrupt

    call(0, lambda *_: finished)
    with pytest.raises(KeyboardInterrupt):
        call(1, killed)
    with pytest.raises(KeyboardInterrupt):
        call(0, killed)


def test_a_stored_cell_keeps_its_curve(tmp_path: Path) -> None:
    """What a full evaluation reads back says the same at every size; without a curve, none."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, (2, 200))
    signal = y + generator.standard_normal(y.shape)
    weights = resample(200, 7, seed=0)
    curve = few_labels(y, {"given": lambda s, known, y, to, seed: signal[s, to]}, weights, draws=3)
    made = Cell(tuple(map(str, range(200))), y, {rows.RIGHT: signal[None]}, None, {}, curve)
    save_cell(made, tmp_path, "digest")
    found = load_cell(tmp_path, "digest")
    assert found is not None
    assert found.curve is not None
    assert found.curve.sizes == curve.sizes == (25, 50, 100)
    for size in curve.sizes:
        assert found.curve.mean("given", size) == curve.mean("given", size)
    save_cell(replace(made, curve=None), tmp_path, "other")
    again = load_cell(tmp_path, "other")
    assert again is not None
    assert again.curve is None


def test_merged_changes_a_table_field_by_field() -> None:
    """An ablation names only what it changes, also inside a table."""
    settings = {"steps": 3, "model": {"hidden": 32, "text": 16}}
    assert merged(settings, {"model": {"text": 8}}) == {
        "steps": 3,
        "model": {"hidden": 32, "text": 8},
    }
    assert settings["model"] == {"hidden": 32, "text": 16}


def test_the_widest_table_is_printed_whole() -> None:
    """All columns that the evaluation shows stand there unbroken, in a pipe too."""
    generator = np.random.default_rng(0)
    labels, weights = generator.integers(0, 2, (2, 60)), resample(60, 20, seed=0)
    found = Findings(
        scenarios=("coupon_redeemer", "morning_shopper"),
        rows={
            name: measure(labels, (labels + generator.standard_normal(labels.shape))[None], weights)
            for name in run._SHOWN
        },
        against=(rows.RIGHT, rows.IDEAL),
        positives=labels.mean(axis=1),
        users=np.array([12_741, 741]),
        shown=run._SHOWN,
    )
    out = io.StringIO()
    print_tables(found, Console(file=out))
    assert "conditioning" in out.getvalue()
    assert "…" not in out.getvalue()
