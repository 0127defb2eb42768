"""One shard of one job: build histories, score what must be scored, write, say done.

No Beam here: the same work is done wherever a shard's rows come from, so all shuffles and runners
give the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BooksError
from feast_anchor.onnx_export.inputs import Floats

from . import labels, manifests, sinks
from .carried import Taken, restamped, unchanged_users
from .digests import Newest, history_digest, save_digests
from .files import replace_file
from .histories import AsOf, Books, ShardHistories, build_histories, events_read
from .job import Job, ScenarioColumn, ViewRun
from .poison import reject, score_isolated
from .scoring import Question, Scorer, UserVectors
from .zeroshot import Answers, score_axes


@dataclass(frozen=True)
class _Scored:
    """A shard's histories and vectors, and what was asked."""

    shard: int
    histories: ShardHistories
    digests: Mapping[str, bytes]
    questions: Sequence[Question]
    vectors: Sequence[UserVectors]
    began: float  # of time.monotonic(), seconds


class ShardWork:
    """The work on a job's shards in one process; sessions are opened once, at the first shard."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._bundle: Bundle | None = None
        self._axes: dict[Answers, Floats] = {}
        self._scorers: dict[tuple[Question, ...], Scorer] = {}

    def finish(self, shard: int, rows: Callable[[], pa.Table]) -> int:
        """Do a shard for every view that has not done it, and return how many rows were written.

        Args:
            rows: gives the shard's rows, `ROW_SCHEMA`; not called if there is nothing to do.
        """
        waiting = [run for run in self._job.views if manifests.finished(run, shard) is None]
        return self._compute(shard, rows(), waiting) if waiting else 0

    def _compute(self, shard: int, rows: pa.Table, waiting: Sequence[ViewRun]) -> int:
        began = time.monotonic()
        specs = self._open().manifest.modalities
        built = build_histories(rows, self._as_of(shard), specs)
        digests = {one.user: history_digest(one, built.texts) for one in built.histories}
        kept = {run.view: unchanged_users(run, shard, digests) for run in waiting}
        taken = {run.view: Taken.of(run, shard, built.histories) for run in waiting}
        everywhere = set.intersection(*(set(users) for users in kept.values()))
        todo = [one for one in built.histories if one.user not in everywhere]
        questions = _questions(run.asked if taken[run.view] else run.scenarios for run in waiting)
        vectors, poison = score_isolated(
            self._scorer(questions), todo, built.texts, self._job.max_rejected
        )
        if poison and len(waiting) > 1:  # whose question it was is seen one view at a time
            return sum(self._compute(shard, rows, [run]) for run in waiting)
        histories = reject(built, rows, poison)
        _check(shard, histories.books)
        scored = _Scored(shard, histories, digests, questions, vectors, began)
        return sum(self._write(run, scored, kept[run.view], taken[run.view]) for run in waiting)

    def _write(
        self, run: ViewRun, scored: _Scored, kept: Mapping[str, str], taken: Taken | None
    ) -> int:
        # A clock that was set back must not make a new vector look older than the one it replaces.
        created = max(time.time_ns() // 1000, self._job.created_after + 1)
        own = [one for one in scored.vectors if one.user not in kept]
        new = self._rows(run, scored.questions, own, created, taken)
        old = restamped(run, scored.shard, scored.histories.histories, kept, created)
        rows = pa.concat_tables([new, old]).combine_chunks()
        books = _with_unchanged(run, scored.histories, kept)
        _check(scored.shard, books, rows.num_rows, _rows_of(run, scored.histories, kept))
        sinks.write_part(run, scored.shard, rows)
        names = [spec.name for spec in self._open().manifest.modalities]
        dead = sinks.write_dead_letters(run, scored.shard, scored.histories, names)
        newest = _newest(run, scored, own, kept)
        path = manifests.digest_path(run, scored.shard)
        replace_file(path, lambda temporary: save_digests(temporary, newest), last=False)
        manifests.ShardManifest(
            run_id=run.run_id,
            view=run.view,
            shard=scored.shard,
            **asdict(books),
            rows_offline=rows.num_rows,
            rows_online=0,
            rejected=scored.histories.rejections,
            seconds=time.monotonic() - scored.began,
            created_until=created,
            dead_letters=None if dead is None else str(dead),
        ).save(run.state_folder)
        return len(rows)

    def _rows(
        self,
        run: ViewRun,
        questions: Sequence[Question],
        vectors: Sequence[UserVectors],
        created: int,
        taken: Taken | None,
    ) -> pa.Table:
        """The rows that were computed now, with the columns that were computed before."""
        part = run if taken is None else replace(run, scenarios=run.asked)
        columns = [questions.index(scenario.question) for scenario in part.scenarios]
        table = sinks.rows_table(part, columns, list(vectors), created, self._axes)
        return table if taken is None else taken.joined(table, run.schema)

    def _as_of(self, shard: int) -> AsOf:
        folder = self._job.labels
        return self._job.as_of if folder is None else labels.load(Path(folder), shard)

    def _open(self) -> Bundle:
        if self._bundle is None:
            self._bundle = Bundle.open(self._job.bundle, expect_digest=self._job.digest)
            self._axes = score_axes(self._bundle, _answers(self._job))
        return self._bundle

    def _scorer(self, questions: Sequence[Question]) -> Scorer:
        key = tuple(questions)
        if key not in self._scorers:
            job = self._job
            self._scorers[key] = Scorer(self._open(), questions, job.threads, job.device)
        return self._scorers[key]


def _newest(
    run: ViewRun, scored: _Scored, own: Sequence[UserVectors], kept: Mapping[str, str]
) -> dict[str, Newest]:
    """What each user's newest row has read, and where that row stands after this run."""
    here = dict.fromkeys((one.user for one in own), run.run_id)
    before = kept if run.unchanged == "leave" else dict.fromkeys(kept, run.run_id)
    where = {**before, **here}
    return {
        user: Newest(digest, where[user])
        for user, digest in scored.digests.items()
        if user in where
    }


def _with_unchanged(run: ViewRun, shard: ShardHistories, kept: Collection[str]) -> Books:
    """The books of a view that leaves some users as they were."""
    read = sum(events_read(one) for one in shard.histories if one.user in kept)
    return replace(
        shard.books,
        users_embedded=shard.books.users_embedded - len(kept),
        users_unchanged=len(kept),
        events_used=shard.books.events_used - read,
        events_unchanged=read,
    )


def _rows_of(run: ViewRun, shard: ShardHistories, kept: Collection[str]) -> int:
    """How many rows a view must have: one per as-of of every user but those that are left."""
    left = kept if run.unchanged == "leave" else ()
    return sum(
        len(cut.as_of) for one in shard.histories if one.user not in left for cut in one.cuts
    )


def _check(shard: int, books: Books, rows: int = 0, expected: int = 0) -> None:
    if not books.balances():
        raise BooksError(f"shard {shard}: the books do not balance: {books}")
    asked = books.labels_in - books.labels_rejected
    if rows != expected or (rows and asked and rows != asked):
        raise BooksError(f"shard {shard}: {rows} rows, expected {expected}: {books}")


def _questions(scenarios: Iterable[Sequence[ScenarioColumn]]) -> list[Question]:
    """Every distinct question, in a fixed order."""
    return list(dict.fromkeys(one.question for own in scenarios for one in own))


def _answers(job: Job) -> list[Answers]:
    """The answers of every score of the job's views."""
    scenarios = [scenario for run in job.views for scenario in run.scenarios]
    return [scenario.score.answers for scenario in scenarios if scenario.score is not None]
