"""The original with its logits for outputs: what a network without its last Softmax must give.

Made from the original alone, node by node, so that it can judge whatever takes a Softmax away.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from graphpass.ir.proto_walk import all_graphs

_SOFTMAXES = ("Softmax", "LogSoftmax")
_VIEWS = ("Identity", "Flatten", "Reshape")
_STANDARD = ("", "ai.onnx")


def softmax_outputs(model: onnx.ModelProto) -> list[str]:
    """Return the outputs that are a Softmax or LogSoftmax, reshaped or not."""
    makers = _makers(model)
    return [value.name for value in model.graph.output if _chain(makers, value.name)]


def with_logits(model: onnx.ModelProto, outputs: Collection[str]) -> onnx.ModelProto:
    """Return a copy of `model` in which `outputs` are what their Softmax reads.

    What else reads a Softmax goes on reading it: its own nodes are copied for the outputs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken = {name for node in copy.graph.node for name in (*node.input, *node.output)}
    for output in outputs:
        chain = _chain(_makers(copy), output)
        if not chain:
            continue
        softmax, *views = reversed(chain)
        kept = _fresh(f"{output}.softmax", taken)
        _rename(copy, output, kept)
        source = softmax.input[0]
        added = []
        for index, view in enumerate(views or [onnx.helper.make_node("Identity", [source], [""])]):
            node = onnx.NodeProto()
            node.CopyFrom(view)
            node.name = _fresh(f"{node.name or node.op_type}.logits", taken)
            node.input[0] = source
            source = _fresh(f"{output}.logits", taken) if index < len(views) - 1 else output
            node.output[0] = source
            added.append(node)
        copy.graph.node.extend(added)
    return copy


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output if name}


def _chain(makers: dict[str, onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the nodes from the one that makes `output` up to a Softmax; none where none is."""
    chain = []
    node = makers.get(output)
    while node is not None and node.domain in _STANDARD:
        chain.append(node)
        if node.op_type in _SOFTMAXES:
            return chain
        if node.op_type not in _VIEWS:
            return []
        node = makers.get(node.input[0])
    return []


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Let nodes make and read `new` instead of `old`; outputs of the graph keep their names."""
    for graph in all_graphs(model):
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new


def _fresh(base: str, taken: set[str]) -> str:
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


__all__ = ["softmax_outputs", "with_logits"]
