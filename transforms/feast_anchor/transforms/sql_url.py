"""Database URLs whose secrets stay in the environment.

The law of this module: what is declared, stored and printed is the template (`${EVENTS_DB}`); what
it stands for is looked up when a connection is opened, and never put into an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from feast_anchor.onnx_export.errors import SpecError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_PASSWORD = re.compile(r"://[^:/@]*:(?P<password>.*)@")
_SECRET_OPTION = re.compile(
    r"[?&;][^=&;]*(?:pass|pwd|secret|token)[^=&;]*=(?P<password>[^&;]*)", re.IGNORECASE
)
_SHORTEST_SECRET = 3  # shorter values would be found all over a message


def check_url(template: str) -> None:
    """Refuse a template that is no URL or has a password written into it.

    Raises `SpecError`, whose message never holds what it found.
    """
    for pattern in (_PASSWORD, _SECRET_OPTION):
        found = pattern.search(template)
        if found and _VARIABLE.sub("", found["password"]):
            raise SpecError(
                "a database URL holds a password, and declarations are stored and printed; put it "
                "into the environment: url='${EVENTS_DB}' for the whole URL, or "
                "'postgresql+psycopg://user:${EVENTS_DB_PASSWORD}@host/database'"
            )
    if "://" not in template and not _VARIABLE.fullmatch(template):
        raise SpecError(  # what was given may be a misplaced secret
            "the url of a SqlSource is no database URL; expected one that SQLAlchemy reads, such "
            "as '${EVENTS_DB}' or 'sqlite:///data/events.db'"
        )


def expand(template: str, folder: str, environment: Mapping[str, str] = os.environ) -> URL:
    """The URL that a template stands for now. Never print it.

    A variable that is the whole template is taken as a URL; one inside user or password is taken
    as it is, so it needs no percent encoding. A relative SQLite path starts at `folder`.

    Raises `SpecError` for an unset variable, or when the outcome is no URL.
    """
    start, mark, rest = template.partition("://")
    account, at, place = rest.rpartition("@")
    text = _filled(start, environment) + mark
    text += _filled(account, environment, encode=True) + at + _filled(place, environment)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise SpecError(
            f"url={template!r} is no database URL once its variables are filled in; expected one "
            "that SQLAlchemy reads, such as 'postgresql+psycopg://user@host/database'"
        ) from None  # the cause may quote it
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        url = url.set(database=str(Path(folder) / str(url.database)))
    return url


def public(url: URL) -> list[object]:
    """Which database a URL means, without account and options."""
    return [url.get_backend_name(), url.host, url.port, url.database]


def redacted(message: str, url: URL) -> str:
    """A message of a database or its driver, without what must not be seen."""
    hidden = [url.password, *(v for vs in url.normalized_query.values() for v in vs)]
    secrets = {str(url), url.render_as_string(hide_password=False)}
    for value in (text for text in hidden if text and len(text) >= _SHORTEST_SECRET):
        secrets |= {value, quote(value, safe="")}
    for secret in sorted(secrets, key=len, reverse=True):
        message = message.replace(secret, "***")
    return message


def _filled(text: str, environment: Mapping[str, str], *, encode: bool = False) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environment:
            raise SpecError(
                f"the environment variable {name!r}, which a SqlSource's url names, is not set; "
                "set it wherever the run and its workers start"
            )
        return quote(environment[name], safe="") if encode else environment[name]

    return _VARIABLE.sub(value, text)
