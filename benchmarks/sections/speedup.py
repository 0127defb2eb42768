"""How much cheaper are Q questions behind one prefix than as Q forwards, and than elsewhere?

The baseline of the goals is the same runtime with the same weights: one graph of the full forward,
a pair of history and question per run or four per run, whichever is faster. What exporting a causal
model gives computes every row of the last layer; a graph that leaves out those that nobody reads is
measured too. The peers run in the same rounds. Where there are few questions, several users make
one piece of work, so that whoever batches has something to batch; the cascade packs them as the
scorer does.

The ideal is the ratio of the operations that each way has to do; where no goal was set for a size
and a kind of forward, it is 95 % of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from feast_anchor.onnx_export.inputs import Floats
from feast_anchor.onnx_export.threads import one_thread

from ..cascade import Arrays, Cascade
from ..findings import Figure, Found, Goal
from ..flops import Flops
from ..lab import Lab
from ..models import Subject
from ..peers import cached, eager
from ..timing import Budget, Timings, alternate
from ..workload import Workload, workload

CASCADE = "cascade"
# Kind of full forward -> what it is called, a pair a run and several.
FULL = {
    "full": ("full forward, one pair a run", "full forward, four pairs a run"),
    "trimmed": ("trimmed forward, one pair a run", "trimmed forward, four pairs a run"),
}
PEERS = ("torch eager, one pair a run", "torch SDPA, batched", "transformers past_key_values")

_PAIRS = {"medium": 4}  # of one piece of work, at least; elsewhere as many as fill the packs
_PAIRS_ELSEWHERE = 64
_PAIRS_PER_RUN = 4  # as fast as it gets: 16 are slower
# Questions up to which pairs are run in other ways too, and transformers; beyond it takes minutes.
_MOST = {"medium": (4, 16)}
_GOALS = {("small", "full"): 7.2}  # at sixteen questions
_SHARE_OF_IDEAL = 0.95
_QUESTIONS_OF_GOAL = 16
_SIZES_OF_GOAL = ("small", "medium")
_TOLERANCE = 1e-4  # of the peers, which are only to compute the same thing
_GOAL_DIFFERENCE = Goal(1e-5, at_least=False)

Calls = dict[str, Callable[[], Floats]]


@dataclass(frozen=True)
class Compared:
    """One size and number of questions."""

    questions: int
    users: int
    timings: Timings
    difference: float  # largest, to the full forward
    ideal: Mapping[str, float]  # operations of each kind of full forward over the cascade's
    ideal_tokens: float  # Q(T+L) / (T+QL)

    def fastest(self, kind: str) -> str:
        """The faster one of the runs of a kind of full forward."""
        return self.timings.fastest(*(n for n in FULL[kind] if n in self.timings.seconds))

    def figures(self, size: str) -> list[Figure]:
        """The speed-up beside its ideals, then the peers."""
        where = f"{size}, Q = {self.questions}: over"
        found = []
        for kind, name in (("full", "full forwards"), ("trimmed", "trimmed forwards")):
            ratio, ideal = self.timings.ratio(self.fastest(kind), CASCADE), self.ideal[kind]
            bound = _GOALS.get((size, kind), round(_SHARE_OF_IDEAL * ideal, 1))
            with_goal = self.questions == _QUESTIONS_OF_GOAL and size in _SIZES_OF_GOAL
            goal = Goal(bound) if with_goal else None
            note = f"ideal {ideal:.1f}, {ratio.value / ideal:.0%} of it; {self.fastest(kind)}"
            title = f"{where} {name}, same runtime"
            found.append(Figure(title, ratio.value, goal=goal, note=note))
        for peer in PEERS:
            if peer in self.timings.seconds:
                found.append(Figure(f"{where} {peer}", self.timings.ratio(peer, CASCADE).value))
        return found

    def as_json(self) -> dict[str, Any]:
        """As it stands in the summary; seconds are per piece of work."""
        names = [name for name in self.timings.seconds if name != CASCADE]
        return {
            "questions": self.questions,
            "users": self.users,
            "seconds": self.timings.as_json(),
            "cascade is faster than": {
                name: self.timings.ratio(name, CASCADE).as_json() for name in names
            },
            "ideal": dict(self.ideal),
            "ideal_tokens": self.ideal_tokens,
            "difference": self.difference,
        }


def measure(lab: Lab) -> Found:
    """Every size of the plan, every number of questions."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for name in lab.plan.sizes:
        subject = lab.subject(name)
        with one_thread():
            rows = [compare(subject, blocks, lab.plan.budget) for blocks in lab.plan.blocks]
        for row in rows:
            figures += row.figures(name)
        worst = max(row.difference for row in rows)
        title = f"{name}: largest difference to the full forward"
        figures.append(Figure(title, worst, "", _GOAL_DIFFERENCE))
        details[name] = [row.as_json() for row in rows]
    return Found(tuple(figures), details)


def compare(subject: Subject, questions: int, budget: Budget) -> Compared:
    """One number of questions."""
    pairs = _PAIRS.get(subject.size.name, _PAIRS_ELSEWHERE)
    users = -(-pairs // questions)
    work = workload(subject, users, questions)
    timings, difference = time_alike(candidates(subject, work), budget)
    size = subject.size
    events, tokens = size.events, size.tokens
    flops = Flops(size.config, len(size.modalities))
    ours = flops.cascade(events, questions, tokens)
    return Compared(
        questions=questions,
        users=users,
        timings=timings,
        difference=difference,
        ideal={
            kind: questions * flops.full(events, tokens, trim=kind == "trimmed") / ours
            for kind in FULL
        },
        ideal_tokens=questions * (events + tokens) / (events + questions * tokens),
    )


def candidates(subject: Subject, work: Workload) -> Calls:
    """Everything that answers a workload, by name: vectors [U*Q,embedding] each."""
    cascade, pairs = Cascade(subject.bundle), work.pairs()
    most_pairs, most = _MOST.get(subject.size.name, (work.questions, work.questions))
    calls: Calls = {CASCADE: partial(cascade.answer, work.histories, work.asked)}
    for kind, names in FULL.items():
        session = subject.full_session(kind)
        calls[names[0]] = partial(_in_runs, session, pairs, 1)
        if work.questions <= most_pairs:
            calls[names[1]] = partial(_in_runs, session, pairs, _PAIRS_PER_RUN)
    if work.questions <= most_pairs:
        calls[PEERS[0]] = partial(eager.eager(subject), pairs)
        calls[PEERS[1]] = partial(eager.batched(subject), pairs)
    if work.questions <= most:
        calls[PEERS[2]] = partial(cached.PastKeyValues(subject), work)
    return calls


def time_alike(calls: Calls, budget: Budget) -> tuple[Timings, float]:
    """Timings of candidates that give the same vectors, and the largest difference.

    That is the one to the full forward; raises `AssertionError` when a candidate is far off.
    """
    found: list[float] = []

    def check(vectors: Mapping[str, Floats]) -> None:
        gaps = {name: float(np.abs(x - vectors[CASCADE]).max()) for name, x in vectors.items()}
        far = {name: gap for name, gap in gaps.items() if not gap <= _TOLERANCE}
        assert not far, f"these do not compute the cascade's vectors, so nothing is timed: {far}"
        found.append(gaps[FULL["full"][0]])

    return alternate(calls, budget, check), found[0]


def _in_runs(session: Any, pairs: Arrays, size: int) -> Floats:
    """Vectors of all pairs, so many a run; prompts go with each."""
    pieces = [
        {name: x if name == "prompt" else x[start : start + size] for name, x in pairs.items()}
        for start in range(0, len(pairs["ids"]), size)
    ]
    return np.concatenate([session.run(None, feed)[0] for feed in pieces])
