"""Tune a scenario's soft prompt on a team's own labels and add it to a bundle.

The rule: labels and settings are checked before events are read, events before anything is tuned,
and the bundle changes last; whatever goes wrong, it is as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from feast.errors import FeatureViewNotFoundException

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.bundle_prompts import add_prompt, check_new_prompt
from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.transforms.histories import EPOCH

from .labels import TIMESTAMP, read_label_table
from .spec import check_modalities, is_ours, spec_of
from .train import entity_of, load_modalities, needs_train_extra, read_events, sources_of

if TYPE_CHECKING:
    from feast_anchor.onnx_export.prompts import PromptConfig

Array = np.ndarray[Any, Any]
Row = tuple[str, int]  # user, as-of in microseconds since the epoch, UTC
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TunedScenario:
    """What tuning did: the record, the rows left out, and the space before and after."""

    query: str | None
    record: dict[str, Any]
    left: dict[str, int]  # label rows that were not used, by reason
    space_before: str
    space: str

    def sentences(self, name: str, bundle: str) -> list[str]:
        """What happened and what to write, for people."""
        auc, kept = self.record["validation"], self.record["kept_step"]
        unused = [f"{count:,} {reason}" for reason, count in self.left.items() if count]
        return [
            f"Tuned {name!r} on {self.record['rows']:,} label rows of {self.record['users']:,} "
            f"users, {self.record['positives']:,} positive; kept step {kept} of "
            f"{self.record['steps']}",
            *([f"Not used: {', '.join(unused)}"] if unused else []),
            f"AUC of the {auc['rows']:,} rows that chose the step, by class prototypes: "
            f"{auc['auc_before']:.3f} without the prompt, {auc['auc_after']:.3f} with it",
            f"Changed: {bundle}/prompts.safetensors and its manifest; weights, digest and every "
            "other scenario are as they were",
            f"Embedding space of {name!r}: {self.space_before} without the prompt, {self.space} "
            "with it",
            f"Write Scenario({name!r}, {self.query!r}, prompt={name!r}) in a view with a new "
            "name, then run `feast apply` and `feast materialize`",
        ]


def tune_from_repo(
    repo: Path,
    scenario: str,
    *,
    labels: Path,
    bundle: Path,
    query: str | None = None,
    view: str | None = None,
    modalities: str = "events:MODALITIES",
    column: str | None = None,
    held_out: Collection[str] = (),
    config: PromptConfig,
    most_rows: int = 2000,
    replace: bool = False,
    on_progress: Progress | None = None,
) -> TunedScenario:
    """Tune a prompt and add it to the bundle under the scenario's name.

    Args:
        repo: the feature repo's folder.
        scenario: name of the prompt, and of the scenario in `view`.
        labels: Parquet file with the join key, `event_timestamp` and a boolean column.
        bundle: the bundle's folder.
        query: the question; or
        view: an applied scenario view that has the scenario with its question.
        modalities: where the list of `Modality` stands, as "module:NAME".
        column: the label's column, by default named like the scenario.
        held_out: entity keys that must not be tuned on.
        config: how to tune, from `prompt_settings`.
        most_rows: label rows to read at most; their user states are kept in memory.
        replace: whether the bundle may have a prompt of this name.
        on_progress: called with a message and the fraction done, 0 to 1.

    Raises:
        SpecError: the name is taken, there is no question, or the modalities are not the bundle's.
        SourceError: a table is not as declared, or there are too few labels.
        BundleError: the bundle cannot be used, or cannot be tuned.
    """
    report = on_progress or (lambda text, done: None)
    with needs_train_extra():
        from .tuning import tune_one
    model = Bundle.open(bundle)
    check_new_prompt(model, scenario, replace=replace)
    asked = _question(model, repo, scenario, query, view)
    declared = load_modalities(repo, modalities)
    check_modalities(modalities, tuple(one.declaration() for one in declared), model.manifest)
    found = read_rows(
        labels, entity_of(declared)[0], column or scenario, held_out, most_rows, config.seed
    )
    report(f"reading events for {len(found.rows):,} label rows", 0.0)
    last = EPOCH + timedelta(microseconds=max(as_of for _, as_of in found.rows))
    events = read_events(sources_of(declared, repo, last)[0], last)
    found = found.known(set(pc.unique(events.column("user")).to_pylist()))
    tuned, seen = tune_one(model, events, found.rows, found.y, asked, config, report)
    add_prompt(bundle, scenario, tuned.prompt, {"query": asked, **tuned.record}, replace=replace)
    left = found.left | {"before the first event": len(found.rows) - seen}
    space = Bundle.declared(bundle).fingerprint(asked, scenario)
    return TunedScenario(asked, tuned.record, left, model.fingerprint(asked), space)


@dataclass(frozen=True)
class LabelRows:
    """Label rows that can be used: user and as-of, and bool [N]; and how many cannot, by reason."""

    rows: list[Row]
    y: Array
    left: dict[str, int]

    def take(self, kept: Array, reason: str) -> LabelRows:
        """The rows where `kept` is true; the others are counted under a reason."""
        rows = [row for row, keep in zip(self.rows, kept, strict=True) if keep]
        return LabelRows(rows, self.y[kept], self.left | {reason: int((~kept).sum())})

    def known(self, users: Collection[str]) -> LabelRows:
        """The rows of some users."""
        kept = np.array([user in users for user, _ in self.rows], dtype=bool)
        if not kept.any():
            raise SourceError(
                f"none of the labelled users, such as {self.rows[0][0]!r}, has an event; check "
                "that the keys of labels and events are the same"
            )
        return self.take(kept, "users without events")


def read_rows(
    path: Path, key: str, column: str, held_out: Collection[str], most: int, seed: int
) -> LabelRows:
    """The rows of a label table that may be tuned on, at most `most` of them, drawn by lot.

    Raises `SourceError` when the table is not as expected, a user has two labels at one time, or
    all labels are the same.
    """
    hint = "Name the label's column with --label-column"
    table = read_label_table(path, key, [column], hint)
    whole = table.num_rows
    table = table.drop_null()
    at = table.column(TIMESTAMP).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()
    users = [str(user) for user in table.column(key).to_pylist()]
    y = np.array(table.column(column).to_pylist(), dtype=bool)
    rows = list(zip(users, at, strict=True))
    _refuse_twice(path, key, rows)
    found = LabelRows(rows, y, {"without a label": whole - len(rows)})
    out = set(held_out)
    found = found.take(np.array([user not in out for user in users], dtype=bool), "held out")
    if len(np.unique(found.y)) < 2:
        raise SourceError(
            f"{path} column {column!r} has {int(found.y.sum())} positive and "
            f"{int((~found.y).sum())} negative rows to tune on, expected both: a prompt learns "
            "what tells them apart"
        )
    drawn = np.random.default_rng(seed).permutation(len(found.y)) < most
    return found.take(drawn, f"beyond the limit of {most:,}")


def _refuse_twice(path: Path, key: str, rows: list[Row]) -> None:
    twice = next((row for row, count in Counter(rows).items() if count > 1), None)
    if twice is not None:
        moment = EPOCH + timedelta(microseconds=twice[1])
        raise SourceError(
            f"{path} has two labels for {key} {twice[0]!r} at {moment.isoformat()}; expected one"
        )


def _question(
    model: Bundle, repo: Path, scenario: str, query: str | None, view: str | None
) -> str | None:
    """The scenario's question, from the command line or from an applied view."""
    if (query is None) == (view is None):
        raise SpecError(
            f'scenario {scenario!r} needs --query "the question" or --view NAME of an applied '
            "view that asks it, and not both"
        )
    if view is not None:
        query = _question_of_view(model, repo, scenario, view)
    model.query_ids(query)  # too long a question is found before anything is read
    return query


def _question_of_view(model: Bundle, repo: Path, scenario: str, view: str) -> str | None:
    try:
        found = FeatureStore(repo_path=str(repo)).get_feature_view(view)
    except FeatureViewNotFoundException as error:
        raise SpecError(f"no view {view!r} in {repo}; run `feast apply` or use --query") from error
    if not is_ours(found):
        raise SpecError(f"view {view!r} was not made by scenario_view(); use --query")
    spec = spec_of(found)
    queries = {one.name: one.query for one in spec.scenarios}
    if scenario not in queries:
        raise SpecError(f"view {view!r} has no scenario {scenario!r}; it has {sorted(queries)}")
    if spec.digest != model.manifest.digest:
        raise SpecError(
            f"view {view!r} is served by another model than bundle {model.manifest.name!r}; give "
            f"--bundle {spec.bundle}, or --query in place of --view"
        )
    return queries[scenario]


def prompt_settings(steps: int | None, seed: int | None) -> PromptConfig:
    """The defaults, with steps and seed in their place where given.

    Raises `SpecError` when the `train` extra is not installed.
    """
    with needs_train_extra():
        from feast_anchor.onnx_export.prompts import PromptConfig
    given = {k: v for k, v in {"steps": steps, "seed": seed}.items() if v is not None}
    return PromptConfig(**given)
