"""GELU and LayerNormalization written out in smaller operators, which runtimes join again.

Exporters write them so below opset 20 and 17. A runtime that finds all of one computes it as one
operator; with its last factor or shift folded into the next layer there is nothing to find.
"""

from __future__ import annotations

from graphpass import (
    Node,
    Tensor,
    attribute,
    constant,
    label,
    operator,
    producer,
    rank,
    require,
)

_BETWEEN = ("Sqrt", "Reciprocal", "Pow", "Cast", "Add", "Div")


def require_not_the_end_of_a_function(affine: Node, x: Tensor) -> None:
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
    if node is not None and operator(node) == "Mul":
        varying = [tensor for tensor in node.inputs if constant(tensor) is None]
        if len(varying) == 1:
            return producer(varying[0])
    return node


def _is_divided_by_its_deviation(node: Node | None) -> bool:
    """Whether this is d/√(mean(…) + ε) or d·(1/√(mean(…) + ε)), with means over the last axis."""
    if node is None or operator(node) not in ("Div", "Mul"):
        return False
    return any(_is_a_deviation(tensor) for tensor in node.inputs)


def _is_a_deviation(tensor: Tensor) -> bool:
    rooted = False
    for _ in range(len(_BETWEEN)):
        node = producer(tensor)
        if node is None:
            return False
        if operator(node) == "ReduceMean":
            return rooted and _is_over_the_last_axis(node)
        if operator(node) not in _BETWEEN:
            return False
        rooted = rooted or operator(node) in ("Sqrt", "Pow")
        varying = [one for one in node.inputs if constant(one) is None]
        if len(varying) != 1:
            return False
        tensor = varying[0]
    return False


def _is_over_the_last_axis(mean: Node) -> bool:
    axes = attribute(mean, "axes")
    if axes is None and len(mean.inputs) > 1:
        held = constant(mean.inputs[1])
        axes = None if held is None else held.array().tolist()
    return axes is not None and list(axes) in ([-1], [(rank(mean.inputs[0]) or 0) - 1])


def _comes_from(tensor: Tensor, *operators: str) -> bool:
    node = producer(tensor)
    return node is not None and operator(node) in operators
