"""How much faster is a Beam pipeline with the cascade than one with RunInference?

Both pipelines pay for starting, about half a second, and for nothing else but the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from feast_anchor.onnx_export.inputs import Floats

from ..cascade import Arrays, Cascade
from ..findings import Figure, Found
from ..lab import Lab
from ..models import Subject
from ..peers.beam import FullForwards, run_cascade, run_inference
from ..timing import Budget, alternate, alternate_cold
from ..workload import Workload, workload

_QUESTIONS = 16
_TOLERANCE = 1e-4
_PAIRS_PER_RUN = (1, 4, 16)
_HISTORIES = 4  # different ones; users take them in turns


def measure(lab: Lab) -> Found:
    """Sixteen questions a user."""
    subject, users = lab.subject(lab.plan.served), lab.plan.beam_users
    work = workload(subject, _HISTORIES, _QUESTIONS)
    handler = _handler(subject, work, lab.plan.budget)
    calls = {
        "RunInference": partial(run_inference, handler, work, users),
        "cascade in a DoFn": partial(run_cascade, subject.bundle, work, users),
    }
    timings = alternate_cold(calls, Budget(3, lab.plan.budget.seconds * 4, least=1))
    ratio = timings.ratio("RunInference", "cascade in a DoFn")
    title = f"{subject.size.name}, Q = {_QUESTIONS}: over RunInference on trimmed forwards"
    note = f"{users} users, {handler.pairs_per_run} pairs a run"
    details = {"seconds": timings.as_json(), "ratio": ratio.as_json()}
    return Found((Figure(title, ratio.value, note=note),), details)


def _handler(subject: Subject, work: Workload, budget: Budget) -> FullForwards:
    """The handler with the number of pairs a run that is fastest. Raises if its vectors differ."""
    history = work.histories[0]
    pairs = Workload((history,), work.asked).pairs()
    expected = Cascade(subject.bundle).answer([history], work.asked)
    handlers = {str(size): FullForwards(subject, size) for size in _PAIRS_PER_RUN}

    def run(handler: FullForwards, session: object, given: Arrays) -> Floats:
        (found,) = handler.run_inference([given], session)
        assert isinstance(found.inference, np.ndarray)
        return found.inference

    calls = {name: partial(run, h, h.load_model(), pairs) for name, h in handlers.items()}

    def check(vectors: Mapping[str, Floats]) -> None:
        gap = max(np.abs(x - expected).max() for x in vectors.values())
        assert gap <= _TOLERANCE, f"the handler's vectors differ by {gap}, so nothing is timed"

    return handlers[alternate(calls, budget, check).fastest(*handlers)]
