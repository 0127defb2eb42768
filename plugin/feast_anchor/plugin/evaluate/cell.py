"""One cell: one bundle trained, one set of users scored with every row of the table.

The rule: a bundle is trained before its reported users are looked at, and it is given neither
their events nor any event at or after the cut.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.onnx_export.evaluation import resample
from feast_anchor.onnx_export.few_labels import Curve, few_labels
from feast_anchor.onnx_export.manifest import Dims, ModalitySpec, canonical_sha256

from ..train import (
    load_modalities,
    needs_train_extra,
    read_events,
    sources_of,
    train_bundle_from_repo,
)
from .attended import attended_texts
from .config import EvaluationConfig, Part
from .features import make_features
from .rows import Board, averaged_rows, baseline_rows, few_label_methods, ordered, vector_rows
from .store import RECORD, Cell, code_digest, forget_cell, load_cell, save_cell, tables_digest
from .tuned import add_prompts
from .users import Labelled, check_classes, divide, read_labels
from .vectors import Vectors, make_vectors, prompts_in

if TYPE_CHECKING:
    from feast_anchor.onnx_export.training import TrainConfig

Array = np.ndarray[Any, Any]

_FEW_ROUNDS = 200  # bootstrap rounds of the few-label curve: draws vary more than users
_EVERY = 5.0  # seconds between two lines of progress


@dataclass
class Stages:
    """Says on the terminal what is being done, and keeps how long it took."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    _shown: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and time it."""
        self.console.rule(f"[bold]{name}", align="left")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        self.console.print(f"{name}: {self.seconds[name]:.1f} s", style="dim")

    def report(self, text: str, fraction: float | None = None) -> None:
        """A line of progress, at most one every few seconds unless it comes without a fraction."""
        if fraction is None or fraction >= 1 or time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            shown = "" if fraction is None else f"{fraction:4.0%} "
            self.console.print(f"  {shown}{text}", highlight=False, markup=False)


@dataclass(frozen=True)
class Tables:
    """What every cell of one evaluation reads, and its fingerprint."""

    modalities: tuple[ModalitySpec, ...]
    events: pa.Table
    at_cut: Labelled
    earlier: tuple[Labelled, ...]
    snapshot: str


def read_tables(config: EvaluationConfig, stages: Stages) -> Tables:
    """Read the feature repo's events and the labels. Raises `SpecError` or `SourceError`."""
    _training(config)  # wrong settings are found before anything is read
    declared = load_modalities(config.repo, config.modalities)
    sources, _ = sources_of(declared, config.repo, config.cut)
    at_cut, earlier = read_labels(config, sources[0].key)
    events = read_events(sources, config.cut)
    stages.report(
        f"{events.num_rows:,} events, {len(at_cut.users):,} labelled users, "
        f"{len(config.scenarios)} scenarios, {len(earlier)} earlier as-of times"
    )
    specs = tuple(modality.declaration().as_spec() for modality in declared)
    _check_topics(config, [spec.name for spec in specs])
    return Tables(specs, events, at_cut, earlier, tables_digest(specs, events, config.labels))


def check_cell(config: EvaluationConfig, tables: Tables, part: Part) -> None:
    """Raise `SpecError` or `SourceError` for settings and labels that a cell would stumble over."""
    _check_lengths(config)
    reported, _ = divide(_everyone(tables), config, part)
    check_classes(config, _with_history(tables, config).take(reported), part)


def run_cell(
    config: EvaluationConfig,
    tables: Tables,
    part: Part,
    folder: Path,
    stages: Stages,
    *,
    baselines: bool,
    draws: int,
) -> Cell:
    """Compute a cell, or read it when it is finished.

    Args:
        config: settings of this cell, with its seed, split and training.
        tables: from `read_tables`.
        part: whose users are reported.
        folder: where the bundle and the record go.
        stages: the terminal.
        baselines: also the rows that need no model and the wrong query; ablations leave them out.
        draws: repetitions of each number of labels of the few-label curve, 0 for no curve.
    """
    digest = canonical_sha256(
        [config.digest(), tables.snapshot, part, baselines, draws, code_digest(), _around(config)]
    )
    found = load_cell(folder, digest)
    if found is not None:
        stages.report(f"{folder.name}: finished earlier, read from {folder / RECORD}")
        return found
    check_cell(config, tables, part)
    forget_cell(folder)
    stages = replace(stages, seconds={})
    everyone = _everyone(tables)
    reported, unseen = divide(everyone, config, part)
    labels = _with_history(tables, config).take(reported)
    with stages.stage("train"):
        bundle = _train(config, unseen, folder / "bundle", stages)
    if config.prompts and baselines:
        with stages.stage("prompts"):
            bundle = add_prompts(
                config, bundle, tables.events, tables.earlier, everyone - unseen, stages.report
            )
    with stages.stage("vectors"):
        vectors = make_vectors(
            bundle,
            config,
            tables.events,
            labels.users,
            prompts_in(bundle, config),
            lambda done: stages.report(f"vectors of {len(labels.users):,} users", done),
        )
    facts: dict[str, Any] = {
        "users": {"reported": len(labels.users), "trained on": len(everyone - unseen)},
        "bundle": {"digest": bundle.manifest.digest, "training": bundle.manifest.training},
    }
    if baselines:
        with stages.stage("attention"):
            facts["attended"] = attended_texts(
                config, bundle, tables.events, labels.users, stages.report
            )
    board = Board(labels.y, config.seed, os.cpu_count() or 1)
    from feast_anchor.onnx_export.threads import one_blas_thread  # needs the train extra

    with one_blas_thread():
        rows, curve = _scored(
            config, tables, board, vectors, everyone - unseen, bundle.manifest.dims, stages,
            baselines, draws,
        )  # fmt: skip
    facts["seconds"] = stages.seconds
    cell = Cell(labels.users, labels.y, ordered(rows), _plane(vectors), facts, curve)
    save_cell(cell, folder, digest)
    return cell


def _scored(
    config: EvaluationConfig,
    tables: Tables,
    board: Board,
    vectors: Vectors,
    fit_users: set[str],
    dims: Dims,
    stages: Stages,
    baselines: bool,
    draws: int,
) -> tuple[dict[str, Array], Curve | None]:
    rows: dict[str, Array] = {}
    with stages.stage("probes"):
        for name, scores in vector_rows(board, vectors, others=baselines):
            stages.report(name)
            rows[name] = scores
    if not baselines:
        return rows, None
    with stages.stage("baselines"), needs_train_extra():
        features = make_features(
            config, tables.modalities, tables.events, vectors.users, sorted(fit_users),
            tables.earlier, dims, stages.report,
        )  # fmt: skip
        for name, scores in baseline_rows(board, features, vectors):
            stages.report(name)
            rows[name] = scores
        rows |= averaged_rows(rows)
    if not draws:
        return rows, None
    with stages.stage("few labels"):
        found = few_labels(
            board.y,
            few_label_methods(features, vectors),
            _few_rounds(tables, vectors.users),
            draws=draws,
            seed=config.seed,
            threads=board.threads,
            on_progress=lambda done: stages.report("draws of labelled users", done),
        )
    return rows, found


def _few_rounds(tables: Tables, users: Sequence[str]) -> Array:
    """How often each user is drawn [R, N]: the same in every cell, so that curves can be joined."""
    everyone = tables.at_cut.users
    place = {user: column for column, user in enumerate(everyone)}
    drawn: Array = resample(len(everyone), _FEW_ROUNDS, seed=0)[:, [place[u] for u in users]]
    return drawn


def _train(config: EvaluationConfig, held_out: set[str], out: Path, stages: Stages) -> Bundle:
    train_bundle_from_repo(
        config.repo,
        config.modalities,
        cut=config.cut,
        out=out,
        held_out=held_out,
        config=_training(config),
        on_progress=stages.report,
    )
    return Bundle.open(out)


def _training(config: EvaluationConfig) -> TrainConfig:
    if "seed" in config.train:
        raise SpecError(
            "[train] has a seed; write seed = … above the tables or use --seed, so that folds and "
            "draws follow it too"
        )
    with needs_train_extra():
        from feast_anchor.onnx_export.settings import config_from
    return config_from({**config.train, "seed": config.seed}, "[train]", config.repo)


def _around(config: EvaluationConfig) -> dict[str, Any]:
    """What decides a cell's numbers beside settings, tables and our code."""
    training = _training(config)
    with needs_train_extra():
        from feast_anchor.onnx_export.card import pretrained_digests, versions
        from feast_anchor.onnx_export.fitting import device
    measuring = {name: version(name) for name in ("scikit-learn", "lightgbm", "scipy")}
    return {
        "pretrained": pretrained_digests(training),
        "versions": versions() | measuring,
        "device": device().type,
    }


def _check_topics(config: EvaluationConfig, modalities: Sequence[str]) -> None:
    for name, scenario in config.scenarios.items():
        for topic in scenario.topic:
            if topic.modality not in modalities:
                raise SpecError(
                    f"the topic of scenario {name!r} is of modality {topic.modality!r}; "
                    f"{config.modalities!r} has {list(modalities)}"
                )


def _check_lengths(config: EvaluationConfig) -> None:
    """Refuse questions that the trained bundle would refuse, as far as that can be known before."""
    training = _training(config)
    own = training.text_encoder is None  # its tokenizer is yet to be made
    counted = {"max_text_tokens": _count_words if own else _counter(training.text_encoder)}
    if training.model.query_tokens:
        counted["max_query_tokens"] = _count_words
    for name, scenario in config.scenarios.items():
        for query in (scenario.query, *scenario.unseen):
            for setting, count in counted.items():
                if (tokens := count(query)) > getattr(training, setting):
                    raise SpecError(
                        f"scenario {name!r} asks {query[:60]!r}…, {tokens} tokens or more, and "
                        f"[train] {setting} is {getattr(training, setting)}; shorten it or raise "
                        "the number"
                    )


@cache
def _counter(folder: str) -> Callable[[str], int]:
    """Counts what the sentence encoder in a folder reads of a text, in tokens."""
    with needs_train_extra():
        from feast_anchor.onnx_export.sentence import read_sentence_encoder
    tokenizer = read_sentence_encoder(folder)[1]
    return lambda text: len(tokenizer.encode(text).ids)


def _count_words(text: str) -> int:
    """The tokenizer that training makes has no fewer tokens of a text."""
    return len(re.findall(r"[^\W_]+", text))


def _everyone(tables: Tables) -> set[str]:
    return {*pc.unique(tables.events.column("user")).to_pylist(), *tables.at_cut.users}


def _with_history(tables: Tables, config: EvaluationConfig) -> Labelled:
    """The labelled users who have an event before the cut: the others have no vector."""
    limit = pa.scalar(config.cut, pa.timestamp("us", tz="UTC"))
    before = tables.events.filter(pc.less(tables.events.column("event_timestamp"), limit))
    return tables.at_cut.take(pc.unique(before.column("user")).to_pylist())


def _plane(vectors: Vectors) -> Array:
    """Each scenario's vectors on their two main axes: [S, N, 2]."""
    out = []
    for own in vectors.right.astype(np.float64):
        centred = own - own.mean(axis=0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        out.append(centred @ axes[:2].T)
    return np.stack(out)
