"""Who is reported and who is trained on, and what the labels say of them.

The rule: a user's part is a pure function of the split and the key, so a user that is reported is
reported whatever else is in the tables; and the labels that are reported stand at the cut, never
before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import md5
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.errors import SourceError

from ..labels import TIMESTAMP, read_label_table
from .config import EvaluationConfig, Part, utc

Array = np.ndarray[Any, Any]

_LEAST = 10  # users of each class in the reported part: five folds of two


@dataclass(frozen=True)
class Labelled:
    """Labels at one as-of time: users [N] and int8 [S, N]: 1, 0, or -1 where there is none."""

    as_of: datetime
    users: tuple[str, ...]
    y: Array

    def take(self, users: Iterable[str]) -> Labelled:
        """The rows of some users, sorted by user."""
        place = {user: row for row, user in enumerate(self.users)}
        kept = sorted(user for user in users if user in place)
        return Labelled(self.as_of, tuple(kept), self.y[:, [place[user] for user in kept]])


def part_of(user: str, split: int, config: EvaluationConfig) -> str:
    """The user's part in one split: "test", "validation" or "train".

    In split 0 a test share of .4 are the users that the demo holds out (`md5_number_lower`).
    """
    key = f"{split}:{user}" if split else user
    digest = md5(key.encode(), usedforsecurity=False).digest()
    place = int.from_bytes(digest[8:], "little") % 100 / 100
    if place < config.test_share:
        return "test"
    return "validation" if place < config.test_share + config.validation_share else "train"


def divide(users: Iterable[str], config: EvaluationConfig, part: Part) -> tuple[set[str], set[str]]:
    """The users to report, and all that training must not see.

    "test" trains on train and validation users; "validation" trains on train users and holds the
    test users out as well.
    """
    parts = {user: part_of(user, config.split, config) for user in users}
    unseen = {"test"} if part == "test" else {"test", "validation"}
    return (
        {user for user, own in parts.items() if own == part},
        {user for user, own in parts.items() if own in unseen},
    )


def read_labels(config: EvaluationConfig, key: str) -> tuple[Labelled, tuple[Labelled, ...]]:
    """Labels at the cut, and the earlier ones whose windows are over by the cut.

    Args:
        config: the evaluation.
        key: the entity's join key, a column of the table.

    Raises:
        SourceError: the table is missing or not as the config says; no row stands at the cut; a
            user has two rows at one time.
    """
    columns = [config.column(name) for name in config.names]
    hint = 'A scenario\'s column is named like the scenario unless label = "…" says otherwise'
    table = read_label_table(config.labels, key, columns, hint)
    at = table.column(TIMESTAMP).cast(pa.timestamp("us", tz="UTC"))
    times = sorted(moment for moment in pc.unique(at).to_pylist() if moment is not None)
    if config.cut not in times:
        shown = ", ".join(utc(moment) for moment in times[:6])
        raise SourceError(
            f"{config.labels} has no label at the cut {utc(config.cut)}; its rows stand at "
            f"{shown}. Set cut to one of these, or write labels at the cut"
        )
    over = [moment for moment in times if moment + config.horizon <= config.cut]
    found = {
        moment: _labelled(
            config, table.filter(pc.equal(at, pa.scalar(moment, at.type))), key, moment
        )
        for moment in [*over, config.cut]
    }
    return found[config.cut], tuple(found[moment] for moment in over)


def check_classes(config: EvaluationConfig, labels: Labelled, part: Part) -> None:
    """Refuse scenarios that cannot be probed on the reported users."""
    if not labels.users:
        raise SourceError(
            f"no user of the {part} part has a label at {utc(config.cut)} and an event before it; "
            f"raise {part}_share or check that the keys of labels and events are the same"
        )
    for name, y in zip(config.names, labels.y, strict=True):
        counts = [int(np.sum(y == value)) for value in (0, 1)]
        if min(counts) < _LEAST:
            raise SourceError(
                f"scenario {name!r} has {counts[1]} positive and {counts[0]} negative users in the "
                f"{part} part, expected at least {_LEAST} of each; take more users, another label "
                "or another horizon, or leave the scenario out"
            )


def _labelled(config: EvaluationConfig, rows: pa.Table, key: str, as_of: datetime) -> Labelled:
    users = [str(user) for user in rows.column(key).to_pylist()]
    if len(set(users)) < len(users):
        twice = next(user for user in users if users.count(user) > 1)
        raise SourceError(
            f"{config.labels} has two rows for {key} {twice!r} at {utc(as_of)}; expected one"
        )
    y = [
        pc.fill_null(rows.column(config.column(name)).cast(pa.int8()), -1).to_numpy()
        for name in config.names
    ]
    return Labelled(as_of, tuple(users), np.array(y, dtype=np.int8)).take(users)
