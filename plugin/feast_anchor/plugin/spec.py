"""What a scenario view says about itself, as JSON in the view's `feast_anchor` tag.

The spec is data, never code: it survives every Feast registry, any machine can read it, and a
feature view with this tag is one of ours. `feast apply` stores it; the engine plans from it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from feast import FeatureView, ValueType
from pydantic import BaseModel, ConfigDict, ValidationError

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.manifest import Manifest, ModalitySpec, score_fingerprint
from feast_anchor.transforms.job import ScenarioColumn, ScoreColumn
from feast_anchor.transforms.scoring import Question
from feast_anchor.transforms.zeroshot import Answers

TAG = "feast_anchor"
SPACE_TAG = "feast_anchor_space"  # on each vector or score Field: the fingerprint of its meaning

# Join keys a view may have, and the Arrow type of their column.
ARROW_KEYS = {ValueType.STRING: "string", ValueType.INT64: "int64"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModalityDecl(_Frozen):
    """A modality as declared: which feature view, and how its rows are read."""

    view: str
    name: str
    kind: Literal["events", "table"]
    text: str
    amount: str | None
    max_events: int
    timezone: str | None

    def as_spec(self) -> ModalitySpec:
        """The same, as a bundle's manifest states it."""
        return ModalitySpec(
            name=self.name,
            kind=self.kind,
            text=self.text,
            amount=self.amount is not None,
            max_events=self.max_events,
        )


class ScenarioDecl(_Frozen):
    """A scenario as declared, with the fingerprint of its embedding space.

    `positive` and `negative` are the answers of its zero-shot score, sorted because their order
    means nothing. Both are empty for a scenario without a score.
    """

    name: str
    query: str | None
    prompt: str | None
    space: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()

    def as_column(self) -> ScenarioColumn:
        """The same, as the pipeline computes it."""
        score = None
        if self.positive:
            score = ScoreColumn(
                score_name(self.name),
                Answers(self.positive, self.negative),
                score_fingerprint(self.space, self.positive, self.negative),
            )
        return ScenarioColumn(self.name, Question(self.query, self.prompt), self.space, score)


class ViewSpec(_Frozen):
    """All that the engine needs to compute a view, besides the registry's own objects."""

    version: Literal[1] = 1
    bundle: str  # folder, absolute or relative to the feature repo
    digest: str
    dim: int
    events: tuple[ModalityDecl, ...]
    scenarios: tuple[ScenarioDecl, ...]
    snapshots_seconds: float | None

    @property
    def snapshots(self) -> timedelta | None:
        """Period of the offline snapshots, or None for the window's end alone."""
        seconds = self.snapshots_seconds
        return None if seconds is None else timedelta(seconds=seconds)


def score_name(scenario: str) -> str:
    """Name of the field that holds a scenario's zero-shot score."""
    return f"{scenario}_score"


def is_ours(view: object) -> bool:
    """True for feature views made by `scenario_view`."""
    return isinstance(view, FeatureView) and TAG in (view.tags or {})


def spec_of(view: FeatureView) -> ViewSpec:
    """Read a view's spec. Raises `SpecError` when its tag was edited or is of a newer version."""
    try:
        return ViewSpec.model_validate_json(view.tags[TAG])
    except ValidationError as error:
        raise SpecError(
            f"feature view {view.name!r}: its {TAG!r} tag cannot be read ({error}); declare it "
            "again with scenario_view() of this feast-anchor version and run `feast apply`"
        ) from error


def check_modalities(view: str, declared: tuple[ModalityDecl, ...], manifest: Manifest) -> None:
    """Refuse modalities that are not those the bundle was trained on, in the same order.

    A template or budget that differs would feed the model texts it never saw: a wrong number.
    """
    specs = tuple(decl.as_spec() for decl in declared)
    if specs == manifest.modalities:
        return
    for given, expected in zip(specs, manifest.modalities, strict=False):
        if given != expected:
            differs = {
                name: (value, getattr(expected, name))
                for name, value in given
                if value != getattr(expected, name)
            }
            raise SpecError(
                f"view {view!r}: modality {given.name!r} differs from what bundle "
                f"{manifest.name!r} was trained on; (given, expected) are {differs}. Declare it "
                "the same, or train a bundle for it"
            )
    raise SpecError(
        f"view {view!r} declares modalities {[s.name for s in specs]}, bundle "
        f"{manifest.name!r} was trained on {[m.name for m in manifest.modalities]}; declare "
        "all of them in this order"
    )
