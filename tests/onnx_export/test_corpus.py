from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feast_anchor.onnx_export.corpus import Triple
from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.inputs import EVENT_SCHEMA
from feast_anchor.onnx_export.manifest import ModalitySpec
from tiny import TINY_CUT, TINY_MODALITIES, TINY_START, build_corpus, tiny_events

DAY = 86_400_000_000


def triples(events: pa.Table, **options: object) -> list[Triple]:
    defaults = {"cut": TINY_CUT, "entity": "customer", "snapshots_per_user": 4, "topics": 5}
    corpus = build_corpus(events, TINY_MODALITIES, **(defaults | options))  # type: ignore[arg-type]
    return list(corpus.triples())


def altered(events: pa.Table, rows: pa.ChunkedArray) -> pa.Table:
    """The same table with other texts and amounts in the given rows."""
    text = pc.if_else(rows, pa.scalar("gold in jewels"), events.column("text"))
    amount = pc.if_else(rows, pa.scalar(999.0, pa.float32()), events.column("amount"))
    return pa.table(
        [*(events.column(name) for name in EVENT_SCHEMA.names[:3]), text, amount],
        schema=EVENT_SCHEMA,
    )


def test_events_from_the_cut_on_change_no_triple() -> None:
    """Nothing at or after the cut reaches a question, an answer or an as-of time."""
    events = tiny_events()
    late = pc.greater_equal(events.column("event_timestamp"), pa.scalar(TINY_CUT))
    assert pc.sum(late).as_py() > 50
    expected = triples(events)
    assert triples(altered(events, late)) == expected
    assert triples(events.filter(pc.invert(late))) == expected


def test_an_event_at_the_cut_itself_is_not_read() -> None:
    """The cut is excluded: an event at that very instant changes nothing."""
    events = tiny_events()
    row = [["u000"], [TINY_CUT], [0], ["gold in jewels"], [5.0]]
    arrays = [pa.array(value, f.type) for value, f in zip(row, EVENT_SCHEMA, strict=True)]
    extra = pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)
    assert triples(pa.concat_tables([events, extra])) == triples(events)


def test_held_out_users_change_no_triple() -> None:
    """A held-out user's events may say anything or be missing."""
    events = tiny_events()
    held = [f"u{number:03d}" for number in range(0, 30, 4)]
    theirs = pc.is_in(events.column("user"), value_set=pa.array(held))
    expected = triples(events, held_out=held)
    assert not {t.user for t in expected} & set(held)
    assert triples(altered(events, theirs), held_out=held) == expected
    assert triples(events.filter(pc.invert(theirs))) == expected


def test_the_order_of_rows_does_not_matter() -> None:
    """The same events in another order give the same triples."""
    events = tiny_events()
    order = np.random.default_rng(1).permutation(events.num_rows)
    assert triples(events.take(pa.array(order))) == triples(events)


def test_another_seed_asks_at_other_times() -> None:
    """The seed moves as-of times, and they lie before the cut."""
    one, two = triples(tiny_events(), seed=0), triples(tiny_events(), seed=1)
    assert {t.as_of for t in one} != {t.as_of for t in two}
    assert max(t.as_of for t in one) < TINY_CUT.timestamp() * 1e6


def test_answers_are_what_happened() -> None:
    """Each yes/no answer about a topic is recomputed from the table by hand."""
    events = tiny_events()
    rows = [r for r in events.to_pylist() if r["modality"] == 0 and r["event_timestamp"] < TINY_CUT]
    asked = [
        t
        for t in triples(events, topics=20)
        if t.query == "will this customer have visits: produce in the next 28 days?"
    ]
    assert len(asked) > 30
    for triple in asked:
        start = datetime.fromtimestamp(triple.as_of / 1e6, UTC)
        end = start + timedelta(days=28)
        bought = any(
            r["user"] == triple.user
            and "produce" in r["text"]
            and start <= r["event_timestamp"] < end
            for r in rows
        )
        assert triple.answer == ("yes, produce" if bought else "no, produce")
    assert {t.answer for t in asked} == {"yes, produce", "no, produce"}


def test_windows_of_future_questions_end_by_the_cut() -> None:
    """A question that looks 28 days ahead is never asked in the last 28 days."""
    limit = TINY_CUT.timestamp() * 1e6 - 28 * DAY
    asked = [t for t in triples(tiny_events()) if "next 28 days" in t.query]
    assert asked
    assert all(t.as_of <= limit for t in asked)


def test_topics_come_from_parts_of_texts() -> None:
    """Of "apples in produce" both parts are topics, the words of the template are not."""
    queries = {t.query for t in triples(tiny_events(), topics=20)}
    for topic in ("produce", "apples", "meat"):
        assert f"how often visits: {topic}?" in queries
    assert "how often visits: in?" not in queries


def test_profile_columns_are_asked_by_name() -> None:
    """The columns of a table's template become questions with the row's values as answers."""
    found = {
        t.answer for t in triples(tiny_events()) if t.query == "what is the city of this customer?"
    }
    assert found == {"city north", "city south"}


def test_a_profile_row_of_the_future_is_not_known() -> None:
    """A profile written after the as-of time answers nothing."""
    spec = (TINY_MODALITIES[0], ModalitySpec(name="profile", kind="table", text="age {age}"))
    rows = [
        (f"u{n}", TINY_START + timedelta(days=d), 0, "ham in meat", 1.0)
        for n in range(4)
        for d in range(0, 80, 5 + n)
    ]
    rows += [(f"u{n}", TINY_START + timedelta(days=60), 1, f"age {n}", 0.0) for n in range(4)]
    columns = [list(c) for c in zip(*rows, strict=True)]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)]
    corpus = build_corpus(
        pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA), spec, cut=TINY_CUT, entity="customer"
    )
    known = [t for t in corpus.triples() if t.query == "what is the age of this customer?"]
    written = (TINY_START + timedelta(days=60)).timestamp() * 1e6
    assert known
    assert all(t.as_of > written for t in known)
    assert all(t.answer == f"age {t.user[1:]}" for t in known)


def test_nothing_before_the_cut_is_a_source_error() -> None:
    """An early cut says how many rows there were and what to do."""
    early = TINY_START - timedelta(days=9)
    with pytest.raises(SourceError, match="choose a later cut"):
        triples(tiny_events(), cut=early)


def test_only_profiles_are_a_source_error() -> None:
    """A table of profile rows alone gives nothing to ask about."""
    events = tiny_events()
    profiles = events.filter(pc.equal(events.column("modality"), 2))
    with pytest.raises(SourceError, match="no timed events"):
        triples(profiles)


def test_an_unknown_modality_is_a_source_error() -> None:
    """A position beyond the declared modalities is named."""
    with pytest.raises(SourceError, match=r"modalities \[1, 2\], but 1 were declared"):
        build_corpus(tiny_events(), TINY_MODALITIES[:1], cut=TINY_CUT, entity="customer")


def test_another_schema_is_a_source_error() -> None:
    """A table that is not canonical is refused before anything is read."""
    with pytest.raises(SourceError, match="expected"):
        triples(tiny_events().drop_columns(["amount"]))


def test_a_naive_cut_is_a_source_error() -> None:
    """A cut without a time zone could mean two instants."""
    with pytest.raises(SourceError, match="no time zone"):
        triples(tiny_events(), cut=TINY_CUT.replace(tzinfo=None))
