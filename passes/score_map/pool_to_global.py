"""`pool-to-global`: pooling over the whole map is global at every size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpass import Graph, Node, Pass, label, operator
from graphpass.follow.image_input import traced
from graphpass.rewrite.edit import Editor

_GLOBAL = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}


@dataclass(frozen=True)
class PoolToGlobal(Pass):
    """AveragePool_HxW(x[N,C,H,W]) = GlobalAveragePool(x), wherever one window covers the map.

    MaxPool likewise becomes GlobalMaxPool. At other resolutions the pooling stays global: one
    answer for each image.
    """

    name: ClassVar[str] = "pool-to-global"

    def run(self, graph: Graph) -> list[str]:
        """Make poolings over the whole map global."""
        found = traced(graph)
        if found is None:
            return []
        pools = [c.node for c in found.collapses if operator(c.node) in _GLOBAL]
        with Editor(graph) as edit:
            make_global(edit, pools)
        return [f"{label(pool)} is global" for pool in pools]


def make_global(edit: Editor, pools: list[Node]) -> None:
    """Let each of `pools` pool over the whole of its map, whatever its size."""
    for pool in pools:
        source = edit.current(pool.inputs[0])
        edit.replace(pool.outputs[0], edit.one(_GLOBAL[operator(pool)], [source]))
