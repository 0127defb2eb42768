"""The disk is full while a part, the shuffle, digests or a manifest are written; then it is not.

A tmpfs of a few pages is a full disk. Where a container allows none, and for the middle of one
certain file, the kernel refuses to let a file grow.
"""

from __future__ import annotations

import pytest

from faults.attempt import Conditions
from faults.disks import NO_DISK
from faults.harness import NewShop, Shop
from faults.judge import Undisturbed, assert_untouched, judge, runs
from feast_anchor.plugin.catalog import RunStatus

PAGE = 4096
PARTS, STATE = "sinks", "state"


@pytest.mark.parametrize(
    ("folder", "pages", "shuffle"),
    [
        pytest.param(PARTS, 40, "local", id="part"),
        pytest.param(STATE, 3, "local", id="shuffle"),
        pytest.param(STATE, 6, "beam", id="digests"),
        pytest.param(STATE, 7, "beam", id="manifest"),
    ],
)
def test_a_small_disk_fails_the_run_until_it_is_made_larger(
    folder: str, pages: int, shuffle: str, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """The error names the full disk, nothing of the run can be joined, and a rerun finishes it."""
    shop = make_shop(shuffle=shuffle)
    full = Conditions(disk=folder, disk_bytes=pages * PAGE)
    attempt = shop.start(full)
    attempt.wait()
    if NO_DISK in attempt.said():
        pytest.skip(f"no user namespaces here: {NO_DISK}")
    attempt.fail("No space left on device", "run the same command to resume")
    _failed_then_finished(shop, undisturbed, "No space left on device")


@pytest.mark.parametrize(
    ("where", "call", "size", "shuffle"),
    [
        pytest.param("feast_anchor.transforms.sinks:write_part", 3, PAGE, "local", id="part"),
        pytest.param(
            "feast_anchor.transforms.local_shuffle:_ShardFile.close", 3, 1000, "local", id="shuffle"
        ),
        pytest.param(
            "feast_anchor.transforms.manifests:ShardManifest.save", 3, 100, "beam", id="manifest"
        ),
    ],
)
def test_a_file_that_cannot_grow_fails_the_run_until_it_can(
    where: str, call: int, size: int, shuffle: str, make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """Cut off in the middle of this very file, the run fails; a rerun writes it anew."""
    shop = make_shop(shuffle=shuffle)
    limited = Conditions(limited=where, limit_call=call, limit_bytes=size)
    shop.start(limited).fail("File too large", "run the same command to resume")
    _failed_then_finished(shop, undisturbed, "File too large")


def _failed_then_finished(shop: Shop, undisturbed: Undisturbed, reason: str) -> None:
    assert_untouched(shop)
    assert not list(shop.path.rglob("*.tmp"))
    (run,) = runs(shop)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert reason in run.error
    shop.start().succeed()
    judge(shop, undisturbed.rows, attempts=2)
