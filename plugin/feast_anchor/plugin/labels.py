"""Tables of yes/no labels: who, as of when, and what turned out to be so.

The rule: a label says at which instant it was asked, with a time zone, because a vector that read
one event too many would know the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feast_anchor.onnx_export.errors import SourceError

TIMESTAMP = "event_timestamp"


def read_label_table(path: Path, key: str, labels: Sequence[str], hint: str) -> pa.Table:
    """The key, the as-of and some label columns of a Parquet file.

    Args:
        path: the file.
        key: the entity's join key, a column of it.
        labels: the boolean columns to read; null where nothing is known.
        hint: which column is a label's, for the message when one is missing.

    Raises:
        SourceError: the file is missing or not Parquet; a column is missing or of another type;
            or times have no zone.
    """
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError as error:
        raise SourceError(
            f"no labels at {path}; expected a Parquet file with {key!r}, {TIMESTAMP!r} and one "
            "boolean column per scenario"
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}") from error
    columns = [key, TIMESTAMP, *labels]
    missing = [column for column in columns if column not in schema.names]
    if missing:
        raise SourceError(f"{path} has no column {missing}; it has {schema.names}. {hint}")
    _check_types(path, schema, labels)
    return pq.read_table(path, columns=list(dict.fromkeys(columns)))


def _check_types(path: Path, schema: pa.Schema, labels: Sequence[str]) -> None:
    stamp = schema.field(TIMESTAMP).type
    if not pa.types.is_timestamp(stamp) or stamp.tz is None:
        raise SourceError(
            f"{path} column {TIMESTAMP!r} is {stamp}, expected a timestamp with a time zone "
            "such as timestamp[us, tz=UTC]"
        )
    for column in labels:
        if not pa.types.is_boolean(schema.field(column).type):
            raise SourceError(
                f"{path} column {column!r} is {schema.field(column).type}, expected bool: true, "
                "false, or null where nothing is known"
            )
