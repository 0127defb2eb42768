"""A trial of a job on a sample of its users: how long everything takes, and what comes out.

The rule: what is timed is the code of the run itself (`local_shuffle`, `shard_work`) with the run's
settings, on rows of the run, into a scratch folder. It is timed after a warm-up, because a first
run is slower than all others. No Feast here.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.bundle import Bundle

from . import labels
from .carried import unchanged_users
from .digests import history_digest
from .events import ROW_SCHEMA, ReadTask
from .histories import AsOf, History, ShardHistories, build_histories
from .job import Job, ViewRun
from .local_shuffle import shuffle
from .manifests import ShardManifest, finished, finished_part
from .sampling import Cells, cell_rows
from .scoring import Scorer
from .shard_work import ShardWork

_FIRST_USERS = 16  # scored before anything is timed


@dataclass(frozen=True)
class Read:
    """What shuffling some rows took, and the bytes that it wrote."""

    rows: int
    rejected: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Sample:
    """All users of some cells, with whole histories, by shard."""

    cells: Cells
    rows: Mapping[int, pa.Table]
    built: Mapping[int, ShardHistories]

    def books(self, count: str) -> int:
        """The sum of one of the counts of `Books`."""
        return sum(getattr(one.books, count) for one in self.built.values())

    @property
    def as_ofs(self) -> int:
        """Rows that each view gets."""
        return as_ofs_of(self._histories())

    def prefix_events(self, shared: bool) -> int:
        """Events that prefixes read; `shared` if one prefix serves all as-ofs of a user."""
        total = max if shared else sum
        return sum(total(len(cut.positions) for cut in one.cuts) for one in self._histories())

    def unchanged(self, views: Sequence[ViewRun]) -> list[History]:
        """Users whose vectors every view takes over from an earlier run."""
        found: list[History] = []
        for shard, one in self.built.items():
            digests = {user.user: history_digest(user, one.texts) for user in one.histories}
            kept = [set(unchanged_users(run, shard, digests)) for run in views]
            everywhere = set.intersection(*kept)
            found += [user for user in one.histories if user.user in everywhere]
        return found

    def _histories(self) -> Iterator[History]:
        return (history for one in self.built.values() for history in one.histories)


@dataclass(frozen=True)
class Scored:
    """What the work on some users of a sample took; seconds are wall time."""

    opening: float  # reading the bundle and making its sessions
    seconds: float  # everything else, `text_seconds` included
    embedded: int  # users with vectors
    events: int  # rows of all users that were worked on
    rows: int  # of all views
    shards: int  # that were worked on, each as a whole or in part
    texts: int  # encoded
    text_seconds: float
    text_growth: float  # n times the users of a shard have n to the power of this more texts
    parts: Mapping[str, Path]  # one of each view, if any has rows
    sink_bytes: int  # of the parts of all views


def as_ofs_of(histories: Iterable[History]) -> int:
    """Rows that each view gets of some users."""
    return sum(len(cut.as_of) for one in histories for cut in one.cuts)


def try_shuffle(job: Job, tasks: Sequence[ReadTask], scratch: Path) -> Read:
    """Time the local shuffle on some tasks."""
    folder = scratch / "shuffle"
    start = time.perf_counter()
    found = shuffle(job.sources, tasks, job.shards, folder)
    seconds = time.perf_counter() - start
    written = _bytes(folder)
    shutil.rmtree(folder)
    return Read(found.rows, found.rejected, seconds, written)


def take_sample(
    job: Job, tasks: Sequence[ReadTask], cells: Cells, asked: pa.Table | None
) -> Sample:
    """Read the users of some cells.

    Args:
        job: its `labels` folder is written here, if it has one.
        asked: the label table of such a job, `labels.SCHEMA`.
    """
    moments: dict[int, AsOf] = dict.fromkeys(range(job.shards), job.as_of)
    if job.labels is not None and asked is not None:
        labels.save(Path(job.labels), asked.filter(cells.holds(asked.column("user"))), job.shards)
        moments = {shard: labels.load(Path(job.labels), shard) for shard in range(job.shards)}
    specs = Bundle.open(job.bundle, expect_digest=job.digest).manifest.modalities
    rows = cell_rows(job.sources, tasks, cells)
    built = {shard: build_histories(some, moments[shard], specs) for shard, some in rows.items()}
    return Sample(cells, rows, built)


def try_scoring(job: Job, sample: Sample, scratch: Path, budget: float) -> Scored:
    """Time the work on the sample's shards, for about `budget` seconds or until all is done.

    `job.labels` is where `take_sample` wrote it.
    """
    tried = _in_scratch(job, scratch)
    work = ShardWork(tried)
    opening = _timed(work, tried, {0: ROW_SCHEMA.empty_table()})
    waiting = {shard: rows for shard, rows in sample.rows.items() if _users(rows)}
    first = {shard: _first_users(rows, _FIRST_USERS) for shard, rows in [*waiting.items()][:1]}
    _timed(work, tried, first)
    warm = _timed(work, tried, first)
    affordable = budget / max(warm, 1e-3) * sum(map(_users, first.values()))
    chosen = dict(_up_to(waiting, max(_FIRST_USERS, int(affordable))))
    seconds = _timed(work, tried, chosen)
    texts = [_texts(rows) for rows in chosen.values()]
    per_text = _seconds_per_text(job, max(texts, key=len, default=[]))
    done = [one for run in tried.views for one in _manifests(run, chosen)]
    parts = {run.view: finished_part(run, shard) for run in tried.views for shard in [*chosen][:1]}
    return Scored(
        opening=opening,
        seconds=seconds,
        embedded=sum(one.users_embedded for one in done) // len(tried.views),
        events=sum(rows.num_rows for rows in chosen.values()),
        rows=sum(one.rows_offline for one in done),
        shards=len(chosen),
        texts=sum(map(len, texts)),
        text_seconds=per_text * sum(map(len, texts)),
        text_growth=max(map(_text_growth, chosen.values()), default=1.0),
        parts={view: part for view, part in parts.items() if part is not None},
        sink_bytes=sum(_bytes(Path(f"{run.sink}.staging")) for run in tried.views),
    )


def _in_scratch(job: Job, scratch: Path) -> Job:
    """The job with its own folders, where no earlier run is found."""
    views = tuple(
        replace(
            run,
            scenarios=run.asked,
            sink=str(scratch / "sink" / run.view),
            state=str(scratch / "state" / run.view),
            unchanged="recompute",
            earlier=None,
            same=None,
            taken=(),
        )
        for run in job.views
    )
    return replace(job, views=views)


def _timed(work: ShardWork, job: Job, shards: Mapping[int, pa.Table]) -> float:
    """Seconds to finish some shards, as if none of them had been done before."""
    for run in job.views:
        shutil.rmtree(run.state_folder, ignore_errors=True)
        shutil.rmtree(f"{run.sink}.staging", ignore_errors=True)
    start = time.perf_counter()
    for shard, rows in shards.items():
        work.finish(shard, rows.combine_chunks)
    return time.perf_counter() - start


def _up_to(shards: Mapping[int, pa.Table], users: int) -> Iterator[tuple[int, pa.Table]]:
    """Whole shards, as long as so many users last; the first one may be cut to them."""
    for number, (shard, rows) in enumerate(shards.items()):
        if number and _users(rows) > users:
            return
        yield shard, _first_users(rows, users)
        users -= _users(rows)


def _first_users(rows: pa.Table, users: int) -> pa.Table:
    found = pc.unique(rows.column("user"))
    if len(found) <= users:
        return rows
    return rows.filter(pc.is_in(rows.column("user"), value_set=found[:users]))


def _users(rows: pa.Table) -> int:
    return int(pc.count_distinct(rows.column("user")).as_py())


def _texts(rows: pa.Table) -> list[str]:
    found: list[str] = pc.unique(rows.column("text").drop_null()).to_pylist()
    return found


def _text_growth(rows: pa.Table) -> float:
    half = _texts(_first_users(rows, max(1, _users(rows) // 2)))
    return min(1.0, math.log2(max(1.0, len(_texts(rows)) / max(1, len(half)))))


def _seconds_per_text(job: Job, texts: Sequence[str]) -> float:
    if not texts:
        return 0.0
    scorer = Scorer(Bundle.open(job.bundle), [job.views[0].scenarios[0].question], job.threads)
    with ThreadPoolExecutor(scorer.threads) as pool:
        scorer.bundle.encode_texts(texts[:_FIRST_USERS], scorer.event, pool)
        start = time.perf_counter()
        scorer.bundle.encode_texts(texts, scorer.event, pool)
        return (time.perf_counter() - start) / len(texts)


def _manifests(run: ViewRun, shards: Mapping[int, pa.Table]) -> list[ShardManifest]:
    found = (finished(run, shard) for shard in shards)
    return [one for one in found if one is not None]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
