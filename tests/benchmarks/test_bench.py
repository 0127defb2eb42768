"""The benchmarks run, and what they count is what runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from benchmarks.__main__ import run
from benchmarks.cascade import Cascade
from benchmarks.findings import Figure, Goal
from benchmarks.flops import Flops
from benchmarks.lab import Lab, Plan
from benchmarks.operators import operators
from benchmarks.report import shown
from benchmarks.sections import SECTIONS
from benchmarks.timing import Budget, Timings, alternate, alternate_cold
from benchmarks.workload import workload

PLAN = Plan(
    sizes=("tiny",),
    blocks=(1, 4),
    snapshots=(1, 4),
    budget=Budget(rounds=1, seconds=0.0, least=1),
    served="tiny",
    scenarios=2,
    beam_users=8,
    requests=3,
    worker_users=10,
    pipeline_users=(30,),
    grown="tiny",
    growth_users=(20, 40),
    large="tiny-market",
    large_users=80,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab of the smallest size, one round of everything."""
    return Lab(PLAN, tmp_path_factory.mktemp("bench"))


@pytest.mark.slow
def test_every_section_measures_something(lab: Lab) -> None:
    """All sections run, agree on the vectors, and leave positive figures and a picture."""
    run(lab, list(SECTIONS), Console(quiet=True))

    summary: dict[str, Any] = json.loads((lab.out / "summary.json").read_text("utf-8"))
    assert list(summary["sections"]) == list(SECTIONS)
    assert summary["machine"]["cores"] > 0
    for section in summary["sections"].values():
        assert section["figures"]
        for figure in section["figures"]:
            assert math.isfinite(figure["value"]), figure
            assert figure["value"] > 0, figure
    assert (lab.out / "bench.png").stat().st_size > 10_000


@pytest.mark.slow
def test_operations_are_those_that_run(lab: Lab) -> None:
    """The counts from the model's sizes are those of the products that the profiler saw."""
    subject = lab.subject("tiny")
    size, work = subject.size, workload(subject, 1, 3)
    flops = Flops(size.config, len(size.modalities))
    cascade = Cascade(subject.bundle)
    feed, state = cascade.prefix_feed(work.histories[0]), cascade.run_prefix(work.histories[0])
    pair = {name: x if name == "prompt" else x[:1] for name, x in work.pairs().items()}
    bundle, full = subject.bundle.folder, subject.full_folder

    expected = {
        bundle / "prefix.onnx": (feed, flops.prefix(size.events)),
        bundle / "suffix.onnx": (
            {**work.asked, **state},
            flops.suffix(size.events, 3, size.tokens),
        ),
        full / "full.onnx": (pair, flops.full(size.events, size.tokens, trim=False)),
        full / "trimmed.onnx": (pair, flops.full(size.events, size.tokens, trim=True)),
    }
    for graph, (given, count) in expected.items():
        assert round(operators(graph, given, runs=1).gflops * 1e9) == count, graph.name


def test_ratios_are_taken_within_rounds() -> None:
    """A slow round slows both sides and leaves the median of ratios alone."""
    timings = Timings({"slow": (4.0, 40.0, 4.4), "fast": (2.0, 20.0, 2.0)})

    ratio = timings.ratio("slow", "fast")
    assert (ratio.low, ratio.value, ratio.rounds) == (2.0, 2.0, 3)
    assert timings.fastest("slow", "fast") == "fast"
    assert timings.ratios({"slow": 1.0, "fast": -1.0}, {"fast": 0.5}).value == 2.0


def test_candidates_take_turns() -> None:
    """Rounds go forwards and backwards, and stop when the time is up but not before the least."""
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}

    timings = alternate_cold(calls, Budget(rounds=9, seconds=0.0, least=2))

    assert order == ["a", "b", "b", "a"]
    assert {len(seconds) for seconds in timings.seconds.values()} == {2}


def test_what_is_not_alike_is_not_timed() -> None:
    """What the first runs return is checked before any round."""

    def refuse(found: Mapping[str, Any]) -> None:
        raise ValueError(f"{found['a']} is not {found['b']}")

    with pytest.raises(ValueError, match="1 is not 2"):
        alternate({"a": lambda: 1, "b": lambda: 2}, Budget(), refuse)


def test_goals_are_bounds_from_either_side() -> None:
    """A goal says which side is the right one, and a figure shows its unit."""
    assert Goal(7.2).met(7.2)
    assert not Goal(1.1, at_least=False).met(1.2)
    assert str(Goal(1.1, at_least=False)) == "≤ 1.1"
    assert [shown(Figure("", 1234.5, unit)) for unit in ("×", "MiB", "")] == [
        "1234.50×",
        "1,234 MiB",
        "1.2e+03",
    ]
