"""Files of a dead run that were cut short: by a copy tool, a full disk, a broken machine.

None of ours writes such a file, as all appear by a rename; whoever does, it must not be served.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.attempt import Conditions
from faults.harness import USERS, VIEW, NewShop, Shop
from faults.judge import Undisturbed, judge, runs
from feast_anchor.plugin.catalog import RunStatus

SAVED = "feast_anchor.transforms.manifests:ShardManifest.save"
STAGED = f"sinks/{VIEW}.staging/run-*/part-*.parquet"
PUBLISHED = f"sinks/{VIEW}/run-*[0-9a-f]/part-*.parquet"


def cut(path: Path, size: int) -> None:
    """Cut a file to a size, or by so many bytes if that is negative."""
    data = path.read_bytes()
    path.write_bytes(data[:size])


def cut_one(shop: Shop, pattern: str, part: float) -> Path:
    """Cut the first of some files to a part of its size."""
    path = min(shop.path.glob(pattern))
    cut(path, int(path.stat().st_size * part))
    return path


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize(
    "pattern",
    [
        STAGED,
        "state/run-*/shard-*.json",
        "state/shuffle-*/events-*.arrow",
        "state/shuffle-*/*.json",
    ],
    ids=["part", "manifest", "shuffle", "shuffled"],
)
def test_what_a_killed_run_left_cut_short_is_made_again(
    pattern: str, part: float, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """A file that ends too early is not believed, whatever a manifest says."""
    shop = make_shop(shuffle="local")
    shop.kill_at(SAVED, 5)
    assert shop.shards_done() == 4
    for path in sorted(shop.path.glob(pattern)):
        cut(path, int(path.stat().st_size * part))
    shop.start().succeed()
    judge(shop, undisturbed.rows, attempts=2)


def test_a_shuffle_cut_between_two_tables_is_made_again(
    make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """Such a file can be read without an error, and would lose its last rows in silence."""
    shop = make_shop(shuffle="local")
    shop.kill_at(SAVED, 5)
    for path in sorted(shop.path.glob("state/shuffle-*/events-*.arrow")):
        cut(path, -8)  # the end-of-stream mark
    shop.start().succeed()
    judge(shop, undisturbed.rows, attempts=2)


def test_a_published_part_cut_short_is_made_again(
    make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """Running the window again mends the one part, and computes no other."""
    shop = make_shop()
    shop.start().succeed()
    broken = cut_one(shop, PUBLISHED, 0.5)
    others = {p: p.stat().st_mtime_ns for p in shop.path.glob(PUBLISHED) if p != broken}
    shop.start().succeed()
    judge(shop, undisturbed.rows, attempts=2)
    assert {path: path.stat().st_mtime_ns for path in others} == others


@pytest.mark.parametrize("unchanged", ["leave", "restamp"])
def test_digests_cut_short_only_cost_work(unchanged: str, make_shop: NewShop) -> None:
    """The next window computes the users of that shard instead of failing."""
    shop = make_shop(unchanged=unchanged)
    shop.start().succeed()
    cut_one(shop, "state/run-*/digests-*.parquet", 0.5)
    shop.start(Conditions(next_window=True)).succeed()
    newer, older = runs(shop)
    assert (newer.status, older.status) == (RunStatus.SUCCEEDED, RunStatus.SUCCEEDED)
    assert 0 < newer.users_unchanged < USERS
    assert newer.users_unchanged + newer.users_embedded == newer.users_in == USERS
