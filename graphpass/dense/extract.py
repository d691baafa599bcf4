"""Cut a part out of a model: from some of its tensors to others, as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

# element type and dims; None for a dimension that may have any size
Declared = tuple[int, Sequence[int | None]]


def cut(
    model: onnx.ModelProto, starts: Mapping[str, Declared], ends: Sequence[str]
) -> onnx.ModelProto:
    """Return what computes `ends` from `starts` (and from inputs of `model`, where needed).

    Weights that `model` refers to are referred to. Nothing is said of the shapes of `ends`.
    """
    nodes, needed = _between(model.graph, set(starts), ends)
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    graph = part.graph
    graph.name = model.graph.name or "part"
    graph.node.extend(nodes)
    graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    graph.sparse_initializer.extend(
        t for t in model.graph.sparse_initializer if t.values.name in needed
    )
    for name, (kind, dims) in starts.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, list(dims)))
    graph.input.extend(
        value for value in model.graph.input if value.name in needed and value.name not in starts
    )
    for name in ends:
        graph.output.append(onnx.ValueInfoProto(name=name))
    _copy_types(model.graph, part.graph)
    return part


def _between(
    graph: onnx.GraphProto, starts: set[str], ends: Sequence[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    needed = set(ends)
    kept = []
    for node in reversed(graph.node):
        if any(name in needed and name not in starts for name in node.output):
            kept.append(node)
            needed.update(name for name in _reads(node) if name)
    return kept[::-1], needed


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        bodies: Iterable[onnx.GraphProto] = attribute.graphs
        if attribute.HasField("g"):
            bodies = [attribute.g]
        for body in bodies:
            for inner in body.node:
                yield from _reads(inner)
            yield from (value.name for value in body.output)


def _copy_types(whole: onnx.GraphProto, part: onnx.GraphProto) -> None:
    """Declare the element types of the outputs, where they are known."""
    known = {value.name: value.type for value in (*whole.output, *whole.value_info)}
    for value in part.output:
        if value.name in known:
            value.type.CopyFrom(known[value.name])
            value.type.tensor_type.ClearField("shape")
