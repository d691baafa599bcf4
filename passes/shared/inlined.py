"""A body of an If, Loop or function in the place of the node that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphpass import Graph, Node, Op, Tensor, Weight, label, producer, require
from graphpass.rewrite.pattern import Body


def inlined(
    body: Graph,
    node: Node,
    bound: Mapping[int, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Return the outputs of a body as terms over what it reads from outside.

    `bound`: what its inputs are, by id. `parameters`: what its attributes may refer to, by name.
    """
    made: dict[int, Any] = dict(bound or {})
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
        is_plain = all(_makes_its_outputs(scope) for own in bodies for scope in own.scopes())
        require(is_plain, f"a body of {label(inner)} in {label(node)} has outputs of outside")
        opaque = any(
            isinstance(value, onnx.AttributeProto)
            or (isinstance(value, gs.Node.AttributeRef) and parameters is None)
            for value in inner.attrs.values()
        )
        require(not opaque, f"{label(inner)} in the body of {label(node)} cannot be moved")
        attributes: dict[str, Any] = {
            key: Body(value, made) if isinstance(value, Graph) else value
            for key, value in inner.attrs.items()
        }
        for key, value in inner.attrs.items():
            if isinstance(value, gs.Node.AttributeRef) and parameters is not None:
                attributes[key] = parameters.get(value.name)
        term = Op(
            inner.op,
            *(operand(tensor) for tensor in inner.inputs),
            domain=inner.domain or "",
            outputs=len(inner.outputs),
            like=inner,
            **attributes,
        )
        for index, tensor in enumerate(inner.outputs):
            made[id(tensor)] = term if len(inner.outputs) == 1 else term[index]
    return [operand(tensor) for tensor in body.outputs]


def is_settled(body: Graph) -> bool:
    """Whether no rewrite of this round is under way inside: the next round sees what came of it."""
    scopes = body.scopes()
    there = {id(node) for scope in scopes for node in scope.nodes}
    inside = set(map(id, scopes))
    read = [t for scope in scopes for node in scope.nodes for t in node.inputs]
    sources = map(producer, (*read, *(t for scope in scopes for t in scope.outputs)))
    return all(node.outputs for scope in scopes for node in scope.nodes) and all(
        source is None or id(source) in there or id(source.graph) not in inside
        for source in sources
    )


def _makes_its_outputs(body: Graph) -> bool:
    """Whether no output of a body is a tensor of outside, whose name it could not follow."""
    made = {id(tensor) for node in body.nodes for tensor in node.outputs}
    made.update(id(tensor) for tensor in (*body.inputs, *body.initializers))
    return all(id(tensor) in made for tensor in body.outputs)


__all__ = ["inlined", "is_settled"]
