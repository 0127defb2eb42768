"""What a training run can be told: one frozen `TrainConfig`, from Python or from a TOML file.

A file is checked in full before anything is read or trained: an unknown key, a wrong type or a
number out of range is an error that names the key, what was given and what would do.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import SpecError
from .sizes import ModelConfig

FAMILIES = ("general", "behaviour", "attributes")
"""Families of questions that `families.py` makes."""


@dataclass(frozen=True)
class TrainConfig:
    """How a bundle is trained."""

    model: ModelConfig = field(default_factory=ModelConfig)
    steps: int = 200  # optimiser steps; the only budget
    histories: int = 48  # histories per batch
    chunk: int = 0  # histories of a batch in memory at once, all still negatives; 0 for all
    questions: int = 24  # asked of each history in one batch; half as many in two ways with `alike`
    families: tuple[str, ...] = ("general", "behaviour", "attributes")  # of questions
    even: float = 0.6  # 1 draws every family equally often, 0 every question
    accumulate: int = 1  # batches per step; the step takes the mean of their gradients
    learning_rate: float = 3e-3  # peak; warms up for 5 % of the steps, then falls as a cosine
    weight_decay: float = 0.2  # AdamW
    contrastive: float = 1.0  # weight of InfoNCE against answers and other users
    loss: Literal["split", "paper", "demo"] = "split"  # form of InfoNCE; see `losses`
    mask: bool = True  # leave out negatives that look true (`losses.MARGIN`)
    plain: float = 1.0  # weight of telling a plain yes from a plain no
    alike: float = 0.5  # weight of the distance between two ways to put one question
    noise: float = 0.1  # share of query tokens replaced by random ones
    query_noise: float = 0.3  # noise on the questions' text vectors, relative to their own spread
    silent: float = 0.1  # share of pairs that ask nothing: they train the general embedding
    text_encoder: str | None = None  # folder of a pretrained sentence encoder; None: our own small
    backbone: str | None = None  # folder of a Qwen2, Qwen3 or Llama model; None: our own decoder
    lora_rank: int = 64  # inner width of the adapters that train a backbone
    lora_alpha: float = 32.0  # they count lora_alpha / lora_rank times
    timezone: str = "UTC"  # the clock that questions about the time of day mean
    ntp_every: int = 4  # steps between two with the next-token loss
    ntp_questions: int = 6  # questions that take part in it, 0 for none
    snapshots: int = 8  # as-of times per user
    users: int = 0  # most users trained on, drawn by a hash of their key; 0 for all
    topics: int = 60  # most topics per modality
    vocab: int = 4096  # most tokens of the tokenizer
    max_text_tokens: int = 40  # tokens read of one event text; a scenario's may not be longer
    max_query_tokens: int = 32  # longest question of a decoder that reads it word by word
    validation_share: float = 0.1  # of the training users, kept from the gradient to choose weights
    evaluate_every: int = 50  # steps between two looks at them; the last step is looked at anyway
    patience: int = 0  # stop after so many looks without a better one, 0 for never
    checkpoint_every: int = 50  # steps between two checkpoints, 0 for none
    seed: int = 0  # fixes every random choice

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise SpecError(f"{name}={getattr(self, name)!r}, expected at least {least}")
        for name in ("noise", "silent", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)!r}, expected 0 or more, below 1")
        if not self.families or not set(self.families) <= set(FAMILIES):
            raise SpecError(f"families={self.families!r}, expected some of {FAMILIES}")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise SpecError(
                f"timezone={self.timezone!r} is no time zone; expected a name such as 'UTC' or "
                "'Europe/Berlin'"
            ) from error
        if not 0 < self.lora_alpha < math.inf:
            raise SpecError(f"lora_alpha={self.lora_alpha!r}, expected a number above 0")
        if self.backbone is not None:
            self._check_backbone(self.backbone)
        else:
            self.model.decoder()  # raises where its sizes do not fit each other

    def _check_backbone(self, folder: str) -> None:
        given = self.model.of_decoder()
        if given:
            raise SpecError(
                f"backbone={folder!r} decides the decoder's sizes, and [model] gives {given} as "
                "well; remove them, or the backbone"
            )
        if not (Path(folder) / "config.json").is_file():
            raise SpecError(
                f"backbone={folder!r} is no folder of a pretrained model; expected one with "
                "config.json, model.safetensors (or its index and parts) and tokenizer.json"
            )


_AT_LEAST_ONE = ("steps", "histories", "questions", "accumulate", "ntp_every", "snapshots")
_AT_LEAST_NONE = (
    *("learning_rate", "weight_decay", "ntp_questions", "patience", "checkpoint_every", "chunk"),
    "users",
    *("query_noise", "even", "contrastive", "plain", "alike"),
)
_LEAST = (
    dict.fromkeys((*_AT_LEAST_ONE, "topics", "vocab", "evaluate_every"), 1)
    | dict.fromkeys(("max_text_tokens", "max_query_tokens", "lora_rank"), 1)
    | dict.fromkeys((*_AT_LEAST_NONE, "seed"), 0)
)


_FOLDERS = ("text_encoder", "backbone")


def read_config(path: Path) -> TrainConfig:
    """Read a `TrainConfig` from a TOML file; sizes of the model stand in its table `[model]`.

    Folders of pretrained models are relative to the file.

    Raises `SpecError` when the file is not there or not TOML, has an unknown key, a value of the
    wrong type or a number out of range.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"no training configuration at {path}; correct the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from error
    return config_from(values, str(path), path.parent)


def config_from(values: Mapping[str, Any], where: str, folder: Path) -> TrainConfig:
    """A `TrainConfig` from a table of settings.

    Args:
        values: the table.
        where: what messages call it.
        folder: what relative folders of pretrained models are relative to.

    Raises:
        SpecError: an unknown key, a value of the wrong type or a number out of range.
    """
    _refuse_unknown(where, TrainConfig, values, "")
    named = {name: values[name] for name in _FOLDERS if isinstance(values.get(name), str)}
    found = {name: str(folder / given) if given else None for name, given in named.items()}
    values = {**values, **found}  # "" stands for None, which TOML does not have
    try:  # as JSON: there a list may become a tuple, which strict mode refuses of Python objects
        text = json.dumps(values, default=str)
        return TypeAdapter(TrainConfig).validate_json(text, strict=True)
    except ValidationError as error:
        raise SpecError(f"{where}: {'; '.join(map(_sentence, error.errors()))}") from error


def _refuse_unknown(where: str, kind: Any, values: Mapping[str, Any], prefix: str) -> None:
    """`prefix` is that of the keys, such as "model."."""
    types = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix + near[0]!r}?" if near else f"known keys: {known}"
            raise SpecError(f"{where} has the unknown key {prefix + key!r}; {hint}")
        if is_dataclass(types[key]) and isinstance(value, dict):
            _refuse_unknown(where, types[key], value, f"{prefix}{key}.")


def _sentence(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if key:
        return f"{key}={error['input']!r}: {error['msg']}"
    return error["msg"].removeprefix("Value error, ")
