"""Vectors in and out of Feast's online store.

Writing: only the newest as-of of each user is served, and a backfill of an older window never
overwrites it. A batch may be written any number of times, so one that meets a store which is away
is tried again until the store is back.

Reading: `to_numpy` turns a response into one float32 matrix without a Python list per vector.
Rankers do not need it: the response is Feast's own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.infra.online_stores.online_store import OnlineStore
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value

from feast_anchor.onnx_export.errors import RunError, SpaceError, SpecError
from feast_anchor.plugin.migrations.database import is_secret, told
from feast_anchor.plugin.retries import may_pass, retrying
from feast_anchor.transforms.job import CREATED_TIMESTAMP, EVENT_TIMESTAMP, HISTORY_END
from feast_anchor.transforms.sinks import OnlineWriter

_BATCH = 500
_RETRY_S = 60.0
_SETTING = re.compile(r"([^\s,;&?=]+)=([^\s,;&]+)")  # in a store's connection string

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


@dataclass(frozen=True)
class FeastOnlineWriterFactory:
    """Makes a writer in each worker process from the repo's own configuration."""

    config: RepoConfig = field(repr=False)  # may hold credentials
    views: tuple[FeatureView, ...]
    retry_seconds: float = _RETRY_S

    def __call__(self) -> OnlineWriter:
        """A writer for the calling process."""
        views = {view.name: view for view in self.views}
        return FeastOnlineWriter(self.config, views, self.retry_seconds)


@dataclass(frozen=True)
class FeastOnlineWriter:
    """Upserts rows of scenario views through the repo's Feast online store.

    A batch whose store is away is tried again for `retry_seconds`; 0 tries once.
    """

    config: RepoConfig = field(repr=False)
    views: dict[str, FeatureView]
    retry_seconds: float = _RETRY_S

    @cached_property
    def _store(self) -> OnlineStore:
        return get_online_store_from_config(self.config.online_store)

    @cached_property
    def _write_config(self) -> RepoConfig:
        """Redis drops a write whose as-of is not newer than the stored one, so a corrected vector
        of the same as-of would be lost; what may be written is decided here instead.
        """
        online = self.config.online_store
        if not hasattr(online, "skip_dedup"):
            return self.config
        config = self.config.model_copy()
        config._online_store = online.model_copy(update={"skip_dedup": True})
        return config

    def write(self, view: str, rows: pa.Table) -> int:
        """Upsert one row per user unless a newer as-of is served already.

        Args:
            view: name of the scenario view.
            rows: rows of the view's schema, at most one per user.

        Returns:
            How many rows were written.

        Raises:
            RunError: the store was away for too long. Batches before are written.
        """
        feature_view = self.views[view]
        batches = range(0, rows.num_rows, _BATCH)
        return sum(self._persist(feature_view, rows.slice(start, _BATCH)) for start in batches)

    def _persist(self, view: FeatureView, rows: pa.Table) -> int:
        """Write a batch, and again until it is written; returns the rows of the last try."""
        secrets = _secrets(self.config.online_store)
        store, start = self.config.online_store.type, time.monotonic()
        what = f"writing rows of view {view.name!r} to online store {store!r}"
        patient = retrying(what, self.retry_seconds, may_pass, lambda error: told(error, secrets))
        batch = list(_protos(view, rows))
        try:
            return patient(self._write_once, view, batch)
        except Exception as error:
            if not may_pass(error):
                raise
            spent = time.monotonic() - start
            # Without its cause: a driver may repeat a password.
            raise RunError(
                f"View {view.name!r}: online store {store!r} took no rows for {spent:.0f} s "
                f"(retry_seconds is {self.retry_seconds:g}): {told(error, secrets)}. Check that "
                "the store is up and takes writes, then run again to resume."
            ) from None

    def _write_once(self, view: FeatureView, batch: list[Row]) -> int:
        try:
            fresh = self._not_older(view, batch)
            if fresh:
                self._store.online_write_batch(self._write_config, view, fresh, None)
        except Exception:
            # Some stores keep a broken connection for ever: the next try connects anew.
            self.__dict__.pop("_store", None)
            raise
        return len(fresh)

    def _not_older(self, view: FeatureView, batch: list[Row]) -> list[Row]:
        stored = self._store.online_read(
            self.config, view, [row[0] for row in batch], [HISTORY_END]
        )
        return [
            row
            for row, (served, _) in zip(batch, stored, strict=True)
            if served is None or _aware(served) <= row[2]
        ]


def write_seconds(config: RepoConfig, view: FeatureView, rows: pa.Table, scratch: Path) -> float:
    """Seconds that writing some rows would take; the repo's online store is only read.

    SQLite is timed on a new file in `scratch`. Of any other store the reads are timed, once for
    the reading and once for the writing of a batch, and making its messages.

    Raises:
        RunError: the store cannot be read.
    """
    writer = FeastOnlineWriter(config, {view.name: view}, retry_seconds=0)
    if config.online_store.type == "sqlite":
        elsewhere = config.model_copy()
        path = {"path": str(scratch / "online.db")}
        elsewhere._online_store = config.online_store.model_copy(update=path)
        writer = replace(writer, config=elsewhere)
        writer._store.update(elsewhere, [], [view], [], [], False)
        writer.write(view.name, rows)  # the first write is slower
        start = time.perf_counter()
        writer.write(view.name, rows)
        return time.perf_counter() - start
    start = time.perf_counter()
    batch = list(_protos(view, rows))
    try:
        for _ in range(2):
            writer._not_older(view, batch)
    except Exception as error:
        secrets = _secrets(config.online_store)
        raise RunError(
            f"view {view.name!r}: online store {config.online_store.type!r} cannot be read: "
            f"{told(error, secrets)}. Check that the store is up, and that `feast apply` has run"
        ) from None
    return time.perf_counter() - start


def _secrets(store: Any) -> list[str]:
    """What an online store's settings hold that no log or error may show."""
    settings = {name: str(value) for name, value in store.model_dump().items() if value}
    inner = [pair for text in settings.values() for pair in _SETTING.findall(text)]
    found = (*settings.items(), *inner)
    return [value.strip("\"'") for name, value in found if is_secret(name)]


def to_numpy(response: OnlineResponse, feature: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The vectors of one field of an online response, float32 [entities, dim].

    A zero-shot score is a vector of one number. Users without a stored vector get a row of NaN:
    check with `np.isnan(matrix).all(axis=1)`. If no user has one the response does not tell the
    dimension, and dim is 0.

    Args:
        response: from `FeatureStore.get_online_features`.
        feature: "view:field", as it was asked for.

    Raises:
        SpaceError: the vectors are of different lengths.
        SpecError: the response holds no such field, or it is neither vectors nor scores.
    """
    values = _column(response, feature)
    for kind in {value.WhichOneof("val") for value in values}:
        if kind not in (None, "null_val", "float_list_val", "float_val"):
            raise SpecError(f"field {feature!r} holds {kind}, expected vectors of float32")
    rows = [_floats(value) for value in values]
    sizes = {len(row) for row in rows if len(row)}
    if len(sizes) > 1:
        raise SpaceError(f"{feature!r} holds vectors of different lengths {sorted(sizes)}")
    dim = max(sizes, default=0)
    matrix = np.full((len(rows), dim), np.nan, dtype=np.float32)
    for target, row in zip(matrix, rows, strict=True):
        if len(row):
            target[:] = row
    return matrix


def _floats(value: Value) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The numbers of one value, none for a user without: float32 [dim]."""
    if value.HasField("float_val"):
        return np.array([value.float_val], dtype="<f4")
    packed = value.float_list_val
    if not packed.val:
        return np.empty(0, dtype="<f4")
    # FloatList is packed: its bytes end with the little-endian floats themselves.
    return np.frombuffer(packed.SerializeToString()[-4 * len(packed.val) :], dtype="<f4")


def _column(response: OnlineResponse, feature: str) -> list[Value]:
    names = list(response.proto.metadata.feature_names.val)
    view, _, name = feature.rpartition(":")
    for candidate in (f"{view}__{name}", name):
        if names.count(candidate) == 1:
            return list(response.proto.results[names.index(candidate)].values)
    raise SpecError(
        f"the response has no single field {feature!r}; it has {names}. Ask for it in "
        "get_online_features(features=[...]), with full_feature_names=True where two views share "
        "a field name"
    )


def _protos(view: FeatureView, rows: pa.Table) -> Iterator[Row]:
    key = view.entity_columns[0].name
    names = [field.name for field in view.features if field.name != HISTORY_END]
    computed = zip(*(_values(rows.column(name).combine_chunks()) for name in names), strict=True)
    plain = rows.select([key, EVENT_TIMESTAMP, CREATED_TIMESTAMP, HISTORY_END]).to_pylist()
    for row, own in zip(plain, computed, strict=True):
        values = dict(zip(names, own, strict=True))
        values[HISTORY_END] = Value(unix_timestamp_val=int(row[HISTORY_END].timestamp()))
        yield _entity_key(key, row[key]), values, row[EVENT_TIMESTAMP], row[CREATED_TIMESTAMP]


def _values(column: pa.Array) -> Iterator[Value]:
    """A column of vectors or of scores, as Feast's values; it has at least one row."""
    if pa.types.is_list(column.type):
        matrix = column.flatten().to_numpy().reshape(len(column), -1)  # [rows*dim] -> [rows,dim]
        return (Value(float_list_val=_float_list(vector)) for vector in matrix)
    return (Value(float_val=score) for score in column.to_pylist())


def _float_list(vector: np.ndarray[Any, Any]) -> FloatList:
    """A FloatList from its wire format, which is the floats themselves behind a tag and a size:
    several times faster than handing protobuf a Python list.
    """
    raw = vector.astype("<f4", copy=False).tobytes()
    size, prefix = len(raw), b"\x0a"  # field 1, length-delimited
    while size > 0x7F:
        prefix += bytes([size & 0x7F | 0x80])
        size >>= 7
    packed: FloatList = FloatList.FromString(prefix + bytes([size]) + raw)
    return packed


def _entity_key(name: str, user: str | int) -> EntityKey:
    value = Value(int64_val=user) if isinstance(user, int) else Value(string_val=user)
    return EntityKey(join_keys=[name], entity_values=[value])


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
