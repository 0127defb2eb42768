"""Users that training must not see, from a text file of entity keys.

The rule: a list that matches nobody is a mistake, such as another spelling of the keys. To train on
the very users that somebody meant to keep out would show nowhere but in figures that are too good.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from feast_anchor.onnx_export.errors import SourceError


def read_held_out(path: Path | None) -> frozenset[str]:
    """The keys of a file, one a line, without the blanks around them; none for None.

    Raises `SourceError` when the file has none.
    """
    if path is None:
        return frozenset()
    keys = frozenset(filter(None, map(str.strip, path.read_text("utf-8").splitlines())))
    if not keys:
        raise SourceError(f"{path} has no keys to hold out; write one a line, or leave it out")
    return keys


def check_held_out(held_out: Collection[str], users: Collection[str]) -> str:
    """A sentence on how many of the keys are among the users that have events.

    Raises `SourceError` when none of them is.
    """
    matched = len(set(held_out) & set(users))
    if held_out and users and not matched:
        raise SourceError(
            f"none of the {len(held_out):,} keys to hold out, such as {min(held_out)!r}, has an "
            f"event before the cut; users there are called {min(users)!r}, for example. Spell the "
            "keys as the event tables do, one a line"
        )
    return f"holding out {matched:,} of {len(users):,} users"
