"""Where the channels of a tensor lie, and which constants hold one value per channel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from graphpass import Node, Tensor, Weight, attribute, label, needed, rank, require, static_dim
from graphpass.ir.refusal import UNKNOWN_SIZE

from .affine import Array, Floats


@dataclass(frozen=True)
class Channels:
    """`size` channels along one axis, counted from the end; `rank` is None where unknown."""

    size: int
    axis: int
    rank: int | None

    def after(self, transpose: Node) -> Channels:
        """Say where they lie in the output of `transpose`, lying here in its input."""
        order = self._order(transpose)
        return replace(self, axis=order.index(self.axis + len(order)) - len(order), rank=len(order))

    def before(self, transpose: Node) -> Channels:
        """Say where they lie in the input of `transpose`, lying here in its output."""
        order = self._order(transpose)
        return replace(self, axis=order[self.axis + len(order)] - len(order), rank=len(order))

    def _order(self, transpose: Node) -> list[int]:
        order = attribute(transpose, "perm")
        if order is None:
            require(
                self.rank is not None,
                f"the rank of the input of {label(transpose)} is unknown",
                UNKNOWN_SIZE,
            )
            order = list(range(self.rank or 0))[::-1]
        require(
            self.rank in (None, len(order)) and -len(order) <= self.axis,
            f"{label(transpose)} does not have the rank of its input",
        )
        return list(order)

    def place(self) -> int:
        """Return the axis counted from the front, or from the end where the rank is unknown."""
        return self.axis if self.rank is None else self.axis + self.rank

    def spread(self, values: Array) -> Array:
        """Give `values`, one per channel, the shape that broadcasts along the axis."""
        return values.reshape(-1, *[1] * (-self.axis - 1))


def vector(weight: Weight, size: int) -> Floats:
    """Return a parameter of shape [size] as float64; refuse another shape."""
    require(
        weight.shape == (size,),
        f"'{weight.name}' of shape {list(weight.shape)} is not one value for each of the "
        f"{size} channels",
    )
    return weight.astype(np.float64)


def per_channel(term: Weight, channels: Channels, where: str) -> Floats:
    """Return a constant that broadcasts along the channels as float64 of shape [size].

    It may also hold one value for all of them. Refuses what varies along another axis, adds axes
    or widens the tensor. `where` names that tensor: "the output of Conv 'c'".
    """
    shape = list(term.shape)
    require(term.size > 0, f"'{term.name}' is empty")
    known = channels.rank
    if known is None:
        require(
            term.ndim <= -channels.axis,
            f"the rank of {where} is unknown, '{term.name}' has {term.ndim} axes",
            UNKNOWN_SIZE,
        )
    else:
        require(
            term.ndim <= known,
            f"'{term.name}' of shape {shape} has more axes than {where}, which has {known}",
        )
    own = shape[channels.axis] if term.ndim >= -channels.axis else 1
    require(
        term.size == own,
        f"'{term.name}' of shape {shape} does not lie along the channels of {where}, "
        f"axis {channels.place()}",
    )
    require(
        own in (1, channels.size),
        f"'{term.name}' holds {own} values, but {where} has {channels.size} channels",
    )
    return np.broadcast_to(term.astype(np.float64).reshape(-1), (channels.size,))


def require_not_widened(node: Node, x: Tensor, term: Weight | None, channels: Channels) -> None:
    """Refuse where `node`, x op term, may be larger than `x`: readers would miss that shape."""
    if term is None or term.ndim == 0:
        return
    axes = needed(rank(x), f"the rank of '{x.name}' is unknown", UNKNOWN_SIZE)
    require(term.ndim <= axes, f"{label(node)} adds axes to '{x.name}'")
    if term.size > 1:
        require(
            static_dim(x, channels.axis) == channels.size,
            f"'{x.name}' is not known to have {channels.size} channels before {label(node)}",
            UNKNOWN_SIZE,
        )
