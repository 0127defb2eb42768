from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.demo import SCHEMAS, make_tables, table_path


def test_all_seven_tables_are_written_and_counted(tmp_path: Path) -> None:
    """The counts returned are those of the files, and the folder holds nothing else."""
    counts = make_tables(tmp_path, None, users=120)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(SCHEMAS) == sorted(counts)
    for name, rows in counts.items():
        assert pq.read_metadata(table_path(tmp_path, name)).num_rows == rows > 0


def test_the_cut_reaches_labels_and_stats(tmp_path: Path) -> None:
    """Another cut moves the labels' time and adds its snapshot to the stats."""
    cut = datetime(2017, 6, 1, 12, tzinfo=UTC)
    make_tables(tmp_path, None, users=120, cut=cut)
    labels = pq.read_table(table_path(tmp_path, "labels"))
    stats = pq.read_table(table_path(tmp_path, "household_stats"))
    assert set(labels["event_timestamp"].to_pylist()) == {cut}
    assert cut in stats["event_timestamp"].to_pylist()


def test_a_cut_without_time_zone_is_refused_first(tmp_path: Path) -> None:
    """A naive cut fails before any table is made."""
    with pytest.raises(SpecError, match="has no time zone"):
        make_tables(tmp_path / "out", None, cut=datetime(2017, 9, 1))  # noqa: DTZ001
    assert not (tmp_path / "out").exists()
