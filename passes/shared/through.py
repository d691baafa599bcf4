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
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    constant,
    is_output,
    label,
    operator,
    opset,
    producer,
    rank,
    readers,
    require,
    static_dim,
)
from graphpass.ir.questions import RefusedError

from .affine import FLOAT_TYPES, Affine, of_arithmetic, rounded
from .affine_ops import affine_of, change_of
from .channels import Channels
from .fused_functions import require_not_the_end_of_a_function
from .linear import is_read_elsewhere
from .maps import laid_out
from .movers import data_inputs, passes_on
from .take_in import taken_in_after, taken_in_ahead, takes_in

_MOST_STEPS = 64  # operators looked at for one affine operator
_MOST_ELEMENTS = 1 << 16  # of a constant that is one of the sources
_TRANSPARENT = ("Transpose", "Cast", "Identity")  # the rules for neighbours look through one
_ARITHMETIC = ("Mul", "Add", "Sub", "Div")


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
            raise RefusedError(f"{refusal}{_behind(affine)}") from None
        nodes, saved = result.nodes, 1 + len(result.nodes) - _count(result.term)
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
        require(self.steps <= _MOST_STEPS, f"too much lies before {label(self.root)}")
        if constant(tensor) is not None:
            return _Moved(_changed(tensor, change))
        node = producer(tensor)
        require(node is not None, f"'{tensor.name}' is not computed here")
        assert node is not None
        require(node.graph is self.root.graph, f"'{tensor.name}' is computed outside of this body")
        require(not is_output(tensor), f"'{tensor.name}' is an output of the graph")
        count = len(readers(tensor))
        require(count == 1, f"{label(node)} feeds {count} nodes")
        further = [t for t in node.outputs if t is not tensor and (t.outputs or is_output(t))]
        require(node.outputs[0] is tensor and not further, f"{label(node)} has further outputs")
        return self._through(node, change)

    def _through(self, node: Node, change: Affine) -> _Moved:
        joined = self._joined(node, change)
        if joined is not None:
            return joined
        if takes_in(node):
            return _Moved(taken_in_after(node, change), [node])
        mover = passes_on(node)
        require(mover is not None, f"no map moves through {label(node)}")
        assert mover is not None
        nodes, inputs = [node], list[Any](node.inputs)
        for index, part in enumerate(mover.before(node, change)):
            if part is None:
                continue
            moved = self.above(node.inputs[index], part, node)
            nodes.extend(moved.nodes)
            inputs[index] = moved.term
        return _Moved(_rebuilt(node, inputs), nodes)

    def _joined(self, node: Node, change: Affine) -> _Moved | None:
        """Return `change` together with `node`, where that is an affine operator, further up."""
        read = _affine_operands(node)
        if read is None:
            return None
        x, term = read
        try:
            inner = affine_map(node, x, term)
            moved = self.above(x, change.of(inner), node)
        except RefusedError:
            return None
        return _Moved(moved.term, [node, *moved.nodes])


def _rebuilt(node: Node, inputs: list[Any]) -> Op:
    operands = [None if isinstance(t, Tensor) and t.name == "" else t for t in inputs]
    return Op(node.op, *operands, **node.attrs)


def _changed(tensor: Tensor, change: Affine) -> np.ndarray[Any, Any]:
    weight = constant(tensor)
    assert weight is not None
    require(weight.dtype in FLOAT_TYPES, f"'{tensor.name}' holds {weight.dtype}")
    shape = np.broadcast_shapes(weight.shape, change.factor.shape, change.shift.shape)
    require(np.prod(shape) <= _MOST_ELEMENTS, f"'{tensor.name}' is too large for a copy")
    require(not is_read_elsewhere(tensor), f"'{tensor.name}' has other readers")
    values = change.factor * weight.astype(np.float64) + change.shift
    return rounded(values, weight.dtype, f"'{tensor.name}' after folding")


def affine_map(affine: Node, x: Tensor, term: Weight | None) -> Affine:
    """Return what an affine operator does to its input `x`, with as many axes as that has."""
    axes = rank(x)
    require(axes is not None, f"the rank of '{x.name}' is not known")
    require(opset(affine) >= 7, f"{label(affine)} is from before opset 7")
    assert axes is not None
    if term is None:
        scale = affine.inputs[1]
        size = static_dim(scale, 0) or static_dim(x, 1) or 0
        own = change_of(affine, None, Channels(size, 1 - axes, axes), f"'{x.name}'")
        return Affine(laid_out(own.factor, 1, axes), laid_out(own.shift, 1, axes))
    small = term.size <= _MOST_ELEMENTS and term.ndim <= axes and term.dtype in FLOAT_TYPES
    require(small and term.size, f"'{term.name}' is no map of '{x.name}'")
    for place, size in enumerate(term.shape, start=axes - term.ndim):
        fits = size == 1 or static_dim(x, place) == size
        require(fits, f"'{x.name}' may be smaller than '{term.name}'")
    values = term.astype(np.float64).reshape(*[1] * (axes - term.ndim), *term.shape)
    first = affine.inputs[0] is term.origin
    divides = operator(affine) == "Div"
    require(not (divides and (first or (values == 0).any())), f"{label(affine)} divides by it")
    with np.errstate(all="ignore"):
        change = of_arithmetic(affine.op, values, term_first=first)
    finite = np.isfinite(change.factor).all() and np.isfinite(change.shift).all()
    require(finite, f"{label(affine)} has parameters that are not finite")
    return change


def _affine_operands(node: Node) -> tuple[Tensor, Weight | None] | None:
    """Return the input and the constant term of an affine operator; None where it is none."""
    if operator(node) == "BatchNormalization":
        return node.inputs[0], None
    if operator(node) not in _ARITHMETIC:
        return None
    for index, tensor in enumerate(node.inputs):
        weight = constant(tensor)
        if weight is not None:
            weight.origin = tensor
            return node.inputs[1 - index], weight
    return None


def _count(term: Any) -> int:
    return 1 + sum(map(_count, term.inputs)) if isinstance(term, Op) else 0


# ---------------------------------------------------------------------- what stands in the way


def _scales_a_product(affine: Node, term: Weight) -> bool:
    """Whether this is the one number that attention is scaled by, which runtimes look for."""
    return term.size == 1 and any(
        operator(reader) == "MatMul" and not any(map(constant, reader.inputs))
        for reader in readers(affine.outputs[0])
    )


def _is_neighbour(source: Node) -> bool:
    """Whether the rules for neighbours answer for what stands right before `affine`."""
    if operator(source) in _TRANSPARENT:
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


# -------------------------------------------------------------------------------------- downwards


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
            if len(path) <= 2 and all(operator(node) in _TRANSPARENT for node in path[:-1]):
                continue  # the rules for neighbours have answered
            read = _affine_operands(affine)
            assert read is not None
            try:
                below, change = _moved_down(path, *read)
            except RefusedError:
                continue  # that it stays is said where it is looked at itself
            try:
                return _taken_in(linear, path, below, change)
            except RefusedError as refusal:
                if operator(affine) == "BatchNormalization":
                    raise RefusedError(f"{label(affine)} stays: {refusal}") from None
        return None


def _moved_down(path: list[Node], inner: Tensor, term: Weight | None) -> tuple[Any, Affine]:
    """Return the end of `path` without the affine operator that it begins at, and its map there.

    `path` is in the order of reading: the affine operator, applied to `inner`, comes last.
    """
    *between, affine = path
    require_not_the_end_of_a_function(affine, inner)
    change = affine_map(affine, inner, term)
    below: Any = inner
    source = affine
    for node in reversed(between):
        index = next(k for k, t in enumerate(node.inputs) if t is source.outputs[0])
        mover = passes_on(node)
        assert mover is not None
        change = mover.after(node, change, index)
        inputs = list[Any](node.inputs)
        inputs[index] = below
        below, source = _rebuilt(node, inputs), node
    return below, change


def _taken_in(linear: Node, path: list[Node], below: Any, change: Affine) -> Beyond:
    result = taken_in_ahead(linear, below, change)
    saved = 1 + len(path) - _count(result)
    wanted = 0 if operator(path[-1]) == "BatchNormalization" else 1
    require(saved >= wanted, f"{label(linear)} would need a sum after it")
    return Beyond(result, path)


def _paths(x: Tensor, linear: Node) -> list[list[Node]]:
    """Return the ways from what `linear` reads up to affine operators that nothing else reads."""
    found: list[list[Node]] = []
    waiting: list[tuple[Tensor, list[Node]]] = [(x, [])]
    steps = 0
    while waiting and steps < _MOST_STEPS:
        steps += 1
        tensor, path = waiting.pop()
        node = producer(tensor)
        if node is None or node.graph is not linear.graph or node.outputs[0] is not tensor:
            continue
        if is_output(tensor) or len(readers(tensor)) != 1:
            continue
        if _affine_operands(node) is not None:
            found.append([*path, node])
        elif passes_on(node) is not None:
            waiting.extend((t, [*path, node]) for t in data_inputs(node))
    return found
