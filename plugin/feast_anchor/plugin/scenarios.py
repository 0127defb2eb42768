"""What is asked of users: `Scenario`, its entry in a view's spec, and the fields of the view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feast import Field
from feast.types import Array, Float32

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BundleError, SpecError
from feast_anchor.onnx_export.manifest import Manifest
from feast_anchor.transforms.job import RESERVED_COLUMNS

from .spec import SPACE_TAG, ScenarioDecl, ViewSpec, score_name

_YES, _NO = ("yes",), ("no",)


@dataclass(frozen=True)
class Scenario:
    """A name and a question in plain language; the vector of this name answers it.

    With `score=True` the view also has a `Float32` field `<name>_score`, for teams without labels:
    the vector's mean cosine similarity to the positive answers minus that to the negative ones, in
    [-2, 2]. Answers in the words of the training questions tell most: "yes, fresh produce".

    Args:
        name: the field's name in the view.
        query: the question, such as "Will this household redeem a coupon next month?". None asks
            nothing and gives the general embedding (InstructUE, arXiv 2510.11016).
        prompt: name of a tuned soft prompt in the bundle.
        positive, negative: what users would answer who are, or are not, what the question is
            after; "yes" and "no" by default. Their order does not matter.
        score: whether the view has the zero-shot score.
    """

    name: str
    query: str | None
    prompt: str | None = None
    positive: Sequence[str] = _YES
    negative: Sequence[str] = _NO
    score: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in RESERVED_COLUMNS:
            raise SpecError(
                f"scenario name {self.name!r} cannot be a column; expected letters, digits and "
                f"underscores, and none of {RESERVED_COLUMNS}"
            )
        if self.query is not None and not self.query.strip():
            raise SpecError(
                f"scenario {self.name!r} has an empty query {self.query!r}; write the question, "
                "or query=None for the general embedding"
            )
        self._check_answers()

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of its fields in the view: the vector's and, if there is one, the score's."""
        return (self.name, score_name(self.name)) if self.score else (self.name,)

    def _check_answers(self) -> None:
        """What can be said of the answers without a bundle."""
        for side, answers in (("positive", self.positive), ("negative", self.negative)):
            if isinstance(answers, str) or not answers:
                raise SpecError(
                    f"scenario {self.name!r}: {side}={answers!r}, expected a list of at least one "
                    'answer, such as ["yes"]'
                )
        usual = (tuple(self.positive), tuple(self.negative)) == (_YES, _NO)
        if not usual and not self.score:
            raise SpecError(
                f"scenario {self.name!r} has answers and no score; add score=True, or leave the "
                "answers out"
            )
        if usual and self.score and self.query is None:
            raise SpecError(
                f"scenario {self.name!r} asks nothing, so 'yes' and 'no' answer nothing; write "
                "positive=[...] and negative=[...] for its score"
            )


def declare(view: str, scenario: Scenario, model: Bundle) -> ScenarioDecl:
    """The scenario as it is stored in a view's tag.

    Raises `SpecError` when the bundle cannot read its query, prompt or answers.
    """
    try:
        model.query_ids(scenario.query)
        space = model.fingerprint(scenario.query, scenario.prompt)
        _check_tokens(view, scenario, model)
    except BundleError as error:
        raise SpecError(f"view {view!r}, scenario {scenario.name!r}: {error}") from error
    return ScenarioDecl(
        name=scenario.name,
        query=scenario.query,
        prompt=scenario.prompt,
        space=space,
        positive=tuple(sorted(scenario.positive)) if scenario.score else (),
        negative=tuple(sorted(scenario.negative)) if scenario.score else (),
    )


def _check_tokens(view: str, scenario: Scenario, model: Bundle) -> None:
    """Refuse answers that the model cannot tell apart, or that say nothing to it."""
    seen: dict[tuple[int, ...], str] = {}
    for answer in (*scenario.positive, *scenario.negative) if scenario.score else ():
        ids = tuple(model.answer_ids(answer))
        if ids in seen:
            raise SpecError(
                f"view {view!r}, scenario {scenario.name!r}: the answers {seen[ids]!r} and "
                f"{answer!r} read the same to the model; every answer must be another one"
            )
        seen[ids] = answer


def fields_of(spec: ViewSpec, manifest: Manifest) -> list[Field]:
    """A vector field per scenario and, beside it, the score of those that have one."""
    fields: list[Field] = []
    for scenario in spec.scenarios:
        column = scenario.as_column()
        asked = scenario.query or "general embedding, no question asked"
        tags = {SPACE_TAG: column.space, "dim": str(spec.dim), "bundle": manifest.name}
        fields.append(Field(name=column.name, dtype=Array(Float32), description=asked, tags=tags))
        if column.score is not None:
            sides = f"similarity to {list(scenario.positive)} minus {list(scenario.negative)}"
            tags = {SPACE_TAG: column.score.space, "bundle": manifest.name}
            fields.append(
                Field(
                    name=column.score.name,
                    dtype=Float32,
                    description=f"{asked} Zero-shot score: {sides}",
                    tags=tags,
                )
            )
    return fields
