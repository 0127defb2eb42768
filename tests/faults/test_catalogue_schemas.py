"""A catalogue of an older version is brought up to date; one of a newer version is left alone."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

from alembic import command
from sqlalchemy import make_url

from faults.harness import NewShop, Shop
from faults.judge import Undisturbed, assert_untouched, judge, runs
from feast_anchor.plugin.migrations.database import connect, writing
from feast_anchor.plugin.migrations.upgrade import alembic_config

OLD_RUN = (
    "INSERT INTO runs VALUES ('old', 'shop', 'elder_v1', 'aa', '2023-01-01 00:00:00.000000', "
    "'2023-01-02 00:00:00.000000', 2, '{}', 'SUCCEEDED', 2, '2023-01-03 00:00:00.000000', "
    "'2023-01-03 00:00:00.000000', '2023-01-03 00:00:01.000000', 9, 8, NULL, NULL)"
)


def first_version(path: Path) -> None:
    """Make a catalogue as the first release did, with a run in it."""
    engine = connect(make_url(f"sqlite:///{path}"))
    with writing(engine).begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
    engine.dispose()
    with sqlite3.connect(path) as database:
        database.execute(OLD_RUN)
    database.close()


def files(shop: Shop) -> dict[str, str]:
    """Every file of the repo but its logs and its lock files, by the digest of its content."""
    found = (path for path in shop.path.rglob("*") if path.is_file())
    return {
        str(path.relative_to(shop.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.parent.name != "logs"
    }


def test_an_older_catalogue_is_brought_up_to_date(
    make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """The run goes through, and what the old version had recorded is still there."""
    shop = make_shop()
    first_version(shop.path / "anchor.db")
    shop.start().succeed()
    new, old = runs(shop)
    assert (old.run_id, old.view, old.attempt, old.rows_offline) == ("old", "elder_v1", 2, 9)
    assert (old.kind, old.users_unchanged, old.labels_in) == ("materialize", 0, 0)
    with sqlite3.connect(shop.path / "anchor.db") as database:
        database.execute("DELETE FROM runs WHERE run_id = 'old'")
    database.close()
    judge(shop, undisturbed.rows, attempts=1)
    assert new.error is None


def test_a_newer_catalogue_is_refused_before_any_work(
    make_shop: NewShop, undisturbed: Undisturbed
) -> None:
    """The error says to upgrade and nothing is written; with the right catalogue it goes on."""
    shop = make_shop()
    first_version(shop.path / "anchor.db")
    with sqlite3.connect(shop.path / "anchor.db") as database:
        database.execute("UPDATE anchor_schema_version SET version_num = '9999'")
    database.close()
    before = files(shop)
    shop.start().fail("has schema revision '9999'", "Upgrade feast-anchor")
    assert files(shop) == before
    assert_untouched(shop)
    (shop.path / "anchor.db").unlink()
    shop.start().succeed()
    judge(shop, undisturbed.rows, attempts=1)
