"""The evaluation's pictures: AUC by scenario and by number of labels, users, and events looked at.

The rule: colours are told apart by colour-blind readers and by shape too, every line is named
where it ends, and nothing is drawn without its interval where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .evaluation import interval
from .few_labels import Curve
from .report import Findings, sizes_shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, dark ones first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#999999"
_COMPARED = ("right query", "no query", "ideal conditioning", "trees on features")
_MOST_DOTS = 1_500  # users in one small map; more become a stain


def write_plots(found: Findings, out: Path) -> list[Path]:
    """Draw what the findings hold into `out`; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        matplotlib.rcParams["font.size"] = 9
        drawn = [(_scenarios(found), "scenarios.png")]
        if found.curve is not None and found.curve.sizes:
            drawn.append((_few_labels(found, found.curve), "few_labels.png"))
        if found.plane is not None and found.labels is not None:
            drawn.append((_maps(found, found.plane, found.labels), "map.png"))
        if found.attended:
            drawn.append((_attended(found.attended), "attention.png"))
        return [_save(figure, out / name) for figure, name in drawn]


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path


def _scenarios(found: Findings) -> Any:
    """Per scenario and row a dot with its 95 % interval, the easiest scenario on top."""
    from matplotlib import pyplot as plt

    rows = [row for row in _COMPARED if row in found.rows]
    order = np.argsort(np.nan_to_num(found.rows[rows[0]].auc))
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.42 * len(order)))
    for number, row in enumerate(rows):
        one = found.rows[row]
        height = np.arange(len(order)) + 0.54 - 0.36 * (number + 0.5) / len(rows) * 2
        estimates = [interval(float(one.auc[s]), one.auc_rounds[s]) for s in order]
        values = np.array([estimate.value for estimate in estimates])
        sides = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T
        axes.errorbar(
            values,
            height - 0.18,
            xerr=np.maximum(sides, 0),
            fmt=_MARKERS[number],
            color=_COLOURS[number],
            markersize=4,
            linewidth=1,
            label=row,
        )
    axes.set_yticks(range(len(order)), [_words(found.scenarios[s]) for s in order])
    for border in range(1, len(order)):
        axes.axhline(border - 0.5, color="#e6e6e6", linewidth=0.6, zorder=0)
    axes.set_ylim(-0.5, len(order) - 0.5)
    axes.axvline(0.5, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("AUC on held-out users, 95 % interval")
    axes.tick_params(axis="y", length=0)
    axes.legend(ncols=len(rows), loc="lower left", bbox_to_anchor=(-0.2, 1.0), frameon=False)
    return figure


def _few_labels(found: Findings, curve: Curve) -> Any:
    """AUC against the number of labelled users, each line named at its end."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.4))
    ends: list[tuple[float, str, str]] = []
    places = np.arange(len(curve.sizes) + 1)
    for number, method in enumerate(found.methods()):
        estimates = [curve.mean(method, size) for size in curve.sizes]
        row = found.with_all.get(method, "")
        if row in found.rows:
            estimates.append(found.mean_auc(row))
        values, low, high = (
            np.array([getattr(estimate, name) for estimate in estimates])
            for name in ("value", "low", "high")
        )
        if np.isnan(values).all():
            continue
        colour, at = _COLOURS[number % 7], places[: len(values)]
        shift = 0.03 * (number - 2.5)
        axes.errorbar(
            at + shift,
            values,
            yerr=np.maximum([values - low, high - values], 0),
            marker=_MARKERS[number % 7],
            color=colour,
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
        )
        ends.append((float(values[-1]), method, colour))
    _name_ends(axes, ends, float(places[-1]) + 0.2)
    axes.set_xticks(places, [*sizes_shown(found, curve), "all"])
    axes.set_xlabel("labelled users")
    axes.set_ylabel(f"mean AUC over {len(found.scenarios)} scenarios, 95 % interval")
    return figure


def _name_ends(axes: Axes, ends: list[tuple[float, str, str]], x: float) -> None:
    """Write each line's name beside its end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.045
    last = -math.inf
    for value, name, colour in sorted(ends):
        last = max(value, last + gap)
        axes.text(x, last, name, color=colour, va="center")


def _maps(found: Findings, plane: Any, labels: Any) -> Any:
    """Users on the two main axes of each scenario's vectors, those who say yes in orange."""
    from matplotlib import pyplot as plt

    count = len(found.scenarios)
    columns = min(4, count)
    height = -(-count // columns)
    figure, grid = plt.subplots(
        height, columns, figsize=(2.3 * columns, 2.35 * height), squeeze=False
    )
    order = np.argsort(-np.nan_to_num(next(iter(found.rows.values())).auc))
    for axes, scenario in zip(grid.flat, order, strict=False):
        shown = np.random.default_rng(0).permutation(np.flatnonzero(labels[scenario] >= 0))
        shown = shown[:_MOST_DOTS]
        yes = labels[scenario, shown] == 1
        x, y = plane[scenario, shown].T
        axes.scatter(x[~yes], y[~yes], s=5, color="#B8C4CC", linewidths=0, label="no")
        axes.scatter(x[yes], y[yes], s=6, color="#D55E00", linewidths=0, alpha=0.8, label="yes")
        auc = found.rows[next(iter(found.rows))].auc[scenario]
        axes.set_title(f"{_words(found.scenarios[scenario])}, AUC {auc:.2f}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["left", "bottom"]].set_color("#dddddd")
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="lower center", ncols=2, frameon=False, markerscale=3,
        bbox_to_anchor=(0.5, -0.12 / height),
    )  # fmt: skip
    figure.tight_layout()
    return figure


def _attended(found: Mapping[str, Any]) -> Any:
    """Per scenario the texts of events that its question looks at most, best on top.

    A bar is a text's mean relevance (or attention, where the model has no evidence), the dotted
    line that of all events; the number is its attention in multiples of the mean.
    """
    from matplotlib import pyplot as plt

    columns = min(3, len(found))
    height = -(-len(found) // columns)
    figure, grid = plt.subplots(
        height, columns, figsize=(5.2 * columns, 2.1 * height), squeeze=False
    )
    for axes, (scenario, own) in zip(grid.flat, found.items(), strict=False):
        by = "attention" if own["all"]["relevance"] is None else "relevance"
        texts = own["texts"]
        bars = axes.barh(range(len(texts)), [one[by] for one in texts], 0.7, color=_COLOURS[4])
        axes.axvline(own["all"][by], color=_GREY, linewidth=0.8, linestyle=":")
        axes.bar_label(bars, [f"×{one['attention']:.1f}" for one in texts], padding=3, fontsize=7)
        axes.set_yticks(range(len(texts)), [_short(one) for one in texts], fontsize=7)
        axes.set_xlim(right=1.12 if by == "relevance" else None)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_title(_words(scenario), fontsize=9, loc="left")
    for axes in list(grid.flat)[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel(
        "mean relevance of an event to the question, 0 to 1 (dotted: of all events; "
        "×: attention of the decoder, over that of all events)",
        fontsize=9,
    )
    figure.tight_layout()
    return figure


def _short(entry: Mapping[str, Any], most: int = 44) -> str:
    text = str(entry["text"])
    return text if len(text) <= most else text[: most - 1] + "…"


def _words(name: str) -> str:
    return name.replace("_", " ")
