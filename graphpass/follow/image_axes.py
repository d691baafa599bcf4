"""What the axes of a tensor mean in a network that sees an image.

Following an image through a network, each axis of each tensor is a plain size (channels), the
batch, height or width (`Spatial`), or pixels and perhaps channels in one (`Merged`). A signal has
a length in place of height and width, a volume a depth as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphpass.follow.geometry import Line

# what the dimensions of a signal, an image and a volume are called
DIMENSIONS = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
# Stands in for a symbolic batch: a prime that no product of sizes meets by accident.
SYMBOLIC_SIZE = 7919


def shown(sizes: Sequence[int]) -> str:
    """Write sizes for people: N for a symbolic batch, 4·N for what it was joined with."""
    parts = []
    for size in map(int, sizes):
        times, rest = divmod(size, SYMBOLIC_SIZE)
        is_batch = times > 0 and not rest
        parts.append(str(size) if not is_batch else "N" if times == 1 else f"{times}·N")
    return f"[{', '.join(parts)}]"


@dataclass(frozen=True, eq=False)
class Spatial:
    """One of the dimensions of a feature map: number `dim` of them, and what people call it."""

    dim: int
    line: Line
    name: str

    def __str__(self) -> str:
        return f"{self.name} {self.line.size}"


@dataclass(frozen=True, eq=False)
class Merged:
    """Several axes made one, pixels among them; `parts` is empty where more was appended."""

    parts: tuple[Axis, ...]
    size: int


# a plain size, the name of a symbolic one, None for one that is unknown
Axis = int | str | None | Spatial | Merged
Axes = tuple[Axis, ...]


class AxisError(Exception):
    """An operator mixes axes in a way that ties it to one resolution; the text ends a sentence."""


class PositionError(AxisError):
    """A tensor has other values at each position."""


def is_spatial(axis: Axis) -> bool:
    """Whether the size of `axis` follows from that of the image."""
    return isinstance(axis, (Spatial, Merged))


def sees_pixels(axes: Axes) -> bool:
    """Whether any axis is spatial."""
    return any(is_spatial(axis) for axis in axes)


def size_of(axis: Axis) -> int:
    """Return the size; a symbolic one is `SYMBOLIC_SIZE`."""
    if isinstance(axis, int):
        return axis
    if isinstance(axis, Spatial):
        return axis.line.size
    return axis.size if isinstance(axis, Merged) else SYMBOLIC_SIZE


def sizes_of(axes: Axes) -> list[int]:
    """Return the size of every axis."""
    return [size_of(axis) for axis in axes]


def broadcast(tensors: Sequence[Axes]) -> Axes:
    """Return the axes of an elementwise operator over `tensors`.

    Raises `AxisError` where a plain size meets a spatial one (a weight for each pixel), or
    maps of different strides meet.
    """
    rank = max(map(len, tensors))
    padded = [(1,) * (rank - len(axes)) + axes for axes in tensors]
    return tuple(_broadcast_axis(column) for column in zip(*padded, strict=True))


def _broadcast_axis(column: Sequence[Axis]) -> Axis:
    spatial = [axis for axis in column if is_spatial(axis)]
    if not spatial:
        return next((axis for axis in column if axis != 1), 1)
    joined = spatial[0]
    for axis in spatial[1:]:
        joined = _join(joined, axis)
    for axis in column:
        if isinstance(axis, int) and axis != 1:
            raise PositionError(f"has a value of its own for each of {axis} positions")
    return joined


def _join(one: Axis, two: Axis) -> Axis:
    if isinstance(one, Merged) and isinstance(two, Merged) and one.size == two.size:
        return one
    if not (isinstance(one, Spatial) and isinstance(two, Spatial)):
        raise AxisError("joins a feature map with a sequence of pixels")
    if one.dim != two.dim:
        raise AxisError(f"joins {one.name} with {two.name}")
    if one.line.size == two.line.size and one.line.stride == two.line.stride:
        return replace(one, line=one.line.joined(two.line))
    if one.line.size == 1 and two.line.size == 1:
        return one  # only at this resolution: the caller looks at others
    raise AxisError(f"joins a map of {one} (stride {one.line.stride}) with one of {two}")


def target_sizes(axes: Axes, shape: Sequence[int], allow_zero: bool = False) -> list[int]:
    """Return the sizes that Reshape makes of `axes` by `shape`, its 0 and -1 resolved."""
    sizes = sizes_of(axes)
    target = [
        sizes[index] if value == 0 and not allow_zero and index < len(sizes) else int(value)
        for index, value in enumerate(shape)
    ]
    total = math.prod(sizes)
    if -1 in target:
        known = math.prod(value for value in target if value != -1)
        if known == 0 or total % known:
            raise AxisError(f"cannot make {shown(sizes)} into {shown(shape)}")
        target[target.index(-1)] = total // known
    if math.prod(target) != total:
        raise AxisError(f"cannot make {shown(sizes)} into {shown(shape)}")
    return target


def regroup(axes: Axes, target: Sequence[int]) -> Axes:
    """Return the axes of the same elements, in the same order, under the sizes `target`.

    Raises `AxisError` where a spatial axis is split, or merged with others and split again.
    """
    parts: list[Axis] = []
    for axis in axes:
        parts.extend(axis.parts if isinstance(axis, Merged) and axis.parts else (axis,))
    result: list[Axis] = []
    position = 0
    for sizes, group in _groups([size_of(part) for part in parts], list(target)):
        result.extend(_regroup_block(parts[position : position + group], sizes))
        position += group
    return tuple(result)


def _groups(before: list[int], after: list[int]) -> list[tuple[list[int], int]]:
    """Cut both lists into shortest blocks of equal product: (sizes after, number before)."""
    blocks: list[tuple[list[int], int]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        start_i, start_j = i, j
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        blocks.append((after[start_j:j], i - start_i))
    if i < len(before) or j < len(after):  # only ones are left
        blocks.append((after[j:], len(before) - i))
    return blocks


def _regroup_block(parts: list[Axis], sizes: list[int]) -> list[Axis]:
    if len(parts) == 1 and len(sizes) == 1:
        return [parts[0]]
    real = [part for part in parts if is_spatial(part) or size_of(part) != 1]
    wide = [size for size in sizes if size != 1]
    if not any(is_spatial(part) for part in real):
        return _plain_block(real, sizes)
    if not wide:  # ones only: height and width of a 1x1 map among them
        kept = [*real[: len(sizes)], *[1] * (len(sizes) - len(real))]
        return list(kept)
    several = [part for part in real if size_of(part) != 1]
    if len(wide) > 1:
        names = " and ".join(str(p) if isinstance(p, Spatial) else str(size_of(p)) for p in real)
        raise AxisError(f"makes {names} into {'x'.join(map(str, sizes))}")
    alone = several[0] if len(several) == 1 and len(real) == 1 else Merged(tuple(real), wide[0])
    return [alone if size != 1 else 1 for size in sizes]


def _plain_block(parts: list[Axis], sizes: list[int]) -> list[Axis]:
    named = [part for part in parts if not isinstance(part, int)]
    if not named:
        return list(sizes)
    if len(parts) == 1:
        return [parts[0] if size == size_of(parts[0]) else size for size in sizes]
    return [size if size % SYMBOLIC_SIZE else None for size in sizes]
