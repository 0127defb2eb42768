"""Read a folder of pretrained weights in Hugging Face's layout, without Hugging Face's code.

The law of this module: weights are either used as what they are or refused. A tensor that is
missing, of another shape, quantised, or left over after reading means that the model in the folder
is not the model that would run, and that shows in no error but in slightly worse vectors.

    config.json                     sizes; `model_type` names the family
    model.safetensors               the tensors, or
    model.safetensors.index.json    {"weight_map": {tensor: file}} when there are several files
    tokenizer.json                  as the tokenizers library writes it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from .errors import PretrainedError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_OF_SENTENCE_ENCODERS = ("modules.json", "1_Pooling/config.json")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Config:
    """A JSON object of settings whose errors name the file and the key."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Config:
        """The object in a JSON file; `PretrainedError` when there is none."""
        values = read_json(path)
        if not isinstance(values, dict):
            raise PretrainedError(f"{path} holds {type(values).__name__}, expected an object")
        return cls(path, values)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; the default where it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.get(key, default)
        if type(value) is not int or value < 1:
            raise self.error(f"{key} is {value!r}, expected a whole number above zero")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above zero."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not value > 0:
            raise self.error(f"{key} is {value!r}, expected a number above zero")
        return float(value)

    def require(self, key: str, default: Any, known: Sequence[Any]) -> Any:
        """The value of a key, which has to be one of those we can run."""
        value = self.get(key, default)
        if value not in known:
            raise self.error(
                f"{key} is {value!r}, expected one of {list(known)}; choose another model"
            )
        return value

    def error(self, message: str) -> PretrainedError:
        """An error that starts with the file's path."""
        return PretrainedError(f"{self.path}: {message}")


class Weights:
    """The tensors of a folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {name: _open(folder / name) for name in _file_names(folder)}
        self._where = {
            key: name for name, file in self._files.items() for key in sorted(file.keys())
        }
        self._unread = set(self._where)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A copy of one tensor as float32.

        Raises `PretrainedError` when it is missing, of another shape or not a plain float.
        """
        if name not in self._where:
            raise PretrainedError(
                f"{self.folder} has no tensor {name!r}, which its config.json asks for; "
                "the download is incomplete or holds another kind of model"
            )
        tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise PretrainedError(
                f"tensor {name!r} in {self.folder} has shape {tuple(tensor.shape)}, its "
                f"config.json asks for {shape}; the two files belong to different models"
            )
        if tensor.dtype not in _FLOATS:
            raise PretrainedError(
                f"tensor {name!r} in {self.folder} is {tensor.dtype}, expected float32, float16 or "
                "bfloat16; take the weights that are not quantised"
            )
        self._unread.discard(name)
        return tensor.to(torch.float32, copy=True)  # the file stays mapped behind the original

    def finish(self, unused: Sequence[str] = ()) -> None:
        """Check that nothing was left unread but tensors whose names end in one of `unused`."""
        left = sorted(name for name in self._unread if not name.endswith(tuple(unused)))
        if left:
            raise PretrainedError(
                f"{self.folder} holds {len(left)} tensors that we have no place for, among them "
                f"{left[:3]}; this model has parts that would be ignored, choose another"
            )


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that decide what its model is."""
    optional = [name for name in _OF_SENTENCE_ENCODERS if (folder / name).is_file()]
    names = {"config.json", "tokenizer.json", *_file_names(folder), *optional}
    return [folder / name for name in sorted(names)]


def read_json(path: Path) -> Any:
    """The value in a JSON file; `PretrainedError` when it is missing or broken."""
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise PretrainedError(f"{path} is not JSON: {error}; download it again") from error


def read_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model with `vocabulary` token vectors, without padding or truncation.

    Raises `PretrainedError` when the file is missing or broken, or has more tokens than vectors.
    """
    path = _existing(folder / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise PretrainedError(f"{path} cannot be read as a tokenizer: {error}") from error
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocabulary:
        raise PretrainedError(
            f"{path} gives ids up to {largest}, the model has vectors for {vocabulary}; "
            "the two files belong to different models"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _file_names(folder: Path) -> list[str]:
    if (folder / _SINGLE).is_file() or not (folder / _INDEX).is_file():
        return [_existing(folder / _SINGLE).name]
    index = Config.read(folder / _INDEX)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise index.error("expected an object weight_map of tensor names and file names")
    for name in names.values():
        # by name alone: files of a download cache are links to elsewhere, and that is its owner's
        if (
            not isinstance(name, str)
            or not name
            or "\\" in name
            or PurePosixPath(name).name != name
        ):
            raise index.error(f"names the file {name!r}, expected plain names inside the folder")
    return sorted(set(names.values()))


def _open(path: Path) -> Any:
    try:
        return safe_open(_existing(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise PretrainedError(
            f"{path} cannot be read as safetensors: {error}; download it again"
        ) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise PretrainedError(
            f"{path} does not exist; expected a folder with config.json, model.safetensors (or "
            "its index and parts) and tokenizer.json"
        )
    return path
