from __future__ import annotations

import dataclasses
import logging
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, column, inspect, make_url, select, table, update

from alone import let_go, line_of, start_python
from feast_anchor.onnx_export.errors import CatalogError
from feast_anchor.plugin.catalog import (
    Catalog,
    Counts,
    DeadLetterRow,
    RunRecord,
    RunStatus,
    ShardRecord,
    SpaceRecord,
)
from feast_anchor.plugin.migrations.database import connect, explained, writing
from feast_anchor.plugin.migrations.tables import DEAD_LETTERS, METADATA, SHARD_COUNTS
from feast_anchor.plugin.migrations.upgrade import VERSION_TABLE, alembic_config, migrate
from services.postgres import PostgresServer

HIDDEN = "s3cr3t-Passw0rd"
DAY = datetime(2024, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)

SPACE = SpaceRecord(
    fingerprint="space-1",
    project="shop",
    view="shopper_v1",
    field="coupon_redeemer",
    bundle_digest="sha256:aa",
    query="Will this household redeem a coupon?",
    prompt=None,
    dim=128,
)
RUN = RunRecord(
    run_id="run-1",
    project="shop",
    view="shopper_v1",
    bundle_digest="sha256:aa",
    window_start=DAY - timedelta(days=7),
    window_end=DAY,
    shards=4,
    spec={"scenarios": [{"name": "coupon_redeemer", "query": "Wird eingelöst?"}], "ttl": 30},
)
SHARD = ShardRecord(
    shard=0,
    users_in=12,
    users_embedded=9,
    users_unchanged=2,
    users_rejected=1,
    events_in=103,
    events_used=80,
    events_unchanged=3,
    events_rejected=5,
    events_outside=10,
    events_over_budget=5,
    labels_in=13,
    labels_rejected=4,
    rows_offline=9,
    rows_online=8,
    seconds=1.5,
    rejected={"event:null_key": 3, "event:bad_time": 2, "user:no_usable_event": 1},
    dead_letter_path="sink/dead/0.jsonl",
)


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    """A fresh catalogue on each database."""
    with Catalog.open(url) as opened:
        yield opened


@contextmanager
def behind_its_back(url: str) -> Iterator[Connection]:
    """A transaction on the catalogue's database that the catalogue knows nothing of."""
    engine = connect(make_url(url))
    with writing(engine).begin() as connection:
        yield connection
    engine.dispose()


def race(script: str, *arguments: str, processes: int = 3) -> list[str]:
    """What each process printed after all were let go at the same moment."""
    running = [start_python(script, *arguments) for _ in range(processes)]
    for process in running:
        assert line_of(process) == "ready"
    for process in running:
        let_go(process)
    answers = [process.communicate(timeout=90) for process in running]
    assert [error for _, error in answers] == [""] * processes
    return [output for output, _ in answers]


# --- opening ---------------------------------------------------------------------------------


def test_a_fresh_catalogue_is_empty(catalog: Catalog) -> None:
    """An empty database, or a file in a folder that is not there, becomes an empty catalogue."""
    assert (catalog.runs(), catalog.spaces()) == ([], [])
    assert (catalog.shards("run-1"), catalog.dead_letters("run-1")) == ([], [])


def test_head_has_exactly_the_tables_the_package_uses(catalog: Catalog, url: str) -> None:
    """The revisions lead to the metadata: Alembic finds no difference."""
    with behind_its_back(url) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []


def test_the_counts_of_the_records_are_the_columns_that_are_summed() -> None:
    """A count added to one of the two places only would be lost."""
    assert [one.name for one in dataclasses.fields(Counts)] == [*SHARD_COUNTS, "seconds"]


def test_a_catalogue_from_before_the_first_revision_is_upgraded(url: str) -> None:
    """A database stamped at base, with no tables of ours, is brought to head by opening it."""
    Catalog.open(url).close()
    with behind_its_back(url) as connection:
        command.downgrade(alembic_config(connection), "base")
        assert set(inspect(connection).get_table_names()) == {VERSION_TABLE}

    with Catalog.open(url) as catalog:
        assert catalog.begin_run(RUN) == 1


def test_opening_again_keeps_what_was_recorded(url: str) -> None:
    """The second opening finds the schema at head and the rows of the first."""
    with Catalog.open(url) as catalog:
        catalog.record_spaces([SPACE])
    with Catalog.open(url) as catalog:
        assert catalog.spaces() == [SPACE]


def test_a_newer_schema_is_refused_with_both_revisions(url: str) -> None:
    """A catalogue that a later version migrated is named as such, and left as it is."""
    Catalog.open(url).close()
    with behind_its_back(url) as connection:
        connection.execute(
            update(table(VERSION_TABLE, column("version_num"))).values(version_num="9999")
        )

    with pytest.raises(CatalogError, match=r"'9999'.*'0002'.*Upgrade feast-anchor"):
        Catalog.open(url)


def test_opening_leaves_logging_alone(url: str) -> None:
    """Alembic neither adds handlers nor disables the loggers of the application."""
    before = logging.getLogger("an.application")
    handlers = list(logging.getLogger().handlers)
    Catalog.open(url).close()

    assert logging.getLogger().handlers == handlers
    assert not before.disabled


def test_importing_the_catalogue_does_not_import_alembic() -> None:
    """`feast apply` pays for Alembic only when a catalogue is opened."""
    script = "import sys, feast_anchor.plugin.catalog; print('alembic' in sys.modules)"
    assert start_python(script).communicate(timeout=90) == ("False\n", "")


OPEN_TOGETHER = """
import sys
import feast_anchor.plugin.migrations.upgrade
from feast_anchor.plugin.catalog import Catalog
print("ready", flush=True)
sys.stdin.readline()
with Catalog.open(sys.argv[1]) as catalog:
    print(len(catalog.runs()))
"""


def test_processes_that_open_a_fresh_catalogue_together_all_succeed(url: str) -> None:
    """One of them migrates, the others wait for it."""
    assert race(OPEN_TOGETHER, url) == ["0\n"] * 3


def test_opening_waits_for_a_migration_that_is_under_way(url: str) -> None:
    """Tables that another process has made but not committed are waited for, not made again."""
    with ThreadPoolExecutor() as pool:
        with behind_its_back(url) as connection:
            migrate(connection, "this database")
            opening = pool.submit(Catalog.open, url)
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.5)
        with opening.result(timeout=60) as catalog:
            assert catalog.runs() == []


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        f"postgresql+psycopg://anchor:{HIDDEN}@127.0.0.1:1/anchor",
        f"postgresql+psycopg://127.0.0.1:1/anchor?password={HIDDEN}",
        f"postgresql+psycopg://anchor:{HIDDEN}@127.0.0.1:port/anchor",
        f"postgresql+psycopg://anchor:my@{HIDDEN}@127.0.0.1:1/anchor",
        f"postgresql+psycopg://anchor:my@{HIDDEN}/x@127.0.0.1:1/anchor",
        f"nosuchdatabase://anchor:{HIDDEN}@127.0.0.1/anchor",
        f"mysql+mysqldb://anchor:{HIDDEN}@127.0.0.1/anchor",
        f"anchor:{HIDDEN}@127.0.0.1/anchor",
    ],
)
def test_no_password_in_the_error_when_it_cannot_be_opened(bad: str) -> None:
    """Unreachable, malformed or without a driver: neither message nor traceback has it."""
    with pytest.raises(CatalogError) as caught:
        Catalog.open(bad)

    assert HIDDEN not in "".join(traceback.format_exception(caught.value))


def test_a_driver_that_repeats_the_password_is_not_repeated() -> None:
    """The password and secret settings become stars, and the driver's own error is not shown."""
    phrase, other = "k3y-Passphrase", "0ther-Password"
    url = make_url(f"postgresql://anchor:{HIDDEN}@host/anchor?sslpassword={phrase}")
    said = f"no {HIDDEN} with {phrase} at postgresql://me:{other}@host"
    with pytest.raises(CatalogError) as caught, explained(url, "open"):
        raise OSError(said)

    printed = "".join(traceback.format_exception(caught.value))
    assert "OSError: no *** with *** at postgresql://me:***@host. Check" in printed
    assert HIDDEN not in printed


def test_the_error_names_the_server_and_what_it_said(postgres: PostgresServer) -> None:
    """A refused database is told from a refused connection, and the password is stars."""
    url = make_url(postgres.sqlalchemy_url("nowhere")).set(password=HIDDEN)
    with pytest.raises(CatalogError, match=r'\*\*\*@.*database "nowhere" does not exist') as caught:
        Catalog.open(url.render_as_string(hide_password=False))

    assert HIDDEN not in str(caught.value)


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    """A wrong path is reported as a catalogue that cannot be opened."""
    path = tmp_path / "anchor.db"
    path.write_text("a, b, c\n" * 1_000)
    with pytest.raises(CatalogError, match=r"anchor\.db.*not a database"):
        Catalog.open(f"sqlite:///{path}")


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A folder that cannot be made is a CatalogError too."""
    (tmp_path / "data").write_text("")
    with pytest.raises(CatalogError, match="Could not open"):
        Catalog.open(f"sqlite:///{tmp_path}/data/anchor.db")


def test_the_repr_has_no_password(postgres: PostgresServer) -> None:
    """A catalogue in a log line shows where it is, not how to get in."""
    url = make_url(postgres.sqlalchemy_url()).set(password=HIDDEN)
    with Catalog.open(url.render_as_string(hide_password=False)) as catalog:
        assert repr(catalog) == f"<Catalog {url.render_as_string(hide_password=True)}>"


# --- spaces ----------------------------------------------------------------------------------


def test_a_space_keeps_when_it_was_first_seen(catalog: Catalog) -> None:
    """Recording again moves only last_seen."""
    catalog.record_spaces([SPACE])
    (first,) = catalog.spaces()
    catalog.record_spaces([SPACE])
    (second,) = catalog.spaces()

    assert first == second == SPACE
    assert first.first_seen is not None
    assert second.last_seen is not None
    assert first.first_seen == first.last_seen == second.first_seen
    assert first.first_seen < second.last_seen
    assert {first.first_seen.tzinfo, second.last_seen.tzinfo} == {UTC}


def test_two_fields_that_share_a_space_are_both_found(catalog: Catalog) -> None:
    """The same model and query under two views is comparable, and shown as such."""
    other = dataclasses.replace(SPACE, view="shopper_v2")
    catalog.record_spaces([other, SPACE])

    assert catalog.spaces() == [SPACE, other]
    assert catalog.spaces("shopper_v2") == [other]


def test_a_field_shows_the_space_it_was_last_computed_in_first(catalog: Catalog) -> None:
    """A field that went to another model and back has two spaces, the current one first."""
    retrained = dataclasses.replace(SPACE, fingerprint="space-2", bundle_digest="sha256:bb")
    for space in (SPACE, retrained, SPACE):
        catalog.record_spaces([space])

    assert catalog.spaces("shopper_v1") == [SPACE, retrained]


# --- runs ------------------------------------------------------------------------------------


def test_a_run_that_went_well(catalog: Catalog) -> None:
    """Its summary has what it was begun with, its totals and the rows it reported."""
    before = datetime.now(UTC)
    assert catalog.begin_run(RUN) == 1
    catalog.record_shard("run-1", SHARD)
    catalog.record_shard("run-1", dataclasses.replace(SHARD, shard=1, events_in=3_000_000_000))
    catalog.finish_run("run-1", rows_offline=18, rows_online=17)

    (run,) = catalog.runs()
    assert {name: getattr(run, name) for name in RUN.__dataclass_fields__} == vars(RUN)
    assert (run.status, run.attempt, run.error_class, run.error) == ("SUCCEEDED", 1, None, None)
    assert (run.shards_done, run.users_in, run.events_in) == (2, 24, 3_000_000_103)
    assert (run.users_unchanged, run.events_unchanged) == (4, 6)
    assert (run.labels_in, run.labels_rejected) == (26, 8)
    assert (run.rows_offline, run.rows_online, run.seconds) == (18, 17, 3.0)
    assert (run.kind, run.created_until) == ("materialize", None)
    assert {type(getattr(run, name)) for name in SHARD_COUNTS} == {int}
    assert run.finished_at is not None
    assert before <= run.started_at <= run.finished_at <= run.updated_at <= datetime.now(UTC)


def test_times_come_back_as_the_same_instant_in_utc(catalog: Catalog) -> None:
    """A window given in another zone is the same window, to the microsecond, in UTC."""
    tokyo = timezone(timedelta(hours=9))
    catalog.begin_run(dataclasses.replace(RUN, window_end=DAY.astimezone(tokyo)))

    (run,) = catalog.runs()
    assert run.window_end == DAY
    times = (run.window_start, run.window_end, run.started_at, run.updated_at)
    assert {time.tzinfo for time in times} == {UTC}


def test_a_naive_window_is_refused() -> None:
    """A window without a time zone means a different instant on every machine."""
    with pytest.raises(CatalogError, match=r"window_end is datetime.*time-zone aware"):
        dataclasses.replace(RUN, window_end=DAY.replace(tzinfo=None))


def test_an_unfinished_run_shows_its_shards_so_far(catalog: Catalog) -> None:
    """Before the end the rows are the sum of the shards; without shards all is zero."""
    catalog.begin_run(RUN)
    (begun,) = catalog.runs()
    catalog.record_shard("run-1", SHARD)
    (going,) = catalog.runs()

    assert (begun.status, begun.shards_done, begun.rows_offline) == (RunStatus.RUNNING, 0, 0)
    assert (begun.seconds, begun.finished_at) == (0.0, None)
    assert (going.shards_done, going.rows_offline, going.rows_online) == (1, 9, 8)
    assert going.updated_at > begun.updated_at


def test_a_failed_run_says_why_and_forgets_it_when_begun_again(catalog: Catalog) -> None:
    """The class and the start of the message are kept until the next attempt."""
    catalog.begin_run(RUN)
    catalog.fail_run("run-1", CatalogError("broken " + "x" * 5_000))
    (failed,) = catalog.runs()
    assert catalog.begin_run(RUN) == 2
    (again,) = catalog.runs()

    assert (failed.status, failed.attempt) == (RunStatus.FAILED, 1)
    assert failed.error_class == "feast_anchor.onnx_export.errors.CatalogError"
    assert failed.error == ("broken " + "x" * 5_000)[:2_000]
    assert failed.finished_at is not None
    assert (again.status, again.error_class, again.error) == (RunStatus.RUNNING, None, None)
    assert again.finished_at is None
    assert again.started_at > failed.started_at


def test_any_message_can_be_stored_and_no_url_password_is(catalog: Catalog) -> None:
    """NUL and lone surrogates are escaped; a URL in the message loses its password."""
    catalog.begin_run(RUN)
    catalog.fail_run("run-1", ValueError(f"\x00 \udcff é at postgresql://me:{HIDDEN}@db/x"))

    (run,) = catalog.runs()
    assert run.error == "\\x00 \\udcff é at postgresql://me:***@db/x"


def test_every_write_may_be_repeated(catalog: Catalog) -> None:
    """Reporting the same facts twice leaves the catalogue as reporting them once."""
    catalog.begin_run(RUN)
    catalog.record_shard("run-1", SHARD)
    catalog.finish_run("run-1", rows_offline=9, rows_online=8)
    once = (catalog.runs(), catalog.shards("run-1"), catalog.dead_letters("run-1"))
    catalog.record_shard("run-1", SHARD)
    catalog.finish_run("run-1", rows_offline=9, rows_online=8)
    twice = (catalog.runs(), catalog.shards("run-1"), catalog.dead_letters("run-1"))

    moved = {"updated_at": once[0][0].updated_at, "finished_at": once[0][0].finished_at}
    assert [dataclasses.replace(run, **moved) for run in twice[0]] == once[0]  # type: ignore[arg-type]
    assert twice[1:] == once[1:]


def test_a_success_after_a_failure_clears_the_error(catalog: Catalog) -> None:
    """A run that is reported failed and then finished shows no stale error."""
    catalog.begin_run(RUN)
    catalog.fail_run("run-1", RuntimeError("late"))
    catalog.finish_run("run-1", rows_offline=1, rows_online=1)

    (run,) = catalog.runs()
    assert (run.status, run.error_class, run.error) == (RunStatus.SUCCEEDED, None, None)


def test_runs_are_listed_newest_first_and_by_view(catalog: Catalog) -> None:
    """The run begun last comes first, also when it is an old run begun again."""
    other = dataclasses.replace(RUN, run_id="run-2", view="shopper_v2")
    catalog.begin_run(RUN)
    catalog.begin_run(other)
    assert [run.run_id for run in catalog.runs()] == ["run-2", "run-1"]
    catalog.begin_run(RUN)

    assert [run.run_id for run in catalog.runs()] == ["run-1", "run-2"]
    assert [run.run_id for run in catalog.runs("shopper_v2")] == ["run-2"]


def test_a_run_id_names_one_run_only(catalog: Catalog) -> None:
    """The same id with another bundle is refused, and the recorded run stays as it is."""
    catalog.begin_run(RUN)
    with pytest.raises(CatalogError, match=r"bundle_digest 'sha256:aa'.*'sha256:bb'"):
        catalog.begin_run(dataclasses.replace(RUN, bundle_digest="sha256:bb"))

    (run,) = catalog.runs()
    assert (run.bundle_digest, run.attempt) == ("sha256:aa", 1)


def test_a_run_begun_again_for_another_window_shows_that_window(catalog: Catalog) -> None:
    """Two windows with the same as-of times are one run; its summary has the last one asked for."""
    catalog.begin_run(RUN)
    later = dataclasses.replace(RUN, window_end=DAY + timedelta(hours=1))

    assert catalog.begin_run(later) == 2
    assert [run.window_end for run in catalog.runs()] == [later.window_end]


def test_another_number_of_shards_forgets_the_old_shards(catalog: Catalog, url: str) -> None:
    """Shards of another cut would be counted beside the new ones; their letters go with them."""
    catalog.begin_run(RUN)
    catalog.record_shard("run-1", dataclasses.replace(SHARD, shard=3))
    catalog.begin_run(dataclasses.replace(RUN, shards=2))

    (run,) = catalog.runs()
    assert (run.shards, run.shards_done, run.users_in) == (2, 0, 0)
    with behind_its_back(url) as connection:
        assert connection.execute(select(DEAD_LETTERS)).all() == []


def test_a_run_that_was_never_begun_cannot_be_reported_on(catalog: Catalog) -> None:
    """Nothing is recorded under an unknown run id, and the error says what to do."""
    with pytest.raises(CatalogError, match=r"'run-9' is not in .*begin it first"):
        catalog.finish_run("run-9", rows_offline=0, rows_online=0)
    with pytest.raises(CatalogError, match="'run-9'"):
        catalog.fail_run("run-9", RuntimeError())
    with pytest.raises(CatalogError, match="'run-9'"):
        catalog.record_shard("run-9", SHARD)

    assert catalog.shards("run-9") == []


# --- what the next run has to know ------------------------------------------------------------


def test_the_newest_created_is_the_latest_that_any_run_said(catalog: Catalog) -> None:
    """The largest created_until wins, also one of a clock that went wrong and of a failed run."""
    ahead = datetime(2100, 1, 1, 1, 2, 3, 4, tzinfo=UTC)
    other = dataclasses.replace(RUN, run_id="run-2")
    for run, until in ((RUN, ahead), (other, DAY)):
        catalog.begin_run(run)
        catalog.finish_run(run.run_id, rows_offline=1, rows_online=1, created_until=until)
    catalog.fail_run("run-1", RuntimeError("after all"))

    assert catalog.newest_created("shop", "shopper_v1") == ahead
    assert {run.run_id: run.created_until for run in catalog.runs()} == {
        "run-1": ahead,
        "run-2": DAY,
    }


def test_a_run_begun_again_keeps_how_new_its_rows_were(catalog: Catalog) -> None:
    """Neither the next attempt nor an ending that says nothing forgets what was served."""
    ahead = datetime(2100, 1, 1, tzinfo=UTC)
    catalog.begin_run(RUN)
    catalog.finish_run("run-1", rows_offline=1, rows_online=1, created_until=ahead)
    catalog.begin_run(RUN)
    assert catalog.newest_created("shop", "shopper_v1") == ahead
    catalog.finish_run("run-1", rows_offline=1, rows_online=1)
    assert catalog.newest_created("shop", "shopper_v1") == ahead


def test_a_run_that_did_not_say_counts_from_its_start(catalog: Catalog) -> None:
    """Such runs stamp their rows before they are begun; a view without runs knows nothing."""
    catalog.begin_run(RUN)
    (run,) = catalog.runs()

    assert catalog.newest_created("shop", "shopper_v1") == run.started_at
    assert catalog.newest_created("shop", "shopper_v2") is None
    assert catalog.newest_created("other", "shopper_v1") is None


def test_a_kind_of_run_that_does_not_exist_is_refused() -> None:
    """A run is asked for by Feast or by a backfill."""
    with pytest.raises(CatalogError, match=r"kind is 'replay'; .*'materialize', 'backfill'"):
        dataclasses.replace(RUN, kind="replay")


# --- shards and dead letters -----------------------------------------------------------------


def test_shards_come_back_as_they_were_recorded(catalog: Catalog) -> None:
    """Records are read back whole, in the order of their numbers."""
    clean = dataclasses.replace(SHARD, shard=1, rejected={}, dead_letter_path=None)
    catalog.begin_run(RUN)
    catalog.record_shard("run-1", clean)
    catalog.record_shard("run-1", SHARD)

    assert catalog.shards("run-1") == [SHARD, clean]


def test_dead_letters_say_what_was_rejected_why_and_where_it_lies(catalog: Catalog) -> None:
    """One row per shard, kind and reason, with the path of the shard's dead letters."""
    catalog.begin_run(RUN)
    catalog.record_shard("run-1", SHARD)

    path = "sink/dead/0.jsonl"
    assert catalog.dead_letters("run-1") == [
        DeadLetterRow(0, "event", "bad_time", 2, path),
        DeadLetterRow(0, "event", "null_key", 3, path),
        DeadLetterRow(0, "user", "no_usable_event", 1, path),
    ]


def test_a_shard_recorded_again_replaces_its_dead_letters_only(catalog: Catalog) -> None:
    """Reasons that no longer occur disappear; other shards and runs keep theirs."""
    catalog.begin_run(RUN)
    catalog.begin_run(dataclasses.replace(RUN, run_id="run-2"))
    neighbour = dataclasses.replace(SHARD, shard=1)
    catalog.record_shard("run-1", SHARD)
    catalog.record_shard("run-1", neighbour)
    catalog.record_shard("run-2", SHARD)
    repaired = dataclasses.replace(SHARD, events_rejected=1, rejected={"event:null_key": 1})
    catalog.record_shard("run-1", repaired)

    assert catalog.shards("run-1") == [repaired, neighbour]
    assert catalog.shards("run-2") == [SHARD]


def test_a_shard_is_recorded_with_its_dead_letters_or_not_at_all(catalog: Catalog) -> None:
    """When a dead letter cannot be stored, the shard keeps what it had."""
    catalog.begin_run(RUN)
    catalog.record_shard("run-1", SHARD)
    broken = dataclasses.replace(SHARD, users_in=99, rejected={"event:x": None})  # type: ignore[dict-item]
    with pytest.raises(CatalogError, match="Could not write to"):
        catalog.record_shard("run-1", broken)

    assert catalog.shards("run-1") == [SHARD]


def test_a_rejection_that_is_of_neither_kind_is_refused() -> None:
    """A reason without its kind could not be told from another's."""
    with pytest.raises(CatalogError, match=r"Shard 0 .*'null_key'.*'event:<reason>'"):
        dataclasses.replace(SHARD, rejected={"null_key": 1})


# --- interrupted and concurrent runs ---------------------------------------------------------


BEGIN_AND_HANG = """
import datetime, sys
from feast_anchor.plugin.catalog import Catalog, RunRecord, ShardRecord, Counts
start, end = (datetime.datetime.fromisoformat(one) for one in sys.argv[2:])
counts = dict.fromkeys(Counts.__dataclass_fields__, 1)
with Catalog.open(sys.argv[1]) as catalog:
    catalog.begin_run(RunRecord("run-1", "shop", "shopper_v1", "sha256:aa", start, end, 4, {}))
    catalog.record_shard("run-1", ShardRecord(2, {"event:null_key": 1}, None, **counts))
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_a_killed_run_stays_running_and_is_resumed_as_the_second_attempt(url: str) -> None:
    """After SIGKILL its shards are still recorded, and beginning again counts on."""
    window = (RUN.window_start.isoformat(), RUN.window_end.isoformat())
    process = start_python(BEGIN_AND_HANG, url, *window)
    assert line_of(process) == "ready"
    process.kill()
    process.communicate()

    with Catalog.open(url) as catalog:
        (killed,) = catalog.runs()
        assert (killed.status, killed.attempt, killed.shards_done) == (RunStatus.RUNNING, 1, 1)
        assert catalog.begin_run(RUN) == 2
        assert [shard.shard for shard in catalog.shards("run-1")] == [2]
        (resumed,) = catalog.runs()
        assert (resumed.attempt, resumed.shards_done) == (2, 1)


BEGIN_OFTEN = """
import datetime, sys
from feast_anchor.plugin.catalog import Catalog, RunRecord, SpaceRecord
start, end = (datetime.datetime.fromisoformat(one) for one in sys.argv[2:])
run = RunRecord("run-1", "shop", "shopper_v1", "sha256:aa", start, end, 4, {})
spaces = [SpaceRecord(f"s{n}", "shop", "v", "f", "d", None, None, 8) for n in range(3)]
with Catalog.open(sys.argv[1]) as catalog:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(10):
        catalog.record_spaces(spaces)
        spaces.reverse()
        print(catalog.begin_run(run))
"""


def test_attempts_of_processes_that_begin_one_run_together_are_all_different(url: str) -> None:
    """Writers wait for each other instead of failing, and no attempt number is given twice."""
    window = (RUN.window_start.isoformat(), RUN.window_end.isoformat())
    outputs = race(BEGIN_OFTEN, url, *window)

    attempts = sorted(int(line) for output in outputs for line in output.splitlines())
    assert attempts == list(range(1, 31))
    with Catalog.open(url) as catalog:
        assert len(catalog.spaces("v")) == 3


def test_a_backfill_over_a_materialized_window_stays_a_materialize(catalog: Catalog) -> None:
    """Its rows are served, whoever computes them again; the other way round it becomes one."""
    backfill = dataclasses.replace(RUN, kind="backfill")
    kinds = []
    for run in (backfill, RUN, backfill):
        catalog.begin_run(run)
        kinds.append(catalog.runs()[0].kind)
    assert kinds == ["backfill", "materialize", "materialize"]
