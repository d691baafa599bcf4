"""What each node of a model costs, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from graphpass.ir.cost import Cost, NodeCost, cost_of, node_costs
from graphpass.report.rows import Row, amount, size
from graphpass.report.terminal import print_table, say

if TYPE_CHECKING:
    import onnx
    from rich.console import Console

_HEADER = ("node", "operator", "output", "multiply-adds", "weights", "activations")


def show(
    console: Console,
    model: onnx.ModelProto,
    shapes: Mapping[str, Sequence[int]],
    names: Sequence[str] | None = None,
) -> None:
    """Print what nodes cost in a run with inputs of these shapes, and what all do together.

    `names`: only the nodes of these names, or whose first output is called so.
    """
    nodes = node_costs(model, shapes)
    shown = nodes if names is None else [node for node in nodes if node.node in names]
    print_table(console, _HEADER, _rows(shown), right=(3, 4, 5))
    if names is None:
        for line in _totals(cost_of(model, shapes)):
            say(console, line)


def _rows(nodes: Sequence[NodeCost]) -> Iterator[Row]:
    for node in nodes:
        count = node.multiply_adds
        yield (
            node.node,
            node.operator,
            "?" if node.output is None else "x".join(map(str, node.output)),
            "?" if count is None else amount(count) if count else "",
            size(node.weight_bytes) if node.weight_bytes else "",
            size(node.activation_bytes) if node.activation_bytes else "",
        )


def _totals(cost: Cost) -> Iterator[str]:
    fed = ", ".join(f"{name} {list(shape)}" for name, shape in cost.inputs.items())
    yield f"with {fed}:" if fed else "without inputs:"
    yield f"multiply-adds {amount(cost.multiply_adds)} ({cost.multiply_adds:,})"
    yield f"weights {size(cost.weight_bytes)}, activations {size(cost.activation_bytes)}"
    if cost.uncounted:
        yield f"{cost.uncounted} sums of products are not in it: their shapes are unknown"
