from __future__ import annotations

from datetime import UTC, datetime, timedelta

from alembic import command
from sqlalchemy import Connection, inspect, make_url, text

from feast_anchor.plugin.catalog import Catalog, DeadLetterRow, RunRecord, RunStatus, ShardRecord
from feast_anchor.plugin.migrations.database import connect, writing
from feast_anchor.plugin.migrations.upgrade import alembic_config

DAY = datetime(2024, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def bring_to(url: str, revision: str) -> list[str]:
    """Bring the database up or down to a revision; returns the columns of its runs."""
    engine = connect(make_url(url))
    with writing(engine).begin() as connection:
        known = _revision(connection)
        move = command.upgrade if known < revision else command.downgrade
        move(alembic_config(connection), revision)
        columns = [column["name"] for column in inspect(connection).get_columns("runs")]
    engine.dispose()
    return columns


def _revision(connection: Connection) -> str:
    if not inspect(connection).has_table("anchor_schema_version"):
        return ""
    found = connection.execute(text("SELECT version_num FROM anchor_schema_version"))
    return str(found.scalar_one())


# What two runs of the first version left: one succeeded, the other never ended.
OLD_ROWS = (
    "INSERT INTO spaces VALUES "
    "('shop', 'shopper_v1', 'tea', 'space-1', 'sha256:aa', 'Tea?', NULL, 8, :day, :later)",
    "INSERT INTO runs VALUES ('run-1', 'shop', 'shopper_v1', 'sha256:aa', :day, :later, 2, :spec, "
    "'SUCCEEDED', 2, :day, :later, :later, 9, 8, NULL, NULL)",
    "INSERT INTO runs VALUES ('run-2', 'shop', 'shopper_v1', 'sha256:aa', :day, :later, 2, :spec, "
    "'RUNNING', 1, :later, :later, NULL, NULL, NULL, NULL, NULL)",
    "INSERT INTO shards VALUES ('run-1', 0, 10, 9, 1, 100, 80, 5, 10, 5, 9, 8, 1.5, 'dead')",
    "INSERT INTO dead_letters VALUES ('run-1', 0, 'event', 'null_key', 5)",
)


def fill_0001(url: str) -> None:
    """Insert the rows with plain SQL, with times as each database kept them."""
    zone = "" if url.startswith("sqlite") else "+00"
    values = {"spec": '{"ttl": 30}'}
    for name, time in (("day", DAY), ("later", DAY + timedelta(hours=1))):
        values[name] = time.replace(tzinfo=None).isoformat(" ", "microseconds") + zone
    engine = connect(make_url(url))
    with writing(engine).begin() as connection:
        for statement in OLD_ROWS:
            used = {name: value for name, value in values.items() if f":{name}" in statement}
            connection.execute(text(statement), used)
    engine.dispose()


def test_a_catalogue_of_the_first_revision_is_upgraded_with_its_rows(url: str) -> None:
    """Opening adds the columns; old rows keep every value and get the defaults."""
    assert "kind" not in bring_to(url, "0001")
    fill_0001(url)

    with Catalog.open(url) as catalog:
        second, first = catalog.runs()
        assert (first.run_id, first.status, first.attempt) == ("run-1", RunStatus.SUCCEEDED, 2)
        assert (first.window_start, first.window_end) == (DAY, DAY + timedelta(hours=1))
        assert (first.rows_offline, first.rows_online, first.events_in) == (9, 8, 100)
        assert (first.kind, first.created_until, first.spec) == ("materialize", None, {"ttl": 30})
        assert (second.run_id, second.status) == ("run-2", RunStatus.RUNNING)
        assert (second.kind, second.shards_done) == ("materialize", 0)
        (shard,) = catalog.shards("run-1")
        assert (shard.users_in, shard.users_embedded, shard.seconds) == (10, 9, 1.5)
        assert (shard.users_unchanged, shard.events_unchanged) == (0, 0)
        assert (shard.labels_in, shard.labels_rejected) == (0, 0)
        assert catalog.dead_letters("run-1") == [DeadLetterRow(0, "event", "null_key", 5, "dead")]
        (space,) = catalog.spaces()
        assert (space.fingerprint, space.first_seen) == ("space-1", DAY)


def test_an_upgraded_catalogue_goes_on_from_its_old_rows(url: str) -> None:
    """An old run is resumed with the new counts, and the old ones answer the new questions."""
    bring_to(url, "0001")
    fill_0001(url)
    with Catalog.open(url) as catalog:
        done = [run for run in catalog.runs(view="shopper_v1") if run.status == "SUCCEEDED"]
        assert [(run.run_id, run.kind) for run in done] == [("run-1", "materialize")]
        assert catalog.newest_created("shop", "shopper_v1") == DAY + timedelta(hours=1)

        end = DAY + timedelta(hours=1)
        run = RunRecord("run-2", "shop", "shopper_v1", "sha256:aa", DAY, end, 2, {})
        assert catalog.begin_run(run) == 2
        shard = ShardRecord(
            1, {}, None, users_in=7, users_embedded=3, users_unchanged=4, users_rejected=0,
            events_in=9, events_used=5, events_unchanged=4, events_rejected=0, events_outside=0,
            events_over_budget=0, rows_offline=3, rows_online=3, seconds=0.5,
        )  # fmt: skip
        catalog.record_shard("run-2", shard)
        assert catalog.shards("run-2") == [shard]


def test_a_catalogue_can_go_back_a_revision_and_up_again(url: str) -> None:
    """Downgrading takes the new columns alone, on each database."""
    bring_to(url, "0001")
    fill_0001(url)
    Catalog.open(url).close()
    assert not {"kind", "created_until"} & set(bring_to(url, "0001"))

    with Catalog.open(url) as catalog:
        assert [run.run_id for run in catalog.runs()] == ["run-2", "run-1"]
        assert [shard.users_in for shard in catalog.shards("run-1")] == [10]
