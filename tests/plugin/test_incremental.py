"""Windows that continue: users without new events are recomputed, re-stamped or left."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore

from feast_anchor.plugin.backfill import Request
from feast_anchor.plugin.catalog import Catalog, RunSummary
from feast_anchor.plugin.plans import plan_runs
from feast_anchor.transforms import shard_work
from feast_anchor.transforms.histories import History
from feast_anchor.transforms.scoring import Scorer
from shop import (
    END,
    START,
    make_tables,
    offline_rows,
    online_rows,
    orders,
    repo_of,
    shop_store,
    write_tables,
)

USERS = [f"u{n}" for n in range(20)]
LATER = END + timedelta(days=3)  # no snapshot between
BUYER = "u4"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The users that are scored from now on."""
    seen: set[str] = set()

    class Listening(Scorer):
        def score(self, histories: Any, texts: Any) -> Any:
            seen.update(one.user for one in histories)
            return super().score(histories, texts)

    monkeypatch.setattr(shard_work, "Scorer", Listening)
    return seen


def buy(repo: Path, user: str, when: datetime) -> None:
    """One more purchase, in a table that is otherwise as it was."""
    tables = make_tables()
    row = {
        "shopper_id": user,
        "event_timestamp": when,
        "item": "green tea",
        "aisle": "drinks",
        "spend": 2.0,
    }
    more = orders([row])
    write_tables(repo / "tables", {**tables, "orders": pa.concat_tables([tables["orders"], more])})


def run_of(repo: Path, end: datetime) -> RunSummary:
    """The catalogue's record of the run whose window ends there."""
    with Catalog.open(f"sqlite:///{repo / 'anchor.db'}") as catalog:
        (found,) = [run for run in catalog.runs() if run.window_end == end]
    return found


def at(rows: pd.DataFrame, moment: datetime) -> pd.DataFrame:
    """Rows as of one instant, by user."""
    return rows[rows["event_timestamp"] == moment].set_index("shopper_id")


def after_two_windows(store: FeatureStore, repo: Path) -> pd.DataFrame:
    """Materialize, let one user buy, and go on from where Feast stands."""
    store.materialize(START, END)
    buy(repo, BUYER, END + timedelta(days=1))
    store.materialize_incremental(LATER)
    return offline_rows(repo)


def same(one: Any, other: Any) -> bool:
    """Whether two vectors are equal to the bit."""
    return bool(np.asarray(one).tobytes() == np.asarray(other).tobytes())


def test_by_default_everybody_is_computed(
    tmp_path: Path, shop_bundle: Path, scored: set[str]
) -> None:
    """A vector knows how long ago the last event was, so a quiet user's vector moves too."""
    with shop_store(tmp_path, shop_bundle) as store:
        rows = after_two_windows(store, tmp_path)
    assert scored == set(USERS)
    before, now = at(rows, END), at(rows, LATER)
    assert set(now.index) == set(USERS)
    assert not any(same(before["tea"][user], now["tea"][user]) for user in USERS)


def test_left_users_keep_their_row_and_cost_nothing(
    tmp_path: Path, shop_bundle: Path, scored: set[str]
) -> None:
    """Only the buyer is scored and written; the others are served and joined as before."""
    with shop_store(tmp_path, shop_bundle, unchanged="leave") as store:
        store.materialize(START, END)
        served = online_rows(store, USERS)
        buy(tmp_path, BUYER, END + timedelta(days=1))
        scored.clear()
        store.materialize_incremental(LATER)
        again = online_rows(store, USERS)
    assert scored == {BUYER}
    assert list(at(offline_rows(tmp_path), LATER).index) == [BUYER]
    assert {user for user in USERS if served[user] != again[user]} == {BUYER}
    run = run_of(tmp_path, LATER)
    assert (run.users_in, run.users_embedded, run.users_unchanged) == (20, 1, 19)
    assert run.users_rejected == 0
    assert run.events_unchanged > 0
    assert run.events_in == run.events_used + run.events_unchanged + run.events_over_budget


def test_a_plan_counts_no_row_of_users_that_are_left(tmp_path: Path, shop_bundle: Path) -> None:
    """Rows offline and online are those of the run that then comes."""
    with shop_store(tmp_path, shop_bundle, unchanged="leave") as store:
        store.materialize(START, END)
        buy(tmp_path, BUYER, END + timedelta(days=1))
        (plan,) = plan_runs(repo_of(store), [], Request(start=END, end=LATER))
        store.materialize_incremental(LATER)
    run = run_of(tmp_path, LATER)
    assert plan.run_ids == (run.run_id,)
    assert (plan.rows, plan.rows_online) == (run.rows_offline, run.rows_online) == (1, 1)


def test_restamped_users_get_their_vector_at_the_new_instant(
    tmp_path: Path, shop_bundle: Path, scored: set[str]
) -> None:
    """A row for everybody, with the old vector, the old history_end and the new times."""
    with shop_store(tmp_path, shop_bundle, unchanged="restamp") as store:
        store.materialize(START, END)
        scored.clear()
        buy(tmp_path, BUYER, END + timedelta(days=1))
        store.materialize_incremental(LATER)
        served = online_rows(store, USERS)
    rows = offline_rows(tmp_path)
    before, now = at(rows, END), at(rows, LATER)
    assert scored == {BUYER}
    assert set(now.index) == set(USERS)
    kept = [user for user in USERS if user != BUYER]
    assert all(same(before["tea"][user], now["tea"][user]) for user in kept)
    assert (before["history_end"][kept] == now["history_end"][kept]).all()
    assert now["history_end"][BUYER] == END + timedelta(days=1)
    assert all(served[user] == np.asarray(now["tea"][user], "<f4").tobytes() for user in USERS)


@pytest.mark.parametrize("unchanged", ["leave", "restamp"])
def test_who_is_unchanged_over_several_windows_stays_so(
    tmp_path: Path, shop_bundle: Path, scored: set[str], unchanged: str
) -> None:
    """The third window compares with what the second kept, and finds who changed since."""
    with shop_store(tmp_path, shop_bundle, unchanged=unchanged) as store:
        after_two_windows(store, tmp_path)
        buy(tmp_path, "u7", LATER + timedelta(hours=1))  # and the buyer's event is gone again
        scored.clear()
        store.materialize_incremental(LATER + timedelta(days=1))
    assert scored == {BUYER, "u7"}


def test_users_whose_kept_row_was_deleted_are_computed(
    tmp_path: Path, shop_bundle: Path, scored: set[str]
) -> None:
    """Their newest row stood in a run further back, which is gone: leaving them would lose them."""
    with shop_store(tmp_path, shop_bundle, unchanged="leave") as store:
        after_two_windows(store, tmp_path)
        shutil.rmtree(tmp_path / "sinks" / "taste_v1" / f"run-{run_of(tmp_path, END).run_id}")
        scored.clear()
        store.materialize_incremental(LATER + timedelta(days=1))
    assert scored == {*USERS} - {BUYER}
    assert set(offline_rows(tmp_path)["shopper_id"]) == {*USERS}


def test_a_late_event_makes_its_user_changed(
    tmp_path: Path, shop_bundle: Path, scored: set[str]
) -> None:
    """An event that arrives after its time is read, although the window lies after it."""
    with shop_store(tmp_path, shop_bundle, unchanged="leave") as store:
        store.materialize(START, END)
        buy(tmp_path, BUYER, END - timedelta(minutes=1))
        scored.clear()
        store.materialize_incremental(LATER)
    assert scored == {BUYER}


def test_running_the_continued_window_again_changes_nothing(
    tmp_path: Path, shop_bundle: Path, scored: set[str]
) -> None:
    """The same run is found, although the newest finished run of the view is now itself."""
    with shop_store(tmp_path, shop_bundle, unchanged="leave") as store:
        rows = after_two_windows(store, tmp_path)
        scored.clear()
        store.materialize(END, LATER)
    assert scored == set()
    assert offline_rows(tmp_path).equals(rows)


def test_a_window_that_does_not_continue_computes_everybody(
    tmp_path: Path, shop_bundle: Path, scored: set[str]
) -> None:
    """Without a finished run up to its start there is nothing to compare with."""
    with shop_store(tmp_path, shop_bundle, unchanged="leave") as store:
        store.materialize(START, END)
        scored.clear()
        store.materialize(END - timedelta(days=1), LATER)
    assert scored == set(USERS)


def test_digests_tell_texts_apart_however_they_are_split() -> None:
    """Two lists of texts that read the same when run together have different digests."""
    from feast_anchor.transforms.digests import history_digest
    from feast_anchor.transforms.histories import Cut

    numbers = np.arange(2)
    history = History(
        "u", numbers, numbers, numbers, numbers.astype(np.float32), (Cut(numbers, (9,)),)
    )
    assert history_digest(history, ["ab", "c"]) != history_digest(history, ["a", "bc"])
    assert history_digest(history, ["ab", "c"]) == history_digest(history, ["ab", "c"])
