from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from feast_anchor.onnx_export.corpus_store import read_corpus
from feast_anchor.onnx_export.manifest import canonical_sha256, read_manifest
from feast_anchor.plugin.cli import app
from shop import make_tables, write_tables

WIDE = {"COLUMNS": "200"}
REPO = """
from pathlib import Path

from shop import modalities

MODALITIES = modalities(Path(__file__).parent / "tables")
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A folder with event tables and the module that declares them."""
    write_tables(tmp_path / "tables", make_tables(30))
    (tmp_path / "shop_events.py").write_text(REPO)
    sys.modules.pop("shop_events", None)
    return tmp_path


def build(repo: Path, *more: str, cut: str = "2024-02-20T00:00:00") -> tuple[int, str]:
    arguments = ["corpus", "--repo", str(repo), "--modalities", "shop_events:MODALITIES"]
    arguments += ["--cut", cut, "--out", str(repo / "corpus"), *more]
    result = CliRunner().invoke(app, arguments, env=WIDE)
    return result.exit_code, result.output + result.stderr


def test_corpus_is_built_stored_and_counted(repo: Path) -> None:
    """The command writes a corpus that can be read, and prints what it holds."""
    code, output = build(repo)
    assert code == 0, output
    corpus = read_corpus(repo / "corpus")
    assert f"{(corpus.labels >= 0).sum():,}" in output
    for word in ("median history", "behaviour", "attributes", "most unbalanced questions"):
        assert word in output


def test_a_cut_long_after_the_last_event_is_said(repo: Path) -> None:
    """There "nothing happened" would be learned of everybody; at the data's end, no warning."""
    code, output = build(repo, cut="2024-12-01T00:00:00")
    assert code == 0, output
    assert "warning: no event in the" in output
    assert "tables end on 2024-0" in output
    assert "warning" not in build(repo, "--out", str(repo / "other"))[1]


def test_a_second_call_reads_what_is_there(repo: Path) -> None:
    """The same call finds the finished corpus and prints the same numbers."""
    _, first = build(repo)
    code, second = build(repo)
    assert code == 0
    assert "read the finished corpus" in second
    assert second.splitlines()[-5:] == first.splitlines()[-5:]


def test_held_out_users_are_not_stored(repo: Path) -> None:
    """Keys of the file given appear nowhere in the corpus; seed and file of settings count."""
    (repo / "held.txt").write_text("u1\nu2\n")
    (repo / "train.toml").write_text("snapshots = 2\ntopics = 3\n")
    more = ("--held-out", str(repo / "held.txt"), "--config", str(repo / "train.toml"))
    code, output = build(repo, *more, "--seed", "5")
    assert code == 0, output
    assert not {"u1", "u2"} & set(read_corpus(repo / "corpus").events.users)
    settings = json.loads((repo / "corpus" / "meta.json").read_text("utf-8"))["settings"]
    assert (settings["seed"], settings["topics"]) == (5, 3)


@pytest.mark.parametrize("command", ["corpus", "train"])
def test_keys_to_hold_out_that_are_nobodys_are_refused(repo: Path, command: str) -> None:
    """Another spelling of the keys would train on the very users to keep out."""
    (repo / "held.txt").write_text("U1\nU2\n")
    arguments = [command, "--repo", str(repo), "--modalities", "shop_events:MODALITIES"]
    arguments += ["--cut", "2024-02-20T00:00:00", "--out", str(repo / "out")]
    arguments += ["--held-out", str(repo / "held.txt")]
    result = CliRunner().invoke(app, arguments, env=WIDE)
    assert result.exit_code == 1
    assert "none of the 2 keys to hold out, such as 'U1'" in result.stderr
    assert not (repo / "out").exists()


def test_an_empty_file_holds_nobody_out_and_is_refused(repo: Path) -> None:
    """A file that somebody forgot to fill would train on everybody."""
    (repo / "held.txt").write_text(" \n\n")
    code, output = build(repo, "--held-out", str(repo / "held.txt"))
    assert code == 1
    assert "has no keys to hold out" in output


def test_blanks_around_keys_are_no_part_of_them(repo: Path) -> None:
    """A file with carriage returns, blanks and an empty line holds out whom it names."""
    (repo / "held.txt").write_bytes(b"u1 \r\n\r\n u2\r\n")
    code, output = build(repo, "--held-out", str(repo / "held.txt"))
    assert code == 0, output
    assert "holding out 2 of 30 users" in output
    assert not {"u1", "u2"} & set(read_corpus(repo / "corpus").events.users)


def test_a_wrong_endpoint_is_one_message(repo: Path) -> None:
    """A URL that is none is refused before anything is read."""
    code, output = build(repo, "--writer", "localhost:8000")
    assert code == 1
    assert "expected a URL such as" in output
    assert "Traceback" not in output


def train(repo: Path, *more: str) -> tuple[int, str]:
    arguments = ["train", "--repo", str(repo), "--modalities", "shop_events:MODALITIES"]
    arguments += ["--cut", "2024-02-20T00:00:00", "--config", str(repo / "train.toml")]
    result = CliRunner().invoke(app, [*arguments, *more], env=WIDE)
    return result.exit_code, result.output + result.stderr


def test_what_is_stored_is_what_train_asks(repo: Path) -> None:
    """Training on the stored corpus gives the very bundle that training without it gives: clock
    and families of the settings count for both. Other options are refused, and named.
    """
    (repo / "train.toml").write_text(
        "snapshots = 2\ntopics = 3\nsteps = 1\nhistories = 4\nquestions = 4\n"
        'timezone = "Asia/Tokyo"\n'
        'families = ["general", "attributes"]\n[model]\nhidden = 16\nff = 24\ntext = 16\n'
    )
    stored = ("--config", str(repo / "train.toml"))
    assert build(repo, *stored)[0] == 0
    folders = {"anew": (), "stored": ("--corpus", str(repo / "corpus"))}
    for name, more in folders.items():
        code, output = train(repo, "--out", str(repo / name / "shopper"), *more)
        assert code == 0, output
    anew, of_stored = (read_manifest(repo / name / "shopper") for name in folders)
    assert anew.digest == of_stored.digest
    meta = json.loads((repo / "corpus" / "meta.json").read_text("utf-8"))
    digest = canonical_sha256(meta["files"])
    assert (anew.training["corpus"], of_stored.training["corpus"]) == (None, digest)
    code, output = train(repo, "--out", str(repo / "other"), *folders["stored"], "--seed", "5")
    assert code == 1
    assert "it differs in ['rows', 'seed']" in output
    assert not (repo / "other").exists()
