"""The engine end to end: real Feast, real Beam, real ONNX Runtime, embedded stores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.types import Float64, String
from safetensors.numpy import save_file

from feast_anchor.onnx_export.bundle import Bundle, seal
from feast_anchor.onnx_export.errors import (
    AnchorError,
    BundleError,
    RunError,
    SourceError,
    SpaceError,
    SpecError,
)
from feast_anchor.onnx_export.manifest import PROMPTS_FILE, read_manifest
from feast_anchor.plugin import Scenario, scenario_view, to_numpy
from feast_anchor.plugin.catalog import Catalog
from feast_anchor.plugin.spec import SPACE_TAG, TAG
from feast_anchor.transforms import pipeline
from feast_anchor.transforms.scoring import Scorer
from feast_anchor.transforms.shards import partition
from feast_anchor.transforms.zeroshot import Answers, score_axes, scores
from services.valkey import ValkeyServer
from shop import (
    END,
    QUERIES,
    START,
    config,
    entity,
    make_tables,
    modalities,
    offline_rows,
    online_rows,
    orders,
    profile_rows,
    shop_store,
    shop_view,
    write_bundle,
    write_tables,
)

USERS = [f"u{n}" for n in range(20)]


def materialize(store: FeatureStore, start: datetime = START, end: datetime = END) -> None:
    """What `feast materialize` does."""
    store.materialize(start, end)


def catalogue(repo: Path) -> Catalog:
    """The repo's catalogue."""
    return Catalog.open(f"sqlite:///{repo / 'anchor.db'}")


def interval_ends(store: FeatureStore, view: str = "taste_v1") -> list[datetime]:
    """Ends of the intervals that Feast believes are materialized."""
    return [end for _, end in store.get_feature_view(view).materialization_intervals]


def naive(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps without their time zone, as pandas writes them by default."""
    return column.cast(pa.timestamp("us"))


def vectors_of(frame: pd.DataFrame, name: str) -> np.ndarray[Any, Any]:
    """A column of vectors as a matrix."""
    return np.stack(frame[name].tolist())


def test_a_view_is_computed_served_and_joined(tmp_path: Path, shop_bundle: Path) -> None:
    """Unit vectors of the declared size come back online and from a training-set join."""
    with shop_store(tmp_path, shop_bundle) as store:
        materialize(store)
        features = [f"taste_v1:{name}" for name in (*QUERIES, "history_end")]
        response = store.get_online_features(
            features=features, entity_rows=[{"shopper_id": user} for user in [*USERS, "nobody"]]
        )
        online = to_numpy(response, "taste_v1:tea")
        assert online.shape == (21, 128)
        assert np.isnan(online[-1]).all()
        np.testing.assert_allclose(np.linalg.norm(online[:-1], axis=1), 1, atol=1e-6)
        asked = pd.DataFrame({"shopper_id": USERS, "event_timestamp": [END] * len(USERS)})
        joined = store.get_historical_features(entity_df=asked, features=features).to_df()
        joined = joined.set_index("shopper_id").loc[USERS]
        assert vectors_of(joined, "tea").tobytes() == online[:-1].tobytes()
        assert (joined["history_end"] < joined["event_timestamp"]).all()
        assert interval_ends(store) == [END]


def test_scores_are_read_off_the_vectors_they_stand_beside(
    tmp_path: Path, shop_bundle: Path
) -> None:
    """Joined, in the sink and online: the mean cosine to the one answers minus that to the others.

    A view without scores over the same questions shares the pass and has the same vectors.
    """
    positive = ["yes, green tea", "often, drinks"]

    def two(repo: Path, bundle: Path) -> list[FeatureView]:
        tea = Scenario("tea", QUERIES["tea"], positive=positive, negative=["no"], score=True)
        churn = Scenario("churn", QUERIES["churn"], score=True)
        scored = scenario_view(
            name="scored_v1",
            entity=entity(),
            events=modalities(repo / "tables"),
            scenarios=[tea, churn],
            bundle=bundle,
            sink=repo / "sinks" / "scored_v1",
            snapshots="7d",
        )
        return [shop_view(repo, bundle), scored]

    with shop_store(tmp_path, shop_bundle, views=two) as store:
        materialize(store)
        features = [f"scored_v1:{field}" for field in ("tea", "tea_score", "churn_score")]
        response = store.get_online_features(
            features=features, entity_rows=[{"shopper_id": user} for user in USERS]
        )
        asked = pd.DataFrame({"shopper_id": USERS, "event_timestamp": [END] * len(USERS)})
        joined = store.get_historical_features(entity_df=asked, features=features).to_df()
    rows = offline_rows(tmp_path, "scored_v1")
    bundle = Bundle.open(shop_bundle)
    sides = {"tea": (positive, ["no"]), "churn": (["yes"], ["no"])}
    for name, (yes, no) in sides.items():
        vectors, found = vectors_of(rows, name), rows[f"{name}_score"].to_numpy()
        cosines = [vectors @ bundle.answer_vectors(side).T for side in (yes, no)]
        expected = cosines[0].mean(axis=1) - cosines[1].mean(axis=1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        answers = Answers(tuple(sorted(yes)), tuple(no))
        assert found.tobytes() == scores(vectors, score_axes(bundle, [answers])[answers]).tobytes()
        assert found.dtype == np.float32
        assert len(np.unique(found)) > 20
        newest = rows[rows["event_timestamp"] == END].set_index("shopper_id")[f"{name}_score"]
        online = to_numpy(response, f"scored_v1:{name}_score")
        assert online[:, 0].tobytes() == newest.loc[USERS].to_numpy().tobytes()
        both = joined.set_index("shopper_id").loc[USERS, f"{name}_score"].to_numpy()
        assert both.astype(np.float32).tobytes() == online[:, 0].tobytes()
        plain = offline_rows(tmp_path)
        assert vectors_of(plain, name).tobytes() == vectors.tobytes()
    with catalogue(tmp_path) as catalog:
        fields = {space.field: space.dim for space in catalog.spaces(view="scored_v1")}
    assert fields == {"tea": 128, "tea_score": 1, "churn": 128, "churn_score": 1}


def test_every_row_carries_its_three_times(tmp_path: Path, shop_bundle: Path) -> None:
    """history_end < event_timestamp <= created_timestamp on every row, and as-ofs on the grid."""
    with shop_store(tmp_path, shop_bundle) as store:
        materialize(store)
    parts = sorted((tmp_path / "sinks" / "taste_v1").glob("run-*/part-*.parquet"))
    rows = pa.concat_tables([pq.read_table(part) for part in parts])
    assert rows.num_rows > 100
    assert pc.all(pc.less(rows["history_end"], rows["event_timestamp"])).as_py()
    assert pc.all(pc.less(rows["event_timestamp"], rows["created_timestamp"])).as_py()
    as_ofs = set(rows["event_timestamp"].to_pylist())
    assert max(as_ofs) == END
    assert {moment.weekday() for moment in as_ofs - {END}} == {0}


def test_events_at_or_after_the_as_of_change_no_vector(tmp_path: Path, shop_bundle: Path) -> None:
    """Replacing or removing every event from an instant on changes no row before it by a bit."""
    cut = datetime(2024, 2, 5, tzinfo=START.tzinfo)  # a Monday: a snapshot falls on it
    tables = make_tables()
    before = pc.less(tables["orders"]["event_timestamp"], pa.scalar(cut, pa.timestamp("us", "UTC")))
    changed = orders(
        [
            {"shopper_id": user, "event_timestamp": cut + timedelta(seconds=n), "item": "soap",
             "aisle": "home", "spend": 99.0}
            for n, user in enumerate(USERS)
        ]
    )  # fmt: skip
    kept = tables["orders"].filter(before)
    replaced = {**tables, "orders": pa.concat_tables([kept, changed])}
    removed = {**tables, "orders": kept}
    rows = []
    for name, data in (("a", tables), ("b", replaced), ("c", removed)):
        repo = tmp_path / name
        repo.mkdir()
        with shop_store(repo, shop_bundle, data) as store:
            materialize(store)
        found = offline_rows(repo)
        rows.append(found[found["event_timestamp"] <= cut].reset_index(drop=True))
    assert len(rows[0]) > 50
    for other in rows[1:]:
        for name in QUERIES:
            assert vectors_of(rows[0], name).tobytes() == vectors_of(other, name).tobytes()
        assert rows[0].drop(columns=[*QUERIES]).equals(other.drop(columns=[*QUERIES]))
    late = offline_rows(tmp_path / "a")["history_end"].max()
    assert late > cut  # the events that were replaced do matter to later rows


def test_a_user_alone_gets_the_same_bits_as_in_company(tmp_path: Path, shop_bundle: Path) -> None:
    """Rows of one user do not depend on the other users, the shard count or the row order."""
    tables = make_tables()
    alone = {
        name: table.filter(pc.equal(table["shopper_id"], "u3")) for name, table in tables.items()
    }
    alone["orders"] = alone["orders"].take(list(range(alone["orders"].num_rows))[::-1])
    (tmp_path / "all").mkdir()
    (tmp_path / "one").mkdir()
    with shop_store(tmp_path / "all", shop_bundle, tables) as store:
        materialize(store)
    with shop_store(tmp_path / "one", shop_bundle, alone, shards=1, threads=1) as store:
        materialize(store)
    found = offline_rows(tmp_path / "all")
    found = found[found["shopper_id"] == "u3"].reset_index(drop=True)
    single = offline_rows(tmp_path / "one")
    assert len(single) == len(found) > 3
    for name in QUERIES:
        assert vectors_of(single, name).tobytes() == vectors_of(found, name).tobytes()


def test_broken_rows_go_to_the_dead_letter_and_the_books_balance(
    tmp_path: Path, shop_bundle: Path
) -> None:
    """A null key, a null time, a NaN amount and a null text are each rejected with a reason."""
    good = {"event_timestamp": START, "item": "soap", "aisle": "home", "spend": 1.0}
    bad = orders(
        [
            {**good, "shopper_id": None},
            {**good, "shopper_id": "u0", "event_timestamp": None},
            {**good, "shopper_id": "u0", "spend": float("nan")},
            {**good, "shopper_id": "broken", "item": None, "aisle": None},
            {**good, "shopper_id": "late", "event_timestamp": END},
        ]
    )
    tables = make_tables()
    tables["orders"] = pa.concat_tables([tables["orders"], bad])
    with shop_store(tmp_path, shop_bundle, tables) as store:
        materialize(store)
    with catalogue(tmp_path) as catalog:
        (run,) = catalog.runs()
        letters = catalog.dead_letters(run.run_id)
    assert {(letter.kind, letter.reason): letter.rows for letter in letters} == {
        ("event", "null_key"): 1,
        ("event", "null_timestamp"): 1,
        ("event", "amount_not_finite"): 1,
        ("event", "no_text"): 1,
        ("user", "no_usable_event"): 1,
        ("user", "no_event_before_as_of"): 1,
    }
    assert run.events_in == sum(table.num_rows for table in tables.values())
    out = run.events_used + run.events_rejected + run.events_outside + run.events_over_budget
    assert run.events_in == out
    assert run.users_in == run.users_embedded + run.users_rejected == 22
    stored = pd.concat(pd.read_parquet(letter.path) for letter in letters if letter.path)
    assert set(stored.loc[stored["kind"] == "user", "user"]) == {"broken", "late"}
    assert online_rows(store, ["broken", "late"]) == {}


def test_ten_thousand_events_of_one_user_are_read_up_to_the_budget(
    tmp_path: Path, shop_bundle: Path
) -> None:
    """The newest events are read, the rest is counted as over budget, and a vector comes out."""
    many = orders(
        [
            {"shopper_id": "whale", "event_timestamp": START + timedelta(seconds=n),
             "item": "soap", "aisle": "home", "spend": 1.0}
            for n in range(10_000)
        ]
    )  # fmt: skip
    with shop_store(tmp_path, shop_bundle, {"orders": many, "profiles": profile_rows([])}) as store:
        materialize(store)
    with catalogue(tmp_path) as catalog:
        (run,) = catalog.runs()
    assert (run.events_used, run.events_over_budget) == (16, 9_984)
    assert len(online_rows(store, ["whale"])) == 1


def test_an_empty_table_gives_no_rows_and_no_failure(tmp_path: Path, shop_bundle: Path) -> None:
    """Nothing in, nothing out: the run succeeds with zero rows and can be joined."""
    empty = {"orders": orders([]), "profiles": profile_rows([])}
    with shop_store(tmp_path, shop_bundle, empty) as store:
        materialize(store)
        asked = pd.DataFrame({"shopper_id": ["u0"], "event_timestamp": [END]})
        joined = store.get_historical_features(entity_df=asked, features=["taste_v1:tea"]).to_df()
    assert joined["tea"].isna().all()
    assert len(offline_rows(tmp_path)) == 0


def test_an_empty_window_serves_the_state_at_its_end(tmp_path: Path, shop_bundle: Path) -> None:
    """A window of no length computes one as-of; one before all events rejects every user."""
    with shop_store(tmp_path, shop_bundle) as store:
        materialize(store, END, END)
        assert set(offline_rows(tmp_path)["event_timestamp"]) == {pd.Timestamp(END)}
        early = START - timedelta(days=10)
        materialize(store, early, early)
        assert (offline_rows(tmp_path)["event_timestamp"] == early).sum() == 0


def test_a_view_can_be_joined_before_its_first_run(tmp_path: Path, shop_bundle: Path) -> None:
    """After apply alone, a training-set join works and finds nothing."""
    with shop_store(tmp_path, shop_bundle) as store:
        asked = pd.DataFrame({"shopper_id": USERS, "event_timestamp": [END] * len(USERS)})
        joined = store.get_historical_features(entity_df=asked, features=["taste_v1:tea"]).to_df()
    assert len(joined) == len(USERS)
    assert joined["tea"].isna().all()


def test_two_views_over_the_same_events_share_one_pass(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pipeline run answers both views, each with its own rows and its own run."""
    jobs = []
    real = pipeline.run_job

    def count(job: Any, *rest: Any) -> None:
        jobs.append(job)
        real(job, *rest)

    monkeypatch.setattr(pipeline, "run_job", count)

    def two(repo: Path, bundle: Path) -> list[FeatureView]:
        return [
            shop_view(repo, bundle),
            shop_view(repo, bundle, "other_v1", {"bread": "Will this shopper buy bread?"}),
        ]

    with shop_store(tmp_path, shop_bundle, views=two) as store:
        materialize(store)
    assert [[run.view for run in job.views] for job in jobs] == [["taste_v1", "other_v1"]]
    assert len(offline_rows(tmp_path)) == len(offline_rows(tmp_path, "other_v1")) > 0
    assert len(online_rows(store, USERS, "other_v1", "bread")) == 20


def test_views_that_are_not_ours_go_to_feasts_own_engine(tmp_path: Path, shop_bundle: Path) -> None:
    """A ranking view in the same repo is materialized as if our engine were not there."""
    stats = pa.table(
        {
            "shopper_id": ["u0", "u1"],
            "event_timestamp": pa.array([START, START], pa.timestamp("us", "UTC")),
            "spend_28d": [1.5, 2.5],
        }
    )
    write_tables(tmp_path / "tables", {"stats": stats})

    def both(repo: Path, bundle: Path) -> list[FeatureView]:
        ranking = FeatureView(
            name="stats",
            entities=[entity()],
            source=FileSource(
                path=str(repo / "tables" / "stats.parquet"), timestamp_field="event_timestamp"
            ),
            schema=[Field(name="shopper_id", dtype=String), Field(name="spend_28d", dtype=Float64)],
        )
        return [ranking, shop_view(repo, bundle)]

    with shop_store(tmp_path, shop_bundle, views=both) as store:
        materialize(store)
        found = store.get_online_features(
            features=["stats:spend_28d", "taste_v1:tea"], entity_rows=[{"shopper_id": "u1"}]
        ).to_dict()
    assert found["spend_28d"] == [2.5]
    assert len(found["tea"][0]) == 128


def test_a_rerun_computes_nothing_and_refills_the_online_store(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same window again scores no user, adds no row, and serves what was emptied."""
    with shop_store(tmp_path, shop_bundle) as store:
        materialize(store)
        rows, served = offline_rows(tmp_path), online_rows(store, USERS)
        (tmp_path / "online.db").unlink()
    with shop_store(tmp_path, shop_bundle, {}) as store:
        assert online_rows(store, USERS) == {}
        monkeypatch.setattr(Scorer, "score", lambda *_: pytest.fail("scored a finished shard"))
        materialize(store)
        assert online_rows(store, USERS) == served
        assert offline_rows(tmp_path).equals(rows)


def test_a_worker_that_dies_fails_the_job_and_a_rerun_finishes_it(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception amid a shard reaches Feast with its cause; the watermark stays; then resume."""
    real = Scorer._reading
    burning = {"u7"}

    def sometimes(scorer: Scorer, piece: Any, encoded: Any) -> Any:
        if piece.history.user in burning:
            raise OSError("the disk is on fire")
        return real(scorer, piece, encoded)

    monkeypatch.setattr(Scorer, "_reading", sometimes)
    with shop_store(tmp_path, shop_bundle) as store:
        with pytest.raises(RunError, match=r"the disk is on fire.*run the same command to resume"):
            materialize(store)
        assert interval_ends(store) == []
        with catalogue(tmp_path) as catalog:
            assert [(run.status, run.attempt) for run in catalog.runs()] == [("FAILED", 1)]
        burning.clear()
        materialize(store)
        assert interval_ends(store) == [END]
        with catalogue(tmp_path) as catalog:
            assert [(run.status, run.attempt) for run in catalog.runs()] == [("SUCCEEDED", 2)]
        assert len(online_rows(store, USERS)) == 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda t: t.drop_columns("aisle"),
            SourceError,
            r"orders.parquet has no column \['aisle'\]",
        ),
        (
            lambda t: t.set_column(1, "event_timestamp", naive(t["event_timestamp"])),
            SourceError,
            "without a time zone; write it as",
        ),
        (
            lambda t: t.set_column(4, "spend", pc.cast(t["spend"], pa.string())),
            SourceError,
            "expected a number because it is declared as the amount",
        ),
    ],
)
def test_a_table_that_is_not_as_declared_fails_the_job_before_any_work(
    tmp_path: Path, shop_bundle: Path, change: Any, error: type[AnchorError], message: str
) -> None:
    """The error names file and column, nothing is written, and the watermark stays."""
    tables = make_tables()
    tables["orders"] = change(tables["orders"])
    with shop_store(tmp_path, shop_bundle, tables) as store:
        with pytest.raises(error, match=message):
            materialize(store)
        assert interval_ends(store) == []
    assert not (tmp_path / "anchor.db").exists()


def test_a_replaced_bundle_is_refused(tmp_path: Path, shop_bundle: Path) -> None:
    """Another model under the same path fails the job instead of mixing embedding spaces."""
    bundle = shutil.copytree(shop_bundle, tmp_path / "model")
    with shop_store(tmp_path, bundle) as store:
        materialize(store)
        rows = offline_rows(tmp_path)
        write_bundle(tmp_path / "model", seed=1)
        with pytest.raises(BundleError, match="declared with another model"):
            materialize(store, START, END + timedelta(days=7))
        assert offline_rows(tmp_path).equals(rows)
        with pytest.raises(SpaceError, match=r"would mix embedding spaces.*taste_v1_v2"):
            store.apply([shop_view(tmp_path, bundle)])


def test_a_bundle_of_another_dimension_is_refused(tmp_path: Path, shop_bundle: Path) -> None:
    """A view declared for 128 numbers does not run with a bundle that makes 64."""
    bundle = shutil.copytree(shop_bundle, tmp_path / "model")
    with shop_store(tmp_path, bundle) as store:
        write_bundle(tmp_path / "model", embedding=64)
        with pytest.raises(BundleError, match="declares vectors of 128 numbers.* makes 64"):
            materialize(store)


def test_a_tampered_bundle_is_refused(tmp_path: Path, shop_bundle: Path) -> None:
    """One changed byte in a graph fails the job with the file's name."""
    bundle = shutil.copytree(shop_bundle, tmp_path / "model")
    with shop_store(tmp_path, bundle) as store:
        graph = bundle / "suffix.onnx"
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(bytes(data))
        with pytest.raises(BundleError, match=r"suffix\.onnx was changed"):
            materialize(store)


def test_spaces_are_recorded_in_the_catalogue_and_on_the_fields(
    tmp_path: Path, shop_bundle: Path
) -> None:
    """The fingerprint of each field is the same in registry, catalogue and Parquet schema."""
    with shop_store(tmp_path, shop_bundle) as store:
        materialize(store)
        fields = {field.name: field for field in store.get_feature_view("taste_v1").features}
    with catalogue(tmp_path) as catalog:
        recorded = {space.field: space.fingerprint for space in catalog.spaces(view="taste_v1")}
    part = next((tmp_path / "sinks" / "taste_v1").glob("run-*/part-*.parquet"))
    schema = pq.read_schema(part)
    stored = {name: schema.field(name).metadata[b"space"].decode() for name in QUERIES}
    assert recorded == stored == {name: fields[name].tags[SPACE_TAG] for name in QUERIES}
    assert len(set(recorded.values())) == len(QUERIES)


def test_a_misspelt_setting_is_refused(tmp_path: Path, shop_bundle: Path) -> None:
    """An unknown engine setting raises an error that lists the settings there are."""
    with pytest.raises(SpecError, match=r"shardz.*Settings are .*'shards'"):
        FeatureStore(config=config(tmp_path, shardz=3))._get_provider().batch_engine  # type: ignore[attr-defined]  # noqa: B018


def test_vectors_reach_a_real_redis_compatible_store(
    tmp_path: Path, shop_bundle: Path, valkey: ValkeyServer
) -> None:
    """The same vectors, bit for bit, come back from Valkey as from SQLite."""
    online = {"type": "redis", "connection_string": valkey.connection_string}
    (tmp_path / "redis").mkdir()
    (tmp_path / "sqlite").mkdir()
    with shop_store(tmp_path / "redis", shop_bundle, online=online) as store:
        materialize(store)
        served = online_rows(store, USERS)
    with shop_store(tmp_path / "sqlite", shop_bundle) as store:
        materialize(store)
        assert online_rows(store, USERS) == served
    assert len(served) == 20


def test_a_runner_that_loses_rows_is_found_out(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the shards see fewer rows than the files hold, the job fails and the watermark stays."""

    def lossy(table: pa.Table, shards: int) -> Iterator[tuple[int, pa.Table]]:
        yield from partition(table.slice(1), shards)

    monkeypatch.setattr(pipeline, "partition", lossy)
    with shop_store(tmp_path, shop_bundle, shuffle="beam") as store:
        with pytest.raises(RunError, match=r"read \d+ rows but its shards saw \d+"):
            materialize(store)
        assert interval_ends(store) == []


def test_files_that_change_after_planning_fail_the_run_and_leave_no_rows(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run id speaks for the planned files: other rows are taken back, and a rerun is clean."""
    real = pipeline.run_job

    def rewrite_first(job: Any, *rest: Any) -> None:
        write_tables(tmp_path / "tables", make_tables(users=10, seed=1))
        real(job, *rest)

    with shop_store(tmp_path, shop_bundle) as store:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "run_job", rewrite_first)
            with pytest.raises(RunError, match="the event tables changed after it was planned"):
                materialize(store)
        assert len(offline_rows(tmp_path)) == 0
        assert interval_ends(store) == []
        materialize(store)
    assert set(offline_rows(tmp_path)["shopper_id"]) == {f"u{n}" for n in range(10)}


def test_a_view_with_a_new_sink_is_computed_into_it(tmp_path: Path, shop_bundle: Path) -> None:
    """Finished shards count only where their rows are: another sink gets all of them."""
    with shop_store(tmp_path, shop_bundle) as store:
        materialize(store)
        rows = offline_rows(tmp_path)
        other = FileSource(
            path=str(tmp_path / "sinks" / "elsewhere"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        )
        store.apply([shop_view(tmp_path, shop_bundle, sink=other)])
        materialize(store)
    assert offline_rows(tmp_path, "elsewhere").equals(rows)


def test_a_changed_question_needs_a_new_view_name(tmp_path: Path, shop_bundle: Path) -> None:
    """Even with a new sink, a field that stood for another question is refused: online rows of
    the old question are still served under its name.
    """
    with shop_store(tmp_path, shop_bundle) as store:
        materialize(store)
        served = online_rows(store, USERS)
        asked = {"tea": "Will this shopper buy bread?"}
        store.apply([shop_view(tmp_path, shop_bundle, queries=asked, sink=tmp_path / "new")])
        with pytest.raises(SpaceError, match=r"field 'tea': vectors of another embedding space"):
            materialize(store, START, START + timedelta(days=14))
        assert online_rows(store, USERS) == served


def test_a_retuned_prompt_is_refused(tmp_path: Path, shop_bundle: Path) -> None:
    """A soft prompt that changed after the view was declared is another space."""
    bundle = shutil.copytree(shop_bundle, tmp_path / "model")
    retune(bundle, 0.1)

    def prompted(repo: Path, folder: Path) -> list[FeatureView]:
        scenario = Scenario("tea", QUERIES["tea"], prompt="tuned")
        return [
            scenario_view(
                name="taste_v1",
                entity=entity(),
                events=modalities(repo / "tables"),
                scenarios=[scenario],
                bundle=folder,
                sink=repo / "sinks" / "taste_v1",
            )
        ]

    with shop_store(tmp_path, bundle, views=prompted) as store:
        materialize(store)
        retune(bundle, 0.2)
        with pytest.raises(SpaceError, match="now puts it in another embedding space"):
            materialize(store)


def test_one_views_trouble_does_not_take_the_others_with_it(
    tmp_path: Path, shop_bundle: Path
) -> None:
    """A view whose events are gone fails alone; the other view of the same call is computed."""

    def two(repo: Path, bundle: Path) -> list[FeatureView]:
        return [shop_view(repo, bundle), shop_view(repo, bundle, "other_v1")]

    with shop_store(tmp_path, shop_bundle, views=two) as store:
        broken = store.get_feature_view("other_v1")
        broken.tags[TAG] = broken.tags[TAG].replace('"view":"orders"', '"view":"gone"')
        store.registry.apply_feature_view(broken, "shop")
        with pytest.raises(Exception, match="gone"):
            materialize(store)
        assert interval_ends(store) == [END]
        assert interval_ends(store, "other_v1") == []
        assert len(online_rows(store, USERS)) == 20


def retune(bundle: Path, value: float) -> None:
    """Give a bundle a soft prompt of two rows and seal it again."""
    manifest = read_manifest(bundle)
    prompt = np.full((2, manifest.dims.hidden), value, dtype=np.float32)
    save_file({"tuned": prompt}, bundle / PROMPTS_FILE)
    seal(bundle, manifest)


def test_a_refused_view_leaves_the_others_of_its_pass_alone(
    tmp_path: Path, shop_bundle: Path
) -> None:
    """Of two views in one pass, the one whose question changed fails and the other is computed."""

    def views(repo: Path, bundle: Path, asked: str) -> list[FeatureView]:
        changed = shop_view(repo, bundle, "other_v1", {"bread": asked}, sink=repo / asked[:4])
        return [shop_view(repo, bundle), changed]

    later = END + timedelta(days=7)

    def first(repo: Path, bundle: Path) -> list[FeatureView]:
        return views(repo, bundle, "More bread?")

    with shop_store(tmp_path, shop_bundle, views=first) as store:
        materialize(store)
        store.apply([*views(tmp_path, shop_bundle, "Less bread?")])
        with pytest.raises(SpaceError, match="'other_v1', field 'bread'"):
            materialize(store, END, later)
        assert interval_ends(store) == [END, later]
        assert interval_ends(store, "other_v1") == [END]
    with catalogue(tmp_path) as catalog:
        assert {run.status for run in catalog.runs()} == {"SUCCEEDED"}
