"""What is known once an image has been followed through a network; see `trace`."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphpass.follow.geometry import Line
from graphpass.follow.image_axes import DIMENSIONS, Axes, Spatial
from graphpass.ir.questions import Graph, Node, Tensor, constant, label, needed
from graphpass.ir.weight import Array

_SMALL_VALUE = 64  # constants up to this many elements may be part of a computed shape


@dataclass(frozen=True)
class Collapse:
    """Where height and width vanish, read from `source`, which still has them.

    `kind` is "pool", "flatten", or "dense": a Conv whose kernel is the whole map, whichever way
    the map lies in memory.
    """

    node: Node
    source: Tensor
    kind: str


@dataclass
class Trace:
    """What came of following an image of `size` pixels, such as (height, width), through `graph`.

    `size` has one number for a signal, three for a volume.
    """

    graph: Graph
    image: Tensor
    layout: str
    size: tuple[int, ...]
    axes: dict[int, Axes] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)
    collapses: list[Collapse] = field(default_factory=list)
    reshapes: list[Node] = field(default_factory=list)
    trunk_pools: frozenset[int] = frozenset()
    windows: list[Node] = field(default_factory=list)
    sequences: dict[int, list[Axes]] = field(default_factory=dict)

    def axes_of(self, tensor: Tensor) -> Axes | None:
        """Return the axes of `tensor`; None where its rank is unknown."""
        if id(tensor) in self.axes:
            return self.axes[id(tensor)]
        weight = constant(tensor)
        if weight is not None:
            return tuple(weight.shape)
        return None if tensor.shape is None else tuple(tensor.shape)

    def value(self, tensor: Tensor) -> Array | None:
        """Return the value of a small tensor that is constant or computed from shapes."""
        if id(tensor) in self.values:
            return self.values[id(tensor)]
        weight = constant(tensor)
        if weight is None or weight.size > _SMALL_VALUE or weight.dtype.kind not in "iufb":
            return None
        return weight.array()

    @property
    def names(self) -> tuple[str, ...]:
        """What people call the dimensions of the image."""
        return DIMENSIONS[len(self.size)]

    @property
    def channels_last(self) -> bool:
        """Whether the channels of the image lie behind its dimensions."""
        return self.layout.endswith("C")

    def lines(self, tensor: Tensor) -> tuple[Line, ...]:
        """Return the dimensions of a feature map, such as height and width."""
        found = {a.dim: a.line for a in self.axes[id(tensor)] if isinstance(a, Spatial)}
        return tuple(found[dim] for dim in range(len(self.size)))

    def map_size(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the cells of a feature map in each dimension."""
        return tuple(line.size for line in self.lines(tensor))

    def is_map(self, tensor: Tensor) -> bool:
        """Whether `tensor` has every dimension of the image, each on an axis of its own."""
        dims = [a.dim for a in self.axes.get(id(tensor), ()) if isinstance(a, Spatial)]
        return sorted(dims) == list(range(len(self.size)))

    def places(self, tensor: Tensor) -> tuple[int, ...]:
        """Return which axes of a feature map its dimensions are, in their order."""
        axes = enumerate(self.axes[id(tensor)])
        found = {axis.dim: index for index, axis in axes if isinstance(axis, Spatial)}
        return tuple(found[dim] for dim in range(len(self.size)))

    @property
    def touches_weights(self) -> bool:
        """Whether a convolution or pooling slides over the image, as it does in one layout only."""
        return bool(self.windows)

    @property
    def heads(self) -> list[Collapse]:
        """Where height and width vanish for good."""
        return [c for c in self.collapses if id(c.node) not in self.trunk_pools]


@dataclass
class Visit:
    """What an operator may ask while an image is followed: `found` so far, and `native`.

    `native`: the trace at the resolution that the network was made for; None while that is the
    one that is followed. `pools`: nodes that pool over their whole map at any size.
    """

    found: Trace
    native: Trace | None
    pools: set[int] = field(default_factory=set)

    def integers(self, node: Node, index: int, name: str) -> list[int] | None:
        """Return an attribute, or the input `index` that replaced it in later opsets."""
        listed = node.attrs.get(name)
        if listed is not None:
            return [int(v) for v in listed] if isinstance(listed, (list, tuple)) else [int(listed)]
        if len(node.inputs) <= index or node.inputs[index].name == "":
            return None
        value = needed(
            self.found.value(node.inputs[index]),
            f"the {name} of {label(node)} depend on the image, and how could not be worked out",
        )
        return [int(v) for v in value.reshape(-1)]
