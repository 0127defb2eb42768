from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime import InferenceSession

from feast_anchor.onnx_export.lean_graph import inner_values, lean

# Shapes of the values that a graph may hold, sizes of x[A,B,6] worked out, then nodes of the case.
GRAPH = """
<ir_version: 10, opset_import: ["" : 23]>
test (float[A,B,6] x) => (float[N,M,K] y)
<float[?,?,6] turned_one, float[?,?,6] turned_two, float[?,?,3] loose,
 float[A,B,2,3] parts, float[A,C] flat, float[D,2,3] rows, float[A,B,6] whole, float[B,A,6] other>
{{
    a = Shape<start = 0, end = 1>(x)
    b = Shape<start = 1, end = 2>(x)
    two = Constant<value_ints = [2]>()
    three = Constant<value_ints = [3]>()
    six = Constant<value_ints = [6]>()
    {nodes}
}}
"""
TO_PARTS = """
    sizes = Concat<axis = 0>(a, b, two, three)
    parts = Reshape<allowzero = 1>(x, sizes)
"""
TO_FLAT = """
    all = Mul(b, six)
    flat_sizes = Concat<axis = 0>(a, all)
    flat = Reshape<allowzero = 1>(x, flat_sizes)
"""
TO_ROWS = """
    number = Mul(a, b)
    row_sizes = Concat<axis = 0>(number, two, three)
    rows = Reshape<allowzero = 1>({of}, row_sizes)
"""
BACK = """
    back = Concat<axis = 0>(a, b, six)
    whole = Reshape<allowzero = 1>(flat, back)
"""
TURNED = """
    turned = Concat<axis = 0>(b, a, six)
    other = Reshape<allowzero = 1>(x, turned)
"""
TURNED_TWICE = """
    back_again = Concat<axis = 0>(b, a, six)
    turned_one = Neg(x)
    turned_two = Reshape<allowzero = 1>(turned_one, back_again)
"""
CASES = {
    "sizes that stand where they stood": (TO_PARTS + "y = Neg(parts)", ["Reshape", "Neg"]),
    "one size that is what is left": (TO_FLAT + "y = Neg(flat)", ["Reshape", "Neg"]),
    "a chain is its last link": (
        TO_PARTS + TO_ROWS.format(of="parts") + "y = Neg(rows)",
        ["Reshape", "Neg"],
    ),
    "another reader keeps the first link": (
        TO_PARTS
        + TO_ROWS.format(of="parts")
        + "s = Exp(parts)\nt = ReduceSum(s)\ny = Add(rows, t)",
        ["Reshape", "Reshape", "Exp", "ReduceSum", "Add"],
    ),
    "there and back": (TO_FLAT + BACK + "y = Neg(whole)", ["Neg"]),
    "sizes without a name may differ": (
        TURNED_TWICE + "y = Neg(turned_two)",
        ["Shape", "Shape", "Constant", "Concat", "Neg", "Reshape", "Neg"],
    ),
    "a zero that copies keeps its input": (
        TO_ROWS.format(of="x")
        + "zero = Constant<value_ints = [0, -1, 3]>()\nloose = Reshape(rows, zero)\ny = Neg(loose)",
        ["Reshape", "Constant", "Reshape", "Neg"],
    ),
    "no constant says two sizes": (
        TURNED + "y = Neg(other)",
        ["Shape", "Shape", "Constant", "Concat", "Reshape", "Neg"],
    ),
}


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The graph's output for x."""
    content = ir.to_proto(model).SerializeToString()
    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(None, {"x": x})[0]
    return out


@pytest.mark.parametrize("case", CASES)
def test_fewer_nodes_and_the_same_numbers(case: str) -> None:
    """What is left computes what was there before, for inputs of several sizes."""
    nodes, left = CASES[case]
    plain, model = (ir.from_onnx_text(GRAPH.format(nodes=nodes)) for _ in range(2))
    lean(model)
    assert [node.op_type for node in model.graph] == left
    assert all(value.shape is None for value in inner_values(model))
    for size in ((1, 1, 6), (2, 5, 6), (7, 3, 6)):
        x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        assert np.array_equal(run(plain, x), run(model, x))
