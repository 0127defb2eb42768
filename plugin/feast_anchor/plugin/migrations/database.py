"""Connect to the catalogue's database, and say what went wrong without its secrets.

The rule: no password leaves this module, neither in a message nor in a traceback. So errors are
re-raised as CatalogError with their scrubbed text, and without their cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from feast_anchor.onnx_export.errors import CatalogError

# How long one process waits for another's SQLite transaction; ours take milliseconds.
_SQLITE_WAIT_S = 60.0

_SECRET_SETTING = re.compile(r"pass|pwd|secret|token|odbc_connect", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]*@")


def parse_url(url: str) -> URL:
    """The parsed SQLAlchemy URL. Raises CatalogError, without the text of `url`."""
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise CatalogError(
            "The catalogue's URL cannot be parsed (it is not shown: it may hold a password). Give "
            "a SQLAlchemy URL such as 'sqlite:////data/anchor.db' or 'postgresql+psycopg://...'."
        ) from None
    if parsed.password is not None and "@" in f"{parsed.host}{parsed.database}":
        raise CatalogError(
            "The catalogue's URL has more than one '@', so part of its password would be taken "
            "for a host. Percent-encode the password (urllib.parse.quote_plus)."
        )
    return parsed


def shown(url: URL) -> str:
    """The URL as it may be printed: no password, no settings."""
    return url.set(query={}).render_as_string(hide_password=True)


def connect(url: URL) -> Engine:
    """An engine for the URL. For SQLite: the parent folder, foreign keys, and waiting."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, hide_parameters=True, pool_pre_ping=True)
    if url.database and url.database != ":memory:" and not url.database.startswith("file:"):
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    # isolation_level None: sqlite3 must not begin transactions by itself, and late; we do.
    settings = {"timeout": _SQLITE_WAIT_S, "isolation_level": None}
    engine = create_engine(url, hide_parameters=True, connect_args=settings)
    event.listen(engine, "connect", _foreign_keys_on)
    event.listen(engine, "begin", _begin)
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine for transactions that write.

    SQLite cannot turn a read lock into a write lock while another process writes, so a writing
    transaction takes the write lock first, where waiting helps.
    """
    return engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")


@contextmanager
def explained(url: URL, doing: str) -> Iterator[None]:
    """Turn whatever the database or its driver raises into a CatalogError without secrets."""
    try:
        yield
    except (SQLAlchemyError, OSError, ImportError) as error:
        cause = getattr(error, "orig", None) or error
        text = " ".join(str(cause).split())
        reason = _without_secrets(f"{type(cause).__name__}: {text}", url)
        raise CatalogError(
            f"Could not {doing} the catalogue {shown(url)}: {reason}. Check that the database is "
            "there, that its driver is installed and that this user may write to it."
        ) from None


def without_passwords(text: str) -> str:
    """`text` with the password of every URL in it replaced by stars."""
    return _URL_PASSWORD.sub(r"\1***@", text)


def _without_secrets(text: str, url: URL) -> str:
    settings = url.normalized_query.items()
    secrets = [one for key, many in settings if _SECRET_SETTING.search(key) for one in many]
    secrets += [str(url.password)] if url.password else []
    for secret in secrets:
        text = text.replace(secret, "***")
    return without_passwords(text)


def _foreign_keys_on(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
