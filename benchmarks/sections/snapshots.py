"""How much cheaper are S as-of times of one user behind one prefix than each behind its own?

The as-of times lie where the window rule lets them share: a window grows from three quarters of its
budget to all of it before it drops events, and they are spread evenly over that stretch. A prefix
of its own reads the events before its as-of alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from feast_anchor.onnx_export.inputs import Floats

from ..cascade import Arrays, Cascade, take
from ..findings import Figure, Found, Goal
from ..flops import Flops
from ..lab import Lab
from ..models import Subject
from ..timing import Budget, Ratio, alternate
from ..workload import random_blocks, random_history

QUESTIONS = (1, 4)
_GOALS = {("small", 16, 1): Goal(4.0)}
_TOLERANCE = 1e-5


def measure(lab: Lab) -> Found:
    """Every size and number of as-of times, with one question at each and with four."""
    figures, details = [], {}
    for name in lab.plan.sizes:
        subject = lab.subject(name)
        rows: list[dict[str, Any]] = []
        for questions in QUESTIONS:
            for moments in lab.plan.snapshots:
                ratio, ideal = _compare(subject, moments, questions, lab.plan.budget)
                title = f"{name}, S = {moments}, Q = {questions}: over separate prefixes"
                note = f"ideal {ideal:.1f} by operations"
                goal = _GOALS.get((name, moments, questions))
                figures.append(Figure(title, ratio.value, goal=goal, note=note))
                row = {"snapshots": moments, "questions": questions, "ideal_flops": ideal}
                rows.append(row | ratio.as_json())
        details[name] = rows
    return Found(tuple(figures), details)


def _compare(subject: Subject, moments: int, questions: int, budget: Budget) -> tuple[Ratio, float]:
    """The ratio of times, and that of operations."""
    size, generator = subject.size, np.random.default_rng(0)
    seen = np.linspace(size.events, size.events * 3 // 4, moments).astype(np.int64)  # [S]
    history = random_history(subject, size.events, generator)
    asked = random_blocks(subject, np.repeat(seen, questions), generator)
    cascade = Cascade(subject.bundle)

    def separate() -> Floats:
        rows = np.arange(questions)
        return np.concatenate(
            [
                cascade.answer([_first(history, events)], take(asked, rows + at * questions))
                for at, events in enumerate(seen.tolist())
            ]
        )

    def check(vectors: Mapping[str, Floats]) -> None:
        gap = np.abs(vectors["separate"] - vectors["shared"]).max()
        assert gap <= _TOLERANCE, f"snapshots differ by {gap} from separate runs; nothing is timed"

    calls = {"shared": lambda: cascade.answer([history], asked), "separate": separate}
    flops, tokens = Flops(size.config, len(size.modalities)), size.tokens
    apart = sum(flops.cascade(events, questions, tokens) for events in seen.tolist())
    together = flops.cascade(size.events, moments * questions, tokens)
    return alternate(calls, budget, check).ratio("separate", "shared"), apart / together


def _first(history: Arrays, events: int) -> Arrays:
    """The first so many events of a history."""
    return {name: x[:, :events] for name, x in history.items()}
