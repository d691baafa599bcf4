"""Shapes as products: what Reshape and its kin make of a shape that is known only in part.

A `Size` is a factor times named sizes: 12, N, 3·N. Two equal Sizes are equal in every run. A size
without a name gets one of its own, so that it equals itself and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from graphpass import (
    Node,
    Tensor,
    attribute,
    axes_of,
    constant,
    dtype,
    integers,
    operator,
    producer,
    rank,
    static_shape,
)
from graphpass.ir.operators import Trait, named

RESHAPES = named(Trait.VIEW, without=Trait.ELEMENTWISE)

_LONGEST = 32  # no shape has more dimensions; longer vectors of integers are no shapes
_LARGEST = 2**62  # beyond, an int64 may overflow
_DEEPEST = 64  # how far up a computed shape is followed


class Size(NamedTuple):
    """`factor` times the product of `names`."""

    factor: int
    names: tuple[str, ...] = ()


INFERRED = Size(-1)


def sizes(tensor: Tensor) -> list[Size] | None:
    """Return the dimensions of `tensor`; None where its rank is unknown."""
    if tensor.shape is None:
        return None
    return [
        Size(size)
        if isinstance(size, int)
        else Size(1, (size if size is not None else f"?{id(tensor)}.{axis}",))
        for axis, size in enumerate(tensor.shape)
    ]


def product(parts: Iterable[Size]) -> Size:
    """Multiply."""
    listed = list(parts)
    factor = math.prod(part.factor for part in listed)
    names = sorted(name for part in listed for name in part.names)
    return Size(factor, tuple(names)) if factor else Size(0)


def quotient(whole: Size, part: Size) -> Size | None:
    """Divide; None where it does not come out even."""
    if part.factor == 0 or whole.factor % part.factor:
        return None
    left = Counter(whole.names)
    left.subtract(part.names)
    if any(count < 0 for count in left.values()):
        return None
    return Size(whole.factor // part.factor, tuple(sorted(left.elements())))


SizesOf = Callable[[Tensor], "list[Size] | None"]


def reshaped(node: Node, shape: list[Size] | None, sizes_of: SizesOf = sizes) -> list[Size] | None:
    """Return what `node`, one of RESHAPES, makes of `shape`; None where that cannot be told.

    `sizes_of`: the sizes that tensors are taken to have, in this and the functions below.
    """
    if shape is None or any(size.factor == 0 for size in shape):
        return None  # where there are no elements, sizes do not follow from each other
    op = operator(node)
    if op == "Flatten":
        axis = attribute(node, "axis")
        axis += len(shape) if axis < 0 else 0
        return [product(shape[:axis]), product(shape[axis:])]
    if op == "Reshape":
        return _reshape(node, shape, sizes_of)
    marks = moved(node, list(range(len(shape))))
    if marks is None and op == "Squeeze" and axes_of(node) is None:
        if any(size.names for size in shape):
            return None  # a named size may be 1 in some run
        return [size for size in shape if size.factor != 1]
    return None if marks is None else [Size(1) if m is None else shape[m] for m in marks]


def moved(node: Node, marks: list[int | None]) -> list[int | None] | None:
    """Do to a list of axes what Squeeze or Unsqueeze does to a shape; a new axis is None."""
    axes = axes_of(node)
    if axes is None:
        return None
    if operator(node) == "Squeeze":
        gone = {axis % len(marks) for axis in axes if marks}
        return [mark for axis, mark in enumerate(marks) if axis not in gone]
    count = len(marks) + len(axes)
    new = {axis % count for axis in axes}
    old = iter(marks)
    return [None if axis in new else next(old) for axis in range(count)]


def target_of(node: Node, sizes_of: SizesOf = sizes) -> list[Size] | None:
    """Return the shape that a Reshape asks for, with its -1 and zeros as they are."""
    listed = attribute(node, "shape")  # before opset 5
    if listed is not None:
        return [Size(size) for size in listed]
    return values(node.inputs[1], sizes_of) if len(node.inputs) > 1 else None


def _reshape(node: Node, shape: list[Size], sizes_of: SizesOf) -> list[Size] | None:
    target = target_of(node, sizes_of)
    if target is None:
        return None
    result = []
    for axis, size in enumerate(target):
        if size.factor == 0:
            if attribute(node, "allowzero") or axis >= len(shape):
                return None
            size = shape[axis]
        result.append(size)
    if INFERRED not in result:
        return result
    known = product(size for size in result if size != INFERRED)
    rest = quotient(product(shape), known) or Size(1, (f"?{id(node)}",))
    return [rest if size == INFERRED else size for size in result]


def as_target(target: list[Size], shape: list[Size] | None) -> list[int] | None:
    """Write `target` as the constant shape of a Reshape whose input has `shape`; None if no way.

    A size that the input has on the same axis is copied (0). One more may be left to Reshape
    (-1), but where Reshape has to infer a size that was computed, all others must be positive:
    with a copied size of 0 the original still works and -1 does not.
    """
    result = []
    computed = False
    for axis, size in enumerate(target):
        if not size.names:
            result.append(size.factor)
        elif shape is not None and axis < len(shape) and shape[axis] == size:
            result.append(0)
        else:
            result.append(-1)
            computed = True
    if result.count(-1) > 1 or (computed and 0 in result):
        return None
    return result


_Known = dict[int, "list[Size] | None"]


def values(tensor: Tensor, sizes_of: SizesOf = sizes) -> list[Size] | None:
    """Return the elements of a scalar or vector of integers in terms of sizes; None if it is none.

    Follows Shape, Gather, Slice, Concat, arithmetic and what only passes integers on. An element
    that cannot be followed is a size of its own.
    """
    return _values(tensor, sizes_of, 0, {})


def _values(tensor: Tensor, sizes_of: SizesOf, depth: int, known: _Known) -> list[Size] | None:
    """Do so; `known`: what was found before, or a tensor that is read twice is followed twice."""
    if id(tensor) not in known:
        known[id(tensor)] = _looked_up(tensor, sizes_of, depth, known)
    return known[id(tensor)]


def _looked_up(tensor: Tensor, sizes_of: SizesOf, depth: int, known: _Known) -> list[Size] | None:
    weight = constant(tensor)
    if weight is not None:
        if weight.ndim > 1 or weight.size > _LONGEST:
            return None
        given = integers(tensor)
        return None if given is None else [Size(value) for value in given]
    if rank(tensor) not in (0, 1) or depth > _DEEPEST:
        return None
    kind = dtype(tensor)
    node = producer(tensor) if kind is not None and kind.kind == "i" else None
    found = None if node is None else _followed(node, sizes_of, depth + 1, known)
    if found is not None:
        return found
    shape = static_shape(tensor)
    length = None if shape is None else math.prod(shape)
    if length is None or length > _LONGEST:
        return None
    return [Size(1, (f"?{id(tensor)}[{index}]",)) for index in range(length)]


def _followed(node: Node, sizes_of: SizesOf, depth: int, known: _Known) -> list[Size] | None:
    op = operator(node)
    if op == "Shape":
        shape = sizes_of(node.inputs[0])
        return None if shape is None else shape[attribute(node, "start") : attribute(node, "end")]
    if op not in _FOLLOWED:
        return None
    sources = [_values(source, sizes_of, depth, known) for source in node.inputs[: _FOLLOWED[op]]]
    if any(source is None for source in sources):
        return None
    parts = [source for source in sources if source is not None]
    if op == "Concat":
        joined = [size for part in parts for size in part]
        return joined if len(joined) <= _LONGEST else None
    if op == "Gather":
        index = integers(node.inputs[1])
        if index is None or not all(-len(parts[0]) <= i < len(parts[0]) for i in index):
            return None
        return [parts[0][i] for i in index]
    if op == "Slice":
        bounds = slices(node)
        if bounds is None or len(bounds) != 1 or bounds[0][3] < 1:
            return None
        _, start, end, step = bounds[0]
        return parts[0][start:end:step]
    if op in ("Mul", "Div", "Add", "Sub"):
        return _arithmetic(op, *parts)
    if op == "Cast" and attribute(node, "to") not in (6, 7):  # int32, int64
        return None
    return parts[0]


# operators whose integers can be followed, and how many of their inputs are followed
_FOLLOWED = {
    "Add": 2,
    "Cast": 1,
    "Concat": _LONGEST,
    "Div": 2,
    "Gather": 1,
    "Identity": 1,
    "Mul": 2,
    "Reshape": 1,
    "Slice": 1,
    "Squeeze": 1,
    "Sub": 2,
    "Unsqueeze": 1,
}


def _arithmetic(op: str, left: list[Size], right: list[Size]) -> list[Size] | None:
    length = max(len(left), len(right))
    if not length:
        return []
    if not {len(left), len(right)} <= {1, length}:
        return None
    result = []
    for a, b in zip(left * (length // len(left)), right * (length // len(right)), strict=True):
        found: Size | None = None
        if op == "Mul":
            found = product((a, b))
        elif op == "Div" and not a.names and not b.names and a.factor >= 0 and b.factor > 0:
            found = Size(a.factor // b.factor)  # negative numbers round the other way
        elif op == "Div":
            found = quotient(a, b)
        elif a.names == b.names:
            factor = a.factor + b.factor if op == "Add" else a.factor - b.factor
            found = Size(factor, a.names) if factor else Size(0)
        if found is None or abs(found.factor) > _LARGEST or len(found.names) > _LONGEST:
            return None
        result.append(found)
    return result


def slices(node: Node) -> list[tuple[int, int, int, int]] | None:
    """Return (axis, start, end, step) for each axis that a Slice names; None where computed."""
    starts: list[int] | None = attribute(node, "starts")  # before opset 10
    if starts is not None:
        ends = attribute(node, "ends")
        axes = attribute(node, "axes") or list(range(len(starts)))
        return [(a, s, e, 1) for a, s, e in zip(axes, starts, ends, strict=True)]
    given = [integers(source) if source.name else [] for source in node.inputs[1:]]
    if len(given) < 2 or any(part is None for part in given):
        return None
    parts = [part for part in given if part is not None]
    starts, ends = parts[0], parts[1]
    axes = parts[2] if len(parts) > 2 and parts[2] else list(range(len(starts)))
    steps = parts[3] if len(parts) > 3 and parts[3] else [1] * len(starts)
    return list(zip(axes, starts, ends, steps, strict=True))
