from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from feast_anchor.onnx_export.attributes import attributes_corpus
from feast_anchor.onnx_export.corpus import DAY, Corpus
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.onnx_export.scope import Scope, make_scope
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

START = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday
CUT = START + timedelta(days=100)
SPEC = (ModalitySpec(name="trips", text="{item}", amount=True),)
Row = tuple[str, float, str, float]  # user, days after START, item, amount


def ask(rows: list[Row], question: str) -> dict[str, list[tuple[float, str | None]]]:
    """User -> (as-of in days after START, answer) of one question, by its first words."""
    arrays = [
        pa.array([r[0] for r in rows]),
        pa.array([START + timedelta(days=r[1]) for r in rows], pa.timestamp("us", "UTC")),
        pa.array([0] * len(rows), pa.int16()),
        pa.array([r[2] for r in rows]),
        pa.array([r[3] for r in rows], pa.float32()),
    ]
    table = pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)
    scope = make_scope(table, SPEC, cut=CUT, entity="rider", snapshots_per_user=16)
    return answers(scope, attributes_corpus(scope), question)


def answers(
    scope: Scope, corpus: Corpus, question: str
) -> dict[str, list[tuple[float, str | None]]]:
    [column] = [k for k, q in enumerate(corpus.questions) if q.phrasings[0].startswith(question)]
    found: dict[str, list[tuple[float, str | None]]] = {}
    start = START.timestamp() * 1e6
    for row, label in enumerate(corpus.labels[:, column]):
        day = (int(scope.as_of[row]) - start) / DAY
        answer = corpus.answers[label] if label >= 0 else None
        found.setdefault(scope.events.users[scope.user[row]], []).append((day, answer))
    return found


def said(found: list[tuple[float, str | None]]) -> set[str]:
    return {answer for _, answer in found if answer is not None}


def test_even_gaps_are_regular() -> None:
    """Every fourth day is regular, bursts with long pauses are not."""
    even = [("even", float(day), "bus", 1.0) for day in range(0, 100, 4)]
    bursts = [("bursts", float(day + d), "bus", 1.0) for day in range(0, 100, 24) for d in range(3)]
    middle = [("middle", float(day + day % 3), "bus", 1.0) for day in range(0, 100, 6)]
    found = ask(even + bursts + middle, "how regular")
    assert said(found["even"]) == {"regular trips"}
    assert said(found["bursts"]) == {"irregular trips"}


def test_the_cheapest_third_of_the_same_thing_is_cheap() -> None:
    """Prices are compared within a text: who buys dear things at a low price is sensitive."""
    rows = [
        (user, float(day), item, base + extra)
        for user, extra in (("low", 0.0), ("mid", 1.0), ("high", 2.0))
        for item, base in (("bus", 1.0), ("flight", 500.0))
        for day in range(100)
    ]
    only = [row for row in rows if row[0] != "low" or row[2] == "flight"]
    found = ask(only, "is this rider price sensitive")
    assert said(found["low"]) == {"mostly cheap trips"}
    assert "mostly cheap trips" not in said(found["high"])


def test_first_times_are_new() -> None:
    """Always another item is mostly new, always the same is familiar; early rows know nothing."""
    rows = [("fan", day + 0.5, "bus", 1.0) for day in range(100)]
    rows += [("explorer", day + 0.5, f"line {day}", 1.0) for day in range(100)]
    found = ask(rows, "does this rider try new")
    assert said(found["fan"]) == {"familiar trips"}
    assert said(found["explorer"]) == {"mostly new trips"}
    coming = ask(rows, "will this rider try new")
    assert said(coming["explorer"]) == {"mostly new trips"}
    assert said(coming["fan"]) == {"familiar trips"}


def test_saturdays_are_weekend() -> None:
    """Days of the week are those of the UTC calendar."""
    rows = [("week", 7.0 * n + d, "bus", 1.0) for n in range(14) for d in range(5)]
    rows += [("end", 7.0 * n + d, "bus", 1.0) for n in range(14) for d in (5, 6)]
    found = ask(rows, "does this rider have trips on weekdays")
    assert said(found["week"]) == {"weekday trips"}
    assert said(found["end"]) == {"weekend trips"}


def test_recency_is_the_time_since_the_last_event() -> None:
    """An event on day 0 is a week, four weeks, three months old at the right as-of times."""
    rows = [("once", 0.0, "bus", 1.0)] + [("other", float(d), "bus", 1.0) for d in range(100)]
    found = ask(rows, "when did this rider last")
    assert said(found["other"]) == {"trips within the last week"}
    for day, answer in found["once"]:
        limits = {7: "week", 28: "four weeks", 91: "three months"}
        span = next(words for limit, words in limits.items() if day <= limit)
        assert answer == f"trips within the last {span}"
    assert len(said(found["once"])) >= 2


def test_more_than_before_is_rising() -> None:
    """Trips that become denser rise, ones that thin out fall, at every as-of that can tell."""
    dense = [7 * week + 7 * n / (3 * week) for week in range(1, 14) for n in range(3 * week)]
    rows = [("up", float(day), "bus", 1.0) for day in dense]
    rows += [("down", 99.0 - day, "bus", 1.0) for day in dense]
    found = ask(rows, "do trips of this rider rise")
    assert {answer for day, answer in found["up"] if day > 30} == {"rising trips"}
    assert {answer for day, answer in found["down"] if day > 30} == {"falling trips"}


def test_soon_is_the_first_quarter_of_the_window() -> None:
    """Of 28 days, an event within 7 is soon, a later one later; else there is none at all."""
    rows = [("a", 0.0, "bus", 1.0), ("a", 50.0, "bus", 1.0)]
    rows += [("b", float(day), "bus", 1.0) for day in range(0, 100, 2)]
    found = ask(rows, "how soon will this rider have trips within four weeks")
    for day, answer in found["a"]:
        gap = 50 - day
        if day > 72:
            assert answer is None
        elif 0 <= gap < 28:
            assert answer == ("trips soon" if gap < 7 else "trips later")
        else:
            assert answer == "no trips at all"
    assert len(said(found["a"])) >= 2


@pytest.mark.parametrize("what", ["will", "how soon"])
def test_coming_questions_end_by_the_cut(what: str) -> None:
    """An attribute of a window is left open where the window is not over by the cut."""
    scope = make_scope(tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer")
    corpus = attributes_corpus(scope)
    limit = round(TINY_CUT.timestamp() * 1e6)
    checked = 0
    for column, question in enumerate(corpus.questions):
        asked = question.phrasings[0]
        if asked.startswith(what):
            days = 28 if "four weeks" in asked else 7
            known = corpus.labels[:, column] >= 0
            assert (scope.as_of[known] + days * DAY <= limit).all()
            checked += 1
    assert checked


def test_every_question_has_several_phrasings() -> None:
    """Three to five ways to put each, none used by two questions."""
    scope = make_scope(tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer")
    questions = attributes_corpus(scope).questions
    assert len(questions) > 10
    assert all(3 <= len(question.phrasings) <= 5 for question in questions)
    asked = [phrasing for question in questions for phrasing in question.phrasings]
    assert len(asked) == len(set(asked))
