"""A model as what a page draws: nodes, how they are grouped, what they read and give.

Nodes are grouped by where they stand in the network, as exporters tell it: by the module path in
their metadata or by the slashes in their names, and by the body that holds them. What is still a
long row is cut into parts, so that a page never has to lay out thousands of boxes at once.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
from onnx import AttributeProto

from graphpass.ir import operators
from graphpass.ir.inference import infer_shapes
from graphpass.ir.operators import Trait
from graphpass.ir.proto_walk import label_of
from graphpass.ir.type_text import tensor_text, type_text
from graphpass.storage.wire import tensors

_SCOPES = "pkg.torch.onnx.name_scopes"
_PART = 40  # nodes of one group that are shown at once
_SHOWN_VALUES = 12

_KINDS = (
    ("conv", Trait.CONTRACTION),
    ("norm", Trait.NORMALIZATION),
    ("move", Trait.MOVEMENT | Trait.SIZES_ONLY | Trait.SOURCE),
    ("act", Trait.ELEMENTWISE | Trait.BROADCASTING | Trait.ALONG_AXIS),
)


def pair(before: onnx.ModelProto, after: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return two skeletons as plain data, nodes of one name in the same group of both."""
    groups = {label: group for label, group in _groups(before).items() if group}
    return [_drawn(before, groups), _drawn(after, groups)]


def _groups(model: onnx.ModelProto) -> dict[str, list[str]]:
    return {label_of(node): [*body, *_scope(node)] for node, body in _nodes(model.graph, ())}


def _drawn(model: onnx.ModelProto, groups: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return a skeleton as plain data: `nodes`, `inputs` and `outputs` with their types.

    `groups`: where nodes stand that do not say it themselves, by label.
    """
    inferred = infer_shapes(model).graph
    types = {
        value.name: type_text(value.type)
        for value in (*inferred.value_info, *inferred.output, *inferred.input)
    }
    weights = {tensor.name: tensor_text(tensor) for tensor in tensors(model)}
    nodes = [
        _node(node, body, types, weights, dict(_versions(model)))
        for node, body in _nodes(model.graph, ())
    ]
    for node in nodes:
        node["group"] = list(node["group"] or groups.get(node["label"], ()))
    _leave_out_lone_groups(nodes)
    _cut_long_rows(nodes)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        "nodes": nodes,
        "inputs": [[v.name, types[v.name]] for v in model.graph.input if v.name not in constants],
        "outputs": [[v.name, types[v.name]] for v in model.graph.output],
    }


def _versions(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    yield from ((entry.domain, entry.version) for entry in model.opset_import)


def _nodes(
    graph: onnx.GraphProto, body: tuple[str, ...]
) -> Iterator[tuple[onnx.NodeProto, tuple[str, ...]]]:
    """Yield every node with the bodies around it, those of bodies before the node itself."""
    for node in graph.node:
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for inner in bodies:
                yield from _nodes(inner, (*body, f"{label_of(node)} {attribute.name}"))
        yield node, body


def _node(
    node: onnx.NodeProto,
    body: tuple[str, ...],
    types: dict[str, str],
    weights: dict[str, str],
    versions: dict[str, int],
) -> dict[str, Any]:
    captured = [name for a in node.attribute if a.HasField("g") for name in _captured(a.g)]
    kind = types.get(node.output[0], "") if node.output else ""
    return {
        "op": node.op_type,
        "label": label_of(node),
        "group": [*body, *_scope(node)],
        "kind": _kind(node, versions),
        "inputs": [name for name in (*node.input, *captured) if name and name not in weights],
        "outputs": [name for name in node.output if name],
        "type": kind,
        "shape": kind.split("]")[0] + "]" if "]" in kind else "",
        "weights": [f"{name} {weights[name]}" for name in node.input if name in weights],
        "attributes": [_attribute_text(attribute) for attribute in node.attribute],
    }


def _captured(graph: onnx.GraphProto) -> list[str]:
    return [name for node, _ in _nodes(graph, ()) for name in node.input]


def _kind(node: onnx.NodeProto, versions: dict[str, int]) -> str:
    row = operators.row(node.op_type, node.domain, versions.get(node.domain))
    if row is None:
        return "other"
    return next((kind for kind, traits in _KINDS if row.traits & traits), "other")


def _scope(node: onnx.NodeProto) -> list[str]:
    """Return the modules that a node stands in, outermost first."""
    told = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    if told:
        try:
            scopes = [str(scope) for scope in ast.literal_eval(told)]
        except (ValueError, SyntaxError, TypeError):
            scopes = []
        return [scope for scope in scopes[:-1] if scope]
    return [part for part in node.name.split("/")[:-1] if part]


def _leave_out_lone_groups(nodes: Sequence[dict[str, Any]]) -> None:
    """Let a node that is alone in its module stand in the module around it."""
    sizes: Counter[tuple[str, ...]] = Counter()
    for node in nodes:
        group = tuple(node["group"])
        sizes.update(group[:depth] for depth in range(1, len(group) + 1))
    for node in nodes:
        while node["group"] and sizes[tuple(node["group"])] == 1:
            node["group"].pop()


def _cut_long_rows(nodes: Sequence[dict[str, Any]]) -> None:
    """Put the nodes of a group that holds many into parts of it, in the order of the graph."""
    sizes = Counter(tuple(node["group"]) for node in nodes)
    seen: Counter[tuple[str, ...]] = Counter()
    for node in nodes:
        group = tuple(node["group"])
        if sizes[group] > _PART:
            part, parts = seen[group] // _PART + 1, -(-sizes[group] // _PART)
            node["group"].append(f"part {part} of {parts}")
            seen[group] += 1


def _attribute_text(attribute: AttributeProto) -> str:
    if attribute.ref_attr_name:
        return f"{attribute.name} = @{attribute.ref_attr_name}"
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return f"{attribute.name}: a body"
    if attribute.type == AttributeProto.TENSOR:
        return f"{attribute.name}: {tensor_text(attribute.t)}"
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return f"{attribute.name} = {value.decode(errors='replace')}"
    if isinstance(value, (list, tuple)) or hasattr(value, "__len__"):
        listed = [str(item) for item in list(value)[:_SHOWN_VALUES]]
        more = ", …" if len(value) > _SHOWN_VALUES else ""
        return f"{attribute.name} = [{', '.join(listed)}{more}]"
    return f"{attribute.name} = {value}"
