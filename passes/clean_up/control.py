"""If whose condition is known: the nodes of the branch that runs take its place."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphpass import Graph, Node, Op, Rule, Tensor, Weight, const, label, require

_MOST_NODES = 4096


class InlineIf(Rule):
    """If(true, f, g) = f, If(false, f, g) = g."""

    pattern = Op("If", const("condition", quiet=True), bind="node", all_outputs=True)

    def rewrite(self, node: Node, condition: Weight) -> Any:
        branch = node.attrs["then_branch" if condition.array().all() else "else_branch"]
        if not isinstance(branch, Graph) or condition.size != 1:
            return None
        require(len(branch.nodes) <= _MOST_NODES, f"the branch of {label(node)} is large")
        return inlined(branch, node)


def inlined(body: Graph, node: Node) -> list[Any]:
    """Return the outputs of a body as terms over what it reads from outside."""
    made: dict[int, Any] = {}
    for tensor in body.initializers:
        weight = tensor.weight
        made[id(tensor)] = Weight(tensor.name, weight.shape, weight.data_type, weight.array)
        if weight.tensor is not None:
            made[id(tensor)] = Weight.of(weight.tensor)

    def operand(tensor: Tensor) -> Any:
        if tensor.name == "":
            return None
        return made.get(id(tensor), tensor)

    for inner in body.nodes:
        bodies = list(body.subgraphs_of(inner))
        require(not bodies, f"{label(inner)} in the branch of {label(node)} has bodies of its own")
        opaque = any(
            isinstance(value, (onnx.AttributeProto, gs.Node.AttributeRef))
            for value in inner.attrs.values()
        )
        require(not opaque, f"{label(inner)} in the branch of {label(node)} cannot be moved")
        term = Op(
            inner.op,
            *(operand(tensor) for tensor in inner.inputs),
            domain=inner.domain or "",
            outputs=len(inner.outputs),
            **inner.attrs,
        )
        for index, tensor in enumerate(inner.outputs):
            made[id(tensor)] = term if len(inner.outputs) == 1 else term[index]
    return [operand(tensor) for tensor in body.outputs]


CONTROL_RULES = (InlineIf(),)

__all__ = ["CONTROL_RULES"]
