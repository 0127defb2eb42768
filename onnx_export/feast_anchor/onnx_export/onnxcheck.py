"""What an ONNX file would make ONNX Runtime do, read before ONNX Runtime sees it.

A graph can name files to read (external data) and operators to load (domains). Both are checked
here against the bundle's rules without the `onnx` package, which serving machines do not have:
protobuf itself parses the file against the few fields that matter. Field numbers are those of
onnx.proto3 (ONNX IR 1.18); fields not declared here are skipped by the parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from .errors import BundleError

ALLOWED_DOMAINS = frozenset({"", "ai.onnx"})

# message -> field -> (number, type, repeated); a type in capitals is another message
_SCHEMA: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Model": {
        "graph": (7, "Graph", False),
        "opset_import": (8, "OpsetId", True),
        "functions": (25, "Function", True),
    },
    "OpsetId": {"domain": (1, "string", False)},
    "Function": {
        "node": (7, "Node", True),
        "opset_import": (9, "OpsetId", True),
        "domain": (10, "string", False),
        "attribute_proto": (11, "Attribute", True),
    },
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "sparse_initializer": (15, "SparseTensor", True),
    },
    "Node": {
        "op_type": (4, "string", False),
        "attribute": (5, "Attribute", True),
        "domain": (7, "string", False),
    },
    "Attribute": {
        "t": (5, "Tensor", False),
        "g": (6, "Graph", False),
        "tensors": (10, "Tensor", True),
        "graphs": (11, "Graph", True),
        "sparse_tensor": (22, "SparseTensor", False),
        "sparse_tensors": (23, "SparseTensor", True),
    },
    "SparseTensor": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Tensor": {"name": (8, "string", False), "external_data": (13, "Entry", True)},
    "Entry": {"key": (1, "string", False), "value": (2, "string", False)},
}


def check_graph(path: Path, listed_files: frozenset[str]) -> None:
    """Refuse a graph that reads files outside its folder or uses operators we did not allow.

    Args:
        path: the `.onnx` file.
        listed_files: names of the files whose SHA-256 stands in the manifest.

    Raises:
        BundleError: not an ONNX file, an op domain outside `ALLOWED_DOMAINS`, or external data
            that is absolute, leaves the folder or is not listed in the manifest.
    """
    model = _parse(path)
    for domain in _domains(model):
        if domain not in ALLOWED_DOMAINS:
            raise BundleError(
                f"{path.name} uses operators of domain {domain!r}, allowed are "
                f"{sorted(ALLOWED_DOMAINS)}; export it with standard ONNX operators only"
            )
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                _check_location(path, tensor.name, entry.value, listed_files)


def _check_location(path: Path, tensor: str, location: str, listed: frozenset[str]) -> None:
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not target.is_relative_to(folder):
        raise BundleError(
            f"{path.name} keeps tensor {tensor!r} outside the bundle, at {location!r}; "
            "external data must lie inside the bundle's folder"
        )
    if target.relative_to(folder).as_posix() not in listed:
        raise BundleError(
            f"{path.name} reads external data {location!r}, which the manifest does not list; "
            "export the bundle again"
        )


def _parse(path: Path) -> Any:
    model = _message_class("Model")()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise BundleError(f"{path} is not an ONNX file: {error}") from error
    if not model.HasField("graph"):
        raise BundleError(f"{path} is not an ONNX file: it holds no graph")
    return model


def _domains(model: Any) -> Iterator[str]:
    for holder in (model, *model.functions):
        yield from (opset.domain for opset in holder.opset_import)
    yield from (function.domain for function in model.functions)
    yield from (node.domain for node in _nodes(model))


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    defaults = [attribute for function in model.functions for attribute in function.attribute_proto]
    for attributes in (defaults, *(node.attribute for node in _nodes(model))):
        for attribute in attributes:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _graphs(model: Any) -> Iterator[Any]:
    """The main graph and every subgraph (bodies of If, Loop, Scan), also those in functions."""
    waiting = [model.graph]
    roots = [node for function in model.functions for node in function.node]
    waiting += [graph for node in roots for graph in _subgraphs(node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for node in graph.node for inner in _subgraphs(node)]


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="feast_anchor_onnx.proto", package="feast_anchor_onnx", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _SCHEMA.items():
        descriptor = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = descriptor.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            field.type = kinds.TYPE_STRING if kind == "string" else kinds.TYPE_MESSAGE
            if kind != "string":
                field.type_name = f".feast_anchor_onnx.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _message_class(name: str) -> Any:
    descriptor = _pool().FindMessageTypeByName(f"feast_anchor_onnx.{name}")
    return message_factory.GetMessageClass(descriptor)
