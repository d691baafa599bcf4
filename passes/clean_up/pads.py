"""Pad ahead of what pads by itself."""

from __future__ import annotations

import math
from typing import Any

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    any_,
    attribute,
    constant,
    integers,
    label,
    opset,
    rank,
    require,
    static_dim,
)

_AS_INPUTS = 11  # from this opset on, pads and value of a Pad are inputs


def _pad(name: str) -> Op:
    return Op("Pad", any_(name), ..., bind="pad")


def padding(pad: Node) -> list[tuple[int, int]] | None:
    """Return how many elements a Pad adds before and after on each axis; None where computed."""
    count = rank(pad.inputs[0])
    listed = attribute(pad, "pads") or attribute(pad, "paddings")
    if listed is None and len(pad.inputs) > 1:
        listed = integers(pad.inputs[1])
    if listed is None or count is None:
        return None
    axes: list[int] | None = list(range(count))
    if len(pad.inputs) > 3 and pad.inputs[3].name:
        axes = integers(pad.inputs[3])
    if axes is None or len(listed) != 2 * len(axes):
        return None
    result = [(0, 0)] * count
    for place, axis in enumerate(axes):
        result[axis % count] = (listed[place], listed[place + len(axes)])
    return result


def filling(pad: Node) -> float | None:
    """Return what a Pad of mode "constant" fills in; None of other modes or where computed."""
    if str(attribute(pad, "mode")) != "constant":
        return None
    if opset(pad) < _AS_INPUTS:
        return float(attribute(pad, "value") or 0)
    if len(pad.inputs) < 3 or not pad.inputs[2].name:
        return 0.0
    value = constant(pad.inputs[2])
    return float(value.array().reshape(-1)[0]) if value is not None and value.size == 1 else None


def _spatial(pad: Node) -> list[tuple[int, int]] | None:
    """Return what a Pad adds on the axes from 2 on; None where it does something else as well."""
    sides = padding(pad)
    if sides is None or len(sides) < 3 or any(map(any, sides[:2])):
        return None
    return sides[2:] if all(n >= 0 for side in sides for n in side) else None


def _own(node: Node, count: int) -> list[int] | None:
    """Return the pads that `node` has by itself; None where they follow from the size."""
    mode = attribute(node, "auto_pad")
    if mode not in (None, "NOTSET", "VALID"):
        return None
    pads = attribute(node, "pads") if mode != "VALID" else None
    return list(pads) if pads else [0] * (2 * count)


def _together(own: list[int], sides: list[tuple[int, int]]) -> list[int]:
    before, after = zip(*sides, strict=True)
    return [int(a + b) for a, b in zip(own, (*before, *after), strict=True)]


class PadIntoConv(Rule):
    """Conv(Pad(x, p, zeros), W, b) = Conv(x, W, b) with p added to its own pads."""

    pattern = Op("Conv", _pad("x"), ..., bind="conv")

    def rewrite(self, conv: Node, pad: Node, x: Tensor) -> Any:
        sides = _spatial(pad)
        if sides is None or filling(pad) != 0:
            return None
        own = _own(conv, len(sides))
        if own is None:
            return None
        pads = {**conv.attrs, "pads": _together(own, sides), "auto_pad": None}
        return Op("Conv", x, *conv.inputs[1:], **pads)


class PadIntoAveragePool(Rule):
    """AveragePool(Pad(x, p, zeros)) = AveragePool(x, pads=p, count_include_pad=1)."""

    pattern = Op("AveragePool", _pad("x"), bind="pool")

    def rewrite(self, pool: Node, pad: Node, x: Tensor) -> Any:
        sides = _spatial(pad)
        if sides is None or filling(pad) != 0 or opset(pool) < 7:
            return None
        own = _own(pool, len(sides))
        if own is None or attribute(pool, "ceil_mode"):
            return None
        if any(own) and not attribute(pool, "count_include_pad"):
            return None  # its own zeros do not count, those of the Pad do
        pads = _together(own, sides)
        _require_short(pool, pads)
        changed = {**pool.attrs, "pads": pads, "count_include_pad": 1, "auto_pad": None}
        return Op("AveragePool", x, **changed)


class PadIntoMaxPool(Rule):
    """MaxPool(Pad(x, p, −∞)) = MaxPool(x, pads=p): its own pads never are the largest."""

    pattern = Op("MaxPool", _pad("x"), bind="pool")

    def rewrite(self, pool: Node, pad: Node, x: Tensor) -> Any:
        sides = _spatial(pad)
        if sides is None or filling(pad) != -math.inf:
            return None
        own = _own(pool, len(sides))
        if own is None or set(attribute(pool, "dilations") or [1]) != {1}:
            return None
        if attribute(pool, "ceil_mode"):
            return None
        pads = _together(own, sides)
        _require_short(pool, pads)
        return Op("MaxPool", x, **{**pool.attrs, "pads": pads, "auto_pad": None})


def _require_short(pool: Node, pads: list[int]) -> None:
    """Refuse where a window would hold nothing but padding, which runtimes do not take."""
    kernel = attribute(pool, "kernel_shape")
    is_short = all(pad < size for pad, size in zip(pads, [*kernel, *kernel], strict=True))
    require(is_short, f"{label(pool)} would be padded by as much as its kernel is long")


class MergePads(Rule):
    """Pad(Pad(x, p, c), q, c) = Pad(x, p + q, c), where both add elements."""

    pattern = Op("Pad", Op("Pad", any_("x"), ..., bind="inner"), ..., bind="outer")

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        first, second = padding(inner), padding(outer)
        if first is None or second is None or any(n < 0 for s in (*first, *second) for n in s):
            return None
        value, other = filling(inner), filling(outer)
        if value is None or other is None or repr(value) != repr(other):
            return None
        sides = [(a + c, b + d) for (a, b), (c, d) in zip(first, second, strict=True)]
        pads = [before for before, _ in sides] + [after for _, after in sides]
        name = "pads" if opset(outer) >= 2 else "paddings"
        return Op("Pad", x, None, *outer.inputs[2:3], **{**outer.attrs, name: pads})


class DropPad(Rule):
    """Pad(x, zeros) = x."""

    pattern = Op("Pad", any_("x"), ..., bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        listed = attribute(node, "pads") or attribute(node, "paddings")
        if listed is None and len(node.inputs) > 1:
            listed = integers(node.inputs[1])
        return x if listed is not None and not any(listed) else None


class DropPool(Rule):
    """Pool(x) over windows of one element = x: the mean or maximum of one number is that number."""

    pattern = Op(("AveragePool", "MaxPool"), any_("x"), bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        ones = [*(attribute(node, "kernel_shape") or ()), *(attribute(node, "strides") or ())]
        zeros = attribute(node, "pads") or ()
        return x if set(ones) == {1} and not any(zeros) else None


class DropGlobalPool(Rule):
    """GlobalPool(x[N, C, 1, 1]) = x."""

    pattern = Op(("GlobalAveragePool", "GlobalMaxPool"), any_("x"))

    def rewrite(self, x: Tensor) -> Any:
        count = rank(x)
        if count is None or any(static_dim(x, axis) != 1 for axis in range(2, count)):
            return None
        return x


PAD_RULES = (
    DropPad(),
    MergePads(),
    PadIntoConv(),
    PadIntoAveragePool(),
    PadIntoMaxPool(),
    DropPool(),
    DropGlobalPool(),
)

__all__ = ["PAD_RULES"]
