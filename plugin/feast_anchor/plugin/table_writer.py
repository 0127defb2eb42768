"""Rows of a view into its PostgreSQL table: one transaction per shard, which may be repeated.

COPY fills a temporary table at the speed of a file, one INSERT takes it over. Of a key and as-of
the newest created_timestamp stays, so rows that are written again change nothing, and an older run
that is resumed late does not undo a newer one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from feast import RepoConfig
from sqlalchemy.dialects.postgresql import Insert, insert

from feast_anchor.transforms.job import CREATED_TIMESTAMP, ViewRun
from feast_anchor.transforms.sinks import TableWriter

from .copy_binary import copy_binary
from .sink_schema import repeated
from .sink_table import connect, sql_table

_BATCH = 1000  # rows that are sent at a time


@dataclass(frozen=True)
class PostgresWriterFactory:
    """Makes a writer in each worker process from the repo's own configuration."""

    config: RepoConfig = field(repr=False)  # holds a password
    retry_seconds: float

    def __call__(self) -> TableWriter:
        """A writer for the calling process."""
        return PostgresWriter(connect(self.config), self.config, self.retry_seconds)


@dataclass(frozen=True)
class PostgresWriter:
    """Upserts rows into the tables that Feast's PostgreSQL offline store reads.

    A transaction that meets a dropped connection is repeated for `retry_seconds`.
    """

    engine: sa.Engine
    config: RepoConfig = field(repr=False)
    retry_seconds: float

    def write(self, run: ViewRun, rows: pa.Table) -> None:
        """Upsert rows of the run's schema, all or none; raises `RunError` if it cannot."""
        if rows.num_rows == 0:
            return
        assert run.table is not None
        table = sql_table(run.view, run.table, rows.schema)
        work = partial(self._write_once, table, rows)
        repeated(run.view, run.table, self.config, self.retry_seconds, work)

    def _write_once(self, table: sa.Table, rows: pa.Table) -> None:
        incoming = _incoming(table)
        with self.engine.begin() as connection:
            incoming.create(connection)
            _copy(connection, incoming, rows)
            connection.execute(upsert(table, incoming))


def upsert(table: sa.Table, incoming: sa.Table) -> Insert:
    """The statement that takes all rows of another table over, but never an older one."""
    names = [column.name for column in incoming.columns]
    keys = [column.name for column in table.primary_key]
    statement = insert(table).from_select(names, sa.select(incoming))
    newer = table.c[CREATED_TIMESTAMP] < statement.excluded[CREATED_TIMESTAMP]
    taken = {name: statement.excluded[name] for name in names if name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=taken, where=newer)


def _incoming(table: sa.Table) -> sa.Table:
    """A temporary table of the same columns, which is gone with its transaction."""
    columns = [sa.Column(column.name, column.type) for column in table.columns]
    return sa.Table(
        f"incoming_{table.name[:40]}",  # whatever the table's name is, this is another
        sa.MetaData(),
        *columns,
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )


def _copy(connection: sa.Connection, table: sa.Table, rows: pa.Table) -> None:
    import psycopg
    from psycopg import sql

    raw: Any = connection.connection.driver_connection
    names = [column.name for column in table.columns]
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)")
    statement = copy.format(sql.Identifier(table.name), columns)
    try:
        with raw.cursor() as cursor, cursor.copy(statement) as stream:
            for block in copy_binary(rows.select(names), _BATCH):
                stream.write(block)
    except psycopg.Error as error:  # as SQLAlchemy reports it for its own statements
        raise sa.exc.DBAPIError(
            "COPY", None, error, hide_parameters=True, connection_invalidated=bool(raw.closed)
        ) from None
