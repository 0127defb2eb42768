"""What a planned run may take over from runs that have succeeded, found in the catalogue.

The rule: taking over is an offer, never a promise; the shard's work compares row by row and
computes whatever does not match (`transforms.carried`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from feast_anchor.onnx_export.manifest import canonical_sha256

from .catalog import RunStatus, RunSummary
from .config import EngineConfig
from .planning import COMPUTED_BY, PlannedView

BASE = "base"  # key of `PlannedView.base` in a run's recorded spec
CODE = "computed_by"  # key of `planning.COMPUTED_BY` there


def carried_over(
    planned: PlannedView, runs: Sequence[RunSummary], config: EngineConfig
) -> PlannedView:
    """The planned run, told which earlier runs of its view it may take vectors from.

    Args:
        runs: the view's runs in the catalogue.
    """
    done = [
        run
        for run in runs
        if run.status is RunStatus.SUCCEEDED
        and run.project == planned.project
        and run.bundle_digest == planned.spec.digest
        and run.shards == config.shards
        and run.spec.get(CODE) == COMPUTED_BY
    ]
    continued = _continuing(planned, done, config)
    return _with_scenario(planned, done) if continued is planned else continued


def _continuing(
    planned: PlannedView, done: Sequence[RunSummary], config: EngineConfig
) -> PlannedView:
    """As `feast materialize-incremental` does: the window begins where a run's window ended."""
    if config.unchanged == "recompute" or planned.wanted.kind != "materialize":
        return planned
    scenarios = planned.spec.model_dump(mode="json")["scenarios"]
    before = [
        run
        for run in done
        if run.kind == "materialize"
        and run.window_end == planned.wanted.start
        and run.spec.get("scenarios") == scenarios
    ]
    if not before:
        return planned
    earlier = max(before, key=_finished).run_id
    # What comes out depends on the earlier run, so it is another run than one that computes all.
    run_id = canonical_sha256([planned.run.run_id, config.unchanged, earlier])[:16]
    run = replace(planned.run.other(run_id), unchanged=config.unchanged, earlier=earlier)
    base = canonical_sha256([planned.base, config.unchanged, earlier])
    return replace(planned, run=run, base=base)


def _with_scenario(planned: PlannedView, done: Sequence[RunSummary]) -> PlannedView:
    """A scenario was added: the others' vectors are there from the run before."""
    declared = planned.spec.model_dump(mode="json")["scenarios"]
    found: list[tuple[int, Any, RunSummary, list[str]]] = []
    for run in done:
        known = run.spec.get("scenarios") or []
        taken = [one["name"] for one in declared if one in known]
        if run.spec.get(BASE) == planned.base and 0 < len(taken) < len(declared):
            found.append((len(taken), _finished(run), run, taken))
    if not found:
        return planned
    _, _, best, taken = max(found, key=lambda one: one[:2])
    return replace(planned, run=replace(planned.run, same=best.run_id, taken=tuple(taken)))


def _finished(run: RunSummary) -> Any:
    return run.finished_at or run.updated_at
