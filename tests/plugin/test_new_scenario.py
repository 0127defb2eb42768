"""A scenario is added to a view that has rows: only its vectors are computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feast_anchor.transforms import shard_work
from feast_anchor.transforms.scoring import Question, Scorer
from shop import END, QUERIES, START, offline_rows, online_rows, shop_store, shop_view

USERS = [f"u{n}" for n in range(20)]
MORE = {"churn": QUERIES["churn"], "bread": "Will this shopper buy bread?", "tea": QUERIES["tea"]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str | None]]:
    """The questions of every scorer that is made from now on."""
    seen: list[list[str | None]] = []

    class Listening(Scorer):
        def __init__(self, bundle: Any, questions: Sequence[Question], *rest: Any) -> None:
            seen.append([question.query for question in questions])
            super().__init__(bundle, questions, *rest)

    monkeypatch.setattr(shard_work, "Scorer", Listening)
    return seen


def test_only_the_new_question_is_asked_and_all_rows_are_as_if_computed(
    tmp_path: Path, shop_bundle: Path, asked: list[list[str | None]]
) -> None:
    """The same window again costs one question; its rows equal those of a view made at once."""
    with shop_store(tmp_path / "grown", shop_bundle) as store:
        store.materialize(START, END)
        store.apply([shop_view(tmp_path / "grown", shop_bundle, queries=MORE)])
        joined = training_rows(store, "bread")
        assert joined["bread"].isna().all()  # joinable at once, and empty
        assert joined["tea"].notna().all()
        asked.clear()
        store.materialize(START, END)
        assert asked == [[MORE["bread"]]]
        served = {name: online_rows(store, USERS, field=name) for name in MORE}
        assert training_rows(store, "bread")["bread"].notna().all()
    with shop_store(
        tmp_path / "new", shop_bundle, views=lambda r, b: [shop_view(r, b, queries=MORE)]
    ) as store:
        store.materialize(START, END)
        assert served == {name: online_rows(store, USERS, field=name) for name in MORE}
    grown = offline_rows(tmp_path / "grown")
    latest = grown[grown["bread"].notna()].reset_index(drop=True)
    assert len(grown) == 2 * len(latest)
    pd.testing.assert_frame_equal(
        latest, offline_rows(tmp_path / "new")[latest.columns], check_exact=True
    )


def training_rows(store: Any, field: str) -> pd.DataFrame:
    """A training set as of the window's end."""
    labels = pd.DataFrame({"shopper_id": USERS, "event_timestamp": [END] * len(USERS)})
    names = [f"taste_v1:{name}" for name in (field, "tea")]
    frame: pd.DataFrame = store.get_historical_features(entity_df=labels, features=names).to_df()
    return frame


def test_a_user_who_can_no_longer_be_scored_costs_that_user_alone(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vectors that are taken are those of the users who are left."""
    real = Scorer._reading

    def fragile(scorer: Scorer, piece: Any, encoded: Any) -> Any:
        if piece.history.user == "u7":
            raise ValueError("a history nobody can read")
        return real(scorer, piece, encoded)

    with shop_store(tmp_path, shop_bundle) as store:
        store.materialize(START, END)
        before = offline_rows(tmp_path)
        store.apply([shop_view(tmp_path, shop_bundle, queries=MORE)])
        monkeypatch.setattr(Scorer, "_reading", fragile)
        store.materialize(START, END)
    rows = offline_rows(tmp_path)
    latest = rows[rows["bread"].notna()].reset_index(drop=True)
    others = before[before["shopper_id"] != "u7"].reset_index(drop=True)
    assert set(latest["shopper_id"]) == {*USERS} - {"u7"}
    pd.testing.assert_frame_equal(latest[others.columns], others, check_exact=True)


def test_where_the_old_rows_are_gone_everything_is_computed(
    tmp_path: Path, shop_bundle: Path, asked: list[list[str | None]]
) -> None:
    """Taking vectors over is an offer: without the parts, all questions are asked again."""
    with shop_store(tmp_path, shop_bundle) as store:
        store.materialize(START, END)
        before = offline_rows(tmp_path)
        for part in (tmp_path / "sinks").rglob("run-*/part-*.parquet"):
            part.unlink()
        store.apply([shop_view(tmp_path, shop_bundle, queries=MORE)])
        asked.clear()
        store.materialize(START, END)
    assert asked == [[MORE["churn"], MORE["bread"], MORE["tea"]]]
    assert offline_rows(tmp_path)[before.columns].equals(before)


def test_another_window_takes_nothing_over(
    tmp_path: Path, shop_bundle: Path, asked: list[list[str | None]]
) -> None:
    """Rows of other as-of times are no help, and are not mistaken for one."""
    with shop_store(tmp_path, shop_bundle) as store:
        store.materialize(START, END)
        store.apply([shop_view(tmp_path, shop_bundle, queries=MORE)])
        asked.clear()
        store.materialize(START, END - (END - START) / 2)
    assert asked == [list(MORE.values())]
