"""`pool-to-window`: pooling in the head of a classifier slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpass import Graph, Node, Pass, Tensor, label, operator, require
from graphpass.follow.image_axes import Axes, Spatial
from graphpass.follow.image_input import traced
from graphpass.follow.traced import Collapse, Trace
from graphpass.ir.windows import windows_of
from graphpass.rewrite.edit import Editor

from .lift import channels_first, channels_last

_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_MAXIMA = ("GlobalMaxPool", "ReduceMax", "MaxPool")


@dataclass(frozen=True)
class PoolToWindow(Pass):
    """GlobalAveragePool(x[N,C,H,W]) = AveragePool_HxW(x), stride 1, in the head of a classifier.

    At other resolutions the window keeps its size and slides. Pooling inside the trunk, as in
    squeeze-and-excitation, stays global. GlobalMaxPool likewise becomes MaxPool.
    """

    name: ClassVar[str] = "pool-to-window"
    changes_interface: ClassVar[bool] = False

    def run(self, graph: Graph) -> list[str]:
        """Let every pooling of the head slide."""
        found = traced(graph)
        if found is None:
            return []
        pools = [c for c in found.heads if c.kind == "pool" and not _slides(c.node)]
        with Editor(graph) as edit:
            for pool in pools:
                edit.replace(pool.node.outputs[0], _window(edit, found, pool))
        return [f"{label(pool.node)} slides" for pool in pools]


def _slides(node: Node) -> bool:
    pools = operator(node) in ("AveragePool", "MaxPool")
    return pools and all(window.stride == 1 for window in windows_of(node))


def _window(edit: Editor, found: Trace, pool: Collapse) -> Tensor:
    op = operator(pool.node)
    require(op in (*_AVERAGES, *_MAXIMA), f"{label(pool.node)} is no average or maximum")
    kernel = found.map_size(pool.source)
    axes, dims = found.axes[id(pool.source)], len(found.size)
    dropped = _surplus(axes, dims)
    x = pool.source
    if dropped:  # a signal that is pooled as an image of one row
        x = edit.one("Squeeze", [x], axes=dropped)
        axes = tuple(axis for place, axis in enumerate(axes) if place not in dropped)
    require(len(axes) == 2 + dims, f"{label(pool.node)} pools something else than feature maps")
    last = isinstance(axes[1], Spatial)
    order = sorted(range(dims), key=found.places(pool.source).__getitem__)
    sliding = edit.one(
        "AveragePool" if op in _AVERAGES else "MaxPool",
        [edit.permuted(x, channels_first(dims)) if last else x],
        kernel_shape=[kernel[dim] for dim in order],
        strides=[1] * dims,
    )
    sliding.shape = [axes[0], axes[-1] if last else axes[1], *[1] * dims]
    if len(found.axes[id(pool.node.outputs[0])]) == len(axes) + len(dropped):
        result = edit.permuted(sliding, channels_last(dims)) if last else sliding
        return edit.one("Unsqueeze", [result], axes=dropped) if dropped else result
    flat = edit.one("Flatten", [sliding], axis=1)
    flat.shape = sliding.shape[:2]
    return flat


def _surplus(axes: Axes, dims: int) -> list[int]:
    """Return which axes of a map of one row, or the like, it has beyond those of the image."""
    ones = [place for place, axis in enumerate(axes) if place > 1 and axis == 1]
    return ones[: max(0, len(axes) - 2 - dims)]
