"""Every graph and node of a model, in subgraphs and functions too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def all_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and every graph inside an attribute."""
    stack = [model.graph]
    for function in model.functions:
        stack.extend(subgraphs(function.node))
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(subgraphs(graph.node))


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node."""
    for graph in all_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def label_of(node: onnx.NodeProto) -> str:
    """Name a node for a reader, as `questions.label` does."""
    if node.name:
        return f"{node.op_type} '{node.name}'"
    return f"{node.op_type} of '{node.output[0]}'" if node.output else node.op_type


def subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Yield the bodies that `nodes` have as attributes."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                yield from attribute.graphs
