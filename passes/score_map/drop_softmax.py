"""`drop-softmax`: an output that is a Softmax gives its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpass import Graph, Node, Pass, Tensor, label, operator, producer
from graphpass.rewrite.edit import Editor
from graphpass.rewrite.interface import Interface

from .lift import SOFTMAXES

_VIEWS = ("Identity", "Flatten", "Reshape")


@dataclass(frozen=True)
class DropSoftmax(Pass):
    """Softmax(x) → x where an output of the network is its Softmax or LogSoftmax: logits.

    Only the output itself: whatever else reads the Softmax goes on reading it, and outputs that
    are computed from it stay what they are.
    """

    name: ClassVar[str] = "drop-softmax"
    changes_interface: ClassVar[Interface] = Interface.LOGITS

    def run(self, graph: Graph) -> list[str]:
        """Let outputs be what the Softmax reads."""
        if graph.parent is not None or graph.is_function:
            return []
        done = []
        with Editor(graph) as edit:
            for output in list(graph.outputs):
                softmax, views = _softmax_of(output)
                if softmax is None:
                    continue
                logits: Tensor = softmax.inputs[0]
                for view in reversed(views):
                    logits = edit.one(view.op, [logits, *view.inputs[1:]], like=view)
                edit.put_out(output, logits)
                done.append(f"'{output.name}' gives logits, without {label(softmax)}")
        return done


def _softmax_of(output: Tensor) -> tuple[Node | None, list[Node]]:
    """Return the Softmax that an output is, and the views between them, the last one first."""
    views = []
    node = producer(output)
    while node is not None and operator(node) in _VIEWS:
        views.append(node)
        node = producer(node.inputs[0])
    return (node, views) if node is not None and operator(node) in SOFTMAXES else (None, [])
