"""fuse-functions: what ONNX has a function for, and exporters write out, as that one operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

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
    dtype,
    either,
    label,
    needed,
    opset,
    rank,
    require,
    static_dim,
)
from graphpass.ir.refusal import OLD_OPSET, PRECISION, UNKNOWN_SIZE

# a number that was written down as a float is this near to the one that was meant
_RELATIVE: Final = 2.0**-20
_FLOATS: Final = (np.float32, np.float64)

_X = any_("x")


def _times(one: Any, other: Any, **options: Any) -> Op:
    return Op("Mul", one, other, commutative=True, **options)


def _plus(one: Any, other: Any, **options: Any) -> Op:
    return Op("Add", one, other, commutative=True, **options)


def _halved_gate(gate: Op) -> either:
    """½ · x · gate, in any order of factors."""
    half = const("half")
    return either(
        _times(_times(_X, gate), half, bind="root"),
        _times(_times(_X, half), gate, bind="root"),
        _times(_X, _times(gate, half), bind="root"),
    )


class FuseGelu(Rule):
    """½ · x · (1 + erf(x / √2)) = Gelu(x), but for rounding; at −∞ both are NaN (0 · ∞)."""

    pattern = _halved_gate(
        _plus(
            Op("Erf", either(Op("Div", _X, const("root2")), _times(_X, const("over_root2")))),
            const("one"),
        )
    )

    def rewrite(
        self,
        root: Node,
        x: Tensor,
        half: Weight,
        one: Weight,
        root2: Weight | None,
        over_root2: Weight | None,
    ) -> Any:
        given = {0.5: half, 1.0: one, math.sqrt(2): root2, math.sqrt(0.5): over_root2}
        return _of_numbers(root, x, given, Op("Gelu", x), since=20)


class FuseGeluOfTanh(Rule):
    """½ · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) = Gelu(x, tanh), but for rounding."""

    pattern = _halved_gate(
        _plus(
            Op(
                "Tanh",
                either(
                    _times(
                        _plus(
                            _X,
                            _times(
                                either(
                                    Op("Pow", _X, const("three")), _times(_X, Op("Mul", _X, _X))
                                ),
                                const("cubic"),
                            ),
                        ),
                        const("scale"),
                    ),
                    _times(
                        _times(_X, const("scale")),
                        _plus(_times(_times(_X, const("cubic")), _X), const("inner")),
                    ),
                ),
            ),
            const("one"),
        )
    )

    def rewrite(
        self,
        root: Node,
        x: Tensor,
        half: Weight,
        one: Weight,
        scale: Weight,
        cubic: Weight,
        three: Weight | None,
        inner: Weight | None,
    ) -> Any:
        given = {0.5: half, 1.0: one, math.sqrt(2 / math.pi): scale, 0.044715: cubic, 3.0: three}
        if inner is not None and not _is(inner, 1.0):
            return None
        return _of_numbers(root, x, given, Op("Gelu", x, approximate="tanh"), since=20)


class FuseHardSwish(Rule):
    """x · min(max(x + 3, 0), 6) / 6 = HardSwish(x), but for rounding; so is x · HardSigmoid(x)."""

    pattern = either(
        _times(_X, Op("HardSigmoid", _X, bind="sigmoid"), bind="root"),
        Op("Div", _times(_X, Op("Clip", _plus(_X, const("three")), const("low"), const("six"))),
           const("six"), bind="root"),
        _times(_X, Op("Div", Op("Clip", _plus(_X, const("three")), const("low"), const("six")),
                      const("six")), bind="root"),
        _times(_times(_X, Op("Clip", _plus(_X, const("three")), const("low"), const("six"))),
               const("sixth"), bind="root"),
    )  # fmt: skip

    def rewrite(
        self,
        root: Node,
        x: Tensor,
        sigmoid: Node | None,
        three: Weight | None,
        low: Weight | None,
        six: Weight | None,
        sixth: Weight | None,
    ) -> Any:
        if sigmoid is not None:
            slope, shift = attribute(sigmoid, "alpha"), attribute(sigmoid, "beta")
            if abs(slope - 1 / 6) > _RELATIVE or shift != 0.5:
                return None
        if low is not None and low.array().any():
            return None
        given = {3.0: three, 6.0: six, 1 / 6: sixth}
        return _of_numbers(root, x, given, Op("HardSwish", x), since=14)


class FuseMish(Rule):
    """x · tanh(softplus(x)) = Mish(x)."""

    pattern = _times(_X, Op("Tanh", Op("Softplus", _X)), bind="root")

    def rewrite(self, root: Node, x: Tensor) -> Any:
        return _of_numbers(root, x, {}, Op("Mish", x), since=18)


class FuseSwish(Rule):
    """x · sigmoid(α · x) = Swish(x, α)."""

    pattern = _times(_X, Op("Sigmoid", either(_times(_X, const("alpha")), _X)), bind="root")

    def rewrite(self, root: Node, x: Tensor, alpha: Weight | None) -> Any:
        if alpha is not None and alpha.size != 1:
            return None
        steepness = None if alpha is None else float(alpha.array().reshape(-1)[0])
        return _of_numbers(root, x, {}, Op("Swish", x, alpha=steepness), since=24)


def _of_numbers(
    root: Node, x: Tensor, given: dict[float, Weight | None], term: Op, since: int
) -> Op | None:
    """Return `term` where each constant is the number it is to be, and types and opset allow it."""
    if not all(weight is None or _is(weight, number) for number, weight in given.items()):
        return None
    count = needed(rank(x), f"the rank of '{x.name}' is not known", UNKNOWN_SIZE)
    if any(weight is not None and weight.ndim > count for weight in given.values()):
        return None  # the constant adds axes
    _require_usual(root, x, term.ops[0], since)
    return term


def _is(weight: Weight, number: float) -> bool:
    if weight.size != 1 or weight.dtype.kind != "f":
        return weight.size == 1 and float(weight.array().reshape(-1)[0]) == number
    return abs(float(weight.array().reshape(-1)[0]) - number) <= _RELATIVE * number


def _require_usual(root: Node, x: Tensor, fused: str, since: int) -> None:
    kind = dtype(x)
    require(
        kind is not None and kind in _FLOATS,
        f"{fused} may compute in float32 what {label(root)} computes in {kind or 'its type'}",
        PRECISION,
    )
    needs = f"{label(root)} ends what is {fused} from opset {since} on, and the model has"
    require(opset(root) >= since, f"{needs} {opset(root)}", OLD_OPSET)


# ---------------------------------------------------------------------------- normalizations


def _mean(of: Any, bind: str) -> Op:
    return Op("ReduceMean", of, ..., bind=bind, keepdims=1)


def _over_root_mean_square(of: Any) -> either:
    """of / √(mean(of²) + ε), as exporters write it."""
    square = either(Op("Pow", of, const("two")), Op("Mul", of, of))
    root = Op("Sqrt", _plus(_mean(square, "mean"), const("epsilon")))
    return either(
        Op("Div", of, root, bind="root"),
        _times(of, either(Op("Reciprocal", root), Op("Div", const("one"), root)), bind="root"),
    )


class FuseLayerNormalization(Rule):
    """(x − μ) / √(mean((x − μ)²) + ε) = LayerNormalization(x, 1), μ = mean(x), over the last axes.

    That is how ONNX defines it (Ba, Kiros & Hinton, 2016), but for rounding.
    """

    pattern = _over_root_mean_square(Op("Sub", _X, _mean(_X, "centre"), shared=True))

    def rewrite(
        self,
        root: Node,
        x: Tensor,
        centre: Node,
        mean: Node,
        epsilon: Weight,
        two: Weight | None,
        one: Weight | None,
    ) -> Any:
        if axes_of(centre) != axes_of(mean):
            return None
        return _normalization("LayerNormalization", 17, root, x, mean, epsilon, (two, one))


class FuseRMSNormalization(Rule):
    """x / √(mean(x²) + ε) = RMSNormalization(x, 1), over the last axes.

    That is how ONNX defines it (Zhang & Sennrich, 2019), but for rounding.
    """

    pattern = _over_root_mean_square(_X)

    def rewrite(
        self,
        root: Node,
        x: Tensor,
        mean: Node,
        epsilon: Weight,
        two: Weight | None,
        one: Weight | None,
    ) -> Any:
        return _normalization("RMSNormalization", 23, root, x, mean, epsilon, (two, one))


def _normalization(
    fused: str,
    since: int,
    root: Node,
    x: Tensor,
    mean: Node,
    epsilon: Weight,
    numbers: tuple[Weight | None, Weight | None],
) -> Any:
    if not all(w is None or _is(w, value) for w, value in zip(numbers, (2.0, 1.0), strict=True)):
        return None
    axes, count = axes_of(mean), rank(x)
    if axes is None or count is None or epsilon.size != 1 or epsilon.ndim > count:
        return None
    begin = count - len(axes)
    if sorted(axis % count for axis in axes) != list(range(begin, count)):
        return None
    sizes = [static_dim(x, axis) for axis in range(begin, count)]
    _require_usual(root, x, fused, since)
    known = all(size is not None for size in sizes)
    require(known, f"the size of '{x.name}' along the axes of {label(mean)} varies", UNKNOWN_SIZE)
    scale = np.ones([size or 0 for size in sizes], dtype(x))
    small = float(epsilon.array().reshape(-1)[0])
    return Op(fused, x, scale, axis=begin - count, epsilon=small)


class ScaleOfNormalization(Rule):
    """LayerNormalization(x, 1) · s = LayerNormalization(x, s); so of RMSNormalization."""

    pattern = _times(
        Op(("LayerNormalization", "RMSNormalization"), _X, const("ones"), bind="norm"), const("s")
    )

    def rewrite(self, norm: Node, x: Tensor, ones: Weight, s: Weight) -> Any:
        if not (ones.array() == 1).all():
            return None
        widened = _widened(s, ones.shape)
        return None if widened is None else Op(norm.op, x, widened, **norm.attrs)


class ShiftOfNormalization(Rule):
    """LayerNormalization(x, s) + b = LayerNormalization(x, s, b)."""

    pattern = _plus(Op("LayerNormalization", _X, const("s"), bind="norm"), const("b"))

    def rewrite(self, norm: Node, x: Tensor, s: Weight, b: Weight) -> Any:
        widened = _widened(b, s.shape)
        return None if widened is None else Op("LayerNormalization", x, s, widened, **norm.attrs)


def _widened(weight: Weight, shape: tuple[int, ...]) -> Any:
    """Return a weight that broadcasts to `shape` in that shape; None where it is larger."""
    extra = weight.ndim - len(shape)
    if extra > 0:
        if any(size != 1 for size in weight.shape[:extra]):
            return None
        weight = weight.reshape(*weight.shape[extra:])
    if weight.shape == tuple(shape):
        return weight
    try:
        fits = np.broadcast_shapes(weight.shape, shape) == tuple(shape)
    except ValueError:
        return None
    return np.broadcast_to(weight.array(), shape) if fits else None


# -------------------------------------------------------------------------------- attention


class FuseAttention(Rule):
    """softmax(s · q · kᵀ + m) · v = Attention(q, k, v, m, scale=s), for heads of four axes.

    As ONNX defines it (Vaswani et al., 2017), but for rounding: the scale is shared between both
    factors there. Where a row of the mask is −∞ throughout both are NaN.
    """

    pattern = Op(
        "MatMul",
        Op(
            "Softmax",
            either(
                _plus(
                    either(
                        Op("Div", Op("MatMul", any_("q"), Op("Transpose", any_("k"), bind="turn")),
                           const("divisor")),
                        _times(Op("MatMul", any_("q"), Op("Transpose", any_("k"), bind="turn")),
                               const("scale")),
                    ),
                    any_("mask"),
                ),
                Op("Div", Op("MatMul", any_("q"), Op("Transpose", any_("k"), bind="turn")),
                   const("divisor")),
                _times(Op("MatMul", any_("q"), Op("Transpose", any_("k"), bind="turn")),
                       const("scale")),
            ),
            bind="softmax",
        ),
        any_("v"),
        bind="root",
    )  # fmt: skip

    def rewrite(
        self,
        root: Node,
        softmax: Node,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        turn: Node,
        scale: Weight | None,
        divisor: Weight | None,
        mask: Tensor | None,
    ) -> Any:
        number = scale or divisor
        if [rank(t) for t in (q, k, v)] != [4, 4, 4] or attribute(softmax, "axis") not in (-1, 3):
            return None
        turned = attribute(turn, "perm")
        if turned is None or number is None or number.size != 1:
            return None
        order = [turned[axis] for axis in (0, 1, 3, 2)]  # of k as it would be without the turn
        heads, length = (k.shape[axis] for axis in order[1:3])
        _require_usual(root, q, "Attention", 23)
        if mask is not None:
            known = rank(mask) in (2, 4) and dtype(mask) == dtype(q)
            require(known, f"the shape of '{mask.name}' is not known", UNKNOWN_SIZE)
            sizes = [static_dim(mask, axis) for axis in (-2, -1)]
            wanted = [q.shape[2], length]
            fits = all(a is not None and a == b for a, b in zip(sizes, wanted, strict=True))
            require(fits, f"'{mask.name}' may be broadcast along the sequence", UNKNOWN_SIZE)
        value = float(number.array().reshape(-1)[0])
        factor = value if divisor is None else 1 / value
        same = q.shape[1] == heads == v.shape[1] and isinstance(q.shape[1], int)
        require(same, f"the heads of {label(root)} are not known to be as many", UNKNOWN_SIZE)
        require(factor > 0, f"{label(softmax)} is of products with the sign turned")
        key = k if order == [0, 1, 2, 3] else Op("Transpose", k, perm=order)
        return Op("Attention", q, key, v, mask, scale=factor)


@dataclass(frozen=True)
class FuseFunctions(Pass):
    """What exporters write out in small operators as the one operator that ONNX has for it.

    As far as the opset of the model has it (`--opset`). For runtimes that find these themselves it
    is no gain, and what computes with the parts (fold-batchnorm, gemm-to-conv) finds less behind
    it: it is in no pipeline, and belongs at the end. `expand-functions` is the opposite.
    """

    name: ClassVar[str] = "fuse-functions"
    rules: ClassVar[tuple[Rule, ...]] = (
        FuseGelu(),
        FuseGeluOfTanh(),
        FuseHardSwish(),
        FuseMish(),
        FuseSwish(),
        FuseLayerNormalization(),
        FuseRMSNormalization(),
        ScaleOfNormalization(),
        ShiftOfNormalization(),
        FuseAttention(),
    )
