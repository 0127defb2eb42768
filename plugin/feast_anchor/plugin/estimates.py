"""What `feast-anchor plan` finds out about one pass over the events."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """What one pass over the events, for one or more views, would do. Bytes, seconds, rows.

    Counts named in `estimated` are scaled up from the sample; the others are exact.
    """

    views: tuple[str, ...]
    run_ids: tuple[str, ...]
    events: dict[str, int]  # rows by modality
    events_rejected: int
    users: int
    users_embedded: int
    as_of_times: int  # of a window; with labels, of all labels
    rows: int  # of every view
    vectors: int  # of all views
    rows_online: int  # of all views
    shards: int
    shards_done: int  # of all views: finished by an earlier attempt
    taken_over: tuple[str, ...]  # what is there from earlier runs, in words
    workers: int
    threads: int  # of every worker
    sampled_users: int
    estimated: tuple[str, ...]
    seconds: dict[str, float]  # by stage
    sink_bytes: int
    scratch_bytes: int  # of the shuffle, until the run has succeeded
    memory_bytes: int  # peak of a worker

    @property
    def offline_seconds(self) -> float:
        """The whole run but for the online store."""
        return sum(self.seconds.values()) - self.seconds["online write"]
