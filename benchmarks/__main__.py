"""`python -m benchmarks`: run sections, print figures beside their goals, write the summary."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .findings import Found
from .lab import QUICK, Lab, Plan
from .report import machine, print_goals, print_section
from .sections import LARGE, SECTIONS, measure

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this section; may be repeated: {', '.join(SECTIONS)}."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Only this model size: small or medium.")] = None,
    medium_layers: Annotated[
        int | None,
        typer.Option(min=2, help="Layers of medium; Qwen2.5-0.5B has 24. Default: 4."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rounds and users: minutes instead of twenty.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for summary.json and bench.png.")] = Path(
        "build/bench"
    ),
) -> None:
    """Measure the exported graphs, the scorer and the pipeline against what people would use.

    Run it on an idle machine: figures are ratios of things that ran in turns, but a neighbour that
    comes and goes still shows.
    """
    unknown = set(only or ()) - set(SECTIONS)
    if unknown:
        raise typer.BadParameter(f"no section {sorted(unknown)}; choose from {list(SECTIONS)}")
    plan = QUICK if quick else Plan()
    if size is not None:
        if size not in plan.sizes:
            raise typer.BadParameter(f"size {size!r}, expected one of {list(plan.sizes)}")
        plan = replace(plan, sizes=(size,))
    if medium_layers is not None:
        plan = replace(plan, medium_layers=medium_layers)
    logging.basicConfig(level=logging.ERROR)  # Beam and torch tell much that nobody asked
    chosen = only or [name for name in SECTIONS if name not in LARGE]
    run(Lab(plan, out), chosen, Console(width=None if sys.stdout.isatty() else 160))


def run(lab: Lab, sections: list[str], console: Console) -> dict[str, Any]:
    """Run some sections, print them and write the summary and its picture; returns the summary."""
    from .plot import draw

    results: dict[str, Found] = {}
    for name in sections:
        with console.status(f"{name}: {SECTIONS[name]} …"):
            results[name] = measure(name, lab)
        print_section(console, SECTIONS[name], results[name])
    print_goals(console, results)
    summary = _summary(lab, results)
    lab.out.mkdir(parents=True, exist_ok=True)
    (lab.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    draw(results, lab.out / "bench.png")
    console.print(f"{lab.out / 'summary.json'} and {lab.out / 'bench.png'} hold it all")
    return summary


def _summary(lab: Lab, results: Mapping[str, Found]) -> dict[str, Any]:
    sections = {
        name: {"title": SECTIONS[name], **found.as_json()} for name, found in results.items()
    }
    return {"machine": machine(), "plan": asdict(lab.plan), "sections": sections}


if __name__ == "__main__":
    app()
