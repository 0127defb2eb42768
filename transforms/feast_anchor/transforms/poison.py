"""Users whose history makes scoring fail are found and rejected; all others get their vectors.

The rule: one user's trouble costs that user alone. A shard that fails is halved until the users who
make it fail stand alone. That changes no other vector, because a vector depends on its own user
only (see `scoring`). Trouble that is not of a user (memory, files, the bundle) is raised at once,
and so is trouble of very many users: then it is the model or the machine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.errors import AnchorError, RunError

from .events import ROW_SCHEMA
from .histories import History, ShardHistories, events_read
from .scoring import UserVectors

SCORING_FAILED = "scoring_failed"
VECTOR_NOT_FINITE = "vector_not_finite"

_OF_NO_USER = (MemoryError, OSError, ImportError, AnchorError)
_ALWAYS_BEARABLE = 3  # poison users of one shard, however small it is

log = logging.getLogger(__name__)


class Scores(Protocol):
    """What scores histories; `scoring.Scorer` does."""

    def score(self, histories: Sequence[History], texts: Sequence[str]) -> Iterator[UserVectors]:
        """Vectors of every history, in order."""
        ...


def score_isolated(
    scorer: Scores, histories: Sequence[History], texts: Sequence[str], most: float
) -> tuple[list[UserVectors], dict[str, str]]:
    """Vectors of all users that can be scored, in order, and the reason for each of the others.

    Args:
        most: share of the users that may fail before the failure is taken to be of no user.

    Raises:
        RunError: more users failed, with the last failure as its cause.
        Whatever scoring raised that no user can be blamed for.
    """
    failed: dict[str, Exception] = {}
    bearable = max(_ALWAYS_BEARABLE, int(most * len(histories)))
    scored: dict[str, UserVectors] = {}
    waiting = [list(histories)] if histories else []
    while waiting:
        some = waiting.pop()
        try:
            scored |= {one.user: one for one in scorer.score(*_alone(some, texts))}
        except Exception as error:
            if isinstance(error, _OF_NO_USER) or _of_the_machine(error):
                raise
            half = len(some) // 2
            if len(some) > 1:
                waiting += [some[half:], some[:half]]
            elif some[0].user not in failed:  # once more, at the end: it may have been the moment
                failed[some[0].user] = error
                waiting.insert(0, some)
            else:
                log.warning("a user cannot be scored: %s", first_line(error))
            if len(failed.keys() - scored.keys()) > bearable:
                raise RunError(
                    f"{len(failed)} users of one shard of {len(histories)} cannot be scored, so it "
                    f"is hardly their histories; the last one failed with {first_line(error)}"
                ) from error
    poison = dict.fromkeys(failed.keys() - scored.keys(), SCORING_FAILED)
    finite = {user: bool(np.isfinite(one.vectors).all()) for user, one in scored.items()}
    poison |= {user: VECTOR_NOT_FINITE for user, is_finite in finite.items() if not is_finite}
    return [scored[one.user] for one in histories if finite.get(one.user)], poison


def reject(shard: ShardHistories, rows: pa.Table, poison: dict[str, str]) -> ShardHistories:
    """The shard without its poison users: they and all their events become dead letters.

    Args:
        rows: what the shard was built from, `ROW_SCHEMA`.
        poison: user -> reason.
    """
    if not poison:
        return shard
    gone = [history for history in shard.histories if history.user in poison]
    read = sum(events_read(history) for history in gone)
    # Of a user who is rejected nothing is used, outside or over budget any more.
    late = sum(_outside(history) for history in gone)
    events = sum(len(history.times) for history in gone)
    labels = _labels(gone, poison) if shard.books.labels_in else []
    books = replace(
        shard.books,
        events_used=shard.books.events_used - read,
        events_outside=shard.books.events_outside - late,
        events_over_budget=shard.books.events_over_budget - (events - read - late),
        events_rejected=shard.books.events_rejected + events,
        users_embedded=shard.books.users_embedded - len(gone),
        users_rejected=shard.books.users_rejected + len(gone),
        labels_rejected=shard.books.labels_rejected + len(labels),
    )
    return replace(
        shard,
        histories=tuple(one for one in shard.histories if one.user not in poison),
        rejected_events=pa.concat_tables([shard.rejected_events, _rejected_rows(rows, poison)]),
        rejected_users=dict(sorted({**shard.rejected_users, **poison}.items())),
        rejected_labels=(*shard.rejected_labels, *labels),
        books=books,
    )


def _alone(histories: Sequence[History], texts: Sequence[str]) -> tuple[list[History], list[str]]:
    """Some histories with only the texts that they use: another user's text may be the poison."""
    used = np.unique(np.concatenate([history.text for history in histories]))
    if len(used) == len(texts):
        return list(histories), list(texts)
    own = [replace(one, text=np.searchsorted(used, one.text)) for one in histories]
    return own, [texts[number] for number in used]


def _rejected_rows(rows: pa.Table, poison: dict[str, str]) -> pa.Table:
    theirs = pc.is_in(rows.column("user"), value_set=pa.array(sorted(poison), pa.string()))
    own = rows.filter(pc.and_(theirs, pc.is_null(rows.column("rejected"))))
    reasons = pa.array([poison[user] for user in own.column("user").to_pylist()], pa.string())
    at = own.schema.get_field_index("rejected")
    return own.set_column(at, ROW_SCHEMA.field(at), reasons).cast(ROW_SCHEMA)


def _outside(history: History) -> int:
    last = max(moment for cut in history.cuts for moment in cut.as_of)
    return int((history.times >= last).sum())


def _labels(gone: Sequence[History], poison: dict[str, str]) -> list[tuple[str, int, str]]:
    return [
        (one.user, moment, poison[one.user])
        for one in gone
        for cut in one.cuts
        for moment in cut.as_of
    ]


def _of_the_machine(error: Exception) -> bool:
    """ONNX Runtime says so in words alone."""
    said = str(error).lower()
    return any(word in said for word in ("bad_alloc", "allocate", "out of memory", "cuda"))


def first_line(error: BaseException) -> str:
    """Class and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"
