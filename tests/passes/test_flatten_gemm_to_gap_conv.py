"""flatten-gemm-to-gap-conv: pooled heads in every written form, and those that are none.

Numbers are small integers and the maps have 4 or 16 pixels, so that every mean is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpass.rewrite.registry import make
from graphpass.storage import wire
from graphpass.testing import (
    apply_to,
    check,
    check_equal,
    check_operators,
    check_refused,
    check_untouched,
    check_valid,
    operators,
)
from graphpass.testing import graph as parsed

Array = npt.NDArray[Any]
PASS = make("flatten-gemm-to-gap-conv")


def graph(text: str, **given: Any) -> onnx.ModelProto:
    return parsed(text, exact=True, **given)


def integers(*shape: int, dtype: npt.DTypeLike = np.float32, seed: int = 3) -> Array:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def equal_pixels(outputs: int, *sizes: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Weights [outputs, C, H, W, …] that differ between channels only."""
    channels, *window = sizes
    pixel = integers(outputs, channels, *[1] * len(window), dtype=dtype)
    return np.ascontiguousarray(np.broadcast_to(pixel, (outputs, *sizes)))


# ---------------------------------------------------------------------------- pooled already

POOLED = {
    "global": "p = GlobalAveragePool(x) f = Flatten(p)",
    "global-reshape": "p = GlobalAveragePool(x) f = Reshape(p, rest)",
    "global-squeeze": "p = GlobalAveragePool(x) f = Squeeze(p, last_two)",
    "global-squeeze-negative": "p = GlobalAveragePool(x) f = Squeeze(p, negative)",
    "global-squeeze-twice": "p = GlobalAveragePool(x) q = Squeeze(p, third) f = Squeeze(q, second)",
    "global-computed": "p = GlobalAveragePool(x) s = Shape(p) g = Slice(s, zero, one)"
    " c = Concat<axis=0>(g, minus) f = Reshape(p, c)",
    "window": "p = AveragePool<kernel_shape=[2,2]>(x) f = Flatten(p)",
    "window-stride": "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) f = Flatten(p)",
    "window-ceil": "p = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)"
    " f = Flatten(p)",
    "window-valid": 'p = AveragePool<kernel_shape=[2,2], auto_pad="VALID">(x) f = Flatten(p)',
    "window-zero-pads": "p = AveragePool<kernel_shape=[2,2], pads=[0,0,0,0],"
    " count_include_pad=1>(x) f = Flatten(p)",
    "mean": "f = ReduceMean<axes=[2,3], keepdims=0>(x)",
    "mean-negative": "f = ReduceMean<axes=[-1,-2], keepdims=0>(x)",
    "mean-kept": "p = ReduceMean<axes=[2,3]>(x) f = Flatten(p)",
    "mean-kept-reshape": "p = ReduceMean<axes=[3,2], keepdims=1>(x) f = Reshape(p, rest)",
    "mean-nhwc": "t = Transpose<perm=[0,2,3,1]>(x) f = ReduceMean<axes=[1,2], keepdims=0>(t)",
    "mean-nhwc-negative": "t = Transpose<perm=[0,2,3,1]>(x)"
    " f = ReduceMean<axes=[-3,-2], keepdims=0>(t)",
    "mean-nhwc-kept": "t = Transpose<perm=[0,2,3,1]>(x) p = ReduceMean<axes=[1,2]>(t)"
    " f = Flatten(p)",
    "mean-nhwc-squeeze": "t = Transpose<perm=[0,2,3,1]>(x) p = ReduceMean<axes=[1,2]>(t)"
    " f = Squeeze(p, middle)",
    "mean-nhwc-reshape": "t = Transpose<perm=[0,2,3,1]>(x) p = ReduceMean<axes=[1,2]>(t)"
    " f = Reshape(p, rest)",
    "pooled-then-nhwc": "p = GlobalAveragePool(x) t = Transpose<perm=[0,2,3,1]>(p) f = Flatten(t)",
    "pooled-then-reshaped-to-nhwc": "p = AveragePool<kernel_shape=[2,2]>(x)"
    " t = Reshape(p, nhwc) f = Reshape(t, minus_three)",
}
HEADS = {
    "gemm": "y = Gemm<transB=1>(f, V, b)",
    "matmul-add": "m = MatMul(f, W) y = Add(m, b)",
    "matmul": "y = MatMul(f, W)",
}


@pytest.mark.parametrize("pooled", POOLED)
@pytest.mark.parametrize("head", HEADS)
def test_pooled_heads(pooled: str, head: str) -> None:
    model = graph(
        f"(float[N,3,2,2] x) => (float[N,5] y) {{ {POOLED[pooled]} {HEADS[head]} }}",
        V=(5, 3),
        W=(3, 5),
        b=(5,),
        rest=np.array([0, -1]),
        minus_three=np.array([-1, 3]),
        nhwc=np.array([-1, 1, 1, 3]),
        last_two=np.array([2, 3]),
        negative=np.array([-1, -2]),
        third=np.array([3]),
        second=np.array([2]),
        middle=np.array([1, 2]),
        zero=np.array([0]),
        one=np.array([1]),
        minus=np.array([-1]),
    )
    result, _ = apply_to(PASS, model)
    check_valid(model, result)
    check_equal(model, result, exact=True)
    # a Transpose of pooled pixels only is clean-up's
    shown = operators(result).replace("GlobalAveragePool Transpose", "GlobalAveragePool")
    assert shown == "GlobalAveragePool Conv Flatten"


@pytest.mark.parametrize(
    "pooled",
    [
        "p = GlobalMaxPool(x) f = Flatten(p)",
        "p = MaxPool<kernel_shape=[2,2]>(x) f = Flatten(p)",
        "f = ReduceMax<axes=[2,3], keepdims=0>(x)",
        "t = Transpose<perm=[0,2,3,1]>(x) f = ReduceMax<axes=[1,2], keepdims=0>(t)",
    ],
)
def test_the_largest_pixel(pooled: str) -> None:
    model = graph(f"(float[N,3,2,2] x) => (float[N,5] y) {{ {pooled} y = Gemm(f, W) }}", W=(3, 5))
    check(PASS, model, "GlobalMaxPool Conv Flatten", exact=True)


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 18, 20, 22])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_axes_as_attribute_and_as_input(opset: int, keepdims: int) -> None:
    reduce = (
        f"ReduceMean<axes=[2,3], keepdims={keepdims}>(x)"
        if opset < 18
        else f"ReduceMean<keepdims={keepdims}>(x, axes)"
    )
    model = graph(
        f"(float[N,3,2,2] x) => (float[N,5] y) {{ p = {reduce} f = Flatten(p) y = Gemm(f, W, b) }}",
        opset=opset,
        ir_version=8 if opset < 19 else 10,
        W=(3, 5),
        b=(5,),
        axes=np.array([-1, -2]),
    )
    check(make_chain(), model, "GlobalAveragePool Conv Flatten", exact=True)


def make_chain() -> list[Any]:
    return [make("clean-up"), PASS]


@pytest.mark.parametrize(("sizes", "axes"), [("3,4", "2"), ("3,2,2,1", "2,3,4")])
def test_other_numbers_of_spatial_axes(sizes: str, axes: str) -> None:
    model = graph(
        f"(float[N,{sizes}] x) => (float[N,5] y)"
        f"{{ f = ReduceMean<axes=[{axes}], keepdims=0>(x) y = Gemm(f, W) }}",
        W=(3, 5),
    )
    check(PASS, model, "GlobalAveragePool Conv Flatten", exact=True)


def test_pooling_needs_no_fixed_size() -> None:
    model = graph(
        "(float[N,3,h,w] x) => (float[N,5] y)"
        "{ t = Transpose<perm=[0,2,3,1]>(x) f = ReduceMean<axes=[1,2], keepdims=0>(t)"
        " y = Gemm(f, W) }",
        W=(3, 5),
    )
    check(PASS, model, "GlobalAveragePool Conv Flatten", exact=True, dims={"h": 2, "w": 4})


@pytest.mark.parametrize("activation", ["Relu", "Clip", "HardSwish"])
def test_an_activation_in_nhwc_before_the_mean(activation: str) -> None:
    model = parsed(
        "(float[N,3,2,2] x) => (float[N,5] y)"
        f"{{ t = Transpose<perm=[0,2,3,1]>(x) r = {activation}(t)"
        " f = ReduceMean<axes=[1,2], keepdims=0>(r) y = Gemm(f, W) }",
        W=(3, 5),
    )
    check(PASS, model, f"{activation} GlobalAveragePool Conv Flatten")


def test_layers_after_the_pooled_one() -> None:
    model = parsed(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        "{ f = ReduceMean<axes=[2,3], keepdims=0>(x) g = Gemm(f, W, b) h = HardSwish(g)"
        " d = Dropout(h) l = Gemm(d, V, c) y = Softmax(l) }",
        W=(3, 5),
        b=(5,),
        V=(5, 4),
        c=(4,),
    )
    check(PASS, model, "GlobalAveragePool Conv HardSwish Dropout Conv Softmax Flatten")


def test_float16() -> None:
    model = graph(
        "(float16[N,3,2,2] x) => (float16[N,5] y)"
        "{ f = ReduceMean<axes=[2,3], keepdims=0>(x) y = Gemm(f, W) }",
        W=integers(3, 5, dtype=np.float16),
    )
    check(PASS, model, "GlobalAveragePool Conv Flatten", exact=True)


# ----------------------------------------------------------- what looks like it and is not

NOT_POOLED = {
    "one-axis": "p = ReduceMean<axes=[3]>(x) f = Flatten(p)",
    "channels": "p = ReduceMean<axes=[1]>(x) f = Flatten(p)",
    "channels-too": "p = ReduceMean<axes=[1,2]>(x) f = Flatten(p)",
    "sum": "p = ReduceSum(x, axes) f = Flatten(p)",
    "smaller-window": "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) f = Flatten(p)",
    "two-windows": "p = AveragePool<kernel_shape=[4,2]>(x) f = Flatten(p)",
}


@pytest.mark.parametrize("form", NOT_POOLED)
def test_other_reductions_are_no_global_pooling(form: str) -> None:
    width = {"one-axis": 12, "channels": 16, "channels-too": 4, "sum": 3}.get(form, 12)
    width = 9 if form == "two-windows" else width
    model = graph(
        f"(float[N,3,4,4] x) => (float[N,5] y) {{ {NOT_POOLED[form]} y = Gemm(f, W) }}",
        W=(width, 5),
        axes=np.array([2, 3]),
    )
    result, _ = apply_to(PASS, model)
    check_equal(model, result, exact=True)
    assert "Global" not in operators(result)


PADDED = {
    "pads": "AveragePool<kernel_shape=[2,2], pads=[1,1,0,0], strides=[2,2]>(x)",
    "pads-counted": "AveragePool<kernel_shape=[2,2], pads=[1,1,0,0], strides=[2,2],"
    " count_include_pad=1>(x)",
    "same": 'AveragePool<kernel_shape=[2,2], strides=[2,2], auto_pad="SAME_UPPER">(x)',
    "ceil": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1], ceil_mode=1>(x)",
    "dilated": "AveragePool<kernel_shape=[2,2], dilations=[2,2], pads=[0,0,1,1]>(x)",
}


@pytest.mark.parametrize("form", PADDED)
def test_a_window_that_hangs_over_the_edge_is_not_the_mean_of_the_map(form: str) -> None:
    model = graph(
        f"(float[N,3,2,2] x) => (float[N,5] y) {{ p = {PADDED[form]} f = Flatten(p)"
        " y = Gemm(f, W) }",
        opset=19,
        ir_version=9,
        W=(3, 5),
    )
    result, _ = apply_to(PASS, model)
    check_valid(model, result)
    check_equal(model, result, rtol=1e-6)
    assert operators(result) == "AveragePool Conv Flatten"


def test_the_mean_of_whole_numbers_is_left() -> None:
    model = graph(
        "(int32[N,3,2,2] x) => (int32[N,5] y)"
        "{ f = ReduceMean<axes=[2,3], keepdims=0>(x) y = MatMul(f, W) }",
        W=integers(3, 5, dtype=np.int32),
    )
    result, _ = apply_to(PASS, model)
    assert operators(result) == "ReduceMean MatMul"


def test_double_numbers_are_left() -> None:
    model = graph(
        "(double[N,3,2,2] x) => (double[N,5] y)"
        "{ p = ReduceMean<axes=[2,3]>(x) f = Flatten(p) y = Gemm(f, W) }",
        W=integers(3, 5, dtype=np.float64),
    )
    check_refused(PASS, model, "ONNX Runtime has no Conv of double numbers")


def test_pooling_that_no_layer_reads_is_left() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,3,2,2] y, float[N,3] z)"
        "{ p = ReduceMean<axes=[2,3]>(x) c = Conv(p, W) s = Sigmoid(c) y = Mul(x, s)"
        " z = ReduceMean<axes=[2,3], keepdims=0>(y) }",
        W=(3, 3, 1, 1),
    )
    check_untouched(PASS, model)


def test_a_decomposed_layer_normalization_is_left() -> None:
    model = graph(
        "(float[N,3,4] x) => (float[N,3,5] y)"
        "{ m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[-1]>(q)"
        " e = Add(v, eps) s = Sqrt(e) n = Div(d, s) y = MatMul(n, W) }",
        W=(4, 5),
        eps=np.float32(1),
    )
    check_untouched(PASS, model)


def test_plain_rows_are_left() -> None:
    model = graph("(float[N,3] x) => (float[N,5] y) { y = Gemm(x, W) }", W=(3, 5))
    check_untouched(PASS, model)


# ----------------------------------------------------------------------------- equal pixels


@pytest.mark.parametrize("sizes", [(3, 2, 2), (2, 4, 1), (3, 4), (2, 2, 2, 1)])
@pytest.mark.parametrize("layer", ["Gemm<transB=1>(f, V, b)", "Gemm<alpha=2.0>(f, W, b)"])
def test_equal_pixels(sizes: tuple[int, ...], layer: str) -> None:
    weight = equal_pixels(5, *sizes).reshape(5, -1)
    model = graph(
        f"(float[N,{','.join(map(str, sizes))}] x) => (float[N,5] y)"
        f"{{ f = Flatten(x) y = {layer} }}",
        V=weight,
        W=np.ascontiguousarray(weight.T),
        b=(5,),
    )
    check(PASS, model, "GlobalAveragePool Conv Flatten", exact=True)


@pytest.mark.parametrize("perm", ["0,2,3,1", "0,3,2,1", "0,2,1,3"])
@pytest.mark.parametrize("layer", ["Gemm<transB=1>(f, V)", "MatMul(f, W)"])
def test_equal_pixels_behind_a_transpose(perm: str, layer: str) -> None:
    weight = equal_pixels(5, 3, 4, 1)
    axes = [int(axis) for axis in perm.split(",")]
    rows = np.ascontiguousarray(weight.transpose(axes)).reshape(5, -1)
    model = graph(
        "(float[N,3,4,1] x) => (float[N,5] y)"
        f"{{ t = Transpose<perm=[{perm}]>(x) f = Flatten(t) y = {layer} }}",
        V=rows,
        W=np.ascontiguousarray(rows.T),
    )
    check(PASS, model, "GlobalAveragePool Conv Flatten", exact=True)


@pytest.mark.parametrize("layer", ["Gemm<transB=1>(f, V)", "MatMul(f, W)"])
@pytest.mark.parametrize("turn", ["", "t = Transpose<perm=[0,2,3,1]>(x)"])
@pytest.mark.parametrize("place", [(0, 0, 0, 1), (4, 2, 1, 1), (2, 1, 0, 1)])
def test_one_pixel_that_differs_is_enough(layer: str, turn: str, place: tuple[int, ...]) -> None:
    weight = equal_pixels(5, 3, 2, 2)
    weight[place] = np.nextafter(weight[place], np.float32(9))
    order = (0, 2, 3, 1) if turn else (0, 1, 2, 3)
    rows = np.ascontiguousarray(weight.transpose(order)).reshape(5, -1)
    model = graph(
        f"(float[N,3,2,2] x) => (float[N,5] y) {{ {turn} f = Flatten({'t' if turn else 'x'})"
        f" [fc6] y = {layer} }}",
        V=rows,
        W=np.ascontiguousarray(rows.T),
    )
    check_refused(PASS, model, "'fc6' depend on the pixel (relative spread ")
    check_refused(PASS, model, "gemm-to-conv makes a 2x2 kernel of it")


def test_the_spread_is_measured() -> None:
    weight = np.array([[2, 2, 1, 2], [4, 4, 4, 4]], np.float32)
    model = graph(
        "(float[N,1,2,2] x) => (float[N,2] y) { f = Flatten(x) y = Gemm<transB=1>(f, W) }",
        W=weight,
    )
    check_refused(PASS, model, "(relative spread 0.5)")


def test_zeros_of_different_sign_are_different() -> None:
    model = graph(
        "(float[N,1,2,1] x) => (float[N,1] y) { f = Flatten(x) y = Gemm<transB=1>(f, W) }",
        W=np.array([[0.0, -0.0]], np.float32),
    )
    check_refused(PASS, model, "depend on the pixel (relative spread 0)")


def test_a_sum_that_float16_does_not_hold_is_refused() -> None:
    model = graph(
        "(float16[N,1,4,4] x) => (float16[N,2] y) { f = Flatten(x) y = Gemm<transB=1>(f, W) }",
        W=np.full((2, 16), 30000, np.float16),
    )
    check_refused(PASS, model, "overflows float16")


def test_a_map_of_unknown_size_is_refused() -> None:
    model = graph(
        "(float[N,3,h,w] x) => (float[N,4] y) { f = Flatten(x) y = Gemm(f, W) }", W=(12, 4)
    )
    check_refused(PASS, model, "the size of 'x', [N, 3, h, w], is not fixed")


def test_only_the_beginning_of_unequal_weights_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = wire.tensor_array

    def counting(tensor: onnx.TensorProto) -> Any:
        array = whole(tensor)
        read.append(array.nbytes)
        return array

    model = graph(
        "(float[N,256,7,7] x) => (float[N,512] y) { f = Flatten(x) y = Gemm<transB=1>(f, W) }",
        W=(512, 256 * 49),
    )
    monkeypatch.setattr(wire, "tensor_array", counting)
    check_refused(PASS, model, "gemm-to-conv makes a 7x7 kernel of it")
    assert sum(read) < 5e6  # of 26 MB


# ------------------------------------------------------------------------------ whole networks


def test_a_residual_network_with_gates() -> None:
    model = parsed(
        "(float[N,3,9,9] x) => (float[N,6] y) {"
        " a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, W1, b1) r = Relu(a)"
        " s = ReduceMean<axes=[2,3], keepdims=1>(r) c = Conv(s, G) h = HardSigmoid(c)"
        " m = Mul(r, h) n = Conv<pads=[1,1,1,1]>(m, W2, b2) e = Add(n, r) q = Relu(e)"
        " p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB=1>(f, V, v) }",
        W1=(4, 3, 3, 3),
        b1=(4,),
        G=(4, 4, 1, 1),
        W2=(4, 4, 3, 3),
        b2=(4,),
        V=(6, 4),
        v=(6,),
    )
    check(
        PASS,
        model,
        "Conv Relu ReduceMean Conv HardSigmoid Mul Conv Add Relu GlobalAveragePool"
        " Conv<kernel_shape=[1,1]> Flatten",
    )


def test_a_head_on_rows_and_one_on_a_map() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,5] y, float[N,4] z)"
        "{ p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, W)"
        " g = Flatten(x) z = Gemm(g, V) }",
        W=(3, 5),
        V=(12, 4),
    )
    both = [PASS, make("gemm-to-conv")]
    after = "GlobalAveragePool Conv<kernel_shape=[1,1]> Flatten Conv<kernel_shape=[2,2]> Flatten"
    check(both, model, after, exact=True)


MEANS = {
    "rows": ("a = ReduceMean<axes=[3], keepdims=0>(x) b = ReduceMean<axes=[2], keepdims=0>(a)", 1),
    "columns": ("a = ReduceMean<axes=[2], keepdims=0>(x) b = ReduceMean<axes=[-1], keepdims=0>(a)",
                1),
    "maxima": ("a = ReduceMax<axes=[3], keepdims=0>(x) b = ReduceMax<axes=[2], keepdims=0>(a)", 1),
    "a mean of maxima": (
        "a = ReduceMax<axes=[3], keepdims=0>(x) b = ReduceMean<axes=[2], keepdims=0>(a)", 2),
    "of other axes": (
        "a = ReduceMean<axes=[3], keepdims=0>(x) b = ReduceMean<axes=[1], keepdims=0>(a)", 1),
}  # fmt: skip


@pytest.mark.parametrize("means, left", MEANS.values(), ids=MEANS)
def test_a_mean_of_means_is_one(means: str, left: int) -> None:
    model = graph(
        f"(float[N,6,2,4] x) => (float[N,5] y) {{{means} y = MatMul(b, W)}}",
        W=integers(2 if "axes=[1]" in means else 6, 5),
    )
    result = check(PASS, model, exact=True)
    pools = [name for name in operators(result).split() if "Pool" in name or "Reduce" in name]
    assert len(pools) == left, pools


ONE_ROW = {
    "a signal": ("float[N,6,5]", [2], [2, 3], "GlobalAveragePool Conv Flatten"),
    "from the end": ("float[N,6,5]", [-1], [-1, -2], "GlobalAveragePool Conv Flatten"),
    "an image": ("float[N,6,2,4]", [3], [2, 3, 4], "GlobalAveragePool Conv Flatten"),
}


@pytest.mark.parametrize("kind, new, pooled, after", ONE_ROW.values(), ids=ONE_ROW)
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_signal_is_pooled_as_one(
    kind: str, new: list[int], pooled: list[int], after: str, op: str, opset: int
) -> None:
    held: dict[str, Any] = {"W": integers(6, 5)}
    unsqueeze, reduce = f"Unsqueeze<axes={new}>(x)", f"{op}<axes={pooled}>(u)"
    if opset >= 13:
        held["new"], unsqueeze = np.array(new, np.int64), "Unsqueeze(x, new)"
    if opset >= 18:
        held["pooled"], reduce = np.array(pooled, np.int64), f"{op}(u, pooled)"
    model = graph(
        f"({kind} x) => (float[N,5] y) {{u = {unsqueeze} m = {reduce} f = Flatten(m)"
        " y = MatMul(f, W)}".replace(" ,", ","),
        opset=opset,
        **held,
    )
    result = check(PASS, model, exact=op == "ReduceMax")
    found = operators(result).split()
    assert found[0] == ("GlobalAveragePool" if op == "ReduceMean" else "GlobalMaxPool")
    assert "Unsqueeze" not in found and len(found) == len(after.split())


@pytest.mark.parametrize(
    "body",
    [
        "u = Unsqueeze(x, two) m = ReduceMean<axes=[3]>(u)",  # the new axis stays
        "u = Unsqueeze(x, two) m = ReduceMean<axes=[2]>(u)",  # nothing else is pooled
    ],
)
def test_a_mean_that_is_not_over_the_new_axis_and_others_stays(body: str) -> None:
    model = graph(
        f"(float[N,6,4] x) => (float[N,5] y) {{{body} f = Flatten(m) y = MatMul(f, W)}}",
        two=np.array([2], np.int64),
        W=integers(6 if "[3]" in body else 24, 5),
    )
    _, applied = apply_to(PASS, model)
    assert "MeanOfOneRow" not in [rewrite.rule for rewrite in applied.rewrites]


def test_a_mean_that_others_read_stays() -> None:
    model = graph(
        "(float[N,6,2,4] x) => (float[N,5] y, float[N,6,2] z) {"
        "a = ReduceMean<axes=[3], keepdims=0>(x) b = ReduceMean<axes=[2], keepdims=0>(a)"
        " y = MatMul(b, W) z = Relu(a)}",
        W=integers(6, 5),
    )
    _, applied = apply_to(PASS, model)
    assert "MergeMeans" not in [rewrite.rule for rewrite in applied.rewrites]


@pytest.mark.parametrize("sizes, axes", [("4,2", [2, 3]), ("8", [-1]), ("2,2,2", [3, 2, 4])])
@pytest.mark.parametrize("layer", ["y = Gemm(a, W, b)", "y = Gemm<alpha=2.0>(a, W)"])
def test_a_sum_over_the_pixels_is_their_mean_times_their_number(
    sizes: str, axes: list[int], layer: str
) -> None:
    model = graph(
        f"(float[N,6,{sizes}] x) => (float[N,5] y) {{a = ReduceSum<keepdims=0>(x, axes) {layer}}}",
        W=integers(6, 5),
        axes=np.array(axes),
        **({"b": integers(5)} if ", b)" in layer else {}),
    )
    check(PASS, model, "GlobalAveragePool Conv Flatten", exact=True)


def test_a_sum_over_unknown_pixels_is_refused() -> None:
    model = graph(
        "(float[N,6,h,2] x) => (float[N,5] y) {a = ReduceSum<keepdims=0>(x, axes) y = Gemm(a, W)}",
        W=integers(6, 5),
        axes=np.array([2, 3]),
    )
    check_refused(PASS, model, "the size of 'x' is not fixed")


def test_sums_over_channels_are_left() -> None:
    model = graph(
        "(float[N,6,2] x) => (float[N,5] y) {a = ReduceSum<keepdims=0>(x, axes) y = Gemm(a, W)}",
        W=integers(2, 5),
        axes=np.array([1]),
    )
    check_untouched(PASS, model)


def test_a_second_run_finds_nothing() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,5] y)"
        "{ t = Transpose<perm=[0,2,3,1]>(x) f = ReduceMean<axes=[1,2], keepdims=0>(t)"
        " g = Gemm(f, W) r = Relu(g) y = Softmax(r) }",
        W=(3, 5),
    )
    once, _ = apply_to(PASS, model)
    check_operators(once, "GlobalAveragePool Conv Relu Softmax Flatten")
    check_untouched(PASS, once)


# -------------------------------------------------------------------------------- drawn ones


@st.composite
def pooled_heads(draw: st.DrawFn) -> onnx.ModelProto:
    """Any pooled form with any head, sizes whose number of pixels is a power of two."""
    sizes = [draw(st.integers(1, 4)), *draw(st.sampled_from([(2, 2), (1, 4), (2, 4), (1, 1)]))]
    outputs = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    form = draw(st.sampled_from(["mean", "max", "nhwc", "flat", "flat-nhwc"]))
    weight = rng.integers(-2, 3, (outputs, sizes[0])).astype(np.float32)
    keep = draw(st.sampled_from([0, 1]))
    if form in ("mean", "max"):
        reduce = {"mean": "ReduceMean", "max": "ReduceMax"}[form]
        lines = f"p = {reduce}<axes=[2,-1], keepdims={keep}>(x) f = Flatten(p)"
    elif form == "nhwc":
        lines = (
            "t = Transpose<perm=[0,2,3,1]>(x)"
            f" p = ReduceMean<axes=[1,2], keepdims={keep}>(t) f = Reshape(p, rest)"
        )
    else:
        spread = np.broadcast_to(weight[:, :, None, None], (outputs, *sizes))
        order = (0, 2, 3, 1) if form == "flat-nhwc" else (0, 1, 2, 3)
        weight = np.ascontiguousarray(spread.transpose(order)).reshape(outputs, -1)
        source = "t" if form == "flat-nhwc" else "x"
        turn = "t = Transpose<perm=[0,2,3,1]>(x)" if form == "flat-nhwc" else ""
        lines = f"{turn} f = Flatten({source})"
    head = draw(st.sampled_from(["Gemm<transB=1>(f, V, b)", "Gemm<beta=-1.0>(f, W, b)"]))
    held: dict[str, Any] = {
        "V": weight,
        "W": np.ascontiguousarray(weight.T),
        "b": rng.integers(-2, 3, outputs).astype(np.float32),
        "rest": np.array([0, -1]),
    }
    shown = ",".join(map(str, sizes))
    batch = draw(st.sampled_from(["N", "2"]))
    text = f"(float[{batch},{shown}] x) => (float[{batch},{outputs}] y) {{ {lines} y = {head} }}"
    return parsed(text, **held)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pooled_heads())
def test_drawn_heads(model: onnx.ModelProto) -> None:
    result, _ = apply_to(PASS, model)
    check_valid(model, result)
    check_equal(model, result, exact=True, seeds=(0,))
    assert not {"Gemm", "ReduceMean", "ReduceMax"} & set(operators(result).split())


def test_a_mean_that_drops_its_axes_costs_a_node_which_may_be_refused() -> None:
    text = """(float[N,4,5,6] x) => (float[N,3] y) {
        m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Gemm(m, w, b) }"""
    model = graph(text, opset=17, w=(4, 3), b=(3,))
    check(make("flatten-gemm-to-gap-conv"), model, "GlobalAveragePool Conv Flatten")
    check(make("flatten-gemm-to-gap-conv", {"grow": "false"}), model, "ReduceMean Gemm")
