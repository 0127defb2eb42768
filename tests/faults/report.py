"""A table of what was disturbed and what was lost: to the terminal and to a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One disturbed run, judged after its rerun."""

    what: str
    shuffle: str
    killed: str
    rows_lost: int
    rows_twice: int

    def __str__(self) -> str:
        return (
            f"{self.what:<12} {self.shuffle:<6} {self.killed:<44} "
            f"{self.rows_lost:>5} lost {self.rows_twice:>5} twice"
        )


@dataclass
class Table:
    """All disturbed runs of a session."""

    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Note one."""
        self.rows.append(row)

    @property
    def share_killed(self) -> float:
        """Of all attempts, those that were killed before they had ended; some shops had two."""
        attempts = [one for row in self.rows for one in row.killed.split("; ")]
        return sum(one != "over" for one in attempts) / len(attempts)

    @property
    def killed(self) -> int:
        """How many were killed before they had ended."""
        return sum(set(row.killed.split("; ")) != {"over"} for row in self.rows)

    def lines(self) -> list[str]:
        """The table as text, with its sums."""
        lost, twice = (sum(getattr(row, n) for row in self.rows) for n in _COUNTS)
        sums = f"{len(self.rows)} shops, {self.killed} killed, {lost} rows lost, {twice} twice"
        return [*map(str, self.rows), sums]

    def save(self, path: Path, seconds: float) -> None:
        """Write it as JSON, with its sums and how long the session took."""
        sums = {name: sum(getattr(row, name) for row in self.rows) for name in _COUNTS}
        told: dict[str, Any] = {"shops": len(self.rows), "killed": self.killed, **sums}
        told |= {"seconds": round(seconds, 1), "rows": [asdict(row) for row in self.rows]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


_COUNTS = ("rows_lost", "rows_twice")
