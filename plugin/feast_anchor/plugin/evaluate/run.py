"""`feast-anchor evaluate`: cells, one bootstrap over all of them, and the report.

The rule: users are resampled once, over everybody who is reported in any cell. Seeds share their
users and splits share some, and the intervals know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.evaluation import Measured, measure, pooled, resample
from feast_anchor.onnx_export.few_labels import joined
from feast_anchor.onnx_export.plots import write_plots
from feast_anchor.onnx_export.report import Findings, print_tables, write_summary

from . import rows as table
from .cell import Stages, Tables, check_cell, read_tables, run_cell
from .config import EvaluationConfig, FullVariant, Part, load_config
from .store import Cell

Array = np.ndarray[Any, Any]

MAIN = FullVariant(name="main")
_SHOWN = (
    table.RIGHT, table.NONE, table.WRONG, table.TUNED, table.ZERO, table.IDEAL, table.TREES,
    table.WINDOW,
)  # fmt: skip
_ABLATED = (table.RIGHT, table.NONE, table.UNSEEN, table.ZERO)
_PAIRS = (
    (table.RIGHT, table.NONE),
    (table.RIGHT, table.WRONG),
    (table.NONE, table.WRONG),
    (table.TUNED, table.RIGHT),
    (table.RIGHT, table.IDEAL),
    (table.WITH_FEATURES, table.LOGISTIC),
    (table.AND_RIGHT, table.LOGISTIC),
    (table.AND_RIGHT_ZERO, table.LOGISTIC),
    (table.AND_RIGHT, table.AND_NONE),
    (table.AND_RIGHT, table.AND_TREES),
)
_WITH_ALL = {
    "vector": table.RIGHT,
    "vector + zero-shot": table.RIGHT_ZERO,
    "zero-shot": table.ZERO,
    "trees": table.TREES,
    "logistic regression": table.LOGISTIC,
    "earlier-window trees": table.WINDOW,
}


@dataclass(frozen=True)
class _Place:
    """A cell's place in a full evaluation."""

    variant: FullVariant
    split: int
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.variant.name}-split{self.split}-seed{self.seed}"

    def config(self, config: EvaluationConfig) -> EvaluationConfig:
        train = merged(config.train, self.variant.train)
        return config.model_copy(update={"seed": self.seed, "split": self.split, "train": train})


def evaluate(
    path: Path,
    out: Path,
    *,
    part: Part = "test",
    seed: int | None = None,
    full: bool = False,
    console: Console | None = None,
) -> Findings:
    """Train, score, measure and report; writes `summary.json` and plots into `out`.

    Args:
        path: the evaluation file (TOML).
        out: folder of the results, bundles included.
        part: "test" for the reported users, "validation" to choose settings.
        seed: instead of the file's; not with `full`.
        full: all seeds, splits and variants of the file's [full], the variants in its first split
            only; finished cells are read.
        console: where progress and tables go.

    Raises:
        SpecError: the file or a declaration is wrong.
        SourceError: a table is not as declared, or has too few users or labels.
    """
    if full and seed is not None:
        raise SpecError(
            "--full runs the seeds of the file's [full], --seed one other; give one of the two"
        )
    config = load_config(path)
    if seed is not None:
        config = config.model_copy(update={"seed": seed})
    stages = Stages(console or Console(soft_wrap=True))
    with stages.stage("read"):
        read = read_tables(config, stages)
    if full:
        found = _full(config, read, part, out / "cells", stages)
    else:
        cell = run_cell(
            config, read, part, out / "model", stages, baselines=True, draws=config.draws
        )
        found = _single(config, part, cell)
    with stages.stage("report"):
        write_summary(found, out / "summary.json")
        write_plots(found, out)
        print_tables(found, stages.console)
        stages.console.print(f"Wrote {out / 'summary.json'} and plots beside it")
    return found


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some changed; a table inside is changed field by field."""
    out = dict(settings)
    for name, value in changes.items():
        inner = out.get(name)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        out[name] = merged(inner, value) if both else value  # type: ignore[arg-type]  # checked
    return out


def _single(config: EvaluationConfig, part: Part, cell: Cell) -> Findings:
    facts = {"part": part, "config": config.model_dump(mode="json"), **cell.facts}
    return _findings(config, [cell], _weights([cell], config), facts)


def _full(
    config: EvaluationConfig, read: Tables, part: Part, folder: Path, stages: Stages
) -> Findings:
    """Every variant in every seed and split; the first variant gets the whole table."""
    places = _places(config)
    for place in places:  # now, not after hours
        check_cell(place.config(config), read, part)
    done: list[tuple[_Place, Cell]] = []
    own = sum(place.variant is MAIN for place in places)
    draws = -(-config.draws // own)  # of each cell: together no fewer than one run makes
    for number, place in enumerate(places, start=1):
        stages.console.rule(f"[bold]cell {number} of {len(places)}: {place.folder}")
        cell = run_cell(
            place.config(config),
            read,
            part,
            folder / place.folder,
            stages,
            baselines=place.variant is MAIN,
            draws=draws if place.variant is MAIN else 0,
        )
        done.append((place, cell))
    weights = _weights([cell for _, cell in done], config)
    facts = {
        "part": part,
        "config": config.model_dump(mode="json"),
        "cells": {place.folder: cell.facts for place, cell in done},
    }
    main = [cell for place, cell in done if place.variant is MAIN]
    found = _findings(config, main, weights, facts)
    if not config.full.variants:
        return found
    ablations: dict[str, list[Cell]] = {}
    for place, cell in done:
        if place.split == config.full.splits[0]:  # the one in which every variant was trained
            ablations.setdefault(place.variant.name, []).append(cell)
    common = [row for row in _ABLATED if all(row in cell.rows for _, cell in done)]
    rows = {name: _pooled(cells, weights, common) for name, cells in ablations.items()}
    return replace(found, ablations=rows)


def _places(config: EvaluationConfig) -> list[_Place]:
    if MAIN.name in [variant.name for variant in config.full.variants]:
        raise SpecError(
            f"a [[full.variants]] is named {MAIN.name!r}, which is what [train] itself is called; "
            "expected another name"
        )
    full = config.full
    ours = [_Place(MAIN, split, seed) for split in full.splits for seed in full.seeds]
    return ours + [
        _Place(variant, full.splits[0], seed) for variant in full.variants for seed in full.seeds
    ]


def _weights(cells: Iterable[Cell], config: EvaluationConfig) -> dict[str, Array]:
    """How often each user is drawn in each round: user -> uint16 [R], over all cells' users."""
    users = sorted({user for cell in cells for user in cell.users})
    drawn = resample(len(users), config.rounds, seed=0)
    return dict(zip(users, drawn.T, strict=True))


def _pooled(
    cells: Sequence[Cell], weights: Mapping[str, Array], names: Iterable[str]
) -> dict[str, Measured]:
    """Each row's measurement, the mean over cells."""
    drawn = [np.stack([weights[user] for user in cell.users], axis=1) for cell in cells]
    return {
        name: pooled(
            [measure(cell.y, cell.rows[name], w) for cell, w in zip(cells, drawn, strict=True)]
        )
        for name in names
    }


def _findings(
    config: EvaluationConfig,
    cells: Sequence[Cell],
    weights: Mapping[str, Array],
    facts: Mapping[str, Any],
) -> Findings:
    """What one variant's cells say together; map and attention are the first's."""
    first = cells[0]
    curves = [cell.curve for cell in cells if cell.curve is not None]
    return Findings(
        scenarios=config.names,
        rows=_pooled(cells, weights, first.rows),
        against=(table.RIGHT, table.IDEAL),
        positives=np.mean([(cell.y == 1).sum(1) / (cell.y >= 0).sum(1) for cell in cells], axis=0),
        users=np.mean([(cell.y >= 0).sum(axis=1) for cell in cells], axis=0).round(),
        pairs=_PAIRS,
        shown=_SHOWN,
        ratio=(table.UNSEEN, table.RIGHT),
        curve=joined(curves) if curves else None,
        with_all=_WITH_ALL,
        compared=("trees", "logistic regression"),
        plane=first.plane,
        labels=first.y,
        attended=first.facts.get("attended", {}),
        facts=facts,
    )
