"""Attention head by head, as Apple's engine wants it: a matrix product for each head."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Beyond,
    Node,
    Op,
    Rule,
    Tensor,
    any_,
    attribute,
    constant,
    is_output,
    operator,
    opset,
    producer,
    rank,
    readers,
    static_dim,
)

_RANK, _HEADS = 4, 1  # of [batch, heads, positions, …]
_ONE_AXIS = 13  # from this opset on, Softmax works along one axis; Split takes sizes as an input
_MOST_STEPS = 8


class AttentionByHead(Rule):
    """MatMul(Softmax(q·k + m), v) = Concat over heads of MatMul(Softmax(q_h·k_h + m), v_h).

    For q, k, v of [batch, heads, …], whatever is between q·k and Softmax being the same for all
    heads. Each head was computed on its own before.
    """

    pattern = Op("MatMul", Op("Softmax", any_("scores"), bind="softmax"), any_("v"), bind="product")

    def rewrite(self, product: Node, softmax: Node, scores: Tensor, v: Tensor) -> Any:
        if opset(product) < _ONE_AXIS or attribute(softmax, "axis") not in (-1, _RANK - 1):
            return None
        path = _path(scores, product)
        if path is None:
            return None
        steps, (q, k) = path[:-1], path[-1].inputs
        heads = {static_dim(t, _HEADS) if rank(t) == _RANK else None for t in (q, k, v)}
        (count,) = heads if len(heads) == 1 else (None,)
        if count is None or count < 2:
            return None
        ones = np.ones(count, np.int64)
        parts = [Op("Split", t, ones, axis=_HEADS, outputs=count) for t in (q, k, v)]
        done = []
        for head in range(count):
            each: Any = Op("MatMul", parts[0][head], parts[1][head])
            for step in reversed(steps):
                first = constant(step.inputs[1]) is not None or _is_shared(step.inputs[1])
                other = step.inputs[1] if first else step.inputs[0]
                each = Op(step.op, each, other) if first else Op(step.op, other, each)
            weights = Op("Softmax", each, **softmax.attrs)
            done.append(Op("MatMul", weights, parts[2][head]))
        return Beyond(Op("Concat", *done, axis=_HEADS), path)


def _path(scores: Tensor, product: Node) -> list[Node] | None:
    """Return the nodes from `scores` up to the product of two computed tensors."""
    found: list[Node] = []
    while len(found) < _MOST_STEPS:
        node = producer(scores)
        if node is None or node.graph is not product.graph or len(readers(scores)) != 1:
            return None
        if is_output(scores):
            return None
        found.append(node)
        if operator(node) == "MatMul":
            computed = all(constant(tensor) is None for tensor in node.inputs)
            return found if computed else None
        if operator(node) not in ("Add", "Div", "Mul", "Sub"):
            return None
        shared = [tensor for tensor in node.inputs if _is_shared(tensor)]
        if len(shared) != 1 or (operator(node) == "Div" and shared[0] is node.inputs[0]):
            return None
        scores = next(tensor for tensor in node.inputs if tensor is not shared[0])
    return None


def _is_shared(tensor: Tensor) -> bool:
    """Whether what is added or multiplied is the same for all heads."""
    weight = constant(tensor)
    if weight is not None:
        return weight.ndim < _RANK - _HEADS or (weight.ndim <= _RANK and weight.shape[-3] == 1)
    axes = rank(tensor)
    return axes is not None and (
        axes < _RANK - _HEADS or (axes <= _RANK and static_dim(tensor, axes - 3) == 1)
    )


__all__ = ["AttentionByHead"]
