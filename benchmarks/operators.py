"""Where the time of a graph goes: seconds by kind of operator, from ONNX Runtime's profiler.

The profiler also notes the shapes that each operator saw, so the products that really ran can be
counted and compared with `flops`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .cascade import Arrays

_RUNS = 20
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")


@dataclass(frozen=True)
class Operators:
    """Shares of the time inside operators, the largest first, and operations of the products."""

    shares: Mapping[str, float]
    gflops: float  # of one run

    def top(self, count: int) -> dict[str, float]:
        """The largest shares."""
        return dict(list(self.shares.items())[:count])


def operators(graph: Path, feed: Arrays, runs: int = _RUNS) -> Operators:
    """Run a graph some times under the profiler."""
    events = _profile(graph, feed, runs)
    seconds: Counter[str] = Counter()
    flops = 0
    for event in events:
        kind = event["args"]["op_name"]
        seconds[kind] += event["dur"]
        if kind in _PRODUCTS:
            flops += _product(kind, event["args"])
    whole = sum(seconds.values())
    return Operators({k: n / whole for k, n in seconds.most_common()}, flops / runs / 1e9)


def _profile(graph: Path, feed: Arrays, runs: int) -> list[dict[str, Any]]:
    """The profiler's records of operators, of all runs but a first one to warm up."""
    import onnxruntime as ort

    options = ort.SessionOptions()  # as in `Bundle.session`
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + runs):
            session.run(None, dict(feed))
        records = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    nodes = [r for r in records if r.get("cat") == "Node" and "op_name" in r["args"]]
    return nodes[len(nodes) // (1 + runs) :]


def _product(kind: str, args: Mapping[str, Any]) -> int:
    """Operations of one product: twice the numbers it makes times the length of each sum.

    The sum is as long as a row of the left side where the right one is a weight, which the
    profiler leaves out once it is packed. Otherwise its length follows from the sizes of the three
    matrices, so that no transposition can confuse it.
    """
    left, *others = _shapes(args["input_type_shape"])
    (made,) = _shapes(args["output_type_shape"])
    shared = left[-1]
    if kind != "Gemm" and others and len(others[0]) > 2:
        shared = round((prod(left[-2:]) * prod(others[0][-2:]) / prod(made[-2:])) ** 0.5)
    return 2 * prod(made) * shared


def _shapes(typed: Iterable[Mapping[str, list[int]]]) -> list[list[int]]:
    return [shape for one in typed for shape in one.values()]
