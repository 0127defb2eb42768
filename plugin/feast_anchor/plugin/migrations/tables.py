"""The catalogue's tables as this version of the package uses them.

The rule: `versions/` leads an empty database to exactly these tables; a test compares the two.
Times are UTC instants and come back time-zone aware from every database.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TextClause,
    text,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time-zone aware instant, kept in UTC; databases without time zones keep it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """What the database is given: the instant in UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; give an aware datetime.")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """What the program gets: the instant in UTC, aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Named constraints, so that a later revision can drop one on every database.
METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)

# What a shard counts; a run's totals are the sums over its shards.
SHARD_COUNTS = (
    "users_in",
    "users_embedded",
    "users_unchanged",
    "users_rejected",
    "events_in",
    "events_used",
    "events_unchanged",
    "events_rejected",
    "events_outside",
    "events_over_budget",
    "labels_in",
    "labels_rejected",
    "rows_offline",
    "rows_online",
)

# Counts that shards of revision 0001 did not have: there they are zero.
_ZERO_BEFORE = {"users_unchanged", "events_unchanged", "labels_in", "labels_rejected"}


def _default(count: str) -> TextClause | None:
    return text("0") if count in _ZERO_BEFORE else None


# One row per field and space it was ever computed in. The fingerprint alone is no key: two
# fields that share a space are comparable, and both must be found.
SPACES = Table(
    "spaces",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("view", String(255), primary_key=True),
    Column("field", String(255), primary_key=True),
    Column("fingerprint", String(128), primary_key=True),
    Column("bundle_digest", String(128), nullable=False),
    Column("query", Text),
    Column("prompt", Text),
    Column("dim", Integer, nullable=False),
    Column("first_seen", UtcDateTime, nullable=False),
    Column("last_seen", UtcDateTime, nullable=False),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("run_id", String(128), primary_key=True),
    Column("project", String(128), nullable=False),
    Column("view", String(255), nullable=False),
    Column("bundle_digest", String(128), nullable=False),
    Column("window_start", UtcDateTime, nullable=False),
    Column("window_end", UtcDateTime, nullable=False),
    Column("shards", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("rows_offline", BigInteger),
    Column("rows_online", BigInteger),
    Column("error_class", String(255)),
    Column("error", Text),
    Column("kind", String(16), nullable=False, server_default="materialize"),
    Column("created_until", UtcDateTime),
)

SHARDS = Table(
    "shards",
    METADATA,
    Column("run_id", String(128), primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    *(
        Column(name, BigInteger, nullable=False, server_default=_default(name))
        for name in SHARD_COUNTS
    ),
    Column("seconds", Double, nullable=False),
    Column("dead_letter_path", Text),
    ForeignKeyConstraint(["run_id"], ["runs.run_id"], ondelete="CASCADE"),
)

DEAD_LETTERS = Table(
    "dead_letters",
    METADATA,
    Column("run_id", String(128), primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), primary_key=True),
    Column("reason", String(255), primary_key=True),
    Column("rows", BigInteger, nullable=False),
    ForeignKeyConstraint(
        ["run_id", "shard"], ["shards.run_id", "shards.shard"], ondelete="CASCADE"
    ),
)
