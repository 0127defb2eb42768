from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from feast_anchor.onnx_export.corpus import DAY
from feast_anchor.onnx_export.future import behaviour_corpus, describe, find_kinds
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.onnx_export.scope import Scope, make_scope
from tiny import TINY_CUT, TINY_MODALITIES, TINY_START, tiny_events


def tiny_scope(events: pa.Table | None = None, topics: int = 5) -> Scope:
    table = tiny_events() if events is None else events
    return make_scope(table, TINY_MODALITIES, cut=TINY_CUT, entity="customer_id", topics=topics)


def test_a_window_is_told_bin_by_bin() -> None:
    """The most frequent kind of a bin comes first; a bin without events is not mentioned."""
    bins = [[["meat"], ["produce"], ["produce"]], [], [["soap"]]]
    assert describe(bins, "week") == "week 1: produce, meat; week 3: soap"


def test_one_event_is_not_named_twice() -> None:
    """A kind all of whose events are already named adds nothing; another one does."""
    bins = [[["apples", "produce"], ["pears", "produce"], ["tea"]]]
    assert describe(bins, "week") == "week 1: produce, tea"


def test_a_new_kind_comes_before_one_already_named() -> None:
    """A kind named in an earlier bin counts half: it returns first only if twice as frequent."""
    first = [["tea"]]
    assert describe([first, [["tea"], ["soap"]]], "week") == "week 1: tea; week 2: soap, tea"
    often = [["tea"], ["tea"], ["tea"], ["soap"]]
    assert describe([first, often], "week") == "week 1: tea; week 2: tea, soap"


def test_an_empty_window_is_nothing() -> None:
    """Without events there is one answer for all users."""
    assert describe([[], []], "week") == "nothing"


def test_a_text_keeps_within_its_budget_of_words() -> None:
    """Long kinds give fewer per bin, and in the end fewer bins, never more than 24 words."""
    bins = [[[f"a rather long kind {bin}{kind}"] for kind in range(4)] for bin in range(7)]
    text = describe(bins, "day")
    assert text.startswith("day 1: a rather long kind 00; day 2: ")
    assert len(text.split()) <= 24


def test_kinds_of_smaller_modalities_say_whose_they_are() -> None:
    """Topics of the largest modality stand alone, others follow their modality's name."""
    names = find_kinds(tiny_scope(topics=20)).names
    assert "produce" in names
    assert "coupons" in names  # every coupon is for produce, so that is no topic
    assert "other visits" in names


def test_each_answer_is_what_the_window_held() -> None:
    """Every answer is rebuilt from the table's rows between the as-of and 28 days later."""
    scope = tiny_scope()
    corpus, kinds = behaviour_corpus(scope), find_kinds(scope)
    column = scope.horizons.index(28)
    rows = [r for r in tiny_events().to_pylist() if r["event_timestamp"] < TINY_CUT]
    told = 0
    for row, label in enumerate(corpus.labels[:, column]):
        start = datetime.fromtimestamp(int(scope.as_of[row]) / 1e6, UTC)
        bins: list[list[set[str]]] = [[] for _ in range(4)]
        for event in rows:
            week = (event["event_timestamp"] - start) // timedelta(days=7)
            if event["user"] != scope.events.users[scope.user[row]] or not 0 <= week < 4:
                continue
            text = scope.events.texts.index(event["text"])
            about = kinds.of.get((event["modality"], text), ())
            bins[week] += [{kinds.names[k] for k in about}] if about else []
        if start + timedelta(days=28) > TINY_CUT:
            assert label == -1
        else:
            told += 1
            assert corpus.answers[label] == describe(bins, "week")
    assert told > 50


def test_windows_end_by_the_cut() -> None:
    """No horizon is answered at a row whose window is not over; later ones are left open."""
    scope = tiny_scope()
    corpus = behaviour_corpus(scope)
    limit = round(TINY_CUT.timestamp() * 1e6)
    for column, days in enumerate(scope.horizons):
        known = corpus.labels[:, column] >= 0
        assert known.any()
        assert (known == (scope.as_of + days * DAY <= limit)).all()


def test_users_have_different_futures() -> None:
    """Most answers belong to few rows: they tell users apart."""
    corpus = behaviour_corpus(tiny_scope())
    column = corpus.labels[:, -1]
    assert len(np.unique(column[column >= 0])) > (column >= 0).sum() / 3


def test_a_horizon_without_a_name_is_told_in_parts() -> None:
    """A table of ten days has a horizon of five, cut into four parts."""
    spec = (ModalitySpec(name="clicks", text="{page}"),)
    rows = [
        (f"u{n}", TINY_START + timedelta(hours=h), 0, ("home", "cart", "help")[(h + n) % 3], 0.0)
        for n in range(6)
        for h in range(n, 240, 7 + n)
    ]
    columns = [list(c) for c in zip(*rows, strict=True)]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)
    scope = make_scope(table, spec, cut=TINY_START + timedelta(days=10), entity="visitor")
    corpus = behaviour_corpus(scope)
    assert scope.horizons == (5,)
    assert any("part 1: " in answer for answer in corpus.answers)
    assert "what will this visitor do in the next 5 days?" in corpus.questions[0].phrasings
