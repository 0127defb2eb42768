"""One small trained bundle for all tests of this folder; tests that change files copy it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_bert, tiny_bundle

# On a busy machine torch's threads wait for each other many times longer than they compute.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained bundle; do not write into it."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random BERT of `transformers` and the folder it was saved in; do not write there."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, tiny_bert(folder)
