"""Fold an affine operator into weights that are further away, through what lies between.

One law: an affine map moves through every operator that commutes with it (`movers`), until all of
it is in the weights of operators that take it in (`take_in`). Nothing moves that does not arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphpass import (
    Beyond,
    Node,
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
from graphpass.ir.refusal import FURTHER_OUTPUTS, IS_OUTPUT, READERS, RefusedError, needed

from .affine import FLOAT_TYPES, Affine, rounded
from .affine_nodes import affine_map, affine_operands, operators_in, rebuilt
from .affine_ops import affine_of
from .linear import is_read_elsewhere
from .movers import passes_on
from .take_in import taken_in_after, takes_in

MOST_STEPS = 64  # operators looked at for one affine operator
_MOST_ELEMENTS = 1 << 16  # of a constant that is one of the sources
TRANSPARENT = ("Transpose", "Cast", "Identity")  # the rules for neighbours look through one


class IntoSources(Rule):
    """a(F(l₁(x₁), …, lₙ(xₙ))) = F(b₁(l₁(x₁)), …, bₙ(lₙ(xₙ))), each bₖ taken in by lₖ.

    a is a BatchNormalization, or arithmetic with a constant; F any tree of operators that affine
    maps move through (see `movers`), lₖ a Conv, ConvTranspose, Gemm, MatMul, BatchNormalization
    or a constant. In an Add one summand takes the shift. All are folded or none, and only where
    fewer operators are left, or as many and no BatchNormalization.
    """

    pattern = affine_of(any_("x"))

    def rewrite(self, affine: Node, x: Tensor, term: Weight | None) -> Any:
        source = producer(x)
        if source is None or _is_neighbour(source):
            _require_neighbour(affine, x, source)
            return None
        if term is not None and _scales_a_product(affine, term):
            return None
        try:
            change = affine_map(affine, x, term)
            walk = _Walk(affine)
            result = walk.above(x, change, affine)
        except RefusedError as refusal:
            if operator(affine) != "BatchNormalization":
                return None  # a sum or product like any other
            raise RefusedError(f"{refusal}{_behind(affine)}", refusal.kind) from None
        nodes, saved = result.nodes, 1 + len(result.nodes) - operators_in(result.term)
        if saved < (0 if operator(affine) == "BatchNormalization" else 1):
            require(operator(affine) != "BatchNormalization", f"{label(affine)} costs more sums")
            return None
        return Beyond(result.term, nodes)


@dataclass
class _Moved:
    """What a tensor with the map on it is, and the nodes that go for it."""

    term: Any
    nodes: list[Node] = field(default_factory=list)


class _Walk:
    """Follows a map upwards from `root`; every node on the way is counted."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.steps = 0

    def above(self, tensor: Tensor, change: Affine, reader: Node) -> _Moved:
        """Return `change` of `tensor`, which `reader` reads, with the map in the weights above."""
        self.steps += 1
        require(self.steps <= MOST_STEPS, f"too much lies before {label(self.root)}")
        if constant(tensor) is not None:
            return _Moved(_changed(tensor, change))
        node = needed(producer(tensor), f"'{tensor.name}' is not computed here")
        require(node.graph is self.root.graph, f"'{tensor.name}' is computed outside of this body")
        require(not is_output(tensor), f"'{tensor.name}' is an output of the graph", IS_OUTPUT)
        count = len(readers(tensor))
        require(count == 1, f"{label(node)} feeds {count} nodes", READERS)
        further = [t for t in node.outputs if t is not tensor and (t.outputs or is_output(t))]
        alone = node.outputs[0] is tensor and not further
        require(alone, f"{label(node)} has further outputs", FURTHER_OUTPUTS)
        return self._through(node, change)

    def _through(self, node: Node, change: Affine) -> _Moved:
        joined = self._joined(node, change)
        if joined is not None:
            return joined
        if takes_in(node):
            return _Moved(taken_in_after(node, change), [node])
        mover = needed(passes_on(node), f"no map moves through {label(node)}")
        nodes, inputs = [node], list[Any](node.inputs)
        for index, part in enumerate(mover.before(node, change)):
            if part is None:
                continue
            moved = self.above(node.inputs[index], part, node)
            nodes.extend(moved.nodes)
            inputs[index] = moved.term
        return _Moved(rebuilt(node, inputs), nodes)

    def _joined(self, node: Node, change: Affine) -> _Moved | None:
        """Return `change` together with `node`, where that is an affine operator, further up."""
        read = affine_operands(node)
        if read is None:
            return None
        x, term = read
        try:
            inner = affine_map(node, x, term)
            moved = self.above(x, change.of(inner), node)
        except RefusedError:
            return None
        return _Moved(moved.term, [node, *moved.nodes])


def _changed(tensor: Tensor, change: Affine) -> np.ndarray[Any, Any]:
    weight = constant(tensor)
    assert weight is not None
    require(weight.dtype in FLOAT_TYPES, f"'{tensor.name}' holds {weight.dtype}")
    shape = np.broadcast_shapes(weight.shape, change.factor.shape, change.shift.shape)
    require(np.prod(shape) <= _MOST_ELEMENTS, f"'{tensor.name}' is too large for a copy")
    require(not is_read_elsewhere(tensor), f"'{tensor.name}' has other readers")
    values = change.factor * weight.astype(np.float64) + change.shift
    return rounded(values, weight.dtype, f"'{tensor.name}' after folding")


# ---------------------------------------------------------------------- what stands in the way


def _scales_a_product(affine: Node, term: Weight) -> bool:
    """Whether this is the one number that attention is scaled by, which runtimes look for."""
    return term.size == 1 and any(
        operator(reader) == "MatMul" and not any(map(constant, reader.inputs))
        for reader in readers(affine.outputs[0])
    )


def _is_neighbour(source: Node) -> bool:
    """Whether the rules for neighbours answer for what stands right before `affine`."""
    if operator(source) in TRANSPARENT:
        inner = producer(source.inputs[0])
        source = source if inner is None else inner
    return operator(source) != "BatchNormalization" and takes_in(source)


def _require_neighbour(affine: Node, x: Tensor, source: Node | None) -> None:
    if operator(affine) == "BatchNormalization" and source is None:
        require(False, f"'{x.name}' is not computed here{_behind(affine)}")


def _behind(affine: Node) -> str:
    """Say what reads a BatchNormalization and cannot take it in either."""
    after = readers(affine.outputs[0])
    if not after:
        return ""
    first = after[0]
    if takes_in(first):
        return f"; {label(first)} after it has its own reason"
    return f", nor does {label(first)} after it take it in"
