"""What our code knows of one user at one as-of, as short facts that a writer may put in words.

Every fact is a number or a word computed from events strictly before the as-of. Statements about a
user are checked against these same facts, computed anew: a writer's word is never enough.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from .corpus import DAY
from .future import Kinds
from .inputs import Ints
from .questions import local_times
from .scope import Scope

Facts = dict[str, int | float | str]

KIND = "number of events about "  # how facts about a kind begin; its name follows

_KINDS = 8  # most kinds in the facts of one user
_PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")  # six hours each, from 00:00
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


def user_facts(scope: Scope, kinds: Kinds, row: int) -> Facts:
    """The facts of snapshot `row`: kinds, amounts, times of day, weekends, gaps, novelty."""
    first, end = int(scope.first[row]), int(scope.now[row])
    events, as_of = scope.events, int(scope.as_of[row])
    facts: Facts = {}
    for index, spec in enumerate(scope.modalities):
        own = first + np.flatnonzero(events.modality[first:end] == index)
        if spec.kind != "events" or not len(own):
            continue
        facts |= _habits(spec.name, local_times(events.times[own], scope.timezone))
        facts[f"days since the last {spec.name}"] = int((as_of - events.times[own[-1]]) // DAY)
        facts[f"different texts of {spec.name}"] = len(np.unique(events.text[own]))
        if spec.amount:
            median = float(np.median(events.amounts[own]))
            facts[f"median amount of {spec.name}"] = round(median, 2)
    return facts | _about(scope, kinds, first, end)


def _habits(name: str, local: Ints) -> Facts:
    """Facts about when; `local` is ascending wall-clock time in microseconds."""
    days = np.unique(local // DAY)
    weekend = ((local // DAY + _EPOCH_WEEKDAY) % 7 >= 5).mean()
    part = int(np.bincount((local % DAY) // (DAY // 4)).argmax())
    facts: Facts = {
        f"number of {name}": len(local),
        f"percent of {name} at the weekend": round(100 * float(weekend)),
        f"usual part of the day of {name}": _PARTS_OF_DAY[part],
    }
    if len(days) > 1:
        facts[f"median days between {name}"] = float(np.median(np.diff(days)))
        facts[f"most days between {name}"] = int(np.diff(days).max())
    return facts


def _about(scope: Scope, kinds: Kinds, first: int, end: int) -> Facts:
    """Numbers of events by kind, the most frequent kinds first."""
    pairs = zip(scope.events.modality[first:end], scope.events.text[first:end], strict=True)
    counts = Counter(
        kinds.names[kind] for m, t in pairs for kind in kinds.of.get((int(m), int(t)), ())
    )
    most = sorted(counts, key=lambda name: (-counts[name], name))[:_KINDS]
    return {KIND + name: counts[name] for name in most}
