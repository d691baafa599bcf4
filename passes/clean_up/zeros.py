"""x + 0: nothing but the sign of a zero, where nothing that reads it can tell."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    constant,
    dtype,
    is_output,
    label,
    operator,
    opset,
    readers,
    require,
)
from graphpass.ir.operators import Trait, traits

from ..shared.fused_functions import require_whole_function
from .neutral import PATTERN_ELEMENTS, keeps_shape
from .products import GEMM_MAY_LACK_C

_MOST_LOOKED_AT = 256  # nodes below an addition: what has not lost the sign by then keeps it

# those that add their last input, by its place: a sum with what is no −0 is no −0
_ADDED = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LayerNormalization": 2}


class DropZero(Rule):
    """x + 0 = x = x − (−0), where nothing that reads it can tell 0 from −0.

    −0 + 0 is 0. The nodes below are followed until each of them gives the same for both zeros
    (a Softmax, a sum with a constant that has no −0), an output of the graph or a division by
    what may be zero comes first, or there are too many.
    """

    pattern = Op(("Add", "Sub"), any_("x"), const("zero", quiet=True), commutative=True, bind="f")

    def rewrite(self, f: Node, x: Tensor, zero: Weight) -> Any:
        is_right = f.inputs[0] is x
        if opset(f) < 7 or (operator(f) == "Sub" and not is_right):
            return None
        if zero.size > PATTERN_ELEMENTS or not keeps_shape(x, zero) or zero.array().any():
            return None
        kind = dtype(x)
        if kind is None or kind.kind != "f":
            return None  # of integers there is one zero: another rule
        require_whole_function(f, x)
        told = _told_apart(f.outputs[0])
        require(told is None, f"{told} could tell −0 from the 0 that {label(f)} makes of it")
        return x


class DropZeroBias(Rule):
    """Conv(x, W, 0) = Conv(x, W), where nothing that reads it can tell 0 from −0; so of Gemm.

    Runtimes that compute float16 in float32 fuse and rearrange a layer less for its bias, which
    many layers share where it is 0.
    """

    pattern = Op(
        ("Conv", "ConvTranspose", "Gemm"),
        any_("x"),
        any_("weight"),
        const("bias", quiet=True),
        bind="f",
    )

    def rewrite(self, f: Node, x: Tensor, weight: Tensor, bias: Weight) -> Any:
        if operator(f) == "Gemm" and opset(f) < GEMM_MAY_LACK_C:
            return None
        if bias.size > PATTERN_ELEMENTS or bias.dtype.kind != "f" or bias.array().any():
            return None
        told = _told_apart(f.outputs[0])
        require(told is None, f"{told} could tell −0 from the 0 that the bias of {label(f)} makes")
        return Op(f.op, x, weight, **f.attrs)


def _told_apart(tensor: Tensor) -> str | None:
    """Return what tells 0 from −0 in `tensor`, as words of a sentence; None if nothing does."""
    waiting = deque([tensor])
    seen: set[int] = set()
    while waiting:
        value = waiting.popleft()
        if is_output(value):
            return f"the output '{value.name}'"
        for reader in readers(value):
            if id(reader) in seen or _loses(reader, value):
                continue
            if len(seen) >= _MOST_LOOKED_AT or not _passes_on(reader, value, tensor):
                return label(reader)
            seen.add(id(reader))
            waiting.extend(output for output in reader.outputs if output.name)
    return None


def _loses(reader: Node, value: Tensor) -> bool:
    op = operator(reader)
    if Trait.LOSES_SIGN_OF_ZERO in traits(op):
        return True
    if op == "Cast":
        return attribute(reader, "to") not in (1, 10, 11, 16)  # integers and booleans
    if op in ("QuantizeLinear", "DynamicQuantizeLinear"):
        kind = dtype(reader.outputs[0])
        return reader.inputs[0] is value and kind is not None and kind.kind in "iu"
    if op in ("Add", "Sub") and len(reader.inputs) == 2:
        other = reader.inputs[0 if reader.inputs[1] is value else 1]
        return (op == "Add" or other is reader.inputs[0]) and _has_no_negative_zero(other)
    place = _ADDED.get(op)
    if place is None or len(reader.inputs) <= place or reader.inputs[place] is value:
        return False
    if op == "Gemm" and attribute(reader, "beta") <= 0:
        return False
    return _has_no_negative_zero(reader.inputs[place])


def _has_no_negative_zero(tensor: Tensor) -> bool:
    weight = constant(tensor)
    if weight is None or weight.size > PATTERN_ELEMENTS or weight.dtype.kind != "f":
        return False
    array = weight.array()
    return not (np.signbit(array) & (array == 0)).any()


def _passes_on(reader: Node, value: Tensor, origin: Tensor) -> bool:
    """Whether the result differs at most in the sign of zeros."""
    if reader.graph is not origin.inputs[0].graph:
        return False
    op = operator(reader)
    if op == "Div":  # x / ±0 is ±infinity, or not a number
        divisor = constant(reader.inputs[1])
        return (
            divisor is not None and divisor.size <= PATTERN_ELEMENTS and bool(divisor.array().all())
        )
    return Trait.PASSES_SIGN_OF_ZERO in traits(op)


ZERO_RULES = (DropZero(), DropZeroBias())

__all__ = ["ZERO_RULES", "DropZero"]
