from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_anchor.onnx_export.inputs import (
    AGELESS,
    CONTEXT_FEATURES,
    EVENT_FEATURES,
    Clock,
    context_features,
    days_since_first,
    days_to_as_of,
    dropped,
    event_features,
    suffix_ids,
    window,
)
from feast_anchor.onnx_export.manifest import ModalitySpec, SpecialIds

DAY = 86_400_000_000
SPECS = (
    ModalitySpec(name="a", text="{x}", max_events=2),
    ModalitySpec(name="p", kind="table", text="{y}", max_events=1),
)


def at(year: int, month: int, day: int, hour: int = 0) -> int:
    return round(datetime(year, month, day, hour, tzinfo=UTC).timestamp() * 1e6)


def test_window_reads_the_newest_of_each_modality() -> None:
    """Budgets hold per modality, and the result is in time order."""
    times = np.array([1, 2, 3, 4, 5, 6])
    modality = np.array([1, 0, 0, 1, 0, 0])
    assert window(times, modality, 6, SPECS).tolist() == [2, 3, 4]


def test_window_leaves_out_the_as_of_itself() -> None:
    """An event at the as-of instant is not known yet; one microsecond earlier it is."""
    times, modality = np.array([9, 10]), np.array([0, 0])
    assert window(times, modality, 10, SPECS).tolist() == [0]
    assert window(times, modality, 11, SPECS).tolist() == [0, 1]


def test_window_of_nothing_is_empty() -> None:
    """No event before the as-of gives no position."""
    assert window(np.array([5]), np.array([0]), 5, SPECS).tolist() == []


@given(
    times=st.lists(st.integers(0, 50), max_size=30).map(sorted),
    as_of=st.integers(0, 60),
    later=st.lists(st.integers(0, 20), max_size=5),
    data=st.data(),
)
def test_later_events_change_no_window(
    times: list[int], as_of: int, later: list[int], data: st.DataObject
) -> None:
    """Whatever happens from the as-of on, the same events are read."""
    kinds = data.draw(st.lists(st.integers(0, 1), min_size=len(times), max_size=len(times)))
    known = [t for t in times if t < as_of]
    grown = known + sorted(as_of + delta for delta in later)
    modality = (kinds[: len(known)] + [0] * len(later))[: len(grown)]
    one = window(np.array(known, np.int64), np.array(kinds[: len(known)], np.int64), as_of, SPECS)
    two = window(np.array(grown, np.int64), np.array(modality, np.int64), as_of, SPECS)
    assert one.tolist() == two.tolist()


def test_event_features_by_hand() -> None:
    """Monday 06:00 is a quarter turn of the hour and no turn of the week; amounts keep signs."""
    times = np.array([at(2024, 1, 1, 6), at(2024, 1, 4, 6)])
    out = event_features(times, np.array([math.e - 1, 1 - math.e], np.float32), np.zeros(2, bool))
    assert out.shape == (2, len(EVENT_FEATURES))
    np.testing.assert_allclose(out[0], [1, 0, 1, 0, 0, 1], atol=1e-6)
    week = 2 * np.pi * 3 / 7
    np.testing.assert_allclose(
        out[1], [-1, np.log1p(3), 1, 0, np.sin(week), np.cos(week)], atol=1e-6
    )


def test_profile_rows_carry_no_time() -> None:
    """The clock time of a table row means nothing, and it is no neighbour of real events."""
    times = np.array([at(2020, 1, 1), at(2024, 1, 1), at(2024, 1, 2)])
    table = np.array([True, False, False])
    out = event_features(times, np.zeros(3, np.float32), table)
    assert not out[0].any()
    assert out[1, 1] == 0
    np.testing.assert_allclose(out[2, 1], np.log1p(1))


def test_days_since_the_first_event_by_hand() -> None:
    """The clock starts at the oldest event; a profile's time means nothing, and it never fades."""
    times = np.array([at(2020, 1, 1), at(2024, 1, 1, 12), at(2024, 1, 4), at(2025, 1, 1)])
    table = np.array([True, False, False, True])
    clock = Clock.of(times, table)
    days = days_since_first(times, table, clock)
    assert days.dtype == np.float32
    assert days.tolist() == [AGELESS, 0, 2.5, AGELESS]
    assert days_to_as_of(clock, at(2024, 1, 11)) == np.float32(9.5)
    alone = times[:1], np.array([True])
    assert days_since_first(*alone, Clock.of(*alone)).tolist() == [AGELESS]


@pytest.mark.parametrize(
    ("events", "expected"),
    [(0, 0), (8, 0), (9, 2), (10, 2), (11, 4), (12, 4), (13, 6), (1000, 992)],
)
def test_a_window_drops_a_quarter_at_a_time(events: int, expected: int) -> None:
    """With a budget of 8, between 7 and 8 of the newest are read as soon as there are more."""
    assert dropped(events, 8) == expected


@given(events=st.integers(0, 10_000), budget=st.integers(1, 300))
def test_a_window_keeps_within_its_budget(events: int, budget: int) -> None:
    """Never more than the budget, never less than three quarters of it, and drops only grow."""
    kept = events - dropped(events, budget)
    assert kept <= budget
    assert kept >= min(events, budget - max(1, budget // 4) + 1)
    assert dropped(events, budget) <= dropped(events + 1, budget)


def test_context_features_by_hand() -> None:
    """Three days since the newest of two events one day apart; profiles do not count."""
    times = np.array([at(2020, 1, 1), at(2024, 1, 1), at(2024, 1, 2)])
    clock = Clock.of(times, np.array([True, False, False]))
    out = context_features(clock, at(2024, 1, 5))
    assert out.shape == (len(CONTEXT_FEATURES),)
    np.testing.assert_allclose(out, np.log1p([3, 2, 1]), atol=1e-6)


def test_context_of_a_user_with_a_profile_only_is_finite() -> None:
    """Where there is nothing else the profile's time is used."""
    clock = Clock.of(np.array([at(2024, 1, 1)]), np.array([True]))
    out = context_features(clock, at(2024, 1, 2))
    np.testing.assert_allclose(out, [np.log1p(1), np.log1p(1), 0], atol=1e-6)


def test_suffixes_are_query_prompt_user_emb_and_padding() -> None:
    """Each row is laid out in that order; the general embedding is <USER_EMB> alone."""
    special = SpecialIds(pad=90, user_emb=91, eos=92, first_prompt=93)
    ids, length = suffix_ids([[1, 2], [], [3]], [range(0), range(0), range(2, 4)], special)
    assert ids.tolist() == [[1, 2, 91, 90], [91, 90, 90, 90], [3, 95, 96, 91]]
    assert length.tolist() == [3, 1, 4]


ROWS = st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=2, max_size=20)


@given(rows=ROWS.map(sorted), cut=st.integers(1, 19), days=st.integers(1, 100))
def test_appended_events_are_told_as_if_read_at_once(
    rows: list[tuple[int, bool]], cut: int, days: int
) -> None:
    """Features, days and context of a history in two pieces are those of the whole."""
    times = np.array([hour for hour, _ in rows], np.int64) * 3_600_000_000
    table = np.array([kind for _, kind in rows])
    amounts = np.arange(len(rows), dtype=np.float32)
    cut = min(cut, len(rows) - 1)
    first = Clock.of(times[:cut], table[:cut])
    both, whole = first.appended(times[cut:], table[cut:]), Clock.of(times, table)
    assert both == whole
    as_of = int(times[-1]) + days * 86_400_000_000
    assert context_features(both, as_of).tobytes() == context_features(whole, as_of).tobytes()
    pieces = [
        event_features(times[:cut], amounts[:cut], table[:cut]),
        event_features(times[cut:], amounts[cut:], table[cut:], first),
    ]
    assert np.concatenate(pieces).tobytes() == event_features(times, amounts, table).tobytes()
    parts = [
        days_since_first(times[:cut], table[:cut], first),
        days_since_first(times[cut:], table[cut:], both),
    ]
    assert np.concatenate(parts).tobytes() == days_since_first(times, table, whole).tobytes()
