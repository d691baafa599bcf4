"""What each node of a model costs, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from graphpass.ir.cost import Cost, NodeCost, cost_of, node_costs
from graphpass.ir.type_text import dtype_text, shape_text
from graphpass.report.rows import Row, amount, size
from graphpass.report.terminal import print_table, say

if TYPE_CHECKING:
    import onnx
    from rich.console import Console

_NODES = ("node", "operator", "output", "parameters", "multiply-adds", "weights", "activations")
_OPERATORS = ("operator", "nodes", "parameters", "multiply-adds", "weights", "activations")


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
    print_table(console, _NODES, _rows(shown), right=(3, 4, 5, 6))
    if names is None:
        for line in totals(cost_of(model, shapes)):
            say(console, line)


def show_operators(
    console: Console, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Print what the nodes of each operator cost together, the most frequent operator first."""
    kinds: dict[str, list[NodeCost]] = {}
    for node in node_costs(model, shapes):
        kinds.setdefault(node.operator, []).append(node)
    by_count = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    rows = ((name, str(len(nodes)), *_figures(nodes)) for name, nodes in by_count)
    print_table(console, _OPERATORS, rows, right=(1, 2, 3, 4, 5))


def _rows(nodes: Sequence[NodeCost]) -> Iterator[Row]:
    for node in nodes:
        output = f"{'?' if node.output is None else shape_text(node.output)}"
        kind = dtype_text(node.data_type)
        yield (node.node, node.operator, f"{output} {kind}".strip(), *_figures([node]))


def _figures(nodes: Sequence[NodeCost]) -> tuple[str, str, str, str]:
    """Return parameters, multiply-adds, bytes of weights and of activations; "" for none."""
    counts = [node.multiply_adds for node in nodes]
    known = sum(count or 0 for count in counts)
    return (
        _written(sum(node.weight_elements for node in nodes), "{:,}".format),
        _written(known, amount) + ("?" if None in counts else ""),
        _written(sum(node.weight_bytes for node in nodes), size),
        _written(sum(node.activation_bytes for node in nodes), size),
    )


def _written(count: int, how: Callable[[int], str]) -> str:
    return how(count) if count else ""


def totals(cost: Cost) -> Iterator[str]:
    """Yield what a run costs altogether, and with which inputs."""
    fed = ", ".join(f"{name} {shape_text(shape)}" for name, shape in cost.inputs.items())
    yield f"with {fed}:" if fed else "without inputs:"
    yield f"multiply-adds {amount(cost.multiply_adds)} ({cost.multiply_adds:,})"
    yield f"weights {size(cost.weight_bytes)}, activations {size(cost.activation_bytes)}"
    if cost.uncounted:
        yield f"{cost.uncounted} sums of products are not in it: their shapes are unknown"
