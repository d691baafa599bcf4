"""What operators make of small arrays: of numbers, and of sizes that are not known as numbers.

An array of objects holds a `Size` wherever an element is none. Everything here has the same result
in every runtime; what has not, is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphpass.ir.defined import is_defined
from graphpass.ir.questions import Node, RefusedError, attribute, cast_type, operator
from graphpass.ir.sizes import Size, called, is_bounded, product, quotient, total
from graphpass.ir.weight import Array

MOST_ELEMENTS = 1024  # no vector of sizes is longer
_NUMBERS = tuple(np.dtype(kind) for kind in ("int32", "int64", "float32", "float64", "bool"))


class _UnknownError(ValueError):
    """What comes of it is not known."""


def compute(node: Node, *inputs: Array | None) -> Array | None:
    """Return the first output of `node` for `inputs`; None where it is not known, or too large.

    None among `inputs`: one that is left out.
    """
    handler = _HANDLERS.get(operator(node))
    known = [array for array in inputs if array is not None]
    numbers = [array for array in known if array.dtype != object]
    if handler is None or any(array.dtype not in _NUMBERS for array in numbers):
        return None
    try:
        if len(numbers) == len(known) and not is_defined(node, known):
            return None
        with np.errstate(all="ignore"):
            result = np.asarray(handler(node, *inputs))
    except (ArithmeticError, IndexError, RefusedError, TypeError, ValueError):
        return None
    return result if result.size <= MOST_ELEMENTS else None


def is_computed(node: Node) -> bool:
    """Whether `compute` knows the operator."""
    return operator(node) in _HANDLERS


def of_sizes(sizes: Sequence[Size | int]) -> Array:
    """Return a vector: of numbers, where all are."""
    array = np.empty(len(sizes), object)
    for index, size in enumerate(sizes):
        array[index] = size
    return settled(array)


def settled(array: Array) -> Array:
    """Return numbers where all elements are, and the array as it is otherwise."""
    parts = [size if isinstance(size, Size) else Size(int(size)) for size in array.reshape(-1)]
    if any(part.names for part in parts):
        return array
    return np.array([part.factor for part in parts], np.int64).reshape(array.shape)


def _size(element: Any) -> Size:
    return element if isinstance(element, Size) else Size(int(element))


def _checked(found: Size | None) -> Size:
    if found is None or not is_bounded(found):
        raise _UnknownError
    return found


def _elementwise(
    numbers: Callable[..., Any], sizes: Callable[..., Size | None]
) -> Callable[..., Any]:
    """Return what computes by `numbers`, and by `sizes` where an element is no number."""

    def run(node: Node, *arrays: Array) -> Any:
        if all(array.dtype != object for array in arrays):
            return numbers(*arrays)
        if any(array.dtype.kind == "f" for array in arrays):
            raise _UnknownError  # a size may be too large to be exact as a float
        each = np.frompyfunc(lambda *parts: _checked(sizes(*map(_size, parts))), len(arrays), 1)
        return _numeric(each(*arrays))

    return run


def _function(name: str) -> Callable[..., Size | None]:
    return lambda *parts: called(name, *parts)


def _sum(a: Size, b: Size) -> Size | None:
    return total((a, b))


def _difference(a: Size, b: Size) -> Size | None:
    return total((a, product((b, Size(-1)))))


def _divided(a: Array, b: Array) -> Array:
    if np.result_type(a, b).kind == "f":
        return np.asarray(np.divide(a, b))
    # rounds towards zero, as C++ does
    return np.asarray(np.abs(a) // np.abs(b) * (np.sign(a) * np.sign(b)))


def _mod(node: Node, a: Array, b: Array) -> Any:
    cut = attribute(node, "fmod")
    modulo = _elementwise(np.fmod if cut else np.mod, _function("Fmod" if cut else "Mod"))
    return modulo(node, a, b)


def _ratio(a: Size, b: Size) -> Size | None:
    return quotient(a, b) or called("Div", a, b)


def _larger(a: Size, b: Size) -> Size | None:
    return a if a == b else called("Max", *sorted((a, b), key=str))


def _smaller(a: Size, b: Size) -> Size | None:
    return a if a == b else called("Min", *sorted((a, b), key=str))


def _equal(node: Node, a: Array, b: Array) -> Array:
    if a.dtype != object and b.dtype != object:
        return np.asarray(a == b)

    def same(left: Any, right: Any) -> bool:
        one, two = _size(left), _size(right)
        if one == two:
            return True
        for axis, number in ((one, two), (two, one)):
            if axis.is_axis and not number.names and number.factor < 0:
                return False  # no axis has a negative size
        if one.names or two.names:
            raise _UnknownError
        return False

    return np.asarray(np.frompyfunc(same, 2, 1)(a, b), bool)


def _where(node: Node, condition: Array, a: Array, b: Array) -> Array:
    if condition.dtype != bool:
        raise _UnknownError
    return _numeric(np.where(condition, a, b))


def _numeric(found: Any) -> Array:
    """Return an array, of numbers where all its elements are."""
    array = np.asarray(found)
    return settled(array) if array.dtype == object else array


def _cast(node: Node, a: Array) -> Array:
    kind = cast_type(node)
    if kind not in _NUMBERS:
        raise _UnknownError
    if a.dtype == object:
        if kind.kind != "i":
            raise _UnknownError
        return a
    made: Array = a.astype(kind)
    if kind.kind == "i" and not (np.trunc(a) == made).all():
        raise _UnknownError  # what becomes of a number that is too large is up to the runtime
    return made


def _slice(node: Node, data: Array, *given: Array | None) -> Array:
    def listed(name: str, index: int) -> list[int] | None:
        held = node.attrs.get(name)
        if held is not None:
            return [int(v) for v in held]
        array = given[index] if index < len(given) else None
        return None if array is None else [int(v) for v in _numbers(array)]

    starts, ends = listed("starts", 0) or [], listed("ends", 1) or []
    axes = listed("axes", 2) or list(range(len(starts)))
    steps = listed("steps", 3) or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        least = -data.shape[axis]
        # what lies before the first element, going backwards, is the end of what is taken
        cut[axis] = slice(start, None if step < 0 and end < least else end, step)
    return _numeric(data[tuple(cut)])


def _numbers(array: Array) -> list[Any]:
    if array.dtype == object:
        raise _UnknownError
    return list(array.reshape(-1).tolist())


def _reshape(node: Node, data: Array, shape: Array | None = None) -> Array:
    listed = attribute(node, "shape") if shape is None else _numbers(shape)
    copied = [
        data.shape[i] if n == 0 and not attribute(node, "allowzero") else int(n)
        for i, n in enumerate(listed)
    ]
    return data.reshape(copied)


def _axes(node: Node, axes: Array | None) -> tuple[int, ...] | None:
    listed = node.attrs.get("axes") if axes is None else _numbers(axes)
    return None if listed is None else tuple(int(axis) for axis in listed)


def _squeeze(node: Node, data: Array, axes: Array | None = None) -> Array:
    return np.squeeze(data, _axes(node, axes))


def _unsqueeze(node: Node, data: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(data, _axes(node, axes) or ())


def _expand(node: Node, data: Array, shape: Array) -> Array:
    target = np.broadcast_shapes(data.shape, tuple(_small(shape)))
    return np.broadcast_to(data, target)


def _small(shape: Array) -> list[int]:
    listed = [int(size) for size in _numbers(shape)]
    if math.prod(listed) > MOST_ELEMENTS:
        raise _UnknownError
    return listed


def _tile(node: Node, data: Array, repeats: Array) -> Array:
    return np.tile(data, _small(repeats))


def _filled(node: Node, shape: Array) -> Array:
    held = node.attrs.get("value")
    return np.full(_small(shape), np.float32(0) if held is None else held.values.reshape(()))


def _range(node: Node, start: Array, limit: Array, step: Array) -> Array:
    (first,), (last,), (by,) = _numbers(start), _numbers(limit), _numbers(step)
    if start.dtype.kind != "i" or not by or abs((last - first) // by) > MOST_ELEMENTS:
        raise _UnknownError
    return np.array(range(first, last, by), start.dtype)


def _reduce(numbers: Any, sizes: Callable[..., Size | None]) -> Callable[..., Any]:
    def run(node: Node, data: Array, axes: Array | None = None) -> Any:
        over = _axes(node, axes)
        if over is None and not attribute(node, "noop_with_empty_axes"):
            over = tuple(range(data.ndim))
        kept = attribute(node, "keepdims") != 0
        if data.dtype.kind == "f":
            raise _UnknownError  # the sum of floats depends on their order
        if data.dtype != object:
            return numbers.reduce(data, axis=over, keepdims=kept, dtype=data.dtype)
        each = np.frompyfunc(lambda a, b: _checked(sizes(_size(a), _size(b))), 2, 1)
        shape = [1 if i in over else n for i, n in enumerate(data.shape)] if over else data.shape
        for axis in sorted((over or ()), reverse=True):
            data = each.reduce(data, axis=axis)
        return _numeric(np.asarray(data).reshape(shape) if kept else data)

    return run


def _multiplied(a: Size, b: Size) -> Size | None:
    return product((a, b))


_HANDLERS: dict[str, Callable[..., Any]] = {
    "Abs": _elementwise(np.abs, _function("Abs")),
    "Add": _elementwise(np.add, _sum),
    "And": lambda node, a, b: a & b,
    "Cast": _cast,
    "Ceil": _elementwise(np.ceil, _function("Ceil")),
    "Concat": lambda node, *a: _numeric(np.concatenate(a, attribute(node, "axis"))),
    "ConstantOfShape": _filled,
    "Div": _elementwise(_divided, _ratio),
    "Equal": _equal,
    "Expand": _expand,
    "Floor": _elementwise(np.floor, _function("Floor")),
    "Gather": lambda node, a, i: _numeric(
        np.take(a, np.asarray(i, np.int64), attribute(node, "axis"))
    ),
    "Identity": lambda node, a: a,
    "Max": _elementwise(lambda *a: np.maximum.reduce(np.broadcast_arrays(*a)), _larger),
    "Min": _elementwise(lambda *a: np.minimum.reduce(np.broadcast_arrays(*a)), _smaller),
    "Mod": _mod,
    "Mul": _elementwise(np.multiply, _multiplied),
    "Neg": _elementwise(np.negative, lambda a: product((a, Size(-1)))),
    "Not": lambda node, a: ~a,
    "Or": lambda node, a, b: a | b,
    "Range": _range,
    "ReduceMax": _reduce(np.maximum, _larger),
    "ReduceMin": _reduce(np.minimum, _smaller),
    "ReduceProd": _reduce(np.multiply, _multiplied),
    "ReduceSum": _reduce(np.add, _sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract, _difference),
    "Tile": _tile,
    "Transpose": lambda node, a: a.transpose(attribute(node, "perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}

__all__ = ["MOST_ELEMENTS", "compute", "is_computed", "of_sizes"]
