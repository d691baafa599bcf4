"""Layers side by side on one tensor as one layer, whose result is split.

Each element of the result is the sum that it was, of the same products: only their order may be
another one, and where one of the layers has no bias, 0 is added, which makes 0 of −0. It is the
same number of multiply-adds in fewer, larger products, and the results are written once more:
which of the two counts depends on the runtime, so that all of these are choices.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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
    require,
    siblings,
)
from graphpass.ir.operators import FUSED_BEHIND_CONV
from graphpass.ir.windows import windows_of

from ..clean_up.pieces import split
from ..shared.affine import FLOAT_TYPES, Array
from ..shared.linear import is_read_elsewhere

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
            merged = _conv(x, group, conv, weight, bias)
            return split(conv[group[0]], merged, 1, [weight[index].shape[0] for index in group])

        return _merged(kinds, term)


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
            merged = Op(first.op, _conv(x, group, conv, weight, bias), **first.attrs)
            return split(first, merged, 1, [weight[index].shape[0] for index in group])

        return _merged(kinds, term)


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
            merged = Op("MatMul", x, _joined([weight[index] for index in group], 1))
            return split(layer[group[0]], merged, -1, [weight[index].shape[1] for index in group])

        return _merged(kinds, term)


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
            merged = Op("Add", product, np.concatenate([bias[index].array() for index in group]))
            return split(add[group[0]], merged, -1, [weight[index].shape[1] for index in group])

        return _merged(kinds, term)


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
            first = gemm[group[0]]
            axis = 0 if attribute(first, "transB") else 1
            sizes = [weight[index].shape[axis] for index in group]
            shifts = [held.array() for index in group if (held := bias[index]) is not None]
            layer = Op(
                "Gemm",
                x,
                _joined([weight[index] for index in group], axis),
                np.concatenate(shifts) if shifts else None,
                **first.attrs,
            )
            return split(first, layer, -1, sizes)

        return _merged(kinds, term)


# --------------------------------------------------------------------------- which belong together


def _merged(kinds: Sequence[Hashable | None], term: Any) -> list[Any] | None:
    """Return the pieces of `term(group)` for each group of layers of one kind; None for others."""
    groups: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        if kind is not None:
            groups.setdefault(kind, []).append(index)
    found: list[Any] = [None] * len(kinds)
    for group in groups.values():
        if len(group) > 1:
            for index, piece in zip(group, term(group), strict=True):
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
    axis = 0 if attribute(gemm, "transB") else 1
    if weight.dtype not in FLOAT_TYPES:
        return None
    if bias is not None and bias.shape != (weight.shape[axis],):
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
        require(
            not is_read_elsewhere(weight.origin),
            f"'{weight.name}' has other readers, for which it would have to stay",
        )
    return np.concatenate([weight.array() for weight in weights], axis=axis)
