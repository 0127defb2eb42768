from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.transforms import files, manifests, sinks
from feast_anchor.transforms.events import ROW_SCHEMA
from feast_anchor.transforms.histories import ShardHistories, build_histories
from feast_anchor.transforms.job import ScenarioColumn, ScoreColumn, ViewRun, row_schema
from feast_anchor.transforms.manifests import ShardManifest
from feast_anchor.transforms.scoring import Question, UserVectors
from feast_anchor.transforms.zeroshot import Answers

DIM = 4
ANSWERS = Answers(("yes",), ("no",))
CREATED = 1_700_000_000_000_000
STAMP = pa.timestamp("us", tz="UTC")


@pytest.fixture
def run(tmp_path: Path) -> ViewRun:
    """A view of two scenarios with sink and state below a temporary folder."""
    return ViewRun(
        run_id="0123abcd",
        view="taste_v1",
        key="shopper_id",
        key_type="string",
        scenarios=(
            ScenarioColumn("tea", Question("Tea?"), "space-of-tea"),
            ScenarioColumn("churn", Question("Gone?"), "space-of-churn"),
        ),
        sink=str(tmp_path / "sink"),
        state=str(tmp_path / "state"),
        online=True,
    )


def vectors_of(user: str, as_of: Sequence[int], questions: int = 3) -> UserVectors:
    """Vectors of a user, no two numbers alike; each history ends 7 us before its as-of."""
    moments = np.array(as_of, dtype=np.int64)
    seed = np.random.default_rng([ord(letter) for letter in user])
    numbers = seed.standard_normal((len(moments), questions, DIM)).astype(np.float32)
    return UserVectors(user, moments, moments - 7, numbers)


def manifest_of(run: ViewRun, shard: int) -> ShardManifest:
    """A manifest with a different number in each field."""
    counts = dict(zip(COUNTS, range(1, len(COUNTS) + 1), strict=True))
    return ShardManifest(
        run_id=run.run_id,
        view=run.view,
        shard=shard,
        rejected={"event:null_key": 2, "user:no_usable_event": 1},
        seconds=0.25,
        created_until=CREATED,
        dead_letters=None,
        published_by=None,
        **counts,
    )


COUNTS = (
    "users_in",
    "users_embedded",
    "users_unchanged",
    "users_rejected",
    "events_in",
    "events_used",
    "events_unchanged",
    "events_rejected",
    "events_outside",
    "events_over_budget",
    "labels_in",
    "labels_rejected",
    "rows_offline",
    "rows_online",
)


def leftovers(folder: Path) -> list[str]:
    """Names of everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


# --- replacing a file ------------------------------------------------------------------------


def test_a_file_is_made_with_its_folder_or_replaced_as_a_whole(tmp_path: Path) -> None:
    """The name holds the new content, and nothing else is left in the folder."""
    path = tmp_path / "deep" / "er" / "file.txt"
    for text in ("old and long", "new"):
        files.replace_file(path, partial(Path.write_text, data=text))
        assert path.read_text() == text
    assert leftovers(path.parent) == ["file.txt"]


@pytest.mark.parametrize("old", [None, "old"])
def test_a_failing_writer_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, old: str | None
) -> None:
    """An exception amid writing changes nothing under the name."""
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)

    def half(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.replace_file(path, half)
    assert leftovers(tmp_path) == ([] if old is None else ["file.txt"])
    assert old is None or path.read_text() == old


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    """A file that was never written does not replace the one that stands."""
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(FileNotFoundError):
        files.replace_file(tmp_path / "file.txt", lambda _: None)
    assert (tmp_path / "file.txt").read_text() == "old"


def test_readers_never_see_a_file_being_written(tmp_path: Path) -> None:
    """While a part is written its name shows the old rows, and no reader's glob finds more."""
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    seen: list[Any] = []

    def write(temporary: Path) -> None:
        pq.write_table(pa.table({"a": [2, 3]}), temporary)
        seen.extend([pq.read_table(path)["a"].to_pylist(), list(tmp_path.rglob("*.parquet"))])

    files.replace_file(path, write)
    assert seen == [[1], [path]]
    assert pq.read_table(path)["a"].to_pylist() == [2, 3]


# --- rows ------------------------------------------------------------------------------------


def test_rows_hold_the_right_vector_under_each_name(run: ViewRun) -> None:
    """One row per user and as-of; each scenario's column is that of its own question."""
    scored = [vectors_of("ada", [10, 20]), vectors_of("bo", [30])]
    rows = sinks.rows_table(run, [2, 0], scored, CREATED)
    assert rows.schema.equals(run.schema, check_metadata=True)
    assert rows["shopper_id"].to_pylist() == ["ada", "ada", "bo"]
    stamps = {
        name: rows[name].cast(pa.int64()).to_pylist()
        for name in ("event_timestamp", "history_end", "created_timestamp")
    }
    assert stamps == {
        "event_timestamp": [10, 20, 30],
        "history_end": [3, 13, 23],
        "created_timestamp": [CREATED] * 3,
    }
    every = np.concatenate([user.vectors for user in scored])
    for name, question in (("tea", 2), ("churn", 0)):
        found = rows[name].combine_chunks().flatten().to_numpy()
        assert found.tobytes() == np.ascontiguousarray(every[:, question]).tobytes()


def test_a_score_is_read_off_the_vector_of_its_own_scenario(run: ViewRun) -> None:
    """The axis here picks the vector's second number, doubled: each row's score is that."""
    tea, churn = run.scenarios
    run = replace(run, scenarios=(tea, replace(churn, score=ScoreColumn("risk", ANSWERS, "c3"))))
    axes = {ANSWERS: np.array([0, 2, 0, 0], dtype=np.float32)}
    scored = [vectors_of("ada", [10, 20]), vectors_of("bo", [30])]
    rows = sinks.rows_table(run, [2, 0], scored, CREATED, axes)
    assert rows.schema.equals(run.schema, check_metadata=True)
    every = np.concatenate([user.vectors for user in scored])
    assert rows["risk"].to_pylist() == (2 * every[:, 0, 1]).tolist()


def test_no_users_are_an_empty_table_of_the_same_schema(run: ViewRun) -> None:
    """A shard without users still writes typed columns."""
    rows = sinks.rows_table(run, [0, 1], [], CREATED)
    assert rows.num_rows == 0
    assert rows.schema.equals(run.schema, check_metadata=True)


def test_integer_keys_are_integers_again(run: ViewRun) -> None:
    """Keys travel as text and are written in the type of the entity."""
    numbered = replace(run, key_type="int64")
    rows = sinks.rows_table(numbered, [0, 1], [vectors_of("-7", [1]), vectors_of("42", [1])], 1)
    assert rows["shopper_id"].type == pa.int64()
    assert rows["shopper_id"].to_pylist() == [-7, 42]


def test_the_online_row_is_the_one_of_the_newest_as_of(run: ViewRun) -> None:
    """Each user's newest as-of is served, whatever the order of users, and only that."""
    scored = [vectors_of("bo", [10, 20, 30]), vectors_of("ada", [5]), vectors_of("cy", [10, 20])]
    rows = sinks.rows_table(run, [0, 1], scored, CREATED)
    newest = sinks.newest_per_user(run, rows)
    assert newest.schema == rows.schema
    assert newest.equals(rows.take([2, 3, 5]))


def test_nothing_is_served_from_nothing(run: ViewRun) -> None:
    """An empty shard has no online rows."""
    empty = run.schema.empty_table()
    assert sinks.newest_per_user(run, empty).equals(empty)


# --- parts and manifests ---------------------------------------------------------------------


def test_a_part_reads_back_as_it_was_with_its_spaces(run: ViewRun) -> None:
    """Every bit of the rows is in the part, and each vector field carries its space; it waits
    beside the sink, where nobody joins it.
    """
    rows = sinks.rows_table(run, [0, 1], [vectors_of("ada", [10, 20])], CREATED)
    path = sinks.write_part(run, 7, rows)
    assert path == Path(f"{run.sink}.staging") / "run-0123abcd" / "part-00007.parquet"
    assert leftovers(path.parent) == ["part-00007.parquet"]
    found = pq.read_table(path)
    assert found.equals(rows)
    spaces = {f.name: f.metadata[b"space"] for f in pq.read_schema(path) if f.metadata}
    spaces = {name: space.decode() for name, space in spaces.items()}
    assert spaces == {"tea": "space-of-tea", "churn": "space-of-churn"}


def test_a_part_written_again_stands_once(run: ViewRun) -> None:
    """What a dead attempt left is replaced, not added to."""
    for users in (["ada", "bo"], ["ada"]):
        rows = sinks.rows_table(run, [0, 1], [vectors_of(user, [10]) for user in users], CREATED)
        path = sinks.write_part(run, 0, rows)
    assert pq.read_table(path.parent)["shopper_id"].to_pylist() == ["ada"]


def test_a_manifest_reads_back_as_it_was(run: ViewRun) -> None:
    """Saving and loading keeps each field; the file is JSON for people."""
    manifest = manifest_of(run, 3)
    manifest.save(run.state_folder)
    assert ShardManifest.load(run.state_folder, 3) == manifest
    stored = json.loads((run.state_folder / "shard-00003.json").read_text())
    assert {name: stored[name] for name in COUNTS} == {n: getattr(manifest, n) for n in COUNTS}
    assert leftovers(run.state_folder) == ["shard-00003.json"]


def test_a_shard_is_finished_when_its_manifest_and_its_part_stand(run: ViewRun) -> None:
    """Without a manifest, or with one whose part was deleted, the shard is computed again."""
    assert ShardManifest.load(run.state_folder, 0) is None
    part = sinks.write_part(run, 0, run.schema.empty_table())
    assert manifests.finished(run, 0) is None
    manifest = replace(manifest_of(run, 0), rows_offline=0)
    manifest.save(run.state_folder)
    assert manifests.finished(run, 0) == manifest
    assert manifests.finished(run, 1) is None
    replace(manifest, rows_offline=1).save(run.state_folder)
    assert manifests.finished(run, 0) is None  # it is another part
    manifest.save(run.state_folder)
    part.unlink()
    assert manifests.finished(run, 0) is None


# --- dead letters ----------------------------------------------------------------------------


def histories_of(rows: list[dict[str, Any]]) -> ShardHistories:
    """Histories of some rows as of 100 us after the epoch."""
    table = pa.Table.from_pylist(rows, ROW_SCHEMA)
    return build_histories(table, [100], [ModalitySpec(name="visits", text="{item}")])


def test_dead_letters_hold_each_event_and_user_with_the_reason(run: ViewRun) -> None:
    """Rejected events come whole, rejected users by name, and the counts are the books'."""
    whole = {"modality": 0, "event_timestamp": 5, "text": "tea", "amount": 0.0}
    histories = histories_of(
        [
            {**whole, "user": "ada"},
            {**whole, "user": None, "rejected": "null_key"},
            {**whole, "user": "bo", "text": None, "rejected": "no_text"},
        ]
    )
    path = sinks.write_dead_letters(run, 2, histories, ["orders"])
    assert path == run.state_folder / "dead-00002.parquet"
    letters = pq.read_table(path)
    assert letters.schema == sinks.DEAD_SCHEMA
    found = [(r["kind"], r["user"], r["text"], r["rejected"]) for r in letters.to_pylist()]
    assert found == [
        ("event", None, "tea", "null_key"),
        ("event", "bo", None, "no_text"),
        ("user", "bo", None, "no_usable_event"),
    ]
    assert letters.num_rows == histories.books.events_rejected + histories.books.users_rejected
    assert letters["event_timestamp"].cast(pa.int64()).to_pylist() == [5, 5, None]


def test_without_rejects_there_is_no_dead_letter(run: ViewRun) -> None:
    """A clean shard writes no file."""
    good = {"user": "ada", "modality": 0, "event_timestamp": 5, "text": "tea", "amount": 0.0}
    assert sinks.write_dead_letters(run, 0, histories_of([good]), ["orders"]) is None
    assert not run.state_folder.exists()


def test_a_user_without_events_in_time_is_a_letter_too(run: ViewRun) -> None:
    """A shard whose only reject is a user has a file with that user."""
    late = {"user": "ada", "modality": 0, "event_timestamp": 100, "text": "tea", "amount": 0.0}
    path = sinks.write_dead_letters(run, 0, histories_of([late]), ["orders"])
    assert path is not None
    (letter,) = pq.read_table(path).to_pylist()
    assert (letter["kind"], letter["user"]) == ("user", "ada")
    assert letter["rejected"] == "no_event_before_as_of"


def test_the_row_schema_is_key_three_times_vectors_and_scores() -> None:
    """Columns, types and spaces of a view's rows, in their order."""
    score = ScoreColumn("tea_score", ANSWERS, "c3")
    columns = [
        ScenarioColumn("tea", Question("Tea?"), "a1", score),
        ScenarioColumn("churn", Question("Gone?"), "b2"),
    ]
    schema = row_schema("household", "int64", columns)
    assert schema.names == [
        "household",
        "event_timestamp",
        "created_timestamp",
        "history_end",
        "tea",
        "tea_score",
        "churn",
    ]
    vector = pa.list_(pa.float32())
    assert schema.types == [pa.int64(), *[STAMP] * 3, vector, pa.float32(), vector]
    assert [schema.field(name).metadata for name in ("tea", "tea_score", "churn")] == [
        {b"space": b"a1"},
        {b"space": b"c3"},
        {b"space": b"b2"},
    ]
