"""Build, store and describe the training corpus of a feature repo: what `train` would train on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from feast_anchor.onnx_export.corpus_statistics import Statistics, statistics
from feast_anchor.onnx_export.corpus_store import REPLIES, build_or_read

from .train import (
    Progress,
    load_modalities,
    needs_train_extra,
    sources_of,
    train_settings,
    training_events,
)

if TYPE_CHECKING:
    from feast_anchor.onnx_export.corpus import Corpus
    from feast_anchor.onnx_export.endpoint import Endpoint
    from feast_anchor.onnx_export.scope import Scope
    from feast_anchor.onnx_export.writer import Writer


@dataclass(frozen=True)
class StoredCorpus:
    """What a build left behind."""

    statistics: Statistics
    writer: str  # what the writer did, in a sentence; "" if there was none


def store_corpus_from_repo(
    repo: Path,
    modalities: str,
    *,
    cut: datetime,
    out: Path,
    held_out: Collection[str] = (),
    config: Path | None = None,
    seed: int | None = None,
    endpoint: Endpoint | None = None,
    max_requests: int = 200,
    on_progress: Progress | None = None,
) -> StoredCorpus:
    """Build the corpus of a feature repo, or read it if `out` holds it; arguments as of `train`.

    Args:
        repo, modalities, cut, held_out, config, seed, on_progress: as of `train_bundle_from_repo`.
        out: the corpus's folder.
        endpoint: a chat model that writes further questions; none without it.
        max_requests: the most requests that are sent to it.

    Raises:
        SpecError: the modalities cannot be found, the configuration is wrong, or the `train`
            extra is not installed.
        SourceError: an event table cannot be read as declared, or `out` is something else.
        RunError: the endpoint failed; the same call continues.
    """
    report = on_progress or (lambda message, fraction: None)
    declared = load_modalities(repo, modalities)
    sources, entity = sources_of(declared, repo, cut)
    chosen = train_settings(config, None, seed, report)
    with needs_train_extra():
        from feast_anchor.onnx_export.training import training_families, training_scope
    scope = training_scope(
        training_events(sources, cut, held_out, report),
        [modality.declaration().as_spec() for modality in declared],
        cut=cut,
        entity=entity,
        held_out=held_out,
        config=chosen,
    )
    if warning := scope.warning():
        report(warning, 0.0)
    build = partial(
        build_or_read, out, scope, families=training_families(chosen), on_progress=report
    )
    if endpoint is None:
        return StoredCorpus(statistics(build()), "")
    return _written(out, scope, endpoint, max_requests, build)


def _written(
    out: Path, scope: Scope, endpoint: Endpoint, max_requests: int, build: Callable[..., Corpus]
) -> StoredCorpus:
    from feast_anchor.onnx_export.endpoint import Client
    from feast_anchor.onnx_export.writer import Writer, WriterConfig, writer_key

    config = WriterConfig(max_requests=max_requests)
    writer = Writer(scope, Client(endpoint, out / REPLIES, max_requests), config)
    corpus = build(extend=writer.extend, extend_key=writer_key(endpoint, config))
    return StoredCorpus(statistics(corpus), _told(writer))


def statistics_tables(found: Statistics) -> list[Table]:
    """A corpus at a glance, for people."""
    whole = Table("users", "snapshots", "events", "median history", "answers", "triples", box=None)
    whole.add_row(
        *(f"{n:,}" for n in (found.users, found.snapshots, found.events)),
        f"{found.median_history:g}",
        *(f"{n:,}" for n in (found.answers, found.triples)),
    )
    families = Table("family", "questions", "phrasings", "answers", "triples", box=None)
    for row in found.families:
        counts = (row.questions, row.phrasings, row.answers, row.triples)
        families.add_row(row.name, *(f"{n:,}" for n in counts))
    uneven = Table("most unbalanced questions", "main answer", "share", "rows", box=None)
    for entry in found.unbalanced:
        uneven.add_row(entry.question, entry.answer, f"{entry.share:.1%}", f"{entry.rows:,}")
    return [whole, families, uneven]


def _told(writer: Writer) -> str:
    client = writer.client
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(writer.rejected.items()))
    return (
        f"Writer: {client.sent} requests sent, {client.reused} replies reused, "
        f"{client.malformed} malformed; {writer.kept} items kept"
        + (f", rejected: {reasons}" if reasons else "")
        + ("" if writer.complete else "; stopped at the most requests allowed")
    )
