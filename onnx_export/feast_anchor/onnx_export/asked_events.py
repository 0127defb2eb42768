"""What is asked about timed events, with no word about any particular data set.

The rule: every family is built from counts in windows before or after the as-of, of all events of a
modality or of those about one topic. Names come from the modality, its template and its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .corpus import DAY
from .inputs import Ints
from .manifest import ModalitySpec
from .questions import Maker, running_sum, span, thirds
from .topics import Topic, field_values, find_topics, template_words

_PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")  # six hours each, from 00:00


def ask_about_events(maker: Maker, index: int, spec: ModalitySpec, limit: int) -> None:
    """Everything that is asked of one modality of timed events."""
    own = maker.events.modality == index
    if not own.any():
        return
    texts, text_of = np.unique(maker.events.text[own], return_inverse=True)
    words = [maker.events.texts[t] for t in texts]
    found = find_topics(spec.text, words, text_of.astype(np.int64), _months(maker, own), limit)
    total = running_sum(own)
    added = template_words(spec.text)
    _any(maker, spec.name, f"{spec.name} ({added})" if added else spec.name, total)
    _growth(maker, spec, own)
    _levels(maker, f"how often does this {maker.entity} have {spec.name}", spec.name, total)
    _clock(maker, spec, own)
    _topics(
        maker,
        index,
        spec,
        [(t, own & np.isin(maker.events.text, texts[[*t.texts]])) for t in found],
    )
    _novelty(maker, spec, own, [field_values(spec.text, word) for word in words], text_of)
    if spec.amount:
        _spend(maker, spec, own, total)


def ask_about_all(maker: Maker, modalities: Sequence[ModalitySpec]) -> None:
    """Whether nothing at all will happen, and whether everything together grows."""
    timed = [index for index, spec in enumerate(modalities) if spec.kind == "events"]
    own = np.isin(maker.events.modality, timed)
    running = running_sum(own)
    who = maker.entity
    for days in maker.horizons:
        asked = (
            f"will this {who} be inactive in the next {days} days?",
            f"will this {who} do, buy or use nothing at all in the next {span(days)}?",
            f"will this {who} buy nothing in the next {span(days)}?",
            f"will nothing at all be bought by this {who} in the next {days} days?",
            f"will this {who} stop and leave within the next {span(days)}?",
            f"will this {who} stay away for the next {span(days)}?",
            f"is this {who} about to be lost in the coming {span(days)}?",
            f"will nothing be heard of this {who} for {days} days?",
            f"churn within {span(days)}?",
        )
        maker.ask_yes_no("inactive", asked, "inactive", maker.ahead(running, days) == 0, days)
    priced = np.array([spec.amount for spec in modalities])
    amounts = np.where(own & priced[maker.events.modality], maker.events.amounts, 0.0)
    _more(maker, "", "spend more", amounts.astype(np.float64), own)


def _topics(maker: Maker, index: int, spec: ModalitySpec, found: list[tuple[Topic, Any]]) -> None:
    total = running_sum(maker.events.modality == index)
    counts = []
    for topic, about in found:
        running = running_sum(about)
        long = f"{spec.name}: {topic.name}"
        short = topic.name if maker.short.setdefault(topic.name, index) == index else long
        _any(maker, short, long, running)
        _levels(maker, f"how often {long}", short, running)
        _mostly(maker, spec, short, running, total)
        counts.append(maker.behind(running))
    if len(found) > 1:
        table = np.stack(counts, axis=1)
        which = np.where(table.sum(1) > 0, table.argmax(1), -1)
        asked = (
            f"what does this {maker.entity} have most in {spec.name}?",
            f"favourite of {spec.name}?",
            f"which {spec.name} does this {maker.entity} prefer?",
        )
        maker.ask("favourite", asked, [f"mostly {topic.name}" for topic, _ in found], which)


def _any(maker: Maker, name: str, long: str, running: Ints) -> None:
    """Whether it happens at all."""
    who = maker.entity
    for days in maker.horizons:
        asked = (
            f"will this {who} have {long} in the next {days} days?",
            f"will this {who} have {name} in the next {span(days)}?",
            f"will this {who} buy, use or get {name} in the next {span(days)}?",
            f"is this {who} going to choose {name} in the coming {span(days)}?",
            f"can we expect {name} from this {who} soon, within {days} days?",
            f"{name} within {span(days)}?",
            f"is {name} likely in the coming {days} days?",
            f"does this {who} want {name}?",
        )
        maker.ask_yes_no("any", asked, name, maker.ahead(running, days) > 0, days)


def _mostly(maker: Maker, spec: ModalitySpec, name: str, running: Ints, total: Ints) -> None:
    """Whether it makes up at least half of what happens."""
    who = maker.entity
    for days in maker.horizons:
        of, all_of_it = maker.ahead(running, days), maker.ahead(total, days)
        asked = (
            f"will {spec.name} of this {who} be mostly {name} in the next {span(days)}?",
            f"will most of what this {who} buys or uses in the next {days} days be {name}?",
            f"does this {who} prefer {name} over anything else?",
            f"will this {who} mostly buy or use {name} in the next {span(days)}?",
            f"mainly {name} in the coming {span(days)}?",
        )
        yes = 2 * of >= all_of_it
        maker.ask_yes_no("mostly", asked, f"mostly {name}", yes, days, all_of_it > 0)


def _novelty(
    maker: Maker, spec: ModalitySpec, own: Any, parsed: Sequence[dict[str, str]], text_of: Ints
) -> None:
    """Whether a value of one of the template's columns comes up for the first time."""
    for column in sorted({name for values in parsed for name in values}):
        codes = np.unique([values.get(column, "") for values in parsed], return_inverse=True)[1]
        if codes.max() < 2:
            continue
        user = maker.events.user[own]
        pairs = user * (codes.max() + 1) + codes[text_of]
        first = np.zeros(len(pairs), dtype=bool)
        first[np.unique(pairs, return_index=True)[1]] = True  # events are in order of time
        new = np.zeros(len(own), dtype=bool)
        new[own] = first
        running, name = running_sum(new), f"new {column.replace('_', ' ')}"
        for days in maker.horizons:
            asked = (
                f"will this {maker.entity} have a {name} in {spec.name} in the next {days} days?",
                f"will this {maker.entity} try a {name} in the next {span(days)}?",
                f"will this {maker.entity} buy or use a {name[4:]} that is new to it in the next "
                f"{span(days)}?",
                f"{name} for the first time within {span(days)}?",
                f"is a {name} likely that was never there before?",
            )
            maker.ask_yes_no("new", asked, name, maker.ahead(running, days) > 0, days)


def _growth(maker: Maker, spec: ModalitySpec, own: Any) -> None:
    """More in the next n days than in the last n; money where the modality has an amount."""
    weight = maker.events.amounts if spec.amount else np.ones(len(own))
    verb = f"spend more on {spec.name}" if spec.amount else f"have more {spec.name}"
    _more(maker, spec.name, verb, np.where(own, weight, 0.0).astype(np.float64), own)


def _more(maker: Maker, name: str, verb: str, weight: Any, own: Any) -> None:
    running, start = running_sum(weight), maker.events.times[own].min()
    who = maker.entity
    what = name or "spending"
    for days in maker.horizons:
        fair = maker.rows.as_of - days * DAY >= start  # else the past window is cut short
        asked = (
            f"will this {who} {verb} in the next {span(days)} than in the last?",
            f"will {what} grow in the next {days} days?",
            f"more {what} in the coming {span(days)} than before?",
            f"is {what} of this {who} on the rise?",
            f"will {what} of this {who} be higher in the coming {span(days)}?",
            f"will this {who} {verb} than it used to?",
        )
        yes = maker.ahead(running, days) > maker.behind(running, days)
        maker.ask_yes_no("growth", asked, f"growing {what}", yes, days, fair)


def _clock(maker: Maker, spec: ModalitySpec, own: Any) -> None:
    """The usual part of the day, so far and in the coming windows."""
    part = (maker.local % DAY) // (DAY // 4)
    if len(np.unique(part[own])) < 3:
        return  # the clock time of these events is an artefact, such as midnight
    running = running_sum(np.stack([own & (part == p) for p in range(4)], axis=1))  # [N+1,4]
    past = maker.behind(running)
    asked = (
        f"at what time of day does this {maker.entity} have {spec.name}?",
        f"morning, afternoon, evening or night {spec.name}?",
    )
    answers = [f"{part}, {spec.name}" for part in _PARTS_OF_DAY]
    maker.ask("clock", asked, answers, np.where(past.sum(1) > 0, past.argmax(1), -1))
    for days in maker.horizons:
        coming = maker.ahead(running, days)
        for number, name in enumerate(_PARTS_OF_DAY):
            _part_of_day(maker, spec, name, coming[:, number], coming.sum(1), days)
        _part_of_day(
            maker, spec, "first half of the day", coming[:, :2].sum(1), coming.sum(1), days
        )


def _part_of_day(
    maker: Maker, spec: ModalitySpec, name: str, of: Ints, total: Ints, days: int
) -> None:
    asked = (
        f"will this {maker.entity} have {spec.name} mostly in the {name} in the next {span(days)}?",
        f"will {spec.name} mostly be in the {name} in the coming {days} days?",
        f"does this {maker.entity} come, shop or act in the {name}?",
        f"is the {name} the usual time of this {maker.entity}?",
    )
    maker.ask_yes_no("clock", asked, f"in the {name}", 2 * of >= total, days, total > 0)


def _levels(maker: Maker, question: str, name: str, running: Ints) -> None:
    """How often, per day of history: never, or a third of those who ever did."""
    count = maker.behind(running)
    days = np.maximum(1, (maker.rows.as_of - maker.events.times[maker.first]) / DAY)
    answers = [f"{level}, {name}" for level in ("never", "rarely", "sometimes", "often")]
    which = thirds(count / days, count > 0)
    maker.ask("levels", (f"{question}?", f"frequency of {name}?"), answers, which)


def _spend(maker: Maker, spec: ModalitySpec, own: Any, total: Ints) -> None:
    running = running_sum(np.where(own, maker.events.amounts, 0.0).astype(np.float64))
    count = maker.behind(total)
    which = thirds(maker.behind(running) / np.maximum(1, count), count > 0)
    asked = (
        f"how much does this {maker.entity} spend on {spec.name}?",
        f"amount of {spec.name}?",
    )
    sizes = [f"{size} {spec.name}" for size in ("small", "medium", "large")]
    maker.ask("spend", asked, sizes, np.where(which > 0, which - 1, -1))


def _months(maker: Maker, own: Any) -> Ints:
    """A number for each (user, four weeks) pair in which something happened [events]."""
    month = maker.events.times[own] // (28 * DAY)
    pairs = np.stack((maker.events.user[own], month), axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
