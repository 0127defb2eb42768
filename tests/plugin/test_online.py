from __future__ import annotations

import dataclasses
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, ValueType
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.online_response import OnlineResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from redis.backoff import NoBackoff
from redis.retry import Retry

from feast_anchor.onnx_export.errors import RunError, SpecError
from feast_anchor.plugin import Scenario, online, scenario_view, to_numpy
from feast_anchor.plugin.online import FeastOnlineWriter, FeastOnlineWriterFactory
from feast_anchor.plugin.planning import view_run
from feast_anchor.transforms.histories import micros
from feast_anchor.transforms.scoring import UserVectors
from feast_anchor.transforms.sinks import newest_per_user, rows_table
from feast_anchor.transforms.zeroshot import Answers
from services.postgres import PostgresServer
from services.valkey import ValkeyServer, valkey_server
from shop import QUERIES, config, make_tables, modalities, shop_view, write_tables

PaperBundle = Callable[..., Path]
Floats = np.ndarray[Any, np.dtype[np.float32]]

DIM = 8
MONDAY = datetime(2024, 1, 8, tzinfo=UTC)
WEEK = timedelta(days=7)
HOUR = timedelta(hours=1)
AXES = {Answers(("yes",), ("no",)): np.eye(DIM, dtype=np.float32)[0]}  # reads the first number
TINY = np.float32(1e-45)  # the smallest float32 there is


@dataclass(frozen=True)
class Shop:
    """An applied store with two scenario views, and a writer to its online store."""

    store: FeatureStore
    views: tuple[FeatureView, ...]

    def write(
        self,
        vectors: dict[Any, Floats],
        as_of: datetime = MONDAY,
        view: str = "taste_v1",
        writer: FeastOnlineWriter | None = None,
    ) -> int:
        """Write one row per user whose two fields both hold the user's vector."""
        scored = [
            UserVectors(
                str(user),
                np.array([micros(as_of)]),
                np.array([micros(as_of - HOUR)]),
                np.stack([vector, vector])[None],
            )
            for user, vector in vectors.items()
        ]
        return (writer or self.writer()).write(view, self.rows(scored, view))

    def rows(self, scored: list[UserVectors], view: str = "taste_v1") -> pa.Table:
        """Vectors as rows of a view."""
        (found,) = (fv for fv in self.views if fv.name == view)
        run = view_run(found, Path("unused"), "run")
        created = micros(MONDAY + 9 * WEEK)
        return newest_per_user(run, rows_table(run, [0, 1], scored, created, AXES))

    def writer(self) -> FeastOnlineWriter:
        """A writer as each worker process has it."""
        made = FeastOnlineWriterFactory(self.store.config, self.views)()
        assert isinstance(made, FeastOnlineWriter)
        return made

    def ask(self, *users: Any, features: list[str] | None = None, **more: Any) -> OnlineResponse:
        """An online response for some users."""
        rows = [{"shopper_id": user} for user in users]
        return self.store.get_online_features(features or ["taste_v1:tea"], rows, **more)

    def served(self, *users: Any, feature: str = "taste_v1:tea") -> list[list[float]]:
        """What rankers get for some users."""
        rows: list[list[float]] = to_numpy(self.ask(*users, features=[feature]), feature).tolist()
        return rows


def vector(first: float) -> Floats:
    """A vector that is told apart by its first number."""
    out = np.zeros(DIM, dtype=np.float32)
    out[0] = first
    return out


def open_shop(
    repo: Path, bundle: Path, kind: ValueType = ValueType.STRING, **settings: Any
) -> Shop:
    """Apply two scenario views that ask the same questions; the second has scores, too."""
    shopper = Entity(name="shopper", join_keys=["shopper_id"], value_type=kind)
    write_tables(repo / "tables", make_tables(users=1))
    store = FeatureStore(
        config=config(repo, **settings).model_copy(update={"project": f"online_{uuid4().hex}"})
    )
    views = tuple(
        scenario_view(
            name=name,
            entity=shopper,
            events=modalities(repo / "tables"),
            scenarios=[Scenario(key, query, score=score) for key, query in QUERIES.items()],
            bundle=bundle,
            sink=repo / "sinks" / name,
        )
        for name, score in (("taste_v1", False), ("taste_v2", True))
    )
    store.apply([shopper, *(m.view for m in modalities(repo / "tables")), *views])
    return Shop(store, views)


@pytest.fixture
def sqlite_shop(tmp_path: Path, paper_bundle: PaperBundle) -> Shop:
    """A shop whose vectors are served from SQLite."""
    return open_shop(tmp_path, paper_bundle())


@pytest.fixture
def valkey_shop(tmp_path: Path, paper_bundle: PaperBundle, valkey: ValkeyServer) -> Shop:
    """A shop whose vectors are served from a real Valkey."""
    online_store = {"type": "redis", "connection_string": valkey.connection_string}
    return open_shop(tmp_path, paper_bundle(), online=online_store)


@pytest.fixture(
    params=["sqlite_shop", pytest.param("valkey_shop", marks=pytest.mark.services)], ids=str
)
def shop(request: pytest.FixtureRequest) -> Shop:
    """The same shop on each online store."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Shop)
    return found


# --- writing ---------------------------------------------------------------------------------


def test_floats_come_back_bit_for_bit(shop: Shop) -> None:
    """Negative zero, the smallest and the largest float32 and odd digits survive the store."""
    numbers = np.array([-0.0, TINY, -TINY, 3.4028235e38, 1 / 3, -1e-8, 0.1, 1], dtype=np.float32)
    assert shop.write({"ada": numbers, "bo": -numbers}) == 2
    found = to_numpy(shop.ask("bo", "ada"), "taste_v1:tea")
    assert found.tobytes() == (-numbers).tobytes() + numbers.tobytes()


def test_every_field_and_history_end_are_served(shop: Shop) -> None:
    """A row's scenarios stand under their own names, with the time of the newest event read."""
    moments = np.array([micros(MONDAY)])
    both = np.stack([vector(1), vector(2)])[None]
    rows = shop.rows([UserVectors("ada", moments, moments - micros_of(HOUR), both)])
    assert shop.writer().write("taste_v1", rows) == 1
    features = ["taste_v1:tea", "taste_v1:churn", "taste_v1:history_end"]
    response = shop.ask("ada", features=features)
    assert to_numpy(response, "taste_v1:tea")[0, 0] == 1
    assert to_numpy(response, "taste_v1:churn")[0, 0] == 2
    assert response.to_dict()["history_end"] == [MONDAY - HOUR]


def micros_of(span: timedelta) -> int:
    """A span in microseconds."""
    return span // timedelta(microseconds=1)


def test_a_newer_as_of_is_served(shop: Shop) -> None:
    """Next week's vector replaces this week's."""
    for week in range(3):
        assert shop.write({"ada": vector(week)}, MONDAY + week * WEEK) == 1
    assert shop.served("ada")[0][0] == 2


def test_only_the_newest_as_of_of_a_run_is_served(shop: Shop) -> None:
    """Of several as-of times of one user the last is written, once."""
    moments = np.array([micros(MONDAY + week * WEEK) for week in range(3)])
    vectors = np.stack([np.stack([vector(week), vector(-week)]) for week in range(3)])
    rows = shop.rows([UserVectors("ada", moments, moments - 1, vectors)])
    assert rows.num_rows == 1
    assert shop.writer().write("taste_v1", rows) == 1
    assert shop.served("ada")[0][0] == 2


def test_an_older_backfill_does_not_overwrite(shop: Shop) -> None:
    """Filling in the past changes nothing that is served, and says that it wrote nothing."""
    shop.write({"ada": vector(1)}, MONDAY)
    assert shop.write({"ada": vector(2)}, MONDAY - WEEK) == 0
    assert shop.write({"ada": vector(3)}, MONDAY - timedelta(microseconds=1)) == 0
    assert shop.served("ada")[0][0] == 1


def test_the_same_as_of_is_overwritten(shop: Shop) -> None:
    """A corrected vector of the same as-of is served: Feast's Redis store alone would drop it."""
    shop.write({"ada": vector(1)})
    assert shop.write({"ada": vector(2)}) == 1
    assert shop.served("ada")[0][0] == 2


def test_an_as_of_between_two_seconds_can_be_written_again(shop: Shop) -> None:
    """`feast materialize-incremental` ends now: a fraction of a second that a store cuts off
    does not make the same as-of look older.
    """
    half = MONDAY + timedelta(microseconds=500_000)
    shop.write({"ada": vector(1)}, half)
    assert shop.write({"ada": vector(2)}, half) == 1
    assert shop.write({"ada": vector(3)}, half - timedelta(seconds=1)) == 0
    assert shop.served("ada")[0][0] == 2


def test_redis_compares_as_of_times_to_the_microsecond(valkey_shop: Shop) -> None:
    """One microsecond older is older (Feast's SQLite store keeps whole seconds)."""
    half = MONDAY + timedelta(microseconds=500_000)
    valkey_shop.write({"ada": vector(1)}, half)
    assert valkey_shop.write({"ada": vector(2)}, half - timedelta(microseconds=1)) == 0
    assert valkey_shop.served("ada")[0][0] == 1


def test_each_user_of_a_batch_is_judged_alone(shop: Shop) -> None:
    """Users with newer rows keep them, the others are written, new ones too."""
    shop.write({"ada": vector(1)}, MONDAY + WEEK)
    shop.write({"bo": vector(1)}, MONDAY - WEEK)
    assert shop.write({"ada": vector(2), "bo": vector(2), "cy": vector(2)}) == 2
    assert [row[0] for row in shop.served("ada", "bo", "cy")] == [1, 2, 2]


def test_a_newer_row_of_another_view_does_not_count(shop: Shop) -> None:
    """Two views of one user have as-of times of their own, also in one Redis hash."""
    shop.write({"ada": vector(1)}, MONDAY + WEEK, view="taste_v2")
    assert shop.write({"ada": vector(2)}, MONDAY, view="taste_v1") == 1
    assert shop.served("ada", feature="taste_v1:tea")[0][0] == 2
    assert shop.served("ada", feature="taste_v2:tea")[0][0] == 1


def test_rows_beyond_one_batch_are_all_written(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting the rows into batches loses none and mixes none."""
    monkeypatch.setattr(online, "_BATCH", 3)
    users = [f"u{n}" for n in range(10)]
    assert shop.write({user: vector(n) for n, user in enumerate(users)}) == 10
    assert [row[0] for row in shop.served(*users)] == list(range(10))


def test_no_rows_are_written_from_an_empty_shard(shop: Shop) -> None:
    """Zero rows are fine."""
    assert shop.write({}) == 0


def test_writing_leaves_the_repos_configuration_alone(valkey_shop: Shop) -> None:
    """Other views of the repo keep Feast's own rule about older rows."""
    writer = valkey_shop.writer()
    valkey_shop.write({"ada": vector(1)}, writer=writer)
    assert valkey_shop.store.config.online_store.skip_dedup is False
    assert writer._write_config.online_store.skip_dedup is True


def test_integer_keys_are_looked_up_as_integers(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """An INT64 entity is found under its number."""
    shop = open_shop(tmp_path, paper_bundle(), ValueType.INT64)
    assert shop.write({7: vector(1), -(2**40): vector(2)}) == 2
    assert [row[0] for row in shop.served(-(2**40), 7)] == [2, 1]


def test_a_factory_shows_no_credentials(tmp_path: Path, paper_bundle: PaperBundle) -> None:
    """Its text may land in a worker's log."""
    secret = {"type": "redis", "connection_string": "localhost:1,password=s3cret"}
    view = shop_view(tmp_path, paper_bundle())
    factory = FeastOnlineWriterFactory(config(tmp_path, online=secret), (view,))
    assert "s3cret" not in repr(factory) + repr(factory())


@settings(deadline=None)
@given(numbers=hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32)))
def test_packed_floats_are_what_protobuf_would_write(numbers: Floats) -> None:
    """The hand-made message equals protobuf's own for any length and any float, NaN too."""
    packed = online._float_list(numbers)
    assert np.array(packed.val, dtype=np.float32).tobytes() == numbers.tobytes()
    assert packed.SerializeToString() == type(packed)(val=numbers.tolist()).SerializeToString()


# --- a store that is away ---------------------------------------------------------------------


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A server of this test's own, because it is going to be stopped."""
    with valkey_server() as server:
        yield server


@pytest.fixture
def own_shop(tmp_path: Path, paper_bundle: PaperBundle, own_valkey: ValkeyServer) -> Shop:
    """A shop whose vectors are served from that server."""
    online_store = {"type": "redis", "connection_string": own_valkey.connection_string}
    return open_shop(tmp_path, paper_bundle(), online=online_store)


def impatient(store_config: Any) -> OnlineStore:
    """A Redis store whose client does not wait by itself, as it would for some seconds."""
    store = get_online_store_from_config(store_config)
    assert isinstance(store, RedisOnlineStore)
    store._get_client(store_config).set_retry(Retry(NoBackoff(), 0))
    return store


def tries(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about tries."""
    return [one.getMessage() for one in caplog.records if one.name.endswith("retries")]


@pytest.mark.services
def test_a_store_that_comes_back_is_waited_for(
    own_shop: Shop,
    own_valkey: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Stopped before a write and started two seconds later: all rows arrive, counted once."""
    monkeypatch.setattr(online, "_BATCH", 3)
    monkeypatch.setattr(online, "get_online_store_from_config", impatient)
    users = [f"u{n}" for n in range(10)]
    writer = own_shop.writer()
    assert own_shop.write({"before": vector(1)}, writer=writer) == 1  # it has a connection now

    own_valkey.stop()
    back = threading.Timer(2, own_valkey.start)
    back.start()
    rows = {user: vector(n) for n, user in enumerate(users)}
    assert own_shop.write(rows, writer=writer) == 10
    back.join()

    assert [row[0] for row in own_shop.served(*users)] == list(range(10))
    with own_valkey.client() as client:
        assert client.dbsize() == 10
    assert len(tries(caplog)) > 1
    assert tries(caplog)[0].startswith(
        "writing rows of view 'taste_v1' to online store 'redis': try 1 failed (ConnectionError: "
    )


@pytest.mark.services
def test_a_store_that_stays_away_ends_the_run(
    own_shop: Shop, own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which view and store, how long, why, and that running again resumes."""
    monkeypatch.setattr(online, "get_online_store_from_config", impatient)
    writer = dataclasses.replace(own_shop.writer(), retry_seconds=1)
    own_valkey.stop()
    with pytest.raises(RunError) as caught:
        own_shop.write({"ada": vector(1)}, writer=writer)

    message = str(caught.value)
    assert "View 'taste_v1': online store 'redis' took no rows for " in message
    assert "(retry_seconds is 1): ConnectionError: " in message
    assert "then run again to resume" in message
    own_valkey.start()
    assert own_shop.write({"ada": vector(1)}, writer=writer) == 1


def test_a_connection_that_a_store_keeps_though_it_broke_is_replaced(
    tmp_path: Path,
    paper_bundle: PaperBundle,
    postgres: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Feast's PostgreSQL store would use its dropped connection for ever."""
    name = f"online_{uuid4().hex}"
    postgres.create_database(name)
    login = {"host": postgres.host, "port": postgres.port, "user": "postgres", "password": "any"}
    settings = login | {"type": "postgres", "database": name, "sslmode": "disable"}
    shop = open_shop(tmp_path, paper_bundle(), online=settings)
    writer = shop.writer()
    assert shop.write({"ada": vector(1)}, writer=writer) == 1

    with psycopg.connect(postgres.url(name), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert shop.write({"ada": vector(2), "bo": vector(3)}, writer=writer) == 2
    assert len(tries(caplog)) == 1

    again = FeatureStore(config=shop.store.config)  # reads through a connection of its own
    assert [row[0] for row in Shop(again, shop.views).served("ada", "bo")] == [2, 3]
    for store in (
        writer._store,
        *(one._get_provider().online_store for one in (shop.store, again)),
    ):
        assert isinstance(store, PostgreSQLOnlineStore)
        assert store._conn is not None  # Feast itself never closes it
        store._conn.close()


class Unlucky:
    """An online store whose writes go wrong: before they arrive, after it, or halfway."""

    def __init__(self, store: Any, errors: list[Exception], share: float) -> None:
        self.store, self.errors, self.share = store, errors, share
        self.reads = 0

    def online_read(self, *arguments: Any) -> Any:
        self.reads += 1
        return self.store.online_read(*arguments)

    def online_write_batch(self, config: Any, view: Any, rows: list[Any], progress: Any) -> None:
        if self.errors:
            first = rows[: round(len(rows) * self.share)]
            self.store.online_write_batch(config, view, first, progress)
            raise self.errors.pop()
        self.store.online_write_batch(config, view, rows, progress)


def unlucky(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, errors: list[Exception], share: float = 0.0
) -> Unlucky:
    """Let the store's next writes fail with these errors, the last first."""
    store = Unlucky(shop.writer()._store, errors, share)
    monkeypatch.setattr(online, "get_online_store_from_config", lambda _: store)
    return store


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_batch_that_arrived_in_part_is_written_whole(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Each try reads, compares and writes anew, so each row is counted and stored once."""
    shop.write({"new": vector(9)}, MONDAY + WEEK)
    store = unlucky(shop, monkeypatch, [ConnectionError("cut"), TimeoutError()], share)
    rows = {"ada": vector(1), "bo": vector(2), "new": vector(3)}
    assert shop.write(rows) == 2
    assert store.reads == 3
    assert [row[0] for row in shop.served("ada", "bo", "new")] == [1, 2, 9]


@pytest.mark.parametrize("error", [ValueError("x"), NotImplementedError(), SpecError("x")])
def test_a_mistake_is_raised_at_once(
    sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is neither waited for nor turned into something else."""
    store = unlucky(sqlite_shop, monkeypatch, [error])
    with pytest.raises(type(error)) as caught:
        sqlite_shop.write({"ada": vector(1)})
    assert caught.value is error
    assert store.reads == 1


def test_no_secret_of_the_store_is_logged_or_raised(
    valkey_shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the warnings nor in the error and its traceback."""
    secret = valkey_shop.store.config.online_store
    login = f'{secret.connection_string},username=me,password="s3cret"'
    config = valkey_shop.store.config.model_copy()
    config._online_store = secret.model_copy(update={"connection_string": login})
    said = [OSError("no s3cret at redis://me:0ther@host") for _ in range(9)]
    unlucky(valkey_shop, monkeypatch, list(said))
    views = {view.name: view for view in valkey_shop.views}
    monkeypatch.setattr(FeastOnlineWriter, "_not_older", lambda _, __, batch: batch)
    with pytest.raises(RunError) as caught:
        valkey_shop.write({"a": vector(1)}, writer=FeastOnlineWriter(config, views, 0.5))

    printed = "".join(traceback.format_exception(caught.value)) + "".join(tries(caplog))
    assert "OSError: no *** at redis://me:***@host" in printed
    assert not re.search("s3cret|0ther", printed)


def test_the_factory_hands_its_patience_on(sqlite_shop: Shop) -> None:
    """A minute unless it is told otherwise."""
    factory = FeastOnlineWriterFactory(sqlite_shop.store.config, sqlite_shop.views, 5)
    made = factory()
    assert isinstance(made, FeastOnlineWriter)
    assert (made.retry_seconds, sqlite_shop.writer().retry_seconds) == (5, 60)


# --- reading ---------------------------------------------------------------------------------


@pytest.fixture
def filled(sqlite_shop: Shop) -> Shop:
    """Ada and Bo in the first view, Ada in the second."""
    sqlite_shop.write({"ada": vector(1), "bo": vector(2)})
    sqlite_shop.write({"ada": vector(3)}, view="taste_v2")
    return sqlite_shop


def test_vectors_come_as_one_matrix_in_the_order_asked(filled: Shop) -> None:
    """float32 [entities, dim], own memory that a ranker may write to."""
    matrix = to_numpy(filled.ask("bo", "ada", "bo"), "taste_v1:tea")
    assert matrix.shape == (3, DIM)
    assert matrix.dtype == np.float32
    assert matrix[:, 0].tolist() == [2, 1, 2]
    assert matrix.flags.writeable
    assert matrix.flags.c_contiguous


def test_unknown_users_are_rows_of_nan(filled: Shop) -> None:
    """A user without a vector keeps the row, wherever it stands."""
    matrix = to_numpy(filled.ask("nobody", "ada", "no one"), "taste_v1:tea")
    assert np.isnan(matrix).all(axis=1).tolist() == [True, False, True]
    assert matrix.shape == (3, DIM)


def test_only_unknown_users_have_no_dimension(filled: Shop) -> None:
    """The documented check for missing users still answers."""
    matrix = to_numpy(filled.ask("nobody", "no one"), "taste_v1:tea")
    assert matrix.shape == (2, 0)
    assert np.isnan(matrix).all(axis=1).tolist() == [True, True]


def test_a_field_that_was_not_asked_for_is_refused(filled: Shop) -> None:
    """The error names the field and those that the response has."""
    response = filled.ask("ada")
    with pytest.raises(SpecError, match=r"no single field 'taste_v1:churn'; it has \['shopper_id"):
        to_numpy(response, "taste_v1:churn")
    with pytest.raises(SpecError, match="full_feature_names=True where two views share"):
        to_numpy(response, "taste_v1:Tea")


def test_full_feature_names_tell_two_views_apart(filled: Shop) -> None:
    """With both views in one response, each reference gives its own view's vectors."""
    features = ["taste_v1:tea", "taste_v2:tea"]
    response = filled.ask("ada", features=features, full_feature_names=True)
    assert to_numpy(response, "taste_v1:tea")[0, 0] == 1
    assert to_numpy(response, "taste_v2:tea")[0, 0] == 3
    with pytest.raises(SpecError, match="no single field 'taste_v3:tea'"):
        to_numpy(response, "taste_v3:tea")


@pytest.mark.parametrize("field", ["taste_v1:history_end", "shopper_id"])
def test_a_field_without_vectors_is_refused(filled: Shop, field: str) -> None:
    """A time or a key is not turned into NaN."""
    response = filled.ask("ada", features=["taste_v1:tea", "taste_v1:history_end"])
    with pytest.raises(SpecError, match=f"field '{field}' holds .*expected vectors of float32"):
        to_numpy(response, field)


def test_a_row_of_a_real_run_equals_the_vectors_given(filled: Shop) -> None:
    """What Feast's own dictionary holds and what `to_numpy` gives are the same numbers."""
    response = filled.ask("ada", "bo")
    assert response.to_dict()["tea"] == to_numpy(response, "taste_v1:tea").tolist()


def test_a_score_is_served_as_one_number(shop: Shop) -> None:
    """Every bit of a float32, negative and tiny ones too; a user without one is NaN."""
    given = {"ada": np.float32(-1 / 3), "bo": np.float32(0), "cy": TINY}
    shop.write({user: vector(float(number)) for user, number in given.items()}, view="taste_v2")
    response = shop.ask(*given, "nobody", features=["taste_v2:tea_score", "taste_v2:tea"])
    found = to_numpy(response, "taste_v2:tea_score")
    assert found.shape == (4, 1)
    assert found[:3, 0].tobytes() == np.array(list(given.values())).tobytes()
    assert np.isnan(found[3]).all()
    assert to_numpy(response, "taste_v2:tea")[:3, 0].tobytes() == found[:3, 0].tobytes()
    assert response.to_dict()["tea_score"][0] == float(given["ada"])
