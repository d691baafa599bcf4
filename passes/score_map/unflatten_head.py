"""`unflatten-head`: every answer of the head gets its place on the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graphpass import Graph, Pass, Tensor, require
from graphpass.follow.image_input import traced
from graphpass.follow.traced import Trace
from graphpass.rewrite.edit import Editor
from graphpass.rewrite.interface import Interface

from .lift import Lifted, Lifter, channels_last


@dataclass(frozen=True)
class UnflattenHead(Pass):
    """Flatten(f(x)) gives [N,C], one answer; f(x) is the map [N,C,h,w] of the same answers.

    What works on the classes after the Flatten (Softmax, ArgMax, TopK, …) moves to the channels
    of the map. A network that reads NHWC gives its map as [N,h,w,C].
    """

    name: ClassVar[str] = "unflatten-head"
    changes_interface: ClassVar[Interface] = Interface.MAPS

    def run(self, graph: Graph) -> list[str]:
        """Lift the head; the outputs get height and width."""
        found = traced(graph)
        if found is None or not found.heads:
            return []
        with Editor(graph) as edit:
            lifted = Lifter(found, edit).run()
            maps = {id(out): lifted[id(out)] for out in graph.outputs if id(out) in lifted}
            require(maps, "no output of the network comes from its head")
            _put_out(graph, found, edit, maps)
        for output in graph.outputs:
            if id(output) in maps:
                output.shape = _shape_of(output, maps[id(output)], found)
        return [f"'{output.name}' is a map" for output in graph.outputs if id(output) in maps]


def _put_out(graph: Graph, found: Trace, edit: Editor, maps: dict[int, Lifted]) -> None:
    for output in graph.outputs:
        if id(output) not in maps:
            continue
        lifted = maps[id(output)]
        cells = lifted.cells
        if found.channels_last:
            cells = edit.permuted(cells, channels_last(len(found.size)))
        if lifted.channel is None:
            axis = 1 + len(found.size) if found.channels_last else 1
            cells = edit.one("Squeeze", [cells], axes=[axis])
        if cells is not output:
            edit.replace(output, cells)


def _shape_of(output: Tensor, lifted: Lifted, found: Trace) -> list[Any]:
    batch = output.shape[0] if output.shape else None
    cells = [1] * len(found.size)
    if lifted.channel is None:
        return [batch, *cells]
    shape = output.shape
    count = shape[lifted.channel] if shape and len(shape) > lifted.channel else None
    return [batch, *cells, count] if found.channels_last else [batch, count, *cells]
