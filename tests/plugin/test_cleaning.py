from __future__ import annotations

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore

from feast_anchor.onnx_export.errors import RunError, SpecError
from feast_anchor.plugin.catalog import Catalog
from feast_anchor.plugin.cleaning import clean
from feast_anchor.plugin.pulled import new_reader
from feast_anchor.transforms import shard_work
from shop import END, START, offline_rows, repo_of, shop_store

NOW = timedelta(0)


def fail(store: FeatureStore, patch: pytest.MonkeyPatch) -> None:
    """A materialize that dies at its last shard."""
    real = shard_work.ShardWork.finish

    def stumbling(work: Any, shard: int, rows: Any) -> int:
        if shard == 3:
            raise OSError("the disk is full")
        return real(work, shard, rows)

    with patch.context() as context:
        context.setattr(shard_work.ShardWork, "finish", stumbling)
        with pytest.raises(Exception, match="the disk is full"):
            store.materialize(START, END + timedelta(days=7))


def test_leftovers_of_a_failed_run_go_and_rows_stay(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, staging and shuffle of the failed run; nothing of the one that succeeded."""
    with shop_store(tmp_path, shop_bundle) as store:
        store.materialize(START, END)
        rows = offline_rows(tmp_path)
        fail(store, monkeypatch)
        assert clean(repo_of(store), timedelta(days=7)) == []  # it may still be resumed
        there = clean(repo_of(store), NOW, dry_run=True)
        assert all(one.path.is_dir() and one.size > 0 for one in there)
        assert clean(repo_of(store), NOW) == there
        assert clean(repo_of(store), NOW) == []
        names = sorted(one.path.name.split("-")[0] + ":" + one.path.parent.name for one in there)
        assert names == ["run:state", "run:taste_v1.staging", "shuffle:state"]
        assert not any(one.path.exists() for one in there)
        assert offline_rows(tmp_path).equals(rows)
        store.materialize(START, END + timedelta(days=7))  # from the beginning, and well
    assert len(offline_rows(tmp_path)) > len(rows)


def test_a_run_at_work_is_left_alone(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the view's lock may be about to use what is there."""
    with shop_store(tmp_path, shop_bundle) as store:
        fail(store, monkeypatch)
        with (
            Catalog.open(f"sqlite:///{tmp_path / 'anchor.db'}") as catalog,
            catalog.lock("shop", "taste_v1", 0),
        ):
            assert clean(repo_of(store), NOW) == []
        assert len(clean(repo_of(store), NOW)) == 3


def test_a_run_that_succeeds_meanwhile_is_left_alone(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status is read again under the lock."""
    real, seen = Catalog.lock, []
    with shop_store(tmp_path, shop_bundle) as store:
        fail(store, monkeypatch)

        def late(catalog: Catalog, *told: Any) -> Any:
            seen.append(told)
            if len(seen) == 1:
                store.materialize(START, END + timedelta(days=7))
            return real(catalog, *told)

        monkeypatch.setattr(Catalog, "lock", late)
        assert clean(repo_of(store), NOW) == []
    assert list((tmp_path / "state").glob("run-*/shard-*.json"))


def test_the_lock_is_held_until_all_is_removed(
    tmp_path: Path, shop_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run could begin, and find its parts, between the look and the removal."""
    removing, held = shutil.rmtree, []

    def checked(path: Path) -> None:
        other = Catalog.open(f"sqlite:///{tmp_path / 'anchor.db'}")
        with other, pytest.raises(RunError), other.lock("shop", "taste_v1", 0):
            pass
        held.append(path)
        removing(path)

    with shop_store(tmp_path, shop_bundle) as store:
        fail(store, monkeypatch)
        (tmp_path / "state" / "shuffle-0123").mkdir()
        monkeypatch.setattr("shutil.rmtree", checked)
        assert len(clean(repo_of(store), NOW)) == len(held) == 4


def test_what_no_run_owns_goes_when_it_is_old(tmp_path: Path, shop_bundle: Path) -> None:
    """Pulled tables, shuffles and signs of life by their newest file; not one that is read now,
    nor anything while a run is at work.
    """
    state = tmp_path / "state"
    reader = new_reader("taste_v1")
    names = ("pulled-1", "shuffle-2", "hearts-3-4", "pulled-young", f"pulled-read/reader-{reader}")
    old = time.time() - timedelta(days=8).total_seconds()
    with shop_store(tmp_path, shop_bundle) as store:
        store.materialize(START, END)
        for name in names:
            file = state / name if "reader" in name else state / name / "table.parquet"
            file.parent.mkdir(parents=True)
            file.write_text("rows")
            for path in (file, file.parent):
                os.utime(path, (old, old))
        (state / "pulled-young" / "table.parquet").touch()
        before = sorted(state.iterdir())
        with (
            Catalog.open(f"sqlite:///{tmp_path / 'anchor.db'}") as catalog,
            catalog.lock("shop", "taste_v1", 0),
        ):
            assert clean(repo_of(store), timedelta(days=7)) == []
        there = clean(repo_of(store), timedelta(days=7), dry_run=True)
        assert sorted(state.iterdir()) == before
        assert clean(repo_of(store), timedelta(days=7)) == there
    gone = {state / name for name in names[:3]}
    assert [one.path for one in there] == sorted(gone)
    assert set(before) - set(state.iterdir()) == gone


def test_a_negative_age_is_refused(tmp_path: Path, shop_bundle: Path) -> None:
    """It would reach into the future."""
    with (
        shop_store(tmp_path, shop_bundle) as store,
        pytest.raises(SpecError, match="expected a positive age"),
    ):
        clean(repo_of(store), timedelta(days=-1))
