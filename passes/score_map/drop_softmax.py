"""`drop-softmax`: an output that is a Softmax gives its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpass import Graph, Pass, label, operator, producer
from graphpass.rewrite.edit import Editor

from .lift import SOFTMAXES


@dataclass(frozen=True)
class DropSoftmax(Pass):
    """Softmax(x) → x where an output of the network is its Softmax or LogSoftmax: logits."""

    name: ClassVar[str] = "drop-softmax"
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph) -> list[str]:
        """Let outputs read what the Softmax read."""
        if graph.parent is not None or graph.is_function:
            return []
        done = []
        with Editor(graph) as edit:
            for output in graph.outputs:
                node = producer(output)
                while node is not None and operator(node) in ("Identity", "Flatten", "Reshape"):
                    node = producer(node.inputs[0])
                if node is None or operator(node) not in SOFTMAXES:
                    continue
                edit.replace(node.outputs[0], node.inputs[0])
                done.append(f"{label(node)} is gone")
        return done
