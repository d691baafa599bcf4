"""`pool-to-window`: pooling in the head of a classifier slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpass import Graph, Node, Pass, Tensor, label, operator, require
from graphpass.follow.image_axes import Spatial, size_of
from graphpass.follow.image_input import traced
from graphpass.follow.traced import Collapse, Trace
from graphpass.ir.windows import windows_of
from graphpass.rewrite.edit import Editor

from .lift import TO_NCHW, TO_NHWC

_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_MAXIMA = ("GlobalMaxPool", "ReduceMax")


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
    return operator(node) == "AveragePool" and all(w.stride == 1 for w in windows_of(node))


def _window(edit: Editor, found: Trace, pool: Collapse) -> Tensor:
    op = operator(pool.node)
    require(op in (*_AVERAGES, *_MAXIMA), f"{label(pool.node)} is no average or maximum")
    kernel = list(found.map_size(pool.source))
    axes = found.axes[id(pool.source)]
    places = [a.dim if isinstance(a, Spatial) else None for a in axes]
    require(len(axes) == 4, f"{label(pool.node)} pools something else than feature maps")
    last = places[1] is not None
    x = edit.permuted(pool.source, TO_NCHW) if last else pool.source
    if places.index(0) > places.index(1):
        kernel.reverse()
    sliding = edit.one(
        "AveragePool" if op in _AVERAGES else "MaxPool",
        [x],
        kernel_shape=kernel,
        strides=[1, 1],
    )
    sliding.shape = [axes[0], axes[3] if last else axes[1], 1, 1]
    shape = [size_of(axis) for axis in found.axes[id(pool.node.outputs[0])]]
    if len(shape) == 4:
        return edit.permuted(sliding, TO_NHWC) if last else sliding
    flat = edit.one("Flatten", [sliding], axis=1)
    flat.shape = sliding.shape[:2]
    return flat
