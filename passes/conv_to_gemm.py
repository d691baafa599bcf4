"""conv-to-gemm: convolutions whose kernel is as large as their input become dense layers.

The inverse of gemm-to-conv, for targets that take a vector as a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
    is_output,
    label,
    needed,
    operator,
    opset,
    optional,
    rank,
    readers,
    require,
    static_dim,
)
from graphpass.ir.operators import Trait, has, named
from graphpass.ir.refusal import UNKNOWN_SIZE
from graphpass.ir.shapes import RESHAPES, as_target, sizes
from graphpass.ir.sizes import Size
from graphpass.ir.windows import windows_of

from .shared.reshapes import DropReshape, MergeReshapes

_POINTWISE = named(Trait.ELEMENTWISE, without=Trait.RANDOM)
_MOST_AXES = 6
_MOST_STEPS = 64
_COPIES_SIZES = 5  # from this opset on, a 0 in the shape of a Reshape stands for the input's size


def _pixel(rows: Op, outputs: int, axes: int) -> Op:
    """Rows [N, M] as maps of one cell."""
    return Op("Reshape", rows, np.array([0, outputs, *[1] * axes], np.int64))


class ConvOverWholeInput(Rule):
    """Conv(x, W[M, C, kh, kw], b) = Gemm(Flatten(x), W as [M, C·kh·kw], b) as [N, M, 1, 1].

    Where x is [N, C, kh, kw] and nothing is padded: there is one window, and it is all of x. The
    same products are summed, maybe in another order.
    """

    pattern = Op("Conv", any_("x"), const("weight"), optional(const("bias")), bind="conv")

    def rewrite(self, conv: Node, x: Tensor, weight: Weight, bias: Weight | None) -> Any:
        axes = len(weight.shape) - 2
        sizes = [static_dim(x, axis) for axis in range(2, 2 + axes)]
        windows = windows_of(conv)
        if None in sizes or len(windows) != axes:
            return None
        pairs = list(zip(windows, sizes, strict=True))
        if not all(window.covers(size) for window, size in pairs if size is not None):
            return None
        if not _becomes_rows(conv.outputs[0]):
            return None
        require(attribute(conv, "group") == 1, f"{label(conv)} has groups, which a Gemm has not")
        require(opset(conv) >= _COPIES_SIZES, f"{label(conv)} is from before opset 5")
        outputs = weight.shape[0]
        term = np.zeros(outputs, weight.dtype) if bias is None else bias
        rows = Op("Gemm", Op("Flatten", x), weight.reshape(outputs, -1), term, transB=1)
        return _pixel(rows, outputs, axes)


def _becomes_rows(pixel: Tensor) -> bool:
    """Whether every reader of maps of one cell makes rows of them, maybe after further layers.

    The gate of a squeeze-and-excitation goes back onto its map: there a Gemm would only cost views.
    """
    waiting, seen = [pixel], 0
    while waiting:
        tensor = waiting.pop()
        seen += 1
        if seen > _MOST_STEPS or is_output(tensor) or not readers(tensor):
            return False
        for node in readers(tensor):
            if operator(node) in RESHAPES:
                continue
            layer = operator(node) == "Conv" and attribute(node, "group") == 1
            goes_on = layer or has(node, Trait.ELEMENTWISE)
            if not goes_on or node.inputs[0] is not tensor:
                return False
            waiting.append(node.outputs[0])
    return True


class PixelAfterPointwise(Rule):
    """f(y[N, M] as [N, M, 1, 1]) = f(y) as [N, M, 1, 1] for f that works element by element."""

    pattern = Op(_POINTWISE, Op("Reshape", any_("y"), const("shape"), bind="view"), ..., bind="f")

    def rewrite(self, f: Node, view: Node, y: Tensor, shape: Weight) -> Any:
        listed = shape.array().tolist() if rank(y) == 2 and shape.size < _MOST_AXES else []
        if listed[:2] != [0, static_dim(y, 1)] or set(listed[2:]) != {1}:
            return None
        bounds = [tensor for tensor in f.inputs[1:] if tensor.name]  # as Clip has them
        if any(rank(tensor) != 0 for tensor in bounds):
            return None
        return Op("Reshape", Op(f.op, y, *f.inputs[1:], **f.attrs), shape)


class MatMulOnPositions(Rule):
    """MatMul(x[B, …, K], W[K, M]) = MatMul(x as [B·…, K], W) as [B, …, M]: positions are rows."""

    pattern = Op("MatMul", any_("x"), const("weight", quiet=True), bind="layer")

    def rewrite(self, layer: Node, x: Tensor, weight: Weight) -> Any:
        shape = sizes(x)
        if shape is None or len(shape) < 3 or weight.ndim != 2 or opset(layer) < _COPIES_SIZES:
            return None
        require(weight.size > 0, f"the weight of {label(layer)} is empty")
        target = needed(
            as_target([*shape[:-1], Size(weight.shape[1])], None),
            f"'{x.name}' has several sizes that are not fixed",
            UNKNOWN_SIZE,
        )
        rows = Op("Reshape", x, np.array([-1, weight.shape[0]], np.int64))
        return Op("Reshape", Op("MatMul", rows, weight), np.array(target, np.int64))


@dataclass(frozen=True)
class ConvToGemm(Pass):
    """Convolutions whose kernel is as large as their input become Gemm, for targets that ask it.

    With `positions`, layers on sequences and channel-last maps become layers on rows, one for
    each position.
    """

    name: ClassVar[str] = "conv-to-gemm"
    positions: bool = False

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """The rules that are asked for."""
        further = (MatMulOnPositions(),) if self.positions else ()
        views = (MergeReshapes(), DropReshape())
        return (ConvOverWholeInput(), PixelAfterPointwise(), *further, *views)
