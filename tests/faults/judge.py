"""What a disturbed run must leave: the same rows, the same books, and nothing else.

The same few functions judge every fault. They look at the files, at Feast's own stores and at the
catalogue; a rerun's log is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from faults.harness import SHARDS, USERS, VIEW, Shop
from feast_anchor.plugin.catalog import Catalog, RunStatus, RunSummary
from shop import END, QUERIES, START, offline_rows

KEYS = ["shopper_id", "event_timestamp"]
FEATURES = [f"{VIEW}:{name}" for name in (*QUERIES, "history_end")]
ALL_USERS = [f"u{number}" for number in range(USERS)]


@dataclass(frozen=True)
class Rows:
    """All rows of a shop, without the time of computing; vectors as bytes."""

    offline: pd.DataFrame
    online: Mapping[str, Any]

    @classmethod
    def of(cls, shop: Shop) -> Rows:
        """The rows as they are now."""
        return cls(_comparable(offline_rows(shop.path)), _served(shop))


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nothing disturbed leaves, and how long it took in seconds."""

    rows: Rows
    seconds: float


@dataclass(frozen=True)
class Lost:
    """How many offline rows are missing and how many stand more than once."""

    rows_lost: int
    rows_twice: int


def judge(shop: Shop, expected: Rows, attempts: int | None = None, runs: int = 1) -> Lost:
    """Assert that a shop whose command has succeeded is as an undisturbed run leaves it.

    Args:
        attempts: how many of its attempts the catalogue must have seen.
    """
    rows = Rows.of(shop)
    lost = _lost(rows.offline, expected.offline)
    assert lost == Lost(0, 0)
    pd.testing.assert_frame_equal(rows.offline, expected.offline)
    assert rows.online == expected.online
    run = succeeded(shop)
    assert run.rows_offline == len(rows.offline)
    assert attempts is None or run.attempt == attempts
    assert (run.shards_done, run.users_in, run.error) == (SHARDS, USERS, None)
    assert_no_orphan(shop, run)
    assert set(watermarks(shop)) == {(START, END)}
    return lost


def all_or_nothing(shop: Shop, expected: Rows) -> bool:
    """Whether a disturbed run's rows can be joined: all of them or none, never some."""
    offline = _comparable(offline_rows(shop.path))
    if len(offline):
        pd.testing.assert_frame_equal(offline, expected.offline)
    for run in runs(shop) if watermarks(shop) else ():
        # An attempt before this one may have come to its end, or this one in its last moment.
        assert run.status is RunStatus.SUCCEEDED or run.attempt > 1
        assert len(offline) == len(expected.offline)
    return bool(len(offline))


def assert_untouched(shop: Shop) -> None:
    """Assert that nothing of a disturbed run can be joined or served, and no watermark moved."""
    assert sorted(path.name for path in shop.sink.iterdir()) == ["run-empty"]
    asked = pd.DataFrame({"shopper_id": ALL_USERS, "event_timestamp": [END] * USERS})
    joined = shop.store().get_historical_features(entity_df=asked, features=FEATURES).to_df()
    assert joined[[*QUERIES, "history_end"]].isna().all(axis=None)
    assert all(value is None for name in QUERIES for value in _served(shop)[name])
    assert watermarks(shop) == []


def assert_no_orphan(shop: Shop, run: RunSummary) -> None:
    """Assert that there is no file but those of the published run and the catalogue's own."""
    parts = [f"run-{run.run_id}/part-{shard:05d}.parquet" for shard in range(SHARDS)]
    found = {str(path.relative_to(shop.sink)) for path in shop.sink.rglob("*") if path.is_file()}
    assert found == {*parts, "run-empty/part-00000.parquet"}
    assert not shop.sink.with_name(f"{VIEW}.staging").exists()
    assert not list(shop.path.rglob("*.tmp"))
    kept = {path.name for path in shop.state.iterdir()} - {"locks"}
    assert kept == {f"run-{run.run_id}"}
    state = {path.name for path in (shop.state / f"run-{run.run_id}").iterdir()}
    own = {
        f"{name}-{shard:05d}" for name in ("shard", "digests", "dead") for shard in range(SHARDS)
    }
    assert {name.partition(".")[0] for name in state} <= own
    assert not list(shop.path.rglob("*.lock.json"))


def catalogue(shop: Shop) -> Catalog:
    """The repo's catalogue, opened."""
    settings = shop.store().config.batch_engine_config
    url = str(settings["catalog"])
    return Catalog.open(url.replace("///anchor.db", f"///{shop.path / 'anchor.db'}"))


def runs(shop: Shop) -> list[RunSummary]:
    """All runs that the catalogue knows, the newest attempt first."""
    with catalogue(shop) as opened:
        return opened.runs()


def succeeded(shop: Shop) -> RunSummary:
    """The catalogue's only run, which must have succeeded."""
    (run,) = runs(shop)
    assert run.status is RunStatus.SUCCEEDED
    return run


def watermarks(shop: Shop) -> list[tuple[datetime, datetime]]:
    """The windows that Feast believes are materialized."""
    view = shop.store().get_feature_view(VIEW)
    return [(_aware(start), _aware(end)) for start, end in view.materialization_intervals]


def _lost(found: pd.DataFrame, expected: pd.DataFrame) -> Lost:
    keys = pd.MultiIndex.from_frame(found[KEYS])
    missing = ~pd.MultiIndex.from_frame(expected[KEYS]).isin(keys)
    return Lost(int(missing.sum()), int(found.duplicated(KEYS).sum()))


def _comparable(rows: pd.DataFrame) -> pd.DataFrame:
    vectors = {name: [vector.astype("<f4").tobytes() for vector in rows[name]] for name in QUERIES}
    return rows.assign(**vectors)


def _served(shop: Shop) -> dict[str, Any]:
    """What rankers read, with its event timestamps."""
    asked = [{"shopper_id": user} for user in ALL_USERS]
    response = shop.store().get_online_features(features=FEATURES, entity_rows=asked)
    return response.to_dict(include_event_timestamps=True)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
