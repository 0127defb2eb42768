"""What incremental runs and backfills add: unchanged users, labels, and what a run was asked by.

Old shards count zero of each, old runs were all asked by `feast materialize`, and nobody wrote
down how new their rows are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COUNTS = ("users_unchanged", "events_unchanged", "labels_in", "labels_rejected")


def upgrade() -> None:
    """Add the columns, with a default where an old row needs a value."""
    for name in _COUNTS:
        zero = sa.text("0")
        op.add_column("shards", sa.Column(name, sa.BigInteger, nullable=False, server_default=zero))
    op.add_column(
        "runs", sa.Column("kind", sa.String(16), nullable=False, server_default="materialize")
    )
    op.add_column("runs", sa.Column("created_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Drop the columns and what they hold."""
    for name in ("created_until", "kind"):
        op.drop_column("runs", name)
    for name in _COUNTS:
        op.drop_column("shards", name)
