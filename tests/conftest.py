"""Fixtures shared by all tests: real servers and real data, and the markers that name them.

A missing server or data set skips a test on a developer's machine and fails it in CI (where the
variable CI is set): a check that silently stopped running guards nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from services.postgres import PostgresServer, postgres_server
from services.process import ServerNotFoundError
from services.valkey import ValkeyServer, valkey_server
from shop import write_bundle
from tiny import sentence_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
MARKERS = {"postgres": "services", "valkey": "services", "data_dir": "realdata"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the fixtures it uses, directly or through others."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run: take a database of your own on it."""
    try:
        with postgres_server() as server:
            yield server
    except ServerNotFoundError as error:
        _unavailable(str(error))


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey server for the whole run: use a key or Feast project of your own on it."""
    try:
        with valkey_server() as server:
            yield server
    except ServerNotFoundError as error:
        _unavailable(str(error))


@pytest.fixture(scope="session")
def text_encoder() -> Path:
    """The folder with the weights of all-MiniLM-L6-v2, a real pretrained sentence encoder."""
    folder = REPOSITORY / "build" / "text_encoder"
    if not folder.is_dir():
        _unavailable(f"no sentence encoder at {str(folder)!r}: `make text-encoder` gets one")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets."""
    folder = Path(os.environ.get("FEAST_ANCHOR_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        _unavailable(
            f"no data sets at {str(folder)!r}: set FEAST_ANCHOR_DATA to the folder that holds "
            "complete_journey/"
        )
    return folder


@pytest.fixture(scope="session")
def shop_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified bundle with random weights that reads the tables of `shop`; do not change it."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "shop")


@pytest.fixture(scope="session")
def sentence_bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that reads texts with a sentence encoder, and questions by their text vectors
    alone; do not change it.
    """
    return sentence_bundle(tmp_path_factory.mktemp("bundle"))


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
