"""Databases for catalogues, and a bundle for declarations: everything `scenario_view` reads, and
nothing that computes.

Declaring a view opens the manifest, the tokenizer and the prompts alone, so the graphs are
placeholders here and making a bundle takes milliseconds. What runs uses `shop_bundle`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from feast_anchor.onnx_export.bundle import seal
from feast_anchor.onnx_export.manifest import (
    GRAPHS,
    PROMPTS_FILE,
    TEXT_TOKENIZER_FILE,
    TOKENIZER_FILE,
    Dims,
    Manifest,
    SpecialIds,
)
from services.postgres import PostgresServer
from shop import SPECS

PaperBundle = Callable[..., Path]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: a SQLite file that is not there yet, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/not/there/yet/anchor.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    name = f"catalog_{uuid4().hex}"
    server.create_database(name)
    return server.sqlalchemy_url(name)


@pytest.fixture
def paper_bundle(tmp_path: Path) -> PaperBundle:
    """Makes a bundle that can be declared with and not run; takes fields of its manifest.

    It reads queries of up to 12 words, makes vectors of 8 numbers and has one prompt, "tuned". It
    knows "yes", "no", "sure" and "never"; every other word is the same to it.
    """

    def make(name: str = "model", **fields: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for graph in GRAPHS:
            (folder / f"{graph}.onnx").write_bytes(b"a declaration never opens a graph")
        tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="word"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        for name_of_file in (TOKENIZER_FILE, TEXT_TOKENIZER_FILE):
            tokenizer.save(str(folder / name_of_file))
        save_file({"tuned": np.ones((2, 4), dtype=np.float32)}, folder / PROMPTS_FILE)
        seal(folder, Manifest.model_validate(MANIFEST | fields))
        return folder

    return make


WORDS = {word: number for number, word in enumerate(("word", "yes", "no", "sure", "never"))}
MANIFEST: dict[str, Any] = {
    "name": "paper",
    "entity": "shopper_id",
    "modalities": SPECS,
    "max_text_tokens": 12,
    "max_query_tokens": 12,
    "event_features": (),
    "context_features": (),
    "dims": Dims(text=4, hidden=4, layers=1, heads=1, kv_heads=1, head_dim=4, embedding=8),
    "special_ids": SpecialIds(pad=5, user_emb=6, eos=7, first_prompt=8),
    "opset": 23,
    "state": ("k_0", "v_0"),
    "text_pad": 5,
    "sequence": ("events", "query", "prompt", "user_emb"),
}
