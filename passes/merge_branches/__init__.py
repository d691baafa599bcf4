"""merge-branches: linear branches over one input become one operator.

Structural re-parameterization (Ding et al., "RepVGG", 2021): a network is trained with several
convolutions side by side, their normalizations, and the input itself, and run with their sum. One
pair is merged at a time, and normalizations are folded in between, so that sums of any number come
down to one Conv, MatMul or Gemm. Equal over the real numbers; weights are summed in float64 and
rounded once. An infinity may give NaN where a tap whose weight is 0 sees it now.
"""

from __future__ import annotations

import math
from typing import Any

from graphpass import (
    Node,
    Op,
    Pass,
    Rule,
    Tensor,
    any_,
    attribute,
    either,
    label,
    operator,
    opset,
    producer,
    require,
    static_shape,
)

from ..fold_batchnorm import FoldBatchNorm
from ..shared.branches import AFFINE, WEIGHTY, Branch, branch_maps, kind_of, map_of, operator_of
from ..shared.linear_map import LinearMap, added, composed
from .padded_by_bias import PaddedByBias

_SUM = ("Add", "Sub")
_LINEAR = (*WEIGHTY, "AveragePool", *AFFINE)


def _step(bind: str, inner: Any) -> either:
    """A linear operator on `inner`, which may stand behind a constant."""
    return either(
        Op(_LINEAR, inner, ..., bind=bind),
        Op(("Add", "Mul", "Sub"), any_(f"{bind}_term"), inner, bind=bind),
    )


def _branch(side: str, depth: int) -> Any:
    """`x` itself, a linear operator on it, or one on the other."""
    if depth == 0:
        return any_("x")
    inner = any_("x") if depth == 1 else _step(f"{side}_first", any_("x"))
    return _step(side, inner)


_DEPTHS = ((1, 1), (0, 1), (1, 2), (0, 2), (2, 2))


class SumOfBranches(Rule):
    """Conv(x, V, a) ± Conv(x, W, b) = Conv(x, V ± W, a ± b), on the taps that either has.

    Instead of one Conv also x itself, x scaled and shifted per channel, its average with padding
    counted, or one such operator on another; instead of both MatMul or Gemm.
    """

    pattern = either(
        *(
            Op(_SUM, _branch("left", a), _branch("right", b), bind="total", commutative=True)
            for a, b in _DEPTHS
        )
    )

    def rewrite(
        self,
        total: Node,
        x: Tensor,
        left: Node | None,
        left_first: Node | None,
        left_term: Tensor | None,
        left_first_term: Tensor | None,
        right: Node | None,
        right_first: Node | None,
        right_term: Tensor | None,
        right_first_term: Tensor | None,
    ) -> Any:
        require(opset(total) >= 7, f"{label(total)} is from before opset 7")
        one, other = _branches((left_first, left), (right_first, right))
        signs = _sign(total, one, x), _sign(total, other, x)
        return _merged(x, one, other, signs)


def _beside_y(depth: int) -> list[Op]:
    """A sum of something else and a branch."""
    if depth:
        return [Op(_SUM, any_("y"), _branch("left", depth), bind="inner", commutative=True)]
    orders = [(any_("y"), any_("x")), (any_("x"), any_("y"))]
    return [Op(_SUM, *order, bind="inner") for order in orders]


class SumWithinSum(Rule):
    """(y + Conv(x, V, a)) + Conv(x, W, b) = y + Conv(x, V + W, a + b), and so with differences."""

    pattern = either(
        *(
            Op(_SUM, inner, _branch("right", b), bind="total", commutative=True)
            for a, b in (*_DEPTHS, (1, 0), (2, 1), (2, 0))
            for inner in _beside_y(a)
        )
    )

    def rewrite(
        self,
        total: Node,
        inner: Node,
        x: Tensor,
        y: Tensor,
        left: Node | None,
        left_first: Node | None,
        left_term: Tensor | None,
        left_first_term: Tensor | None,
        right: Node | None,
        right_first: Node | None,
        right_term: Tensor | None,
        right_first_term: Tensor | None,
    ) -> Any:
        require(opset(total) >= 7, f"{label(total)} is from before opset 7")
        one, other = _branches((left_first, left), (right_first, right))
        outer = _sign_of(total, inner.outputs[0])
        signs = outer * _sign(inner, one, x), _sign(total, other, x)
        merged = _merged(x, one, other, signs)
        if merged is None:
            return None
        if outer * _sign_of(inner, y) > 0:
            return Op("Add", y, merged)
        return Op("Sub", merged, y)


class SumIsAdd(Rule):
    """Sum(a, b, c) = Add(Add(a, b), c), where two of them are branches over one input."""

    pattern = Op("Sum", any_("a"), any_("b"), ..., bind="total")

    def rewrite(self, total: Node, a: Tensor, b: Tensor) -> Any:
        if opset(total) < 8:  # it does not broadcast
            return None
        seen = [x for tensor in total.inputs for x in _over(tensor)]
        if len(seen) == len(set(seen)):
            return None
        term: Any = a
        for tensor in total.inputs[1:]:
            term = Op("Add", term, tensor)
        return term


class GemmOnBranch(Rule):
    """Gemm(l(x), W, r(x)) = (l∘W + β·r)(x): a sum of branches of which one came in as the C."""

    pattern = either(
        *(
            Op("Gemm", inner, any_("weight"), _branch("right", depth), bind="left")
            for inner in (any_("x"), _step("left_first", any_("x")))
            for depth in (1, 2, 0)
        )
    )

    def rewrite(
        self,
        x: Tensor,
        weight: Tensor,
        left: Node,
        left_first: Node | None,
        left_first_term: Tensor | None,
        right: Node | None,
        right_first: Node | None,
        right_term: Tensor | None,
        right_first_term: Tensor | None,
    ) -> Any:
        one, other = _branches((left_first, left), (right_first, right))
        beta = float(attribute(left, "beta"))
        maps = branch_maps(left, x, (one, other), without_bias=left)
        if maps is None:
            return None
        merged = added(*maps, (1, beta))
        _require_no_more(merged, merged.multiplications)
        return operator_of(merged, left, x)


def _over(tensor: Tensor) -> set[Tensor]:
    """Return what `tensor` may be a linear branch over, nearest first; of no weight, itself."""
    found, node = {tensor}, producer(tensor)
    for _ in range(2):
        if node is None or operator(node) not in _LINEAR:
            break
        found.update(node.inputs[:1])
        node = producer(node.inputs[0])
    return found


def _branches(*sides: tuple[Node | None, Node | None]) -> list[Branch]:
    return [tuple(node for node in side if node is not None) for side in sides]


def _sign(total: Node, branch: Branch, x: Tensor) -> int:
    return _sign_of(total, branch[-1].outputs[0] if branch else x)


def _sign_of(total: Node, tensor: Tensor) -> int:
    return -1 if operator(total) == "Sub" and total.inputs[1] is tensor else 1


def _merged(x: Tensor, one: Branch, other: Branch, signs: tuple[int, int]) -> Op | None:
    """Return both branches as one operator. Refuses what would cost more than they do."""
    kind = kind_of(*one, *other)
    if kind is None:
        return None
    maps = branch_maps(kind, x, (one, other))
    if maps is None:
        return None
    merged = added(*maps, signs)
    _require_no_more(merged, merged.multiplications)
    return operator_of(merged, kind, x)


def _require_no_more(merged: LinearMap, before: int) -> None:
    """Refuse a map of more multiplications for one position, or weights, than it is made of."""
    require(
        merged.elements <= before,
        f"{merged.name} as one would take {merged.elements} multiplications for a position "
        f"instead of {before}",
    )
    stored = merged.elements + (0 if merged.bias is None else merged.outputs)
    require(
        stored <= merged.parameters,
        f"{merged.name} as one would hold {stored} numbers instead of {merged.parameters}",
    )


# ------------------------------------------------------------------------ one behind the other


class OneBehindTheOther(Rule):
    """Conv(Conv(x, V, a), W, b) = Conv(x, W∘V, b + Σ W·a), where that is no more work.

    Exact where the outer one pads nothing, or pads what is 0: a result of a 1x1 kernel without a
    bias. MatMul and Gemm likewise.
    """

    pattern = either(
        Op("Conv", Op("Conv", any_("x"), ..., bind="first"), ..., bind="last"),
        Op(
            ("MatMul", "Gemm"),
            either(
                Op(("MatMul", "Gemm"), any_("x"), ..., bind="first"),
                Op(
                    ("Add", "Sub"),
                    Op("MatMul", any_("x"), ..., bind="first"),
                    any_("term"),
                    bind="between",
                    commutative=True,
                ),
            ),
            ...,
            bind="last",
        ),
    )

    def rewrite(
        self, last: Node, first: Node, between: Node | None, x: Tensor, term: Tensor | None
    ) -> Any:
        if between is not None:  # the bias of the inner one
            kind = kind_of(last, first) or last
            maps = branch_maps(kind, x, ((first, between, last), ()))
            if maps is None:
                return None
            _require_no_more(maps[0], maps[0].multiplications)
            return operator_of(maps[0], kind, x)
        outer, inner = map_of(last, first.outputs[0]), map_of(first, x)
        if outer is None or inner is None:
            return None
        merged = composed(outer, inner)
        shapes = [static_shape(node.outputs[0]) for node in (first, last)]
        before = merged.multiplications
        if None not in shapes and operator(last) == "Conv":
            # a stride leaves fewer positions to the outer one
            positions = [math.prod((shape or ())[2:]) for shape in shapes]
            inside = inner.multiplications * positions[0] // max(positions[1], 1)
            before = outer.multiplications + inside
        _require_no_more(merged, before)
        return operator_of(merged, kind_of(last, first) or last, x)


class MergeBranches(Pass):
    """Merge linear branches over one input, and linear layers in a row, into one operator each."""

    name = "merge-branches"
    rules = (
        *FoldBatchNorm.rules,
        SumIsAdd(),
        SumOfBranches(),
        SumWithinSum(),
        GemmOnBranch(),
        OneBehindTheOther(),
        PaddedByBias(),
    )
