"""drop-channels: channels that are constant or that nobody reads are not computed.

Pruning by training leaves filters of zeros; nobody takes them out of the file. What such a channel
gives is its bias, the same at every pixel, or what the activation makes of that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Pass,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    either,
    is_output,
    label,
    operator,
    optional,
    readers,
    require,
)
from graphpass.ir.operators import Trait, has
from graphpass.ir.windows import pads_nothing

from .shared.affine import FLOAT_TYPES, Floats, rounded, weighted_sum
from .shared.channels import vector
from .shared.linear import is_read_elsewhere

_FIRST = Op("Conv", any_("x"), const("weight"), optional(const("bias")), bind="first", shared=True)


class DropChannels(Rule):
    """Conv(f(Conv(x, W, b)), V, c) = the same without channels that are constant, or unread.

    Where W is 0, f(b) goes into c; where V is 0, nobody reads. Exact where f(b) = 0 or the outer
    Conv pads nothing: zeros are padded to the map, not f(b). A channel of zeros times an infinity
    was NaN.
    """

    pattern = Op(
        "Conv",
        either(_FIRST, Op(..., _FIRST, ..., bind="f", shared=True)),
        const("outer"),
        optional(const("shift")),
        bind="last",
    )

    def rewrite(
        self,
        last: Node,
        f: Node | None,
        first: Node,
        x: Tensor,
        weight: Weight,
        bias: Weight | None,
        outer: Weight,
        shift: Weight | None,
    ) -> Any:
        plain = f is None or has(f, Trait.ELEMENTWISE)
        alike = weight.dtype == outer.dtype and weight.dtype in FLOAT_TYPES
        groups = attribute(first, "group"), attribute(last, "group")
        if not plain or not alike or groups != (1, 1) or outer.shape[1] != weight.shape[0]:
            return None
        dead, unread = _is_zero(weight, 0), _is_zero(outer, 1)
        if not (dead | unread).any() or len(dead) == 1:
            return None
        for node in (first, f):
            require(
                node is None or _is_read_once(node), f"{label(node or first)} has other readers"
            )
        for held in (weight, outer):
            require(
                not is_read_elsewhere(held.origin),
                f"'{held.name}' has other readers, for which it would have to stay",
            )
        values = np.zeros(len(dead)) if bias is None else vector(bias, len(dead))
        gives = _applied(f, values)
        # a constant that is not 0 ends at the edge, where the outer Conv pads
        free = pads_nothing(last)
        known = np.isfinite(gives) & (free | (gives == 0))
        dropped = unread | (dead & known)
        where = f"{int(dead.sum())} channels of {label(first)} are constant"
        require(np.isfinite(gives[dead]).all() or dropped.any(), f"{where}, of unknown value")
        require(dropped.any(), f"{where}, but not 0 where {label(last)} pads")
        dropped[0] &= not dropped.all()  # a Conv has a channel
        kept = np.flatnonzero(~dropped)
        added = np.where(dropped & ~unread, gives, 0.0)
        inner = Op(
            "Conv",
            x,
            np.ascontiguousarray(weight.array()[kept]),
            None if bias is None else np.ascontiguousarray(bias.array()[kept]),
            **first.attrs,
        )
        further = [] if f is None else [t if t.name else None for t in f.inputs[1:]]
        between = inner if f is None else Op(f.op, inner, *further, **f.attrs)
        rest = np.ascontiguousarray(outer.array()[:, kept])
        return Op("Conv", between, rest, _raised(last, outer, shift, added), **last.attrs)


def _is_read_once(node: Node) -> bool:
    return len(readers(node.outputs[0])) == 1 and not is_output(node.outputs[0])


def _is_zero(weight: Weight, axis: int) -> Any:
    """Return for each channel along an axis whether all its weights are 0."""
    others = tuple(k for k in range(weight.ndim) if k != axis)
    return ~(weight.array() != 0).any(axis=others)


def _applied(f: Node | None, values: Floats) -> Floats:
    """Return f(values), NaN where that is not known without running it."""
    if f is None:
        return values
    if operator(f) == "Relu":
        return np.maximum(values, 0)
    if operator(f) == "LeakyRelu":
        return np.where(values < 0, float(attribute(f, "alpha")) * values, values)
    keeps = has(f, Trait.KEEPS_ZERO)
    return np.where((values == 0) & keeps, 0.0, np.nan)


def _raised(last: Node, outer: Weight, shift: Weight | None, added: Floats) -> Any:
    """Return the bias of `last`, with what the constants `added` of its input come to."""
    if not added.any():
        return shift
    spread = added.reshape(1, -1, *[1] * (outer.ndim - 2))
    total = weighted_sum(outer, spread, 0)
    if shift is not None:
        total = total + vector(shift, outer.shape[0])
    return rounded(total, outer.dtype, f"the bias of {label(last)}")


class DropUnusedChannels(Pass):
    """Leave out channels that are constant, as pruning leaves them, or that nobody reads."""

    name = "drop-channels"
    rules = (DropChannels(),)
