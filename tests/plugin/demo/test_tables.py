from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_anchor.plugin.demo import SCHEMAS
from feast_anchor.plugin.demo.tables import table_path, table_writer

ONE_MAILING = pa.table(
    {"household_id": ["1"], "event_timestamp": [0], "campaign_type": ["Type A"]}
).cast(SCHEMAS["mailings"])


def write_two_then_fail(folder: Path) -> None:
    with table_writer(folder, "mailings") as writer:
        writer.write_table(ONE_MAILING)
        writer.write_table(ONE_MAILING)
        raise RuntimeError("half way")


def test_a_failed_write_keeps_the_old_table(tmp_path: Path) -> None:
    """When the writing block raises, the former file stays and no temporary file is left."""
    with table_writer(tmp_path, "mailings") as writer:
        writer.write_table(ONE_MAILING)
    with pytest.raises(RuntimeError, match="half way"):
        write_two_then_fail(tmp_path)
    assert pq.read_table(table_path(tmp_path, "mailings")).num_rows == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mailings.parquet"]


def test_every_table_is_keyed_by_household_and_utc_time() -> None:
    """All seven tables open with the entity key and a UTC event timestamp in microseconds."""
    for schema in SCHEMAS.values():
        assert schema.field(0).equals(pa.field("household_id", pa.string()))
        assert schema.field(1).equals(pa.field("event_timestamp", pa.timestamp("us", tz="UTC")))


def test_a_name_that_is_no_demo_table_is_refused(tmp_path: Path) -> None:
    """A misspelt table name fails instead of naming a new file."""
    with pytest.raises(KeyError, match="purchase"):
        table_path(tmp_path, "purchase")
