"""Demo tables for the tests: one generated marketplace, and tiny tables written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feast_anchor.plugin.demo import SCHEMAS, make_tables
from feast_anchor.plugin.demo.tables import table_writer

Rows = Sequence[Mapping[str, Any]]
WriteRows = Callable[[str, Rows], None]


@pytest.fixture(scope="session")
def marketplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven tables of the default marketplace: 2,000 households, seed 7."""
    folder = tmp_path_factory.mktemp("marketplace")
    make_tables(folder, None)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes rows as one demo table of `tmp_path`; a column that is not given is null.

    Purchases of amount 1.0 and a basket each are enough unless a row says otherwise.
    """

    def write(name: str, rows: Rows) -> None:
        defaults: list[dict[str, Any]] = [
            {"sales_value": 1.0, "basket_id": f"basket {number}"} if name == "purchases" else {}
            for number in range(len(rows))
        ]
        full = [default | dict(row) for default, row in zip(defaults, rows, strict=True)]
        with table_writer(tmp_path, name) as writer:
            writer.write_table(pa.Table.from_pylist(full, schema=SCHEMAS[name]))

    return write


@pytest.fixture
def at() -> Callable[[str], datetime]:
    """Reads "2017-09-01" or "2017-09-01T12:30:00" as an instant in UTC."""
    return lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC)
