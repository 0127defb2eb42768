from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.inputs import Clock, context_features, event_features, window
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.transforms.events import ROW_SCHEMA
from feast_anchor.transforms.histories import (
    EPOCH,
    History,
    ShardHistories,
    as_of_times,
    build_histories,
    micros,
)

SPECS = (
    ModalitySpec(name="visits", text="{item}", amount=True, max_events=3),
    ModalitySpec(name="coupons", text="{shop}", max_events=2),
    ModalitySpec(name="profile", kind="table", text="{age}", max_events=1),
)
DAY = timedelta(days=1)
MONDAY = datetime(2024, 1, 1, tzinfo=UTC)

Row = dict[str, Any]


def rows_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as canonical events; times are microseconds."""
    times = pa.array([row["event_timestamp"] for row in rows], pa.int64())
    columns = [[row[name] for row in rows] for name in ROW_SCHEMA.names]
    columns[1] = times.cast(ROW_SCHEMA.field(1).type)
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, ROW_SCHEMA, strict=True)], schema=ROW_SCHEMA
    )


def event(user: str | None, time: int | None, rejected: str | None = None, **other: Any) -> Row:
    """One canonical event, valid unless `rejected` says otherwise."""
    row = {"user": user, "event_timestamp": time, "rejected": rejected}
    return {**row, "modality": 0, "text": "tea", "amount": 1.0, **other}


# Few distinct values: equal times, equal events and shared texts come up all the time.
EVENTS = st.builds(
    event,
    st.sampled_from(["ada", "bo", "cy", "dee"]),
    st.integers(0, 12),
    modality=st.integers(0, 2),
    text=st.sampled_from(["", "tea", "ham", "ünï"]),
    amount=st.sampled_from([-2.0, 0.0, 1.5]),
)
REJECTED = st.builds(
    event,
    st.none() | st.sampled_from(["", "ada", "bo", "eve"]),
    st.none() | st.integers(0, 12),
    st.sampled_from(["null_key", "no_text", "amount_not_finite"]),
    text=st.none() | st.just("tea"),
    amount=st.none() | st.just(float("nan")),
)
AS_OF = st.lists(st.integers(0, 14), min_size=1, max_size=5, unique=True).map(sorted)
SHARD = st.lists(EVENTS | REJECTED, max_size=40)


def build(rows: Sequence[Row], as_of: Sequence[int]) -> ShardHistories:
    """Histories of a shard."""
    return build_histories(rows_table(rows), as_of, SPECS)


def bits(shard: ShardHistories, user: str) -> tuple[Any, ...] | None:
    """All that a user's vectors are computed from, as bytes; None if the user has no history."""
    for history in shard.histories:
        if history.user == user:
            texts = tuple(shard.texts[i] for i in history.text)
            cuts = tuple((cut.positions.tobytes(), cut.as_of) for cut in history.cuts)
            arrays = (history.times, history.modality, history.amounts)
            return (*(array.tobytes() for array in arrays), texts, cuts)
    return None


def of_user(rows: Sequence[Row], user: str) -> list[Row]:
    """A user's valid events in the order that the module promises."""
    mine = [row for row in rows if row["user"] == user and row["rejected"] is None]
    order = ("event_timestamp", "modality", "text", "amount")
    return sorted(mine, key=lambda row: tuple(row[name] for name in order))


def read_at(events: Sequence[Row], as_of: int) -> list[int]:
    """Positions of the events to read, by plain counting: newest of each modality before as-of."""
    kept: list[int] = []
    for modality, spec in enumerate(SPECS):
        before = [
            position
            for position, row in enumerate(events)
            if row["modality"] == modality and row["event_timestamp"] < as_of
        ]
        kept += before[-spec.max_events :]
    return sorted(kept)


# --- histories -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(rows=SHARD, as_of=AS_OF)
def test_every_as_of_reads_what_plain_counting_reads(rows: list[Row], as_of: list[int]) -> None:
    """Each user's cuts hold the newest events of each modality strictly before the as-of, and
    a user without any is rejected with the reason.
    """
    shard = build(rows, as_of)
    found = {history.user: history for history in shard.histories}
    assert list(found) == sorted(found)
    for user in {row["user"] for row in rows} - {None, ""}:
        events = of_user(rows, user)
        expected = {moment: read_at(events, moment) for moment in as_of}
        expected = {moment: positions for moment, positions in expected.items() if positions}
        if not expected:
            reason = "no_event_before_as_of" if events else "no_usable_event"
            assert shard.rejected_users[user] == reason
            continue
        history = found[user]
        cuts = {moment: cut.positions.tolist() for cut in history.cuts for moment in cut.as_of}
        assert cuts == expected
        assert history.times.tolist() == [row["event_timestamp"] for row in events]
        assert history.modality.tolist() == [row["modality"] for row in events]
        assert history.amounts.tolist() == [row["amount"] for row in events]
        assert [shard.texts[i] for i in history.text] == [row["text"] for row in events]
        for moment, positions in cuts.items():
            assert history.times[positions[-1]] < moment


@settings(deadline=None, max_examples=150)
@given(rows=SHARD, as_of=AS_OF)
def test_the_books_balance_and_each_entry_is_right(rows: list[Row], as_of: list[int]) -> None:
    """Each event is used, rejected, outside or over budget, counted here one by one."""
    shard = build(rows, as_of)
    books = shard.books
    users = {row["user"] for row in rows} - {None, ""}
    used = outside = over = 0
    for user in users:
        events = of_user(rows, user)
        read = {position for moment in as_of for position in read_at(events, moment)}
        late = [row for row in events if row["event_timestamp"] >= as_of[-1]]
        used, outside = used + len(read), outside + len(late)
        over += len(events) - len(read) - len(late)
    bad = [row for row in rows if row["rejected"] is not None]
    assert books.balances()
    assert (books.events_in, books.events_rejected) == (len(rows), len(bad))
    assert (books.events_used, books.events_outside, books.events_over_budget) == (
        used,
        outside,
        over,
    )
    assert books.users_in == len(users)
    assert books.users_embedded == len(shard.histories)
    assert books.users_rejected == len(shard.rejected_users)
    assert not {history.user for history in shard.histories} & shard.rejected_users.keys()
    assert sum(shard.rejections.values()) == len(bad) + len(shard.rejected_users)
    assert shard.rejected_events.num_rows == len(bad)


@settings(deadline=None, max_examples=100)
@given(rows=SHARD, as_of=AS_OF, shuffle=st.randoms())
def test_the_order_of_reading_changes_no_bit(
    rows: list[Row], as_of: list[int], shuffle: Any
) -> None:
    """Any order of the same rows gives the same histories."""
    first = build(rows, as_of)
    mixed = list(rows)
    shuffle.shuffle(mixed)
    second = build(mixed, as_of)
    assert [h.user for h in first.histories] == [h.user for h in second.histories]
    assert first.texts == second.texts
    assert (first.books, first.rejected_users) == (second.books, second.rejected_users)
    for history in first.histories:
        assert bits(first, history.user) == bits(second, history.user)


@settings(deadline=None, max_examples=100)
@given(rows=SHARD, as_of=AS_OF, user=st.sampled_from(["ada", "bo"]))
def test_other_users_change_no_bit(rows: list[Row], as_of: list[int], user: str) -> None:
    """A user alone gets the arrays that the same user gets in company."""
    alone = [row for row in rows if row["user"] == user]
    assert bits(build(rows, as_of), user) == bits(build(alone, as_of), user)


@settings(deadline=None, max_examples=100)
@given(rows=SHARD, later=st.lists(EVENTS, max_size=15), as_of=st.integers(1, 10))
def test_events_at_or_after_the_as_of_change_nothing_that_is_read(
    rows: list[Row], later: list[Row], as_of: int
) -> None:
    """Whatever happens from the as-of on, the events read before it stay the same."""
    past = [row for row in rows if row["rejected"] is None and row["event_timestamp"] < as_of]
    future = [{**row, "event_timestamp": row["event_timestamp"] + as_of} for row in later]
    first, second = build(past, [as_of]), build([*future, *past], [as_of])
    for user in {row["user"] for row in past}:
        assert read_bits(first, user) == read_bits(second, user)
    assert {h.user for h in first.histories} == {h.user for h in second.histories}


def read_bits(shard: ShardHistories, user: str) -> list[tuple[Any, ...]]:
    """What each of a user's cuts reads, as bytes."""
    (history,) = (history for history in shard.histories if history.user == user)
    return [
        (
            history.times[cut.positions].tobytes(),
            history.modality[cut.positions].tobytes(),
            history.amounts[cut.positions].tobytes(),
            [shard.texts[i] for i in history.text[cut.positions]],
            cut.as_of,
        )
        for cut in history.cuts
    ]


def only(shard: ShardHistories) -> History:
    """The one history of a shard."""
    (history,) = shard.histories
    return history


def test_ten_thousand_events_are_read_up_to_the_budget() -> None:
    """The newest of each modality are read; the rest is over budget, and all are counted."""
    rows = [event("ada", n, modality=n % 3, text=f"t{n % 7}") for n in range(10_000)]
    shard = build(rows, [9_000, 20_000])
    first, second = only(shard).cuts
    assert first.positions.tolist() == [8991, 8994, 8995, 8997, 8998, 8999]
    assert second.positions.tolist() == [9993, 9994, 9996, 9997, 9998, 9999]
    assert (shard.books.events_used, shard.books.events_over_budget) == (12, 9_988)
    assert shard.texts == ("t0", "t1", "t2", "t3", "t4", "t5", "t6")


def test_as_of_times_with_no_event_between_them_share_one_prefix() -> None:
    """The prefix is computed once for all as-of times that read the same events."""
    shard = build([event("ada", 5), event("ada", 10)], [1, 6, 8, 10, 11, 30])
    first, second = only(shard).cuts
    assert (first.positions.tolist(), first.as_of) == ([0], (6, 8, 10))
    assert (second.positions.tolist(), second.as_of) == ([0, 1], (11, 30))


def test_an_event_at_the_as_of_is_not_read() -> None:
    """Strictly before: one microsecond decides."""
    assert build([event("ada", 5)], [5]).rejected_users == {"ada": "no_event_before_as_of"}
    assert only(build([event("ada", 4)], [5])).cuts[0].as_of == (5,)


def test_equal_events_are_all_kept() -> None:
    """Two identical purchases at one instant are two events."""
    books = build([event("ada", 1)] * 3, [5]).books
    assert (books.events_in, books.events_used) == (3, 3)


def test_a_user_with_good_and_bad_rows_is_not_rejected() -> None:
    """A bad row costs its user that row alone."""
    shard = build([event("ada", 1), event("ada", 2, "no_text"), event("eve", 1, "no_text")], [5])
    assert shard.rejected_users == {"eve": "no_usable_event"}
    assert shard.rejections == {"event:no_text": 2, "user:no_usable_event": 1}
    assert shard.rejected_events["user"].to_pylist() == ["ada", "eve"]


def test_rows_without_a_key_are_events_but_no_user() -> None:
    """A null or empty key is counted among the events and never among the users."""
    shard = build([event(None, 1, "null_key"), event("", 1, "null_key")], [5])
    assert (shard.books.events_in, shard.books.events_rejected, shard.books.users_in) == (2, 2, 0)
    assert shard.books.balances()


def test_an_empty_shard_has_empty_books() -> None:
    """A shard that no row fell into gives nothing and balances."""
    shard = build([], [5])
    assert (shard.histories, shard.texts, shard.rejected_users) == ((), (), {})
    assert shard.rejections == {}
    assert set(vars(shard.books).values()) == {0}
    assert shard.books.balances()


# --- what the graphs are given ---------------------------------------------------------------


TIMELINE = st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 2)), max_size=30).map(sorted)


@settings(deadline=None)
@given(timeline=TIMELINE, as_of=st.integers(-22, 22))
def test_window_never_looks_at_or_after_the_as_of(
    timeline: list[tuple[int, int]], as_of: int
) -> None:
    """Positions are ascending, before the as-of, within each budget, and blind to the future."""
    times = np.array([time for time, _ in timeline], dtype=np.int64)
    modality = np.array([kind for _, kind in timeline], dtype=np.int64)
    found = window(times, modality, as_of, SPECS)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(set(found.tolist()))
    assert (times[found] < as_of).all()
    for index, spec in enumerate(SPECS):
        assert (modality[found] == index).sum() <= spec.max_events
    past = times < as_of
    assert window(times[past], modality[past], as_of, SPECS).tolist() == found.tolist()


@settings(deadline=None)
@given(timeline=TIMELINE.filter(bool), as_of=st.integers(-19, 40))
def test_features_are_finite_and_know_nothing_of_the_future(
    timeline: list[tuple[int, int]], as_of: int
) -> None:
    """Both feature functions, given the window, do not change when later events are dropped."""
    times = np.array([time for time, _ in timeline], dtype=np.int64) * 3_600_000_000
    modality = np.array([kind for _, kind in timeline], dtype=np.int64)
    amounts = np.linspace(-5, 1e6, len(times), dtype=np.float32)
    moment = as_of * 3_600_000_000
    found = []
    for seen in (np.ones(len(times), dtype=bool), times < moment):
        at = window(times[seen], modality[seen], moment, SPECS)
        if len(at) == 0:
            return
        is_table = modality[seen][at] == 2
        clock = times[seen][at]
        features = event_features(clock, amounts[seen][at], is_table)
        context = context_features(Clock.of(clock, is_table), moment)
        assert np.isfinite(features).all()
        assert np.isfinite(context).all()
        assert context[0] > 0  # the newest event lies before the as-of
        found.append((features.tobytes(), context.tobytes()))
    assert found[0] == found[1]


# --- as-of times -----------------------------------------------------------------------------


def test_weekly_as_of_times_are_mondays_and_the_end() -> None:
    """Start is excluded, the end is included whether or not it is a Monday."""
    wednesday = MONDAY + 16 * DAY
    assert as_of_times(MONDAY, wednesday, 7 * DAY) == (
        MONDAY + 7 * DAY,
        MONDAY + 14 * DAY,
        wednesday,
    )
    assert as_of_times(MONDAY - DAY, MONDAY, 7 * DAY) == (MONDAY,)
    assert all(moment.weekday() == 0 for moment in as_of_times(EPOCH, MONDAY, 7 * DAY))


@pytest.mark.parametrize("snapshots", [None, DAY, 7 * DAY])
@pytest.mark.parametrize("moment", [MONDAY, MONDAY + timedelta(hours=7)])
def test_an_empty_window_has_its_end_alone(moment: datetime, snapshots: timedelta | None) -> None:
    """A window of no length still says how things stand at its end."""
    assert as_of_times(moment, moment, snapshots) == (moment,)


def test_without_snapshots_only_the_end_counts() -> None:
    """None computes one as-of, however long the window is."""
    assert as_of_times(EPOCH, MONDAY, None) == (MONDAY,)


def test_a_window_that_ends_before_it_starts_is_refused() -> None:
    """Swapped ends are an error, not an empty window."""
    with pytest.raises(SpecError, match="before it starts at .*; swap the two"):
        as_of_times(MONDAY, MONDAY - timedelta(microseconds=1), None)


@pytest.mark.parametrize("period", [timedelta(0), -DAY])
def test_a_period_that_is_not_positive_is_refused(period: timedelta) -> None:
    """Zero and negative periods name a good one."""
    with pytest.raises(SpecError, match="expected a positive period such as 7 days"):
        as_of_times(MONDAY, MONDAY + DAY, period)


MOMENTS = st.datetimes(
    datetime(1960, 1, 1),  # noqa: DTZ001  # Hypothesis wants naive bounds
    datetime(1985, 1, 1),  # noqa: DTZ001  # 25 years of days: below the most snapshots of a run
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)


@settings(deadline=None)
@given(
    ends=st.tuples(MOMENTS, MOMENTS),
    share=st.floats(0, 1),
    days=st.sampled_from([1, 7, 30]),
)
def test_windows_side_by_side_meet_each_grid_point_once(
    ends: tuple[datetime, datetime], share: float, days: int
) -> None:
    """As-of times ascend within (start, end], and cutting a window in two adds its inner end
    alone: incremental runs and one backfill agree.
    """
    start, end = sorted(ends)
    middle = start + (end - start) * share
    period = days * DAY
    whole = as_of_times(start, end, period)
    assert list(whole) == sorted(set(whole))
    assert whole[-1] == end
    assert all(start < moment <= end for moment in whole) or start == end
    halves = {*as_of_times(start, middle, period), *as_of_times(middle, end, period)}
    assert halves == {*whole, middle}


@given(moment=MOMENTS)
def test_micros_are_exact(moment: datetime) -> None:
    """No microsecond is lost to a float, in any zone and before 1970 too."""
    assert EPOCH + timedelta(microseconds=micros(moment)) == moment
