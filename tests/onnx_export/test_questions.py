"""Each family's answers, recomputed by hand from the event table with plain loops."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feast_anchor.onnx_export.corpus import Corpus
from feast_anchor.onnx_export.families import general_corpus
from feast_anchor.onnx_export.questions import local_times
from feast_anchor.onnx_export.scope import make_scope
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

ZONE = "America/New_York"
CLOCKS_CHANGE = date(2024, 3, 10)
FOUR_WEEKS = timedelta(days=28)

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def events() -> pa.Table:
    """The tiny shop, closed on the day when the clocks change."""
    table = tiny_events()
    day = pc.cast(table.column("event_timestamp"), pa.date32())
    return table.filter(pc.not_equal(day, pa.scalar(CLOCKS_CHANGE)))


@pytest.fixture(scope="module")
def corpus(events: pa.Table) -> Corpus:
    """What is asked of it, in New York."""
    scope = make_scope(
        events,
        TINY_MODALITIES,
        cut=TINY_CUT,
        entity="household",
        snapshots_per_user=6,
        topics=20,
        timezone=ZONE,
    )
    return general_corpus(scope)


@pytest.fixture(scope="module")
def visits(events: pa.Table) -> dict[str, Rows]:
    """User -> visits before the cut, in order of time."""
    found: dict[str, Rows] = {}
    for row in events.sort_by("event_timestamp").to_pylist():
        if row["modality"] == 0 and row["event_timestamp"] < TINY_CUT:
            found.setdefault(row["user"], []).append(row)
    return found


def asked(corpus: Corpus, query: str) -> list[tuple[str, datetime, str]]:
    """(user, as-of, answer) of every row that a question was asked of."""
    (column,) = (k for k, question in enumerate(corpus.questions) if query in question.phrasings)
    return [
        (
            corpus.events.users[corpus.user[row]],
            datetime.fromtimestamp(int(corpus.as_of[row]) / 1e6, UTC),
            corpus.answers[label],
        )
        for row, label in enumerate(corpus.labels[:, column])
        if label >= 0
    ]


def check(
    corpus: Corpus,
    query: str,
    name: str,
    expected: Callable[[str, datetime], bool | None],
) -> None:
    """Yes, no, or not asked: as `expected` says for every row, and each of the first two occurs."""
    found = {(user, as_of): answer for user, as_of, answer in asked(corpus, query)}
    for number, micros in zip(corpus.user, corpus.as_of, strict=True):
        key = (corpus.events.users[number], datetime.fromtimestamp(int(micros) / 1e6, UTC))
        says = expected(*key) if key[1] + FOUR_WEEKS <= TINY_CUT else None
        assert found.get(key) == {True: f"yes, {name}", False: f"no, {name}", None: None}[says]
    assert set(found.values()) == {f"yes, {name}", f"no, {name}"}


def between(rows: Rows, start: datetime, end: datetime) -> Rows:
    return [row for row in rows if start <= row["event_timestamp"] < end]


def test_mostly_means_at_least_half(corpus: Corpus, visits: dict[str, Rows]) -> None:
    """Asked where anything happens in the four weeks: is at least half of it produce?"""

    def expected(user: str, as_of: datetime) -> bool | None:
        coming = between(visits[user], as_of, as_of + FOUR_WEEKS)
        about = [row for row in coming if "produce" in row["text"]]
        return 2 * len(about) >= len(coming) if coming else None

    check(corpus, "mainly produce in the coming four weeks?", "mostly produce", expected)


def test_new_means_never_before(corpus: Corpus, visits: dict[str, Rows]) -> None:
    """Is there an item in the four weeks that the user never had, from the first day on?"""

    def item(row: dict[str, Any]) -> str:
        return str(row["text"]).split(" in ")[0]

    def expected(user: str, as_of: datetime) -> bool:
        had = {item(row) for row in visits[user] if row["event_timestamp"] < as_of}
        return any(item(r) not in had for r in between(visits[user], as_of, as_of + FOUR_WEEKS))

    check(corpus, "new item for the first time within four weeks?", "new item", expected)


def test_parts_of_the_day_are_meant_on_the_local_clock(
    corpus: Corpus, visits: dict[str, Rows]
) -> None:
    """Are at least half of the coming visits between six and noon in New York?"""

    def expected(user: str, as_of: datetime) -> bool | None:
        coming = between(visits[user], as_of, as_of + FOUR_WEEKS)
        hours = [row["event_timestamp"].astimezone(ZoneInfo(ZONE)).hour for row in coming]
        early = [hour for hour in hours if 6 <= hour < 12]
        return 2 * len(early) >= len(coming) if coming else None

    query = "will this household have visits mostly in the morning in the next four weeks?"
    check(corpus, query, "in the morning", expected)


def test_growth_of_everything_compares_two_whole_windows(
    corpus: Corpus, visits: dict[str, Rows], events: pa.Table
) -> None:
    """Is more spent in the next four weeks than in the last? Asked where the last are all known."""
    timed = events.filter(pc.not_equal(events.column("modality"), 2))
    start = pc.min(timed.column("event_timestamp")).as_py()

    def expected(user: str, as_of: datetime) -> bool | None:
        coming = sum(r["amount"] for r in between(visits[user], as_of, as_of + FOUR_WEEKS))
        past = sum(r["amount"] for r in between(visits[user], as_of - FOUR_WEEKS, as_of))
        return coming > past if as_of - FOUR_WEEKS >= start else None

    query = "will this household spend more in the next four weeks than in the last?"
    check(corpus, query, "growing spending", expected)


def test_windows_end_by_the_cut(corpus: Corpus) -> None:
    """Whatever is asked of the next week or four weeks, they are over by the cut."""
    ahead = 0
    for column, question in enumerate(corpus.questions):
        for words, days in (("week", 7), ("four weeks", 28)):
            if any(p.endswith((f"next {words}?", f"coming {words}?")) for p in question.phrasings):
                rows = corpus.labels[:, column] >= 0
                limit = (TINY_CUT - timedelta(days=days)).timestamp() * 1e6
                assert corpus.as_of[rows].max() <= limit
                ahead += 1
    assert ahead > 20


def test_users_are_called_by_other_words_too(corpus: Corpus) -> None:
    """Questions about "this household" are also put with another word, otherwise unchanged."""
    others = ("this customer", "this user", "this person")
    used = set()
    for question in corpus.questions:
        theirs = [p for p in question.phrasings if "this household" in p]
        renamed = {p: word for p in question.phrasings for word in others if word in p}
        assert bool(renamed) == bool(theirs[:1])
        for phrasing, word in renamed.items():
            assert phrasing.replace(word, "this household") in question.phrasings
            used.add(word)
    assert used == set(others)


def test_yes_and_no_are_told_from_other_answers(corpus: Corpus) -> None:
    """`says` is 1 for answers that say yes, 0 for no, and -1 for a favourite or an age."""
    meant = {"yes": 1, "no": 0}
    expected = [meant.get(text.split(",")[0], -1) for text in corpus.answers]
    assert corpus.says.tolist() == expected
    assert set(expected) == {-1, 0, 1}


def test_local_times_follow_summer_time() -> None:
    """Noon in UTC is seven in a New York winter, eight in its summer, and noon in UTC."""
    noons = [datetime(2024, 1, 15, 12, tzinfo=UTC), datetime(2024, 7, 1, 12, tzinfo=UTC)]
    micros = np.array([round(noon.timestamp() * 1e6) for noon in noons])
    hours = (micros - local_times(micros, ZONE)) / 3.6e9
    assert hours.tolist() == [5.0, 4.0]
    assert local_times(micros, "UTC").tolist() == micros.tolist()


def test_local_times_are_those_of_the_zone_on_other_days(events: pa.Table) -> None:
    """Every event of the shop has the wall clock that Python's own zones give it."""
    times = events.column("event_timestamp").cast(pa.int64()).to_numpy()
    local = local_times(times, ZONE)
    for moment, wall in zip(events.column("event_timestamp").to_pylist(), local, strict=True):
        expected = moment.astimezone(ZoneInfo(ZONE)).replace(tzinfo=UTC)
        assert wall == round(expected.timestamp() * 1e6)
