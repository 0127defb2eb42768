"""What a run leaves behind, and in which order, so that a kill at any instant loses nothing.

Workers, per shard, each file as a whole by a rename:

    offline part    <sink>.staging/run-<id>/part-00003.parquet
    dead letters    <state>/run-<id>/dead-00003.parquet
    digests         <state>/run-<id>/digests-00003.parquet
    shard manifest  <state>/run-<id>/shard-00003.json          <- last: the shard is done

The driver, when the books of all shards balance:

    publish         <sink>.staging/run-<id>/  ->  <sink>/run-<id>/
    table rows      all rows of a view whose sink is a SQL table, an upsert
    online rows     newest as-of per user, an upsert; then again the shard's manifest

A shard without a manifest is computed again; every step overwrites what a dead attempt left, so
nothing stands twice. A shard with a manifest is never computed again. Before it is published, a
run's rows can be read nowhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .files import move_file, replace_file, sync_folder
from .histories import Books
from .job import ViewRun


@dataclass(frozen=True)
class ShardManifest:
    """The record that a shard of a run is done, and what happened in it.

    `seconds` is wall time; `created_until` is the created_timestamp of its rows, microseconds since
    the epoch, UTC; `published_by` names the attempt that last wrote its rows into
    stores.
    """

    run_id: str
    view: str
    shard: int
    users_in: int
    users_embedded: int
    users_unchanged: int
    users_rejected: int
    events_in: int
    events_used: int
    events_unchanged: int
    events_rejected: int
    events_outside: int
    events_over_budget: int
    labels_in: int
    labels_rejected: int
    rows_offline: int
    rows_online: int
    rejected: dict[str, int]
    seconds: float
    created_until: int
    dead_letters: str | None  # path of the dead-letter file
    published_by: str | None = None

    def save(self, folder: Path) -> None:
        """Write it: from here on the shard counts as done."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        replace_file(shard_path(folder, self.shard), lambda p: p.write_text(text, "utf-8"))

    @classmethod
    def load(cls, folder: Path, shard: int) -> ShardManifest | None:
        """The manifest of a finished shard; None if it is not done or cannot be read."""
        try:
            text = shard_path(folder, shard).read_text("utf-8")
            return cls(**json.loads(text))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    @property
    def books(self) -> Books:
        """The counts that must balance."""
        return Books(**{name: getattr(self, name) for name in Books.__dataclass_fields__})


def shard_path(folder: Path, shard: int) -> Path:
    """Path of a shard's manifest in a run's state folder."""
    return folder / f"shard-{shard:05d}.json"


def dead_letter_path(run: ViewRun, shard: int) -> Path:
    """Path of a shard's dead letters."""
    return run.state_folder / f"dead-{shard:05d}.parquet"


def digest_path(run: ViewRun, shard: int) -> Path:
    """Path of a shard's history digests."""
    return run.state_folder / f"digests-{shard:05d}.parquet"


def part_path(run: ViewRun, shard: int) -> Path:
    """Path of a shard's part in the view's sink, where it stands once the run is published."""
    return _published(run) / f"part-{shard:05d}.parquet"


def staged_path(run: ViewRun, shard: int) -> Path:
    """Path of a shard's part before the run is published."""
    return staging_folder(run) / f"part-{shard:05d}.parquet"


def finished_part(run: ViewRun, shard: int) -> Path | None:
    """Where the part of a finished shard stands now; None if it is nowhere, or was cut short.

    A staged part is the newer one: a shard is only computed again when its old part is gone.
    """
    return next((path for path, _ in _whole_parts(run, shard)), None)


def finished(run: ViewRun, shard: int) -> ShardManifest | None:
    """The manifest of a shard that is done and whose part is there with all its rows, else None."""
    manifest = ShardManifest.load(run.state_folder, shard)
    if manifest is None:
        return None
    rows = next((rows for _, rows in _whole_parts(run, shard)), None)
    return manifest if rows == manifest.rows_offline else None


def part_rows(path: Path) -> int | None:
    """How many rows a part has; None if it is not there, or is no whole Parquet file.

    No part of ours is ever seen half written, but copy tools and broken disks cut files short.
    What Parquet says about itself stands at its end, so a few kilobytes tell. Raises `OSError` of
    a disk or a permission: then nobody can say whether the part is whole.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    except OSError as error:
        if error.errno is not None:
            raise
        return None  # pyarrow's own, of a footer that is there and says nothing


def publish(run: ViewRun) -> None:
    """Move all staged parts of a run into the view's sink; nothing to do if none is left."""
    staging, target = staging_folder(run), _published(run)
    if staging.is_dir():
        _move_parts(staging, target)
    _remove_if_empty(staging.parent)  # also what an attempt left that was killed just before this


def _move_parts(staging: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another file system: one file after the other
            staging.rename(target)
    if staging.is_dir():
        for part in sorted(staging.glob("part-*.parquet")):
            move_file(part, target / part.name)
        shutil.rmtree(staging)
    sync_folder(target)  # the parts' names, which nothing has synced before
    sync_folder(target.parent)


def discard(run: ViewRun, shards: int) -> None:
    """Undo the staged shards of a run that cannot be trusted: manifests first, then parts."""
    for shard in range(shards):
        if staged_path(run, shard).is_file():
            shard_path(run.state_folder, shard).unlink(missing_ok=True)
            staged_path(run, shard).unlink(missing_ok=True)
    shutil.rmtree(staging_folder(run), ignore_errors=True)
    _remove_if_empty(staging_folder(run).parent)


def clear_temporaries(run: ViewRun) -> None:
    """Remove what a killed attempt was amid writing. Call before any worker starts.

    All runs in the sink are looked at: a killed attempt may have made older parts ready to be
    joined with its own.
    """
    for folder in (run.state_folder, staging_folder(run), *Path(run.sink).glob("run-*")):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


def _whole_parts(run: ViewRun, shard: int) -> Iterator[tuple[Path, int]]:
    for path in (staged_path(run, shard), part_path(run, shard)):
        rows = part_rows(path)
        if rows is not None:
            yield path, rows


def _published(run: ViewRun) -> Path:
    return Path(run.sink) / f"run-{run.run_id}"


def staging_folder(run: ViewRun) -> Path:
    """Where a run's parts wait: beside the sink, because whatever stands in it can be joined."""
    return Path(f"{run.sink}.staging") / f"run-{run.run_id}"


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
