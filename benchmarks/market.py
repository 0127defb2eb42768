"""The demo's marketplace in any size: its tables, how a bundle reads them, and a job over them.

The tables are those of `feast-anchor demo`, made a few thousand households at a time, so that ten
million events need no more memory than ten thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.plugin.demo.marketplace import generate
from feast_anchor.plugin.demo.tables import END, table_path
from feast_anchor.transforms.events import EventSource, input_snapshot
from feast_anchor.transforms.histories import micros
from feast_anchor.transforms.job import Job, ScenarioColumn, ViewRun
from feast_anchor.transforms.parquet_table import ParquetTable
from feast_anchor.transforms.scoring import Question

# Mean purchases of a household; with mailings, coupons and profiles that makes 50 events.
_PURCHASES = 44.0
_USERS_PER_SHARD = 2_000  # about 100,000 events: some 100 MB while a shard is worked on
_LEAST_SHARDS = 16  # the engine's default


def market_modalities(events: int) -> tuple[ModalitySpec, ...]:
    """The four tables as the demo's feature repo reads them, under a budget of so many events."""
    few = events // 4
    return (
        ModalitySpec(
            name="purchases",
            text="{product_type} in {department}, {brand}",
            amount=True,
            max_events=events - 2 * few,
        ),
        ModalitySpec(
            name="redemptions",
            text="redeemed a {campaign_type} coupon for {department}",
            max_events=few,
        ),
        ModalitySpec(name="mailings", text="was mailed campaign {campaign_type}", max_events=few),
        ModalitySpec(
            name="demographics",
            kind="table",
            text="age {age}, income {income}, {household_size} people, {household_comp}, "
            "{kids_count} kids, {home_ownership}, {marital_status}",
            max_events=1,
        ),
    )


def write_market(folder: Path, users: int) -> int:
    """Write the four tables into `folder`; returns how many events they hold."""
    generate(folder, users=users, events_per_user=_PURCHASES)
    names = [spec.name for spec in market_modalities(4)]
    return sum(pq.read_metadata(table_path(folder, name)).num_rows for name in names)


def market_job(
    bundle: Bundle, questions: Sequence[str], tables: Path, out: Path, users: int
) -> Job:
    """A job of one view, as of the end of the year, that writes into `out`, which must be new."""
    read_from = tuple(
        EventSource(
            modality=spec.name,
            index=index,
            table=ParquetTable(str(table_path(tables, spec.name))),
            key="household_id",
            timestamp="event_timestamp",
            text=spec.text,
            amount="sales_value" if spec.amount else None,
        )
        for index, spec in enumerate(bundle.manifest.modalities)
    )
    scenarios = tuple(
        ScenarioColumn(f"q{number}", Question(query), bundle.fingerprint(query))
        for number, query in enumerate(questions)
    )
    sink, state = str(out / "sink"), str(out / "state" / "run-scale")
    view = ViewRun("scale", "scale", "household_id", "string", scenarios, sink, state, online=False)
    return Job(
        bundle=str(bundle.folder),
        digest=bundle.manifest.digest,
        sources=read_from,
        snapshot=input_snapshot(read_from, micros(END)),
        as_of=(micros(END),),
        shards=max(_LEAST_SHARDS, users // _USERS_PER_SHARD),
        views=(view,),
    )
