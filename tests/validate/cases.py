"""A small model for every built-in rule, as real networks have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from graphpass.errors import UsageError
from graphpass.rewrite.registry import parse
from graphpass.rewrite.rule import Pass
from graphpass.testing import fixture, graph


@dataclass(frozen=True)
class Case:
    """A model and the passes to run over it; several cases may show the same rule."""

    name: str
    passes: str
    text: str
    opset: int = 17
    constants: dict[str, Any] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        return graph(self.text, opset=self.opset, **self.constants)

    def steps(self) -> tuple[Pass, ...]:
        return tuple(parse(self.passes))


def _bn(channels: int, seed: int = 1) -> dict[str, Any]:
    """Return statistics as training leaves them: small variances too, so that epsilon matters."""
    rng = np.random.default_rng(seed)
    return {
        "s": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        "t": rng.normal(size=channels).astype(np.float32),
        "m": rng.normal(size=channels).astype(np.float32),
        "v": rng.uniform(0.01, 2, channels).astype(np.float32),
    }


def _ints(*values: int) -> Any:
    return np.array(values, np.int64)


def _clean(name: str, text: str, **constants: Any) -> Case:
    return Case(name, "clean-up", text, constants=constants)


def _fold(name: str, channels: int, text: str, **constants: Any) -> Case:
    return Case(name, "fold-batchnorm", text, constants={**_bn(channels), **constants})


def _dense(name: str, text: str, **constants: Any) -> Case:
    return Case(name, "gemm-to-conv", text, constants=constants)


def _away_from_zero(*shape: int, largest: float = 1.5) -> Any:
    """Return weights of which none is so small, nor sums of two, that it drowns in the others."""
    rng = np.random.default_rng(shape)
    values = rng.uniform(largest / 2, largest, shape) * rng.choice([-1, 1], shape)
    return values.astype(np.float32)


def _dead(weight: Any, *filters: int) -> Any:
    """Return a weight some of whose filters are zeros, as pruning leaves them."""
    weight[list(filters)] = 0
    return weight


def _merge(name: str, text: str, **constants: Any) -> Case:
    return Case(name, "merge-branches", text, constants=constants)


def _padded_by_bias() -> dict[str, Any]:
    """Return a 1x1 weight, its bias, and that on each edge of the map [1, 4, 6, 7]."""
    bias = np.array([1, -2, 0.5, 1.5], np.float32).reshape(1, 4, 1, 1)
    rows = np.moveaxis(np.indices((1, 4, 6, 7)), 0, -1)
    return {
        "W": _away_from_zero(4, 3, 1, 1),
        "b": bias.reshape(-1),
        "pads": _ints(0, 0, 1, 1, 0, 0, 1, 1),
        "top": np.ascontiguousarray(rows[:, :, :1]),
        "low": np.ascontiguousarray(rows[:, :, 5:]),
        "t": np.ascontiguousarray(np.broadcast_to(bias, (1, 4, 1, 7))),
        "first": np.array([[0]], np.int64),
        "end": np.array([[6]], np.int64),
        "l": np.ascontiguousarray(np.broadcast_to(bias, (1, 4, 6, 1))),
    }


def _siblings(name: str, text: str, **constants: Any) -> Case:
    return Case(name, "merge-siblings", text, constants=constants)


def _pooled(name: str, text: str, **constants: Any) -> Case:
    return Case(name, "flatten-gemm-to-gap-conv", text, constants=constants)


def _all(name: str, text: str, **constants: Any) -> Case:
    return Case(name, "gemm-to-conv{target=all}", text, constants=constants)


def _nhwc(text: str, **constants: Any) -> Case:
    return _clean(
        f"in NHWC: {text}",
        "(float[N,5,3,4] x, float[N,5,3,4] w) => (float[?,?,?,?] y) {"
        f"h = Transpose<perm=[0,2,3,1]>(x) {text} y = Transpose<perm=[0,3,1,2]>(a)}}",
        **constants,
    )


CASES = (
    _fold(
        "grouped Conv",
        6,
        "(float[N,4,7,7] x) => (float[N,6,7,7] y) {"
        "c = Conv<group=2, pads=[1,1,1,1]>(x, W, b) y = BatchNormalization(c, s, t, m, v)}",
        W=(6, 2, 3, 3),
        b=(6,),
    ),
    _fold(
        "wide Conv",
        16,
        "(float[N,32,5,5] x) => (float[N,16,3,3] y) {"
        "c = Conv(x, W) y = BatchNormalization(c, s, t, m, v)}",
        W=(16, 32, 3, 3),
    ),
    _fold(
        "pointwise Conv",
        6,
        "(float[N,8,5,5] x) => (float[N,6,5,5] y) {"
        "c = Conv(x, W, b) y = BatchNormalization(c, s, t, m, v)}",
        W=(6, 8, 1, 1),
        b=(6,),
    ),
    _fold(
        "pointwise Conv in groups",
        6,
        "(float[N,8,5] x) => (float[N,6,5] y) {"
        "c = Conv<group=2>(x, W) y = BatchNormalization(c, s, t, m, v)}",
        W=(6, 4, 1),
    ),
    _fold(
        "pointwise Conv with strides",
        6,
        "(float[N,8,5,5] x) => (float[N,6,3,3] y) {"
        "c = Conv<strides=[2,2]>(x, W) y = BatchNormalization(c, s, t, m, v)}",
        W=(6, 8, 1, 1),
    ),
    _fold(
        "ConvTranspose",
        6,
        "(float[N,4,5,5] x) => (float[N,6,11,11] y) {"
        "c = ConvTranspose<strides=[2,2]>(x, W) y = BatchNormalization(c, s, t, m, v)}",
        W=(4, 6, 3, 3),
    ),
    _fold(
        "Gemm",
        5,
        "(float[N,8] x) => (float[N,5] y) {"
        "c = Gemm<transB=1>(x, W, b) y = BatchNormalization(c, s, t, m, v)}",
        W=(5, 8),
        b=(5,),
    ),
    _fold(
        "MatMul", 5, "(float[N,8] x) => (float[N,5] y) {c = MatMul(x, W) y = Mul(c, s)}", W=(8, 5)
    ),
    _fold(
        "MatMul, Add",
        5,
        "(float[N,8] x) => (float[N,5] y) {"
        "c = MatMul(x, W) d = Add(c, b) y = BatchNormalization(d, s, t, m, v)}",
        W=(8, 5),
        b=(5,),
    ),
    _fold(
        "behind a channel shuffle and a mean",
        6,
        "(float[N,4,7,7] x) => (float[N,6,7] y) {"
        "c = Conv<pads=[1,1,1,1]>(x, W, b) r = Reshape(c, s1) h = Transpose<perm=[0,2,1,3,4]>(r)"
        " k = Reshape(h, s2) d = BatchNormalization(k, s, t, m, v)"
        " y = ReduceMean<axes=[3], keepdims=0>(d)}",
        W=(6, 4, 3, 3),
        b=(6,),
        s1=_ints(0, 2, 3, 7, 7),
        s2=_ints(0, 6, 7, 7),
    ),
    _fold(
        "behind two Convs",
        6,
        "(float[N,4,7,7] x) => (float[N,6,7,7] y) {"
        "c = Conv<pads=[1,1,1,1]>(x, W, b) d = Conv(x, V) k = Concat<axis=1>(c, d)"
        " y = BatchNormalization(k, s, t, m, v)}",
        W=(4, 4, 3, 3),
        b=(4,),
        V=(2, 4, 1, 1),
    ),
    _fold(
        "ahead of a Pad",
        4,
        "(float[N,4,7,7] x) => (float[N,6,7,7] y) {"
        'c = BatchNormalization(x, s, t, m, v) k = Pad<mode="edge">(c, p) y = Conv(k, W, b)}',
        W=(6, 4, 3, 3),
        b=(6,),
        p=_ints(0, 0, 1, 1, 0, 0, 1, 1),
    ),
    _fold(
        "ahead of Conv",
        4,
        "(float[N,4,7,7] x) => (float[N,6,5,5] y) {"
        "c = BatchNormalization(x, s, t, m, v) y = Conv(c, W, b)}",
        W=(6, 4, 3, 3),
        b=(6,),
    ),
    _fold(
        "ahead of Gemm",
        8,
        "(float[N,8] x) => (float[N,5] y) {"
        "c = BatchNormalization(x, s, t, m, v) y = Gemm<transB=1>(c, W, b)}",
        W=(5, 8),
        b=(5,),
    ),
    _fold(
        "ahead of MatMul",
        8,
        "(float[N,8] x) => (float[N,5] y) {c = Mul(x, s) y = MatMul(c, W)}",
        W=(8, 5),
    ),
    _fold(
        "quantized Conv",
        6,
        "(float[N,4,7,7] x) => (float[N,6,5,5] y) {"
        "w = DequantizeLinear(q, d) c = Conv(x, w, b) y = BatchNormalization(c, s, t, m, v)}",
        q=np.random.default_rng(0).integers(-127, 128, (6, 4, 3, 3)).astype(np.int8),
        d=np.float32(0.01),
        b=(6,),
    ),
    _dense(
        "a quantized head",
        "(uint8[N,6,3,3] x) => (float[N,4] y) {f = Flatten(x)"
        " h = DequantizeLinear(f, d, z) k = Gemm<transB=1>(h, w, b) y = Relu(k)}",
        w=(4, 54),
        b=(4,),
        d=np.float32(0.01),
        z=np.uint8(120),
    ),
    _dense(
        "a layer of integers of one runtime",
        "(uint8[N,3,2,2] x) => (uint8[N,4] y) {"
        "f = Flatten(x) y = com.microsoft.QGemm<transB=1>(f, d, z, w, e, n, b, o, p)}",
        domains={"com.microsoft": 1},
        w=np.arange(48, dtype=np.int8).reshape(4, 12) % 7 - 3,
        d=np.float32(0.5),
        z=np.uint8(3),
        e=np.float32(0.25),
        n=np.int8(0),
        b=np.arange(4, dtype=np.int32) * 3,
        o=np.float32(8),
        p=np.uint8(128),
    ),
    _dense(
        "a layer on integers",
        "(uint8[N,24] x) => (int32[N,4] y) {y = MatMulInteger(x, w, z)}",
        w=np.random.default_rng(3).integers(-100, 100, (24, 4)).astype(np.int8),
        z=np.uint8(120),
    ),
    _pooled(
        "means one after the other",
        "(float[N,6,5,4] x) => (float[N,3] y) {a = ReduceMean<axes=[3], keepdims=0>(x)"
        " c = ReduceMean<axes=[2], keepdims=0>(a) y = Gemm<transB=1>(c, w, b)}",
        w=(3, 6),
        b=(3,),
    ),
    _pooled(
        "a signal pooled as one row",
        "(float[N,6,5] x) => (float[N,3] y) {u = Unsqueeze(x, two)"
        " a = ReduceMean<axes=[2,3]>(u) f = Flatten(a) y = Gemm<transB=1>(f, w, b)}",
        w=(3, 6),
        b=(3,),
        two=_ints(2),
    ),
    _pooled(
        "sums over the pixels",
        "(float[N,6,5,4] x) => (float[N,3] y) {a = ReduceSum<keepdims=0>(x, axes)"
        " y = Gemm<transB=1>(a, w, b)}",
        w=(3, 6),
        b=(3,),
        axes=_ints(2, 3),
    ),
    _all(
        "positions of a sequence",
        "(float[N,7,8] x) => (float[N,7,4] y) {a = MatMul(x, W) c = Add(a, b) r = Relu(c)"
        " y = MatMul(r, V)}",
        W=(8, 5),
        b=(5,),
        V=(5, 4),
    ),
    _all(
        "positions made rows",
        "(float[N,7,8] x) => (float[M,5] y) {r = Reshape(x, s) y = Gemm<transB=1>(r, W, b)}",
        W=(5, 8),
        b=(5,),
        s=_ints(-1, 8),
    ),
    _all(
        "a stream that goes over as a whole",
        "(float[N,6,7] a, float[N,6,7] c, float[N,7,6] e) => (float[N,6,7] y, float[N,6,7] p) {"
        "x = Transpose<perm=[0,2,1]>(a) w = Transpose<perm=[0,2,1]>(c) s = Add(x, e)"
        " y = Transpose<perm=[0,2,1]>(s) r = Add(s, w) k = Mul(r, b)"
        " p = Transpose<perm=[0,2,1]>(k)}",
        b=(6,),
    ),
    _all(
        "an axis of one, behind a Transpose of five",
        "(float[7,1,24] x) => (float[3,7,1,8] y) {v = Reshape(x, five)"
        " t = Transpose<perm=[3,1,2,0,4]>(v) s = Squeeze(t, three) y = Relu(s)}",
        five=_ints(1, 7, 1, 3, 8),
        three=_ints(3),
    ),
    _all(
        "a product of transposed matrices",
        "(float[2,1,4,3] i, float[1,5,2,4] j) => (float[2,5,2,3] y) {"
        "x = Transpose<perm=[0,1,3,2]>(i) w = Transpose<perm=[0,1,3,2]>(j) m = MatMul(x, w)"
        " y = Transpose<perm=[0,1,3,2]>(m)}",
    ),
    _dense(
        "views before a dense layer",
        "(float[N,3,2,2] x) => (float[N,5] y) {"
        "f = Reshape(x, k) g = Flatten(f) h = Gemm(g, W) y = Relu(h)}",
        k=_ints(0, -1),
        W=(12, 5),
    ),
    _dense(
        "Squeeze before a dense layer",
        "(float[N,3,1,1] x) => (float[N,5] y) {c = Conv(x, V) f = Squeeze(c, k) y = Gemm(f, W)}",
        k=_ints(2, 3),
        V=(4, 3, 1, 1),
        W=(4, 5),
    ),
    _dense(
        "constants on a flat map",
        "(float[N,3,2,2] x) => (float[N,5] y) {"
        "f = Flatten(x) c = Sub(f, k) d = Relu(c) y = Gemm(d, W)}",
        k=(12,),
        W=(12, 5),
    ),
    _dense(
        "sum of flat maps",
        "(float[N,3,2,2] x) => (float[N,5] y) {"
        "a = Relu(x) b = Neg(x) f = Flatten(a) g = Flatten(b) c = Sub(f, g) y = Gemm(c, W)}",
        W=(12, 5),
    ),
    _dense(
        "BatchNormalization of a flat map",
        "(float[N,3,1,1] x) => (float[N,5] y) {"
        "f = Flatten(x) c = BatchNormalization(f, s, t, m, v) y = Gemm(c, W)}",
        W=(3, 5),
        **_bn(3),
    ),
    _dense(
        "activation of a transposed map",
        "(float[N,3,2,2] x) => (float[N,5] y) {"
        "h = Transpose<perm=[0,2,3,1]>(x) a = Relu(h) f = Flatten(a) y = Gemm(f, W)}",
        W=(12, 5),
    ),
    _dense(
        "map again",
        "(float[N,3,1,1] x) => (float[N,5,1,1] y) {"
        "c = Conv(x, V) f = Flatten(c) u = Unsqueeze(f, k) y = Conv(u, W)}",
        k=_ints(2, 3),
        V=(4, 3, 1, 1),
        W=(5, 4, 1, 1),
    ),
    Case(
        "pooling of the whole map",
        "flatten-gemm-to-gap-conv",
        "(float[N,3,4,4] x) => (float[N,5] y) {"
        "p = AveragePool<kernel_shape=[4,4]>(x) f = Flatten(p) y = Gemm(f, W)}",
        constants={"W": (3, 5)},
    ),
    _merge(
        "a block as RepVGG has it",
        "(float[N,4,7,6] x) => (float[N,4,7,6] y) {"
        "c = Conv<pads=[1,1,1,1]>(x, W, b) d = Conv(x, V) e = Add(c, d) y = Add(e, x)}",
        W=(4, 4, 3, 3),
        b=(4,),
        V=(4, 4, 1, 1),
    ),
    _merge(
        "branches of several kinds, in groups",
        "(float[N,4,7,6] x) => (float[N,4,7,6] y) {"
        "c = Conv<pads=[1,1,1,1], group=4>(x, W, b) d = BatchNormalization(x, s, t, m, v) "
        "e = Sub(c, d) y = Add(e, x)}",
        W=(4, 1, 3, 3),
        b=(4,),
        **_bn(4),
    ),
    _merge(
        "a pooled branch",
        "(float[N,4,7,6] x) => (float[N,4,7,6] y) {"
        "c = Conv<pads=[1,1,1,1]>(x, W, b) d = Conv(x, V) "
        "e = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(d) "
        "y = Add(c, e)}",
        W=_away_from_zero(4, 4, 3, 3),
        b=(4,),
        V=_away_from_zero(4, 4, 1, 1, largest=0.5),
    ),
    _merge(
        "branches beside others",
        "(float[N,4,7,6] x) => (float[N,4,7,6] y) {r = Sigmoid(x) "
        "c = Conv<pads=[1,1,1,1]>(x, W, b) e = Sub(r, c) d = Conv(x, V) y = Sub(d, e)}",
        W=_away_from_zero(4, 4, 3, 3),
        b=(4,),
        V=_away_from_zero(4, 4, 1, 1, largest=0.5),
    ),
    _merge(
        "a low-rank update",
        "(float[N,5,8] x) => (float[N,5,6] y) {"
        "c = MatMul(x, W) d = MatMul(x, A) e = MatMul(d, B) y = Add(c, e)}",
        W=_away_from_zero(8, 6),
        A=_away_from_zero(8, 2, largest=0.3),
        B=_away_from_zero(2, 6, largest=0.5),
    ),
    _merge(
        "a Sum of branches",
        "(float[N,4,7,6] x) => (float[N,4,7,6] y) {"
        "c = Conv<pads=[1,1,1,1]>(x, W, b) y = Sum(c, x)}",
        W=(4, 4, 3, 3),
        b=(4,),
    ),
    _merge(
        "a kernel behind a point",
        "(float[N,4,7,6] x) => (float[N,4,4,3] y) {"
        "c = Conv(x, V) y = Conv<pads=[1,1,1,1], strides=[2,2]>(c, W, b)}",
        V=(4, 4, 1, 1),
        W=(4, 4, 3, 3),
        b=(4,),
    ),
    Case(
        "a sum that came in as the C of a Gemm",
        "merge-branches",
        "(float[N,6] x) => (float[N,5] y) {"
        "a = Gemm(x, W, b) d = MatMul(x, A) y = Gemm<alpha=2.0>(d, B, a)}",
        constants={"W": _away_from_zero(6, 5), "b": (5,), "A": _away_from_zero(6, 2), "B": (2, 5)},
    ),
    Case(
        "two layers and the bias between",
        "merge-branches",
        "(float[N,3,6] x) => (float[N,3,4] y) {a = MatMul(x, A) d = Add(a, b) y = MatMul(d, B)}",
        constants={"A": _away_from_zero(6, 9), "b": (9,), "B": _away_from_zero(9, 4)},
    ),
    Case(
        "a map padded with its bias",
        "merge-branches",
        "(float[1,3,4,5] x) => (float[1,4,4,5] y) {"
        "a = Conv(x, W, b) d = Pad(a, pads) e = ScatterND(d, top, t) f = ScatterND(e, low, t) "
        "g = Transpose<perm=[3,1,2,0]>(f) h = ScatterND(g, first, l) i = ScatterND(h, end, l) "
        "j = Transpose<perm=[3,1,2,0]>(i) y = AveragePool<kernel_shape=[3,3]>(j)}",
        constants=_padded_by_bias(),
    ),
    Case(
        "the transition of a DenseNet",
        "move-linear",
        "(float[N,8,6,6] x) => (float[N,5,3,3] y) {"
        "c = Conv(x, W, b) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)}",
        constants={"W": _away_from_zero(5, 8, 1, 1), "b": (5,)},
    ),
    Case(
        "the mean of a pointwise Conv",
        "move-linear",
        "(float[N,8,3,3] x) => (float[N,5,1,1] y) {c = Conv(x, W, b) y = GlobalAveragePool(c)}",
        constants={"W": _away_from_zero(5, 8, 1, 1), "b": (5,)},
    ),
    Case(
        "a pointwise Conv behind larger pixels",
        "move-linear",
        "(float[N,8,3,3] x) => (float[N,5,6,6] y) {"
        'c = Resize<mode="nearest">(x, r, k) y = Conv(c, W, b)}',
        constants={
            "W": _away_from_zero(5, 8, 1, 1),
            "b": (5,),
            "r": np.zeros(0, np.float32),
            "k": np.array([1, 1, 2, 2], np.float32),
        },
    ),
    Case(
        "a pointwise Conv ahead of fewer pixels",
        "move-linear",
        "(float[N,8,6,6] x) => (float[N,5,3,3] y) {"
        'c = Conv(x, W, b) y = Resize<mode="nearest">(c, r, k)}',
        constants={
            "W": _away_from_zero(5, 8, 1, 1),
            "b": (5,),
            "r": np.zeros(0, np.float32),
            "k": np.array([1, 1, 0.5, 0.5], np.float32),
        },
    ),
    Case(
        "a layer behind an embedding",
        "move-linear",
        # so many that each row is read
        "(int64[N,24] i) => (float[N,24,4] y) {g = Gather(E, i) y = MatMul(g, W)}",
        constants={"E": _away_from_zero(3, 6), "W": _away_from_zero(6, 4)},
    ),
    Case(
        "strides ahead of a residual sum",
        "move-linear",
        "(float[N,3,7,6] x, float[N,6,7,6] k) => (float[N,4,4,3] y, float[N,5,4,3] z, "
        "float[N,6,7,6] o) {"
        "c = Conv(x, A, a1) s = Add(c, k) r = Relu(s) o = Relu(k) "
        "y = Conv<strides=[2,2]>(r, P, p1) z = Conv<strides=[2,2]>(r, Q)}",
        constants={
            "A": _away_from_zero(6, 3, 1, 1),
            "a1": (6,),
            "P": _away_from_zero(4, 6, 1, 1),
            "p1": (4,),
            "Q": _away_from_zero(5, 6, 1, 1),
        },
    ),
    Case(
        "filters of zeros, with a bias",
        "drop-channels",
        "(float[N,3,8,7] x) => (float[N,4,4,3] y) {"
        "a = Conv(x, W, b) r = Relu(a) y = Conv(r, V, c)}",
        constants={
            "W": _away_from_zero(5, 3, 3, 3)
            * np.array([0, 1, 1, 1, 1], np.float32)[:, None, None, None],
            "b": np.array([1, 0.5, -0.5, -1, 2], np.float32),
            "V": _away_from_zero(4, 5, 3, 3),
            "c": (4,),
        },
    ),
    Case(
        "filters of zeros in all branches of a residual sum",
        "drop-channels",
        "(float[N,3,6,5] x) => (float[N,4,6,5] y, float[N,3,6,5] z) {"
        "a = Conv(x, A) b = Conv(a, B, b1) c = Conv<pads=[1,1,1,1]>(b, C) s = Add(a, c) "
        "r = Relu(s) y = Conv(r, D) z = Conv(r, E)}",
        constants={
            "A": _dead(_away_from_zero(6, 3, 1, 1), 1, 4),
            "B": _away_from_zero(5, 6, 1, 1),
            "b1": (5,),
            "C": _dead(_away_from_zero(6, 5, 3, 3), 1, 4),
            "D": _away_from_zero(4, 6, 1, 1),
            "E": _away_from_zero(3, 6, 1, 1),
        },
    ),
    Case(
        "a branch of zeros with a bias",
        "drop-channels",
        "(float[N,3,6,5] x) => (float[N,3,6,5] y) {"
        "r = Relu(x) a = Conv(r, Z, b) s = Add(x, a) y = Relu(s)}",
        constants={
            "Z": np.zeros((3, 3, 1, 1), np.float32),
            "b": np.array([1, -2, 0.75], np.float32),
        },
    ),
    Case(
        "dead channels through a depthwise Conv, parts and a Concat",
        "drop-channels",
        "(float[N,3,6,5] x) => (float[N,4,4,3] y) {"
        "a = Conv(x, A) d = Conv<group=6>(a, K, k) p, q = Split<axis=1>(d, half) "
        "r = Relu(p) c = Concat<axis=1>(q, r) y = Conv(c, D, e)}",
        constants={
            "A": _dead(_away_from_zero(6, 3, 1, 1), 1),
            "K": _dead(_away_from_zero(6, 1, 3, 3), 4),
            "k": np.array([0.5, 1.5, -1, 2, -0.75, 1], np.float32),
            "half": _ints(3, 3),
            "D": _away_from_zero(4, 6, 1, 1),
            "e": (4,),
        },
    ),
    Case(
        "pools over one map",
        "merge-siblings",
        "(float[N,3,6,7] x) => (float[N,6,6,7] y) {"
        "a = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x) "
        "c = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) y = Concat<axis=1>(a, c)}",
    ),
    _siblings(
        "Convs side by side",
        "(float[N,6,5,4] x) => (float[N,4,5,4] y, float[N,5,5,4] z) {"
        "y = Conv(x, V) z = Conv(x, W, b)}",
        V=_away_from_zero(4, 6, 1, 1),
        W=_away_from_zero(5, 6, 1, 1),
        b=(5,),
    ),
    _siblings(
        "activated Convs side by side",
        "(float[N,4,6,7] x) => (float[N,3,4,5] y, float[N,5,4,5] z) {"
        "c = Conv(x, V) y = Relu(c) d = Conv(x, W) z = Relu(d)}",
        V=_away_from_zero(3, 4, 3, 3),
        W=_away_from_zero(5, 4, 3, 3),
    ),
    _siblings(
        "query, key and value",
        "(float[N,7,6] x) => (float[N,7,4] y, float[N,7,4] z, float[N,7,2] u) {"
        "y = MatMul(x, V) z = MatMul(x, W) u = MatMul(x, U)}",
        V=_away_from_zero(6, 4),
        W=_away_from_zero(6, 4),
        U=_away_from_zero(6, 2),
    ),
    _siblings(
        "products with biases",
        "(float[N,7,6] x) => (float[N,7,4] y, float[N,7,5] z) {"
        "c = MatMul(x, V) y = Add(c, a) d = MatMul(x, W) z = Add(b, d)}",
        V=_away_from_zero(6, 4),
        W=_away_from_zero(6, 5),
        a=(4,),
        b=(5,),
    ),
    _siblings(
        "Gemms side by side",
        "(float[N,6] x) => (float[N,4] y, float[N,5] z) {"
        "y = Gemm<transB=1>(x, V, a) z = Gemm<transB=1>(x, W, b)}",
        V=_away_from_zero(4, 6),
        W=_away_from_zero(5, 6),
        a=(4,),
        b=(5,),
    ),
    _siblings(
        "pixels as channels, by Slices",
        "(float[N,3,8,6] x) => (float[N,5,4,3] y) {"
        "p = Slice(x, zz, e, k, t) q = Slice(x, iz, e, k, t) r = Slice(x, zi, e, k, t)"
        "s = Slice(x, ii, e, k, t) c = Concat<axis=1>(p, q, r, s)"
        "y = Conv<pads=[1,1,1,1]>(c, W, b)}",
        zz=_ints(0, 0),
        iz=_ints(1, 0),
        zi=_ints(0, 1),
        ii=_ints(1, 1),
        e=_ints(2**31 - 1, 2**31 - 1),
        k=_ints(2, 3),
        t=_ints(2, 2),
        W=_away_from_zero(5, 12, 3, 3),
        b=(5,),
    ),
    _siblings(
        "pixels as channels",
        "(float[N,3,8,6] x) => (float[N,5,4,3] y) {"
        "c = SpaceToDepth<blocksize=2>(x) y = Conv<pads=[1,1,1,1]>(c, W)}",
        W=_away_from_zero(5, 12, 3, 3),
    ),
    _siblings(
        "windows that do not overlap",
        "(float[N,6,4,3] x) => (float[N,4,8,6] y) {y = ConvTranspose<strides=[2,2]>(x, W, b)}",
        W=_away_from_zero(6, 4, 2, 2),
        b=(4,),
    ),
    _siblings(
        "a shuffle behind a Conv",
        "(float[N,3,5,4] x) => (float[N,6,5,4] y) {c = Conv(x, W, b) r = Relu(c)"
        "p = Reshape(r, k) t = Transpose<perm=[0,2,1,3,4]>(p) y = Reshape(t, l)}",
        W=_away_from_zero(6, 3, 3, 3)[:, :, :1, :1].copy(),
        b=(6,),
        k=_ints(0, 2, 3, 5, 4),
        l=_ints(0, 6, 5, 4),
    ),
    _siblings(
        "a shuffle ahead of a Conv",
        "(float[N,6,5,4] x) => (float[N,5,3,2] y) {"
        "p = Reshape(x, k) t = Transpose<perm=[0,2,1,3,4]>(p) q = Reshape(t, l) y = Conv(q, W)}",
        W=_away_from_zero(5, 6, 3, 3),
        k=_ints(0, 2, 3, 5, 4),
        l=_ints(0, 6, 5, 4),
    ),
    _siblings(
        "units of shuffles",
        "(float[N,4,5,4] x) => (float[N,5,5,4] y) {"
        "a, b = Split<axis=1>(x, h) c = Relu(b) j = Concat<axis=1>(a, c)"
        "p = Reshape(j, k) t = Transpose<perm=[0,2,1,3,4]>(p) q = Reshape(t, l)"
        "d, e = Split<axis=1>(q, h) f = Conv(e, V) g = Concat<axis=1>(d, f)"
        "r = Reshape(g, k) s = Transpose<perm=[0,2,1,3,4]>(r) u = Reshape(s, l) y = Conv(u, W)}",
        h=_ints(2, 2),
        k=_ints(0, 2, 2, 5, 4),
        l=_ints(0, 4, 5, 4),
        V=_away_from_zero(2, 2, 3, 3)[:, :, :1, :1].copy(),
        W=_away_from_zero(5, 4, 1, 1),
    ),
    _clean("Identity", "(float[N,4] x) => (float[N,4] y) {c = Identity(x) y = Tanh(c)}"),
    _clean("Dropout", "(float[N,4] x) => (float[N,4] y) {c = Dropout(x) y = Tanh(c)}"),
    _clean("Cast", "(float[N,4] x) => (float[N,4] y) {c = Cast<to=1>(x) y = Tanh(c)}"),
    _clean(
        "Casts",
        "(float16[N,4] x) => (float16[N,4] y) {c = Cast<to=1>(x) d = Cast<to=10>(c) y = Tanh(d)}",
    ),
    _clean(
        "Transpose",
        "(float[N,4,5] x) => (float[N,4,5] y) {c = Transpose<perm=[0,1,2]>(x) y = Tanh(c)}",
    ),
    _clean(
        "Transposes",
        "(float[2,3,4,5] x) => (float[4,5,2,3] y) {"
        "c = Transpose<perm=[0,2,3,1]>(x) d = Transpose<perm=[1,2,0,3]>(c) y = Tanh(d)}",
    ),
    _clean(
        "Reshape",
        "(float[2,3,4] x) => (float[2,3,4] y) {c = Reshape(x, k) y = Tanh(c)}",
        k=_ints(2, 3, 4),
    ),
    _clean(
        "Reshapes",
        "(float[2,3,4] x) => (float[6,4] y) {c = Reshape(x, k) d = Reshape(c, l) y = Tanh(d)}",
        k=_ints(2, 12),
        l=_ints(6, 4),
    ),
    _clean(
        "torch's Reshape",
        "(float[N,3,4] x) => (float[N,12] y) {"
        "h = Shape(x) n = Gather<axis=0>(h, zero) u = Unsqueeze(n, axes)"
        "k = Concat<axis=0>(u, rest) y = Reshape(x, k)}",
        zero=np.int64(0),
        axes=_ints(0),
        rest=_ints(-1),
    ),
    _clean(
        "pooling of 1x1",
        "(float[N,3,4,4] x) => (float[N,3,4,4] y) {c = MaxPool<kernel_shape=[1,1]>(x) y = Tanh(c)}",
    ),
    _clean(
        "global pooling of 1x1",
        "(float[N,3,1,1] x) => (float[N,3,1,1] y) {c = GlobalAveragePool(x) y = Tanh(c)}",
    ),
    _clean(
        "Pad", "(float[N,3] x) => (float[N,3] y) {c = Pad(x, k) y = Tanh(c)}", k=_ints(0, 0, 0, 0)
    ),
    _clean(
        "Slice",
        "(float[N,3] x) => (float[N,3] y) {c = Slice(x, zero, three, one) y = Tanh(c)}",
        zero=_ints(0),
        three=_ints(3),
        one=_ints(1),
    ),
    _clean("Concat", "(float[N,3] x) => (float[N,3] y) {c = Concat<axis=0>(x) y = Tanh(c)}"),
    _clean(
        "Expand",
        "(float[2,3] x) => (float[2,3] y) {c = Expand(x, k) y = Tanh(c)}",
        k=_ints(1, 3),
    ),
    _clean(
        "times one",
        "(float[N,3] x) => (float[N,3] y) {c = Mul(x, k) y = Tanh(c)}",
        k=np.float32(1),
    ),
    _clean(
        "minus zero",
        "(float[N,3] x) => (float[N,3] y) {c = Sub(x, k) y = Tanh(c)}",
        k=np.float32(0),
    ),
    _clean(
        "constants",
        "(float[N,3] x) => (float[N,3] y) {"
        "k = Constant<value=float[3] {1., 2., 3.}>() c = Mul(a, b) d = Add(x, c) y = Add(d, k)}",
        a=(3,),
        b=(3,),
    ),
    _nhwc("a = Sigmoid(h)"),
    _nhwc("a = Sub(c, h)", c=(5,)),
    _nhwc("a = Mul(h, c)", c=(3, 4, 1)),
    _nhwc("a = PRelu(h, c)", c=(5,)),
    _nhwc("g = Transpose<perm=[0,2,3,1]>(w) a = Sub(h, g)"),
    _nhwc("a = Pad(h, k)", k=_ints(0, 1, 0, 0, 0, 0, 2, 0)),
    _nhwc('a = Pad<mode="reflect">(h, k)', k=_ints(0, 1, 0, 0, 0, 0, 2, 0)),
    _nhwc("a = ReduceSum(h, k)", k=_ints(1)),
    _nhwc("a = ReduceMean<axes=[-3,2]>(h)"),
    _nhwc("a = Softmax<axis=-1>(h)"),
    _nhwc("g = Transpose<perm=[0,2,3,1]>(w) a = Concat<axis=-1>(h, g, h)"),
    _clean(
        "mean of pixels in NHWC",
        "(float[N,5,3,4] x) => (float[N,5] y) {"
        "h = Transpose<perm=[0,2,3,1]>(x) y = ReduceMean<axes=[1,2], keepdims=0>(h)}",
    ),
)

# the families of clean-up, each rule in the smallest model that has it
_FAMILIES: tuple[Case, ...] = (
    _clean(
        "x + 0 ahead of a Softmax",
        "(float[N,5] x) => (float[N,5] y) {a = Add(x, k) y = Softmax(a)}",
        k=np.zeros(5, np.float32),
    ),
    _clean(
        "a bias of zeros",
        "(float[N,3,5,6] x) => (float[N,4,5,6] y) {c = Conv(x, w, k) y = Softmax(c)}",
        w=(4, 3, 1, 1),
        k=np.zeros(4, np.float32),
    ),
    _clean(
        "a product with a reciprocal",
        "(float[N,5] x, float[N,1] z) => (float[N,5] y) {"
        "a = Abs(z) b = Add(a, k) c = Reciprocal(b) d = Mul(x, c) y = Tanh(d)}",
        k=np.float32(0.5),
    ),
    _clean(
        "views around a gate",
        "(float[2,3,5] x) => (float[2,3,5] y) {"
        "a = Reshape(x, k) b = Tanh(a) c = Mul(a, b) y = Reshape(c, l)}",
        k=_ints(-1, 5),
        l=_ints(2, 3, 5),
    ),
    _clean(
        "scales ahead of a Softmax of one",
        "(float[N,1,4] x, float[N,4,1] z) => (float[N,1,1] y) {"
        "a = Mul(x, k) b = MatMul(a, z) y = Softmax(b)}",
        k=np.float32(0.45),
    ),
    _clean(
        "Pad ahead of Conv",
        "(float[N,3,5,6] x) => (float[N,4,5,6] y) {c = Pad(x, k) y = Conv(c, w)}",
        k=_ints(0, 0, 1, 2, 0, 0, 1, 0),
        w=(4, 3, 3, 3),
    ),
    _clean(
        "Pad ahead of AveragePool",
        "(float[N,3,5,6] x) => (float[N,3,5,6] y) {"
        "c = Pad(x, k) y = AveragePool<kernel_shape=[2,2]>(c)}",
        k=_ints(0, 0, 1, 1, 0, 0, 0, 0),
    ),
    _clean(
        "Pad ahead of MaxPool",
        "(float[N,3,5,6] x) => (float[N,3,5,6] y) {"
        "c = Pad(x, k, low) y = MaxPool<kernel_shape=[2,2]>(c)}",
        k=_ints(0, 0, 1, 1, 0, 0, 0, 0),
        low=np.float32(-np.inf),
    ),
    _clean(
        "Pads",
        "(float[N,3,5] x) => (float[N,3,9] y) {c = Pad(x, k) y = Pad(c, l)}",
        k=_ints(0, 0, 1, 0, 0, 0),
        l=_ints(0, 0, 1, 0, 0, 2),
    ),
    _clean(
        "Slices",
        "(float[N,6,5] x) => (float[N,3,3] y) {c = Slice(x, s, e, a) y = Slice(c, s, e, b)}",
        s=_ints(1),
        e=_ints(4),
        a=_ints(1),
        b=_ints(2),
    ),
    _clean(
        "Gather of a range",
        "(float[N,6] x) => (float[N,3] y) {y = Gather<axis=1>(x, k)}",
        k=_ints(2, 3, 4),
    ),
    _clean(
        "Slices end to end",
        "(float[N,6] x) => (float[N,3] y) {"
        "c = Slice(x, z, t, a) d = Slice(x, t, e, a) y = Sub(c, d)}",
        z=_ints(0),
        t=_ints(3),
        e=_ints(6),
        a=_ints(1),
    ),
    _clean(
        "Split into one",
        "(float[N,6] x) => (float[N,6] y) {c = Split<axis=1>(x, k) y = Tanh(c)}",
        k=_ints(6),
    ),
    _clean(
        "Split and Concat",
        "(float[N,6] x) => (float[N,6] y) {"
        "c, d = Split<axis=1>(x, k) e = Concat<axis=1>(c, d) y = Tanh(e)}",
        k=_ints(2, 4),
    ),
    _clean(
        "Concats",
        "(float[N,3] x, float[N,2] z) => (float[N,8] y) {"
        "c = Concat<axis=1>(x, z) y = Concat<axis=1>(c, x)}",
    ),
    _clean(
        "parts of a sequence",
        "(float[N,6] x) => (float[N,3] y) {"
        "q = SplitToSequence<axis=1>(x, k) c = SequenceAt(q, i) d = SequenceAt(q, j)"
        "y = Sub(c, d)}",
        k=_ints(3, 3),
        i=np.int64(0),
        j=np.int64(1),
    ),
    _clean(
        "a part of a sequence",
        "(float[N,60] x) => (float[N,40] y) {"
        "q = SplitToSequence<axis=1>(x, k) y = SequenceAt(q, i)}",
        k=_ints(40, 20),
        i=np.int64(0),
    ),
    _clean(
        "a part of a sequence as made",
        "(float[N,3] x, float[N,3] z) => (float[N,3] y) {"
        "q = SequenceConstruct(x, z) c = SequenceAt(q, i) y = Tanh(c)}",
        i=np.int64(1),
    ),
    _clean(
        "a sequence as made",
        "(float[N,3] x, float[N,2] z) => (float[N,5] y) {"
        "q = SequenceConstruct(x, z) y = ConcatFromSequence<axis=1>(q)}",
    ),
    _clean(
        "a sequence and back",
        "(float[N,6] x) => (float[N,6] y) {"
        "q = SplitToSequence<axis=1>(x, k) c = ConcatFromSequence<axis=1>(q) y = Tanh(c)}",
        k=_ints(2, 4),
    ),
    _clean(
        "one size",
        "(float[N,3,4] x) => (int64[1] y) {s = Shape(x) c = Gather(s, i) y = Unsqueeze(c, a)}",
        i=np.int64(0),
        a=_ints(0),
    ),
    _clean(
        "sizes",
        "(float[N,3,4] x, float[M,5] z) => (int64[2] y) {"
        "s = Shape(x) c = Gather(s, k) t = Shape(z) d = Slice(t, a, b) y = Mul(c, d)}",
        k=_ints(0, 1),
        a=_ints(0),
        b=_ints(1),
    ),
    _clean(
        "no size is -1",
        "(float[N,3] x, int64[2] z) => (int64[2] y) {"
        "s = Shape(x) e = Equal(s, k) c = Where(e, o, s) y = Mul(c, z)}",
        k=_ints(-1, -1),
        o=_ints(1, 1),
    ),
    _clean(
        "masks",
        "(float[N,3] x, bool[N,3] m) => (float[N,3] y) {"
        "a = And(m, t) b = Where(a, x, k) c = Where(t, b, k) y = Tanh(c)}",
        t=np.array([True]),
        k=np.float32(2),
    ),
    _clean(
        "the other choice",
        "(float[N,3] x, float[N,3] k) => (float[N,3] y) {"
        "b = IsNaN(x) n = Not(b) c = Where(n, x, k) y = Tanh(c)}",
    ),
    _clean(
        "no choice",
        "(float[N,3] x) => (float[N,3] y) {b = IsNaN(x) c = Where(b, x, x) y = Tanh(c)}",
    ),
    _clean(
        "a mean of one",
        "(float[N,1,4] x) => (float[N,4] y) {c = ReduceMean<axes=[1],keepdims=0>(x) y = Tanh(c)}",
    ),
    _clean(
        "axes that are kept",
        "(float[N,3,4] x) => (float[N,3,1] y) {"
        "c = ReduceMean<axes=[2],keepdims=0>(x) y = Unsqueeze(c, k)}",
        k=_ints(2),
    ),
    _clean(
        "bounds",
        "(float[N,3] x) => (float[N,3] y) {c = Relu(x) y = Clip(c, l, h)}",
        l=np.float32(-1),
        h=np.float32(1.5),
    ),
    _clean(
        "Max and Min",
        "(float[N,40] x) => (float[N,40] y) {c = Max(x, l) y = Min(c, h)}",
        l=np.float32(-0.3),
        h=np.float32(0.4),
    ),
    _clean("Neg twice", "(float[N,3] x) => (float[N,3] y) {c = Neg(x) d = Neg(c) y = Tanh(d)}"),
    _clean(
        "to the first power",
        "(float[N,3] x) => (float[N,3] y) {c = Pow(x, k) y = Tanh(c)}",
        k=np.float32(1),
    ),
    _clean(
        "quantized twice",
        "(uint8[N,6] x) => (float[N,6] y) {"
        "c = DequantizeLinear(x, s, z) d = QuantizeLinear(c, s, z) y = DequantizeLinear(d, s, z)}",
        s=np.float32(0.05),
        z=np.uint8(3),
    ),
    _clean(
        "Expand of what broadcasts",
        "(float[2,3,4] x, float[3,1] z) => (float[2,3,4] y) {c = Expand(z, k) y = Mul(x, c)}",
        k=_ints(2, 3, 4),
    ),
    _clean(
        "one value",
        "(float[N,3,4] x) => (float[N,3,4] y) {y = Mul(x, k)}",
        k=np.full((3, 4), 1.5, np.float32),
    ),
    _clean(
        "a state of zeros",
        '(float[4,2,3] x) => (float[4,1,2,3] y) {y = RNN<hidden_size=3>(x, w, r, "", "", h)}',
        w=_away_from_zero(1, 3, 3),
        r=_away_from_zero(1, 3, 3),
        h=np.zeros((1, 2, 3), np.float32),
    ),
    _clean(
        "an If that is decided",
        "(float[N,3] x) => (float[N,3] y) {c = If(k) <"
        "then_branch = g () => (float[N,3] p) {p = Mul(x, w)},"
        "else_branch = h () => (float[N,3] q) {q = Add(x, w)}> y = Tanh(c)}",
        k=np.array(True),
        w=np.array([1.5, 2, 2.5], np.float32),
    ),
    _clean(
        "a Loop of two trips",
        "(float[N,3] x) => (float[N,3] y) {c = Loop <"
        "body = g (int64 i, bool on, float[N,3] p) => (bool go, float[N,3] q) {"
        'go = Identity(on) q = Mul(p, w)}> (k, "", x) y = Tanh(c)}',
        k=np.array(2),
        w=np.array([1.5, 2, 2.5], np.float32),
    ),
    _clean(
        "a Loop with weights among its states",
        "(float[N,3] x) => (float[N,3] y) {c, d = Loop <"
        "body = g (int64 i, bool on, float[N,3] p, float[3] v)"
        " => (bool go, float[N,3] q, float[3] u) {"
        "go = Identity(on) q = Mul(p, v) u = Identity(v)}> (k, on_, x, w) y = Tanh(c)}",
        k=np.array(20),
        on_=np.array(True),
        w=np.array([0.75, 1, 1.25], np.float32),
    ),
    _clean(
        "MatMul and Add",
        "(float[N,4] x) => (float[N,3] y) {c = MatMul(x, w) y = Add(c, b)}",
        w=_away_from_zero(4, 3),
        b=np.array([1.5, 2, 2.5], np.float32),
    ),
    _clean(
        "a Transpose into a product",
        "(float[4,N] x) => (float[N,3] y) {t = Transpose(x) c = MatMul(t, w) y = Add(b, c)}",
        w=_away_from_zero(4, 3),
        b=np.array([1.5, 2, 2.5], np.float32),
    ),
    _clean(
        "a product with a Transpose",
        "(float[N,4] x, float[3,4] w) => (float[N,3] y) {t = Transpose(w) y = MatMul(x, t)}",
    ),
    _clean(
        "Transposes into a Gemm",
        "(float[4,N] x, float[3,4] w) => (float[N,3] y) {"
        "s = Transpose(x) t = Transpose(w) y = Gemm(s, t, b)}",
        b=np.array([-1.5, -2, -2.5], np.float32),
    ),
    _clean(
        "a scatter of all rows",
        "(float[3,4] x, float[3,4] u) => (float[3,4] y) {c = ScatterND(x, k, u) y = Tanh(c)}",
        k=_ints(0, 1, 2).reshape(3, 1),
    ),
    _clean(
        "a scatter of all elements",
        "(float[3,4] x, float[3,4] u) => (float[3,4] y) {"
        "c = ScatterElements<axis=0>(x, k, u) y = Tanh(c)}",
        k=np.tile(_ints(0, 1, 2).reshape(3, 1), (1, 4)),
    ),
    _clean(
        "a Split of a constant",
        "(float[N,3] x) => (float[N,3] y) {a, b = Split<axis=0>(w, k) c = Mul(x, a) y = Add(c, b)}",
        w=_away_from_zero(2, 3),
        k=_ints(1, 1),
    ),
    _clean(
        "slices of a slice",
        "(float[N,6,8] x) => (float[N,3,4] y) {s = Slice(x, z, n, one, two)"
        "a = Slice(s, z, n, two, two) b = Slice(s, one, n, two, two) y = Sub(a, b)}",
        z=_ints(0),
        n=_ints(99),
        one=_ints(1),
        two=_ints(2),
    ),
    _clean(
        "parts of one slice",
        "(float[N,2,4] x) => (float[N,4] y) {a, b = Split<axis=1>(x, k)"
        "c = Squeeze(a, one) d = Squeeze(b, one) y = Sub(c, d)}",
        k=_ints(1, 1),
        one=_ints(1),
    ),
    _clean(
        "a Transpose that is a Reshape",
        "(float[12,2] x) => (float[2,1,12] y) {c = Reshape(x, k) y = Transpose<perm=[1,0,2]>(c)}",
        k=_ints(1, 2, 12),
    ),
    _clean(
        "axes joined, moved, parted",
        "(float[2,3,5,4] x) => (float[2,3,4,5] y) {"
        "c = Reshape(x, k) d = Transpose<perm=[0,2,1]>(c) y = Reshape(d, l)}",
        k=_ints(6, 5, 4),
        l=_ints(2, 3, 4, 5),
    ),
)


_NUMBERS = {
    "half": 0.5, "one": 1, "two": 2, "three": 3, "six": 6, "zero": 0, "root2": 2**0.5,
    "cubic": 0.044715, "scale": (2 / np.pi) ** 0.5, "eps": 1e-5, "alpha": 1.7, "third": 1 / 3,
}  # fmt: skip


def _function(name: str, body: str, passes: str = "fuse-functions", **constants: Any) -> Case:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    numbers = {key: np.float32(v) for key, v in _NUMBERS.items() if key in words}
    text = f"(float[N,4,8] x) => (float[N,4,8] y) {{{body}}}"
    return Case(name, passes, text, 24, {**numbers, **constants})


_OVER_DEVIATION = (
    "q = Mul(d, d) v = ReduceMean<keepdims=1>(q, last) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)"
)
_LAST = _ints(-1)

_FUNCTIONS = (
    _function(
        "Gelu", "d = Div(x, root2) e = Erf(d) g = Add(e, one) m = Mul(x, g) y = Mul(m, half)"
    ),
    _function(
        "Gelu of tanh",
        "p = Pow(x, three) c = Mul(p, cubic) i = Add(x, c) k = Mul(i, scale) h = Tanh(k)"
        " g = Add(h, one) m = Mul(x, g) y = Mul(m, half)",
    ),
    _function(
        "HardSwish", "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)"
    ),
    _function("Mish", "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"),
    _function("Swish", "a = Mul(x, alpha) s = Sigmoid(a) y = Mul(x, s)"),
    _function(
        "LayerNormalization",
        f"m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m) {_OVER_DEVIATION} k = Mul(n, w)"
        " y = Add(k, b)",
        last=_LAST,
        w=(8,),
        b=(8,),
    ),
    _function(
        "RMSNormalization",
        f"d = Relu(x) {_OVER_DEVIATION} y = Mul(n, w)",
        last=_LAST,
        w=(8,),
    ),
    Case(
        "Attention",
        "fuse-functions",
        "(float[N,2,3,4] q, float[N,2,5,4] k, float[N,2,5,6] v, float[N,1,3,5] m) =>"
        " (float[N,2,3,6] y) {t = Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, t) s = Mul(a, third)"
        " b = Add(s, m) p = Softmax(b) y = MatMul(p, v)}",
        23,
        {"third": np.float32(1 / 3)},
    ),
    _function("Swish written out", "y = Swish<alpha=1.5>(x)", "expand-functions"),
    _function("Gelu written out", "y = Gelu(x)", "expand-functions"),
)


def cases() -> Iterator[tuple[str, onnx.ModelProto, tuple[Pass, ...]]]:
    """Yield all models: those above, and the fixtures of passes that have some."""
    for case in (*CASES, *_FAMILIES, *_FUNCTIONS):
        yield case.name, case.model(), case.steps()
    for found in fixture.find(None):
        if "refused" in found.header or "untouched" in found.header:
            continue
        try:
            yield found.name, found.model(), tuple(found.passes)
        except UsageError:  # a fixture of a pass that is not installed
            continue
