"""One small trained bundle for all tests of this folder; tests that change files copy it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import tiny_bundle


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained bundle; do not write into it."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles"))
