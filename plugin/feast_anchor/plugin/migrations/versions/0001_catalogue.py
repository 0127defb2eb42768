"""The first catalogue: spaces, runs, shards and dead letters.

Written out, not taken from `tables.py`: a revision says for ever what it once made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the four tables."""
    _create_spaces()
    _create_runs()
    _create_shards()
    _create_dead_letters()


def downgrade() -> None:
    """Drop the four tables and all they hold."""
    for table in ("dead_letters", "shards", "runs", "spaces"):
        op.drop_table(table)


def _create_spaces() -> None:
    op.create_table(
        "spaces",
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("view", sa.String(255), nullable=False),
        sa.Column("field", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(128), nullable=False),
        sa.Column("bundle_digest", sa.String(128), nullable=False),
        sa.Column("query", sa.Text),
        sa.Column("prompt", sa.Text),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", "view", "field", "fingerprint", name="pk_spaces"),
    )


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(128), nullable=False),
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("view", sa.String(255), nullable=False),
        sa.Column("bundle_digest", sa.String(128), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("window_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("shards", sa.Integer, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("rows_offline", sa.BigInteger),
        sa.Column("rows_online", sa.BigInteger),
        sa.Column("error_class", sa.String(255)),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
    )


def _create_shards() -> None:
    op.create_table(
        "shards",
        sa.Column("run_id", sa.String(128), nullable=False),
        sa.Column("shard", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("users_in", sa.BigInteger, nullable=False),
        sa.Column("users_embedded", sa.BigInteger, nullable=False),
        sa.Column("users_rejected", sa.BigInteger, nullable=False),
        sa.Column("events_in", sa.BigInteger, nullable=False),
        sa.Column("events_used", sa.BigInteger, nullable=False),
        sa.Column("events_rejected", sa.BigInteger, nullable=False),
        sa.Column("events_outside", sa.BigInteger, nullable=False),
        sa.Column("events_over_budget", sa.BigInteger, nullable=False),
        sa.Column("rows_offline", sa.BigInteger, nullable=False),
        sa.Column("rows_online", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("dead_letter_path", sa.Text),
        sa.PrimaryKeyConstraint("run_id", "shard", name="pk_shards"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_shards_runs", ondelete="CASCADE"
        ),
    )


def _create_dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("run_id", sa.String(128), nullable=False),
        sa.Column("shard", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(255), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "shard", "kind", "reason", name="pk_dead_letters"),
        sa.ForeignKeyConstraint(
            ["run_id", "shard"],
            ["shards.run_id", "shards.shard"],
            name="fk_dead_letters_shards",
            ondelete="CASCADE",
        ),
    )
