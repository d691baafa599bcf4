"""Layers side by side on one tensor as one layer, whose result is split.

Each element of the result is the sum that it was, of the same products: only their order may be
another one, and where one of the layers has no bias, 0 is added, which makes 0 of −0. It is the
same number of multiply-adds in fewer, larger products, and the results are written once more:
which of the two counts depends on the runtime, so that all of these are choices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from graphpass import (
    Choice,
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    is_output,
    operator,
    optional,
    readers,
    siblings,
)
from graphpass.ir.operators import FUSED_BEHIND_CONV
from graphpass.ir.windows import windows_of

from ..shared.affine import FLOAT_TYPES, Array
from ..shared.linear import output_axis, require_own

_CONV = Op(
    "Conv", any_("x"), const("weight", quiet=True), optional(const("bias", quiet=True)), bind="conv"
)
Group = Sequence[int]  # places in the lists of siblings
_PRODUCT = Op("MatMul", any_("x"), const("weight", quiet=True), bind="layer")


class SiblingConvs(Rule):
    """Conv(x, V, b), Conv(x, W, c), … = Split(Conv(x, [V; W; …], [b; c; …])) with equal windows."""

    pattern = siblings(_CONV, of="x")
    choice = Choice.MEASURED

    def rewrite(
        self, x: Tensor, conv: list[Node], weight: list[Weight], bias: list[Weight | None]
    ) -> Any:
        kinds = [
            _kind_of_conv(node, held, shift) if _activation(node) is None else None
            for node, held, shift in zip(conv, weight, bias, strict=True)
        ]

        def term(group: Group) -> Op:
            return _conv(x, group, conv, weight, bias)

        return _merged(kinds, term, 1, [held.shape[0] for held in weight])


class SiblingActivatedConvs(Rule):
    """f(Conv(x, V, b)), f(Conv(x, W, c)), … = Split(f(Conv(x, [V; W; …], [b; c; …])))."""

    pattern = siblings(Op(FUSED_BEHIND_CONV, _CONV, bind="f"), of="x")
    choice = Choice.MEASURED

    def rewrite(
        self,
        x: Tensor,
        f: list[Node],
        conv: list[Node],
        weight: list[Weight],
        bias: list[Weight | None],
    ) -> Any:
        kinds: list[Hashable | None] = []
        for node, inner, held, shift in zip(f, conv, weight, bias, strict=True):
            kind = _kind_of_conv(inner, held, shift)
            kinds.append(None if kind is None else (kind, node.op, _told(node.attrs)))

        def term(group: Group) -> Op:
            first = f[group[0]]
            return Op(first.op, _conv(x, group, conv, weight, bias), **first.attrs)

        return _merged(kinds, term, 1, [held.shape[0] for held in weight])


class SiblingProducts(Rule):
    """MatMul(x, V), MatMul(x, W), … = Split(MatMul(x, [V W …])) for matrices V, W, …"""

    pattern = siblings(_PRODUCT, of="x")
    choice = Choice.MEASURED

    def rewrite(self, x: Tensor, layer: list[Node], weight: list[Weight]) -> Any:
        kinds = [
            _kind_of_matrix(held) if _added(node) is None else None
            for node, held in zip(layer, weight, strict=True)
        ]

        def term(group: Group) -> Op:
            return Op("MatMul", x, _joined([weight[index] for index in group], 1))

        return _merged(kinds, term, -1, [held.shape[-1] for held in weight])


class SiblingBiasedProducts(Rule):
    """MatMul(x, V) + b, MatMul(x, W) + c, … = Split(MatMul(x, [V W …]) + [b c …])."""

    pattern = siblings(
        Op("Add", _PRODUCT, const("bias", quiet=True), commutative=True, bind="add"), of="x"
    )
    choice = Choice.MEASURED

    def rewrite(
        self,
        x: Tensor,
        add: list[Node],
        layer: list[Node],
        weight: list[Weight],
        bias: list[Weight],
    ) -> Any:
        kinds = [
            _kind_of_matrix(held) if shift.shape == held.shape[1:] else None
            for held, shift in zip(weight, bias, strict=True)
        ]

        def term(group: Group) -> Op:
            product = Op("MatMul", x, _joined([weight[index] for index in group], 1))
            return Op("Add", product, np.concatenate([bias[index].array() for index in group]))

        return _merged(kinds, term, -1, [held.shape[-1] for held in weight])


class SiblingGemms(Rule):
    """Gemm(x, V, b), Gemm(x, W, c), … = Split(Gemm(x, [V W …], [b c …])), factors alike."""

    pattern = siblings(
        Op(
            "Gemm",
            any_("x"),
            const("weight", quiet=True),
            optional(const("bias", quiet=True)),
            bind="gemm",
        ),
        of="x",
    )
    choice = Choice.MEASURED

    def rewrite(
        self, x: Tensor, gemm: list[Node], weight: list[Weight], bias: list[Weight | None]
    ) -> Any:
        kinds = [
            _kind_of_gemm(node, held, shift)
            for node, held, shift in zip(gemm, weight, bias, strict=True)
        ]

        def term(group: Group) -> Op:
            shifts = [held.array() for index in group if (held := bias[index]) is not None]
            first = gemm[group[0]]
            whole = _joined([weight[index] for index in group], output_axis(first))
            shift = np.concatenate(shifts) if shifts else None
            return Op("Gemm", x, whole, shift, **first.attrs)

        sizes = [w.shape[output_axis(node)] for node, w in zip(gemm, weight, strict=True)]
        return _merged(kinds, term, -1, sizes)


# --------------------------------------------------------------------------- which belong together


def _merged(
    kinds: Sequence[Hashable | None], term: Callable[[Group], Op], axis: int, sizes: Sequence[int]
) -> list[Any] | None:
    """Return the pieces of `term(group)` for each group of one kind; None for others."""
    groups: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        if kind is not None:
            groups.setdefault(kind, []).append(index)
    found: list[Any] = [None] * len(kinds)
    for group in groups.values():
        if len(group) > 1:
            parts = [sizes[index] for index in group]
            pieces = Op("Split", term(group), axis=axis, split=parts, outputs=len(group))
            for index, piece in zip(group, pieces, strict=True):
                found[index] = piece
    return found if any(piece is not None for piece in found) else None


def _kind_of_conv(conv: Node, weight: Weight, bias: Weight | None) -> Hashable | None:
    """Return what Convs have to have in common; None for one that stays as it is."""
    shifted = bias is None or bias.shape == weight.shape[:1]
    if weight.dtype not in FLOAT_TYPES or attribute(conv, "group") != 1 or not shifted:
        return None
    return weight.dtype.name, tuple(weight.shape[1:]), windows_of(conv)


def _kind_of_matrix(weight: Weight) -> Hashable | None:
    if weight.dtype not in FLOAT_TYPES or weight.ndim != 2:
        return None
    return str(weight.dtype)


def _kind_of_gemm(gemm: Node, weight: Weight, bias: Weight | None) -> Hashable | None:
    if weight.dtype not in FLOAT_TYPES:
        return None
    if bias is not None and bias.shape != (weight.shape[output_axis(gemm)],):
        return None
    factors = tuple(attribute(gemm, name) for name in ("alpha", "beta", "transA", "transB"))
    return weight.dtype.name, bias is None, factors


def _activation(conv: Node) -> Node | None:
    """Return the activation that alone reads a Conv, where there is one."""
    found = readers(conv.outputs[0])
    if len(found) != 1 or is_output(conv.outputs[0]):
        return None
    return found[0] if operator(found[0]) in FUSED_BEHIND_CONV else None


def _added(product: Node) -> Node | None:
    """Return the Add that alone reads a product, where there is one."""
    found = readers(product.outputs[0])
    if len(found) != 1 or is_output(product.outputs[0]) or operator(found[0]) != "Add":
        return None
    return found[0]


def _told(attributes: Mapping[str, Any]) -> str:
    return str(sorted(attributes.items()))


# ------------------------------------------------------------------------------ what they become


def _conv(
    x: Tensor,
    group: Group,
    convs: Sequence[Node],
    weights: Sequence[Weight],
    biases: Sequence[Weight | None],
) -> Op:
    first, held = convs[group[0]], [weights[index] for index in group]
    shifts = [biases[index] for index in group]
    bias: Array | None = None
    if any(shift is not None for shift in shifts):
        pairs = zip(shifts, held, strict=True)
        bias = np.concatenate(
            [np.zeros(w.shape[0], w.dtype) if b is None else b.array() for b, w in pairs]
        )
    return Op("Conv", x, _joined(held, 0), bias, **first.attrs)


def _joined(weights: Sequence[Weight], axis: int) -> Array:
    for weight in weights:
        require_own(weight)
    return np.concatenate([weight.array() for weight in weights], axis=axis)
