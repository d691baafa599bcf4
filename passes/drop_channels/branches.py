"""A branch of a sum that is the same whatever is read: a block that was pruned as a whole."""

from __future__ import annotations

from typing import Any

from graphpass import Node, Op, Rule, Tensor, Weight, any_, const, label, optional, require
from graphpass.ir.questions import dims
from graphpass.ir.refusal import UNKNOWN_SIZE

from ..shared.affine import FLOAT_TYPES
from ..shared.channels import vector


class DropConstantBranch(Rule):
    """y + Conv(x, 0, b) = y + b, and y where b = 0.

    −0 of y stays −0. An infinity or NaN in x made the sum NaN.
    """

    pattern = Op(
        "Add",
        any_("y"),
        Op("Conv", any_("x"), const("weight"), optional(const("bias")), bind="conv"),
        bind="total",
        commutative=True,
    )

    def rewrite(
        self, total: Node, conv: Node, x: Tensor, y: Tensor, weight: Weight, bias: Weight | None
    ) -> Any:
        # nearly every weight says so in its first filter
        if weight.dtype not in FLOAT_TYPES or weight.rows(slice(1)).any() or weight.array().any():
            return None
        shapes = dims(y), dims(total.outputs[0])
        require(
            shapes[0] is not None and shapes[0] == shapes[1] and None not in shapes[0],
            f"'{y.name}' may be smaller than the output of {label(conv)}",
            UNKNOWN_SIZE,
        )
        if bias is None or not vector(bias, weight.shape[0]).any():
            return y
        return Op("Add", y, bias.array().reshape(-1, *[1] * (weight.ndim - 2)))
