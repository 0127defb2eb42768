"""`feast-anchor backfill`: vectors as of every label, and windows of the past."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from typer.testing import CliRunner

from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.plugin.backfill import Request, backfill, read_labels
from feast_anchor.plugin.catalog import Catalog, RunSummary
from feast_anchor.plugin.cli import app
from shop import END, START, offline_rows, online_rows, repo_of, shop_store, write_repo

STAMP = pa.timestamp("us", tz="UTC")
USERS = [f"u{n}" for n in range(20)]


@pytest.fixture
def store(tmp_path: Path, shop_bundle: Path) -> Iterator[FeatureStore]:
    """An applied store over the shop's tables, nothing computed yet."""
    with shop_store(tmp_path, shop_bundle) as applied:
        yield applied


def write_labels(path: Path, rows: list[tuple[str | None, datetime | None]]) -> Path:
    """A label table with a column that nobody reads."""
    users, moments = zip(*rows, strict=True)
    table = pa.table(
        {
            "shopper_id": pa.array(users, pa.string()),
            "event_timestamp": pa.array(moments, STAMP),
            "bought": pa.array([True] * len(rows)),
        }
    )
    pq.write_table(table, path)
    return path


def only_run(repo: Path) -> RunSummary:
    """The one run in the catalogue."""
    with Catalog.open(f"sqlite:///{repo / 'anchor.db'}") as catalog:
        (run,) = catalog.runs()
    return run


def labels_in(tmp_path: Path) -> Path:
    """Three instants each of ten users, one of them twice, one too early, one of nobody."""
    rng = np.random.default_rng(1)
    span = int((END - START).total_seconds())
    rows: list[tuple[str | None, datetime | None]] = [
        (user, START + timedelta(seconds=int(second)))
        for user in USERS[::2]  # they have a profile, so an event, from the first day on
        for second in rng.integers(span // 2, span, 3)
    ]
    rows += [rows[0], ("u1", START - timedelta(days=9)), ("nobody", END)]
    return write_labels(tmp_path / "labels.parquet", rows)


def test_every_label_gets_the_vector_of_its_own_instant(
    store: FeatureStore, tmp_path: Path
) -> None:
    """Joining the label table back gives each row a vector as of exactly its timestamp."""
    labels = labels_in(tmp_path)
    (outcome,) = backfill(repo_of(store), ["taste_v1"], Request(labels=labels))
    assert outcome.failure is None
    asked = pq.read_table(labels).to_pandas().drop_duplicates(["shopper_id", "event_timestamp"])
    rows = offline_rows(tmp_path)
    assert len(rows) == len(asked) - 2
    assert (rows["history_end"] < rows["event_timestamp"]).all()
    joined = store.get_historical_features(
        entity_df=asked[["shopper_id", "event_timestamp"]], features=["taste_v1:tea"]
    ).to_df()
    without = joined[joined["tea"].isna()]
    assert set(without["shopper_id"]) == {"u1", "nobody"}
    run = only_run(tmp_path)
    assert (run.kind, run.status) == ("backfill", "SUCCEEDED")
    assert (run.labels_in, run.labels_rejected, run.rows_offline) == (32, 2, 30)
    assert (run.users_in, run.users_embedded, run.users_rejected) == (12, 10, 2)
    assert run.events_outside > 0  # of the ten users nobody asked about


def test_a_labels_vector_is_the_one_a_snapshot_at_that_instant_has(
    store: FeatureStore, tmp_path: Path
) -> None:
    """As-of times of one user's own, or of everybody: the same bits."""
    moment = datetime(2024, 2, 5, tzinfo=UTC)  # a Monday: the grid has it
    labels = write_labels(tmp_path / "labels.parquet", [(user, moment) for user in USERS[:7]])
    backfill(repo_of(store), [], Request(labels=labels))
    own = offline_rows(tmp_path).set_index("shopper_id")
    store.materialize(START, END)
    every = offline_rows(tmp_path)
    grid = every[(every["event_timestamp"] == moment)].groupby("shopper_id")["tea"]
    for user, vectors in grid:
        bits = {np.asarray(one).tobytes() for one in vectors}
        assert len(bits) == 1
        if user in own.index:
            assert bits == {np.asarray(own["tea"][user]).tobytes()}


def test_rejected_labels_are_dead_letters_with_their_instant(
    store: FeatureStore, tmp_path: Path
) -> None:
    """Which label got no row, and why."""
    early = START - timedelta(days=9)
    labels = write_labels(tmp_path / "l.parquet", [("u1", early), ("u1", END), ("nobody", END)])
    backfill(repo_of(store), [], Request(labels=labels))
    letters = pa.concat_tables(
        pq.read_table(path) for path in (tmp_path / "state").rglob("dead-*.parquet")
    ).to_pylist()
    found = {(one["user"], one["event_timestamp"], one["rejected"]) for one in letters}
    assert found == {
        ("u1", early, "no_event_before_as_of"),
        ("nobody", END, "no_event_before_as_of"),
        ("nobody", None, "no_usable_event"),
    }
    write_repo(tmp_path)
    listed = CliRunner().invoke(app, ["runs", "--repo", str(tmp_path)], env={"COLUMNS": "200"})
    (row,) = [line for line in listed.output.splitlines() if "taste_v1  backfill" in line]
    assert row.split()[-1] == str(len(letters)) == "3"


def test_a_view_that_is_named_twice_is_run_once(store: FeatureStore, tmp_path: Path) -> None:
    """Else the second run would wait for the lock that the first one holds."""
    labels = write_labels(tmp_path / "l.parquet", [("u1", END)])
    outcomes = backfill(repo_of(store), ["taste_v1", "taste_v1"], Request(labels=labels))
    assert [one.failure for one in outcomes] == [None]


def test_a_backfill_serves_nothing_and_moves_no_watermark(
    store: FeatureStore, tmp_path: Path
) -> None:
    """The past is for training: online rows and Feast's intervals stay as they are."""
    store.materialize(START, END)
    served = online_rows(store, USERS)
    intervals = store.get_feature_view("taste_v1").materialization_intervals
    request = Request(start=START, end=END - timedelta(days=20), snapshots=timedelta(days=3))
    (outcome,) = backfill(repo_of(store), [], request)
    assert outcome.failure is None
    assert online_rows(store, USERS) == served
    assert store.get_feature_view("taste_v1").materialization_intervals == intervals
    assert len(offline_rows(tmp_path)["event_timestamp"].unique()) > 12


def test_a_window_is_filled_with_snapshots(store: FeatureStore, tmp_path: Path) -> None:
    """Every three days, counted from a Monday, and the window's end."""
    end = datetime(2024, 2, 1, 12, tzinfo=UTC)
    request = Request(start=START, end=end, snapshots=timedelta(days=3))
    backfill(repo_of(store), [], request)
    as_ofs = sorted(set(offline_rows(tmp_path)["event_timestamp"]))
    assert as_ofs[-1] == end
    steps = {later - earlier for earlier, later in pairwise(as_ofs[:-1])}
    assert steps == {pd.Timedelta(days=3)}


def test_the_same_labels_again_are_the_same_run(store: FeatureStore, tmp_path: Path) -> None:
    """In another order, with other columns: nothing is computed twice."""
    labels = labels_in(tmp_path)
    backfill(repo_of(store), [], Request(labels=labels))
    rows = offline_rows(tmp_path)
    table = pq.read_table(labels)
    turned = table.select(["event_timestamp", "shopper_id"]).take(list(range(len(table)))[::-1])
    pq.write_table(turned, labels)
    backfill(repo_of(store), [], Request(labels=labels))
    assert offline_rows(tmp_path).equals(rows)
    assert only_run(tmp_path).attempt == 2


def test_labels_come_out_the_same_from_both_shuffles(tmp_path: Path, shop_bundle: Path) -> None:
    """Each user's own as-of times reach the workers whichever way its events do."""
    found = []
    for shuffle in ("local", "beam"):
        with shop_store(tmp_path / shuffle, shop_bundle, shuffle=shuffle) as store:
            labels = labels_in(tmp_path)
            backfill(repo_of(store), [], Request(labels=labels))
            found.append(offline_rows(tmp_path / shuffle))
    assert len(found[0]) == 30
    pd.testing.assert_frame_equal(found[0], found[1], check_exact=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u1", None)], r"of which null: .*'event_timestamp': 1"),
        ([(None, END)], r"of which null: .*'shopper_id': 1"),
    ],
)
def test_labels_that_name_nobody_or_no_instant_are_refused(
    tmp_path: Path, rows: list[tuple[str | None, datetime | None]], message: str
) -> None:
    """Before any work, with the number of rows."""
    with pytest.raises(SourceError, match=message):
        read_labels(write_labels(tmp_path / "labels.parquet", rows), "shopper_id")


def test_labels_without_a_time_zone_are_refused(tmp_path: Path) -> None:
    """An instant nobody can place could read one event too many."""
    table = pa.table({"shopper_id": ["u1"], "event_timestamp": [datetime(2024, 1, 9)]})  # noqa: DTZ001
    pq.write_table(table, tmp_path / "labels.parquet")
    with pytest.raises(SourceError, match="expected a timestamp with a time zone"):
        read_labels(tmp_path / "labels.parquet", "shopper_id")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either --labels, or --start and --end"),
        ({"end": END}, "--end needs --start"),
        ({"labels": Path("x"), "end": END}, "give either --labels, or"),
        ({"labels": Path("x"), "start": START}, "says every instant itself"),
    ],
)
def test_a_request_is_for_labels_or_for_a_window(given: dict[str, object], message: str) -> None:
    """Half a request is refused with what is missing."""
    with pytest.raises(SpecError, match=message):
        Request(**given)  # type: ignore[arg-type]


def test_an_unknown_view_is_refused_with_those_there_are(store: FeatureStore) -> None:
    """A misspelt name says what could have been meant."""
    with pytest.raises(SpecError, match=r"no applied scenario view is named \['tast'\].*taste_v1"):
        backfill(repo_of(store), ["tast"], Request(start=START, end=END))


def test_the_command_explains_what_it_needs(tmp_path: Path) -> None:
    """Without a repo there is one line to read, and no traceback."""
    given = ["backfill", "--repo", str(tmp_path), "--start", "2024-01-01", "--end", "2024-02-01"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    assert "no feature_store.yaml in" in result.stderr
