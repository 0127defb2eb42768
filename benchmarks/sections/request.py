"""At request time: from a stored user state to vectors, and a new event into the state.

The store's own read is left out: what is timed begins with the packed bytes in memory. Latencies
are of single requests, one after the other on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.quantize import quantize_bundle
from feast_anchor.transforms.request import Events, RequestScorer
from feast_anchor.transforms.scoring import Question, Scorer
from feast_anchor.transforms.user_state import Encoding

from ..findings import Figure, Found, Goal
from ..lab import Lab
from ..models import AISLES, ITEMS, Subject
from ..timing import alternate

_MINUTE = 60_000_000  # microseconds
_ENCODINGS: tuple[Encoding, ...] = ("float32", "int8")
_WARM, _IN_A_ROW = 5, 50  # requests that do not count, and that do, before the next kind
# (size, kind) -> p99 in milliseconds, one question
_GOALS = {
    ("small", "float32 weights and state"): Goal(2.0, at_least=False),
    ("small", "int8 weights and state"): Goal(1.2, at_least=False),
}


def measure(lab: Lab) -> Found:
    """Latency for one question and for several, and appending against reading anew."""
    subject, plan = lab.subject(lab.plan.served), lab.plan
    size, bundles = subject.size.name, (subject.bundle, _in_int8(subject, lab))
    figures: list[Figure] = []
    latencies: list[dict[str, Any]] = []
    for questions in (1, plan.scenarios):
        asked = [Question(text) for text in subject.questions(questions)]
        plain, int8 = (_scorer(bundle, asked) for bundle in bundles)
        requests = {
            "float32 weights and state": _request(plain, _packed(plain, subject, "float32")),
            "float32 weights, int8 state": _request(plain, _packed(plain, subject, "int8")),
            "int8 weights and state": _request(int8, _packed(int8, subject, "int8")),
        }
        for kind, found in _latencies(requests, plan.requests).items():
            p50, p99 = np.percentile(found, [50, 99]).tolist()
            title = f"{size}, Q = {questions}, {kind}"
            goal = _GOALS.get((size, kind)) if questions == 1 else None
            figures.append(Figure(f"{title}: p50", p50, "ms"))
            figures.append(Figure(f"{title}: p99", p99, "ms", goal, f"{len(found):,} requests"))
            row = {"questions": questions, "kind": kind, "p50_ms": p50, "p99_ms": p99}
            latencies.append(row | {"goal_p99_ms": None if goal is None else goal.bound})
    state_bytes = {
        encoding: len(_packed(_scorer(subject.bundle, [Question(None)]), subject, encoding))
        for encoding in _ENCODINGS
    }
    details = {"size": size, "latencies": latencies, "state_bytes": state_bytes}
    return Found((*figures, *_append(subject, lab)), details)


def _scorer(bundle: Bundle, asked: list[Question]) -> RequestScorer:
    return RequestScorer(Scorer(bundle, asked, threads=1, device="cpu"))


def _in_int8(subject: Subject, lab: Lab) -> Bundle:
    out = lab.scratch("request") / f"{subject.size.name}-int8"
    quantize_bundle(subject.bundle.folder, out, users=8)
    return Bundle.open(out)


def _packed(states: RequestScorer, subject: Subject, encoding: Encoding) -> bytes:
    return states.begin(_history(subject)).pack(encoding)


def _append(subject: Subject, lab: Lab) -> list[Figure]:
    """One more event: appended to the state, against reading the whole history anew."""
    states = _scorer(subject.bundle, [Question(None)])
    history = _history(subject)
    last = np.array([len(history.times) - 1])
    state = states.begin(history.take(np.arange(last[0])))
    newest = history.take(last)
    grown, whole = states.append(state, newest), states.begin(history)
    same = all(np.array_equal(grown.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert same, "an appended state is not the one read at once, so nothing is timed"
    calls = {
        "append": lambda: states.append(state, newest),
        "anew": lambda: states.begin(history),
    }
    timings = alternate(calls, lab.plan.budget)
    ratio = timings.ratio("anew", "append")
    ms = 1e3 * timings.median("append")
    return [
        Figure(f"{subject.size.name}: one event read anew over appended", ratio.value),
        Figure(f"{subject.size.name}: appending one event", ms, "ms", note="texts encoded too"),
    ]


def _request(states: RequestScorer, packed: bytes) -> Callable[[], object]:
    def answer() -> object:
        state = states.unpack(packed)
        return states.answer(state, state.history_end + _MINUTE)

    return answer


def _latencies(requests: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Milliseconds of every request, the kinds in turns of many."""
    found: dict[str, list[float]] = {name: [] for name in requests}
    while any(len(own) < count for own in found.values()):
        for name, request in requests.items():  # a server has one model in its cache
            for number in range(_WARM + _IN_A_ROW):
                start = time.perf_counter()
                request()
                if number >= _WARM:
                    found[name].append(1e3 * (time.perf_counter() - start))
    return found


def _history(subject: Subject) -> Events:
    """As many events as the window holds."""
    generator = np.random.default_rng(0)
    budgets = [spec.max_events for spec in subject.size.modalities]
    modality = generator.permutation(np.repeat(np.arange(len(budgets)), budgets))
    items = generator.integers(0, (len(ITEMS), len(AISLES)), (len(modality), 2))
    return Events(
        times=np.arange(len(modality), dtype=np.int64) * 60 * _MINUTE,
        modality=modality,
        texts=tuple(f"{ITEMS[item]} in {AISLES[aisle]}" for item, aisle in items),
        amounts=generator.gamma(2, 3, len(modality)).astype(np.float32),
    )
