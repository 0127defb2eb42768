"""The books of a run: what is rejected, what is refused, and that nothing half-done can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView
from typer.testing import CliRunner

from feast_anchor.onnx_export.errors import BooksError, RunError
from feast_anchor.plugin.catalog import Catalog, RunSummary
from feast_anchor.plugin.cli import app
from feast_anchor.transforms import shard_work
from feast_anchor.transforms.scoring import Scorer
from shop import (
    END,
    QUERIES,
    START,
    config,
    make_tables,
    offline_rows,
    online_rows,
    shop_store,
    shop_view,
    write_repo,
)

WIDE = {"COLUMNS": "400"}
USERS = [f"u{n}" for n in range(20)]
BOTH = pytest.mark.parametrize("shuffle", ["local", "beam"])


def spoiled(share: float) -> dict[str, pa.Table]:
    """The shop's tables with a share of the orders' amounts missing."""
    tables = make_tables()
    orders = tables["orders"]
    spend = pa.array(
        [None if row < share * len(orders) else one for row, one in enumerate(orders["spend"])],
        pa.float64(),
    )
    return {**tables, "orders": orders.set_column(4, "spend", spend)}


def only_run(repo: Path) -> RunSummary:
    """The one run in the catalogue."""
    with Catalog.open(f"sqlite:///{repo / 'anchor.db'}") as catalog:
        (run,) = catalog.runs()
    return run


def failed(store: FeatureStore) -> Exception:
    """What a materialize that must fail fails with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        store.materialize(START, END)
    return caught.value


def nothing_to_read(store: FeatureStore, repo: Path) -> bool:
    """No row offline, none online, and no interval that Feast believes in."""
    return (
        len(offline_rows(repo)) == 0
        and online_rows(store, USERS) == {}
        and store.get_feature_view("taste_v1").materialization_intervals == []
    )


@BOTH
def test_more_rejects_than_allowed_publish_nothing(
    tmp_path: Path, shop_bundle: Path, shuffle: str
) -> None:
    """The error names count, share and setting; the rejected rows can be looked at."""
    tables = spoiled(0.3)
    with shop_store(tmp_path, shop_bundle, tables, shuffle=shuffle, max_rejected=0.2) as store:
        error = failed(store)
        assert nothing_to_read(store, tmp_path)
        scored = len([*(tmp_path / "state").rglob("shard-*.json")])
        assert str(failed(store)) == str(error)  # and again, without scoring first
        assert len([*(tmp_path / "state").rglob("shard-*.json")]) == scored
    assert isinstance(error, BooksError)
    assert "events were rejected, more than max_rejected=0.2 allows" in str(error)
    letters = [*(tmp_path / "state").rglob("rejected-events.parquet")]
    letters = letters or [*(tmp_path / "state").rglob("dead-*.parquet")]
    reasons = [one for path in letters for one in pq.read_table(path)["rejected"].to_pylist()]
    assert reasons.count("amount_not_finite") == round(0.3 * len(tables["orders"]) + 0.5)
    assert only_run(tmp_path).status == "FAILED"


def test_the_dead_letters_of_a_refused_run_are_counted(tmp_path: Path, shop_bundle: Path) -> None:
    """It did no shard, so the catalogue has none: they are in a file, which is named."""
    with shop_store(tmp_path, shop_bundle, spoiled(0.3), max_rejected=0.2) as store:
        failed(store)
    write_repo(tmp_path)
    run = only_run(tmp_path).run_id
    said = CliRunner().invoke(app, ["dead-letters", run, "--repo", str(tmp_path)], env=WIDE)
    assert said.exit_code == 0
    count = round(0.3 * len(make_tables()["orders"]) + 0.5)
    assert ["event", "amount_not_finite", str(count)] in [
        line.split() for line in said.output.split("\n")
    ]
    assert f"run-{run}/rejected-events.parquet" in said.output


@BOTH
def test_with_a_higher_limit_the_same_run_goes_on(
    tmp_path: Path, shop_bundle: Path, shuffle: str
) -> None:
    """What was done is kept: raising the limit costs no second pass of what was scored."""
    with shop_store(
        tmp_path, shop_bundle, spoiled(0.3), shuffle=shuffle, max_rejected=0.2
    ) as store:
        failed(store)
    patient = FeatureStore(config=config(tmp_path, shuffle=shuffle, max_rejected=0.5))
    patient.materialize(START, END)
    served = online_rows(patient, USERS)
    run = only_run(tmp_path)
    assert (run.status, run.attempt) == ("SUCCEEDED", 2)
    assert len(served) == run.users_embedded > 10
    assert run.events_rejected > 0.2 * run.events_in


@BOTH
def test_a_poison_user_costs_that_user_alone(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch, shuffle: str
) -> None:
    """All others have the rows of an undisturbed run; the books name user, events and reason."""
    with shop_store(tmp_path / "calm", shop_bundle) as store:
        store.materialize(START, END)
    calm = offline_rows(tmp_path / "calm")
    real = Scorer._reading

    def fragile(scorer: Scorer, piece: Any, encoded: Any) -> Any:
        if piece.history.user == "u7":
            raise ValueError("a history nobody can read")
        return real(scorer, piece, encoded)

    monkeypatch.setattr(Scorer, "_reading", fragile)
    with shop_store(tmp_path / "poison", shop_bundle, shuffle=shuffle) as store:
        store.materialize(START, END)
        assert set(online_rows(store, USERS)) == {*USERS} - {"u7"}
    rows = offline_rows(tmp_path / "poison")
    others = calm[calm["shopper_id"] != "u7"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, others, check_exact=True)
    run = only_run(tmp_path / "poison")
    assert (run.users_embedded, run.users_rejected) == (19, 1)
    theirs = pc.sum(pc.equal(make_tables()["orders"]["shopper_id"], "u7")).as_py()
    assert run.events_rejected == theirs
    with Catalog.open(f"sqlite:///{tmp_path / 'poison' / 'anchor.db'}") as catalog:
        letters = {(one.kind, one.reason): one.rows for one in catalog.dead_letters(run.run_id)}
    assert letters == {("event", "scoring_failed"): theirs, ("user", "scoring_failed"): 1}


def test_another_views_question_costs_a_view_nothing(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question whose answer is no number takes a user from the view that asks it, and from no
    other view of the same pass.
    """
    real = Scorer.score

    def broken(scorer: Scorer, histories: Any, texts: Any) -> Any:
        for one in real(scorer, histories, texts):
            if one.user == "u7" and scorer.questions != len(QUERIES):
                one.vectors[:, -1] = float("nan")
            yield one

    def two(repo: Path, bundle: Path) -> list[FeatureView]:
        return [shop_view(repo, bundle), shop_view(repo, bundle, "z_v1", {"bread": "More bread?"})]

    with shop_store(tmp_path / "calm", shop_bundle) as store:
        store.materialize(START, END)
    monkeypatch.setattr(Scorer, "score", broken)
    with shop_store(tmp_path / "two", shop_bundle, views=two) as store:
        store.materialize(START, END)
    rows = offline_rows(tmp_path / "two")
    pd.testing.assert_frame_equal(rows, offline_rows(tmp_path / "calm"), check_exact=True)
    assert set(offline_rows(tmp_path / "two", "z_v1")["shopper_id"]) == {*USERS} - {"u7"}


def test_tables_that_grow_while_they_are_scored_change_nothing(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the local shuffle is complete the events of the run stand still."""
    with shop_store(tmp_path / "calm", shop_bundle) as store:
        store.materialize(START, END)
    real = shard_work.ShardWork.finish

    def growing(work: Any, shard: int, rows: Any) -> int:
        orders = tmp_path / "grows" / "tables" / "orders.parquet"
        pq.write_table(pa.concat_tables([pq.read_table(orders)] * 2), orders)
        return real(work, shard, rows)

    with shop_store(tmp_path / "grows", shop_bundle) as store:
        monkeypatch.setattr(shard_work.ShardWork, "finish", growing)
        store.materialize(START, END)
    rows = offline_rows(tmp_path / "grows")
    pd.testing.assert_frame_equal(rows, offline_rows(tmp_path / "calm"), check_exact=True)


@BOTH
def test_a_run_that_fails_late_can_be_read_nowhere(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch, shuffle: str
) -> None:
    """Three of four shards are done and wait; nobody joins or is served one of their rows."""
    real = shard_work.ShardWork.finish

    def stumbling(work: Any, shard: int, rows: Any) -> int:
        if shard == 3:
            raise OSError("the disk is full")
        return real(work, shard, rows)

    with shop_store(tmp_path, shop_bundle, shuffle=shuffle) as store:
        with monkeypatch.context() as patch:
            patch.setattr(shard_work.ShardWork, "finish", stumbling)
            error = failed(store)
        assert isinstance(error, RunError)
        assert "the disk is full" in str(error)
        assert nothing_to_read(store, tmp_path)
        staged = [*(tmp_path / "sinks" / "taste_v1.staging").rglob("part-*.parquet")]
        assert staged
        before = {path.name: path.stat().st_mtime_ns for path in staged}
        store.materialize(START, END)
        assert len(online_rows(store, USERS)) == 20
    published = {
        path.name: path.stat().st_mtime_ns
        for path in (tmp_path / "sinks" / "taste_v1").rglob("run-*/part-*.parquet")
        if "run-empty" not in str(path)
    }
    assert before.items() <= published.items()  # kept, not computed again
    assert not (tmp_path / "sinks" / "taste_v1.staging").exists()
    assert not [*(tmp_path / "state").glob("shuffle-*")]


def test_both_shuffles_give_the_same_rows(tmp_path: Path, shop_bundle: Path) -> None:
    """Bit for bit, offline and online, with any number of shards."""
    found = []
    for shuffle, shards in (("local", 1), ("local", 7), ("beam", 3)):
        repo = tmp_path / f"{shuffle}{shards}"
        with shop_store(repo, shop_bundle, shuffle=shuffle, shards=shards) as store:
            store.materialize(START, END)
            found.append((offline_rows(repo), online_rows(store, USERS)))
    for rows, served in found[1:]:
        pd.testing.assert_frame_equal(rows, found[0][0], check_exact=True)
        assert served == found[0][1]


def test_a_clock_that_was_set_back_makes_no_row_look_older(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction computed by a slow clock still replaces what it corrects."""
    with shop_store(tmp_path, shop_bundle) as store:
        store.materialize(START, END)
        (first,) = created_in(tmp_path)
        monkeypatch.setattr("time.time_ns", lambda: 1_600_000_000 * 10**9)
        orders = tmp_path / "tables" / "orders.parquet"
        pq.write_table(pq.read_table(orders).slice(1), orders)
        store.materialize(START, END)
    older, newer = created_in(tmp_path)
    assert older == first
    assert newer > older


def created_in(repo: Path) -> list[Any]:
    """The newest created_timestamp of every run, oldest first."""
    runs = (repo / "sinks" / "taste_v1").glob("run-*")
    tables = [pq.read_table(run)["created_timestamp"] for run in runs if run.name != "run-empty"]
    return sorted(pc.max(column).as_py() for column in tables)
