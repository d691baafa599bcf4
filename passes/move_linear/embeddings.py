"""A layer right behind an embedding is part of the embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import Node, Op, Rule, Tensor, Weight, any_, attribute, const, label, require
from graphpass.ir.refusal import LARGER

from ..shared.affine import FLOAT_TYPES, rounded
from ..shared.linear import require_own
from ..shared.linear_map import blocks


class GatherOfProducts(Rule):
    """MatMul(Gather(E, i), W) = Gather(E·W, i), for rows of a matrix, where that is no larger."""

    pattern = Op(
        "MatMul",
        Op("Gather", const("table", quiet=True), any_("places"), bind="gather"),
        const("weight", quiet=True),
        bind="product",
    )

    def rewrite(
        self, product: Node, gather: Node, table: Weight, places: Tensor, weight: Weight
    ) -> Any:
        alike = table.dtype == weight.dtype and table.dtype in FLOAT_TYPES
        if not alike or table.ndim != 2 or weight.ndim != 2 or attribute(gather, "axis") != 0:
            return None
        rows, depth = table.shape
        require(depth == weight.shape[0], f"{label(product)} does not fit what it reads")
        for held in (table, weight):
            require_own(held)
        held_now, held_then = table.size + weight.size, rows * weight.shape[1]
        require(
            held_then <= held_now,
            f"'{table.name}' times '{weight.name}' would hold {held_then:,} numbers instead of "
            f"{held_now:,}",
            LARGER,
        )
        right = weight.astype(np.float64)
        made = np.empty((rows, weight.shape[1]), table.dtype)
        for block in blocks(rows, table.size):
            exact = table.rows(block).astype(np.float64) @ right
            made[block] = rounded(exact, table.dtype, f"'{table.name}' times '{weight.name}'")
        return Op("Gather", made, places, **gather.attrs)
