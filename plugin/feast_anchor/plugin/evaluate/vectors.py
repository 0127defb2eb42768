"""The reported users' vectors, one set per variant, by the code that serves.

The rule: every variant comes out of one trained bundle through the real `Scorer`, on histories
that `build_histories` cut at the reported as-of time. An evaluation that took a shortcut would
measure something that nobody is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BundleError
from feast_anchor.transforms.events import ROW_SCHEMA
from feast_anchor.transforms.histories import build_histories, micros
from feast_anchor.transforms.scoring import Question, Scorer
from feast_anchor.transforms.zeroshot import Answers, score_axes, scores

from .config import EvaluationConfig

Array = np.ndarray[Any, Any]
Progress = Callable[[float], None]

_ORDER = [(name, "ascending") for name in ("user", "event_timestamp", "modality", "text", "amount")]


@dataclass(frozen=True)
class Vectors:
    """float32 vectors of N reported users in S scenarios, unit length."""

    users: tuple[str, ...]
    right: Array  # [S, N, dim] the scenario's own query
    none: Array  # [N, dim] no query
    unseen: tuple[Array, ...]  # per scenario [P, N, dim], P unseen phrasings
    shuffled: Array  # [S, N, dim] the own query over a shuffled history
    tuned: Mapping[int, Array]  # scenario -> [N, dim] with its prompt
    zero_shot: Array  # [S, N] score without labels


def make_vectors(
    bundle: Bundle,
    config: EvaluationConfig,
    events: pa.Table,
    users: Sequence[str],
    prompts: Mapping[str, str],
    on_progress: Progress,
) -> Vectors:
    """Compute the vectors of every variant at the cut.

    Args:
        bundle: the trained bundle.
        config: the evaluation.
        events: canonical events; only those of `users` strictly before the cut are read.
        users: all have an event before the cut; the result is in this order.
        prompts: scenario -> name of its tuned prompt in the bundle, where there is one.
        on_progress: called with the share done.
    """
    scenarios = config.scenarios
    right = [Question(scenario.query) for scenario in scenarios.values()]
    tuned = [Question(scenarios[name].query, prompt) for name, prompt in prompts.items()]
    unseen = [Question(text) for scenario in scenarios.values() for text in scenario.unseen]
    asked = list(dict.fromkeys([*right, Question(None), *tuned, *unseen]))
    _check_queries(bundle, asked)
    own = history_of(events, users, config.cut)
    share = len(asked) / (len(asked) + len(right))
    found = dict(
        zip(
            asked,
            embed(bundle, own, users, config.cut, asked, lambda x: on_progress(x * share)),
            strict=True,
        )
    )
    shuffled = embed(
        bundle,
        shuffle_histories(own, config.seed),
        users,
        config.cut,
        right,
        lambda x: on_progress(share + x * (1 - share)),
    )
    stacked = np.stack([found[question] for question in right])
    place = {name: row for row, name in enumerate(config.names)}
    return Vectors(
        users=tuple(users),
        right=stacked,
        none=found[Question(None)],
        unseen=tuple(
            np.array([found[Question(text)] for text in scenario.unseen])
            for scenario in scenarios.values()
        ),
        shuffled=shuffled,
        tuned={place[name]: found[question] for name, question in zip(prompts, tuned, strict=True)},
        zero_shot=zero_shot_scores(bundle, config, stacked),
    )


def embed(
    bundle: Bundle,
    events: pa.Table,
    users: Sequence[str],
    as_of: datetime,
    questions: Sequence[Question],
    on_progress: Progress,
) -> Array:
    """Vectors of some users at one as-of time: float32 [questions, users, dim]."""
    rows = events.append_column(
        ROW_SCHEMA.field("rejected"), pa.nulls(events.num_rows, pa.string())
    )
    built = build_histories(rows.cast(ROW_SCHEMA), [micros(as_of)], bundle.manifest.modalities)
    place = {user: row for row, user in enumerate(users)}
    dim = bundle.manifest.dims.embedding
    out = np.empty((len(questions), len(users), dim), dtype=np.float32)
    scored = Scorer(bundle, questions).score(built.histories, built.texts)
    for done, vectors in enumerate(scored, start=1):
        out[:, place[vectors.user]] = vectors.vectors[0]  # one as-of: [1,Q,dim] -> [Q,dim]
        on_progress(done / len(users))
    return out


def history_of(events: pa.Table, users: Sequence[str], as_of: datetime) -> pa.Table:
    """The events of some users strictly before an instant."""
    limit = pa.scalar(as_of, pa.timestamp("us", tz="UTC"))
    own = pc.is_in(events.column("user"), value_set=pa.array(users, pa.string()))
    return events.filter(pc.and_(own, pc.less(events.column("event_timestamp"), limit)))


def shuffle_histories(events: pa.Table, seed: int) -> pa.Table:
    """Each user's events dealt anew over that user's own event times.

    What happened stays, and so does when something happened; what happened when is lost. The
    order depends on the seed and the user alone.
    """
    table = events.sort_by(_ORDER).combine_chunks()
    codes = table.column("user").combine_chunks().dictionary_encode()
    starts = np.flatnonzero(np.diff(codes.indices.to_numpy(), prepend=-1))
    order = np.arange(table.num_rows)
    for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True):
        user = table.column("user")[int(start)].as_py()
        digest = hashlib.sha256(f"{seed}:{user}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        order[start:end] = generator.permutation(order[start:end])
    dealt = table.take(pa.array(order))
    return (
        table.select(["user", "event_timestamp"])
        .append_column("modality", dealt.column("modality"))
        .append_column("text", dealt.column("text"))
        .append_column("amount", dealt.column("amount"))
    )


def zero_shot_scores(bundle: Bundle, config: EvaluationConfig, right: Array) -> Array:
    """The score that is served beside each vector: float32 [S, N] of right [S, N, dim]."""
    answers = [Answers(own.positive, own.negative) for own in config.scenarios.values()]
    axes = score_axes(bundle, answers)
    return np.stack([scores(own, axes[pair]) for own, pair in zip(right, answers, strict=True)])


def prompts_in(bundle: Bundle, config: EvaluationConfig) -> dict[str, str]:
    """The tuned prompts that a bundle holds under the scenarios' own names."""
    return {name: name for name in config.names if name in bundle.prompts}


def _check_queries(bundle: Bundle, questions: Sequence[Question]) -> None:
    wrong = []
    for question in questions:
        try:
            bundle.query_ids(question.query)
        except BundleError as error:
            wrong.append(str(error))
    if wrong:
        raise BundleError("; ".join(wrong))
