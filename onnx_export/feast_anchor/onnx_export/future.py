"""What a user does next, written out: the future-behaviour family of Query-as-Anchor.

A history up to the as-of, a window after it. The window's events are counted by time bin and
*kind* and become a short text, "week 1: produce, meat; week 3: coupons". Answers differ from user
to user, so each is a positive of its own user and a negative of nearly all others.

A kind is a topic of a modality (`topics.find_topics`), or the modality itself for events about no
topic. Kinds of the modality with most events stand alone, others follow their modality's name.

**Which kinds are named.** Bins are read in time order. Within a bin each kind weighs its number
of events that no kind named in this bin is about yet, divided by 1 + the number of earlier bins
that name it; the heaviest is named, ties by name, and so on until every event is named. So
frequent kinds are named, two names for the same events are not, and a kind named before returns
only if it is much more frequent than a new one. At most three per bin, fewer if the text would
have more than 24 words; if one per bin is still too long, the last bins are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .corpus import DAY, Corpus
from .inputs import Ints
from .questions import span
from .scope import Bools, Column, Scope
from .topics import Topic, find_topics

FAMILY = "behaviour"
NOTHING = "nothing"

_WORDS = 24  # most words of an answer
_PER_BIN = 3  # most kinds named in one bin
_BINS = {7: ("day", 7), 28: ("week", 4), 91: ("month", 3)}  # horizon in days -> unit, bins


@dataclass(frozen=True)
class Kinds:
    """Names of kinds, and which of them each distinct (modality, text) pair is about."""

    names: tuple[str, ...]
    of: Mapping[tuple[int, int], tuple[int, ...]]  # (modality, text) -> positions in names


def behaviour_corpus(scope: Scope) -> Corpus:
    """One question per horizon; rows whose window is not over by the cut have no answer."""
    kinds = find_kinds(scope)
    return scope.columns(_column(scope, kinds, days) for days in scope.horizons)


def find_kinds(scope: Scope) -> Kinds:
    """The kinds of all timed modalities."""
    names: list[str] = []
    of: dict[tuple[int, int], tuple[int, ...]] = {}
    for index, spec in enumerate(scope.modalities):
        own = scope.events.modality == index
        if spec.kind != "events" or not own.any():
            continue
        start = "" if index == _largest(scope) else f"{spec.name} "
        texts, topics = _topics(scope, index, own)
        about: dict[int, list[int]] = {int(text): [] for text in texts}
        for number, topic in enumerate(topics, len(names)):
            for position in topic.texts:
                about[int(texts[position])].append(number)
        names += [start + topic.name for topic in topics]
        names.append(f"other {spec.name}" if topics else spec.name)
        of |= {(index, t): tuple(kinds) or (len(names) - 1,) for t, kinds in about.items()}
    return Kinds(tuple(names), of)


def describe(bins: Sequence[Sequence[Collection[str]]], unit: str) -> str:
    """The text of a window: `bins` holds the events of each bin as the kinds they are about.

    >>> describe([[["meat"], ["produce", "apples"], ["produce"]], [], [["soap"]]], "week")
    'week 1: produce, meat; week 3: soap'
    """
    parts: list[str] = []
    for limit in range(_PER_BIN, 0, -1):
        parts = [
            f"{unit} {number}: {', '.join(chosen)}"
            for number, chosen in enumerate(_choose(bins, limit), 1)
            if chosen
        ]
        if _words(parts) <= _WORDS:
            break
    while _words(parts) > _WORDS and len(parts) > 1:
        parts.pop()
    return "; ".join(parts) or NOTHING


def _choose(bins: Sequence[Sequence[Collection[str]]], limit: int) -> Iterator[list[str]]:
    """The kinds that each bin names, by the rule above."""
    named: Counter[str] = Counter()
    for events in bins:
        chosen: list[str] = []
        left = events
        while left and len(chosen) < limit:
            chosen.append(_heaviest(left, named))
            left = [kinds for kinds in left if chosen[-1] not in kinds]
        named.update(chosen)
        yield chosen


def _heaviest(events: Sequence[Collection[str]], named: Mapping[str, int]) -> str:
    counts = Counter(kind for kinds in events for kind in kinds)
    return min(counts, key=lambda kind: (-counts[kind] / (1 + named.get(kind, 0)), kind))


def _words(parts: Sequence[str]) -> int:
    return sum(len(part.split()) for part in parts)


def _column(scope: Scope, kinds: Kinds, days: int) -> Column:
    unit, bins = _BINS.get(days, ("part", min(4, days)))
    ended = np.flatnonzero(scope.ended(days)).tolist()
    ends = scope.after(days)
    texts = [_window(scope, kinds, row, int(ends[row]), days, bins, unit) for row in ended]
    answers, codes = np.unique(np.array(texts, dtype=object), return_inverse=True)
    which = np.full(len(scope.user), -1, dtype=np.int64)
    which[ended] = codes
    return Column(FAMILY, _phrasings(scope.entity, days, unit), answers.tolist(), which)


def _window(scope: Scope, kinds: Kinds, row: int, end: int, days: int, bins: int, unit: str) -> str:
    """The answer at one row, from the events between its as-of and row `end`."""
    events = scope.events
    found: list[list[set[str]]] = [[] for _ in range(bins)]
    for at in range(int(scope.now[row]), end):
        since = int(events.times[at] - scope.as_of[row])
        about = kinds.of.get((int(events.modality[at]), int(events.text[at])), ())
        if about:
            found[since * bins // (days * DAY)].append({kinds.names[kind] for kind in about})
    return describe(found, unit)


def _phrasings(entity: str, days: int, unit: str) -> tuple[str, ...]:
    return (
        f"what will this {entity} do in the next {span(days)}?",
        f"what will happen to this {entity} in the coming {days} days?",
        f"{unit} by {unit}, what comes next within {days} days?",
        f"what is this {entity} going to do, {unit} by {unit}, for {span(days)}?",
        f"next {span(days)} of this {entity}?",
    )


def _topics(scope: Scope, index: int, own: Bools) -> tuple[Ints, list[Topic]]:
    """Distinct texts of a modality, and its topics as positions in them."""
    events = scope.events
    texts, text_of = np.unique(events.text[own], return_inverse=True)
    pairs = np.stack((events.user[own], events.times[own] // (28 * DAY)), axis=1)
    month = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    words = [events.texts[text] for text in texts]
    template = scope.modalities[index].text
    return texts, find_topics(template, words, text_of.astype(np.int64), month, scope.topics)


def _largest(scope: Scope) -> int:
    """The timed modality with most events."""
    timed = [index for index, spec in enumerate(scope.modalities) if spec.kind == "events"]
    return max(timed, key=lambda index: (scope.events.modality == index).sum())
