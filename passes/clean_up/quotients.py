"""Quotients that are written as two operators."""

from __future__ import annotations

from typing import Any

from graphpass import Node, Op, Rule, Tensor, Weight, any_, const, dtype, either, opset

from .neutral import keeps_shape

_BROADCASTS = 7  # from this opset on, as numpy does


class DivideAtOnce(Rule):
    """x · (1 / r) = x / r, but for rounding: once, not twice.

    Where r is 0, infinite or NaN both give the same. Where 1 / r overflows or loses digits, x / r
    does not. Runtimes look for quotients in normalizations.
    """

    pattern = Op(
        "Mul",
        any_("x"),
        either(Op("Reciprocal", any_("r")), Op("Div", const("one", quiet=True), any_("r"))),
        commutative=True,
        bind="product",
    )

    def rewrite(self, product: Node, x: Tensor, r: Tensor, one: Weight | None) -> Any:
        kind = dtype(x)
        if opset(product) < _BROADCASTS or kind is None or kind.kind != "f":
            return None
        if one is not None and not (one.size == 1 and one.array().item() == 1):
            return None
        return Op("Div", x, r) if one is None or keeps_shape(r, one) else None


QUOTIENT_RULES = (DivideAtOnce(),)

__all__ = ["QUOTIENT_RULES"]
