"""Make a view's SQL table ready: create it, add new scenarios' columns, refuse what does not fit.

The same rule as for a sink's folder (`spaces`): rows of two embedding spaces never meet in one
column. It happens at `feast apply`, so that the table can be joined at once, and before every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import sqlalchemy as sa
from feast import RepoConfig
from sqlalchemy.exc import SQLAlchemyError

from feast_anchor.onnx_export.errors import RunError, SpecError

from .migrations.database import told
from .retries import connection_lost, retrying
from .sink_table import COMMENT, check_store, compiled, connect, secrets_of, sql_table
from .spaces import check_spaces, spaces_of

T = TypeVar("T")


def prepare_table(
    view: str, table: str, schema: pa.Schema, config: RepoConfig, retry_seconds: float = 0
) -> None:
    """Make sure a view's table is there and takes its rows.

    Args:
        table: as the sink's source names it.
        schema: of the view's rows.
        retry_seconds: how long a server may be away.

    Raises:
        SpecError: another offline store, or a table that was made for something else.
        SpaceError: the table holds other fields or other embedding spaces.
        RunError: the server does not answer, or refuses.
    """
    declared = sql_table(view, table, schema)
    check_store(view, config)
    engine = connect(config)

    def prepare() -> None:
        with engine.begin() as connection:
            # One at a time: what is looked at here is acted upon.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(table))))
            _make_ready(connection, view, declared, schema)

    repeated(view, table, config, retry_seconds, prepare)


def check_table(
    view: str, table: str, schema: pa.Schema, config: RepoConfig, retry_seconds: float = 0
) -> None:
    """Refuse what `prepare_table` refuses, and change nothing; a table may still be missing."""
    declared = sql_table(view, table, schema)
    check_store(view, config)
    engine = connect(config)

    def check() -> None:
        with engine.connect() as connection:
            _checked(connection, view, declared, schema)

    repeated(view, table, config, retry_seconds, check)


def repeated(view: str, table: str, config: RepoConfig, seconds: float, work: Callable[[], T]) -> T:
    """Do one transaction's work, again while the server drops connections.

    Raises `RunError`, without secrets, for whatever the database refuses.
    """
    secrets = secrets_of(config)
    what = f"table {table!r} of view {view!r}"
    patient = retrying(what, seconds, connection_lost, lambda error: told(error, secrets))
    try:
        return patient(work)
    except SQLAlchemyError as error:
        # Without its cause: a driver may repeat a password.
        raise RunError(
            f"view {view!r}: its table {table!r} could not be used: {told(error, secrets)}. Check "
            "that the database of offline_store is up, and that its user may create and write the "
            "table, then run it again"
        ) from None


def _make_ready(
    connection: sa.Connection, view: str, declared: sa.Table, schema: pa.Schema
) -> None:
    names = _checked(connection, view, declared, schema)
    if names is None:
        declared.create(connection)
        return
    from alembic.migration import MigrationContext  # as it is imported it talks, see `runs`
    from alembic.operations import Operations

    change = Operations(MigrationContext.configure(connection))
    for one in declared.columns:
        if one.name not in names:
            added = sa.Column(one.name, one.type, comment=one.comment)  # null in older rows
            change.add_column(declared.name, added, schema=declared.schema)


def _checked(
    connection: sa.Connection, view: str, declared: sa.Table, schema: pa.Schema
) -> set[str] | None:
    """The columns of a table that takes the rows; None if there is no table yet."""
    found = sa.inspect(connection)
    if not found.has_table(declared.name, schema=declared.schema):
        return None
    columns = {one["name"]: one for one in found.get_columns(declared.name, declared.schema)}
    stored = {
        name: comment.removeprefix(COMMENT)
        for name, column in columns.items()
        if (comment := column.get("comment") or "").startswith(COMMENT)
    }
    check_spaces(view, f"table {declared.fullname!r}", stored, spaces_of(schema))
    keys = found.get_pk_constraint(declared.name, declared.schema)["constrained_columns"]
    types = {name: compiled(column["type"]) for name, column in columns.items()}
    _check_fits(view, declared, types, keys)
    return set(columns)


def _check_fits(view: str, declared: sa.Table, types: dict[str, str], keys: list[str]) -> None:
    wanted = [column.name for column in declared.primary_key]
    if keys != wanted:
        raise SpecError(
            f"view {view!r}: table {declared.fullname!r} has the primary key {keys}, expected "
            f"{wanted}; give the view a table of its own, which is created"
        )
    for column in declared.columns:
        expected = compiled(column.type)
        if types.get(column.name, expected) != expected:
            raise SpecError(
                f"view {view!r}: column {column.name!r} of table {declared.fullname!r} is "
                f"{types[column.name]}, expected {expected}; give the view a table of its own, "
                "which is created"
            )
