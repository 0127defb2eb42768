"""What Alembic executes around a migration: use the caller's connection and transaction.

Logging is left as the application set it.
"""

from __future__ import annotations

from alembic import context

from feast_anchor.plugin.migrations.tables import METADATA
from feast_anchor.plugin.migrations.upgrade import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
