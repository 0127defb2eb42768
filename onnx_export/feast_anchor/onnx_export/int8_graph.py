"""Decoder matrices of an ONNX graph in int8, one scale per token. Needs the `onnx` package.

The rule: a token's numbers are scaled by that token's own largest number, never by anything of
its neighbours, and the products are exact integers. So int8 vectors are the same bits in whatever
company, as those in fp32 are. (`DynamicQuantizeLinear` takes one scale from all rows: there a
user's vector depends on who else is in the batch.)

    scale[R] = max|x[R,K]| / 127              R tokens, K inputs, N outputs
    q[R,K]   = round(x / scale) + 128         uint8
    y[R,N]   = (q - 128) @ w[K,N] * columns[N] * scale[R]

`w` is int8 with one scale per output column, and of -64 to 64 only: processors without VNNI add
two products of uint8 and int8 in 16 bits that saturate, and 2 * 255 * 64 still fits. So the
products are exact on every processor, and no option has to be set where a bundle is served.
Activations are uint8 around 128 because ONNX Runtime multiplies int8 by int8, and uint8 by uint8,
several times slower. Standard operators only: the contrib operator that joins the last steps,
MatMulIntegerToFloat, was 2 to 3 % faster, too little for a graph that one runtime alone can read.

Only the decoder's layers are changed: nearly all work is there. Adapters, evidence and readout
run on few rows, and their errors would reach the vector undiluted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .inputs import Floats

Array = np.ndarray[Any, Any]

_SCOPES = "pkg.torch.onnx.name_scopes"  # torch's exporter notes which module a node came from
_LAYERS = "'model.decoder.layers."
_LARGEST, _ZERO_POINT = 127, 128  # of activations
_LARGEST_WEIGHT = 64
_CONSTANTS: dict[str, Array] = {  # shared by all products of a graph
    "int8_last_axis": np.array([-1], dtype=np.int64),
    "int8_step": np.array(1 / _LARGEST, dtype=np.float32),
    "int8_least_scale": np.array(1e-30, dtype=np.float32),  # a row of zeros stays one
    "int8_zero_point": np.array(_ZERO_POINT, dtype=np.uint8),
}


def decoder_to_int8(model: onnx.ModelProto) -> int:
    """Change the constant matrices of the decoder's layers, in place; returns how many."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    added = dict(_CONSTANTS)
    count = 0
    for node in graph.node:
        if _of_layers(node) and node.op_type == "MatMul" and node.input[1] in weights:
            weight = numpy_helper.to_array(weights[node.input[1]])
            nodes += _product(node, weight.shape[0])
            added |= _operands(node, weight)
            count += 1
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    new = (numpy_helper.from_array(array, name) for name, array in added.items())
    tensors = [tensor for tensor in (*graph.initializer, *new) if tensor.name in used]
    # no shapes of inner values: see `lean_graph`
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    return count


def quantise_columns(weight: Floats) -> tuple[np.ndarray[Any, np.dtype[np.int8]], Floats]:
    """weight[K,N] as int8 [K,N] of -64 to 64 and the scale of each column, float32 [N]."""
    largest = np.abs(weight).max(axis=0)
    scale: Floats = np.where(largest > 0, largest / _LARGEST_WEIGHT, 1.0).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def _of_layers(node: onnx.NodeProto) -> bool:
    return any(prop.key == _SCOPES and _LAYERS in prop.value for prop in node.metadata_props)


def _operands(node: onnx.NodeProto, weight: Floats) -> dict[str, Array]:
    """The weight as int8 with its scales, and the shape [R,K] that its input is seen in."""
    name = node.input[1]
    int8, scale = quantise_columns(weight)
    rows = np.array([-1, len(weight)], dtype=np.int64)
    return {
        f"{name}_int8": int8,
        f"{name}_scale": scale,
        f"{name}_width": np.array([weight.shape[1]], dtype=np.int64),
        f"int8_rows_of_{len(weight)}": rows,
    }


def _product(node: onnx.NodeProto, width: int) -> list[onnx.NodeProto]:
    """The nodes that stand for one MatMul of x[...,K] with a constant [K,N]; K is `width`."""
    (x, weight), (y,) = node.input, node.output
    nodes: list[onnx.NodeProto] = []

    def step(operator: str, inputs: list[str], out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [out], name=out, **attributes))
        return out

    absolute = step("Abs", [x], f"{y}_absolute")
    largest = step("ReduceMax", [absolute, "int8_last_axis"], f"{y}_largest", keepdims=1)
    exact = step("Mul", [largest, "int8_step"], f"{y}_exact_scale")
    scale = step("Max", [exact, "int8_least_scale"], f"{y}_scale")  # [...,1]

    # one pass over the numbers where Div, Round, Add and Cast are four; its scales are those of a
    # matrix's rows, so the tokens of all blocks stand under each other until the end
    per_row = step("Reshape", [scale, "int8_last_axis"], f"{y}_row_scale")  # [R]
    rows = step("Reshape", [x, f"int8_rows_of_{width}"], f"{y}_rows")  # [R,K]
    number = step("Shape", [per_row], f"{y}_row_number")
    middle = helper.make_tensor("value", onnx.TensorProto.UINT8, [1], [_ZERO_POINT])
    zero = step("ConstantOfShape", [number], f"{y}_row_zero", value=middle)  # [R]
    tokens = step("QuantizeLinear", [rows, per_row, zero], f"{y}_uint8", axis=0)

    operands = [tokens, f"{weight}_int8", "int8_zero_point"]
    total = step("MatMulInteger", operands, f"{y}_int32")  # [R,N]
    by_row = step("DequantizeLinear", [total, per_row], f"{y}_by_row", axis=0)
    product = step("Mul", [by_row, f"{weight}_scale"], f"{y}_product")

    leading = step("Shape", [x], f"{y}_leading", start=0, end=-1)
    shape = step("Concat", [leading, f"{weight}_width"], f"{y}_shape", axis=0)
    step("Reshape", [product, shape], y)  # [...,N]
    nodes[-1].metadata_props.extend(node.metadata_props)
    return nodes
