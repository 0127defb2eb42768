"""A PostgreSQL table as the sink of a view: which table it is, how to reach it, what it looks like.

The rule: the table is reached exactly as Feast's own PostgreSQL offline store reaches it (server,
account, search path, spelling of its name), because that store is what people read it with. Like a
part's schema, the comments of its columns say which embedding space they hold.
"""

from __future__ import annotations

import re
import sys
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import pyarrow as pa
import sqlalchemy as sa
from feast import FeatureView, FileSource, RepoConfig
from sqlalchemy.dialects import postgresql
from sqlalchemy.pool import NullPool

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.transforms.job import CREATED_TIMESTAMP, EVENT_TIMESTAMP

from .spaces import SPACE

if TYPE_CHECKING:
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
        PostgreSQLSource,
    )

COMMENT = "embedding space "  # a column's comment is this and the fingerprint
LONGEST_NAME = 63  # bytes; PostgreSQL cuts off the rest, and two names could become one

_POSTGRES = "feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source"
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_$]*|"(?:[^"]|"")+"')
_TABLE = re.compile(rf"(?:({_NAME.pattern})\.)?({_NAME.pattern})")


def is_table(source: object) -> TypeGuard[PostgreSQLSource]:
    """Whether a source is one of Feast's PostgreSQL sources."""
    module = sys.modules.get(_POSTGRES)  # an extra; whoever has such a source has imported it
    return module is not None and isinstance(source, module.PostgreSQLSource)


def sink_of(view: FeatureView, parts: Path) -> tuple[str, str | None]:
    """Folder of a view's parts and, where people read a table instead, the table.

    Args:
        parts: where the parts of a view with a table are kept.

    Raises:
        SpecError: another kind of sink.
    """
    sink = view.batch_source
    if isinstance(sink, FileSource):
        return sink.path.removeprefix("file://"), None
    if is_table(sink):
        return str(parts.absolute()), table_of(view.name, sink)
    raise SpecError(unknown_sink(view.name, sink))


def unknown_sink(view: str, sink: object) -> str:
    """What to say of a sink that is neither files nor a PostgreSQL table."""
    return (
        f"view {view!r}: its sink is a {type(sink).__name__}, which no offline store of Feast "
        "reads, or which this package does not write; expected a folder, a FileSource on one, or "
        "a PostgreSQLSource with a table"
    )


def table_of(view: str, source: PostgreSQLSource) -> str:
    """The table behind a PostgreSQL source, as Feast spells it in its queries.

    Raises `SpecError` if it reads a query, or a name that Feast's queries cannot hold.
    """
    table = source._postgres_options._table
    if not table:
        raise SpecError(
            f"view {view!r}: the sink {source.name!r} is a query, and rows cannot be written into "
            "one; give PostgreSQLSource(table=...)"
        )
    _split(view, table)
    return table


def sink_table_source(view: str, source: PostgreSQLSource, schema: pa.Schema) -> PostgreSQLSource:
    """A copy of a view's sink whose table is made ready when Feast validates it, at apply.

    Raises `SpecError` for a sink that cannot take the view's rows.
    """
    given = (source.timestamp_field, source.created_timestamp_column)
    if given != (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
        raise SpecError(
            f"view {view!r}: the sink's timestamp_field and created_timestamp_column are {given}, "
            f"expected {(EVENT_TIMESTAMP, CREATED_TIMESTAMP)}"
        )
    if source.field_mapping:
        raise SpecError(
            f"view {view!r}: the sink maps fields, and its table's columns have the names of the "
            "view's fields; leave field_mapping out"
        )
    sql_table(view, table_of(view, source), schema)
    own = copy(source)

    def validate(config: RepoConfig) -> None:
        """Make the table. Raises `SpaceError` if it holds another embedding space."""
        from .sink_schema import prepare_table  # it builds on this module

        prepare_table(view, table_of(view, source), schema, config)

    own.validate = validate  # type: ignore[method-assign]  # as in `spaces.sink_source`
    return own


def sql_table(view: str, table: str, schema: pa.Schema) -> sa.Table:
    """The table of a view's rows: columns, primary key, and embedding spaces as comments.

    Args:
        table: as Feast spells it.
        schema: of the view's rows; the first column is the join key.

    Raises:
        SpecError: a name that PostgreSQL cannot hold.
    """
    where, name = _split(view, table)
    long = [one for one in (name, *schema.names) if len(one.encode()) > LONGEST_NAME]
    if long:
        raise SpecError(
            f"view {view!r}: PostgreSQL's names have at most {LONGEST_NAME} bytes, so its sink "
            f"cannot have the name {long[0]!r}; choose a shorter one"
        )
    keys = (schema.names[0], EVENT_TIMESTAMP)
    return sa.Table(name, sa.MetaData(), *(_column(one, keys) for one in schema), schema=where)


def check_store(view: str, config: RepoConfig) -> None:
    """Raises `SpecError` if the repo's offline store could not read a table."""
    store = config.offline_store
    if store.type != "postgres":
        raise SpecError(
            f"view {view!r}: its sink is a PostgreSQL table, which the offline store "
            f"{store.type!r} cannot read; set offline_store: {{type: postgres, ...}} in "
            "feature_store.yaml, or give a folder as the sink"
        )


def connect(config: RepoConfig) -> sa.Engine:
    """How to reach the database that Feast's offline store reads; nothing is opened yet.

    The engine knows no password: what it hands out are Feast's own connections.
    """
    from feast.infra.utils.postgres.connection_utils import _get_conn

    return sa.create_engine(
        "postgresql+psycopg://",
        creator=partial(_get_conn, config.offline_store),
        poolclass=NullPool,  # one connection per shard; nothing stays open in a worker
        hide_parameters=True,
    )


def secrets_of(config: RepoConfig) -> list[str]:
    """What no message may show."""
    password = getattr(config.offline_store, "password", None)
    return [str(password)] if password else []


def compiled(kind: Any) -> str:
    """A column type as PostgreSQL writes it."""
    return str(kind.compile(_DIALECT))


def _column(field: pa.Field, keys: tuple[str, ...]) -> sa.Column[Any]:
    space = (field.metadata or {}).get(SPACE)
    return sa.Column(
        field.name,
        _type(field.type),
        primary_key=field.name in keys,
        autoincrement=False,
        nullable=space is not None,
        comment=None if space is None else COMMENT + space.decode(),
    )


def _type(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return postgresql.ARRAY(sa.REAL)
    if pa.types.is_timestamp(kind):
        return sa.TIMESTAMP(timezone=True)
    plain = {pa.string(): sa.Text, pa.int64(): sa.BigInteger, pa.float32(): sa.REAL}
    return plain[kind]()


def _split(view: str, table: str) -> tuple[str | None, str]:
    """Schema and name that PostgreSQL understands when Feast puts `table` into a query as it is."""
    found = _TABLE.fullmatch(table)
    parts = [] if found is None else [part for part in found.groups() if part]
    reserved = [part for part in parts if part.lower() in _DIALECT.preparer.reserved_words]
    if found is None or reserved:
        raise SpecError(
            f"view {view!r}: the sink's table is {table!r}, expected name or schema.name as "
            "PostgreSQL reads it; put double quotes around a name with other signs than letters, "
            "digits and _, and around one of SQL's own words"
        )
    names = [_unquoted(part) for part in parts]
    return (names[0] if len(names) > 1 else None), names[-1]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
