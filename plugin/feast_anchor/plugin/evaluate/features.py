"""The baselines' columns of the reported users, as a team without the model would build them.

The rule: what is chosen from data (values to count, factors, trees on earlier windows, a sequence
encoder) is chosen on users that are not reported, from events before the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from feast_anchor.onnx_export.manifest import Dims, ModalitySpec

from .config import EvaluationConfig
from .users import Labelled

Array = np.ndarray[Any, Any]


class Stage(Protocol):
    """Told what is being done and, where that takes long, the share done."""

    def __call__(self, text: str, fraction: float | None = None, /) -> None:
        """Say it."""


_LEAST = 10  # earlier rows of each class that trees are fitted on


class Fitted(Protocol):
    """Trees that were fitted and can score, and the setting they were fitted with."""

    @property
    def setting(self) -> Mapping[str, float]:
        """What a search preferred."""
        ...

    def score(self, x: Array) -> Array:
        """Scores [N] of columns [N, D]."""
        ...


@dataclass(frozen=True)
class Features:
    """Columns of N reported users, and what fits trees on them."""

    activity: Array  # [N, 10]
    tabular: Array  # [N, F]
    topics: tuple[Array | None, ...]  # per scenario [N, 1..], None where the config names no topic
    window: Array | None  # [S, N] log-odds of trees on earlier windows; None without such labels
    factors: Array  # [N, d]
    sequence: Array  # [N, d]
    trees: Callable[..., Fitted]  # `trees.fit_trees`

    def ideal(self, scenario: int) -> Array:
        """Activity and the scenario's own topic: conditioning as good as counting can do it."""
        topic = self.topics[scenario]
        return self.activity if topic is None else np.hstack([self.activity, topic])


def make_features(
    config: EvaluationConfig,
    modalities: Sequence[ModalitySpec],
    events: pa.Table,
    users: Sequence[str],
    fit_users: Sequence[str],
    earlier: Sequence[Labelled],
    dims: Dims,
    stage: Stage,
) -> Features:
    """Compute every baseline's columns.

    Args:
        config: the evaluation.
        modalities: what the events' column `modality` indexes.
        events: canonical events; only those before the cut are read.
        users: reported users, rows of the result.
        fit_users: users that nothing is reported on.
        earlier: labels at as-of times whose windows are over by the cut, of any users.
        dims: the model's, for a sequence encoder of the same size.
        stage: told what comes next, and how much of it is done.
    """
    from feast_anchor.onnx_export import baselines, sasrec, trees

    cut, seed = config.cut, config.seed
    stage("features")
    values = baselines.frequent_values(events, fit_users, cut, modalities)
    _, tabular = baselines.tabular_features(events, users, cut, modalities, values)
    topics = [
        [baselines.EventTopic(**topic.model_dump(exclude_none=True)) for topic in scenario.topic]
        for scenario in config.scenarios.values()
    ]
    own = [
        [baselines.topic_features(events, users, cut, modalities, topic) for topic in several]
        for several in topics
    ]
    stage("trees on earlier windows")

    def at(moment: Labelled) -> Array:
        found: Array = baselines.tabular_features(
            events, moment.users, moment.as_of, modalities, values
        )[1]
        return found

    windows = [moment.take(fit_users) for moment in earlier]
    windows = [moment for moment in windows if moment.users]
    window = None
    if windows:
        x = np.concatenate([at(moment) for moment in windows])
        window = _window_scores(windows, x, tabular, seed)
    stage("factorisation")
    factors = baselines.factorisation(events, users, cut, fit_users, seed=seed)
    stage("sequence encoder")
    size = sasrec.SasrecConfig(hidden=dims.hidden, layers=dims.layers, heads=dims.heads, seed=seed)
    encoder = sasrec.train_sasrec(events, modalities, cut, fit_users, size, stage)
    return Features(
        activity=baselines.activity_features(events, users, cut, modalities),
        tabular=tabular,
        topics=tuple(np.hstack(several) if several else None for several in own),
        window=window,
        factors=factors,
        sequence=encoder.vectors(events, users, cut),
        trees=trees.fit_trees,
    )


def _window_scores(
    windows: Sequence[Labelled],
    x: Array,
    reported: Array,
    seed: int,
) -> Array:
    """Scores [S, N] of the reported users by trees on other users' earlier windows.

    NaN in scenarios that had too few of one class then.
    """
    from feast_anchor.onnx_export import trees

    users = np.concatenate([np.array(moment.users) for moment in windows])
    labels = np.concatenate([moment.y for moment in windows], axis=1)  # [S, rows]
    moments = np.repeat(np.arange(len(windows)), [len(moment.users) for moment in windows])
    out = np.full((len(labels), len(reported)), np.nan)

    for row, y in zip(out, labels, strict=True):
        known = y >= 0
        if min(np.sum(y == 0), np.sum(y == 1)) >= _LEAST:
            groups = users[known].tolist()
            row[:] = trees.window_scores(x[known], y[known], moments[known], groups, reported, seed)
    return out
