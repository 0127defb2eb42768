"""What a modality's events are about, found by counting: no list of topics is written anywhere.

A text such as "tomatoes in PRODUCE" was made by the template "{product_type} in {department}". Read
backwards, the template gives the values that were filled in; they and the words in them are the
candidates. The best topics are those that split the months of users most evenly.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_WORD = re.compile(r"[^\W\d_]{3,}")
_LONGEST = 24  # characters; longer values make questions of too many tokens
_RARE = 50  # topics of fewer than one month in so many are left out
_SAME = 0.9  # topics that share this part of their months are one topic


@dataclass(frozen=True)
class Topic:
    """A phrase and the distinct texts (positions in the list of texts) that are about it."""

    name: str
    texts: tuple[int, ...]


def template_words(template: str) -> str:
    """The words a template adds to every text, such as "redeemed a coupon for"; may be empty."""
    literals = " ".join(literal for literal, *_ in string.Formatter().parse(template))
    words = re.findall(r"[^\W\d_]+", literals.lower())
    return " ".join(words) if any(len(word) > 3 for word in words) else ""


def field_values(template: str, text: str) -> dict[str, str]:
    """Column -> value of one rendered text; {} when the text does not look like the template."""
    match = _pattern(template).fullmatch(text)
    return {} if match is None else {k: v.strip().lower() for k, v in match.groupdict().items()}


def find_topics(
    template: str, texts: Sequence[str], text_of: Ints, month_of: Ints, limit: int
) -> list[Topic]:
    """The topics of one modality, most evenly splitting first.

    Args:
        template: the modality's template.
        texts: its distinct texts.
        text_of: position in `texts` of each event [N].
        month_of: number of the (user, month) pair of each event, counted from 0 [N].
        limit: most topics to return.
    """
    candidates = _candidates(template, texts)
    events = np.bincount(text_of, minlength=len(texts))
    common = sorted(candidates, key=lambda name: (-events[candidates[name]].sum(), name))
    months = int(month_of.max()) + 1
    pairs = np.unique(text_of * months + month_of)
    scored = []
    for name in common[: 12 * limit]:  # the rest are too rare to split anything
        has = _months_of(candidates[name], pairs, months, len(texts))
        share = has.mean()
        if has.sum() >= max(2, months // _RARE) and not has.all():
            scored.append((-share * (1 - share), -len(name), name, has))
    scored.sort(key=lambda entry: entry[:3])
    return [Topic(name, tuple(candidates[name])) for name in _distinct(scored, limit)]


def _candidates(template: str, texts: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        values = list(field_values(template, text).values()) or [text.lower()]
        names = {value for value in values if len(value) <= _LONGEST and _WORD.search(value)}
        names.update(word for value in values for word in _WORD.findall(value))
        for name in sorted(names):
            found.setdefault(name, []).append(position)
    return found


def _months_of(texts: Sequence[int], pairs: Ints, months: int, count: int) -> Bools:
    about = np.zeros(count, dtype=bool)
    about[list(texts)] = True
    has = np.zeros(months, dtype=bool)
    has[pairs[about[pairs // months]] % months] = True
    return has


def _distinct(scored: Sequence[tuple[float, int, str, Bools]], limit: int) -> list[str]:
    """Names in order, without those whose months are nearly those of an earlier one."""
    names: list[str] = []
    seen: list[Bools] = []
    for _, _, name, has in scored:
        if len(names) < limit and all(_overlap(has, other) < _SAME for other in seen):
            names.append(name)
            seen.append(has)
    return names


def _overlap(a: Bools, b: Bools) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _pattern(template: str) -> re.Pattern[str]:
    parts: list[str] = []
    used: set[str] = set()
    for literal, name, *_ in string.Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in used else f"(?P<{name}>.+?)")
            used.add(name)
    return re.compile("".join(parts), re.DOTALL)
