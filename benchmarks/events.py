"""Made-up event tables as a shop would have them, and the jobs that read them.

Users have 40 events on average and half of them fewer than 30; one in a hundred has over 190, which
is more than a bundle reads. A quarter of the events are visits.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.transforms.events import EventSource, input_snapshot, read, read_tasks
from feast_anchor.transforms.job import Job, ScenarioColumn, ViewRun
from feast_anchor.transforms.parquet_table import ParquetTable
from feast_anchor.transforms.pipeline import run_job
from feast_anchor.transforms.scoring import Question
from feast_anchor.transforms.shards import partition

from .models import AISLES, ITEMS

AS_OF = 1_735_689_600_000_000  # 2025-01-01, microseconds since the epoch, UTC
_YEAR = 365 * 86_400_000_000
_USERS_AT_ONCE = 5_000
_USERS_PER_SHARD = 500  # a shard is the unit of memory
_LEAST_SHARDS = 16  # the engine's default
_STAMP = pa.timestamp("us", tz="UTC")


def write_events(folder: Path, users: int, seed: int = 0) -> None:
    """Write `folder`/purchases.parquet and visits.parquet of users u0, u1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    schemas = {"purchases": _schema("item", "aisle", spend=True), "visits": _schema("item")}
    writers = {name: pq.ParquetWriter(folder / f"{name}.parquet", s) for name, s in schemas.items()}
    try:
        for first in range(0, users, _USERS_AT_ONCE):
            rows = _rows(range(first, min(users, first + _USERS_AT_ONCE)), generator)
            visit = generator.random(len(rows)) < 0.25
            for name, chosen in (("purchases", ~visit), ("visits", visit)):
                some = rows.filter(pa.array(chosen))
                writers[name].write_table(some.select(schemas[name].names).cast(schemas[name]))
    finally:
        for writer in writers.values():
            writer.close()


def sources(modalities: Sequence[ModalitySpec], folder: Path) -> tuple[EventSource, ...]:
    """How the pipeline reads the tables that `write_events` wrote."""
    return tuple(
        EventSource(
            modality=spec.name,
            index=index,
            table=ParquetTable(str(folder / f"{spec.name}.parquet")),
            key="user",
            timestamp="at",
            text=spec.text,
            amount="spend" if spec.amount else None,
        )
        for index, spec in enumerate(modalities)
    )


def shards_of(users: int) -> int:
    """How many shards a job over so many users has."""
    return max(_LEAST_SHARDS, users // _USERS_PER_SHARD)


def job(bundle: Bundle, questions: Sequence[str], events: Path, out: Path, users: int) -> Job:
    """A job of one view that writes into `out`, which must be new."""
    read_from = sources(bundle.manifest.modalities, events)
    scenarios = tuple(
        ScenarioColumn(f"q{number}", Question(query), bundle.fingerprint(query))
        for number, query in enumerate(questions)
    )
    sink, state = str(out / "sink"), str(out / "state")
    view = ViewRun("bench", "bench", "user", "string", scenarios, sink, state, online=False)
    return Job(
        bundle=str(bundle.folder),
        digest=bundle.manifest.digest,
        sources=read_from,
        snapshot=input_snapshot(read_from, AS_OF),
        as_of=(AS_OF,),
        shards=shards_of(users),
        views=(view,),
    )


def run_pipeline(
    bundle: Bundle, questions: Sequence[str], events: Path, out: Path, users: int
) -> None:
    """One job from files to files; `out` is emptied before, so that no shard is done already."""
    shutil.rmtree(out, ignore_errors=True)
    run_job(job(bundle, questions, events, out, users), online=None)


def shard_tables(modalities: Sequence[ModalitySpec], folder: Path, shards: int) -> list[pa.Table]:
    """The rows of every shard, as the pipeline's shuffle would bring them together."""
    read_from = sources(modalities, folder)
    parts: list[list[pa.Table]] = [[] for _ in range(shards)]
    for task in read_tasks(read_from, AS_OF):
        for table in read(read_from[task.source], task):
            for shard, part in partition(table, shards):
                parts[shard].append(part)
    return [pa.concat_tables(tables).combine_chunks() for tables in parts if tables]


def _schema(*texts: str, spend: bool = False) -> pa.Schema:
    fields = [pa.field("user", pa.string()), pa.field("at", _STAMP)]
    fields += [pa.field(name, pa.string()) for name in texts]
    return pa.schema(fields + ([pa.field("spend", pa.float64())] if spend else []))


def _rows(users: range, generator: np.random.Generator) -> pa.Table:
    counts = np.clip(generator.lognormal(3.4, 0.8, len(users)), 1, 1_000).astype(np.int64)
    rows = int(counts.sum())
    ago = generator.integers(1, _YEAR, rows)
    columns: dict[str, Any] = {
        "user": pa.array([f"u{user}" for user in users]).take(
            pa.array(np.repeat(np.arange(len(users)), counts))
        ),
        "at": pa.array(AS_OF - ago, pa.int64()).cast(_STAMP),
        "item": pa.array(ITEMS).take(pa.array(generator.integers(0, len(ITEMS), rows))),
        "aisle": pa.array(AISLES).take(pa.array(generator.integers(0, len(AISLES), rows))),
        "spend": pa.array(np.round(generator.gamma(2, 3, rows), 2)),
    }
    return pa.table(columns)
