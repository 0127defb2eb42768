"""How near do the graphs come to the machine's peak, and where does the rest go?

The peak is measured in the same rounds, so a machine that slows down slows both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cascade import Arrays, Cascade
from ..findings import Figure, Found, Goal
from ..flops import Flops
from ..lab import Lab
from ..models import Subject
from ..operators import operators
from ..peak import best_gemm
from ..timing import alternate
from ..workload import workload

_TOP = 5
_PREFIX_GOAL, _SUFFIX_GOAL = Goal(85), Goal(78)
_QUESTIONS_OF_GOAL = 4  # and more


@dataclass(frozen=True)
class _Graph:
    """One graph at one shape."""

    run: Callable[[], object]
    flops: int
    path: Path
    feed: Arrays
    goal: Goal | None


def measure(lab: Lab) -> Found:
    """Every size of the plan: the prefix, and the suffix at every number of questions."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for name in lab.plan.sizes:
        found, details[name] = _of(lab, lab.subject(name), lab.plan.blocks)
        figures += found
    return Found(tuple(figures), details)


def _of(lab: Lab, subject: Subject, blocks: tuple[int, ...]) -> tuple[list[Figure], Any]:
    gemm = best_gemm(subject, lab.scratch("peak"), lab.plan.budget)
    graphs = _graphs(subject, blocks)
    calls = {"peak": gemm.run, **{name: graph.run for name, graph in graphs.items()}}
    timings = alternate(calls, lab.plan.budget)
    peak = gemm.flops / timings.median("peak") / 1e9
    figures = [Figure(f"{subject.size.name}: peak", peak, "GFLOP/s", note=gemm.name)]
    details: dict[str, Any] = {"peak_gflops": peak, "peak_shape": gemm.name, "graphs": {}}
    for name, graph in graphs.items():
        # operations a second over operations a second: seconds weighted by operations of the other
        ratio = timings.ratios({"peak": graph.flops / gemm.flops}, {name: 1.0})
        top = operators(graph.path, graph.feed)
        note = ", ".join(f"{kind} {share:.0%}" for kind, share in top.top(_TOP).items())
        figures.append(
            Figure(f"{subject.size.name}: {name}", 100 * ratio.value, "%", graph.goal, note)
        )
        details["graphs"][name] = {
            "fraction": ratio.as_json(),
            "gflop": graph.flops / 1e9,
            "gflop_profiled": top.gflops,
            "seconds": timings.median(name),
            "time_by_operator": dict(top.shares),
        }
    return figures, details


def _graphs(subject: Subject, blocks: tuple[int, ...]) -> Mapping[str, _Graph]:
    size, cascade = subject.size, Cascade(subject.bundle)
    flops, folder = Flops(size.config, len(size.modalities)), subject.bundle.folder
    with_goal = size.name == "small"
    history = workload(subject, 1, 1).histories[0]
    state = cascade.run_prefix(history)
    graphs = {
        "prefix": _Graph(
            lambda: cascade.run_prefix(history),
            flops.prefix(size.events),
            folder / "prefix.onnx",
            cascade.prefix_feed(history),
            _PREFIX_GOAL if with_goal else None,
        )
    }
    for count in blocks:
        asked = workload(subject, 1, count).asked
        graphs[f"suffix, Q = {count}"] = _Graph(
            lambda asked=asked: cascade.run_suffix(state, asked),  # type: ignore[misc]
            flops.suffix(size.events, count, size.tokens),
            folder / "suffix.onnx",
            {**asked, **state},
            _SUFFIX_GOAL if with_goal and count >= _QUESTIONS_OF_GOAL else None,
        )
    return graphs
