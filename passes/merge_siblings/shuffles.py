"""A channel shuffle beside a Conv: its channels come, or are read, in that order at once."""

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
    attribute,
    const,
    either,
    label,
    needed,
    optional,
    require,
    static_dim,
)
from graphpass.ir.operators import Trait, has
from graphpass.ir.refusal import UNKNOWN_SIZE

from ..shared.affine import FLOAT_TYPES, Array
from ..shared.linear import require_own


def _shuffle(inner: Any) -> Op:
    parts = Op("Reshape", inner, any_("sizes"), bind="parts")
    turned = Op("Transpose", parts, bind="turned")
    return Op("Reshape", turned, any_("whole"), bind="shuffled")


class ShuffleIntoWeights(Rule):
    """Shuffle(f(Conv(x, W, b))) = f(Conv(x, W[π], b[π])): the filters in the order of the channels.

    f works element by element; the Conv has one group, or π moves whole groups' filters nowhere
    else. Nothing is computed otherwise.
    """

    _conv = Op("Conv", any_("x"), const("weight"), optional(const("bias")), bind="conv")
    pattern = _shuffle(either(_conv, Op(..., _conv, ..., bind="f")))

    def rewrite(
        self,
        shuffled: Node,
        whole: Tensor,
        turned: Node,
        parts: Node,
        sizes: Tensor,
        f: Node | None,
        conv: Node,
        x: Tensor,
        weight: Weight,
        bias: Weight | None,
    ) -> Any:
        if f is not None and not _is_plain(f):
            return None
        order = order_of_shuffle(parts, turned, shuffled, weight.shape[0])
        if order is None:
            return None
        require(
            attribute(conv, "group") == 1 or _stays_in_groups(order, attribute(conv, "group")),
            f"{label(conv)} has groups, between which {label(turned)} moves channels",
        )
        require_own(weight)
        if weight.dtype not in FLOAT_TYPES or (bias is not None and bias.shape != order.shape):
            return None
        shift = None if bias is None else np.ascontiguousarray(bias.array()[order])
        moved = Op("Conv", x, np.ascontiguousarray(weight.array()[order]), shift, **conv.attrs)
        return moved if f is None else Op(f.op, moved, *f.inputs[1:], **f.attrs)


class ShuffleIntoReader(Rule):
    """Conv(f(Shuffle(x)), W, b) = Conv(f(x), W[:, π⁻¹], b): each filter's planes in x's order.

    f works element by element and the Conv has one group. The sums run in another order.
    """

    _shuffled = _shuffle(any_("x"))
    pattern = Op(
        "Conv",
        either(_shuffled, Op(..., _shuffled, ..., bind="f")),
        const("weight"),
        optional(const("bias")),
        bind="conv",
    )

    def rewrite(
        self,
        conv: Node,
        f: Node | None,
        shuffled: Node,
        whole: Tensor,
        turned: Node,
        parts: Node,
        sizes: Tensor,
        x: Tensor,
        weight: Weight,
        bias: Weight | None,
    ) -> Any:
        if (f is not None and not _is_plain(f)) or weight.dtype not in FLOAT_TYPES:
            return None
        groups = attribute(conv, "group")
        order = order_of_shuffle(parts, turned, shuffled, weight.shape[1] * groups)
        if order is None:
            return None
        require(groups == 1, f"{label(conv)} has groups, between which {label(turned)} moves")
        require_own(weight)
        inverse = np.argsort(order)
        moved = np.ascontiguousarray(weight.array()[:, inverse])
        between = x if f is None else Op(f.op, x, *f.inputs[1:], **f.attrs)
        return Op("Conv", between, moved, bias, **conv.attrs)


def order_of_shuffle(parts: Node, turned: Node, shuffled: Node, channels: int) -> Array | None:
    """Return which channel of x each channel of the result is; None where it is no shuffle.

    [N, C, …] becomes [N, g, C/g, …], two of these axes change places, and [N, C, …] again.
    """
    perm = attribute(turned, "perm")
    if perm is None or len(perm) < 4 or list(perm) != [0, 2, 1, *range(3, len(perm))]:
        return None
    x, split, after = parts.inputs[0], parts.outputs[0], shuffled.outputs[0]
    for tensor in (x, split):
        shape = needed(tensor.shape, f"the shape of '{tensor.name}' is not known", UNKNOWN_SIZE)
        require(all(shape), f"the shape of '{tensor.name}' is not known", UNKNOWN_SIZE)
    if list(x.shape) != list(after.shape or []) or static_dim(x, 1) != channels:
        return None
    groups, size = static_dim(split, 1), static_dim(split, 2)
    if groups is None or size is None or groups * size != channels:
        return None
    if list(x.shape) != [split.shape[0], channels, *split.shape[3:]]:
        return None
    order: Array = np.arange(channels).reshape(groups, size).T.ravel()
    return order


def _stays_in_groups(order: Array, groups: int) -> bool:
    size = order.size // groups
    return bool((order // size == np.arange(order.size) // size).all())


def _is_plain(f: Node) -> bool:
    return has(f, Trait.ELEMENTWISE) and not has(f, Trait.RANDOM)
