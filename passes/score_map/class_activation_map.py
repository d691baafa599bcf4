"""`class-activation-map`: which places of the image speak for a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpass import Graph, Pass, Tensor, operator, producer, require
from graphpass.follow.image_input import traced
from graphpass.follow.traced import Trace
from graphpass.rewrite.edit import Editor
from graphpass.rewrite.interface import Interface

from .lift import SOFTMAXES, Lifted, Lifter, channels_last


@dataclass(frozen=True)
class ClassActivationMap(Pass):
    """W·mean(y) + b = mean(W·y + b): the map W·y + b says which places speak for a class.

    It becomes a further output `<output>.cam` of a network whose head is a mean and one linear
    layer (Zhou et al., "Learning Deep Features for Discriminative Localization", 2016).
    """

    name: ClassVar[str] = "class-activation-map"
    changes_interface: ClassVar[Interface] = Interface.OUTPUTS

    def run(self, graph: Graph) -> list[str]:
        """Compute the last linear layer before the pooling, too, and put it out."""
        found = traced(graph)
        if found is None:
            return []
        names = {output.name for output in graph.outputs}
        if any(f"{name}.cam" in names for name in names):
            return []  # there it is
        added: list[Tensor] = []
        with Editor(graph) as edit:
            lifted = Lifter(found, edit, linear=True).run()
            for output in list(graph.outputs):
                last = _last_lifted(output, lifted)
                if last is not None:
                    added.append(_cam(edit, found, output, last))
        graph.outputs.extend(added)
        require(added, "no output of the network is a mean and a linear layer")
        return [f"'{tensor.name}' is a class activation map" for tensor in added]


def _last_lifted(output: Tensor, lifted: dict[int, Lifted]) -> Lifted | None:
    tensor: Tensor = output
    while id(tensor) not in lifted:
        node = producer(tensor)
        if node is None or operator(node) not in (*SOFTMAXES, "Flatten", "Reshape", "Squeeze"):
            return None
        tensor = node.inputs[0]
    return lifted[id(tensor)]


def _cam(edit: Editor, found: Trace, output: Tensor, last: Lifted) -> Tensor:
    cells = last.cells
    if found.channels_last:
        cells = edit.permuted(cells, channels_last(len(found.size)))
    cam = edit.one("Identity", [cells])
    cam.name = edit.fresh(f"{output.name}.cam")
    cam.dtype, cam.is_graph_output = output.dtype, True
    size = found.map_size(_map_of(found, output, last))
    batch, count = (output.shape or [None])[0], _classes(output)
    cam.shape = [batch, *size, count] if found.channels_last else [batch, count, *size]
    return cam


def _map_of(found: Trace, output: Tensor, last: Lifted) -> Tensor:
    """Return the feature map that a class activation map is computed from, that of its head."""
    sources = {id(collapse.source): collapse.source for collapse in found.heads}
    reached: dict[int, Tensor] = {}
    stack = [last.cells]
    while stack:
        tensor = stack.pop()
        if id(tensor) in sources:
            reached[id(tensor)] = tensor
            continue
        node = producer(tensor)
        stack.extend(node.inputs if node is not None else ())
    require(len(reached) == 1, f"'{output.name}' is computed from several feature maps")
    return reached.popitem()[1]


def _classes(output: Tensor) -> int | None:
    sizes = [size for size in (output.shape or [])[1:] if isinstance(size, int) and size != 1]
    return sizes[0] if len(sizes) == 1 else None
