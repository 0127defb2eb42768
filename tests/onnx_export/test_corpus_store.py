from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.corpus import Corpus
from feast_anchor.onnx_export.corpus_statistics import statistics
from feast_anchor.onnx_export.corpus_store import (
    build_or_read,
    read_corpus,
    read_for,
    read_meta,
)
from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.families import FAMILIES, Family
from feast_anchor.onnx_export.scope import Scope, make_scope
from tiny import TINY_CUT, TINY_MODALITIES, build_corpus, tiny_events

HELD = [f"u{number:03d}" for number in range(0, 30, 4)]


def tiny_scope(events: pa.Table | None = None, seed: int = 0) -> Scope:
    table = tiny_events() if events is None else events
    return make_scope(
        table, TINY_MODALITIES, cut=TINY_CUT, entity="customer", held_out=HELD, topics=5, seed=seed
    )


def assert_equal(one: Corpus, two: Corpus) -> None:
    assert one.questions == two.questions
    assert one.answers == two.answers
    assert (one.events.users, one.events.texts) == (two.events.users, two.events.texts)
    for name in ("user", "as_of", "labels", "says"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), strict=True)
    for name in ("starts", "user", "times", "modality", "amounts", "text"):
        left, right = getattr(one.events, name), getattr(two.events, name)
        np.testing.assert_array_equal(left, right, strict=True)


def stored_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def counted(calls: list[str], broken: str = "") -> Mapping[str, Family]:
    """The families, each of which notes that it was asked; `broken` fails."""

    def wrap(name: str, family: Family) -> Callable[[Scope], Corpus]:
        def ask(scope: Scope) -> Corpus:
            calls.append(name)
            if name == broken:
                raise RuntimeError("the machine went away")
            return family(scope)

        return ask

    return {name: wrap(name, family) for name, family in FAMILIES.items()}


def test_what_is_read_is_what_was_built(tmp_path: Path) -> None:
    """Building returns build_corpus's corpus, reading returns it again, order included."""
    built = build_or_read(tmp_path / "corpus", tiny_scope())
    expected = build_corpus(
        tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer", held_out=HELD, topics=5
    )
    assert_equal(built, expected)
    assert_equal(read_corpus(tmp_path / "corpus"), expected)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two builds write identical files, whatever the order of the rows."""
    order = np.random.default_rng(1).permutation(tiny_events().num_rows)
    build_or_read(tmp_path / "one", tiny_scope())
    build_or_read(tmp_path / "two", tiny_scope(tiny_events().take(pa.array(order))))
    assert stored_bytes(tmp_path / "one") == stored_bytes(tmp_path / "two")


def test_poison_after_the_cut_or_of_held_out_users_changes_no_byte(tmp_path: Path) -> None:
    """Late events and held-out users may say anything, or more of it: the store is the same."""
    events = tiny_events()
    late = pc.greater_equal(events.column("event_timestamp"), pa.scalar(TINY_CUT))
    theirs = pc.is_in(events.column("user"), value_set=pa.array(HELD))
    unread = events.filter(pc.or_(late, theirs))
    assert unread.num_rows > 200
    columns = {
        **{name: unread.column(name) for name in events.column_names},
        "text": pa.array(["gold in jewels"] * unread.num_rows),
        "amount": pa.array([1e6] * unread.num_rows, pa.float32()),
    }
    poison = pa.table(columns, schema=events.schema)
    kept = events.filter(pc.invert(pc.or_(late, theirs)))
    build_or_read(tmp_path / "clean", tiny_scope(kept))
    build_or_read(tmp_path / "poisoned", tiny_scope(pa.concat_tables([poison, events, poison])))
    assert stored_bytes(tmp_path / "clean") == stored_bytes(tmp_path / "poisoned")


def test_no_stored_row_is_of_a_held_out_user_or_late(tmp_path: Path) -> None:
    """The files themselves name no held-out user and no time from the cut on."""
    build_or_read(tmp_path / "corpus", tiny_scope())
    for name, column in (("events", "event_timestamp"), ("snapshots", "as_of")):
        table = pq.read_table(tmp_path / "corpus" / f"{name}.parquet")
        assert not set(table.column("user").to_pylist()) & set(HELD)
        assert pc.max(table.column(column)).as_py() < TINY_CUT


def test_labels_are_stored_without_gaps(tmp_path: Path) -> None:
    """Only pairs with an answer have a row."""
    corpus = build_or_read(tmp_path / "corpus", tiny_scope())
    labels = pq.read_table(tmp_path / "corpus" / "labels.parquet")
    assert labels.num_rows == (corpus.labels >= 0).sum() < corpus.labels.size
    assert pc.min(labels.column("answer")).as_py() >= 0


def test_a_finished_corpus_is_read_not_built(tmp_path: Path) -> None:
    """The same fingerprint asks no family again; another seed asks all."""
    calls: list[str] = []
    build_or_read(tmp_path / "corpus", tiny_scope(), families=counted(calls))
    build_or_read(tmp_path / "corpus", tiny_scope(), families=counted(calls))
    assert calls == list(FAMILIES)
    other = build_or_read(tmp_path / "corpus", tiny_scope(seed=1), families=counted(calls))
    assert calls == [*FAMILIES, *FAMILIES]
    assert_equal(read_corpus(tmp_path / "corpus"), other)


def test_a_failed_build_continues_with_the_family_that_failed(tmp_path: Path) -> None:
    """Finished families are not asked again, and the result is that of one go."""
    calls: list[str] = []
    folder = tmp_path / "corpus"
    with pytest.raises(RuntimeError, match="went away"):
        build_or_read(folder, tiny_scope(), families=counted(calls, broken="attributes"))
    with pytest.raises(SourceError, match="no finished corpus"):
        read_corpus(folder)
    calls.clear()
    build_or_read(folder, tiny_scope(), families=counted(calls))
    assert calls == ["attributes"]
    build_or_read(tmp_path / "whole", tiny_scope())
    assert stored_bytes(folder) == stored_bytes(tmp_path / "whole")


def test_parts_of_another_fingerprint_are_not_used(tmp_path: Path) -> None:
    """What an interrupted build of another seed left behind does not enter this one."""
    folder = tmp_path / "corpus"
    with pytest.raises(RuntimeError, match="went away"):
        build_or_read(folder, tiny_scope(seed=1), families=counted([], broken="attributes"))
    build_or_read(folder, tiny_scope())
    build_or_read(tmp_path / "whole", tiny_scope())
    assert stored_bytes(folder) == stored_bytes(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
import test_corpus_store as t

def die(scope):
    os.kill(os.getpid(), signal.SIGKILL)

t.build_or_read(Path(sys.argv[1]), t.tiny_scope(), families={**t.FAMILIES, "attributes": die})
"""


def test_a_killed_build_continues(tmp_path: Path) -> None:
    """After SIGKILL between two families the first ones are reused and nothing is half written."""
    folder, here = tmp_path / "corpus", Path(__file__)
    path = os.pathsep.join(
        [str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert sorted(p.name for p in (folder / "parts").iterdir()) == [
        "behaviour.parquet",
        "fingerprint",
        "general.parquet",
    ]
    calls: list[str] = []
    build_or_read(folder, tiny_scope(), families=counted(calls))
    assert calls == ["attributes"]
    build_or_read(tmp_path / "whole", tiny_scope())
    assert stored_bytes(folder) == stored_bytes(tmp_path / "whole")


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """Reading refuses it and says what to do, building replaces it."""
    folder = tmp_path / "corpus"
    build_or_read(folder, tiny_scope())
    good = stored_bytes(folder)
    (folder / "answers.parquet").write_bytes(good["answers.parquet"][:-9])
    with pytest.raises(SourceError, match="answers.parquet is missing or is not the file"):
        read_corpus(folder)
    build_or_read(folder, tiny_scope())
    assert stored_bytes(folder) == good


def test_another_format_is_refused(tmp_path: Path) -> None:
    """A corpus of a later version says so."""
    build_or_read(tmp_path / "corpus", tiny_scope())
    path = tmp_path / "corpus" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"format_version": 2}))
    with pytest.raises(SourceError, match="build the corpus again with this version"):
        read_corpus(tmp_path / "corpus")


def test_a_broken_record_is_refused(tmp_path: Path) -> None:
    """Half a record is an error with a cure, not a traceback of the JSON reader."""
    (tmp_path / "meta.json").write_text('{"format": ')
    with pytest.raises(SourceError, match="not valid JSON .*build the corpus again"):
        read_corpus(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A folder with foreign files is refused before anything is written."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SourceError, match=r"thesis.txt.*choose an empty folder"):
        build_or_read(tmp_path, tiny_scope())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    """Users, rows and triples add up over families; the record holds the same numbers."""
    corpus = build_or_read(tmp_path / "corpus", tiny_scope())
    found = statistics(corpus)
    assert found.users == 30 - len(HELD)
    assert found.snapshots == len(corpus.user)
    names = [family.name for family in found.families]
    assert {"any", "profile", "behaviour", "attributes"} <= set(names)
    assert len(names) == len(set(names))
    assert sum(family.triples for family in found.families) == found.triples
    assert sum(family.questions for family in found.families) == len(corpus.questions)
    assert read_meta(tmp_path / "corpus")["statistics"] == json.loads(json.dumps(found.as_json()))


def test_the_most_unbalanced_question_comes_first(tmp_path: Path) -> None:
    """Shares are those of the labels and fall down the list."""
    corpus = build_or_read(tmp_path / "corpus", tiny_scope())
    worst = statistics(corpus, worst=5).unbalanced
    assert [entry.share for entry in worst] == sorted((e.share for e in worst), reverse=True)
    columns = (column[column >= 0] for column in corpus.labels.T)
    shares = [np.bincount(column).max() / len(column) for column in columns]
    assert worst[0].share == pytest.approx(max(shares), abs=1e-4)


def test_training_reads_what_a_writer_added(tmp_path: Path) -> None:
    """A stored corpus is read for its scope with the writer's questions, not for another scope."""

    def twice(corpus: Corpus) -> Corpus:
        again = (*corpus.questions, replace(corpus.questions[0], phrasings=("Written?",)))
        labels = np.hstack((corpus.labels, corpus.labels[:, :1]))
        return replace(corpus, questions=again, labels=labels)

    folder = tmp_path / "corpus"
    written = build_or_read(folder, tiny_scope(), extend=twice, extend_key="writer 1")
    found, digest = read_for(folder, tiny_scope(), FAMILIES)
    assert_equal(found, written)
    assert found.questions[-1].phrasings == ("Written?",)
    build_or_read(tmp_path / "plain", tiny_scope(), extend_key="writer 1")
    assert read_meta(folder)["fingerprint"] == read_meta(tmp_path / "plain")["fingerprint"]
    assert digest != read_for(tmp_path / "plain", tiny_scope(), FAMILIES)[1]  # other questions
    other = make_scope(
        tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer", held_out=HELD[1:], topics=5
    )
    with pytest.raises(SourceError, match=r"differs in \['data', 'rows'\]"):
        read_for(folder, other, FAMILIES)
    with pytest.raises(SourceError, match=r"differs in \['seed'\]"):
        read_for(folder, replace(tiny_scope(), seed=1), FAMILIES)
    with pytest.raises(SourceError, match=r"differs in \['families'\]"):
        read_for(folder, tiny_scope(), {"general": FAMILIES["general"]})
    with pytest.raises(SourceError, match="no finished corpus"):
        read_for(tmp_path / "nothing", tiny_scope(), FAMILIES)
