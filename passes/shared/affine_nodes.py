"""Affine operators of a graph as maps of their whole input, and nodes as terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Tensor,
    Weight,
    constant,
    label,
    operator,
    opset,
    rank,
    require,
    static_dim,
)
from graphpass.ir.refusal import OLD_OPSET, UNKNOWN_SIZE, needed

from .affine import FLOAT_TYPES, Affine, of_arithmetic
from .affine_ops import change_of
from .channels import Channels
from .maps import laid_out

_ARITHMETIC = ("Mul", "Add", "Sub", "Div")
_MOST_ELEMENTS = 1 << 16  # of a term: what is larger is no normalization


def affine_map(affine: Node, x: Tensor, term: Weight | None) -> Affine:
    """Return what an affine operator does to its input `x`, with as many axes as that has."""
    axes = needed(rank(x), f"the rank of '{x.name}' is not known", UNKNOWN_SIZE)
    require(opset(affine) >= 7, f"{label(affine)} is from before opset 7", OLD_OPSET)
    if term is None:
        scale = affine.inputs[1]
        size = static_dim(scale, 0) or static_dim(x, 1) or 0
        own = change_of(affine, None, Channels(size, 1 - axes, axes), f"'{x.name}'")
        return Affine(laid_out(own.factor, 1, axes), laid_out(own.shift, 1, axes))
    small = term.size <= _MOST_ELEMENTS and term.ndim <= axes and term.dtype in FLOAT_TYPES
    require(small and term.size, f"'{term.name}' is no map of '{x.name}'")
    for place, size in enumerate(term.shape, start=axes - term.ndim):
        fits = size == 1 or static_dim(x, place) == size
        require(fits, f"'{x.name}' may be smaller than '{term.name}'")
    values = term.astype(np.float64).reshape([1] * (axes - term.ndim) + list(term.shape))
    first = affine.inputs[0] is term.origin
    divides = operator(affine) == "Div"
    require(not (divides and (first or (values == 0).any())), f"{label(affine)} divides by it")
    with np.errstate(all="ignore"):
        change = of_arithmetic(affine.op, values, term_first=first)
    finite = np.isfinite(change.factor).all() and np.isfinite(change.shift).all()
    require(finite, f"{label(affine)} has parameters that are not finite")
    return change


def affine_operands(node: Node) -> tuple[Tensor, Weight | None] | None:
    """Return the input and the constant term of an affine operator; None where it is none."""
    if operator(node) == "BatchNormalization":
        return node.inputs[0], None
    if operator(node) not in _ARITHMETIC:
        return None
    for index, tensor in enumerate(node.inputs):
        weight = constant(tensor)
        if weight is not None:
            weight.origin = tensor
            return node.inputs[1 - index], weight
    return None


def rebuilt(node: Node, inputs: list[Any]) -> Op:
    """Return `node` as a term that reads `inputs` instead of its own."""
    return Op(node.op, *inputs, **node.attrs)


def operators_in(term: Any) -> int:
    """Count the operators of a term."""
    return 1 + sum(map(operators_in, term.inputs)) if isinstance(term, Op) else 0
