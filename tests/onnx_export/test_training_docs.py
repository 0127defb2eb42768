"""docs/training.md names every setting with its default, and its examples can be read."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from feast_anchor.onnx_export.settings import TrainConfig, config_from
from feast_anchor.onnx_export.sizes import SIZES, ModelConfig

PAGE = Path(__file__).parents[2].joinpath("docs", "training.md").read_text("utf-8")


def table_of(page: str) -> dict[str, str]:
    """Settings and the defaults that the tables give them."""
    rows = re.findall(r"^\| (`[a-z_`, ]+) \| ([^|]+) \| [^|]+ \|$", page, flags=re.M)
    return {name: default for names, default in rows for name in re.findall(r"\w+", names)}


def spelled(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value)
    return "none" if value is None else f'"{value}"' if isinstance(value, str) else str(value)


def test_every_setting_stands_in_the_docs_with_its_default() -> None:
    """The two tables are `TrainConfig` and `ModelConfig`, no setting more or less."""
    config = TrainConfig()
    expected = {f.name: spelled(getattr(config, f.name)) for f in fields(TrainConfig)}
    del expected["model"]
    expected |= {f.name: spelled(getattr(config.model, f.name)) for f in fields(ModelConfig)}
    assert table_of(PAGE) == expected


def test_named_sizes_stand_in_the_docs() -> None:
    """The table of sizes is the code's."""
    for size, s in SIZES.items():
        row = f"| `{size}` | {s['hidden']} | {s['layers']} | {s['heads']} / {s['kv_heads']} "
        assert f"{row}| {s['ff']} |" in PAGE


def test_examples_are_read_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each TOML block is a configuration, once the folder it names is there."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        values = tomllib.loads(block)
        if "backbone" in values:
            folder = Path(values["backbone"])
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
        assert config_from(values, "docs", tmp_path) != TrainConfig()
