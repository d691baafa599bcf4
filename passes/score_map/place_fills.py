"""What is the same at every place of a map: Expand, Tile, ConstantOfShape, Resize of one element.

Along such an axis (`Uniform`) all elements are equal. Where it meets a map, natively of as many
places, there are as many as the map has at any size: the network computes so many itself, or the
reader is given them (`stretched`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphpass import Node, Tensor, attribute, label, operator
from graphpass.rewrite.edit import Editor

from .places import Axes, Axis, FixedSizeError, Followed, Places, Uniform, count_of

# of one element alone these make that element, wherever they look
_REPEATING = ("nearest", "linear")


def joined(found: Followed, node: Node, columns: Sequence[Axes]) -> Axes:
    """Return the axes of an elementwise operator, as numpy broadcasts them.

    Notes which inputs are to be stretched to the size of the map.
    """
    rank = max(map(len, columns))
    padded = [(1,) * (rank - len(axes)) + axes for axes in columns]
    made = tuple(_joined_axis(node, column) for column in zip(*padded, strict=True))
    for index, axes in enumerate(columns):
        for at, (axis, place) in enumerate(zip(axes, made[rank - len(axes) :], strict=True)):
            if isinstance(axis, Uniform) and axis.count != count_of(place):
                found.stretched.setdefault((id(node), index), set()).add(at)
    return made


def _joined_axis(node: Node, column: Sequence[Axis]) -> Axis:
    wide = [axis for axis in column if count_of(axis) != 1 or isinstance(axis, Places)]
    places = [axis for axis in wide if isinstance(axis, Places)]
    fixed = [axis for axis in wide if isinstance(axis, int)]
    counts = sorted({count_of(axis) for axis in places or wide})
    if places and fixed:
        raise FixedSizeError(f"{label(node)} has a value of its own for each of {fixed[0]} places")
    if len({axis.dim for axis in places}) > 1:
        raise FixedSizeError(f"{label(node)} joins different dimensions of the image")
    if len(counts) > 1:
        raise FixedSizeError(f"{label(node)} joins maps of {counts[0]} and of {counts[-1]} places")
    return (places or fixed or wide or [1])[0]


def elementwise(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    """All inputs, place by place."""
    return [joined(found, node, inputs)] * len(node.outputs)


def _expand(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    target = _sizes(found, node, 1)
    axes = inputs[0]
    rank = max(len(axes), len(target))
    wanted = [1] * (rank - len(target)) + target
    return [
        tuple(
            _repeated(node, axis, size)
            for axis, size in zip((1,) * (rank - len(axes)) + axes, wanted, strict=True)
        )
    ]


def _repeated(node: Node, axis: Axis, size: int) -> Axis:
    if size in (1, count_of(axis)):
        return axis
    if isinstance(axis, Places) or count_of(axis) != 1:
        raise FixedSizeError(f"{label(node)} names the size of its map")
    return Uniform(size)


def _tile(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    made: list[Axis] = []
    for axis, times in zip(inputs[0], _sizes(found, node, 1), strict=True):
        if isinstance(axis, Places) and times != 1:
            raise FixedSizeError(f"{label(node)} repeats the places of the image")
        alike = not isinstance(axis, Places) and times > 1
        if alike and (isinstance(axis, Uniform) or axis == 1):
            made.append(Uniform(count_of(axis) * times))
        else:
            made.append(count_of(axis) * times if alike else axis)
    return [tuple(made)]


def _constant_of_shape(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    return [tuple(Uniform(size) if size > 1 else size for size in _sizes(found, node, 0))]


def _resize(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    """Make as many as are asked for of an axis that has one element natively, or of equal ones."""
    axes, asked = inputs[0], found.value(node.inputs[3]) if len(node.inputs) > 3 else None
    mode = attribute(node, "coordinate_transformation_mode")
    if asked is None or attribute(node, "axes") is not None or mode == "tf_crop_and_resize":
        raise FixedSizeError(f"{label(node)} resizes in a way that is not followed")
    made: list[Axis] = []
    for axis, size in zip(axes, asked.reshape(-1).tolist(), strict=True):
        alike = isinstance(axis, Uniform) or axis == 1
        if size != count_of(axis) and not (alike and attribute(node, "mode") in _REPEATING):
            raise FixedSizeError(f"{label(node)} resizes an axis that is no place of the image")
        made.append(Uniform(size) if alike and size > 1 else axis)
    return [tuple(made)]


def _sizes(found: Followed, node: Node, index: int) -> list[int]:
    value = found.value(node.inputs[index])
    if value is None:
        raise FixedSizeError(f"{label(node)} repeats as often as is computed, and not known")
    return [int(size) for size in value.reshape(-1)]


# what makes equal elements, of tensors that may hold no place of the image
FILLS: dict[str, Callable[[Followed, Node, list[Axes]], Sequence[Axes]]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Resize": _resize,
    "Tile": _tile,
}


def stretch(edit: Editor, found: Followed, node: Node, index: int, axes: set[int]) -> None:
    """Let `node` read its input `index` once for each place of its map, along `axes`."""
    tensor, rank = node.inputs[index], len(found.axes[id(node.inputs[index])])
    order = sorted(axes)
    first, behind, along = (
        np.array(v, np.int64) for v in ([0] * len(order), [1] * len(order), order)
    )
    one = edit.one("Slice", [edit.current(tensor), first, behind, along])
    if operator(node) != "Concat":
        node.inputs[index] = one  # it is repeated as numpy broadcasts
        return
    other = next(
        other
        for other in node.inputs
        if all(isinstance(found.axes[id(other)][axis], Places) for axis in order)
    )
    shape = edit.one("Shape", [edit.current(other)])
    shape.dtype = np.dtype(np.int64)
    parts: list[Tensor | np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = [
        edit.one("Gather", [shape, np.array([axis], np.int64)], axis=0)
        if axis in axes
        else np.ones(1, np.int64)
        for axis in range(rank)
    ]
    node.inputs[index] = edit.one("Expand", [one, edit.one("Concat", parts, axis=0)])


__all__ = ["FILLS", "elementwise", "joined", "stretch"]
