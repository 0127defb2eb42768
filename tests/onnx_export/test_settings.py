from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.settings import TrainConfig, config_from, read_config


def config(folder: Path, text: str) -> TrainConfig:
    path = folder / "train.toml"
    path.write_text(text)
    return read_config(path)


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    """Keys of the file replace defaults, those of [model] too; a whole number may be a float."""
    read = config(tmp_path, "steps = 7\nnoise = 0\nlearning_rate = 1e-3\n[model]\nlayers = 3\n")
    default = TrainConfig()
    expected = replace(default, steps=7, noise=0.0, learning_rate=1e-3)
    assert read == replace(expected, model=replace(default.model, layers=3))


def test_folders_are_relative_to_what_the_caller_says(tmp_path: Path) -> None:
    """A table inside another file names folders beside that file; "" is none; [] may be a tuple."""
    values = {"text_encoder": "encoder", "backbone": "", "families": ["general"]}
    read = config_from(values, "evaluate.toml: [train]", tmp_path)
    assert read.text_encoder == str(tmp_path / "encoder")
    assert read.backbone is None
    assert read.families == ("general",)
    with pytest.raises(SpecError, match=r"evaluate.toml: \[train\] has the unknown key 'setps'"):
        config_from({"setps": 1}, "evaluate.toml: [train]", tmp_path)


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    """Nothing said, nothing changed."""
    assert config(tmp_path, "") == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 7", "unknown key 'step'; did you mean 'steps'?"),
        ("[model]\nlayer = 3", "unknown key 'model.layer'; did you mean 'model.layers'?"),
        ("zzz = 1", "unknown key 'zzz'; known keys: ['model', 'steps'"),
        ("steps = '7'", "steps='7': Input should be a valid integer"),
        ("steps = 7.0", "steps=7.0: Input should be a valid integer"),
        ("steps = true", "steps=True: Input should be a valid integer"),
        ("noise = 2024-01-01", "noise='2024-01-01': Input should be a valid number"),
        ("[model]\nlayers = 'two'", "model.layers='two': Input should be a valid integer"),
        ("model = 3", "model=3"),
        ("steps = 0", "steps=0, expected at least 1"),
        ("learning_rate = nan", "learning_rate=nan, expected at least 0"),
        ("learning_rate = inf", "learning_rate=inf, expected at least 0"),
        ("[model]\nembedding = 0", "embedding=0, expected at least 1"),
        ("[model]\ndropout = 1.5", "dropout=1.5, expected 0 or more, below 1"),
        ("[model]\nhidden = 30", "hidden=30, heads=4"),
        ("[model]\nuser_token = false", 'user_token=false does nothing with order="events first"'),
        ("validation_share = 1.0", "validation_share=1.0, expected 0 or more, below 1"),
        ("timezone = 'Europe/Atlantis'", "timezone='Europe/Atlantis' is no time zone"),
        ("even = -0.1", "even=-0.1, expected at least 0"),
        ("contrastive = -1", "contrastive=-1.0, expected at least 0"),
        ("chunk = -1", "chunk=-1, expected at least 0"),
        ("loss = 'papre'", "loss='papre': Input should be 'split', 'paper' or 'demo'"),
        ("alike = -1", "alike=-1.0, expected at least 0"),
        ("mask = 1", "mask=1: Input should be a valid boolean"),
        ("families = []", "families=(), expected some of ('general', 'behaviour', 'attributes')"),
        ("families = ['topics']", "families=('topics',), expected some of"),
        ("steps 7", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    """Unknown keys, wrong types and numbers out of range name the file, the key and the cure."""
    with pytest.raises(SpecError) as caught:
        config(tmp_path, text)
    assert message in str(caught.value)
    assert "train.toml" in str(caught.value)


def test_a_missing_file_is_a_spec_error(tmp_path: Path) -> None:
    """A mistyped path says so."""
    with pytest.raises(SpecError, match="no training configuration at"):
        read_config(tmp_path / "nope.toml")


def test_python_values_are_checked_too() -> None:
    """A configuration made in code obeys the same ranges."""
    with pytest.raises(SpecError, match="accumulate=0, expected at least 1"):
        TrainConfig(accumulate=0)
