"""Takes out of an exported graph what costs time at every run and changes no number.

A suffix of a few questions is some hundred small operators, each with a fixed cost of a few
microseconds. Many only work out shapes, and most of those follow from the shape of an input.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")
_COPIED, _REST = 0, -1  # sizes that a Reshape is given: that of the input, and what is left


def lean(model: ir.Model) -> None:
    """Change a graph in place: fewer reshapes and shapes, no notes on inner values."""
    for node in model.graph:
        if node.op_type == "Reshape":
            _shorten(node, model.graph)
    RemoveUnusedNodesPass()(model)
    for value in inner_values(model):
        # ONNX Runtime runs a graph that tells the shapes of inner values 2 to 3 % slower
        # (1.31, measured in turns; why was not found)
        value.shape = value.type = None


def inner_values(model: ir.Model) -> Iterator[ir.Value]:
    """What the graph computes on the way to its outputs."""
    for node in model.graph:
        yield from (value for value in node.outputs if not value.is_graph_output())


def _shorten(node: ir.Node, graph: ir.Graph) -> None:
    """Let a reshape read what the reshapes before it read, by a constant shape if there is one."""
    given, after = node.inputs[0], node.outputs[0]
    assert given is not None  # a Reshape has its input
    first = _before_reshapes(given)
    if _known(first.shape) and first.shape == after.shape and not after.is_graph_output():
        ir.convenience.replace_all_uses_with(after, first)  # there and back
        return
    for before in (first, given):
        shape = _constant(before.shape, after.shape)
        if shape is not None:
            node.replace_input_with(0, before)
            node.replace_input_with(1, _initializer(graph, shape))
            node.attributes.pop("allowzero", None)  # with it, 0 would mean an empty axis
            return
    if node.attributes.get_int("allowzero", 0):  # else a 0 may copy a size of this very input
        node.replace_input_with(0, first)


def _before_reshapes(value: ir.Value) -> ir.Value:
    """The value that a chain of reshapes begins with: its numbers stand in the same order."""
    node = value.producer()
    if node is None or node.op_type not in _RESHAPES or node.inputs[0] is None:
        return value
    return _before_reshapes(node.inputs[0])


def _known(shape: ir.Shape | None) -> bool:
    """Whether every size is a number or has a name: two sizes without one need not be equal."""
    return shape is not None and all(isinstance(n, int) or n.value is not None for n in shape)


def _constant(before: ir.Shape | None, after: ir.Shape | None) -> list[int] | None:
    """The shape to give a Reshape, the same for inputs of every size; None for no such shape."""
    if before is None or after is None:
        return None
    out = []
    for place, size in enumerate(after):
        if isinstance(size, int):
            out.append(size)
        elif place < len(before) and size.value is not None and size == before[place]:
            out.append(_COPIED)
        else:
            out.append(_REST)
    return out if out.count(_REST) <= 1 else None


def _initializer(graph: ir.Graph, shape: list[int]) -> ir.Value:
    name = "shape_" + "_".join("rest" if size == _REST else str(size) for size in shape)
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(shape, dtype=np.int64), name=name)
        value = ir.Value(
            name=name,
            const_value=tensor,
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([len(shape)]),
        )
        graph.register_initializer(value)
    return graph.initializers[name]
