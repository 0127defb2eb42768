from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Int64, String, UnixTimestamp

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BundleError, SpaceError, SpecError
from feast_anchor.onnx_export.manifest import ModalitySpec, read_manifest, score_fingerprint
from feast_anchor.plugin import Modality, Scenario, scenario_view
from feast_anchor.plugin.spec import SPACE_TAG, TAG, is_ours, spec_of
from shop import END, SPECS, config, entity, event_view, make_tables, modalities, write_tables

PaperBundle = Callable[..., Path]

TEA = Scenario("tea", "Will this shopper buy tea?")
GENERAL = Scenario("general", None)
SCORED = Scenario("tea", "Will this shopper buy tea?", score=True)
TUNED = Scenario("tuned_tea", "Will this shopper buy tea?", prompt="tuned")


def declare(tmp_path: Path, bundle: Path, **changes: Any) -> FeatureView:
    """A scenario view over the shop's tables, with changes."""
    declared: dict[str, Any] = {
        "name": "taste_v1",
        "entity": entity(),
        "events": modalities(tmp_path / "tables"),
        "scenarios": [TEA, GENERAL],
        "bundle": bundle,
        "sink": tmp_path / "sink",
    }
    return scenario_view(**declared | changes)


@pytest.fixture
def orders_view(tmp_path: Path) -> FeatureView:
    """A raw view to declare modalities over."""
    return event_view(tmp_path, "orders")


# --- what a view is --------------------------------------------------------------------------


def test_a_view_is_a_plain_feature_view(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """One float vector per scenario and the newest event's time, over the modalities' views."""
    bundle = paper_bundle()
    view = declare(tmp_path, bundle, ttl=timedelta(days=9), tags={"team": "growth"}, owner="ada")
    assert type(view) is FeatureView
    assert [(f.name, f.dtype) for f in view.features] == [
        ("tea", Array(Float32)),
        ("general", Array(Float32)),
        ("history_end", UnixTimestamp),
    ]
    assert [(c.name, c.dtype) for c in view.entity_columns] == [("shopper_id", String)]
    assert view.source_views is not None
    assert [source.name for source in view.source_views] == ["orders", "profiles"]
    assert (view.online, view.offline, view.ttl) == (True, True, timedelta(days=9))
    assert (view.tags["team"], view.owner) == ("growth", "ada")
    assert is_ours(view)


def test_each_field_says_which_embedding_space_it_is(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """Question and prompt decide the space: each field's tag is its own fingerprint."""
    folder = paper_bundle()
    view = declare(tmp_path, folder, scenarios=[TEA, GENERAL, TUNED])
    model = Bundle(folder, read_manifest(folder))
    spaces = {f.name: f.tags[SPACE_TAG] for f in view.features if f.tags}
    assert spaces == {
        "tea": model.fingerprint(TEA.query),
        "general": model.fingerprint(None),
        "tuned_tea": model.fingerprint(TEA.query, "tuned"),
    }
    assert len(set(spaces.values())) == 3
    assert {f.tags["dim"] for f in view.features if f.tags} == {"8"}


def test_the_sink_is_an_absolute_folder_with_both_timestamps(
    tmp_path: Path, paper_bundle: PaperBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative sink is taken from where the declaration runs, as `feast apply` does."""
    monkeypatch.chdir(tmp_path)
    view = declare(tmp_path, paper_bundle(), sink="data/sink")
    sink = view.batch_source
    assert isinstance(sink, FileSource)
    assert sink.path == str(tmp_path / "data" / "sink")
    assert sink.timestamp_field == "event_timestamp"
    assert sink.created_timestamp_column == "created_timestamp"


def test_a_file_source_may_be_the_sink(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """Its name and folder are kept."""
    source = FileSource(
        name="own",
        path=f"file://{tmp_path / 'mine'}",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    sink = declare(tmp_path, paper_bundle(), sink=source).batch_source
    assert isinstance(sink, FileSource)
    assert (sink.name, sink.path) == ("own", str(tmp_path / "mine"))


def test_an_integer_key_is_an_integer_column(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """INT64 entities keep their type in the schema."""
    shopper = Entity(name="shopper", join_keys=["shopper_id"], value_type=ValueType.INT64)
    view = declare(tmp_path, paper_bundle(), entity=shopper)
    assert [(c.name, c.dtype) for c in view.entity_columns] == [("shopper_id", Int64)]


def test_the_spec_in_the_tag_is_the_declaration(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """All that the engine needs is in one tag, as data."""
    bundle = paper_bundle()
    spec = spec_of(declare(tmp_path, bundle, snapshots="12h"))
    manifest = read_manifest(bundle)
    assert (spec.bundle, spec.digest, spec.dim) == (str(bundle), manifest.digest, 8)
    assert tuple(decl.as_spec() for decl in spec.events) == SPECS
    assert [(s.name, s.query, s.prompt) for s in spec.scenarios] == [
        ("tea", TEA.query, None),
        ("general", None, None),
    ]
    assert spec.snapshots == timedelta(hours=12)


def test_a_score_is_a_field_beside_the_vector(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """A Float32 next to the vector, with its own fingerprint; the vector stays as it was."""
    bundle = paper_bundle()
    churn = Scenario("churn", "Will this shopper stop?")
    view = declare(tmp_path, bundle, scenarios=[SCORED, churn])
    assert [(f.name, f.dtype) for f in view.features] == [
        ("tea", Array(Float32)),
        ("tea_score", Float32),
        ("churn", Array(Float32)),
        ("history_end", UnixTimestamp),
    ]
    vector, score = view.features[:2]
    model = Bundle(bundle, read_manifest(bundle))
    assert vector.tags[SPACE_TAG] == model.fingerprint(SCORED.query)
    assert score.tags[SPACE_TAG] == score_fingerprint(vector.tags[SPACE_TAG], ["yes"], ["no"])
    assert "similarity to ['yes'] minus ['no']" in score.description
    assert [(s.positive, s.negative) for s in spec_of(view).scenarios] == [
        (("yes",), ("no",)),
        ((), ()),
    ]


def test_answers_change_a_scores_fingerprint_and_their_order_does_not(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """The vector beside it keeps its space: only the number that is read off it changes."""
    bundle = paper_bundle()

    def spaces(*positive: str, negative: str = "no") -> list[str]:
        scenario = replace(SCORED, positive=list(positive), negative=(negative,))
        fields = declare(tmp_path, bundle, scenarios=[scenario]).features
        return [field.tags[SPACE_TAG] for field in fields[:2]]

    asked = [
        spaces("yes"),
        spaces("sure"),
        spaces("yes", "sure"),
        spaces("yes", negative="never"),
        spaces("no", negative="yes"),
    ]
    assert len({vector for vector, _ in asked}) == 1
    assert len({score for _, score in asked}) == len(asked)
    assert spaces("sure", "yes") == spaces("yes", "sure")


# --- Feast -----------------------------------------------------------------------------------


def apply(repo: Path, view: FeatureView) -> None:
    """What `feast apply` does with a view over the shop's tables."""
    write_tables(repo / "tables", make_tables(users=2))
    raw = [modality.view for modality in modalities(repo / "tables")]
    FeatureStore(config=config(repo)).apply([entity(), *raw, view])


def reader(repo: Path) -> FeatureStore:
    """A store as on a machine that only serves: Feast's own engine, nothing of ours named."""
    return FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(repo / "registry.db"),
            offline_store={"type": "duckdb"},
            online_store={"type": "sqlite", "path": str(repo / "online.db")},
            entity_key_serialization_version=3,
            repo_path=repo,
        )
    )


def test_a_view_comes_back_from_the_registry_as_it_went_in(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """Another process reads a FeatureView on a FileSource, with spec, spaces and parents."""
    scored = replace(SCORED, name="scored", positive=["sure", "yes"])
    view = declare(tmp_path, paper_bundle(), scenarios=[TEA, GENERAL, TUNED, scored])
    apply(tmp_path, view)
    found = reader(tmp_path).get_feature_view("taste_v1")
    assert type(found) is FeatureView
    assert type(found.batch_source) is FileSource
    assert spec_of(found) == spec_of(view)
    before = {field.name: (field.dtype, field.tags) for field in view.features}
    assert {field.name: (field.dtype, field.tags) for field in found.features} == before
    assert found.source_views is not None
    assert [source.name for source in found.source_views] == ["orders", "profiles"]


def test_a_view_is_read_where_this_package_is_not_installed(
    tmp_path: Path, paper_bundle: PaperBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry holds data alone: a reader without feast_anchor loads and asks for it."""
    apply(tmp_path, declare(tmp_path, paper_bundle()))
    for name in list(sys.modules):
        if name.split(".")[0] == "feast_anchor":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("feast_anchor.plugin")
    store = reader(tmp_path)
    assert TAG in store.get_feature_view("taste_v1").tags
    found = store.get_online_features(["taste_v1:tea"], [{"shopper_id": "u0"}]).to_dict()
    assert found["tea"] == [None]


def test_a_view_joins_nothing_right_after_apply(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """The sink holds a typed empty part, so a training set can be asked for at once."""
    apply(tmp_path, declare(tmp_path, paper_bundle()))
    (part,) = (tmp_path / "sink").glob("*/*.parquet")
    assert pq.read_metadata(part).num_rows == 0
    asked = pd.DataFrame({"shopper_id": ["u0"], "event_timestamp": [END]})
    features = ["taste_v1:tea", "taste_v1:history_end"]
    joined = reader(tmp_path).get_historical_features(asked, features).to_df()
    assert joined["shopper_id"].tolist() == ["u0"]
    assert joined[["tea", "history_end"]].isna().all(axis=None)


def test_applying_twice_is_fine_and_another_question_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """A view with rows may be applied again as it is, and not with a new question."""
    bundle = paper_bundle()
    view = declare(tmp_path, bundle)
    apply(tmp_path, view)
    part = next((tmp_path / "sink").glob("run-empty/*.parquet"))
    (tmp_path / "sink" / "run-1").mkdir()
    pq.write_table(pq.read_table(part), tmp_path / "sink" / "run-1" / "part-00000.parquet")
    apply(tmp_path, declare(tmp_path, bundle))
    moved = declare(tmp_path, bundle, scenarios=[Scenario("tea", "Tea or coffee?"), GENERAL])
    with pytest.raises(SpaceError, match=r"question or answers \['tea'\]"):
        apply(tmp_path, moved)


def test_declaring_a_view_needs_neither_beam_nor_onnxruntime(
    tmp_path: Path, paper_bundle: PaperBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`feast apply` stays fast: heavy libraries wait for a run."""
    for name in ("apache_beam", "onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert is_ours(declare(tmp_path, paper_bundle()))


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "  ", "\n\t"])
def test_an_empty_query_is_refused(query: str) -> None:
    """No question is said with None; an empty one is a mistake."""
    with pytest.raises(SpecError, match="'tea' has an empty query .*query=None for the general"):
        Scenario("tea", query)


def test_a_query_longer_than_the_bundle_reads_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """It is never cut: the error names view, scenario, length and limit. The limit itself fits."""
    bundle = paper_bundle()
    declare(tmp_path, bundle, scenarios=[Scenario("tea", " ".join(["tea"] * 12))])
    message = "view 'taste_v1', scenario 'tea': .* has 5000 tokens, expected at most 12; shorten"
    with pytest.raises(SpecError, match=message) as caught:
        declare(tmp_path, bundle, scenarios=[Scenario("tea", " ".join(["tea"] * 5_000))])
    assert len(str(caught.value)) < 400  # the question is not repeated in full


def test_an_unknown_prompt_is_refused(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """The error lists the prompts that the bundle has."""
    with pytest.raises(SpecError, match=r"scenario 'tea': .*no prompt 'tund'; it has \['tuned'\]"):
        declare(tmp_path, paper_bundle(), scenarios=[Scenario("tea", "Tea?", prompt="tund")])


@pytest.mark.parametrize(
    "name", ["", "event_timestamp", "created_timestamp", "history_end", "a b", "2nd", "a-b", "a:b"]
)
def test_a_name_that_cannot_be_a_column_is_refused(name: str) -> None:
    """Reserved names and names with other signs than letters, digits and underscores."""
    with pytest.raises(SpecError, match="cannot be a column; expected letters, digits and"):
        Scenario(name, "Tea?")


def test_two_scenarios_of_one_name_are_refused(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """Also when they ask the same."""
    with pytest.raises(
        SpecError, match=r"two scenarios, scores or key columns are named \['tea'\]; rename"
    ):
        declare(tmp_path, paper_bundle(), scenarios=[TEA, GENERAL, TEA])


def test_a_scenario_named_like_the_key_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """A vector column would hide the join key."""
    with pytest.raises(SpecError, match=r"are named \['shopper_id'\]"):
        declare(tmp_path, paper_bundle(), scenarios=[Scenario("shopper_id", "Tea?")])


def test_a_score_named_like_another_field_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """A scenario may not have the name that another one's score takes."""
    with pytest.raises(SpecError, match=r"are named \['tea_score'\]; rename"):
        declare(tmp_path, paper_bundle(), scenarios=[SCORED, Scenario("tea_score", "Tea?")])


@pytest.mark.parametrize("answers", ["yes", [], ()])
def test_answers_are_a_list_of_at_least_one(answers: Any) -> None:
    """A bare text would be read as its letters."""
    with pytest.raises(SpecError, match=r"positive=.*expected a list of at least one answer"):
        Scenario("tea", "Tea?", positive=answers, score=True)
    with pytest.raises(SpecError, match=r"negative=.*expected a list of at least one answer"):
        Scenario("tea", "Tea?", negative=answers, score=True)


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_empty_answer_is_refused(tmp_path: Path, paper_bundle: PaperBundle, answer: str) -> None:
    """It would be compared with nothing; the error names view and scenario."""
    scenario = replace(SCORED, negative=["no", answer])
    with pytest.raises(SpecError, match=r"'taste_v1', scenario 'tea': answer .* has no tokens"):
        declare(tmp_path, paper_bundle(), scenarios=[scenario])


@pytest.mark.parametrize(
    ("positive", "negative"),
    [(["yes"], ["yes"]), (["yes", "sure"], ["no", " sure "]), (["yes", "yes"], ["no"])],
)
def test_answers_that_read_the_same_are_refused(
    tmp_path: Path, paper_bundle: PaperBundle, positive: list[str], negative: list[str]
) -> None:
    """On both sides an answer cancels out, on one it counts twice: to the model, not as text."""
    scenario = replace(SCORED, positive=positive, negative=negative)
    with pytest.raises(SpecError, match="read the same to the model"):
        declare(tmp_path, paper_bundle(), scenarios=[scenario])


def test_a_general_embedding_is_scored_on_answers_of_its_own_only(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """No question was asked, so yes and no would answer nothing."""
    with pytest.raises(SpecError, match=r"asks nothing.*write positive="):
        Scenario("general", None, score=True)
    scenario = Scenario("general", None, positive=["sure"], negative=["never"], score=True)
    view = declare(tmp_path, paper_bundle(), scenarios=[scenario])
    assert [field.name for field in view.features] == ["general", "general_score", "history_end"]


def test_answers_without_a_score_are_refused() -> None:
    """They would be ignored in silence."""
    with pytest.raises(SpecError, match="answers and no score; add score=True"):
        Scenario("tea", "Tea?", positive=["sure"])


def test_two_modalities_of_one_name_are_refused(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """One table declared twice needs two names."""
    twice = [modalities(tmp_path)[0]] * 2
    with pytest.raises(SpecError, match=r"two modalities are named \['orders'\]"):
        declare(tmp_path, paper_bundle(), events=twice)


@pytest.mark.parametrize("empty", ["events", "scenarios"])
def test_a_view_of_nothing_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle, empty: str
) -> None:
    """No modality or no scenario leaves nothing to compute."""
    with pytest.raises(SpecError, match="at least one modality and one scenario"):
        declare(tmp_path, paper_bundle(), **{empty: []})


@pytest.mark.parametrize(
    "kind", [ValueType.UNKNOWN, ValueType.FLOAT, ValueType.INT32, ValueType.BYTES]
)
def test_an_entity_of_another_type_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle, kind: ValueType
) -> None:
    """Keys are strings or 64-bit integers, and the entity must say which."""
    shopper = entity()
    shopper.value_type = kind
    with pytest.raises(SpecError, match=f"value_type {kind.name}, expected STRING or INT64"):
        declare(tmp_path, paper_bundle(), entity=shopper)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{item:>9} in {aisle}", "holds the placeholder 'item'; expected plain column names"),
        ("{item!r}", "holds the placeholder 'item'"),
        ("{item.name}", "holds the placeholder 'item.name'"),
        ("{item[0]}", "holds the placeholder"),
        ("{0} and {}", "holds the placeholder '0'"),
        ("bought something", "names no column; expected something like"),
        ("{item", "cannot be read: expected '}'"),
        ("", "names no column"),
    ],
)
def test_a_template_with_more_than_column_names_is_refused(
    orders_view: FeatureView, text: str, says: str
) -> None:
    """Formats, conversions, attributes and indexes would be code; a bare text says nothing."""
    with pytest.raises(SpecError, match="text template") as caught:
        Modality(orders_view, text=text)
    assert says in str(caught.value)


def test_a_token_budget_below_one_is_refused(orders_view: FeatureView) -> None:
    """A modality of which nothing is read is a mistake."""
    with pytest.raises(SpecError, match="max_events=0, expected at least 1"):
        Modality(orders_view, text="{item}", max_events=0)


@pytest.mark.parametrize("zone", ["Europe/Berln", "", "MESZ"])
def test_an_unknown_time_zone_is_refused(orders_view: FeatureView, zone: str) -> None:
    """A misspelt zone is found at declaration and not amid a run."""
    with pytest.raises(SpecError, match="is not a time zone; expected a name such as 'UTC'"):
        Modality(orders_view, text="{item}", timezone=zone)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "+05:30"])
def test_a_known_time_zone_is_declared(orders_view: FeatureView, zone: str) -> None:
    """Names and offsets that Arrow knows are kept as they are."""
    assert Modality(orders_view, text="{item}", timezone=zone).declaration().timezone == zone


@pytest.mark.parametrize(
    "change",
    [
        {"text": "{item}"},
        {"amount": None},
        {"max_events": 17},
        {"name": "visits"},
        {"table": True},
    ],
    ids=str,
)
def test_a_modality_that_the_bundle_was_not_trained_on_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle, change: dict[str, Any]
) -> None:
    """Another template, budget, kind, amount or name: the error shows both and the way out."""
    orders, profiles = modalities(tmp_path)
    given: dict[str, Any] = {"text": orders.text, "amount": orders.amount, "max_events": 16}
    changed = Modality(orders.view, **given | change)
    with pytest.raises(SpecError, match=r"differs from what bundle 'paper' was trained on") as e:
        declare(tmp_path, paper_bundle(), events=[changed, profiles])
    ours, theirs = changed.declaration().as_spec(), SPECS[0]
    for name in ("kind", "max_events") if "table" in change else change:
        assert f"'{name}': {(getattr(ours, name), getattr(theirs, name))}" in str(e.value)


def test_modalities_must_be_complete_and_in_order(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """Positions matter to the graphs: a missing, extra or swapped modality is refused."""
    orders, profiles = modalities(tmp_path)
    extra = Modality(event_view(tmp_path, "coupons"), text="{shop}")
    bundle = paper_bundle()
    with pytest.raises(SpecError, match=r"declares modalities \['orders'\].*\['orders', 'profiles"):
        declare(tmp_path, bundle, events=[orders])
    with pytest.raises(SpecError, match=r"declares modalities .*'coupons'\]"):
        declare(tmp_path, bundle, events=[orders, profiles, extra])
    with pytest.raises(SpecError, match="differs from what bundle"):
        declare(tmp_path, bundle, events=[profiles, orders])


def test_a_bundle_of_other_modalities_is_refused(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """The bundle's side of the same mistake."""
    bundle = paper_bundle(modalities=(ModalitySpec(name="searches", text="{words}"),))
    with pytest.raises(SpecError, match="was trained on"):
        declare(tmp_path, bundle)


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    """The error names the folder and the command that makes one."""
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere: .*`feast-anchor train`"):
        declare(tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("period", "seconds"),
    [("7d", 604_800), ("12h", 43_200), (timedelta(minutes=90), 5_400), (None, None)],
)
def test_snapshots_are_days_hours_or_a_timedelta(
    tmp_path: Path, paper_bundle: PaperBundle, period: Any, seconds: float | None
) -> None:
    """The period is kept in seconds; None stays None."""
    view = declare(tmp_path, paper_bundle(), snapshots=period)
    assert spec_of(view).snapshots_seconds == seconds


@pytest.mark.parametrize(
    "period", ["", "7", "d", "7w", "7 d", "-7d", "1.5d", "0d", timedelta(0), timedelta(days=-1)]
)
def test_other_snapshots_are_refused(
    tmp_path: Path, paper_bundle: PaperBundle, period: str | timedelta
) -> None:
    """The error names what was given and a period that works."""
    with pytest.raises(SpecError, match=r"is no period; expected .*'7d'"):
        declare(tmp_path, paper_bundle(), snapshots=period)


@pytest.mark.parametrize("sink", ["s3://bucket/x", "out/*", "out/part.parquet", "out[1]", "a?"])
def test_a_sink_that_is_not_a_folder_of_its_own_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle, sink: str
) -> None:
    """Globs, single files and remote stores cannot be written part by part."""
    with pytest.raises(SpecError, match="expected a local folder of its own"):
        declare(tmp_path, paper_bundle(), sink=sink)


def test_a_sink_with_other_timestamp_columns_is_refused(
    tmp_path: Path, paper_bundle: PaperBundle
) -> None:
    """A FileSource that would read other columns than the engine writes."""
    sink = FileSource(path=str(tmp_path), timestamp_field="ts")
    with pytest.raises(
        SpecError, match=r"are \('ts', ''\), expected \('event_timestamp', 'created"
    ):
        declare(tmp_path, paper_bundle(), sink=sink)


def test_template_columns_need_not_stand_in_the_views_schema(tmp_path: Path) -> None:
    """The table is what is read, and it may have more columns than the raw view declares."""
    view = event_view(tmp_path, "orders", Field(name="item", dtype=String))
    assert Modality(view, text="{item} in {aisle}").declaration().text == "{item} in {aisle}"
