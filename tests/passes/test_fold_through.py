"""fold-batchnorm through what lies between: before ⇒ after, in integers, equal to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_refused,
    check_replay,
    check_untouched,
    graph,
)

from .test_fold_batchnorm import NORM, cycle, integers, norm
from .test_fold_batchnorm import graph as declared

FOLD = make("fold-batchnorm")


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def behind(f: str, channels: int, opset: int, **constants: Any) -> onnx.ModelProto:
    """A Conv of 8 channels with output `a`, `f` making `k` of it, and a normalization."""
    return declared(
        f"(float[N,3,8,8] x) => (float[] y){{a = Conv<pads=[1,1,1,1]>(x, W, b) {f}"
        f" y = {NORM}(k, s, o, m, v)}}",
        opset=opset,
        W=integers(8, 3, 3, 3),
        b=integers(8),
        **{**norm(channels), **constants},
    )


UPWARDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "AveragePool": ("k = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)", 8, {}),
    "AveragePool, the padding not counted": (
        "k = AveragePool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1]>(a)", 8, {}),
    "GlobalAveragePool": ("k = GlobalAveragePool(a)", 8, {}),
    "GlobalAveragePool, Flatten": ("p = GlobalAveragePool(a) k = Flatten(p)", 8, {}),
    "ReduceMean": ("k = ReduceMean<axes=[2,3], keepdims=0>(a)", 8, {}),
    "ReduceMean, keepdims": ("k = ReduceMean<axes=[-1]>(a)", 8, {}),
    "nearest Resize": (
        'k = Resize<mode="nearest">(a, "", sc)', 8, {"sc": floats(1, 1, 2, 2)}),
    "linear Resize": (
        'k = Resize<mode="linear">(a, "", sc)', 8, {"sc": floats(1, 1, 2, 2)}),
    "Resize to a size": (
        'h = Slice(a, z, n1, ax0) k = Resize<mode="nearest">(h, "", "", sizes)', 8,
        {"z": ints(0), "n1": ints(1), "ax0": ints(0), "sizes": ints(1, 8, 4, 4)}),
    "Slice of channels": ("k = Slice(a, st, en, ax)", 4,
                          {"st": ints(2), "en": ints(6), "ax": ints(1)}),
    "Slice backwards": ("k = Slice(a, st, en, ax, step)", 4,
                        {"st": ints(7), "en": ints(-9), "ax": ints(1), "step": ints(-2)}),
    "Slice of pixels": ("k = Slice(a, st, en, ax)", 8,
                        {"st": ints(2), "en": ints(6), "ax": ints(3)}),
    "Gather of channels": ("k = Gather<axis=1>(a, i)", 3, {"i": ints(5, 0, -1)}),
    "channel shuffle": (
        "r = Reshape(a, s1) t = Transpose<perm=[0,2,1,3,4]>(r) k = Reshape(t, s2)", 8,
        {"s1": ints(-1, 2, 4, 8, 8), "s2": ints(0, 8, 8, 8)}),
    "DepthToSpace": ("k = DepthToSpace<blocksize=2>(a)", 2, {}),
    "DepthToSpace, CRD": ('k = DepthToSpace<blocksize=2, mode="CRD">(a)', 2, {}),
    "Reshape of the pixels": ("k = Reshape(a, t)", 8, {"t": ints(0, 8, -1)}),
    "Unsqueeze": ("k = Unsqueeze(a, ax)", 8, {"ax": ints(4)}),
    "Squeeze": ("p = GlobalAveragePool(a) k = Squeeze(p, ax)", 8, {"ax": ints(2, 3)}),
    "edge Pad": ('k = Pad<mode="edge">(a, p)', 8, {"p": ints(0, 0, 1, 0, 0, 0, 0, 2)}),
    "reflect Pad": ('k = Pad<mode="reflect">(a, p)', 8, {"p": ints(0, 0, 1, 0, 0, 0, 0, 2)}),
    "crop": ("k = Pad(a, p)", 8, {"p": ints(0, 0, 0, 0, 0, 0, 0, 0)}),
    "two Convs joined": ('c = Conv(x, W1) h = Resize<mode="nearest">(c, "", sc)'
                         " k = Concat<axis=1>(a, h)", 12,
                         {"W1": integers(4, 3, 1, 1), "sc": floats(1, 1, 1, 1)}),
    "Convs joined along pixels": ("c = Conv(x, W1) k = Concat<axis=2>(a, c)", 8,
                                  {"W1": integers(8, 3, 1, 1)}),
    "two Convs added": ("c = Conv(x, W1) k = Add(a, c)", 8, {"W1": integers(8, 3, 1, 1)}),
    "a Conv taken away": ("c = Conv(x, W1) k = Sub(a, c)", 8, {"W1": integers(8, 3, 1, 1)}),
    "three summed": ("c = Conv(x, W1) d = Conv(x, W2) k = Sum(a, c, d)", 8,
                     {"W1": integers(8, 3, 1, 1), "W2": integers(8, 3, 1, 1, seed=9)}),
    "a gate added": ("p = GlobalAveragePool(x) c = Conv(p, W1) k = Add(a, c)", 8,
                     {"W1": integers(8, 3, 1, 1)}),
    "a constant of each pixel": ("k = Add(a, c)", 8, {"c": integers(1, 1, 8, 8)}),
    "a constant less": ("k = Sub(c, a)", 8, {"c": integers(8, 8, 8)}),
    "another normalization": ("p = AveragePool<kernel_shape=[2,2]>(a)"
                              f" k = {NORM}(p, s, o, m, v)", 8, {}),
    "a product between": ("p = Mul(a, c) q = Flatten(p) k = Reshape(q, t)", 8,
                          {"c": cycle([2, -4], 8).reshape(8, 1, 1), "t": ints(-1, 8, 64)}),
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("f, channels, constants", UPWARDS.values(), ids=UPWARDS)
def test_upwards(f: str, channels: int, constants: dict[str, Any], opset: int) -> None:
    model = behind(f, channels, opset, **constants)
    result = check(FOLD, model, exact=True)
    assert "BatchNormalization" not in [node.op_type for node in result.graph.node]
    assert len(result.graph.node) < len(model.graph.node)
    check_untouched(FOLD, result)
    if opset == 17 and "Resize" not in f:  # whose scales are no weights
        check_replay(FOLD, model)


POSITIVE = floats(1, 2, 4, 0.5, 1, 8, 2, 1)

PRODUCTS: dict[str, str] = {
    "Relu": "k = Relu(a) y = Mul(k, c)",
    "LeakyRelu": "k = LeakyRelu<alpha=0.25>(a) y = Mul(c, k)",
    "ReduceSum": "k = ReduceSum(a, ax) y = Mul(k, c)",
    "zero Pad": "k = Pad(a, p) y = Mul(k, c)",
    "average with padding": "k = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1],"
    " count_include_pad=1>(a) y = Mul(k, c)",
    "Dropout": "k = Dropout(a) l = MaxPool<kernel_shape=[2,2]>(k) y = Div(l, c)",
    "GlobalMaxPool": "k = GlobalMaxPool(a) y = Mul(k, c)",
    "ReduceMax": "k = ReduceMax<axes=[2], keepdims=1>(a) y = Mul(k, c)",
}


@pytest.mark.parametrize("f", PRODUCTS.values(), ids=PRODUCTS)
def test_a_positive_factor_goes_further(f: str) -> None:
    model = declared(
        f"(float[N,3,8,8] x) => (float[] y){{a = Conv<pads=[1,1,1,1]>(x, W, b) {f}}}",
        W=integers(8, 3, 3, 3),
        b=integers(8),
        c=POSITIVE.reshape(8, 1, 1),
        ax=ints(2, 3),
        p=ints(0, 0, 1, 1, 0, 0, 0, 0),
    )
    result = check(FOLD, model, exact=True)
    assert len(result.graph.node) == len(model.graph.node) - 1


ROWS: dict[str, tuple[str, str]] = {
    "tokens": ("a = MatMul(x, W) b = Reshape(a, rows)", "MatMul Add Reshape Reshape"),
    "tokens with a bias": ("h = MatMul(x, W) a = Add(h, c) b = Reshape(a, rows)",
                           "MatMul Add Reshape Reshape"),
}  # fmt: skip


@pytest.mark.parametrize("f, after", ROWS.values(), ids=ROWS)
def test_rows_of_tokens(f: str, after: str) -> None:
    model = graph(
        f"(float[N,7,4] x) => (float[N,7,6] y) {{{f} k = {NORM}(b, s, o, m, v)"
        " y = Reshape(k, tok)}",
        W=integers(4, 6),
        c=integers(6),
        rows=ints(-1, 6),
        tok=ints(-1, 7, 6),
        **norm(6),
    )
    check(FOLD, model, after, exact=True)


def test_a_factor_without_a_shift_costs_no_sum() -> None:
    model = graph(
        "(float[N,7,4] x) => (float[N,6,7] y) {a = MatMul(x, W)"
        " t = Transpose<perm=[0,2,1]>(a) u = Unsqueeze(t, ax) q = Squeeze(u, ax) k = Relu(q)"
        " y = Mul(k, c)}",
        W=integers(4, 6),
        ax=ints(1),
        c=floats(1, 2, 4, 8, 1, 2).reshape(6, 1),
    )
    check(FOLD, model, "MatMul Transpose Unsqueeze Squeeze Relu", exact=True)


DOWNWARDS: dict[str, tuple[str, str, tuple[int, ...], dict[str, Any]]] = {
    "reflect Pad": ('k = Pad<mode="reflect">(n, p) y = Conv(k, W)', "Pad Conv", (5, 4, 3, 3),
                    {"p": ints(0, 0, 1, 0, 0, 0, 1, 1)}),
    "edge Pad": ('k = Pad<mode="edge">(n, p) y = Conv(k, W)', "Pad Conv", (5, 4, 3, 3),
                 {"p": ints(0, 0, 1, 0, 0, 0, 1, 1)}),
    "Concat": ("k = Concat<axis=1>(z, n) y = Conv(k, W)", "Relu Concat Conv", (5, 8, 3, 3), {}),
    "Flatten": ("k = Flatten(n) y = Gemm<transB=1>(k, W)", "Flatten Gemm", (5, 256), {}),
    "GlobalAveragePool": ("k = GlobalAveragePool(n) f = Flatten(k) y = Gemm<transB=1>(f, W)",
                          "GlobalAveragePool Flatten Gemm", (5, 4), {}),
    "Gather": ("k = Gather<axis=1>(n, i) y = Conv(k, W)", "Gather Conv", (5, 2, 3, 3),
               {"i": ints(3, 0)}),
    "Slice": ("k = Slice(n, st, en, ax) y = Conv(k, W)", "Slice Conv", (5, 2, 3, 3),
              {"st": ints(1), "en": ints(3), "ax": ints(1)}),
    "SpaceToDepth": ("k = SpaceToDepth<blocksize=2>(n) y = Conv(k, W)", "SpaceToDepth Conv",
                     (5, 16, 2, 2), {}),
    "DepthToSpace": ("k = SpaceToDepth<blocksize=2>(n) l = DepthToSpace<blocksize=2>(k)"
                     " y = Conv(l, W)", "SpaceToDepth DepthToSpace Conv", (5, 4, 3, 3), {}),
    "tokens": ("k = Reshape(n, t) l = Transpose<perm=[0,2,1]>(k) y = MatMul(l, M)",
               "Reshape Transpose MatMul Add", (), {"t": ints(0, 4, -1), "M": integers(4, 5)}),
    "shuffle": ("r = Reshape(n, s1) t = Transpose<perm=[0,2,1,3,4]>(r) k = Reshape(t, s2)"
                " y = Conv(k, W)", "Reshape Transpose Reshape Conv", (5, 4, 3, 3),
                {"s1": ints(-1, 2, 2, 8, 8), "s2": ints(0, 4, 8, 8)}),
}  # fmt: skip


@pytest.mark.parametrize("f, after, weight, constants", DOWNWARDS.values(), ids=DOWNWARDS)
def test_downwards(f: str, after: str, weight: Any, constants: dict[str, Any]) -> None:
    lead = "z = Relu(x)" if "(z," in f else ""
    model = declared(
        f"(float[N,4,8,8] x) => (float[] y){{{lead} n = {NORM}(x, s, o, m, v) {f}}}",
        **({"W": integers(*weight)} if weight else {}),
        **{**norm(4), **constants},
    )
    check(FOLD, model, after, exact=True)


def test_scales_behind_dequantize_linear() -> None:
    """The parameters of a BatchNormalization may be stored as integers."""
    model = graph(
        "(float[N,3,4,4] x) => (float[N,4,2,2] y) {g = DequantizeLinear(q, d, z) c = Conv(x, W)"
        f" y = {NORM}(c, g, o, m, v)}}",
        W=integers(4, 3, 3, 3),
        q=np.array([3, 5, 1, 2], np.uint8),
        d=np.float32(2),
        z=np.uint8(1),
        **{k: v for k, v in norm(4).items() if k != "s"},
    )
    check(FOLD, model, "Conv", exact=True)


def test_into_a_quantized_weight() -> None:
    model = graph(
        "(float[N,3,6,6] x) => (float[N,4,2,2] y) {w = DequantizeLinear<axis=0>(q, d)"
        " b = DequantizeLinear<axis=0>(qb, d) c = Conv(x, w, b)"
        f" k = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c) y = {NORM}(k, s, o, m, v)}}",
        q=integers(4, 3, 3, 3, dtype=np.int8),
        qb=integers(4, dtype=np.int32),
        d=floats(1, 2, 0.5, 4),
        **{**norm(4), "s": cycle([1, 2], 4)},
    )
    result = check(FOLD, model, "DequantizeLinear Conv AveragePool", exact=True)
    levels = [t for t in result.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert [onnx.numpy_helper.to_array(t).tolist() for t in levels] == [
        integers(4, 3, 3, 3, dtype=np.int8).tolist()
    ]


# -------------------------------------------------------------------------------------- refusals

REFUSED: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "Relu": ("k = Relu(a)", 8, {}, "Relu of 'k' bends at zero, which no shift passes"),
    "MaxPool": ("k = MaxPool<kernel_shape=[2,2]>(a)", 8, {},
                "MaxPool of 'k' keeps the largest element, and a factor is not positive"),
    "Sigmoid": ("k = Sigmoid(a)", 8, {}, "no map moves through Sigmoid of 'k'"),
    "zero Pad": ("k = Pad(a, p)", 8, {"p": ints(0, 0, 1, 0, 0, 0, 0, 2)},
                 "Pad of 'k' pads with 0, which the map does not reach"),
    "padded average": ("k = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1],"
                       " count_include_pad=1>(a)", 8, {}, "averages over padding"),
    "average over the edge": ("k = AveragePool<kernel_shape=[3,3], strides=[2,2],"
                              " ceil_mode=1>(a)", 8, {}, "averages over padding"),
    "cubic Resize": ('k = Resize<mode="cubic">(a, "", sc)', 8,
                     {"sc": floats(1, 1, 2, 2)}, "need not sum to 1"),
    "Resize with a value beyond": (
        'k = Resize<mode="nearest", coordinate_transformation_mode="tf_crop_and_resize">'
        "(a, roi, sc)", 8, {"sc": floats(1, 1, 2, 2),
                            "roi": floats(0, 0, 0, 0, 1, 1, 1, 1)}, "beyond the edge"),
    "Resize of channels": ('k = Resize<mode="nearest">(a, "", sc)', 16,
                           {"sc": floats(1, 2, 1, 1)}, "works along axis [1]"),
    "pad of channels": ('k = Pad<mode="edge">(a, p)', 10, {"p": ints(0, 1, 0, 0, 0, 1, 0, 0)},
                        "works along axis [1]"),
    "sum": ("k = ReduceSum(a, ax)", 8, {"ax": ints(2, 3)}, "adds up elements, which no shift"),
    "two for one": ("k = Gather<axis=1>(a, i)", 2, {"i": ints(1, 1)},
                    "picks an element for several channels"),
    "computed indices": ("h = Shape(x) j = Cast<to=7>(h) k = Gather<axis=1>(a, j)", 4, {},
                         "the indices of Gather of 'k' are computed"),
    "an input": ("k = Add(a, a8)", 8, {}, "'a8' is not computed here"),
    "blocks of other channels": ("d = SpaceToDepth<blocksize=2>(a) k = Flatten(d)", 512, {},
                                 "works along axis [2], along which the map varies"),
    "pixels as channels": ("k = Transpose<perm=[0,2,1,3]>(a)", 8, {},
                           "normalizes axis 1, but the channels"),
    "a small output of channels": ("p = ReduceMean<axes=[1]>(a) k = Add(p, a)", 8, {},
                                   "spreads 'p' over the channels"),
}  # fmt: skip


@pytest.mark.parametrize("f, channels, constants, reason", REFUSED.values(), ids=REFUSED)
def test_refused(f: str, channels: int, constants: dict[str, Any], reason: str) -> None:
    model = behind(f, channels, 17, **constants)
    if "a8" in f:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info("a8", onnx.TensorProto.FLOAT, ["N", 8, 8, 8])
        )
    check_refused(FOLD, model, reason)


def test_dropout_that_trains_is_refused() -> None:
    model = behind(
        "r = Constant<value_float=0.5>() k = Dropout(a, r, on)", 8, 17, on=np.array(True)
    )
    check_refused(FOLD, model, "Dropout of 'k' may be training")


def test_the_scale_of_attention_stays() -> None:
    model = graph(
        "(float[N,6,4] x, float[N,2,2,6] k) => (float[N,2,6,6] y) {a = MatMul(x, W) b = Add(a, c)"
        " h = Reshape(b, s) t = Transpose<perm=[0,2,1,3]>(h) u = Mul(t, d) y = MatMul(u, k)}",
        W=integers(4, 4),
        c=integers(4),
        s=ints(0, 6, 2, 2),
        d=np.float32(0.5),
    )
    check_untouched(FOLD, model)


def test_an_embedding_is_not_copied() -> None:
    model = graph(
        "(int64[N] i) => (float[N,4] y) {e = Gather(E, i) f = Identity(e) y = Mul(f, c)}",
        E=integers(1 << 15, 4),
        c=floats(1, 2, 4, 8),
    )
    check_untouched(FOLD, model)


def test_what_stays_is_explained() -> None:
    """No BatchNormalization stays without a word."""
    for f in ("k = Relu(x)", "k = Identity(x)"):
        model = declared(
            f"(float[N,4,6,6] x) => (float[] y){{{f} n = {NORM}(k, s, o, m, v) y = Relu(n)}}",
            **norm(4),
        )
        refusals = apply_to(FOLD, model)[1].refusals
        assert [r.rule for r in refusals] == ["IntoSources"], refusals
        assert "nor does Relu of 'y' after it take it in" in refusals[0].reason


def test_only_where_all_of_it_arrives() -> None:
    """One branch that cannot take it in keeps the operator for both."""
    model = behind(
        "c = Conv(x, W1) d = Sigmoid(c) k = Concat<axis=1>(a, d)", 12, 17, W1=integers(4, 3, 1, 1)
    )
    check_refused(FOLD, model, "no map moves through Sigmoid of 'd'")


def test_scalars_are_no_channels() -> None:
    """What steps and scales are multiplied by, as quantization at run time does, has no axes."""
    model = graph(
        "(float x) => (float y) {a = Neg(x) b = Identity(a) y = Mul(b, c)}", c=np.float32(2)
    )
    check_untouched(FOLD, model)
