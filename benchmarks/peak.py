"""The most that one thread does here: the fastest fp32 matrix product of ONNX Runtime.

With constant weights, prepacked as those of a model are, and of several shapes, because the best
one depends on the machine's caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle

from .models import Subject
from .timing import Budget, alternate

SHAPES = ((256, 256, 1024), (512, 512, 512), (1024, 1024, 1024), (512, 1024, 4096))  # n, k, m


@dataclass(frozen=True)
class Gemm:
    """A product of [n,k] and [k,m] that can be run, and its operations."""

    name: str
    run: Callable[[], object]
    flops: int


def gemms(subject: Subject, folder: Path) -> list[Gemm]:
    """Products of all shapes, on sessions with the bundle's own settings."""
    return [_gemm(subject, folder, *shape) for shape in SHAPES]


def best_gemm(subject: Subject, folder: Path, budget: Budget) -> Gemm:
    """The product that does the most operations a second."""
    found = {gemm.name: gemm for gemm in gemms(subject, folder)}
    timings = alternate({name: gemm.run for name, gemm in found.items()}, budget)
    return max(found.values(), key=lambda gemm: gemm.flops / timings.median(gemm.name))


def _gemm(subject: Subject, folder: Path, n: int, k: int, m: int) -> Gemm:
    name = f"matmul-{n}x{k}x{m}"
    _write(folder / f"{name}.onnx", k, m)
    session = Bundle(folder, subject.bundle.manifest).session(name)
    x = np.random.default_rng(0).standard_normal((n, k), dtype=np.float32)
    return Gemm(name, lambda: session.run(None, {"x": x}), 2 * n * k * m)


@cache
def _write(path: Path, k: int, m: int) -> None:
    import onnx
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(1).standard_normal((k, m), dtype=np.float32)
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, ["n", k])],
        [helper.make_tensor_value_info("y", kind, ["n", m])],
        [numpy_helper.from_array(weight, "w")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    opset = helper.make_opsetid("", 23)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[opset]), path)
