"""Connect to the catalogue's database, and say what went wrong without its secrets.

The rule: no password leaves this module, neither in a message nor in a traceback. So errors are
re-raised as CatalogError with their scrubbed text, and without their cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry
from tenacity import Retrying

from feast_anchor.onnx_export.errors import CatalogError
from feast_anchor.plugin.retries import connection_lost, retrying

# How long one process waits for another's SQLite transaction; ours take milliseconds.
_SQLITE_WAIT_S = 60.0

# How long a server may take to come back before a read or a write of the catalogue fails.
RETRY_S = 30.0

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


def sqlite_file(url: URL) -> Path | None:
    """The absolute path of a SQLite file; None for other databases, ":memory:" and "file:" URIs."""
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name == ":memory:":
        return None
    return None if name.startswith("file:") else Path(name).resolve()


def connect(url: URL) -> Engine:
    """An engine for the URL. For SQLite: the parent folder, foreign keys, and waiting."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, hide_parameters=True, pool_pre_ping=True)
    path = sqlite_file(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        raise CatalogError(
            f"Could not {doing} the catalogue {shown(url)}: {told(error, _secrets(url))}. Check "
            "that the database is there, that its driver is installed and that this user may "
            "write to it."
        ) from None


def patient(url: URL, doing: str) -> Retrying:
    """Something to call with a function: it repeats it while the server drops connections.

    SQLite has no server to come back.
    """
    seconds = 0.0 if url.get_backend_name() == "sqlite" else RETRY_S
    secrets = _secrets(url)
    what = f"{doing} in the catalogue {shown(url)}"
    return retrying(what, seconds, connection_lost, lambda error: told(error, secrets))


def told(error: BaseException, secrets: Iterable[str]) -> str:
    """The class and message of what a driver raised, on one line, with stars for secrets."""
    cause = getattr(error, "orig", None) or error
    text = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    for secret in secrets:
        text = text.replace(secret, "***")
    return without_passwords(text)


def is_secret(setting: str) -> bool:
    """Whether a setting of this name holds something that must not be shown."""
    return _SECRET_SETTING.search(setting) is not None


def without_passwords(text: str) -> str:
    """`text` with the password of every URL in it replaced by stars."""
    return _URL_PASSWORD.sub(r"\1***@", text)


def _secrets(url: URL) -> list[str]:
    settings = url.normalized_query.items()
    secrets = [one for key, many in settings if is_secret(key) for one in many]
    return secrets + ([str(url.password)] if url.password else [])


def _foreign_keys_on(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
