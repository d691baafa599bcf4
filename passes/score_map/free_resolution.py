"""`free-resolution`: height and width of the image vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphpass import (
    Graph,
    Node,
    Pass,
    Tensor,
    attribute,
    label,
    operator,
    opset,
    require,
)
from graphpass.errors import UsageError
from graphpass.follow.image_axes import (
    DIMENSIONS,
    AxisError,
    Merged,
    Spatial,
    size_of,
    target_sizes,
)
from graphpass.follow.image_input import traced
from graphpass.follow.trace import LAYOUTS, FixedResolutionError, trace
from graphpass.follow.traced import Trace
from graphpass.ir.operators import Trait, has
from graphpass.ir.questions import RefusedError
from graphpass.rewrite.edit import Editor
from graphpass.rewrite.interface import Interface

from .free_places import ALL, ANY, free_places
from .lift import SOFTMAXES, cellwise_softmax
from .places import FixedSizeError
from .pool_to_global import make_global

_LARGER = (1, 7, 32, 45, 96)  # pixels more: sizes at which maps are compared


@dataclass(frozen=True)
class FreeResolution(Pass):
    """A network of sliding windows computes the same at every resolution.

    Height and width of the input become symbolic; Reshapes that name them compute them instead;
    pooling over the whole map inside the trunk (squeeze-and-excitation) is global at every size;
    Softmax works on the channels alone. Refused, with the node, where something else ties the
    network to its resolution.

    `axes`: "any": as many dimensions as can vary, and those that cannot are told; "all": all or
    none; or those named, such as "width" or "depth+height". `to`: the shape that the input is to
    have, as in 1,3,96,160: refused where it grows in steps that do not lead there; 0 is any size.
    """

    name: ClassVar[str] = "free-resolution"
    changes_interface: ClassVar[Interface] = Interface.SIZES
    axes: str = ANY
    to: str = ""

    def __post_init__(self) -> None:
        known = list(dict.fromkeys(name for names in DIMENSIONS.values() for name in names))
        if self.axes not in (ANY, ALL) and not set(self.axes.split("+")) <= set(known):
            raise UsageError(
                f"axes of free-resolution are {ANY}, {ALL}, or of {', '.join(known)}, joined by +: "
                f"not {self.axes!r}"
            )

        if not all(size.strip().isdecimal() for size in self.to.split(",") if self.to):
            raise UsageError(
                f"to of free-resolution is a shape such as 1,3,96,160: not {self.to!r}"
            )

    def run(self, graph: Graph) -> list[str]:
        """Free the trunk and declare height and width symbolic."""
        wanted = [int(size) for size in self.to.split(",") if size]
        if graph.parent is not None or graph.is_function:
            return []
        if self.axes not in (ANY, ALL):
            return free_places(graph, self.axes, wanted)
        try:
            native = traced(graph)
        except FixedResolutionError as error:
            try:
                return free_places(graph, self.axes, wanted)
            except FixedSizeError as other:
                # whichever came farther knows more
                raise (error if error.progress >= other.progress else other) from None
        if native is None:
            return free_places(graph, self.axes, wanted)
        if not native.heads:
            try:
                return free_places(graph, ALL, wanted)
            except FixedSizeError:
                slides = any(has(node, Trait.SLIDING) for node in native.windows)
                if native.reshapes or not slides or _merges(native):
                    return free_places(graph, self.axes, wanted)
        try:
            return self._free_head(graph, native)
        except RefusedError:
            if self.axes == ALL:
                raise
            try:
                return free_places(graph, self.axes, wanted)
            except FixedSizeError:
                pass
            raise

    def _free_head(self, graph: Graph, native: Trace) -> list[str]:
        """Free a network that answers once for the image, or slides like one that does."""

        def at(larger: int) -> Trace:
            size = tuple(pixels + larger for pixels in native.size)
            return trace(graph, native.image, native.layout, size, native, sliding=True)

        found = at(0)
        _require_free_head(found)
        others = [at(larger) for larger in _LARGER]
        done: list[str] = []
        with Editor(graph) as edit:
            # pools read what Reshapes became; no Reshape makes places of what was pooled
            done += _free_reshapes(native, others[-1], edit)
            done += _free_pools(found, edit)
            done += _free_softmax(found, edit)
        _declare(graph, found, others)
        verb = "varies" if len(found.names) == 1 else "vary"
        return [*done, f"{_joined(found.names)} of '{found.image.name}' {verb}"]


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _merges(found: Trace) -> bool:
    """Whether height and width are one axis anywhere, which is not freed here."""
    return any(isinstance(axis, Merged) for axes in found.axes.values() for axis in axes)


def _require_free_head(found: Trace) -> None:
    for collapse in found.collapses:
        pooled = collapse.kind == "pool"
        size = "x".join(map(str, found.map_size(collapse.source)))
        require(
            pooled,
            f"{label(collapse.node)} flattens a map of {size}: there is a weight for "
            "each of its pixels, and one answer for a larger image has no weights for the rest",
        )


def _free_pools(found: Trace, edit: Editor) -> list[str]:
    pools = [
        c.node
        for c in found.collapses
        if operator(c.node) == "AveragePool" and id(c.node) in found.trunk_pools
    ]
    make_global(edit, pools)
    return [f"{label(pool)} inside the trunk is global" for pool in pools]


def _free_reshapes(found: Trace, other: Trace, edit: Editor) -> list[str]:
    done = []
    for node in found.reshapes:
        wanted = [size_of(axis) for axis in other.axes[id(node.outputs[0])]]
        if _resolved(other, node) != wanted:
            shape = _computed_shape(found, edit, node)
            source = edit.current(node.inputs[0])
            replaced = edit.one("Reshape", [source, shape], like=node, allowzero=None)
            edit.replace(node.outputs[0], replaced)
            done.append(f"{label(node)} computes {_joined(found.names)}")
    return done


def _resolved(other: Trace, node: Node) -> list[int] | None:
    """Return the sizes that the Reshape, as it is, makes of a larger image; None where it fails."""
    shape = other.value(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None:
        return None
    zero_is_size = bool(attribute(node, "allowzero") or 0)
    try:
        return target_sizes(
            other.axes[id(node.inputs[0])], shape.reshape(-1).tolist(), zero_is_size
        )
    except AxisError:
        return None


def _computed_shape(found: Trace, edit: Editor, node: Node) -> Tensor:
    """Return the Reshape's target: constants and, for height and width, parts of Shape(x)."""
    source, target = found.axes[id(node.inputs[0])], found.axes[id(node.outputs[0])]
    place = {axis.dim: i for i, axis in enumerate(source) if isinstance(axis, Spatial)}
    runs: list[tuple[bool, list[int]]] = []
    for axis in target:
        plain = isinstance(axis, int)
        if not plain:
            known = isinstance(axis, Spatial) and axis.dim in place
            merges = f"{label(node)} merges {' or '.join(found.names)}"
            require(known or axis == source[0], merges)
        value = (
            axis if isinstance(axis, int) else place[axis.dim] if isinstance(axis, Spatial) else 0
        )
        if not runs or runs[-1][0] != plain:
            runs.append((plain, []))
        runs[-1][1].append(value)
    shape = edit.one("Shape", [edit.current(node.inputs[0])])
    parts: list[Any] = [
        values if plain else edit.one("Gather", [shape, values], axis=0)
        for plain, values in ((plain, np.array(run, np.int64)) for plain, run in runs)
    ]
    return edit.one("Concat", parts, axis=0)


def _free_softmax(found: Trace, edit: Editor) -> list[str]:
    """Before opset 13 Softmax flattens: over one cell that is the same, over a map it is not."""
    done = []
    for node in found.graph.nodes:
        flattens = operator(node) in (*SOFTMAXES, "Hardmax") and opset(node) < 13
        channels = (1, -1 - len(found.size))
        if flattens and found.is_map(node.inputs[0]) and attribute(node, "axis") in channels:
            edit.replace(
                node.outputs[0],
                cellwise_softmax(edit, node, edit.current(node.inputs[0]), len(found.size)),
            )
            done.append(f"{label(node)} works on the channels")
    return done


def _declare(graph: Graph, found: Trace, others: list[Trace]) -> None:
    """Give the dimensions names, shared where the sizes are equal at every resolution."""
    shape = list(found.image.shape or ())
    for place, name in zip(LAYOUTS[found.layout], found.names, strict=True):
        shape[place] = name
    found.image.shape = shape
    names: dict[tuple[int, ...], str] = {}
    for output in graph.outputs:
        if output.shape is None or not found.is_map(output):
            continue
        declared = list(output.shape)
        for index, axis in enumerate(found.axes[id(output)]):
            if isinstance(axis, Spatial):
                sizes = (axis.dim, *(size_of(t.axes[id(output)][index]) for t in others))
                declared[index] = names.setdefault(sizes, _size_name(axis, names))
        output.shape = declared


def _size_name(axis: Spatial, names: dict[tuple[int, ...], str]) -> str:
    base = f"map_{axis.name}"
    count = sum(name.startswith(base) for name in names.values())
    return f"{base}_{count + 1}" if count else base
