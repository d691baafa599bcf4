"""Windows joined into one model, under names of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import onnx
from onnx import helper

from graphpass.validate.window.prepare import Prepared, inputs_of

Side = Literal["before", "after"]


def joined(
    items: Sequence[Prepared],
    owners: Sequence[Prepared],
    sides: Sequence[Side] = ("before", "after"),
    *,
    bounded: bool = True,
) -> onnx.ModelProto:
    """Return one model of all windows; `owners`: for each, the one whose inputs it shares.

    `bounded`: with the magnitudes that the bound is made of.
    """
    first = items[0].window.before
    model = onnx.ModelProto(ir_version=first.ir_version)
    model.opset_import.extend(first.opset_import)
    graph = model.graph
    graph.name = "windows"
    for item, owner in zip(items, owners, strict=True):
        inputs = inputs_of(item.window)
        if owner is item:
            for name, value in inputs.items():
                elem_type = value.type.tensor_type.elem_type
                sizes = [None] * len(item.shapes[name])
                graph.input.append(
                    helper.make_tensor_value_info(item.mark + name, elem_type, sizes)
                )
        pairs = zip(sorted(inputs), sorted(owner.shapes), strict=True)
        fed = {name: owner.mark + theirs for name, theirs in pairs}
        for side in sides:
            proto = getattr(item.window, side).graph
            _append(graph, proto, proto.node, f"{item.mark}{side}/", fed)
        if bounded and item.magnitudes is not None:
            proto = item.window.before.graph
            _append(graph, proto, item.magnitudes, f"{item.mark}before/", fed, bare=True)
            graph.output.add(name=f"{item.mark}before/abs/{item.window.output}")
        for side in sides:
            graph.output.add(name=f"{item.mark}{side}/{item.window.output}")
    return model


def _append(
    graph: onnx.GraphProto,
    proto: onnx.GraphProto,
    nodes: Sequence[onnx.NodeProto],
    mark: str,
    fed: Mapping[str, str],
    *,
    bare: bool = False,
) -> None:
    """Add a window's nodes under names of their own; `bare`: its weights are there already.

    `fed`: what its inputs are called.
    """

    def renamed(name: str) -> str:
        return fed.get(name, mark + name) if name else name

    for node in nodes:
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.name = f"{mark}@{len(graph.node)}"  # by which an error tells the window
        copied.input[:] = [renamed(name) for name in node.input]
        copied.output[:] = [renamed(name) for name in node.output]
        for attribute in copied.attribute:
            for body in (attribute.g, *attribute.graphs):
                _rename_outer(body, renamed)
    if bare:
        return
    for tensor in proto.initializer:
        held = graph.initializer.add()
        held.CopyFrom(tensor)
        held.name = renamed(tensor.name)


def _rename_outer(body: onnx.GraphProto, renamed: Callable[[str], str]) -> None:
    """Rename what a body reads from outside; names of its own stay."""
    own = {value.name for value in (*body.input, *body.initializer)}
    own.update(name for node in body.node for name in node.output)

    def outer(name: str) -> str:
        return name if name in own else renamed(name)

    for node in body.node:
        node.input[:] = [outer(name) for name in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename_outer(inner, outer)
    for value in body.output:
        value.name = outer(value.name)
