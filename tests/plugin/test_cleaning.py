from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.catalog import Catalog
from feast_anchor.plugin.cleaning import clean
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


def test_a_negative_age_is_refused(tmp_path: Path, shop_bundle: Path) -> None:
    """It would reach into the future."""
    with (
        shop_store(tmp_path, shop_bundle) as store,
        pytest.raises(SpecError, match="expected a positive age"),
    ):
        clean(repo_of(store), timedelta(days=-1))
