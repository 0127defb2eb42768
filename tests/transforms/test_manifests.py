from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feast_anchor.transforms import manifests
from feast_anchor.transforms.files import move_file
from feast_anchor.transforms.job import ScenarioColumn, ViewRun
from feast_anchor.transforms.manifests import ShardManifest
from feast_anchor.transforms.scoring import Question
from feast_anchor.transforms.sinks import write_part


@pytest.fixture
def run(tmp_path: Path) -> ViewRun:
    """A view of one scenario."""
    columns = (ScenarioColumn("tea", Question("Tea?"), "space-of-tea"),)
    sink, state = str(tmp_path / "sink"), str(tmp_path / "state" / "run-0123")
    return ViewRun("0123", "taste_v1", "shopper_id", "string", columns, sink, state, online=True)


def done(run: ViewRun, shard: int) -> None:
    """A shard that has been finished."""
    write_part(run, shard, run.schema.empty_table())
    counts = {
        name: 0
        for name, kind in ShardManifest.__annotations__.items()
        if kind == "int" and name != "shard"
    }
    ShardManifest(
        run_id=run.run_id,
        view=run.view,
        shard=shard,
        rejected={},
        seconds=0.5,
        dead_letters=None,
        published_by=None,
        **counts,
    ).save(run.state_folder)


def parts(folder: Path) -> list[str]:
    """Everything below a folder, as relative paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parts_stand_beside_the_sink_until_the_run_is_published(run: ViewRun) -> None:
    """Before, nothing is in the sink; after, all of it is, and the staging folder is gone."""
    for shard in range(3):
        done(run, shard)
    assert not Path(run.sink).exists()
    manifests.publish(run)
    assert parts(Path(run.sink)) == [f"run-0123/part-{shard:05d}.parquet" for shard in range(3)]
    assert not Path(f"{run.sink}.staging").exists()
    assert all(manifests.finished(run, shard) for shard in range(3))
    manifests.publish(run)  # nothing is left to do
    assert len(parts(Path(run.sink))) == 3


def test_another_runs_staging_is_left_alone(run: ViewRun) -> None:
    """Publishing one run neither shows nor removes what another one has not finished."""
    other = run.other("4567")
    done(run, 0)
    done(other, 0)
    manifests.publish(run)
    assert parts(Path(f"{run.sink}.staging")) == ["run-4567/part-00000.parquet"]
    assert other.state_folder == run.state_folder.with_name("run-4567")


def test_publishing_that_died_halfway_is_finished(run: ViewRun) -> None:
    """Some parts are in the sink already: the others join them."""
    for shard in range(3):
        done(run, shard)
    staged = manifests.staged_path(run, 1)
    published = manifests.part_path(run, 1)
    published.parent.mkdir(parents=True)
    shutil.move(staged, published)
    assert all(manifests.finished(run, shard) for shard in range(3))
    manifests.publish(run)
    assert len(parts(Path(run.sink))) == 3
    assert not Path(f"{run.sink}.staging").exists()


def test_a_sink_on_another_file_system_is_published_file_by_file(
    run: ViewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a folder cannot be renamed each part is copied whole, then removed."""

    def elsewhere(self: Path, target: Path) -> Path:
        if "staging" in str(self):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return Path(shutil.move(self, target))

    for shard in range(2):
        done(run, shard)
    monkeypatch.setattr(Path, "rename", elsewhere)
    monkeypatch.setattr(Path, "replace", elsewhere)
    manifests.publish(run)
    assert parts(Path(run.sink)) == [f"run-0123/part-{shard:05d}.parquet" for shard in range(2)]
    assert pq.read_table(manifests.part_path(run, 0)).schema.equals(run.schema)
    assert not Path(f"{run.sink}.staging").exists()


def test_other_trouble_of_moving_is_raised(tmp_path: Path) -> None:
    """Only another file system is answered with a copy."""
    (tmp_path / "a").write_text("whole")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "full").touch()
    with pytest.raises(OSError, match="b"):
        move_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_text() == "whole"


def test_the_staging_folder_of_an_attempt_that_died_after_publishing_goes(run: ViewRun) -> None:
    """Killed between the rename and tidying up; the next attempt has nothing to move."""
    done(run, 0)
    manifests.publish(run)
    manifests.staging_folder(run).parent.mkdir()
    manifests.publish(run)
    assert not manifests.staging_folder(run).parent.exists()
    assert parts(Path(run.sink)) == ["run-0123/part-00000.parquet"]


def test_discarding_takes_back_what_is_not_published(run: ViewRun) -> None:
    """Staged shards are to be computed again; published rows are of an input that was right."""
    done(run, 0)
    manifests.publish(run)
    done(run, 1)
    manifests.discard(run, shards=2)
    assert manifests.finished(run, 0) is not None
    assert manifests.finished(run, 1) is None
    assert parts(Path(run.sink)) == ["run-0123/part-00000.parquet"]
    assert not Path(f"{run.sink}.staging").exists()


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_shard_whose_part_was_cut_short_is_not_finished(run: ViewRun, kept: int) -> None:
    """Staged or published, it is computed again, whatever its manifest says."""
    done(run, 0)
    for part in (manifests.staged_path(run, 0), manifests.part_path(run, 0)):
        assert manifests.finished(run, 0) is not None
        whole = part.read_bytes()
        part.write_bytes(whole[:kept])
        assert manifests.finished(run, 0) is None
        assert manifests.finished_part(run, 0) is None
        part.write_bytes(whole)
        manifests.publish(run)


def test_a_shard_whose_part_lost_its_footer_is_not_finished(run: ViewRun) -> None:
    """A disk may give zeros back: the length is right, and what Parquet says of itself is gone."""
    done(run, 0)
    part = manifests.staged_path(run, 0)
    whole = part.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    part.write_bytes(whole[: -8 - footer] + bytes(footer) + whole[-8:])
    assert manifests.part_rows(part) is None
    assert manifests.finished(run, 0) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_part_that_the_disk_refuses_is_an_error(
    run: ViewRun, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It may be whole: nobody may compute the shard again because a disk was away."""

    def refusing(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    done(run, 0)
    monkeypatch.setattr("pyarrow.parquet.read_metadata", refusing)
    with pytest.raises(OSError, match=os.strerror(number)):
        manifests.finished(run, 0)


def test_a_manifest_that_is_no_text_is_no_manifest(run: ViewRun) -> None:
    """A broken disk may leave any bytes."""
    done(run, 0)
    manifests.shard_path(run.state_folder, 0).write_bytes(b"\xff\xfe{}")
    assert manifests.finished(run, 0) is None


def test_what_killed_attempts_were_writing_is_removed(run: ViewRun) -> None:
    """In the state folder, beside the sink and in it, whichever run's folder it is."""
    done(run, 0)
    sink = Path(run.sink)
    folders = [run.state_folder, manifests.staging_folder(run), sink / "run-empty", sink / "run-1"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".part-00000.parquet.77.tmp").touch()
    manifests.clear_temporaries(run)
    assert [list(folder.glob(".*")) for folder in folders] == [[]] * 4
    assert manifests.finished(run, 0) is not None
