"""Follow height, width and the like through a network whose answers are maps.

Each axis of a tensor is a plain size, or the places along one dimension of the image (`Places`).
The network is followed once at the size that it was made for and then at others, where every node
must do what it does natively: a proof that nothing inside fixes the size, or needs what a change
of a Reshape or Resize can give. Works for signals (one dimension), images and volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphpass import Graph, Node, Tensor, attribute, constant, label, operator
from graphpass.ir.integers import compute, is_computed
from graphpass.ir.questions import RefusedError
from graphpass.ir.weight import Array

_SMALL_VALUE = 64  # constants up to this many elements may be part of a computed shape


@dataclass(frozen=True)
class Places:
    """`count` places along dimension number `dim` of the image."""

    dim: int
    count: int


@dataclass(frozen=True)
class Uniform:
    """`count` elements that are all equal: whatever number is needed can be had."""

    count: int


Axis = int | Places | Uniform
Axes = tuple[Axis, ...]


def count_of(axis: Axis) -> int:
    """Return the size of an axis."""
    return axis if isinstance(axis, int) else axis.count


def places_in(axes: Axes) -> dict[int, Places]:
    """Return the axes that hold places."""
    return {index: axis for index, axis in enumerate(axes) if isinstance(axis, Places)}


class FixedSizeError(RefusedError):
    """A node ties the network to one size; `progress`: how many nodes were passed.

    `layout`: the axes of the image that were taken for its dimensions, where that is known.
    """

    def __init__(self, reason: str, progress: int = 0, layout: Sequence[int] | None = None) -> None:
        super().__init__(reason)
        self.progress = progress
        self.layout = layout


@dataclass
class Followed:
    """What came of following `image` at one size.

    `shapes`: of every tensor natively. `native`: what came of the native size; None while that is
    followed. `changed`: Reshapes, Resizes and Slices that do not do as natively, by their id.
    `stretched`: by the ids of node and input, the axes along which it must be read as often as its
    map has places. `unknown`: tensors whose sizes follow from the image's in a way not followed.
    """

    graph: Graph
    image: Tensor
    shapes: Mapping[str, Sequence[int]]
    native: Followed | None = None
    axes: dict[int, Axes] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)
    windows: list[Node] = field(default_factory=list)
    changed: dict[int, Node] = field(default_factory=dict)
    stretched: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    pooled: dict[int, Node] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    sequences: dict[int, list[Axes]] = field(default_factory=dict)

    def axes_of(self, tensor: Tensor) -> Axes | None:
        """Return the axes of a tensor; None where its shape is unknown."""
        if id(tensor) in self.unknown:
            return None
        if id(tensor) in self.axes:
            return self.axes[id(tensor)]
        if id(tensor) in self.values:
            return self.values[id(tensor)].shape
        weight = constant(tensor)
        if weight is not None:
            return tuple(weight.shape)
        shape = self.shapes.get(tensor.name)
        return None if shape is None else tuple(shape)

    def holds_places(self, tensor: Tensor) -> bool:
        """Whether an axis of the tensor holds places."""
        return bool(places_in(self.axes.get(id(tensor), ())))

    def rank(self, node: Node, tensor: Tensor) -> int:
        """Return the number of axes. Raises FixedSizeError where it is unknown."""
        found = self.axes_of(tensor)
        if found is None:
            raise FixedSizeError(f"the shape of '{tensor.name}' at {label(node)} is not known")
        return len(found)

    def natively(self, tensor: Tensor) -> Axes:
        """Return the axes that a tensor has natively."""
        found = (self.native or self).axes_of(tensor)
        return () if found is None else found

    def value(self, tensor: Tensor) -> Array | None:
        """Return the value of a small tensor that is constant or computed from sizes."""
        if id(tensor) in self.values:
            return self.values[id(tensor)]
        weight = constant(tensor)
        if weight is None or weight.size > _SMALL_VALUE or weight.dtype.kind not in "iufb":
            return None
        return weight.array()

    def integers(self, node: Node, index: int, name: str) -> list[int] | None:
        """Return an attribute, or the input that took its place; None where there is none.

        Raises FixedSizeError where it is computed in a way that is not followed.
        """
        listed = node.attrs.get(name)
        if listed is not None:
            return [int(v) for v in listed] if isinstance(listed, (list, tuple)) else [int(listed)]
        if len(node.inputs) <= index or node.inputs[index].name == "":
            return None
        value = self.value(node.inputs[index])
        if value is None:
            raise FixedSizeError(f"the {name} of {label(node)} are computed and not known")
        return [int(v) for v in value.reshape(-1)]

    def evaluate(self, node: Node) -> None:
        """Note the value of a node that computes with sizes."""
        if operator(node) == "Shape":
            axes = self.axes_of(node.inputs[0])
            if axes is not None:
                sizes = np.array([count_of(axis) for axis in axes], np.int64)
                start, end = attribute(node, "start") or 0, attribute(node, "end")
                self.values[id(node.outputs[0])] = sizes[start:end]
            return
        if not is_computed(node) or any(self.holds_places(tensor) for tensor in node.inputs):
            return
        values = [self.value(t) if t.name else None for t in node.inputs]
        if any(v is None and t.name for v, t in zip(values, node.inputs, strict=True)):
            return
        result = compute(node, *values)
        if result is not None and result.size <= _SMALL_VALUE:
            self.values[id(node.outputs[0])] = result


__all__ = [
    "Axes",
    "Axis",
    "FixedSizeError",
    "Followed",
    "Places",
    "Uniform",
    "count_of",
    "places_in",
]
