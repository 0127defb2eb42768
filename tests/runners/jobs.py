"""A job over the small shop's tables, as the engine plans one, and the rows that it left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd

from feast_anchor.onnx_export.manifest import read_manifest
from feast_anchor.transforms.events import EventSource, input_snapshot
from feast_anchor.transforms.histories import micros
from feast_anchor.transforms.job import Job, ScenarioColumn, ViewRun
from feast_anchor.transforms.parquet_table import ParquetTable
from shop import END, QUESTIONS, START, make_tables, offline_rows, write_tables

SHARDS = 6
VIEW = "taste_v1"


def shop_job(
    folder: Path, bundle: Path, shuffle: Literal["local", "beam"] = "local", users: int = 40
) -> Job:
    """One view with every kind of question at two as-ofs; writes the tables into `folder`."""
    tables = folder / "tables"
    write_tables(tables, make_tables(users))
    sources = (_source(tables, 0, "orders", "{item} in {aisle}"), _source(tables, 1, "profiles"))
    sources = (replace(sources[0], amount="spend"), sources[1])
    as_of = (micros(START + (END - START) / 2), micros(END))
    run = ViewRun(
        run_id="one",
        view=VIEW,
        key="shopper_id",
        key_type="string",
        scenarios=tuple(
            ScenarioColumn(f"q{number}", question, f"space-{number}")
            for number, question in enumerate(QUESTIONS)
        ),
        sink=str(folder / "sinks" / VIEW),
        state=str(folder / "state" / "run-one"),
        online=False,
    )
    return Job(
        bundle=str(bundle),
        digest=read_manifest(bundle).digest,
        sources=sources,
        snapshot=input_snapshot(sources, as_of[-1]),
        as_of=as_of,
        shards=SHARDS,
        views=(run,),
        threads=1,
        device="cpu",
        shuffle=shuffle,
        attempt="attempt",
    )


def _source(tables: Path, index: int, name: str, text: str = "age {age}") -> EventSource:
    table = ParquetTable(str(tables / f"{name}.parquet"))
    return EventSource(name, index, table, "shopper_id", "event_timestamp", text)


def rows(folder: Path) -> pd.DataFrame:
    """Every row that is published, without the time of computing."""
    return offline_rows(folder, VIEW)
