"""`free-batch`: the batch of the image varies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphpass import Graph, Node, Pass, attribute, integers, operator, static_dim
from graphpass.follow.image_input import images
from graphpass.rewrite.edit import Editor


@dataclass(frozen=True)
class FreeBatch(Pass):
    """A network that treats images one by one takes any number of them.

    The batch of the image and of the outputs becomes symbolic; a Reshape to a shape that begins
    with the fixed batch takes the batch as it comes.
    """

    name: ClassVar[str] = "free-batch"
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph) -> list[str]:
        """Declare the batch symbolic."""
        if graph.parent is not None or graph.is_function or len(images(graph)) != 1:
            return []
        (image,) = images(graph)
        batch = image.shape[0] if image.shape else None
        if not isinstance(batch, int):
            return []
        with Editor(graph) as edit:
            for node in list(graph.nodes):
                shape = integers(node.inputs[1]) if _fixes_batch(node, batch) else None
                if shape is not None:
                    free = np.array([0, *shape[1:]], np.int64)
                    edit.replace(
                        node.outputs[0], edit.one("Reshape", [node.inputs[0], free], like=node)
                    )
        for tensor in (image, *graph.outputs):
            if tensor.shape and tensor.shape[0] == batch:
                tensor.shape = ["N", *tensor.shape[1:]]
        return [f"the batch of '{image.name}' varies"]


def _fixes_batch(node: Node, batch: int) -> bool:
    """Whether a Reshape names the batch, and has it where its input has it: 0 says the same."""
    if operator(node) != "Reshape" or attribute(node, "allowzero") or len(node.inputs) < 2:
        return False
    shape = integers(node.inputs[1])
    return shape is not None and shape[:1] == [batch] == [static_dim(node.inputs[0], 0)]
