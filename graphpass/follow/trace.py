"""Follow an image through a network: where height and width go, and what ties them down.

`trace` gives the meaning of every axis at one image size. Where height and width vanish (pooled
over, flattened, squeezed) lies either a *head*, after which nothing has pixels again, or global
context inside the trunk, as in squeeze-and-excitation, whose result returns to the map.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass.follow.geometry import Line, TooLargeError
from graphpass.follow.image_axes import (
    Axes,
    AxisError,
    Merged,
    Spatial,
    is_spatial,
    sees_pixels,
    size_of,
    sizes_of,
)
from graphpass.follow.image_operators import HANDLERS, SLIDING
from graphpass.follow.traced import Collapse, Trace, Visit
from graphpass.ir.integers import compute, is_computed
from graphpass.ir.questions import (
    Graph,
    Node,
    RefusedError,
    Tensor,
    attribute,
    label,
    needed,
    operator,
    require,
)

# which axes of an input are its dimensions
LAYOUTS = {
    "NCHW": (2, 3),
    "NHWC": (1, 2),
    "NCW": (2,),
    "NWC": (1,),
    "NCDHW": (2, 3, 4),
    "NDHWC": (1, 2, 3),
}
_FLATTENS = ("Flatten", "Reshape", "Squeeze")


class FixedResolutionError(RefusedError):
    """A node ties the network to one resolution; `progress` says how far the trace came."""

    def __init__(self, reason: str, progress: int) -> None:
        super().__init__(reason)
        self.progress = progress


def trace(
    graph: Graph,
    image: Tensor,
    layout: str,
    size: tuple[int, ...],
    native: Trace | None = None,
    *,
    sliding: bool = False,
) -> Trace:
    """Follow `image` through `graph`. `layout` is one of `LAYOUTS`, `size` such as (height, width).

    Without `native`, `size` is the resolution that the network was made for: an AveragePool over
    its whole map counts as global. With `native`, the trace at that resolution, pools and
    Reshapes do at `size` what they do there; where `sliding`, an AveragePool of the head slides.

    Raises FixedResolutionError with the node and one sentence where the network cannot do that.
    """
    tracer = Tracer(Trace(graph, image, layout, size), native, sliding)
    tracer.run()
    return tracer.found


class Tracer:
    """Works out a `Trace`, node by node; what an operator does is said in `image_operators`."""

    def __init__(self, found: Trace, native: Trace | None, sliding: bool) -> None:
        self.found = found
        self.native = native
        self.visit = Visit(found, native)
        if native is not None:
            whole = native.trunk_pools if sliding else {id(c.node) for c in native.collapses}
            self.visit.pools.update(whole)
        axes: list[Any] = list(found.image.shape or ())
        places = LAYOUTS[found.layout]
        try:
            for dim, (place, name) in enumerate(zip(places, found.names, strict=True)):
                axes[place] = Spatial(dim, Line.image(found.size[dim]), name)
        except TooLargeError as error:
            raise FixedResolutionError(f"the image '{found.image.name}' {error}", 0) from None
        found.axes[id(found.image)] = tuple(axes)

    def run(self) -> None:
        """Follow the image to the end. Raises FixedResolutionError."""
        for index, node in enumerate(self.found.graph.nodes):
            try:
                self._visit(node)
            except (AxisError, TooLargeError) as error:
                raise FixedResolutionError(f"{label(node)} {error}", index) from None
            except FixedResolutionError:
                raise
            except RefusedError as error:
                raise FixedResolutionError(str(error), index) from None
        self._tell_trunk_from_head()

    def _visit(self, node: Node) -> None:
        self._evaluate(node)
        inputs = [self.found.axes_of(t) if t.name else () for t in node.inputs]
        seen = [axes is not None and sees_pixels(axes) for axes in inputs]
        if operator(node) == "CastLike":
            seen[1] = False  # it takes a type from there, nothing else
        if not any(seen):
            self._refuse_bodies(node)
            return
        op = operator(node)
        if op in ("Shape", "Size"):
            return
        handler = needed(HANDLERS.get(op), f"{label(node)} is not known to work at any resolution")
        known = [() if axes is None else axes for axes in inputs]
        outputs = handler(self.visit, node, known)
        if op in SLIDING:
            self.found.windows.append(node)
        source = node.inputs[seen.index(True)]
        for tensor, axes in zip(node.outputs, outputs, strict=False):
            self._record(node, source, tensor, axes)

    def _record(self, node: Node, source: Tensor, tensor: Tensor, axes: Axes) -> None:
        empty = any(isinstance(a, Spatial) and a.line.size == 0 for a in axes)
        require(not empty, f"nothing of the image is left after {label(node)}")
        rest = [axis for axis in axes[1:] if axis != 1]
        flattened = len(rest) == 1 and isinstance(rest[0], Merged) and _has_channels(rest[0])
        if flattened:
            axes = tuple(size_of(a) if isinstance(a, Merged) else a for a in axes)
        self.found.axes[id(tensor)] = axes
        if not sees_pixels(axes):
            kind = "flatten" if flattened or operator(node) in _FLATTENS else "pool"
            kind = "dense" if operator(node) == "Conv" else kind
            self.found.collapses.append(Collapse(node, source, kind))

    def _refuse_bodies(self, node: Node) -> None:
        for body in node.graph.subgraphs_of(node):
            for scope in body.scopes():
                for inner in scope.nodes:
                    for tensor in inner.inputs:
                        if id(tensor) in self.found.axes:
                            raise AxisError("reads the feature map inside a body of its own")

    def _tell_trunk_from_head(self) -> None:
        if self.native is not None:
            self.found.trunk_pools = self.native.trunk_pools
            return
        trunk = set()
        for collapse in self.found.collapses:
            if self._returns_to_map(collapse.node):
                trunk.add(id(collapse.node))
        self.found.trunk_pools = frozenset(trunk)

    def _returns_to_map(self, start: Node) -> bool:
        stack, seen = [start], {id(start)}
        while stack:
            for tensor in stack.pop().outputs:
                for reader in tensor.outputs:
                    if id(reader) in seen:
                        continue
                    seen.add(id(reader))
                    if any(self.found.is_map(output) for output in reader.outputs):
                        return True
                    stack.append(reader)
        return False

    # ---------------------------------------------------------------------- computed shapes

    def _evaluate(self, node: Node) -> None:
        if operator(node) == "Shape":
            axes = self.found.axes_of(node.inputs[0])
            if axes is not None:
                sizes = np.array(sizes_of(axes), np.int64)
                start, end = attribute(node, "start") or 0, attribute(node, "end")
                self.found.values[id(node.outputs[0])] = sizes[start:end]
            return
        if not is_computed(node):
            return
        values = [self.found.value(t) if t.name else None for t in node.inputs]
        if any(v is None and t.name for v, t in zip(values, node.inputs, strict=True)):
            return
        result = compute(node, *values)
        if result is not None:
            self.found.values[id(node.outputs[0])] = result


def _has_channels(merged: Merged) -> bool:
    return any(not is_spatial(part) for part in merged.parts) or all(
        isinstance(part, Spatial) and part.line.size == 1 for part in merged.parts
    )
