"""Bring a catalogue database to the newest schema, whoever else is doing the same.

The rule: one process migrates, the others wait for it and then find nothing to do. The lock is
the database's own (SQLite's write lock, a PostgreSQL advisory lock), so it ends with its holder.
A database that is already at head is only read.

Alembic is configured here in code: there is no alembic.ini. To add a revision, change
`tables.py`, then call `alembic.command.revision(alembic_config(connection), autogenerate=True)`
with a connection to a database at head.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, select

from feast_anchor.onnx_export.errors import CatalogError
from feast_anchor.plugin.migrations.database import writing

# Not Alembic's default name: the database may hold other teams' migrated tables.
VERSION_TABLE = "anchor_schema_version"

_ADVISORY_LOCK = 0x616E63686F72  # "anchor"; any constant of our own

# Alembic's env.py reads process-wide state, so two threads must not migrate at once.
_ONE_THREAD = threading.Lock()


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for the catalogue, working on `connection`."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def upgrade(engine: Engine, shown: str) -> None:
    """Create or upgrade the tables to head. `shown` names the database in errors.

    Raises CatalogError when the schema is newer than this package.
    """
    if is_current(engine, shown):
        return
    with _ONE_THREAD, writing(engine).begin() as connection:
        migrate(connection, shown)


def is_current(engine: Engine, shown: str) -> bool:
    """Whether the tables are there as this package knows them; only reads.

    Raises CatalogError when the schema is newer than this package.
    """
    with engine.connect() as connection:
        return _at_head(connection, shown)


def migrate(connection: Connection, shown: str) -> None:
    """Bring the tables to head in the transaction of `connection`, which must be for writing.

    Whoever else migrates waits until that transaction ends, and then sees its tables.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    if not _at_head(connection, shown):  # another process may have been faster
        command.upgrade(alembic_config(connection), "head")


def _at_head(connection: Connection, shown: str) -> bool:
    scripts = ScriptDirectory.from_config(alembic_config(connection))
    options = {"version_table": VERSION_TABLE}
    found = set(MigrationContext.configure(connection, opts=options).get_current_heads())
    unknown = found - {script.revision for script in scripts.walk_revisions()}
    if unknown:
        raise CatalogError(
            f"The catalogue {shown} has schema revision {', '.join(sorted(unknown))!r}; this "
            f"feast-anchor knows revisions up to {scripts.get_current_head()!r}. Upgrade "
            "feast-anchor, or set the engine's `catalog` to another database."
        )
    return found == set(scripts.get_heads())
