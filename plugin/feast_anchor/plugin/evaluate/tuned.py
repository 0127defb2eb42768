"""A soft prompt per scenario, as a team with last season's labels would tune it.

The rule: prompts are tuned on users that are not reported, at as-of times whose windows are over by
the cut. So a prompt knows no more than the trees on earlier windows do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.bundle_prompts import add_prompt
from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.transforms.histories import micros

from .config import EvaluationConfig
from .features import Stage
from .users import Labelled

Array = np.ndarray[Any, Any]

_MOST_ROWS = 1200  # label rows; their states are in memory and shared by all scenarios


def add_prompts(
    config: EvaluationConfig,
    bundle: Bundle,
    events: pa.Table,
    earlier: Sequence[Labelled],
    fit_users: Collection[str],
    stage: Stage,
) -> Bundle:
    """Tune a prompt per scenario and add it to the bundle under the scenario's name.

    Args:
        config: the evaluation.
        bundle: the trained bundle; its folder is changed.
        events: canonical events; only those before each label's as-of are read.
        earlier: labels at as-of times whose windows are over by the cut, of any users.
        fit_users: users that nothing is reported on.
        stage: told what comes next, and how much of it is done.

    Returns:
        The bundle with its prompts. A scenario with too few earlier labels gets none.
    """
    from feast_anchor.onnx_export.prompts import PromptConfig

    from ..tuning import Tuner

    rows, y = _drawn(earlier, fit_users, config.seed)
    if not rows:
        stage("no earlier labels, so no prompts")
        return bundle
    tuner = Tuner.over(bundle, events, rows)
    stage(f"user states of {len(tuner.rows):,} earlier label rows")
    for name, labels in zip(config.names, y, strict=True):
        query = config.scenarios[name].query
        try:
            tuned = tuner.tune(query, labels, PromptConfig(seed=config.seed))
        except SourceError as error:
            stage(f"{name}: no prompt, {error}")
            continue
        add_prompt(bundle.folder, name, tuned.prompt, {"query": query, **tuned.record})
        auc = tuned.record["validation"]
        stage(
            f"{name}: validation AUC by prototypes {auc['auc_before']:.3f}, with the prompt "
            f"{auc['auc_after']:.3f}, {tuned.record['seconds']} s"
        )
    return Bundle.open(bundle.folder)


def _drawn(
    earlier: Sequence[Labelled], users: Collection[str], seed: int
) -> tuple[list[tuple[str, int]], Array]:
    """At most `_MOST_ROWS` label rows of some users: (user, as-of), and labels [S, rows]."""
    own = [labelled.take(users) for labelled in earlier]
    rows = [(user, micros(one.as_of)) for one in own for user in one.users]
    if not rows:
        return [], np.zeros((0, 0), dtype=np.int8)
    y = np.concatenate([one.y for one in own], axis=1)
    kept = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_MOST_ROWS])
    return [rows[row] for row in kept], y[:, kept]
