"""One module per question that the benchmarks answer; `SECTIONS` lists them in order.

Each has a `measure(lab)` that returns what it found. To add one, write a module and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ..findings import Found
from ..lab import Lab

SECTIONS: Mapping[str, str] = {
    "speedup": "One prefix for all questions against other ways, one thread",
    "beam": "The same against Beam's RunInference",
    "snapshots": "Many as-of times from one prefix",
    "request": "From a stored user state to vectors, and a new event into it",
    "peak": "Fraction of the fp32 matrix product peak, one thread",
    "workers": "Two worker threads over one",
    "pipeline": "The whole pipeline over the bare scoring loop",
    "growth": "Time and memory as users grow",
    "scale": "Ten million events of 200,000 users on one machine",
}
LARGE = ("scale",)  # only run when they are asked for


def measure(name: str, lab: Lab) -> Found:
    """What one section finds. Its libraries are imported now, so that help is quick."""
    found: Found = import_module(f".{name}", __package__).measure(lab)
    return found
