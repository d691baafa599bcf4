"""Operators that move elements: the same is done to residues and to sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphpass.validate.exact.field import Array
from graphpass.validate.exact.number import Number, UnknownError, Value, require_moderate
from graphpass.validate.exact.step import Step


def moved(value: Value | None, move: Callable[[Array], Array]) -> Value:
    """Move the elements of a tensor of any type."""
    if isinstance(value, Number):
        return value.moved(move)
    if isinstance(value, np.ndarray):
        return move(value)
    raise UnknownError("a tensor that is missing, or a sequence where a tensor belongs")


def joined(step: Step, values: list[Any], join: Callable[[list[Array]], Array]) -> Value:
    """Put tensors together."""
    if all(isinstance(value, Number) for value in values):
        return step.numbers.like(
            join([value.residue for value in values]),
            join([value.size for value in values]),
            values,
        )
    if all(isinstance(value, np.ndarray) for value in values):
        return join(values)
    raise UnknownError(f"{step.op} of different types")


def _shape(value: Value | None) -> tuple[int, ...]:
    if isinstance(value, (Number, np.ndarray)):
        return tuple(value.shape)
    raise UnknownError("the shape of what is no tensor")


def _same(step: Step) -> Value:
    return moved(step.input(0), lambda array: array)


def _reshape(step: Step) -> Value:
    wanted, shape = step.listed("shape", 1) or [], _shape(step.input(0))
    if not step.attribute("allowzero", 0):
        wanted = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return moved(step.input(0), lambda array: array.reshape(wanted))


def _flatten(step: Step) -> Value:
    shape, axis = _shape(step.input(0)), step.attribute("axis", 1)
    rows = math.prod(shape[:axis])
    columns = math.prod(shape) // rows if rows else math.prod(shape[axis:])
    return moved(step.input(0), lambda array: array.reshape(rows, columns))


def _squeeze(step: Step) -> Value:
    axes = step.listed("axes", 1)
    if axes is None:
        return moved(step.input(0), np.squeeze)
    return moved(step.input(0), lambda array: np.squeeze(array, tuple(axes)))


def _unsqueeze(step: Step) -> Value:
    axes = tuple(step.listed("axes", 1) or ())
    return moved(step.input(0), lambda array: np.expand_dims(array, axes))


def _transpose(step: Step) -> Value:
    return moved(step.input(0), lambda array: np.transpose(array, step.attribute("perm")))


def _expand(step: Step) -> Value:
    shape = np.broadcast_shapes(_shape(step.input(0)), tuple(step.listed("shape", 1) or ()))
    require_moderate(*shape)
    return moved(step.input(0), lambda array: np.broadcast_to(array, shape))


def _tile(step: Step) -> Value:
    repeats = step.listed("repeats", 1) or []
    require_moderate(*_shape(step.input(0)), *repeats)
    return moved(step.input(0), lambda array: np.tile(array, repeats))


def _slice(step: Step) -> Value:
    shape = _shape(step.input(0))
    starts, ends = step.listed("starts", 1), step.listed("ends", 2)
    if starts is None or ends is None:
        raise UnknownError("a Slice without its ends")
    axes = step.listed("axes", 3) or list(range(len(starts)))
    steps = step.listed("steps", 4) or [1] * len(starts)
    parts = [slice(None)] * len(shape)
    for start, end, axis, by in zip(starts, ends, axes, steps, strict=True):
        # what is beyond the first element, going down, has no number for Python
        last: int | None = end if by > 0 or end >= -shape[axis] else None
        parts[axis] = slice(start, last, by)
    return moved(step.input(0), lambda array: array[tuple(parts)])


def _split(step: Step) -> list[Value]:
    axis, shape = step.attribute("axis", 0), _shape(step.input(0))
    sizes = step.listed("split", 1)
    if sizes is None:
        count = step.attribute("num_outputs", len(step.node.output))
        each = -(-shape[axis] // count)
        sizes = [min(each, shape[axis] - each * index) for index in range(count)]
    ends = np.cumsum(sizes)[:-1]
    count = len(sizes)
    return [
        moved(step.input(0), lambda array, at=at: np.split(array, ends, axis)[at])  # type: ignore[misc]
        for at in range(count)
    ]


def _gather(step: Step) -> Value:
    indices, axis = step.whole(1), step.attribute("axis", 0)
    return moved(step.input(0), lambda array: np.take(array, indices, axis))


def _gather_elements(step: Step) -> Value:
    indices, axis = step.whole(1), step.attribute("axis", 0)
    wrapped = np.mod(indices, _shape(step.input(0))[axis])
    return moved(step.input(0), lambda array: _along(array, wrapped, axis))


def _along(array: Array, indices: Array, axis: int) -> Array:
    places: list[Array] = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    found: Array = array[tuple(places)]
    return found


def _gather_nd(step: Step) -> Value:
    indices, batch = step.whole(1), step.attribute("batch_dims", 0)
    if batch:
        raise UnknownError("GatherND along a batch")
    places = tuple(np.moveaxis(indices, -1, 0))
    return moved(step.input(0), lambda array: array[places])


def _concat(step: Step) -> Value:
    axis = step.attribute("axis", 1)
    return joined(step, list(step.inputs), lambda arrays: np.concatenate(arrays, axis))


def _depth_to_space(step: Step) -> Value:
    n, c, h, w = _shape(step.input(0))
    b = step.attribute("blocksize")
    if step.attribute("mode", "DCR") == "DCR":
        sizes, order = (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        sizes, order = (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)
    return moved(
        step.input(0),
        lambda array: array.reshape(sizes).transpose(order).reshape(n, -1, h * b, w * b),
    )


def _space_to_depth(step: Step) -> Value:
    n, c, h, w = _shape(step.input(0))
    b = step.attribute("blocksize")
    sizes = (n, c, h // b, b, w // b, b)
    return moved(
        step.input(0),
        lambda a: a.reshape(sizes).transpose(0, 3, 5, 1, 2, 4).reshape(n, -1, h // b, w // b),
    )


def _trilu(step: Step) -> Value:
    k = 0 if step.input(1) is None else int(step.whole(1).reshape(-1)[0])
    cut = np.triu if step.attribute("upper", 1) else np.tril
    return moved(step.input(0), lambda array: cut(array, k))


def _pad(step: Step) -> Value:
    shape = _shape(step.input(0))
    pads = step.listed("pads", 1) or []
    axes = step.listed("axes", 3) or list(range(len(shape)))
    mode = step.attribute("mode", "constant")
    given = step.input(2)
    if given is None and step.attribute("value") is not None:
        given = step.known(step.attribute("value"))
    before, after = [0] * len(shape), [0] * len(shape)
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    parts = tuple(
        slice(max(-a, 0), size - max(-b, 0))
        for a, b, size in zip(before, after, shape, strict=True)
    )
    require_moderate(*(n + abs(a) + abs(b) for n, a, b in zip(shape, before, after, strict=True)))
    widths = [(max(a, 0), max(b, 0)) for a, b in zip(before, after, strict=True)]
    if mode == "constant":
        value = step.input(0)

        def padded(array: Array, fill: Any) -> Array:
            fill = 0 if fill is None else np.asarray(fill).reshape(-1)[0]
            return np.pad(array[parts], widths, constant_values=fill)

        if not isinstance(value, Number):
            return moved(value, lambda array: padded(array, given))
        if given is None:
            return value.moved(lambda array: padded(array, 0.0))
        fill = step.numbers.like(given.residue, given.size, [given])
        return step.numbers.like(
            padded(value.residue, fill.residue), padded(value.size, fill.size), [value, fill]
        )
    how: Any = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}.get(mode)
    return moved(step.input(0), lambda array: np.pad(array[parts], widths, how))


def _where(step: Step) -> Value:
    where = step.whole(0)
    return joined(step, list(step.inputs[1:3]), lambda both: np.where(where, *both))


def _scatter_nd(step: Step) -> Value:
    if step.attribute("reduction", "none") != "none":
        raise UnknownError("a ScatterND that adds up")
    places = tuple(np.moveaxis(step.whole(1), -1, 0))

    def put(both: list[Array]) -> Array:
        copied: Array = both[0].copy()
        copied[places] = both[1]
        return copied

    return joined(step, [step.input(0), step.input(2)], put)


def _scatter_elements(step: Step) -> Value:
    if step.attribute("reduction", "none") != "none":
        raise UnknownError("a ScatterElements that adds up")
    axis, indices = step.attribute("axis", 0), step.whole(1)
    places: list[Array] = list(np.indices(indices.shape, sparse=True))
    places[axis] = np.mod(indices, _shape(step.input(0))[axis])

    def put(both: list[Array]) -> Array:
        copied: Array = both[0].copy()
        copied[tuple(places)] = both[1]
        return copied

    return joined(step, [step.input(0), step.input(2)], put)


def _constant_of_shape(step: Step) -> Value:
    held = step.attribute("value")
    from onnx import numpy_helper

    value = np.zeros(1, np.float32) if held is None else numpy_helper.to_array(held)
    require_moderate(*map(int, step.whole(0)))
    array = np.full(tuple(step.whole(0)), value.reshape(-1)[0], value.dtype)
    return step.numbers.of(array) if array.dtype.kind not in "iubOSU" else array


def _shape_of(step: Step) -> Value:
    shape = _shape(step.input(0))
    return np.array(shape[step.attribute("start", 0) : step.attribute("end")], np.int64)


def _size(step: Step) -> Value:
    return np.array(math.prod(_shape(step.input(0))), np.int64)


def _pick(step: Step) -> Value:
    return step.inputs[0][int(step.whole(1).reshape(-1)[0])]  # type: ignore[index]


def _split_to_sequence(step: Step) -> list[Value]:
    axis, shape = step.attribute("axis", 0), _shape(step.input(0))
    if step.input(1) is None:
        sizes = [1] * shape[axis]
    else:
        given = step.whole(1)
        each = int(given.reshape(-1)[0])
        sizes = [int(size) for size in given] if given.ndim else [each] * (shape[axis] // each)
        if sum(sizes) < shape[axis]:
            sizes.append(shape[axis] - sum(sizes))
    ends = np.cumsum(sizes)[:-1]
    parts = [
        moved(step.input(0), lambda array, at=at: np.split(array, ends, axis)[at])  # type: ignore[misc]
        for at in range(len(sizes))
    ]
    if step.input(1) is None and not step.attribute("keepdims", 1):
        parts = [moved(part, lambda array: np.squeeze(array, axis)) for part in parts]
    return [parts]


def _concat_from_sequence(step: Step) -> Value:
    axis = step.attribute("axis")
    if step.attribute("new_axis", 0):
        return joined(step, list(step.inputs[0]), lambda arrays: np.stack(arrays, axis))  # type: ignore[arg-type]
    return joined(step, list(step.inputs[0]), lambda arrays: np.concatenate(arrays, axis))  # type: ignore[arg-type]


def _range(step: Step) -> Value:
    start, limit, delta = (step.whole(index).reshape(-1)[0] for index in range(3))
    require_moderate(int(abs(limit - start) // max(abs(delta), 1)))
    return np.arange(start, limit, delta, dtype=step.whole(0).dtype)


MOVES: dict[str, Callable[[Step], Any]] = {
    "Identity": _same,
    "Dropout": _same,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
    "Pad": _pad,
    "Where": _where,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape_of,
    "Size": _size,
    "Range": _range,
    "SequenceConstruct": lambda step: [list(step.inputs)],
    "SequenceAt": _pick,
    "SplitToSequence": _split_to_sequence,
    "ConcatFromSequence": _concat_from_sequence,
}
