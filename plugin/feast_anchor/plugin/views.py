"""How a team declares query-conditioned embeddings: `Modality`, `Scenario`, `scenario_view`.

`scenario_view` returns a plain Feast `FeatureView`: one `Array(Float32)` field per scenario, a
`Float32` field beside those that want a score, and `history_end`, computed from the modalities'
feature views and written to the sink. Nothing of it needs this package to be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from feast import Entity, FeatureView, Field, FileSource
from feast.data_source import DataSource
from feast.types import PrimitiveFeastType, UnixTimestamp, from_value_type

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.text import template_columns
from feast_anchor.transforms.job import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    HISTORY_END,
    row_schema,
)

from .scenarios import Scenario, declare, fields_of
from .sink_table import is_table, sink_table_source, unknown_sink
from .spaces import sink_source
from .spec import ARROW_KEYS, TAG, ModalityDecl, ViewSpec, check_modalities

_PERIOD = re.compile(r"(\d+)([dh])")


@dataclass(frozen=True)
class Modality:
    """One source of events and how its rows become texts.

    Args:
        view: the feature view over the event table; its source is read, not its features.
        text: template over the table's columns, such as "{product_type} in {department}".
        amount: a numeric column (spend, quantity), if the events have one.
        table: True for a profile table: only the newest row per user before the as-of is read.
        max_events: token budget: the newest events are read.
        timezone: zone of timestamps that are stored without one, such as "UTC".
        name: name in the bundle; the feature view's name by default.
    """

    view: FeatureView
    text: str
    amount: str | None = None
    table: bool = False
    max_events: int = 128
    timezone: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        template_columns(self.text)  # raises SpecError for a template it cannot read
        if self.max_events < 1:
            raise SpecError(f"max_events={self.max_events!r}, expected at least 1")
        if self.timezone is not None:
            _check_timezone(self.timezone)

    def declaration(self) -> ModalityDecl:
        """This modality as it is stored in a view's tag."""
        return ModalityDecl(
            view=self.view.name,
            name=self.name or self.view.name,
            kind="table" if self.table else "events",
            text=self.text,
            amount=self.amount,
            max_events=1 if self.table else self.max_events,
            timezone=self.timezone,
        )


def scenario_view(
    *,
    name: str,
    entity: Entity,
    events: Sequence[Modality],
    scenarios: Sequence[Scenario],
    bundle: str | Path,
    sink: str | Path | DataSource,
    ttl: timedelta = timedelta(days=30),
    snapshots: str | timedelta | None = "7d",
    online: bool = True,
    description: str = "",
    owner: str = "",
    tags: Mapping[str, str] | None = None,
) -> FeatureView:
    """Declare a feature view of query-conditioned user embeddings.

    Args:
        name: the view's name; a new model wants a new name, such as shopper_v2.
        entity: whose vectors these are; string or 64-bit integer join key.
        events: the modalities the bundle was trained on, in its order.
        scenarios: one vector field each, float32 of the bundle's dimension, unit length, and a
            score field for those with `score=True`.
        bundle: the bundle's folder; its digest is pinned here, so `feast apply` after a change
            of model is refused instead of mixing two embedding spaces under one name.
        sink: folder (or FileSource on a folder) where offline rows are kept as Parquet; or a
            PostgreSQLSource with a table, where the repo's offline store is PostgreSQL.
        ttl: how long a vector may be joined after its as-of.
        snapshots: how far apart the as-of times of one window lie ("7d", "12h", a timedelta);
            None computes the window's end alone.
        online: whether vectors are served online. With False, Feast materializes the view only
            when it is named: `feast materialize --views NAME`.
        description, owner, tags: as in any feature view.

    Raises:
        SpecError: a declaration is wrong, a name stands twice, a query or an answer is empty, or
            two answers of a scenario read the same.
        BundleError: no usable bundle, or a query longer than the bundle reads.
    """
    key = _join_key_field(entity)
    _check_names(name, entity.name, key.name, events, scenarios)
    model = Bundle.declared(bundle)
    declared = tuple(modality.declaration() for modality in events)
    check_modalities(name, declared, model.manifest)
    spec = ViewSpec(
        bundle=str(bundle),
        digest=model.manifest.digest,
        dim=model.manifest.dims.embedding,
        events=declared,
        scenarios=tuple(declare(name, scenario, model) for scenario in scenarios),
        snapshots_seconds=None if snapshots is None else period(snapshots).total_seconds(),
    )
    columns = [scenario.as_column() for scenario in spec.scenarios]
    rows = row_schema(key.name, ARROW_KEYS[entity.value_type], columns)
    return FeatureView(
        name=name,
        entities=[entity],
        source=[modality.view for modality in events],
        sink_source=_sink_source(name, sink, rows),
        schema=[
            key,
            *fields_of(spec, model.manifest),
            Field(name=HISTORY_END, dtype=UnixTimestamp),
        ],
        ttl=ttl,
        online=online,
        offline=True,
        description=description,
        owner=owner,
        tags={**(tags or {}), TAG: spec.model_dump_json()},
    )


def _check_names(
    view: str,
    entity: str,
    key: str,
    events: Sequence[Modality],
    scenarios: Sequence[Scenario],
) -> None:
    if not events or not scenarios:
        raise SpecError(f"view {view!r} needs at least one modality and one scenario")
    for modality in events:
        if modality.view.entities != [entity]:
            raise SpecError(
                f"view {view!r}: modality {modality.view.name!r} has entities "
                f"{modality.view.entities}, expected {[entity]}: its events must be of the same "
                "users"
            )
    modality_names = [modality.declaration().name for modality in events]
    columns = [key, *(field for scenario in scenarios for field in scenario.fields)]
    for what, names in (
        ("modalities", modality_names),
        ("scenarios, scores or key columns", columns),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SpecError(f"view {view!r}: two {what} are named {twice}; rename one of them")


def _join_key_field(entity: Entity) -> Field:
    if entity.value_type not in ARROW_KEYS:
        raise SpecError(
            f"entity {entity.name!r} has value_type {entity.value_type.name}, expected STRING or "
            "INT64; declare Entity(..., value_type=ValueType.STRING)"
        )
    dtype = from_value_type(entity.value_type)
    if not isinstance(dtype, PrimitiveFeastType):
        raise SpecError(f"entity {entity.name!r} has no plain type: {dtype}")
    return Field(name=entity.join_key, dtype=dtype)


def _sink_source(view: str, sink: str | Path | DataSource, schema: pa.Schema) -> DataSource:
    if is_table(sink):
        return sink_table_source(view, sink, schema)
    if isinstance(sink, DataSource) and not isinstance(sink, FileSource):
        raise SpecError(unknown_sink(view, sink))
    if isinstance(sink, FileSource):
        given = (sink.timestamp_field, sink.created_timestamp_column)
        if given != (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
            raise SpecError(
                f"view {view!r}: the sink's timestamp_field and created_timestamp_column are "
                f"{given}, expected {(EVENT_TIMESTAMP, CREATED_TIMESTAMP)}"
            )
        name, path = sink.name, sink.path.removeprefix("file://")
    else:
        name, path = f"{view}_sink", str(sink)
    if "://" in path or any(mark in path for mark in "*?[") or path.endswith(".parquet"):
        raise SpecError(f"view {view!r}: the sink is {path!r}, expected a local folder of its own")
    # Feast's DuckDB reader knows no repo folder, so the path must be absolute.
    return sink_source(view=view, path=str(Path(path).absolute()), schema=schema, name=name)


def _check_timezone(name: str) -> None:
    try:  # Arrow reads the events, so the zone must be one that Arrow knows
        pc.assume_timezone(pa.nulls(1, pa.timestamp("us")), timezone=name)
    except pa.ArrowInvalid as error:
        raise SpecError(
            f"timezone={name!r} is not a time zone; expected a name such as 'UTC' or "
            "'Europe/Berlin'"
        ) from error


def period(given: str | timedelta) -> timedelta:
    """A period such as "7d" or "12h". Raises `SpecError` for anything else, or none at all."""
    length = given
    if isinstance(length, str):
        match = _PERIOD.fullmatch(length)
        if match is None:
            raise SpecError(f"{given!r} is no period; expected days or hours such as '7d' or '12h'")
        size, unit = int(match[1]), match[2]
        length = timedelta(days=size) if unit == "d" else timedelta(hours=size)
    if length <= timedelta(0):
        raise SpecError(f"{given!r} is no period; expected a positive one such as '7d'")
    return length
