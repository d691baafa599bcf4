"""Affine maps of whole tensors: `Affine` whose arrays have the axes of the tensor.

They have size 1 along axes along which nothing varies: a map of each channel is [1, C, 1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from graphpass import (
    Node,
    Tensor,
    label,
    rank,
    require,
    static_dim,
)
from graphpass.ir.refusal import UNKNOWN_SIZE, needed

from .affine import Affine, Floats
from .channels import Channels


class Mover(NamedTuple):
    """What a map is before an operator, by input (None: it has no part in it), and after it."""

    before: Callable[[Node, Affine], Sequence[Affine | None]]
    after: Callable[[Node, Affine, int], Affine]


def laid_out(values: Floats, axis: int, axes: int) -> Floats:
    """Give `values`, one for each channel, `axes` axes of which `axis` is theirs."""
    shape = [1] * axes
    shape[axis] = values.size
    return values.reshape(shape)


def on_each(change: Affine, f: Callable[[Floats], Floats]) -> Affine:
    """Return the map with `f` applied to its factors and to its shifts."""
    return Affine(compressed(f(change.factor)), compressed(f(change.shift)))


def compressed(values: Floats) -> Floats:
    """Return `values` with size 1 where they do not vary along an axis."""
    for axis in range(values.ndim):
        first = values.take([0], axis)
        if values.shape[axis] > 1 and (values == first).all():
            values = first
    return values


def varying(change: Affine) -> list[int]:
    """Return the axes along which a map varies."""
    shape = np.broadcast_shapes(change.factor.shape, change.shift.shape)
    return [axis for axis, size in enumerate(shape) if size > 1]


def of_channels(node: Node, change: Affine, channels: Channels) -> Affine:
    """Return a map of a whole tensor as one of `channels`; refuse what varies along other axes."""
    axes, size = change.factor.ndim, channels.size
    others = [axis for axis in varying(change) if axis != channels.axis + axes]
    require(
        not others and channels.axis + axes >= 0,
        f"the map varies along axis {others[:1]}, which are no channels of {label(node)}",
    )
    own = max(change.factor.shape[channels.axis], change.shift.shape[channels.axis])
    require(own in (1, size), f"the map is of {own} channels, {label(node)} has {size}")
    factor, shift = (
        np.broadcast_to(values.reshape(-1), (size,)) for values in (change.factor, change.shift)
    )
    return Affine(factor, shift)


def axes_count(tensor: Tensor) -> int:
    """Return the rank; refuse where it is not known."""
    return needed(rank(tensor), f"the rank of '{tensor.name}' is not known", UNKNOWN_SIZE)


def size_of(tensor: Tensor, axis: int) -> int:
    """Return the size of an axis; refuse where it is not fixed."""
    unknown = f"the size of axis {axis} of '{tensor.name}' is not fixed"
    return needed(static_dim(tensor, axis), unknown, UNKNOWN_SIZE)


def require_alike(node: Node, change: Affine, axes: Sequence[int]) -> None:
    """Refuse a map that varies along one of `axes`."""
    mixed = sorted(set(varying(change)) & set(axes))
    require(not mixed, f"{label(node)} works along axis {mixed[:1]}, along which the map varies")


def require_order_kept(node: Node, change: Affine) -> None:
    """Refuse factors that turn the largest element into another one."""
    require(
        (change.factor > 0).all(),
        f"{label(node)} keeps the largest element, and a factor is not positive",
    )


def require_no_shift(node: Node, change: Affine, why: str) -> None:
    """Refuse a shift because of what `node` does."""
    require(not change.shifts, f"{label(node)} {why}, which no shift passes")


def as_it_is(check: Callable[[Node, Affine], None]) -> Mover:
    """A row for operators that leave a map as it is, where `check` does not refuse."""

    def before(node: Node, change: Affine) -> Sequence[Affine | None]:
        check(node, change)
        return [change]

    def after(node: Node, change: Affine, index: int) -> Affine:
        check(node, change)
        return change

    return Mover(before, after)
