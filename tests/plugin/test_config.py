from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.catalog import Catalog
from feast_anchor.plugin.config import EngineConfig, parse_config


def test_every_setting_has_a_default() -> None:
    """The type alone is a working block, with a runner that downloads nothing."""
    config = parse_config({"type": "feast_anchor.plugin.BeamComputeEngine"})
    assert config == EngineConfig()
    assert config.runner == "FnApiRunner"


def test_settings_are_taken_as_given() -> None:
    """Beam options pass through untouched."""
    options = {"direct_num_workers": 2, "streaming": False}
    config = parse_config({"shards": 64, "threads": 2, "options": options, "runner": "FlinkRunner"})
    assert (config.shards, config.threads, config.runner) == (64, 2, "FlinkRunner")
    assert config.options == options


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"shardz": 3}, "shardz: Extra inputs are not permitted"),
        ({"shards": 0}, "shards: Input should be greater than or equal to 1"),
        ({"shards": 5_000}, "shards: Input should be less than or equal to 4096"),
        ({"shards": "many"}, "shards: Input should be a valid integer"),
        ({"shards": 1.5}, "shards: Input should be a valid integer"),
        ({"shards": None}, "shards: Input should be a valid integer"),
        ({"threads": 0}, "threads: Input should be greater than or equal to 1"),
        ({"runner": 7}, "runner: Input should be a valid string"),
        ({"options": ["--streaming"]}, "options: Input should be a valid dictionary"),
        ({"catalog": 5}, "catalog: Input should be a valid string"),
        ({"state": None}, "state: Input should be a valid string"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_unknown_or_wrong_setting_is_refused(block: dict[str, Any], says: str) -> None:
    """The error names the setting, what was expected and all settings there are."""
    with pytest.raises(SpecError, match="batch_engine in feature_store.yaml: ") as caught:
        parse_config(block)
    assert says in str(caught.value)
    assert f"Settings are {sorted(EngineConfig.model_fields)}" in str(caught.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    """Nobody has to run `feast apply` once per mistake."""
    with pytest.raises(SpecError, match="; .*; ") as caught:
        parse_config({"shardz": 3, "shards": 0, "runner": 1})
    assert all(f"{name}: " in str(caught.value) for name in ("shardz", "shards", "runner"))


@pytest.mark.parametrize(
    "url", ["", "anchor.db", "data/anchor.db", "postgresql://me:s3cret@h:x/db"]
)
def test_a_catalogue_that_is_no_url_is_refused(url: str) -> None:
    """The error shows a good one and never a password."""
    with pytest.raises(SpecError, match="catalog is not a SQLAlchemy URL; .*'sqlite:///data") as e:
        parse_config({"catalog": url})
    assert "s3cret" not in str(e.value)


def test_a_relative_sqlite_path_lies_in_the_repo(tmp_path: Path) -> None:
    """Where a command is run from does not matter: the catalogue opens beside the registry."""
    (tmp_path / "data").mkdir()
    url = parse_config({}).catalog_url(tmp_path)
    assert make_url(url).database == str(tmp_path / "data" / "anchor.db")
    with Catalog.open(url) as catalog:
        assert catalog.runs() == []
    assert (tmp_path / "data" / "anchor.db").is_file()


def test_an_absolute_sqlite_path_stays(tmp_path: Path) -> None:
    """Four slashes are an absolute path, whatever the repo is."""
    url = f"sqlite:///{tmp_path / 'own' / 'anchor.db'}"
    found = parse_config({"catalog": url}).catalog_url(tmp_path / "repo")
    assert make_url(found).database == str(tmp_path / "own" / "anchor.db")


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://me:p%40ss@db:5432/anchor?sslmode=require", "sqlite://"],
)
def test_other_urls_stay_as_they_are(tmp_path: Path, url: str) -> None:
    """Servers and in-memory databases are not paths; a password stays usable."""
    assert parse_config({"catalog": url}).catalog_url(tmp_path) == url


def test_the_state_folder_lies_in_the_repo_unless_absolute(tmp_path: Path) -> None:
    """Relative to the repo, or exactly where it was said."""
    assert parse_config({}).state_folder(tmp_path) == tmp_path / "data" / "anchor"
    elsewhere = parse_config({"state": str(tmp_path / "other")})
    assert elsewhere.state_folder(tmp_path / "repo") == tmp_path / "other"
