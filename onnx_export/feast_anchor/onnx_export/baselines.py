"""What a careful team would build without us: features by hand, trees on them, factorisation.

The rule: features are a pure function of the events strictly before the as-of time, and what is
chosen from data (values to count, a factorisation's axes, a tree's settings) is chosen on the
users that the caller names for fitting. Nothing here knows the data set: values are read back out
of the texts with the modality's own template. No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

from .corpus import DAY
from .errors import SpecError
from .manifest import ModalitySpec
from .past import Past, read_past
from .text import template_columns
from .topics import field_values

Array = np.ndarray[Any, Any]

_WEEK = 7 * DAY
_HOUR = DAY // 24
_RARE = 100  # values that fewer than one user in so many has are not counted


@dataclass(frozen=True)
class EventTopic:
    """The events that a question is about: a modality, a part of their text, hours of the day."""

    modality: str
    contains: str = ""  # "" is in every text
    hours: tuple[int, int] = (0, 24)  # UTC, from the first up to the second


@dataclass(frozen=True)
class FieldValue:
    """One value of one column of a modality's template, such as department = "produce"."""

    modality: int
    field: str
    value: str


def activity_features(
    events: pa.Table, users: Sequence[str], as_of: datetime, modalities: Sequence[ModalitySpec]
) -> Array:
    """How recently, how often and for how much, whatever it was: float64 [users, 10].

    The activity is that of the modalities with an amount, or of all timed ones where none has one.
    Columns, all on a log scale: days since the newest event, events of the last 7, 28 and 91 days
    and of all time, amounts of the last 28 and 91 days and of all time, days since the oldest
    event, weeks with an event.
    """
    timed = [i for i, m in enumerate(modalities) if m.kind == "events"]
    past = read_past(events, users, as_of)
    past = past.only(np.isin(past.modality, [i for i in timed if modalities[i].amount] or timed))
    return np.stack(list(_activity(past).values()), axis=1)


def topic_features(
    events: pa.Table,
    users: Sequence[str],
    as_of: datetime,
    modalities: Sequence[ModalitySpec],
    topic: EventTopic,
) -> Array:
    """What there is to know about the events of one topic: float64 [users, 4].

    log1p of their number, of those of the last 91 days and of the days since the newest, and their
    share of the modality's events. Raises `SpecError` for a modality that is not there.
    """
    past = read_past(events, users, as_of)
    past = past.only(past.modality == _position(modalities, topic.modality))
    has = np.array([topic.contains in text for text in past.texts], dtype=bool)[past.text]
    hour = past.time % DAY // _HOUR
    has &= (hour >= topic.hours[0]) & (hour < topic.hours[1])
    about = past.only(has)
    columns = (about.count(), about.within(91).count(), about.recency(), past.share(has))
    return np.stack(columns, axis=1)


def frequent_values(
    events: pa.Table,
    fit_users: Sequence[str],
    as_of: datetime,
    modalities: Sequence[ModalitySpec],
    limit: int = 24,
) -> tuple[FieldValue, ...]:
    """The values that most of `fit_users` have, at most `limit` of each column of each template."""
    past = read_past(events, fit_users, as_of)
    chosen: list[FieldValue] = []
    for index in range(len(modalities)):
        own = past.only(past.modality == index)
        having: dict[str, list[tuple[int, FieldValue]]] = defaultdict(list)
        for value, has in _texts_of(own, modalities[index], index).items():
            count = len(np.unique(own.row[has[own.text]]))
            if count * _RARE >= len(fit_users):
                having[value.field].append((-count, value))
        for field in sorted(having):
            ranked = sorted(having[field], key=lambda item: (item[0], item[1].value))
            chosen += [value for _, value in ranked[:limit]]
    return tuple(chosen)


def tabular_features(
    events: pa.Table,
    users: Sequence[str],
    as_of: datetime,
    modalities: Sequence[ModalitySpec],
    values: Sequence[FieldValue],
) -> tuple[tuple[str, ...], Array]:
    """Everything worth counting: column names and float64 [users, F].

    Per timed modality: activity (as in `activity_features`), trend, hours and weekdays, regularity
    and diversity. Per value: how often ever and in 91 days, how recently, and its share.

    Args:
        events: canonical events; only those strictly before `as_of` are read.
        users: rows of the result, in this order; those without events get zeros.
        as_of: tz-aware.
        modalities: what the column `modality` indexes.
        values: from `frequent_values` of the users that something is fitted on.
    """
    past = read_past(events, users, as_of)
    columns: dict[str, Array] = {}
    for index, modality in enumerate(modalities):
        own = past.only(past.modality == index)
        texts = _texts_of(own, modality, index)
        wanted = [value for value in values if value.modality == index]
        if modality.kind == "events":
            fields = template_columns(modality.text)
            found = _activity(own) | _habits(own) | _diversity(own, texts, fields)
            columns |= {f"{modality.name}: {name}": column for name, column in found.items()}
        for value in wanted:
            has = texts.get(value, np.zeros(len(own.texts), dtype=bool))[own.text]
            about = _about(own, has, modality.kind == "table")
            name = f"{modality.name}: {value.field} = {value.value}"
            columns |= {f"{name}, {key}": column for key, column in about.items()}
    return tuple(columns), np.stack(list(columns.values()), axis=1)


def factorisation(
    events: pa.Table,
    users: Sequence[str],
    as_of: datetime,
    fit_users: Sequence[str],
    dim: int = 32,
    seed: int = 0,
) -> Array:
    """Users on the main axes of the user x text table: float64 [users, dim].

    Cells are log1p counts weighted by how few of `fit_users` have the text (idf), rows have unit
    length; the axes are those of `fit_users` alone. Fewer axes where there are fewer texts.
    """
    fitted = read_past(events, fit_users, as_of)
    _, first, item = np.unique(_items(fitted), return_index=True, return_inverse=True)
    place = {_key(fitted, n): column for column, n in enumerate(first)}
    counts = _counts(fitted, item, len(place))
    if len(place) < 2:
        return np.zeros((len(users), 1))  # one text for all events tells nobody from anybody
    idf = np.log((1 + len(fit_users)) / (1 + np.asarray((counts > 0).sum(axis=0)).ravel())) + 1
    svd = TruncatedSVD(min(dim, len(place) - 1), random_state=seed).fit(_weighted(counts, idf))
    past = read_past(events, users, as_of)
    past = past.only(np.array([_key(past, n) in place for n in range(len(past.row))], dtype=bool))
    item = np.array([place[_key(past, n)] for n in range(len(past.row))], dtype=np.int64)
    vectors: Array = svd.transform(_weighted(_counts(past, item, len(place)), idf))
    return vectors


def _position(modalities: Sequence[ModalitySpec], name: str) -> int:
    names = [modality.name for modality in modalities]
    if name not in names:
        raise SpecError(f"no modality {name!r}; expected one of {names}")
    return names.index(name)


def _texts_of(past: Past, modality: ModalitySpec, index: int) -> dict[FieldValue, Array]:
    """Field value -> which of `past.texts` [texts] have it, from this modality's events alone."""
    found: dict[FieldValue, Array] = {}
    for text in np.unique(past.text):
        for field, value in field_values(modality.text, past.texts[text]).items():
            key = FieldValue(index, field, value)
            found.setdefault(key, np.zeros(len(past.texts), dtype=bool))[text] = True
    return found


def _activity(past: Past) -> dict[str, Array]:
    recent = {days: past.within(days) for days in (7, 28, 91)}
    return (
        {"recency": past.recency()}
        | {f"events in {days} days": part.count() for days, part in recent.items()}
        | {"events": past.count()}
        | {f"spend in {days} days": recent[days].spend() for days in (28, 91)}
        | {"spend": past.spend(), "span": past.span(), "weeks": past.distinct(past.time // _WEEK)}
    )


def _habits(past: Past) -> dict[str, Array]:
    """When: trend against the 91 days before, visits and the gaps between them, hours, weekdays."""
    before = past.only((past.age > 91) & (past.age <= 182))
    hour, weekday = past.time % DAY // _HOUR, (past.time // DAY + 3) % 7
    visits = past.distinct(past.time)
    columns = {
        "trend": past.within(91).count() - before.count(),
        "spend trend": past.within(91).spend() - before.spend(),
        "visits": visits,
        "events per visit": past.count() - visits,
        "spend per visit": past.spend() - visits,
        "days between visits": past.span() - visits,
        "overdue": past.recency() - past.span() + visits,
        "weekend": past.share(weekday >= 5),
    }
    shares = {f"hours {h}-{h + 4}": past.share(hour // 4 == h // 4) for h in range(0, 24, 4)}
    return columns | shares


def _diversity(
    past: Past, texts: dict[FieldValue, Array], fields: Sequence[str]
) -> dict[str, Array]:
    columns = {"texts": past.distinct(past.text)}
    for field in fields:
        own = [value for value in texts if value.field == field]
        number = np.zeros(len(past.texts), dtype=np.int64)
        for place, value in enumerate(own):
            number[texts[value]] = place
        columns[f"distinct {field}"] = past.distinct(number[past.text])
    return columns


def _about(past: Past, has: Array, table: bool) -> dict[str, Array]:
    about = past.only(has)
    if table:
        return {"events": about.count()}
    return {
        "events": about.count(),
        "events in 91 days": about.within(91).count(),
        "recency": about.recency(),
        "share": past.share(has),
    }


def _items(past: Past) -> Array:
    return past.modality * len(past.texts) + past.text


def _key(past: Past, event: int) -> tuple[int, str]:
    return int(past.modality[event]), past.texts[past.text[event]]


def _counts(past: Past, item: Array, items: int) -> csr_matrix:
    shape = (past.users, items)
    return csr_matrix((np.ones(len(item)), (past.row, item)), shape=shape)  # sums repeats


def _weighted(counts: csr_matrix, idf: Array) -> csr_matrix:
    return normalize(counts.log1p().multiply(idf).tocsr())
