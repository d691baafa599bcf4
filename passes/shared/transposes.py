"""Transposes, and what computes the same in either layout (NHWC, NCHW) that they lead to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Tensor,
    Weight,
    attribute,
    axes_of,
    constant,
    is_output,
    operator,
    opset,
    rank,
    readers,
)
from graphpass.ir.operators import Trait, has, named
from graphpass.ir.questions import integers
from graphpass.ir.shapes import sizes
from graphpass.ir.sizes import Size, product

from .heads import ALONG_AXIS, BROADCAST, POINTWISE

# not ReduceMax and ReduceMin: what they make of NaN depends on the layout, in ONNX Runtime
_REDUCTIONS = named(Trait.REDUCTION | Trait.KEEPS_NAN)
_ALONG_AXIS = tuple(op for op in ALONG_AXIS if op != "LpNormalization")
_AGNOSTIC = frozenset((*POINTWISE, *BROADCAST, *_REDUCTIONS, *_ALONG_AXIS, "Concat", "Pad"))
_FEW_ELEMENTS = 4096  # below that a Transpose takes no longer than starting it
_BLOCK = 8  # elements


def permutation(node: Node) -> list[int] | None:
    """Return what a Transpose does: axis i of its output is axis p[i] of its input."""
    axes = attribute(node, "perm")
    if axes is not None:
        return list(axes)
    count = rank(node.inputs[0])
    return None if count is None else list(range(count))[::-1]


def inverse(order: Sequence[int]) -> list[int]:
    """Return the permutation that undoes `order`."""
    return [order.index(axis) for axis in range(len(order))]


def merged(inner: Node, outer: Node) -> list[int] | None:
    """Return the permutation of two Transposes as one.

    None where the inner one stays anyway, and where the one would run slower than the two.
    """
    first, second = permutation(inner), permutation(outer)
    if first is None or second is None:
        return None
    both = [first[axis] for axis in second]
    if both == sorted(both):
        return both
    if run_faster_apart(inner, outer):
        return None
    between = inner.outputs[0]
    goes = not is_output(between) and all(
        operator(reader) == "Transpose" and reader.graph is inner.graph
        for reader in readers(between)
    )
    return both if goes else None


def run_faster_apart(inner: Node, outer: Node) -> bool:
    """Whether ONNX Runtime moves whole blocks in each of two Transposes, and not in their product.

    It does where the last axes stay last, and where a single axis changes place; otherwise it
    moves element by element, which takes about ten times as long.
    """
    first, second, shape = permutation(inner), permutation(outer), sizes(inner.inputs[0])
    if first is None or second is None or shape is None:
        return False
    elements = product(shape)
    if not elements.names and elements.factor < _FEW_ELEMENTS:
        return False
    between = [shape[axis] for axis in first]
    both = [first[axis] for axis in second]
    return (
        _moves_blocks(first, shape)
        and _moves_blocks(second, between)
        and not _moves_blocks(both, shape)
    )


def _moves_blocks(order: Sequence[int], shape: Sequence[Size]) -> bool:
    wide = [axis for axis in order if shape[axis] != Size(1)]
    places = [sorted(wide).index(axis) for axis in wide]
    last: list[Size] = []
    for at in reversed(range(len(places))):
        if places[at] != at:
            break
        last.append(shape[wide[at]])
    block = product(last)
    if block.names or block.factor >= _BLOCK:
        return True
    # axes that stay beside each other are one; it changes place where the others are in order
    runs = [at for i, at in enumerate(places) if i == 0 or at != places[i - 1] + 1]
    others = [[at for at in runs if at != moved] for moved in runs]
    return not runs or any(rest == sorted(rest) for rest in others)


def _untransposed(c: Weight, order: Sequence[int]) -> Any:
    """Return c' with Transpose(c', order) = c, `c` taken to the rank of `order` as to broadcast."""
    if c.size == 1:
        return c
    shape = (*[1] * (len(order) - c.ndim), *c.shape)
    back = inverse(order)
    turned = [shape[axis] for axis in back]
    if sum(size > 1 for size in shape) == 1:
        return c.reshape(*turned)  # what has one axis lies as it lay
    return np.ascontiguousarray(c.array().reshape(shape).transpose(back))


def _pads(pad: Node) -> list[int] | None:
    """Return the begins and ends of all axes; None where they are computed or of some axes."""
    if len(pad.inputs) > 3 and pad.inputs[3].name:
        return None
    if opset(pad) < 2:
        return None
    if opset(pad) < 11:
        return list(attribute(pad, "pads"))
    return integers(pad.inputs[1]) if len(pad.inputs) > 1 else None


def moved(f: Node, order: Sequence[int], into: Mapping[int, Any]) -> Op:
    """Return f' with Transpose(f'(…), order) = f(…), for `f` that works in any layout.

    `into`: by their place, the inputs whose Transposes by `order` are those of `f`. Constants that
    meet them axis by axis are transposed back.
    """
    op, count, back = operator(f), len(order), inverse(order)
    attrs: dict[str, Any] = dict(f.attrs)
    if op == "MatMul":  # (x·y)ᵀ = yᵀ·xᵀ
        return Op("MatMul", into[1], into[0])
    if op == "Concat":
        attrs = {"axis": order[attribute(f, "axis")]}
    if op == "Concat" or op in BROADCAST:
        operands = [
            into[place] if place in into else _untransposed(_weight(tensor), order)
            for place, tensor in enumerate(f.inputs)
        ]
        return Op(f.op, *operands, **attrs)
    if op in _ALONG_AXIS:
        return Op(f.op, into[0], **{**attrs, "axis": order[attribute(f, "axis")]})
    further = f.inputs[1:]
    if op == "Pad":
        pads = _pads(f) or []
        listed = [pads[side * count + axis] for side in (0, 1) for axis in back]
        return Op("Pad", into[0], None, *further[1:], **{**attrs, "pads": listed})
    if op in _REDUCTIONS:
        axes = sorted(order[axis] for axis in axes_of(f) or ())
        attrs.pop("axes", None)
        return Op(f.op, into[0], **attrs, axes=axes)
    return Op(f.op, into[0], *further, **attrs)


def _weight(tensor: Tensor) -> Weight:
    found = constant(tensor)
    assert found is not None
    return found


def is_agnostic(f: Node, order: Sequence[int]) -> bool:
    """Whether `f` computes the same in another layout, its computed inputs being in it."""
    op = operator(f)
    if op not in _AGNOSTIC or any(x.outputs or is_output(x) for x in f.outputs[1:]):
        return False
    if op in BROADCAST:
        both = has(f, Trait.BROADCASTING) and len(f.inputs) == 2
        return both and _is_aligned(f, len(order))
    if op in _REDUCTIONS:
        return _is_agnostic_reduction(f, order)
    if op in _ALONG_AXIS:
        return opset(f) >= 13
    if op == "Pad":
        return len(_pads(f) or ()) == 2 * len(order)
    if op == "Concat":
        return len(f.inputs) > 1
    return has(f, Trait.ELEMENTWISE)


def _is_aligned(f: Node, count: int) -> bool:
    """Whether the axes of constants and of what is computed meet as they do in `f`."""
    weights = [constant(x) for x in f.inputs]
    return any(weight is None for weight in weights) and all(
        rank(x) == count if weight is None else weight.ndim <= count
        for x, weight in zip(f.inputs, weights, strict=True)
    )


def _is_agnostic_reduction(f: Node, order: Sequence[int]) -> bool:
    if len(f.inputs) > 1 and constant(f.inputs[1]) is None:
        return False
    axes = axes_of(f)
    if not axes:
        return False
    if attribute(f, "keepdims"):
        return True
    dropped = {axis % len(order) for axis in axes}
    left = [order[axis] for axis in range(len(order)) if axis not in dropped]
    return left == sorted(left)


def drops_layout(node: Node) -> bool:
    """Whether no Transpose is needed below."""
    return operator(node) in _REDUCTIONS and not attribute(node, "keepdims")


def in_layout(node: Node) -> list[int]:
    """Return which inputs of an agnostic node are in the layout, constants left out."""
    if operator(node) in (*BROADCAST, "Concat", "MatMul"):
        return [place for place, x in enumerate(node.inputs) if constant(x) is None]
    return [0]


__all__ = [
    "drops_layout",
    "in_layout",
    "inverse",
    "is_agnostic",
    "merged",
    "moved",
    "permutation",
    "run_faster_apart",
]
