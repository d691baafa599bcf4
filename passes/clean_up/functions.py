"""Functions of the model: where a call lets more fit, what it computes takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphpass import Graph, Node, Survey, Tensor, constant, label, require
from graphpass.ir.nodes import Function
from graphpass.ir.questions import RefusedError
from graphpass.rewrite.survey import Refused, Several

from ..shared.inlined import inlined, is_settled

_MOST_NODES = 4096
# a runtime may have such an operator of its own, which it computes at once
_OF_RUNTIMES = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


class InlineFunctions(Survey):
    """f(x, …) = the body of f, with x, … in the place of its inputs.

    Where that can let more fit: it is called once or is one node, a constant goes in, or an
    attribute does. What a function computes of nothing but tensors, at several places, stays as
    somebody has written it, and the rules fit inside of it.
    """

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Refused | Several]:
        """Yield the calls in `scope`."""
        if not scope.own_functions:
            return
        for node in list(scope.nodes):
            called = scope.own_functions.get((node.domain or "", node.op))
            if called is None or node.domain in _OF_RUNTIMES or not _lets_more_fit(node, called):
                continue
            if not node.outputs or not is_settled(called):
                continue
            try:
                yield Several([node], _values(node, called))
            except RefusedError as refusal:
                yield Refused(node, refusal)


def _lets_more_fit(call: Node, called: Function) -> bool:
    return (
        called.calls == 1
        or len(called.nodes) <= 1
        or bool(call.attrs)
        or any(constant(tensor) is not None for tensor in call.inputs)
    )


def _values(call: Node, called: Function) -> list[tuple[Tensor, Any]]:
    require(len(called.nodes) <= _MOST_NODES, f"the function of {label(call)} is large")
    overload = call.proto.overload if call.proto is not None else ""
    require(overload == called.proto.overload, f"{label(call)} names one of several functions")
    for domain, version in called.opsets.items():
        here = call.graph.opsets.get(domain)
        require(
            here == version,
            f"the function of {label(call)} has opset {version} of '{domain or 'ai.onnx'}', and not"
            f" {here} as the graph around it",
        )
    inside = [node for scope in called.scopes()[1:] for node in scope.nodes]
    is_plain = not any(_refers(value) for node in inside for value in node.attrs.values())
    require(is_plain, f"a body in the function of {label(call)} has attributes of the function")
    given: list[Any] = [tensor if tensor.name else None for tensor in call.inputs]
    given += [None] * (len(called.inputs) - len(given))
    bound = {id(t): value for t, value in zip(called.inputs, given, strict=True)}
    made = inlined(called, call, bound, {**called.attrs, **call.attrs})
    pairs = zip(call.outputs, made, strict=False)
    return [(tensor, value) for tensor, value in pairs if tensor.name]


def _refers(value: Any) -> bool:
    return isinstance(value, gs.Node.AttributeRef) or (
        isinstance(value, onnx.AttributeProto) and bool(value.ref_attr_name)
    )


__all__ = ["InlineFunctions"]
