"""`feast-anchor plan` says what a run will do, and does nothing of it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore
from typer.testing import CliRunner, Result

from feast_anchor.onnx_export.errors import SourceError, SpaceError, SpecError
from feast_anchor.plugin.backfill import Request, backfill
from feast_anchor.plugin.catalog_records import RunSummary
from feast_anchor.plugin.cli import app
from feast_anchor.plugin.estimates import Estimate
from feast_anchor.plugin.plans import plan_runs
from feast_anchor.plugin.repo import Repo
from shop import (
    END,
    QUERIES,
    SHARDS,
    START,
    make_tables,
    orders,
    shop_store,
    shop_view,
    write_repo,
)

WINDOW = Request(start=START, end=END)
WIDE = {"COLUMNS": "200"}


def broken_tables() -> dict[str, pa.Table]:
    """The shop's tables with a null key, a null time, a bad amount, and a user of bad rows only."""
    tables = make_tables()
    good = {"event_timestamp": START, "item": "soap", "aisle": "home", "spend": 1.0}
    rows = [
        {**good, "shopper_id": None},
        {**good, "shopper_id": "u1", "event_timestamp": None},
        {**good, "shopper_id": "u2", "spend": float("nan")},
        {**good, "shopper_id": "broken", "spend": float("inf")},
    ]
    tables["orders"] = pa.concat_tables([tables["orders"], orders(rows)])
    return tables


def repo_of(folder: Path, store: FeatureStore) -> Repo:
    """The applied shop as our commands see it."""
    write_repo(folder)
    return Repo.open(folder)


def only(found: list[Estimate]) -> Estimate:
    """The one pass there is."""
    (one,) = found
    return one


def last_run(repo: Repo) -> RunSummary:
    """The newest run of the catalogue."""
    with repo.catalog() as catalog:
        return catalog.runs()[0]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_plan_says_what_the_run_then_does(shop_bundle: Path, tmp_path: Path) -> None:
    """Where the sample is everybody, every count is the run's own, and nothing was written."""
    with shop_store(tmp_path, shop_bundle, broken_tables()) as store:
        repo = repo_of(tmp_path, store)
        before = files(tmp_path)
        plan = only(plan_runs(repo, [], WINDOW))
        assert files(tmp_path) == before
        assert not (tmp_path / "anchor.db").exists()

        store.materialize(START, END)
        run = last_run(repo)

    assert plan.run_ids == (run.run_id,)
    assert plan.estimated == ()
    assert (plan.users, plan.users_embedded) == (run.users_in, run.users_embedded)
    assert (sum(plan.events.values()), plan.events_rejected) == (run.events_in, run.events_rejected)
    assert (plan.rows, plan.rows_online) == (run.rows_offline, run.rows_online)
    assert plan.vectors == plan.rows * len(QUERIES)
    assert plan.as_of_times == 9
    assert (plan.shards, plan.shards_done) == (SHARDS, 0)
    written = sum(p.stat().st_size for p in (tmp_path / "sinks").rglob(f"run-{run.run_id}/*"))
    assert plan.sink_bytes == pytest.approx(written, rel=0.1)
    assert all(seconds > 0 for seconds in plan.seconds.values())


def test_a_plan_of_a_sample_is_near(shop_bundle: Path, tmp_path: Path) -> None:
    """With many users a part is looked at; exact counts stay exact and the others come near."""
    with shop_store(tmp_path, shop_bundle, make_tables(users=700)) as store:
        repo = repo_of(tmp_path, store)
        plan = only(plan_runs(repo, ["taste_v1"], WINDOW))
        store.materialize(START, END)
        run = last_run(repo)

    assert 400 < plan.sampled_users < 700
    assert plan.users == run.users_in == 700
    assert {"rows", "users_embedded", "vectors"} <= set(plan.estimated)
    assert plan.rows == pytest.approx(run.rows_offline, rel=0.1)


def test_labels_are_planned_as_they_are_run(shop_bundle: Path, tmp_path: Path) -> None:
    """Labels in, rows out; nothing goes online; what is asked twice is planned once."""
    labels = tmp_path / "labels.parquet"
    moments = [END, END - timedelta(days=20), START - timedelta(days=60), END]
    frame = pd.DataFrame({"shopper_id": ["u1", "u2", "u3", "u1"], "event_timestamp": moments})
    frame.to_parquet(labels)
    with shop_store(tmp_path, shop_bundle) as store:
        repo = repo_of(tmp_path, store)
        plan = only(plan_runs(repo, [], Request(labels=labels)))
        assert backfill(repo, [], Request(labels=labels))[0].failure is None
        run = last_run(repo)

    assert plan.run_ids == (run.run_id,)
    assert (plan.users, plan.users_embedded) == (run.users_in, run.users_embedded) == (3, 2)
    assert (plan.as_of_times, plan.rows) == (run.labels_in, run.rows_offline) == (3, 2)
    assert plan.rows_online == 0
    assert plan.seconds["online write"] == 0


def test_what_is_done_is_not_planned_again(shop_bundle: Path, tmp_path: Path) -> None:
    """Finished shards cost nothing any more; a scenario that was added costs itself only."""
    with shop_store(tmp_path, shop_bundle) as store:
        repo = repo_of(tmp_path, store)
        store.materialize(START, END)
        done = only(plan_runs(repo, [], WINDOW))
        assert done.shards_done == SHARDS
        assert done.seconds["score"] == done.seconds["read and shuffle"] == 0
        queries = {**QUERIES, "bread": "Will this shopper buy bread next month?"}
        store.apply([shop_view(tmp_path, shop_bundle, queries=queries)])
        more = only(plan_runs(repo, [], WINDOW))
    assert more.taken_over == (f"tea, churn of run {done.run_ids[0]}",)
    assert more.vectors == 3 * more.rows
    assert more.sink_bytes > done.sink_bytes


def test_what_a_run_refuses_a_plan_refuses(shop_bundle: Path, tmp_path: Path) -> None:
    """A missing table, an odd window and a changed question are found without a run."""
    with shop_store(tmp_path, shop_bundle) as store:
        repo = repo_of(tmp_path, store)
        with pytest.raises(SpecError, match="swap the two"):
            plan_runs(repo, [], Request(start=END, end=START))
        with pytest.raises(SpecError, match="no applied scenario view"):
            plan_runs(repo, ["taste_v9"], WINDOW)
        store.materialize(START, END)

        queries = {**QUERIES, "tea": "Will they buy tea?"}
        store.apply([shop_view(tmp_path, shop_bundle, queries=queries, sink=tmp_path / "other")])
        with pytest.raises(SpaceError, match="under this name before"):
            plan_runs(repo, [], WINDOW)
        (tmp_path / "tables" / "orders.parquet").unlink()
        with pytest.raises(SourceError, match=r"orders\.parquet"):
            plan_runs(repo, [], WINDOW)


def plan(repo: Path, *arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["plan", "--repo", str(repo), *arguments], env=WIDE)


def test_the_command_prints_for_people_and_for_machines(shop_bundle: Path, tmp_path: Path) -> None:
    """A table with counts, times and bytes; a JSON list; one line for a mistake."""
    window = ["--start", "2024-01-01", "--end", "2024-03-01"]
    with shop_store(tmp_path, shop_bundle) as store:
        repo_of(tmp_path, store)
        shown = plan(tmp_path, *window)
        told = plan(tmp_path, *window, "--json")
        wrong = plan(tmp_path, "--end", "2024-03-01")
    assert shown.exit_code == 0, shown.output
    for words in ("taste_v1: run", "read and shuffle", "feast materialize", "in the sink"):
        assert words in shown.output
    (found,) = json.loads(told.stdout)
    assert found["views"] == ["taste_v1"]
    assert found["materialize_seconds"] >= found["backfill_seconds"] > 0
    assert wrong.exit_code == 1
    assert "--end needs --start" in wrong.stderr
