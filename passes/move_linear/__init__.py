"""move-linear: what commutes with a 1x1 Conv stands where there is less to do.

A 1x1 Conv computes each pixel from that pixel alone. An average or an interpolation computes each
channel from that channel alone, with factors that sum to 1, so that a bias passes unchanged: both
orders are equal over the real numbers, not with infinities, as the mean of ∞ and −∞ is NaN.
Nothing is moved where more multiply-adds, or bytes that are written, would come of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    axes_of,
    const,
    constant,
    label,
    operator,
    optional,
    require,
    static_dim,
)
from graphpass.ir.windows import pads_nothing

from .embeddings import GatherOfProducts
from .strides import StrideAhead

_POINTWISE = Op("Conv", any_("x"), const("weight"), optional(const("bias")), bind="conv")
_MODES = ("nearest", "linear")


class PoolAheadOfPointwise(Rule):
    """AveragePool(Conv1x1(x, W, b)) = Conv1x1(AveragePool(x), W, b), where it has a stride.

    Where padding counts as zeros, the factors do not sum to 1 near the edges: only if b = 0.
    """

    pattern = Op("AveragePool", _POINTWISE, bind="pool")

    def rewrite(
        self, pool: Node, conv: Node, x: Tensor, weight: Weight, bias: Weight | None
    ) -> Any:
        strides = attribute(pool, "strides") or []
        if not _is_pointwise(conv, weight, x) or math.prod(strides) < 2:
            return None
        counted = attribute(pool, "count_include_pad") and not _is_inside(pool, weight.shape)
        adds = bias is not None and bool(np.any(bias.array()))
        require(
            not (counted and adds),
            f"{label(pool)} counts zeros that it pads, to which {label(conv)} adds a bias",
        )
        before, after = _pixels(conv, pool, strides)
        _require_no_more_written(pool, conv, weight, before, after)
        pooled = Op("AveragePool", x, **pool.attrs)
        return Op("Conv", pooled, weight, bias, **conv.attrs)


class MeanAheadOfPointwise(Rule):
    """GlobalAveragePool(Conv1x1(x, W, b)) = Conv1x1(GlobalAveragePool(x), W, b).

    ReduceMean over all pixels, whose axes stay, likewise.
    """

    pattern = Op(("GlobalAveragePool", "ReduceMean"), _POINTWISE, ..., bind="pool")

    def rewrite(
        self, pool: Node, conv: Node, x: Tensor, weight: Weight, bias: Weight | None
    ) -> Any:
        if not _is_pointwise(conv, weight, x):
            return None
        if operator(pool) == "ReduceMean" and not _is_over_pixels(pool, weight.ndim):
            return None
        sizes = [static_dim(x, axis) for axis in range(2, weight.ndim)]
        known = [size for size in sizes if size is not None]
        before = math.prod(known) if len(known) == len(sizes) else 1
        if before == 1 and len(known) == len(sizes):
            return None  # nothing is gained
        _require_no_more_written(pool, conv, weight, before, 1)
        pooled = Op(pool.op, x, *pool.inputs[1:], **pool.attrs)
        return Op("Conv", pooled, weight, bias, **conv.attrs)


class PointwiseAheadOfResize(Rule):
    """Conv1x1(Resize(x), W, b) = Resize(Conv1x1(x, W, b)), where it makes more pixels.

    With nearest pixels, or linear factors, which sum to 1.
    """

    pattern = Op(
        "Conv",
        Op(("Resize", "Upsample"), any_("x"), ..., bind="resize"),
        const("weight"),
        optional(const("bias")),
        bind="conv",
    )

    def rewrite(
        self, conv: Node, resize: Node, x: Tensor, weight: Weight, bias: Weight | None
    ) -> Any:
        scales = _scales(resize)
        if scales is None or not _is_pointwise(conv, weight, conv.inputs[0]):
            return None
        if math.prod(scales) <= 1 or min(scales) < 1:
            return None
        _require_plain(resize)
        written, saved = weight.shape[0], weight.shape[1] * attribute(conv, "group")
        require(
            written <= saved * math.prod(scales),
            f"{label(conv)} makes {written} channels of {saved}: it would write more before "
            f"{label(resize)} than it saves behind it",
        )
        inner = Op("Conv", x, weight, bias, **conv.attrs)
        return Op(resize.op, inner, *resize.inputs[1:], **resize.attrs)


class ResizeAheadOfPointwise(Rule):
    """Resize(Conv1x1(x, W, b)) = Conv1x1(Resize(x), W, b), where it leaves fewer pixels."""

    pattern = Op(("Resize", "Upsample"), _POINTWISE, ..., bind="resize")

    def rewrite(
        self, resize: Node, conv: Node, x: Tensor, weight: Weight, bias: Weight | None
    ) -> Any:
        scales = _scales(resize)
        if scales is None or not _is_pointwise(conv, weight, x):
            return None
        if math.prod(scales) >= 1 or max(scales) > 1:
            return None
        _require_plain(resize)
        written, saved = weight.shape[1] * attribute(conv, "group"), weight.shape[0]
        require(
            written * math.prod(scales) <= saved,
            f"{label(conv)} makes {saved} channels of {written}: {label(resize)} would write more "
            "before it than it saves behind it",
        )
        inner = Op(resize.op, x, *resize.inputs[1:], **resize.attrs)
        return Op("Conv", inner, weight, bias, **conv.attrs)


def _is_pointwise(conv: Node, weight: Weight, x: Tensor) -> bool:
    """Whether each pixel of the result is made of that pixel alone."""
    if weight.ndim < 3 or any(size != 1 for size in weight.shape[2:]):
        return False
    strides = attribute(conv, "strides") or []
    return all(step == 1 for step in strides) and pads_nothing(conv, x)


def _is_inside(pool: Node, shape: Sequence[int]) -> bool:
    """Whether no window of `pool` reaches beyond the edge."""
    if attribute(pool, "ceil_mode"):
        return False
    mode = attribute(pool, "auto_pad")
    return mode == "VALID" or (mode == "NOTSET" and not any(attribute(pool, "pads") or []))


def _is_over_pixels(mean: Node, axes: int) -> bool:
    listed = axes_of(mean)
    if listed is None or not attribute(mean, "keepdims"):
        return False
    return sorted(axis % axes for axis in listed) == list(range(2, axes))


def _pixels(conv: Node, pool: Node, strides: Sequence[int]) -> tuple[int, int]:
    """Return how many pixels `conv` and `pool` make, or, where unknown, their ratio."""
    counts = []
    for node in (conv, pool):
        x = node.outputs[0]
        sizes = [static_dim(x, 2 + axis) for axis in range(len(strides))]
        counts.append(None if None in sizes else math.prod(size or 0 for size in sizes))
    before, after = counts
    if before is not None and after is not None:
        return before, after
    return math.prod(strides), 1


def _require_no_more_written(
    pool: Node, conv: Node, weight: Weight, before: int, after: int
) -> None:
    """Refuse where `pool`, ahead of `conv`, writes more than `conv` then saves."""
    wide, narrow = weight.shape[1] * attribute(conv, "group"), weight.shape[0]
    require(
        wide * after <= narrow * before,
        f"{label(conv)} makes {narrow} channels of {wide}: {label(pool)} would write more before "
        "it than it saves behind it",
    )


def _scales(resize: Node) -> list[float] | None:
    """Return the factors of the pixels; None where they are computed, or it has other axes."""
    place = 2 if operator(resize) == "Resize" and len(resize.inputs) > 2 else 1
    if len(resize.inputs) != place + 1 or attribute(resize, "axes") is not None:
        return None
    held = constant(resize.inputs[place])
    if held is None or held.ndim != 1 or held.size < 3:
        return None
    factors = [float(value) for value in held.array()]
    return factors[2:] if factors[:2] == [1.0, 1.0] else None


def _require_plain(resize: Node) -> None:
    """Refuse an interpolation whose factors do not sum to 1."""
    mode = str(attribute(resize, "mode"))
    require(mode in _MODES, f"{label(resize)} interpolates in the mode {mode}")
    require(
        attribute(resize, "coordinate_transformation_mode") != "tf_crop_and_resize",
        f"{label(resize)} fills in what lies beyond the edges",
    )


class MoveLinear(Pass):
    """Move averages, interpolations, strides and embeddings to where a layer has less to do."""

    name = "move-linear"
    surveys = (StrideAhead(),)
    rules = (
        PoolAheadOfPointwise(),
        MeanAheadOfPointwise(),
        PointwiseAheadOfResize(),
        ResizeAheadOfPointwise(),
        GatherOfProducts(),
    )
