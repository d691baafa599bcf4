"""flatten-gemm-to-gap-conv: dense layers on pooled features become 1x1 convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from graphpass import (
    Choice,
    Node,
    Op,
    Pass,
    Rule,
    Tensor,
    any_,
    attribute,
    axes_of,
    dtype,
    either,
    label,
    operator,
    optional,
    rank,
    require,
)
from graphpass.ir.refusal import UNKNOWN_SIZE, needed

from .shared.dense import DENSE_ON_MAP, dense, dense_on_map, resolve
from .shared.flatten import FLATTEN_RULES
from .shared.heads import feeds_layer, map_sizes
from .shared.pixels import common_pixel
from .shared.rows import require_images

_GLOBAL = {
    "ReduceMean": "GlobalAveragePool",
    "AveragePool": "GlobalAveragePool",
    "ReduceMax": "GlobalMaxPool",
    "MaxPool": "GlobalMaxPool",
}
_MAP = either(Op("Transpose", any_("y"), bind="transpose", shared=True), any_("y"))


@dataclass(frozen=True)
class ReduceIsGlobalPool(Rule):
    """ReduceMean(y[N, C, H, W], [2, 3]) = GlobalAveragePool(y), flattened where keepdims is 0.

    With a Transpose before it, over whatever axes H and W are then; ReduceMax likewise.
    """

    grow: bool = True

    choice = Choice.AS_ASKED
    pattern = Op(("ReduceMean", "ReduceMax"), _MAP, optional(any_("axes")), bind="reduce")

    def rewrite(self, reduce: Node, transpose: Node | None, y: Tensor, axes: Tensor | None) -> Any:
        if not _can_pool(y) or not feeds_layer(reduce.outputs[0], reduce):
            return None
        x = reduce.inputs[0]
        count, listed = rank(x), axes_of(reduce)
        if count is None or count < 3 or not listed:
            return None
        turned = None if transpose is None else attribute(transpose, "perm")
        if turned is None or turned[0] != 0:
            turned, y = list(range(count)), x
        pooled = sorted(turned[axis % count] for axis in listed)
        if pooled != list(range(2, count)):
            return None
        result = Op(_GLOBAL[operator(reduce)], y)
        if attribute(reduce, "keepdims") == 0:
            return Op("Flatten", result, axis=1) if self.grow else None
        return result if turned == sorted(turned) else Op("Transpose", result, perm=turned)


class MergeMeans(Rule):
    """ReduceMean(ReduceMean(y, a), b) = ReduceMean(y, a ∪ b); ReduceMax likewise.

    Of means over equally many elements each the mean is that of all; the sums are rounded in
    another order. Which of two equal maxima is kept shows in no value.
    """

    pattern = Op(
        ("ReduceMean", "ReduceMax"),
        Op(("ReduceMean", "ReduceMax"), any_("y"), optional(any_("first")), bind="inner"),
        optional(any_("second")),
        bind="outer",
    )

    def rewrite(
        self, outer: Node, inner: Node, y: Tensor, first: Tensor | None, second: Tensor | None
    ) -> Any:
        count = rank(y)
        listed, further = axes_of(inner), axes_of(outer)
        kept = attribute(inner, "keepdims")
        alike = operator(inner) == operator(outer) and kept == attribute(outer, "keepdims")
        if not alike or count is None or not listed or not further:
            return None
        if not feeds_layer(outer.outputs[0], outer):
            return None
        gone = {axis % count for axis in listed}
        left = [axis for axis in range(count) if kept or axis not in gone]
        axes = sorted(gone | {left[axis] for axis in further})
        return Op(outer.op, y, **{**outer.attrs, "axes": axes})


class WholeWindowIsGlobalPool(Rule):
    """AveragePool(y[N, C, H, W], kernel HxW) = GlobalAveragePool(y); MaxPool likewise."""

    choice = Choice.AS_ASKED
    pattern = Op(("AveragePool", "MaxPool"), any_("y"), bind="pool")

    def rewrite(self, pool: Node, y: Tensor) -> Any:
        sizes = map_sizes(y)
        if sizes is None or not _can_pool(y) or not feeds_layer(pool.outputs[0], pool):
            return None
        # with ceil_mode or padding a window may hang over the edge: only one that is exactly
        # the map has the map's mean
        whole = attribute(pool, "kernel_shape") == list(sizes[1:])
        padded = any(attribute(pool, "pads") or []) or attribute(pool, "auto_pad") not in (
            "NOTSET",
            "VALID",
        )
        spread = any(step != 1 for step in attribute(pool, "dilations") or [])
        if not whole or padded or spread:
            return None
        return Op(_GLOBAL[operator(pool)], y)


class MeanOfOneRow(Rule):
    """ReduceMean(Unsqueeze(y[N, C, L], a), b) = Unsqueeze(GlobalAveragePool(y), a).

    With keepdims, and b all axes behind the channels, a among them; ReduceMax likewise. PyTorch's
    newer exporter pools signals as images of one row.
    """

    pattern = Op(
        ("ReduceMean", "ReduceMax"),
        Op("Unsqueeze", any_("y"), ..., bind="view"),
        ...,
        bind="reduce",
        keepdims=1,
    )

    def rewrite(self, reduce: Node, view: Node, y: Tensor) -> Any:
        count, new, listed = rank(y), axes_of(view), axes_of(reduce)
        if count is None or not new or not listed or not feeds_layer(reduce.outputs[0], reduce):
            return None
        whole = count + len(new)
        added, pooled = ({axis % whole for axis in given} for given in (new, listed))
        old = [axis for axis in range(whole) if axis not in added]
        left = [place for place, axis in enumerate(old) if axis in pooled]
        if not added < pooled or left != list(range(2, count)) or not _can_pool(y):
            return None
        inner = Op(_GLOBAL[operator(reduce)], y)
        return Op("Unsqueeze", inner, *view.inputs[1:], **view.attrs)


def _can_pool(y: Tensor) -> bool:
    # ONNX Runtime pools no double numbers; ReduceMean of whole numbers rounds otherwise
    return dtype(y) in (np.dtype(np.float32), np.dtype(np.float16))


class DenseOnEqualPixels(Rule):
    """Gemm(Flatten(y), W, b) = Flatten(Conv(GlobalAveragePool(y), H·W·w, b)) where all W[h, w] = w.

    y is [N, C, H, W], w [M, C], the same for every h and w. A map of one pixel, such as pooling
    makes, is its own mean.
    """

    choice = Choice.AS_ASKED
    pattern = DENSE_ON_MAP

    def rewrite(
        self,
        layer: Node,
        matrix: Tensor,
        bias: Tensor | None,
        add: Node | None,
        flatten: Node,
        transpose: Node | None,
        y: Tensor,
    ) -> Any:
        read = dense_on_map((flatten, transpose, y), layer, matrix, bias, add)
        if read is None:
            return None
        found, features = read
        require_images(layer, matrix, layer.inputs[0])
        pixels = math.prod(features.sizes[1:])
        if pixels == 1:
            return found.convolution(features.y, found.kernel(features.row, features.order))
        require(_can_pool(features.y), f"no pooling takes {dtype(features.y)} numbers")
        kernel = found.summed(common_pixel(found, features), pixels)
        return found.convolution(Op("GlobalAveragePool", features.y), kernel)


class DenseOnSums(Rule):
    """Gemm(ReduceSum(y[N, C, H, W], [2, 3]), W, b) = Flatten(Conv(GlobalAveragePool(y), H·W·W, b)).

    The sum over all pixels is H·W times their mean.
    """

    choice = Choice.AS_ASKED
    pattern = dense(Op("ReduceSum", any_("y"), optional(any_("axes")), bind="reduce", shared=True))

    def rewrite(
        self,
        layer: Node,
        matrix: Tensor,
        bias: Tensor | None,
        add: Node | None,
        reduce: Node,
        y: Tensor,
        axes: Tensor | None,
    ) -> Any:
        count, listed = rank(y), axes_of(reduce)
        if count is None or count < 3 or not listed or attribute(reduce, "keepdims"):
            return None
        if sorted(axis % count for axis in listed) != list(range(2, count)) or not _can_pool(y):
            return None
        found = resolve(layer, matrix, bias, add)
        if found is None or found.transposed:
            return None
        sizes = needed(map_sizes(y), f"the size of '{y.name}' is not fixed", UNKNOWN_SIZE)
        fits = sizes[0] == found.inputs
        require(fits, f"{label(layer)} has weights for {found.inputs} channels, not {sizes[0]}")
        kernel = found.on_mean(math.prod(sizes[1:]), count - 2)
        return found.convolution(Op("GlobalAveragePool", y), kernel)


@dataclass(frozen=True)
class FlattenGemmToGapConv(Pass):
    """Turn dense layers on pooled features into GlobalAveragePool (or -MaxPool) and a 1x1 Conv.

    Also those on a map of one pixel, and those whose weights are the same for every pixel. A
    layer whose weights depend on the pixel is refused: gemm-to-conv makes a kernel of it.
    """

    name: ClassVar[str] = "flatten-gemm-to-gap-conv"
    grow: bool = field(
        default=True,
        metadata={"help": "also of means that drop their axes themselves, for one node more"},
    )

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """What is looked for node by node."""
        return (
            MergeMeans(),
            MeanOfOneRow(),
            ReduceIsGlobalPool(self.grow),
            WholeWindowIsGlobalPool(),
            DenseOnEqualPixels(),
            DenseOnSums(),
            *FLATTEN_RULES,
        )
