from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource, RepoConfig

from feast_anchor.onnx_export.errors import SpaceError
from feast_anchor.plugin.catalog import Catalog
from feast_anchor.plugin.spaces import (
    check_catalogue,
    check_part,
    first_parts,
    prepare_sink,
    sink_source,
    space_records,
)
from feast_anchor.plugin.spec import ScenarioDecl, ViewSpec
from feast_anchor.transforms.job import ScenarioColumn, ScoreColumn, ViewRun, row_schema
from feast_anchor.transforms.scoring import Question
from feast_anchor.transforms.zeroshot import Answers

SPACES = {"tea": "a1", "churn": "b2"}


def schema(spaces: Mapping[str, str] = SPACES) -> pa.Schema:
    """Rows of a view with these vector fields and spaces."""
    columns = [ScenarioColumn(name, Question(name), space) for name, space in spaces.items()]
    return row_schema("shopper_id", "string", columns)


def write_run(folder: Path, name: str, spaces: Mapping[str, str] = SPACES, rows: int = 1) -> Path:
    """What a run leaves in a sink folder: two parts."""
    kind = schema(spaces)
    stamps = [pa.array([n] * rows).cast(kind.field(n).type) for n in (1, 2, 3)]
    vectors = [pa.array([[0.5, 0.5]] * rows, pa.list_(pa.float32())) for _ in spaces]
    table = pa.table([pa.array(["ada"] * rows), *stamps, *vectors], schema=kind)
    for part in range(2):
        path = folder / f"run-{name}" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    return path


def spaces_in(part: Path) -> dict[str, str]:
    """The fingerprint that each vector field of a part carries."""
    fields = [field for field in pq.read_schema(part) if b"space" in (field.metadata or {})]
    return {field.name: field.metadata[b"space"].decode() for field in fields}


def test_a_new_sink_gets_a_typed_empty_part(tmp_path: Path) -> None:
    """The folder is made, and its one part has the columns, types and spaces of the view."""
    folder = tmp_path / "deep" / "sink"
    prepare_sink("taste_v1", folder, schema())
    (part,) = folder.rglob("*.parquet")
    assert part.parent.name == "run-empty"
    assert pq.read_schema(part).equals(schema())
    assert spaces_in(part) == SPACES
    assert pq.read_metadata(part).num_rows == 0


def test_duckdb_joins_the_empty_part_and_later_rows(tmp_path: Path) -> None:
    """A folder with only the empty part can be queried, and rows of runs simply appear."""
    prepare_sink("taste_v1", tmp_path, schema())
    query = "SELECT count(*), max(len(tea)) FROM read_parquet(?) WHERE history_end < ?"
    values = [str(tmp_path / "*" / "*.parquet"), "2024-01-01T00:00:00Z"]
    with duckdb.connect() as connection:
        assert connection.execute(query, values).fetchall() == [(0, None)]
        write_run(tmp_path, "1")
        assert connection.execute(query, values).fetchall() == [(2, 2)]


def test_the_same_spaces_are_accepted_again(tmp_path: Path) -> None:
    """Preparing a sink that holds rows of the same spaces changes none of them."""
    path = write_run(tmp_path, "1")
    before = path.read_bytes()
    for _ in range(2):
        prepare_sink("taste_v1", tmp_path, schema())
    assert path.read_bytes() == before
    runs = sorted(entry.name for entry in tmp_path.iterdir())
    assert runs == ["run-1", "run-empty"]


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"tea": "a2", "churn": "b2"}, "another model, question or answers ['tea']"),
        ({"tea": "b2", "churn": "a1"}, "another model, question or answers ['churn', 'tea']"),
        ({"tea": "a1"}, "fields no longer declared ['churn']"),
        ({"tea": "a1", "leave": "b2"}, "new fields ['leave'], fields no longer declared ['churn']"),
        ({"bread": "c3"}, "fields no longer declared ['churn', 'tea']"),
    ],
)
def test_other_spaces_are_refused_and_nothing_is_touched(
    tmp_path: Path, declared: dict[str, str], says: str
) -> None:
    """Moved, added, removed, renamed: the error names folder, fields and both ways out."""
    write_run(tmp_path, "1")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        SpaceError, match="view 'taste_v1' would mix embedding spaces in "
    ) as caught:
        prepare_sink("taste_v1", tmp_path, schema(declared))
    message = str(caught.value)
    assert says in message
    assert str(tmp_path) in message
    assert "a new view name, such as taste_v1_v2, and a sink of its own" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_from_before_a_scenario_was_added_get_it_as_null(tmp_path: Path) -> None:
    """Every part of every run can be read with the new columns, and loses nothing."""
    before = {path: pq.read_table(path) for path in (write_run(tmp_path, n) for n in "12")}
    grown = schema({"churn": "b2", "bread": "c3", "tea": "a1"})
    prepare_sink("taste_v1", tmp_path, grown)
    parts = sorted(tmp_path.rglob("*.parquet"))
    assert len(parts) == 5
    wanted = {**SPACES, "bread": "c3"}
    assert all(pq.read_schema(part).equals(grown) for part in parts)
    assert [spaces_in(part) for part in parts] == [wanted] * 5
    for path, rows in before.items():
        found = pq.read_table(path)
        assert found.select(rows.column_names).cast(rows.schema).equals(rows)
        assert found["bread"].null_count == len(rows)


def test_adding_a_scenario_that_was_interrupted_is_finished_the_next_time(tmp_path: Path) -> None:
    """The part that is looked at is the last to change, so no other is left behind."""
    path = write_run(tmp_path, "1")
    grown = schema({**SPACES, "bread": "c3"})
    prepare_sink("taste_v1", tmp_path, grown)
    pq.write_table(pq.read_table(path).select(schema().names).cast(schema()), path.parent / "x")
    (path.parent / "x").replace(path.with_name("part-00000.parquet"))  # as if it had died there
    prepare_sink("taste_v1", tmp_path, grown)
    parts = path.parent.glob("*.parquet")
    assert [spaces_in(part) for part in parts] == [{**SPACES, "bread": "c3"}] * 2


def test_every_run_in_the_folder_counts(tmp_path: Path) -> None:
    """One old run of another space is enough to refuse, even among good and newer ones."""
    write_run(tmp_path, "1")
    write_run(tmp_path, "2", {"tea": "old", "churn": "b2"})
    write_run(tmp_path, "3")
    with pytest.raises(SpaceError, match=r"question or answers \['tea'\]"):
        prepare_sink("taste_v1", tmp_path, schema())


def test_a_run_of_empty_parts_counts_too(tmp_path: Path) -> None:
    """A run that found nobody still says which space it was."""
    write_run(tmp_path, "1", {"tea": "old", "churn": "b2"}, rows=0)
    with pytest.raises(SpaceError):
        prepare_sink("taste_v1", tmp_path, schema())


def test_a_declaration_without_rows_may_change(tmp_path: Path) -> None:
    """As long as nothing was computed, applying another question replaces the empty part."""
    prepare_sink("taste_v1", tmp_path, schema({"tea": "old"}))
    prepare_sink("taste_v1", tmp_path, schema())
    (part,) = tmp_path.rglob("*.parquet")
    assert pq.read_schema(part).equals(schema())
    assert spaces_in(part) == SPACES


def test_vectors_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    """Parts that carry no fingerprint are not taken for ours."""
    path = tmp_path / "run-1" / "part-00000.parquet"
    path.parent.mkdir()
    bare = pa.schema([pa.field(field.name, field.type) for field in schema()])
    pq.write_table(bare.empty_table(), path)
    with pytest.raises(SpaceError, match=r"new fields \['churn', 'tea'\]"):
        check_part("taste_v1", schema(), path)


def test_one_part_of_each_run_is_looked_at(tmp_path: Path) -> None:
    """The parts of one run share a schema; folders without parts and other files do not matter."""
    for name in ("2", "1"):
        write_run(tmp_path, name)
    (tmp_path / "run-3").mkdir()
    (tmp_path / "notes.txt").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in first_parts(tmp_path)]
    assert found == ["run-1/part-00000.parquet", "run-2/part-00000.parquet"]
    assert first_parts(tmp_path / "nowhere") == []


def test_feasts_validation_of_the_source_prepares_the_sink(tmp_path: Path) -> None:
    """`feast apply` validates sources before it writes the registry: that is where it happens."""
    source = sink_source(
        view="taste_v1", path=str(tmp_path / "sink"), schema=schema(), name="taste_v1_sink"
    )
    assert type(source) is FileSource  # the registry notes the class: it must be Feast's own
    config = RepoConfig(
        project="shop",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        entity_key_serialization_version=3,
    )
    source.validate(config)
    assert len(list((tmp_path / "sink").rglob("*.parquet"))) == 1
    write_run(tmp_path / "sink", "1", {"tea": "old", "churn": "b2"})
    with pytest.raises(SpaceError):
        source.validate(config)


# --- scores ----------------------------------------------------------------------------------


def scored(positive: str = "yes", space: str = "a1") -> ScenarioDecl:
    """A scenario with a zero-shot score."""
    return ScenarioDecl(
        name="tea", query="Tea?", prompt=None, space=space, positive=(positive,), negative=("no",)
    )


def scored_run(folder: Path, scenario: ScenarioDecl) -> ViewRun:
    """A run of a view with one scenario."""
    columns = (scenario.as_column(),)
    return ViewRun("run", "taste_v1", "shopper_id", "string", columns, str(folder), "state", True)


def test_a_score_of_other_answers_does_not_enter_a_sink(tmp_path: Path) -> None:
    """The vectors are the same, and still the score's column would hold two meanings."""
    old, new = (scored_run(tmp_path, scored(word)).schema for word in ("yes", "sure"))
    assert old.field("tea").equals(new.field("tea"), check_metadata=True)
    path = tmp_path / "run-1" / "part-00000.parquet"
    path.parent.mkdir()
    pq.write_table(old.empty_table(), path)
    prepare_sink("taste_v1", tmp_path, old)
    with pytest.raises(
        SpaceError, match=r"another model, question or answers \['tea_score'\], new"
    ):
        prepare_sink("taste_v1", tmp_path, new)


def test_a_score_may_join_a_view_that_has_rows(tmp_path: Path) -> None:
    """Old rows have no score, and say so."""
    bare = scored().model_copy(update={"positive": (), "negative": ()})
    path = tmp_path / "run-1" / "part-00000.parquet"
    path.parent.mkdir()
    pq.write_table(scored_run(tmp_path, bare).schema.empty_table(), path)
    prepare_sink("taste_v1", tmp_path, scored_run(tmp_path, scored()).schema)
    assert pq.read_schema(path).field("tea_score").type == pa.float32()


def test_the_catalogue_tells_scores_of_other_answers_apart(tmp_path: Path) -> None:
    """Field, fingerprint and size of vector and score are recorded, and a mix is refused."""
    spec = ViewSpec(
        bundle="model",
        digest="d" * 64,
        dim=8,
        events=(),
        scenarios=(scored(),),
        snapshots_seconds=None,
    )
    records = space_records("shop", "taste_v1", spec)
    column = scored().as_column()
    assert column.score == ScoreColumn(
        "tea_score", Answers(("yes",), ("no",)), records[1].fingerprint
    )
    assert [(one.field, one.fingerprint, one.dim) for one in records] == [
        ("tea", "a1", 8),
        ("tea_score", column.score.space, 1),
    ]
    with Catalog.open(f"sqlite:///{tmp_path / 'anchor.db'}") as catalog:
        catalog.record_spaces(records)
        check_catalogue(catalog, "shop", scored_run(tmp_path, scored()))
        other = scored_run(tmp_path, scored("sure"))
        check_catalogue(catalog, "other project", other)
        with pytest.raises(SpaceError, match="field 'tea_score': scores with other answers"):
            check_catalogue(catalog, "shop", other)
        with pytest.raises(SpaceError, match="field 'tea': vectors of another embedding space"):
            check_catalogue(catalog, "shop", scored_run(tmp_path, scored(space="a2")))
