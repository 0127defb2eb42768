"""What an evaluation found, as tables for a terminal and as JSON. No torch, no plots.

The rule: every number that is shown stands in the JSON too, with its interval, and a row that
lacks some scenarios says so: its mean is over fewer.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .evaluation import (
    Array,
    Estimate,
    Measured,
    interval,
    mean_over_scenarios,
    paired_difference,
    paired_ratio,
)
from .few_labels import Curve

_WIDTH = 160  # columns that the widest table fits in, words of its head unbroken


@dataclass(frozen=True)
class Findings:
    """Everything that a report is made of.

    Args:
        scenarios: names [S].
        rows: what was measured, by row of the table, in order.
        against: rows that every row is compared with.
        pairs: (row, other) whose difference answers a question of the evaluation.
        shown: rows of the table by scenario; all when empty.
        positives, users: share of positives and number of labelled users per scenario [S].
        ratio: two rows whose means are divided, such as unseen phrasings by the right query.
        curve: AUC by number of labels.
        with_all: method of the curve -> its row with all labels.
        compared: methods that the curve's others are compared with.
        ablations: some rows of each variant; the first is what the others are compared with.
        plane, labels: vectors on two axes [S, N, 2] and labels [S, N], for the map.
        attended: by scenario, which events its question looks at, for a plot.
        facts: anything else worth keeping.
    """

    scenarios: tuple[str, ...]
    rows: Mapping[str, Measured]
    against: tuple[str, ...]
    positives: Array
    users: Array
    pairs: tuple[tuple[str, str], ...] = ()
    shown: tuple[str, ...] = ()
    ratio: tuple[str, str] | None = None
    curve: Curve | None = None
    with_all: Mapping[str, str] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    ablations: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    plane: Array | None = None
    labels: Array | None = None
    attended: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def mean_auc(self, row: str) -> Estimate:
        """Mean AUC of a row over the scenarios it has."""
        return mean_over_scenarios(self.rows[row].auc, self.rows[row].auc_rounds)

    def mean_ks(self, row: str) -> Estimate:
        """Mean KS of a row over the scenarios it has."""
        return mean_over_scenarios(self.rows[row].ks, self.rows[row].ks_rounds)

    def references(self) -> list[str]:
        """The rows to compare with that there are."""
        return [row for row in self.against if row in self.rows]

    def differences(self) -> dict[str, Estimate]:
        """Paired differences of the pairs of rows that there are, by "row minus other"."""
        return {
            f"{row} minus {other}": paired_difference(self.rows[row], self.rows[other])
            for row, other in self.pairs
            if row in self.rows and other in self.rows
        }

    def ratios(self) -> dict[str, Estimate]:
        """The ratio of means, by "row / other"; none where a row is missing."""
        if self.ratio is None or not set(self.ratio) <= set(self.rows):
            return {}
        row, other = self.ratio
        return {f"{row} / {other}": paired_ratio(self.rows[row], self.rows[other])}

    def methods(self) -> list[str]:
        """The methods of the curve, in order."""
        return list(dict.fromkeys(method for method, _ in self.curve.auc)) if self.curve else []


def summary(found: Findings) -> dict[str, Any]:
    """Everything as JSON values; NaN becomes null."""
    out = {
        **found.facts,
        "rows": {row: _row(found, row) for row in found.rows},
        "differences": {name: _numbers(one) for name, one in found.differences().items()},
        "scenarios": {
            name: {
                "positives": float(found.positives[place]),
                "users": int(found.users[place]),
                "rows": {row: _cell(one, place) for row, one in found.rows.items()},
            }
            for place, name in enumerate(found.scenarios)
        },
    }
    out |= {name: _numbers(one) for name, one in found.ratios().items()}
    if found.curve is not None:
        out["few labels"] = _few_labels(found, found.curve)
    if found.ablations:
        first = next(iter(found.ablations.values()))
        out["ablations"] = {
            name: {
                row: {
                    "auc": _numbers(mean_over_scenarios(one.auc, one.auc_rounds)),
                    "minus the first": _numbers(paired_difference(one, first[row])),
                }
                for row, one in rows.items()
            }
            for name, rows in found.ablations.items()
        }
    plain: dict[str, Any] = _without_nan(out)
    return plain


def write_summary(found: Findings, path: Path) -> None:
    """Write `summary` as a JSON file that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(summary(found), indent=2) + "\n", "utf-8")
    os.replace(unfinished, path)


def print_tables(found: Findings, console: Console) -> None:
    """Print the tables whole: one that is cut to a narrow terminal, or a pipe, cannot be read."""
    width = console.width
    console.width = max(_WIDTH, width)
    try:
        for one in tables(found):
            console.print(one)
    finally:
        console.width = width


def tables(found: Findings) -> Iterator[Table]:
    """The tables of a terminal: means, differences, scenarios, few labels, ablations."""
    yield _means(found)
    if found.differences() or found.ratios():
        yield _differences(found)
    yield _by_scenario(found)
    if found.curve is not None:
        yield _curve(found, found.curve)
    if found.ablations:
        yield _ablations(found)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _means(found: Findings) -> Table:
    references = found.references()
    table = _table(
        f"Mean over {len(found.scenarios)} scenarios, 95 % intervals over users; "
        "* where a difference excludes zero"
    )
    table.add_column("", no_wrap=True)
    for column in ("AUC", "KS", *(f"minus {row}" for row in references)):
        table.add_column(column, justify="right")
    for row, one in found.rows.items():
        count = int(np.sum(~np.isnan(one.auc)))
        name = row if count == len(found.scenarios) else f"{row} ({count} scenarios)"
        differences = (
            "" if row == other else shown_difference(paired_difference(one, found.rows[other]))
            for other in references
        )
        ks = found.mean_ks(row)
        table.add_row(name, shown(found.mean_auc(row)), _plain(ks.value), *differences)
    return table


def _differences(found: Findings) -> Table:
    table = _table("What it comes to; * where a difference excludes zero")
    table.add_column("", no_wrap=True)
    table.add_column("AUC", justify="right")
    for name, one in found.differences().items():
        table.add_row(name, shown_difference(one))
    for name, one in found.ratios().items():
        table.add_row(name, shown(one))
    return table


def _by_scenario(found: Findings) -> Table:
    rows = [row for row in found.shown if row in found.rows] or list(found.rows)
    table = _table("AUC by scenario")
    table.add_column("scenario", no_wrap=True)
    for column in ("users", "positive", *rows):
        table.add_column(column, justify="right")
    for place, name in enumerate(found.scenarios):
        values = [float(found.rows[row].auc[place]) for row in rows]
        best = np.nanmax(values) if not np.isnan(values).all() else math.nan
        table.add_row(
            name,
            f"{int(found.users[place]):,}",
            f"{found.positives[place]:.0%}",
            *(f"[bold]{_plain(v)}[/]" if v == best else _plain(v) for v in values),
        )
    return table


def _curve(found: Findings, curve: Curve) -> Table:
    table = _table(
        "AUC by number of labelled users; * where it is ahead of each of "
        f"{' and '.join(found.compared)}, intervals excluding zero"
    )
    table.add_column("method", no_wrap=True)
    for column in (*sizes_shown(found, curve), "all"):
        table.add_column(column, justify="right")
    for method in found.methods():
        cells = []
        for size in curve.sizes:
            others = [other for other in found.compared if other != method]
            ahead = all(curve.difference(method, other, size).low > 0 for other in others)
            mark = "*" if others and ahead and method not in found.compared else ""
            cells.append(f"{mark}{shown(curve.mean(method, size))}")
        row = found.with_all.get(method, "")
        cells.append(shown(found.mean_auc(row)) if row in found.rows else "")
        table.add_row(method, *cells)
    return table


def sizes_shown(found: Findings, curve: Curve) -> list[str]:
    """Each number of labels; where it is too many for some scenarios, how many are left."""
    left = {size: curve.scenarios(size) for size in curve.sizes}
    return [
        str(size) if left[size] == len(found.scenarios) else f"{size}\n({left[size]} scenarios)"
        for size in curve.sizes
    ]


def _ablations(found: Findings) -> Table:
    name, first = next(iter(found.ablations.items()))
    table = _table(
        f"Ablations: AUC of {name}, and by what the others differ from it; "
        "* where a difference excludes zero"
    )
    table.add_column("", no_wrap=True)
    for row in first:
        table.add_column(row, justify="right")
    table.add_row(
        name, *(shown(mean_over_scenarios(one.auc, one.auc_rounds)) for one in first.values())
    )
    for variant, rows in list(found.ablations.items())[1:]:
        differences = (paired_difference(one, first[row]) for row, one in rows.items())
        table.add_row(variant, *map(shown_difference, differences))
    return table


def shown(estimate: Estimate) -> str:
    """An estimate in a table: .706 .690-.721."""
    if math.isnan(estimate.value):
        return "-"
    return f"{_plain(estimate.value)} [dim]{_plain(estimate.low)}-{_plain(estimate.high)}[/]"


def shown_difference(estimate: Estimate) -> str:
    """A difference in a table: *+.021 +.008 +.033, the star where the interval excludes zero."""
    if math.isnan(estimate.value):
        return "-"
    value, low, high = (
        f"{number:+.3f}".replace("0.", ".", 1)
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{'*' if estimate.differs else ''}{value} [dim]{low} {high}[/]"


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}".removeprefix("0")


def _row(found: Findings, row: str) -> dict[str, Any]:
    one = found.rows[row]
    return {
        "auc": _numbers(found.mean_auc(row)),
        "ks": _numbers(found.mean_ks(row)),
        "scenarios": int(np.sum(~np.isnan(one.auc))),
        **{
            f"minus {other}": _numbers(paired_difference(one, found.rows[other]))
            for other in found.references()
            if other != row
        },
    }


def _cell(one: Measured, place: int) -> dict[str, Any]:
    return {
        "auc": _numbers(interval(float(one.auc[place]), one.auc_rounds[place])),
        "ks": _numbers(interval(float(one.ks[place]), one.ks_rounds[place])),
    }


def _few_labels(found: Findings, curve: Curve) -> dict[str, Any]:
    return {
        method: {
            str(size): {
                "auc": _numbers(curve.mean(method, size)),
                **{
                    f"minus {other}": _numbers(curve.difference(method, other, size))
                    for other in found.compared
                    if other != method
                },
            }
            for size in curve.sizes
        }
        for method in found.methods()
    }


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
