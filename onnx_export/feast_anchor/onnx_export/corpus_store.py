"""A corpus as a folder of Parquet files that a later training run can trust, or go on building.

The law of this module: a folder is a finished corpus if and only if it has a `meta.json`, which is
written last and holds each file's SHA-256. Everything is written beside its place and renamed, so
a killed build leaves nothing half written, and the families it finished (`parts/`) are read, not
asked again, by the next build of the same fingerprint. The fingerprint covers the events that
training may read, the rows, every setting and the code that asks: events from the cut on and of
held-out users are in none of these, so they change neither the bytes nor the need to rebuild.

    events, snapshots, questions, answers, labels .parquet      see corpus_tables.py
    meta.json      format, fingerprint, settings, versions, statistics, file digests
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .corpus import Corpus, Events
from .corpus_statistics import statistics
from .corpus_tables import PART, TABLES, from_tables, pack, to_tables, unpack
from .errors import SourceError
from .families import FAMILIES, Family, join
from .inputs import Ints
from .manifest import canonical_sha256
from .scope import Scope

FORMAT = "feast-anchor-corpus"
FORMAT_VERSION = 1
META_FILE = "meta.json"
PARTS = "parts"
REPLIES = "replies"  # where a writer keeps what it was answered; survives a rebuild

# The modules that decide what is asked and answered.
_CODE = (
    *("asked_events", "asked_profiles", "attributes", "corpus", "families", "future"),
    *("inputs", "questions", "scope", "topics"),
)

Progress = Callable[[str, float], None]
Extend = Callable[[Corpus], Corpus]


def build_or_read(
    folder: Path,
    scope: Scope,
    *,
    families: Mapping[str, Family] = FAMILIES,
    extend: Extend | None = None,
    extend_key: str = "",
    on_progress: Progress | None = None,
) -> Corpus:
    """The corpus of a scope: read if the folder holds it, else built, stored and returned.

    Args:
        folder: made if missing; a corpus of another fingerprint in it is replaced.
        scope: what may be asked about (`scope.make_scope`).
        families: name -> maker of one family of questions.
        extend: a last step over the joined corpus, such as a writer's.
        extend_key: what decides the last step's result; part of the fingerprint.
        on_progress: called with what is being done and the share done, 0 to 1.

    Raises:
        SourceError: the folder holds files that are no corpus.
    """
    report = on_progress or (lambda message, fraction: None)
    settings = _settings(scope, tuple(families), extend_key)
    fingerprint = canonical_sha256(settings)
    if (stored := _stored(folder, fingerprint)) is not None:
        report("read the finished corpus", 1.0)
        return stored
    _prepare(folder, fingerprint)
    parts = []
    for done, (name, family) in enumerate(families.items()):
        report(f"asking {name}", done / (len(families) + 1))
        parts.append(_part(folder / PARTS / f"{name}.parquet", scope, family))
    corpus = join(parts)
    if extend is not None:
        report("asking the writer", len(families) / (len(families) + 1))
        corpus = extend(corpus)
    _write(folder, corpus, {"fingerprint": fingerprint, "settings": settings})
    report("done", 1.0)
    return corpus


def read_corpus(folder: Path) -> Corpus:
    """Read a finished corpus, after checking every file's digest.

    Raises:
        SourceError: the folder has no finished corpus, one of a newer format, or changed files.
    """
    meta = read_meta(folder)
    for name, digest in meta["files"].items():
        path = folder / name
        if not path.is_file() or _sha256(path) != digest:
            raise SourceError(
                f"{path} is missing or is not the file that {META_FILE} names; delete {folder} "
                "and build the corpus again"
            )
    return from_tables(
        {name: pq.read_table(folder / f"{name}.parquet", schema=TABLES[name]) for name in TABLES}
    )


def read_for(folder: Path, scope: Scope, families: Mapping[str, Family]) -> tuple[Corpus, str]:
    """The stored corpus of a scope, whatever a writer added to it, and the digest of its files.

    Raises:
        SourceError: as `read_corpus` does, and for a corpus of another scope or other families.
    """
    meta = read_meta(folder)
    stored: dict[str, Any] = meta["settings"]
    asked = _settings(scope, tuple(families), stored["extension"])
    if canonical_sha256(asked) != meta["fingerprint"]:
        other = sorted(name for name in asked if stored.get(name) != asked[name])
        raise SourceError(
            f"the corpus in {folder} is not what these options ask for: it differs in {other}; "
            "build it again with the options of this training (`feast-anchor corpus`)"
        )
    return read_corpus(folder), canonical_sha256(meta["files"])


def read_meta(folder: Path) -> dict[str, Any]:
    """The record of a finished corpus: settings, versions, statistics, file digests."""
    path = folder / META_FILE
    if not path.is_file():
        raise SourceError(f"no finished corpus in {folder}: {META_FILE} is missing; build it first")
    try:
        meta: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path} is not valid JSON ({error}); delete the folder and build the corpus again"
        ) from error
    if meta.get("format") != FORMAT or meta.get("format_version") != FORMAT_VERSION:
        raise SourceError(
            f"{path} is of the format {meta.get('format')!r} {meta.get('format_version')!r}, "
            f"expected {FORMAT!r} {FORMAT_VERSION}; build the corpus again with this version"
        )
    return meta


def _settings(scope: Scope, families: tuple[str, ...], extend_key: str) -> dict[str, Any]:
    """All that decides a corpus, as JSON."""
    return {
        "data": _events_digest(scope.events),
        "rows": _digest(scope.user, scope.as_of),
        "cut": scope.cut,
        "seed": scope.seed,
        "entity": scope.entity,
        "horizons": list(scope.horizons),
        "topics": scope.topics,
        "timezone": scope.timezone,
        "modalities": [spec.model_dump(mode="json") for spec in scope.modalities],
        "families": list(families),
        "extension": extend_key,
        "code": _code_digest(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("feast-anchor", "numpy", "pyarrow")},
        },
    }


def _stored(folder: Path, fingerprint: str) -> Corpus | None:
    """The corpus in the folder if it is this very one, undamaged."""
    try:
        return read_corpus(folder) if read_meta(folder)["fingerprint"] == fingerprint else None
    except (SourceError, ValueError):
        return None  # unfinished, damaged or of another version: built again


def _prepare(folder: Path, fingerprint: str) -> None:
    """Make room for a build; parts of another fingerprint go."""
    known = {PARTS, REPLIES, META_FILE, *(f"{name}.parquet" for name in TABLES)}
    if folder.exists():
        strange = sorted(
            path.name for path in folder.iterdir() if path.name.removesuffix(".tmp") not in known
        )
        if strange:
            raise SourceError(
                f"{folder} holds {strange[:5]}, no part of a corpus; choose an empty folder"
            )
    (folder / META_FILE).unlink(missing_ok=True)
    parts, mark = folder / PARTS, folder / PARTS / "fingerprint"
    if not mark.is_file() or mark.read_text("utf-8") != fingerprint:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        _replace(mark, lambda path: path.write_text(fingerprint, "utf-8"))


def _part(path: Path, scope: Scope, family: Family) -> Corpus:
    """One family's corpus, from its part file if a build before finished it."""
    if path.is_file():
        return scope.columns(unpack(pq.read_table(path, schema=PART)))
    corpus = family(scope)
    _replace(path, lambda out: _write_table(pack(corpus), out))
    return corpus


def _write(folder: Path, corpus: Corpus, meta: dict[str, Any]) -> None:
    """Write the tables, then the record that makes them a corpus, then drop the parts."""
    files = {}
    for name, table in to_tables(corpus).items():
        path = folder / f"{name}.parquet"
        _replace(path, lambda out, table=table: _write_table(table, out))  # type: ignore[misc]
        files[path.name] = _sha256(path)
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **meta,
        "statistics": statistics(corpus).as_json(),
        "files": files,
    }
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    _replace(folder / META_FILE, lambda out: out.write_text(text, "utf-8"))
    shutil.rmtree(folder / PARTS)


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the place and rename, so that the file is whole or not there."""
    beside = path.with_name(path.name + ".tmp")
    write(beside)
    os.replace(beside, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(*arrays: Ints) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape};".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _events_digest(events: Events) -> str:
    numbers: tuple[Any, ...] = (events.user, events.times, events.modality, events.amounts)
    texts = [canonical_sha256(list(events.users)), canonical_sha256(list(events.texts))]
    return canonical_sha256([_digest(*numbers, events.text), *texts])


def _code_digest() -> str:
    here = Path(__file__)
    return canonical_sha256([_sha256(here.with_name(f"{name}.py")) for name in _CODE])
