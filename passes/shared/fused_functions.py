"""GELU and LayerNormalization written out in smaller operators, which runtimes join again.

Exporters write them so below opset 20 and 17. A runtime that finds all of one computes it as one
operator; with its last factor or shift folded into the next layer there is nothing to find.
"""

from __future__ import annotations

import contextlib

from graphpass import Node, Tensor, axes_of, constant, label, operator, producer, rank, require
from graphpass.ir.questions import RefusedError

# a deviation: the mean of squares, a small shift, the root, perhaps inverted, in another type
_ROOTS = ("Sqrt", "Pow")
_BETWEEN = (*_ROOTS, "Add", "Cast")
_INVERSES = ("Reciprocal", "Div")
_MOST_BETWEEN = len(_BETWEEN) + len(_INVERSES)  # each of them once at most


def require_whole_function(affine: Node, x: Tensor) -> None:
    """Refuse to take `affine`, which is applied to `x`, away from a GELU or a normalization."""
    name = ""
    if _halves(affine) and _is_x_times_one_plus_erf(producer(x)):
        name = "a GELU"
    elif _is_divided_by_its_deviation(_scaled_or_shifted(affine, x)):
        name = "a layer normalization"
    require(
        not name, f"{label(affine)} ends {name}, which runtimes compute as one operator while whole"
    )


def _is_x_times_one_plus_erf(node: Node | None) -> bool:
    """Whether this is x·(1 + erf(…)) or x·(1 + tanh(…)), as Hendrycks & Gimpel (2016) have it."""
    if node is None or operator(node) != "Mul":
        return False
    sums = [producer(tensor) for tensor in node.inputs]
    return any(
        one is not None
        and operator(one) == "Add"
        and any(_comes_from(tensor, "Erf", "Tanh") for tensor in one.inputs)
        and any(constant(tensor) is not None for tensor in one.inputs)
        for one in sums
    )


def _halves(affine: Node) -> bool:
    half = {"Mul": 0.5, "Div": 2.0}.get(operator(affine))
    held = [term for term in map(constant, affine.inputs) if term is not None]
    return half is not None and any((term.array() == half).all() for term in held)


def _scaled_or_shifted(affine: Node, x: Tensor) -> Node | None:
    """Return what `affine` multiplies by the learned factors, or adds the shifts to after that."""
    node = producer(x)
    if operator(affine) == "Mul":
        return node
    if operator(affine) not in ("Add", "Sub"):
        return None
    scaled = None if node is None or operator(node) != "Mul" else _only_varying(node)
    return node if scaled is None else producer(scaled)


def _is_divided_by_its_deviation(node: Node | None) -> bool:
    """Whether this is d/√(mean(…) + ε) or d·(1/√(mean(…) + ε)), with means over the last axis."""
    if node is None or operator(node) not in ("Div", "Mul"):
        return False
    return any(_is_a_deviation(tensor) for tensor in node.inputs)


def _is_a_deviation(tensor: Tensor) -> bool:
    rooted = False
    for _ in range(_MOST_BETWEEN):
        node = producer(tensor)
        if node is None:
            return False
        if operator(node) == "ReduceMean":
            return rooted and _is_over_the_last_axis(node)
        if operator(node) not in (*_BETWEEN, *_INVERSES):
            return False
        rooted = rooted or operator(node) in _ROOTS
        varying = _only_varying(node)
        if varying is None:
            return False
        tensor = varying
    return False


def _only_varying(node: Node) -> Tensor | None:
    varying = [tensor for tensor in node.inputs if constant(tensor) is None]
    return varying[0] if len(varying) == 1 else None


def _is_over_the_last_axis(mean: Node) -> bool:
    with contextlib.suppress(RefusedError):  # axes that are computed are nobody's pattern
        return axes_of(mean) in ([-1], [(rank(mean.inputs[0]) or 0) - 1])
    return False


def _comes_from(tensor: Tensor, *operators: str) -> bool:
    node = producer(tensor)
    return node is not None and operator(node) in operators
