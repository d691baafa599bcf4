"""Operators that give back what they get."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    const,
    label,
    operator,
    opset,
    optional,
    rank,
    require,
    static_dim,
)
from graphpass.ir.operators import is_training
from graphpass.ir.refusal import TRAINING

from ..shared.fused_functions import require_whole_function

PATTERN_ELEMENTS = 1 << 16  # a constant larger than this is a weight, not a neutral element


class DropIdentity(Rule):
    """Identity(x) = x."""

    pattern = Op("Identity", any_("x"))

    def rewrite(self, x: Tensor) -> Any:
        return x


class DropDropout(Rule):
    """Dropout(x) = x, except in training."""

    pattern = Op(
        "Dropout",
        any_("x"),
        optional(any_("ratio")),
        optional(const("training_mode")),
        bind="node",
    )

    def rewrite(
        self, node: Node, x: Tensor, ratio: Tensor | None, training_mode: Weight | None
    ) -> Any:
        require(not is_training(node), f"{label(node)} is in training mode", TRAINING)
        return x


class DropExpand(Rule):
    """Expand(x, ones) = x = Tile(x, ones); likewise Expand(x, shape of x)."""

    pattern = Op(("Expand", "Tile"), any_("x"), const("counts", quiet=True), bind="node")

    def rewrite(self, node: Node, x: Tensor, counts: Weight) -> Any:
        count = rank(x)
        if counts.size > 64:
            return None
        listed = [int(value) for value in counts.array().reshape(-1)]
        if operator(node) == "Tile":
            return x if set(listed) <= {1} else None
        if count is None or len(listed) > count:
            return None
        fits = (
            size == 1 or size == static_dim(x, axis - len(listed))
            for axis, size in enumerate(listed)
        )
        return x if all(fits) else None


class DropNeutral(Rule):
    """x·1 = x = x / 1; x + (−0) = x = x − 0. Adding 0 is another thing: it makes −0 into 0.

    The factors and shifts that end a normalization stay: runtimes look for them.
    """

    pattern = Op(("Mul", "Add"), any_("x"), const("c", quiet=True), commutative=True, bind="node")

    def rewrite(self, node: Node, x: Tensor, c: Weight) -> Any:
        if not _is_neutral(node, x, c):
            return None
        require_whole_function(node, x)
        return x


class DropNeutralRight(Rule):
    """x / 1 = x = x − 0."""

    pattern = Op(("Div", "Sub"), any_("x"), const("c", quiet=True), bind="node")

    def rewrite(self, node: Node, x: Tensor, c: Weight) -> Any:
        return x if _is_neutral(node, x, c) else None


def _is_neutral(node: Node, x: Tensor, c: Weight) -> bool:
    if opset(node) < 7 or c.size > PATTERN_ELEMENTS or not keeps_shape(x, c):
        return False
    value = c.array()
    if operator(node) in ("Mul", "Div"):
        return bool((value == 1).all())
    if (value != 0).any():
        return False
    if value.dtype.kind in "iu":
        return True
    negative = np.signbit(value)
    return bool(negative.all() if operator(node) == "Add" else not negative.any())


def keeps_shape(x: Tensor, c: Weight) -> bool:
    """Whether an elementwise operator on both has a result of the shape of `x`."""
    if c.ndim == 0:
        return True
    count = rank(x)
    if count is None or c.ndim > count:
        return False
    return all(
        size == 1 or size == static_dim(x, axis - c.ndim) for axis, size in enumerate(c.shape)
    )


NEUTRAL_RULES = (
    DropIdentity(),
    DropDropout(),
    DropExpand(),
    DropNeutral(),
    DropNeutralRight(),
)

__all__ = ["NEUTRAL_RULES", "PATTERN_ELEMENTS", "keeps_shape"]
