"""Fold an affine operator into the weights that read it, through what lies between.

The other direction of `through`: the map moves down until a Conv, Gemm or MatMul takes it in.
"""

from __future__ import annotations

from typing import Any

from graphpass import (
    Beyond,
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    constant,
    is_output,
    label,
    operator,
    producer,
    readers,
    require,
)
from graphpass.ir.refusal import RefusedError, needed

from .affine import Affine
from .affine_nodes import affine_map, affine_operands, operators_in, rebuilt
from .fused_functions import require_whole_function
from .movers import data_inputs, passes_on
from .take_in import taken_in_ahead
from .through import MOST_STEPS, TRANSPARENT


class AheadThrough(Rule):
    """l(F(a(x), …)) = l'(F(x, …)), where F turns a into a map that l takes in.

    l is a Conv, ConvTranspose, Gemm or MatMul with a constant weight, a a BatchNormalization or
    arithmetic with a constant, F a chain of operators that affine maps move through. What else
    F joins to a(x), as Concat does, stays as it is.
    """

    pattern = Op(("Conv", "ConvTranspose", "Gemm", "MatMul"), any_("x"), ..., bind="linear")

    def rewrite(self, linear: Node, x: Tensor) -> Any:
        source = producer(x)
        if source is None or len(linear.inputs) < 2 or constant(linear.inputs[1]) is None:
            return None
        for path in _paths(x, linear):
            affine = path[-1]
            if len(path) <= 2 and all(operator(node) in TRANSPARENT for node in path[:-1]):
                continue  # the rules for neighbours have answered
            read = affine_operands(affine)
            assert read is not None
            try:
                below, change = _moved_down(path, *read)
            except RefusedError:
                continue  # that it stays is said where it is looked at itself
            try:
                return _taken_in(linear, path, below, change)
            except RefusedError as refusal:
                if operator(affine) == "BatchNormalization":
                    raise RefusedError(f"{label(affine)} stays: {refusal}", refusal.kind) from None
        return None


def _moved_down(path: list[Node], inner: Tensor, term: Weight | None) -> tuple[Any, Affine]:
    """Return the end of `path` without the affine operator that it begins at, and its map there.

    `path` is in the order of reading: the affine operator, applied to `inner`, comes last.
    """
    *between, affine = path
    require_whole_function(affine, inner)
    change = affine_map(affine, inner, term)
    below: Any = inner
    source = affine
    for node in reversed(between):
        index = next(k for k, t in enumerate(node.inputs) if t is source.outputs[0])
        mover = needed(passes_on(node), f"no map moves through {label(node)}")
        change = mover.after(node, change, index)
        inputs = list[Any](node.inputs)
        inputs[index] = below
        below, source = rebuilt(node, inputs), node
    return below, change


def _taken_in(linear: Node, path: list[Node], below: Any, change: Affine) -> Beyond:
    result = taken_in_ahead(linear, below, change)
    saved = 1 + len(path) - operators_in(result)
    wanted = 0 if operator(path[-1]) == "BatchNormalization" else 1
    require(saved >= wanted, f"{label(linear)} would need a sum after it")
    return Beyond(result, path)


def _paths(x: Tensor, linear: Node) -> list[list[Node]]:
    """Return the ways from what `linear` reads up to affine operators that nothing else reads."""
    found: list[list[Node]] = []
    waiting: list[tuple[Tensor, list[Node]]] = [(x, [])]
    steps = 0
    while waiting and steps < MOST_STEPS:
        steps += 1
        tensor, path = waiting.pop()
        node = producer(tensor)
        if node is None or node.graph is not linear.graph or node.outputs[0] is not tensor:
            continue
        if is_output(tensor) or len(readers(tensor)) != 1:
            continue
        if affine_operands(node) is not None:
            found.append([*path, node])
        elif passes_on(node) is not None:
            waiting.extend((t, [*path, node]) for t in data_inputs(node))
    return found
