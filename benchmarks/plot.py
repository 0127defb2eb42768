"""One picture of a run: a panel per section and size that has something to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#000000")
_GREY = "#888888"
_COLUMNS = 3

Panel = Callable[["Axes"], None]


def draw(results: Mapping[str, Found], path: Path) -> None:
    """Write the picture; no panel, no picture."""
    panels = list(_panels(results))
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure, grid = plt.subplots(
            rows, columns, figsize=(5.2 * columns, 3.8 * rows), squeeze=False, layout="constrained"
        )
        for axes, panel in zip(grid.flat, panels, strict=False):
            panel(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.savefig(path, dpi=130)
    plt.close(figure)


def _panels(results: Mapping[str, Found]) -> Iterator[Panel]:
    kinds: dict[str, Callable[[str, Any], Iterator[Panel]]] = {
        "speedup": lambda size, rows: iter([partial(_speedup, size, rows)]),
        "snapshots": lambda size, rows: iter([partial(_snapshots, size, rows)]),
        "peak": lambda size, found: iter([partial(_peak, size, found["graphs"])]),
    }
    for section, panels in kinds.items():
        for size, rows in results[section].details.items() if section in results else ():
            yield from panels(size, rows)
    if "request" in results:
        found = results["request"].details
        yield partial(_request, found["size"], found["latencies"])
    if "growth" in results:
        yield partial(_growth, results["growth"].details["points"])
    if "scale" in results:
        yield partial(_scale, results["scale"].details)


def _speedup(size: str, rows: list[dict[str, Any]], axes: Axes) -> None:
    """How many times faster the cascade is than each other way, against Q."""
    names = list(dict.fromkeys(name for row in rows for name in row["cascade is faster than"]))
    for name, colour in zip(names, _COLOURS, strict=False):
        some = [row for row in rows if name in row["cascade is faster than"]]
        ratios = [row["cascade is faster than"][name] for row in some]
        values = [ratio["value"] for ratio in ratios]
        spread = [
            [max(0.0, r["value"] - r["low"]) for r in ratios],
            [max(0.0, r["high"] - r["value"]) for r in ratios],
        ]
        x = [row["questions"] for row in some]
        axes.errorbar(x, values, spread, marker="o", markersize=4, color=colour, label=name)
    x = [row["questions"] for row in rows]
    for kind, style in (("full", ":"), ("trimmed", "--")):
        ideal = [row["ideal"][kind] for row in rows]
        axes.plot(x, ideal, color=_GREY, linestyle=style, label=f"ideal over {kind} forwards")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(x, [str(number) for number in x])
    ticks = [1, 2, 4, 8, 16, 32]
    axes.set_yticks(ticks, [f"{tick}×" for tick in ticks])
    axes.set_ylim(top=300)  # room for the legend
    axes.set_xlabel("questions behind one prefix")
    axes.set_title(f"{size}: the cascade is faster than", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=7, loc="upper left")


def _snapshots(size: str, rows: list[dict[str, Any]], axes: Axes) -> None:
    """One prefix for S as-of times over S prefixes, against S."""
    for questions, colour in zip(
        dict.fromkeys(r["questions"] for r in rows), _COLOURS, strict=False
    ):
        some = [row for row in rows if row["questions"] == questions]
        x = [row["snapshots"] for row in some]
        values, ideal = ([row[name] for row in some] for name in ("value", "ideal_flops"))
        label = f"{questions} question{'s' if questions > 1 else ''} each"
        axes.plot(x, values, marker="o", markersize=4, color=colour, label=label)
        axes.plot(x, ideal, color=colour, linestyle=":")
    axes.set_xlabel("as-of times from one prefix (dotted: ideal)")
    axes.set_title(f"{size}: cheaper than separate prefixes, times", loc="left", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _peak(size: str, graphs: Mapping[str, Any], axes: Axes) -> None:
    """Fraction of the peak, graph by graph."""
    names = list(graphs)
    values = [100 * graphs[name]["fraction"]["value"] for name in names]
    bars = axes.barh(names, values, color=_COLOURS[0], height=0.6)
    axes.bar_label(bars, fmt="%.0f%%", padding=3, fontsize=8)
    axes.set_xlim(0, 105)
    axes.invert_yaxis()
    axes.set_title(f"{size}: percent of the fp32 peak", loc="left", fontsize=10)


def _request(size: str, rows: list[dict[str, Any]], axes: Axes) -> None:
    """Median and 99th percentile of a request's time, kind by kind."""
    names = [
        f"{row['questions']} question{'s' if row['questions'] > 1 else ''},\n{row['kind']}"
        for row in rows
    ]
    for row, place in zip(rows, range(len(rows)), strict=True):
        axes.plot([row["p50_ms"], row["p99_ms"]], [place] * 2, color=_GREY, zorder=1)
        if row["goal_p99_ms"] is not None:
            axes.plot(row["goal_p99_ms"], place, marker="|", markersize=16, color=_COLOURS[6])
    for name, label, colour in (("p50_ms", "median", 0), ("p99_ms", "99 % of requests", 2)):
        values = [row[name] for row in rows]
        axes.scatter(values, range(len(rows)), color=_COLOURS[colour], label=label, zorder=2)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds, state to vectors (|: goal of 99 %)")
    axes.set_title(f"{size}: a request", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _scale(found: Mapping[str, Any], axes: Axes) -> None:
    """Seconds of each stage over a quarter of the users and over all of them."""
    points = [found["quarter"], found["full"]]
    names = [f"{point['events']:,}\nevents" for point in points]
    below = [0.0] * len(points)
    for place, stage in enumerate(points[0]["stages"]):
        seconds = [point["stages"][place]["seconds"] for point in points]
        axes.bar(names, seconds, 0.6, below, color=_COLOURS[place], label=stage["stage"])
        below = [a + b for a, b in zip(below, seconds, strict=True)]
    labels = [f"{p['seconds']:.0f} s, {p['peak_mib']:,.0f} MiB" for p in points]
    for name, height, label in zip(names, below, labels, strict=True):
        axes.annotate(label, (name, height), (0, 3), textcoords="offset points", ha="center")
    axes.set_ylabel("seconds")
    axes.set_title("one large job, from files to a published sink", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _growth(points: list[dict[str, Any]], axes: Axes) -> None:
    """Seconds and peak memory against users."""
    users = [point["users"] for point in points]
    axes.plot(users, [p["seconds"] for p in points], marker="o", color=_COLOURS[0])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(users, [f"{number:,}" for number in users])
    seconds = [point["seconds"] for point in points]
    axes.set_yticks(seconds, [f"{one:.0f}" for one in seconds])
    axes.minorticks_off()
    axes.set_xlabel("users")
    axes.set_ylabel("seconds", color=_COLOURS[0])
    memory = axes.twinx()
    memory.plot(users, [p["peak_mib"] for p in points], marker="s", color=_COLOURS[2])
    memory.set_ylabel("peak memory, MiB", color=_COLOURS[2])
    memory.set_ylim(bottom=0)
    axes.set_title("the pipeline as users grow", loc="left", fontsize=10)
