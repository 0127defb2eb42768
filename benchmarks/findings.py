"""What a section found: figures with their goals, and the details behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A number to reach, from above or from below."""

    bound: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        """Whether a value is on the right side."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One number: what it is, its unit ("×" for ratios), and its goal where there is one."""

    name: str
    value: float
    unit: str = "×"
    goal: Goal | None = None
    note: str = ""  # what it is to be compared with, in a few words

    def as_json(self) -> dict[str, Any]:
        """As it stands in the summary."""
        found: dict[str, Any] = {"name": self.name, "value": self.value, "unit": self.unit}
        if self.goal is not None:
            found |= {"goal": str(self.goal), "met": self.goal.met(self.value)}
        return found | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class Found:
    """Figures of a section in the order to print them; details are JSON values."""

    figures: tuple[Figure, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As it stands in the summary."""
        figures = [figure.as_json() for figure in self.figures]
        return {"figures": figures, "details": dict(self.details)}
