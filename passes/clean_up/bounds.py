"""Bounds: Relu, Clip, Min and Max one after the other; and what undoes itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import Node, Op, Rule, Tensor, Weight, any_, attribute, const, constant, dtype, opset

_AS_INPUTS = 11  # from this opset on, the bounds of a Clip are inputs
_ALL_TYPES = 12  # from this opset on, Clip takes what Relu, Min and Max take

Bounds = tuple[float | None, float | None]


def _bounds(node: Node) -> Bounds | None:
    """Return the bounds of Relu or Clip (None: none); None where they are computed or cross."""
    if node.op == "Relu":
        return 0.0, None
    found: list[float | None] = []
    for place, name in ((1, "min"), (2, "max")):
        if opset(node) < _AS_INPUTS:
            given = node.attrs.get(name)
            found.append(None if given is None else float(given))
            continue
        if len(node.inputs) <= place or not node.inputs[place].name:
            found.append(None)
            continue
        value = constant(node.inputs[place])
        if value is None or value.size != 1:
            return None
        found.append(value.array().reshape(-1)[0].item())
    low, high = found
    if any(bound is not None and bound != bound for bound in found):
        return None
    return None if low is not None and high is not None and low > high else (low, high)


def _both(first: Bounds, second: Bounds) -> Bounds:
    """Return the bounds of clipping twice."""

    def clipped(bound: float | None, otherwise: float | None) -> float | None:
        if bound is None:
            return otherwise
        low, high = second
        bound = bound if low is None or bound > low else low
        return bound if high is None or bound < high else high

    return clipped(first[0], second[0]), clipped(first[1], second[1])


def clip(node: Node, x: Tensor, bounds: Bounds) -> Op | None:
    """Return Clip(x) within `bounds` as the opset of `node` writes it; None where it cannot."""
    kind, version = dtype(x), opset(node)
    if kind is None or (version < _ALL_TYPES and kind.kind != "f"):
        return None
    low, high = bounds
    if version < _AS_INPUTS:
        return Op("Clip", x, min=low, max=high)
    limits = [None if bound is None else np.array(bound, kind) for bound in (low, high)]
    return Op("Clip", x, *limits)


class MergeBounds(Rule):
    """Clip(Clip(x, a, b), c, d) = Clip(x, …), Relu(Relu(x)) = Relu(x); Relu(x) = Clip(x, 0, ∞).

    NaN stays NaN in both. Which zero comes of −0 ONNX leaves open for all of them.
    """

    pattern = Op(
        ("Relu", "Clip"), Op(("Relu", "Clip"), any_("x"), ..., bind="inner"), ..., bind="outer"
    )

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        first, second = _bounds(inner), _bounds(outer)
        if first is None or second is None:
            return None
        if outer.op == inner.op == "Relu":
            return Op("Relu", x)
        return clip(outer, x, _both(first, second))


class MinMaxIsClip(Rule):
    """Min(Max(x, a), b) = Clip(x, a, b), and Max(Min(x, b), a), for scalars a ≤ b."""

    pattern = Op(
        ("Min", "Max"),
        Op(("Min", "Max"), any_("x"), const("a", quiet=True), commutative=True, bind="inner"),
        const("b", quiet=True),
        commutative=True,
        bind="outer",
    )

    def rewrite(self, outer: Node, inner: Node, x: Tensor, a: Weight, b: Weight) -> Any:
        if outer.op == inner.op or opset(outer) < _ALL_TYPES:
            return None
        if a.size != 1 or b.size != 1 or max(a.ndim, b.ndim) > len(x.shape or ()):
            return None
        low, high = (a, b) if inner.op == "Max" else (b, a)
        least, most = (bound.array().reshape(-1)[0].item() for bound in (low, high))
        return clip(outer, x, (least, most)) if least <= most else None


class DropTwice(Rule):
    """Neg(Neg(x)) = x = Not(Not(x))."""

    pattern = Op(("Neg", "Not"), Op(("Neg", "Not"), any_("x"), bind="inner"), bind="outer")

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        return x if outer.op == inner.op else None


class DropPow(Rule):
    """x¹ = x, to the bit."""

    pattern = Op("Pow", any_("x"), const("exponent", quiet=True), bind="node")

    def rewrite(self, node: Node, x: Tensor, exponent: Weight) -> Any:
        is_one = exponent.size == 1 and exponent.array().reshape(-1)[0] == 1
        fits = exponent.ndim <= len(x.shape or ()) and opset(node) >= 7
        return x if is_one and fits else None


class RoundTrip(Rule):
    """QuantizeLinear(DequantizeLinear(q, s, z), s, z) = q.

    (q − z)·s / s is within 2⁻²² of q − z, which are 17 bits at most: it is rounded to that. Only
    where s is so large or small that the product is no ordinary number it would not be.
    """

    pattern = Op(
        "QuantizeLinear",
        Op("DequantizeLinear", any_("q"), const("s"), any_("z"), bind="dequantize", shared=True),
        const("s"),
        any_("z"),
        bind="quantize",
    )

    def rewrite(self, quantize: Node, dequantize: Node, q: Tensor, s: Weight, z: Tensor) -> Any:
        given, made = dtype(q), dtype(quantize.outputs[0])
        if given is None or given != made or str(given) not in ("int8", "uint8", "int16", "uint16"):
            return None
        if s.dtype != np.float32 or not np.all((s.array() > 1e-30) & (s.array() < 1e30)):
            return None
        same = all(
            attribute(quantize, name) == attribute(dequantize, name)
            for name in ("axis", "block_size")
        )
        return q if same and constant(z) is not None else None


BOUND_RULES = (MergeBounds(), MinMaxIsClip(), DropTwice(), DropPow(), RoundTrip())

__all__ = ["BOUND_RULES"]
