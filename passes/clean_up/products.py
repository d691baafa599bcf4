"""Matrix products: one Gemm does what a MatMul, an Add and a Transpose do."""

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
    dtype,
    either,
    operator,
    opset,
    producer,
    rank,
    static_dim,
)
from graphpass.ir.shapes import sizes
from graphpass.ir.sizes import Size

from ..shared.transposes import permutation
from .neutral import keeps_shape

_BROADCASTS = 7  # from this opset on, a Gemm broadcasts its C
GEMM_MAY_LACK_C = 11  # from this opset on, it need not have one
_ONE_AXIS = 13  # from this opset on, a Softmax is over one axis
_KINDS = (np.dtype(np.float32), np.dtype(np.float64))  # which every Gemm takes


class MatMulAddIsGemm(Rule):
    """MatMul(a, b) + c = Gemm(a, b, c) for matrices a and b, but for the order of the sum."""

    pattern = Op(
        "Add", Op("MatMul", any_("a"), any_("b"), bind="product"), any_("c"), commutative=True
    )

    def rewrite(self, product: Node, a: Tensor, b: Tensor, c: Tensor) -> Any:
        if opset(product) < _BROADCASTS or not _are_matrices(a, b):
            return None
        return Op("Gemm", a, b, c) if _is_added(product, c) else None


class AddIntoGemm(Rule):
    """Gemm(a, b) + c = Gemm(a, b, c), but for the order of the sum."""

    pattern = Op("Add", Op("Gemm", any_("a"), any_("b"), bind="gemm"), any_("c"), commutative=True)

    def rewrite(self, gemm: Node, a: Tensor, b: Tensor, c: Tensor) -> Any:
        if not _is_added(gemm, c) or dtype(a) not in _KINDS:
            return None
        return Op("Gemm", a, b, c, **{**gemm.attrs, "beta": None})


class TransposeIntoMatMul(Rule):
    """MatMul(aᵀ, b) = Gemm(a, b, transA=1) for matrices, but for the order of the sum."""

    pattern = Op("MatMul", Op("Transpose", any_("a"), bind="turned"), any_("b"))

    def rewrite(self, turned: Node, a: Tensor, b: Tensor) -> Any:
        if opset(turned) < GEMM_MAY_LACK_C or not _are_matrices(a, b):
            return None
        return Op("Gemm", a, b, transA=1) if permutation(turned) == [1, 0] else None


class MatMulOfTranspose(Rule):
    """MatMul(a, bᵀ) = Gemm(a, b, transB=1) for matrices, but for the order of the sum."""

    pattern = Op("MatMul", any_("a"), Op("Transpose", any_("b"), bind="turned"))

    def rewrite(self, turned: Node, a: Tensor, b: Tensor) -> Any:
        if opset(turned) < GEMM_MAY_LACK_C or not _are_matrices(a, b):
            return None
        return Op("Gemm", a, b, transB=1) if permutation(turned) == [1, 0] else None


class TransposeIntoGemm(Rule):
    """Gemm(aᵀ, b, c) = Gemm(a, b, c, transA=1), and back where transA was 1."""

    pattern = Op("Gemm", Op("Transpose", any_("a"), bind="turned"), any_("b"), ..., bind="gemm")

    def rewrite(self, gemm: Node, turned: Node, a: Tensor, b: Tensor) -> Any:
        if permutation(turned) != [1, 0] or _is_quantized(a):
            return None
        return Op("Gemm", a, b, *gemm.inputs[2:], **_flipped(gemm, "transA"))


class GemmOfTranspose(Rule):
    """Gemm(a, bᵀ, c) = Gemm(a, b, c, transB=1), and back where transB was 1."""

    pattern = Op("Gemm", any_("a"), Op("Transpose", any_("b"), bind="turned"), ..., bind="gemm")

    def rewrite(self, gemm: Node, turned: Node, a: Tensor, b: Tensor) -> Any:
        if permutation(turned) != [1, 0] or _is_quantized(b):
            return None
        return Op("Gemm", a, b, *gemm.inputs[2:], **_flipped(gemm, "transB"))


class DropScaleOfOne(Rule):
    """Softmax(c·a · d·b) = Softmax(a · b) over one element, with numbers c, d other than 0.

    Both are 1 where the product is finite and NaN where it is not, but for where only one of both
    overflows; in half precision, where that is near, the scales stay. A Softmax over one element
    itself stays as well: in its place a 1 would hide NaN.
    """

    pattern = Op(
        "Softmax",
        Op(
            "MatMul",
            either(Op("Mul", any_("a"), const("c", quiet=True), commutative=True), any_("a")),
            either(Op("Mul", any_("b"), const("d", quiet=True), commutative=True), any_("b")),
            bind="product",
        ),
        bind="softmax",
    )

    def rewrite(
        self, softmax: Node, product: Node, a: Tensor, b: Tensor, c: Weight | None, d: Weight | None
    ) -> Any:
        count = rank(product.outputs[0])
        if opset(softmax) < _ONE_AXIS or dtype(a) not in _KINDS or not count:
            return None
        if static_dim(product.outputs[0], attribute(softmax, "axis") % count) != 1:
            return None
        scales = [(a, c), (b, d)]
        if c is d or not all(w is None or _is_a_scale(t, w) for t, w in scales):
            return None
        return Op("Softmax", Op("MatMul", a, b), **softmax.attrs)


def _is_a_scale(tensor: Tensor, weight: Weight) -> bool:
    """Whether a constant is one number other than 0, and adds no axes to a tensor."""
    if weight.size != 1 or not keeps_shape(tensor, weight):
        return False
    number = float(weight.array().reshape(-1)[0])
    return number != 0 and math.isfinite(number)


def _is_added(product: Node, c: Tensor) -> bool:
    """Whether the sum of a product and `c` has the shape of the product."""
    whole, added = sizes(product.outputs[0]), sizes(c)
    if whole is None or added is None or len(added) > 2:
        return False
    pairs = zip(reversed(added), reversed(whole), strict=False)
    return all(size in (Size(1), other) for size, other in pairs)


def _are_matrices(a: Tensor, b: Tensor) -> bool:
    """Whether both are matrices of numbers; quantized ones stay where runtimes look for them."""
    return all(
        rank(tensor) == 2 and dtype(tensor) in _KINDS and not _is_quantized(tensor)
        for tensor in (a, b)
    )


def _is_quantized(tensor: Tensor) -> bool:
    source = producer(tensor)
    return source is not None and operator(source) == "DequantizeLinear"


def _flipped(gemm: Node, name: str) -> dict[str, Any]:
    return {**gemm.attrs, name: int(not attribute(gemm, name)) or None}


PRODUCT_RULES = (
    MatMulAddIsGemm(),
    AddIntoGemm(),
    TransposeIntoMatMul(),
    MatMulOfTranspose(),
    TransposeIntoGemm(),
    GemmOfTranspose(),
    DropScaleOfOne(),
)

__all__ = ["GEMM_MAY_LACK_C", "PRODUCT_RULES"]
