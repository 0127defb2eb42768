"""From label rows to tuned prompts: user states once, then a prompt for each scenario (torch).

The rule: a state does not know which scenario asks, so scenarios whose labels stand at the same
rows share all states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.model import Anchor
from feast_anchor.onnx_export.prompts import PromptConfig, Query, Tuned, tune_prompt
from feast_anchor.onnx_export.states import States, user_states
from feast_anchor.onnx_export.weights import read_model

from .readings import Row, readings_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tuner:
    """A bundle's model and the user states of some label rows; `rows` are those that have one."""

    bundle: Bundle
    model: Anchor
    states: States
    rows: Array  # int64, ascending

    @classmethod
    def over(cls, bundle: Bundle, events: pa.Table, rows: Sequence[Row]) -> Tuner:
        """Compute the states. Rows whose user has no event before the as-of have none.

        Raises:
            BundleError: the bundle has no weights, or others than its graphs.
            SourceError: no row has an event before its as-of.
        """
        model = read_model(bundle)
        found = readings_of(bundle, events, rows)
        kept = [row for row, reading in enumerate(found) if reading is not None]
        if not kept:
            raise SourceError(
                f"none of {len(rows)} label rows has an event before its event_timestamp; expected "
                "the instant at which the label was asked, after the user's first event"
            )
        states = user_states(model, [reading for reading in found if reading is not None])
        return cls(bundle, model, states, np.array(kept, dtype=np.int64))

    def tune(
        self,
        query: str | None,
        y: Array,
        config: PromptConfig,
        on_progress: Callable[[float], None] | None = None,
    ) -> Tuned:
        """Tune one scenario's prompt: y int8 [all rows], 1, 0, or -1 where there is no label.

        Raises `SourceError` when a class has too few rows.
        """
        asked = Query(self.bundle.query_ids(query), self.bundle.query_vectors([query])[0])
        return tune_prompt(self.model, self.states, asked, y[self.rows], config, on_progress)


def tune_one(
    bundle: Bundle,
    events: pa.Table,
    rows: Sequence[Row],
    y: Array,
    query: str | None,
    config: PromptConfig,
    report: Callable[[str, float], None],
) -> tuple[Tuned, int]:
    """Tune one prompt on labels bool [rows]; also how many rows had an event before the as-of."""
    report("computing user states", 0.1)
    tuner = Tuner.over(bundle, events, rows)
    tuned = tuner.tune(
        query, y.astype(np.int8), config, lambda done: report("tuning", 0.3 + 0.7 * done)
    )
    return tuned, len(tuner.rows)
