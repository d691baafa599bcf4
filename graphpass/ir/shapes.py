"""What is computed from sizes: shapes, and the integers that networks compute with them.

One evaluator, of numbers where they are known and of symbolic sizes (`Size`) where they are not.
Each value is computed once, whatever reads it, and no value is followed without end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from graphpass.ir.integers import MOST_ELEMENTS, compute, is_computed, of_sizes
from graphpass.ir.operators import Trait, named
from graphpass.ir.questions import (
    Node,
    Tensor,
    attribute,
    axes_of,
    constant,
    dtype,
    integers,
    operator,
    producer,
    static_shape,
)
from graphpass.ir.sizes import INFERRED, Size, product, quotient, unknown
from graphpass.ir.weight import Array

RESHAPES = named(Trait.VIEW, without=Trait.ELEMENTWISE)

_MOST_NODES = 512  # looked at for one value
# what exporters write for "some size": no two of these need to be the same
_NAMELESS = frozenset(("", "?", "-1", "None", "unk"))


def sizes(tensor: Tensor) -> list[Size] | None:
    """Return the dimensions of `tensor`; None where its rank is unknown."""
    if tensor.shape is None:
        return None
    return [
        Size(size)
        if isinstance(size, int)
        else Size(1, (f"?{id(tensor)}.{axis}" if size is None or size in _NAMELESS else size,))
        for axis, size in enumerate(tensor.shape)
    ]


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
        # what may be -1 or 0 in some run says nothing of the size that comes of it
        result.append(
            size if size.is_axis or size == INFERRED else Size(1, (f"?{id(node)}.{axis}",))
        )
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


def values(tensor: Tensor, sizes_of: SizesOf = sizes) -> list[Size] | None:
    """Return the elements of a scalar or vector of integers in terms of sizes; None if it is none.

    An element that cannot be followed is a size of its own.
    """
    found = value(tensor, sizes_of)
    if found is None or found.ndim > 1 or found.dtype.kind not in "iO":
        return None
    return [s if isinstance(s, Size) else Size(int(s)) for s in found.reshape(-1).tolist()]


def value(tensor: Tensor, sizes_of: SizesOf = sizes) -> Array | None:
    """Return what `tensor` holds: numbers, or an array of objects with a Size where it is none.

    Follows Shape and Size, and what `compute` knows. None where it is no array of numbers that
    follow from sizes, or too large.
    """
    known: dict[int, Array | None] = {}
    opened: set[int] = set()
    waiting = [tensor]
    while waiting:
        current = waiting.pop()
        if id(current) in known:
            continue
        node = _followed(current)
        if node is not None and id(current) not in opened and len(opened) < _MOST_NODES:
            opened.add(id(current))
            waiting.append(current)
            waiting.extend(t for t in _read(node) if id(t) not in known)
            continue
        found = None if node is None else _computed(node, known, sizes_of)
        known[id(current)] = _leaf(current) if found is None else found
    return known[id(tensor)]


def _followed(tensor: Tensor) -> Node | None:
    """Return the node whose first output is `tensor`, if that may be computed from sizes."""
    node = None if constant(tensor) is not None else producer(tensor)
    shape = static_shape(tensor)
    if node is None or node.outputs[0] is not tensor:
        return None
    return node if shape is None or math.prod(shape) <= MOST_ELEMENTS else None


def _read(node: Node) -> list[Tensor]:
    """Return the inputs of a node whose values, not only their sizes, count."""
    if operator(node) in ("Shape", "Size") or not is_computed(node):
        return []
    return [tensor for tensor in node.inputs if tensor.name]


def _computed(node: Node, known: dict[int, Array | None], sizes_of: SizesOf) -> Array | None:
    op = operator(node)
    if op in ("Shape", "Size"):
        shape = sizes_of(node.inputs[0])
        if shape is None or len(shape) > MOST_ELEMENTS:
            return None
        if op == "Size":
            return of_sizes([product(shape)]).reshape(())
        return of_sizes(shape[attribute(node, "start") : attribute(node, "end")])
    inputs = [known.get(id(tensor)) if tensor.name else None for tensor in node.inputs]
    if any(
        array is None and tensor.name for array, tensor in zip(inputs, node.inputs, strict=True)
    ):
        return None
    return compute(node, *inputs)


def _leaf(tensor: Tensor) -> Array | None:
    """Return a constant; of other integers, one unknown size for each."""
    weight = constant(tensor)
    if weight is not None:
        numeric = weight.size <= MOST_ELEMENTS and weight.dtype.kind in "bif"
        return weight.array() if numeric else None
    shape, kind = static_shape(tensor), dtype(tensor)
    if shape is None or kind is None or kind.kind != "i" or math.prod(shape) > MOST_ELEMENTS:
        return None
    return of_sizes([unknown(tensor, i) for i in range(math.prod(shape))]).reshape(shape)


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
