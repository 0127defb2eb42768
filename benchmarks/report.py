"""A run as one JSON value and as printed tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .findings import Figure, Found

_LIBRARIES = ("onnxruntime-gpu", "onnxruntime", "torch", "transformers", "apache-beam", "numpy")


def machine() -> dict[str, Any]:
    """What a reader has to know of the machine and the libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": dict(_versions()),
    }


def print_section(console: Console, title: str, found: Found) -> None:
    """The figures of a section, each beside its goal."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("goal", justify="right", no_wrap=True)
    table.add_column("")
    for figure in found.figures:
        table.add_row(figure.name, shown(figure), _goal(figure), f"[dim]{figure.note}[/dim]")
    console.print(table)
    console.print()


def print_goals(console: Console, results: Mapping[str, Found]) -> None:
    """How many goals were reached, and which not."""
    figures = [figure for found in results.values() for figure in found.figures]
    with_goal = [figure for figure in figures if figure.goal is not None]
    missed = [f for f in with_goal if f.goal is not None and not f.goal.met(f.value)]
    console.print(f"{len(with_goal) - len(missed)} of {len(with_goal)} goals reached")
    for figure in missed:
        console.print(f"[red]missed[/red]  {figure.name}: {shown(figure)}, goal {figure.goal}")


def shown(figure: Figure) -> str:
    """The value with its unit, as short as it stays readable."""
    if figure.unit == "":
        return f"{figure.value:.1e}"
    if figure.unit == "×":
        return f"{figure.value:.2f}×"
    digits = 0 if figure.value >= 100 else 1
    gap = "" if figure.unit == "%" else " "
    return f"{figure.value:,.{digits}f}{gap}{figure.unit}"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    met = figure.goal.met(figure.value)
    return f"[{'green' if met else 'red'}]{figure.goal} {'✓' if met else '✗'}[/]"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _versions() -> list[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError

    found = []
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # there is one onnxruntime of two
            continue
    return found
