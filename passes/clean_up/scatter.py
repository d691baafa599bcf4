"""Scatters that write every element: what was there before is of no matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    opset,
    rank,
    static_shape,
)

_MOST_ELEMENTS = 1 << 22  # of the indices that are looked at


class ScatterAll(Rule):
    """ScatterND(x, i, updates) = updates, reshaped, where i counts through all of x in order."""

    pattern = Op(
        "ScatterND", any_("x"), const("indices", quiet=True), any_("updates"), bind="scatter"
    )

    def rewrite(self, scatter: Node, x: Tensor, indices: Weight, updates: Tensor) -> Any:
        shape, given = static_shape(x), static_shape(updates)
        if shape is None or given is None or indices.ndim < 1 or _adds(scatter):
            return None
        depth = indices.shape[-1]
        outer = shape[:depth]
        places = math.prod(indices.shape[:-1])
        if not depth or places != math.prod(outer) or indices.size > _MOST_ELEMENTS:
            return None
        if math.prod(given) != math.prod(shape):
            return None
        found = indices.array().reshape(places, depth)
        found = np.where(found < 0, found + np.array(outer), found)
        if not (found == np.indices(outer).reshape(depth, places).T).all():
            return None
        if list(given) == list(shape):
            return updates
        return Op("Reshape", updates, np.array(shape, np.int64)) if opset(scatter) >= 5 else None


class ScatterAllElements(Rule):
    """ScatterElements(x, i, updates) = updates where i counts along the axis, over all of x."""

    pattern = Op(
        "ScatterElements", any_("x"), const("indices", quiet=True), any_("updates"), bind="scatter"
    )

    def rewrite(self, scatter: Node, x: Tensor, indices: Weight, updates: Tensor) -> Any:
        shape, count = static_shape(x), rank(x)
        if shape is None or not count or _adds(scatter) or indices.size > _MOST_ELEMENTS:
            return None
        if list(indices.shape) != list(shape) or static_shape(updates) != static_shape(x):
            return None
        axis = attribute(scatter, "axis") % count
        found = indices.array()
        found = np.where(found < 0, found + shape[axis], found)
        along = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(count)])
        return updates if (found == along).all() else None


def _adds(scatter: Node) -> bool:
    """Whether it combines the updates with what was there."""
    return str(attribute(scatter, "reduction") or "none") != "none"


SCATTER_RULES = (ScatterAll(), ScatterAllElements())

__all__ = ["SCATTER_RULES"]
