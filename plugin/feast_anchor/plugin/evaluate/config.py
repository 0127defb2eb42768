"""What to evaluate: a TOML file that another team can write without writing code.

The rule: everything that decides a number stands in this file or on the command line, so that a
result can be told from its configuration's digest.
"""

from __future__ import annotations

import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.manifest import canonical_sha256

Part = Literal["test", "validation"]
Text = Annotated[str, Field(pattern=r"\S")]


def checked_part(text: str) -> Part:
    """The part that `--part` names. Raises `SpecError` for another word."""
    for part in get_args(Part):
        if text == part:
            found: Part = part
            return found
    raise SpecError(f"--part is {text!r}, expected 'test' or 'validation'")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TopicConfig(_Frozen):
    """The events a scenario is about, for the baseline that is told which ones to count."""

    modality: str
    contains: str = ""  # part of the event's text; "" means every event
    hours: tuple[int, int] | None = None  # UTC, start and end


class ScenarioConfig(_Frozen):
    """One yes/no label and the question that asks for it."""

    query: Text
    label: str | None = None  # column of the labels table; the scenario's name by default
    unseen: tuple[Text, ...] = ()  # phrasings that are never trained on
    positive: tuple[Text, ...] = Field(default=("yes",), min_length=1)  # for the zero-shot score
    negative: tuple[Text, ...] = Field(default=("no",), min_length=1)
    topic: tuple[TopicConfig, ...] = ()

    @field_validator("topic", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value


class FullVariant(_Frozen):
    """One configuration of `--full`: a name and what it changes of [train]."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")  # becomes a folder
    train: dict[str, Any] = Field(default_factory=dict)


class FullConfig(_Frozen):
    """What `--full` loops over."""

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    splits: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    variants: tuple[FullVariant, ...] = ()


class EvaluationConfig(_Frozen):
    """A parsed evaluation file. Paths are absolute once `load_config` has read them."""

    repo: Path = Path(".")  # feature repo, relative to the file
    modalities: str = "events:MODALITIES"
    labels: Path = Path("data/evaluation_labels.parquet")  # relative to the repo
    cut: AwareDatetime
    horizon_days: int = Field(ge=1)  # length of the labels' window
    test_share: float = Field(default=0.4, gt=0, lt=1)
    validation_share: float = Field(default=0.2, ge=0, lt=1)
    split: int = 0  # which users are whose: another number is another division
    seed: int = 0
    rounds: int = Field(default=1000, ge=100)  # of the user bootstrap
    draws: int = Field(default=20, ge=2)  # repetitions of each number of labels
    prompts: bool = True  # tune one per scenario on earlier labels of users not reported
    train: dict[str, Any] = Field(default_factory=dict)
    scenarios: dict[str, ScenarioConfig] = Field(min_length=1)
    full: FullConfig = Field(default_factory=FullConfig)

    @property
    def horizon(self) -> timedelta:
        """Length of the window that a label speaks of."""
        return timedelta(days=self.horizon_days)

    @property
    def names(self) -> tuple[str, ...]:
        """The scenarios' names, in the file's order."""
        return tuple(self.scenarios)

    def column(self, scenario: str) -> str:
        """The scenario's column in the labels table."""
        return self.scenarios[scenario].label or scenario

    def digest(self) -> str:
        """SHA-256 (hex) of all that decides a cell's scores: not where files lie, not intervals."""
        unimportant = {"repo", "labels", "full", "rounds", "draws"}
        return canonical_sha256(self.model_dump(mode="json", exclude=unimportant))


def load_config(path: Path) -> EvaluationConfig:
    """Read an evaluation file.

    Raises `SpecError` that names each wrong setting, or says that the file is missing or no TOML.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SpecError(
            f"no evaluation file at {path}; write one as docs/evaluate.md shows"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from error
    try:
        config = EvaluationConfig.model_validate(table)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SpecError(f"{path}: {wrong}") from error
    _check(path, config)
    repo = (path.absolute().parent / config.repo).resolve()
    return config.model_copy(update={"repo": repo, "labels": repo / config.labels})


def _check(path: Path, config: EvaluationConfig) -> None:
    if config.test_share + config.validation_share >= 1:
        raise SpecError(
            f"{path}: test_share {config.test_share} and validation_share "
            f"{config.validation_share} leave nobody to train on; expected a sum below 1"
        )
    names = [variant.name for variant in config.full.variants]
    if len(set(names)) < len(names):
        raise SpecError(f"{path}: [[full.variants]] are named {names}; expected distinct names")
    for name, scenario in config.scenarios.items():
        if not name.isidentifier():
            raise SpecError(
                f"{path}: scenario {name!r}, expected letters, digits and underscores: it names a "
                "prompt of the bundle"
            )
        if scenario.query in scenario.unseen:
            raise SpecError(
                f"{path}: scenario {name!r} has its query among the unseen phrasings; write others"
            )


def utc(moment: datetime) -> str:
    """An instant in the words of messages and files."""
    return moment.isoformat().replace("+00:00", "Z")
