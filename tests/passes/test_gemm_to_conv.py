"""gemm-to-conv: dense layers against their convolutions, in integers and equal to the bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpass.errors import UsageError
from graphpass.ir.model import Model
from graphpass.ir.proto_walk import all_nodes
from graphpass.rewrite.driver import apply
from graphpass.rewrite.registry import make
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
PASS = make("gemm-to-conv")
FEATURES = make("gemm-to-conv", {"target": "features"})


def graph(text: str, **given: Any) -> onnx.ModelProto:
    return parsed(text, exact=True, **given)


def integers(*shape: int, dtype: npt.DTypeLike = np.float32, seed: int = 3) -> Array:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def conv_weights(model: onnx.ModelProto) -> list[Array]:
    held = constants(model)
    return [held[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]


# ------------------------------------------------------------------------------ feature maps


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((3, 2, 2), "[2,2]"), ((2, 3, 1), "[3,1]"), ((4, 5), "[5]"), ((2, 2, 1, 3), "[2,1,3]")],
)
@pytest.mark.parametrize("batch", ["N", "1", "2"])
def test_a_layer_on_a_map_gets_a_kernel_as_large(
    shape: tuple[int, ...], kernel: str, batch: str
) -> None:
    sizes, row = ",".join(map(str, shape)), int(np.prod(shape))
    model = graph(
        f"(float[{batch},{sizes}] x) => (float[{batch},4] y)"
        "{ f = Flatten(x) y = Gemm<transB=1>(f, W, b) }",
        W=(4, row),
        b=(4,),
    )
    result = check(PASS, model, f"Conv<kernel_shape={kernel}> Flatten<axis=1>", exact=True)
    (weight,) = conv_weights(result)
    assert np.array_equal(weight, constants(model)["W"].reshape(4, *shape))


FLATTENS = {
    "flatten": "f = Flatten(x)",
    "flatten-negative-axis": "f = Flatten<axis=-3>(x)",
    "reshape-0--1": "f = Reshape(x, zero_rest)",
    "reshape--1-K": "f = Reshape(x, rest_row)",
    "reshape-0-K": "f = Reshape(x, zero_row)",
    "gather-scalar": "s = Shape(x) g = Gather<axis=0>(s, i0) u = Unsqueeze(g, a0)"
    " c = Concat<axis=0>(u, rest) f = Reshape(x, c)",
    "gather-list": "s = Shape(x) g = Gather<axis=0>(s, l0) c = Concat<axis=0>(g, rest)"
    " f = Reshape(x, c)",
    "slice": "s = Shape(x) g = Slice(s, l0, l1, l0) c = Concat<axis=0>(g, rest) f = Reshape(x, c)",
    "shape-of-another": "s = Shape<start=0, end=1>(z) q = Squeeze(s) p = Reshape(q, rest)"
    " c = Concat<axis=0>(p, row) f = Reshape<allowzero=1>(x, c)",
    "casts": "s = Shape(x) t = Cast<to=6>(s) g = Slice(t, l0, l1) q = Squeeze(g, l0)"
    " u = Unsqueeze(q, l0) r32 = Cast<to=6>(rest) c = Concat<axis=0>(u, r32)"
    " d = Cast<to=7>(c) f = Reshape(x, d)",
    "two-views": "v = Reshape(x, nhwc_like) f = Reshape(v, rest_row)",
    "unsqueeze-and-back": "v = Unsqueeze(x, l1) f = Flatten(v)",
    "unprovable-rows": "n = Abs(free) c = Concat<axis=0>(n, row) f = Reshape(x, c)",
}


@pytest.mark.parametrize("form", FLATTENS)
def test_every_way_to_write_flatten(form: str) -> None:
    text, inputs = FLATTENS[form], "float[N,3,2,2] z"
    if "free" in text:
        inputs += ", int64[1] free"
    model = graph(
        f"({inputs}) => (float[N,4] y) {{ x = Relu(z) {text} y = Gemm(f, W, b) }}",
        W=(12, 4),
        b=(4,),
        zero_rest=np.array([0, -1]),
        rest_row=np.array([-1, 12]),
        zero_row=np.array([0, 12]),
        i0=np.array(0),
        l0=np.array([0]),
        l1=np.array([1]),
        a0=np.array([0]),
        rest=np.array([-1]),
        row=np.array([12]),
        nhwc_like=np.array([-1, 1, 1, 12]),
    )
    result, _ = apply_to(PASS, model)
    check_operators(result, "Relu Conv<kernel_shape=[2,2]> Flatten")
    check_valid(model, result)
    if "free" not in text:
        check_equal(model, result, exact=True)


def test_a_fixed_batch_may_be_written_into_the_shape() -> None:
    model = graph(
        "(float[2,3,2,2] x) => (float[2,4] y) { f = Reshape(x, s) y = Gemm(f, W) }",
        W=(12, 4),
        s=np.array([2, -1]),
    )
    check(PASS, model, "Conv Flatten", exact=True)


@pytest.mark.parametrize(
    ("target", "row", "allowzero"),
    [([1, -1], 24, 0), ([-1, 6], 6, 0), ([4, -1], 6, 0), ([-1, 2], 2, 0), ([6, 4], 4, 0)],
)
def test_a_reshape_that_moves_the_batch_is_no_flatten(
    target: list[int], row: int, allowzero: int
) -> None:
    model = graph(
        "(float[2,3,2,2] x) => (float[M,4] y)"
        f"{{ f = Reshape<allowzero={allowzero}>(x, s) y = Gemm(f, W) }}",
        W=(row, 4),
        s=np.array(target),
    )
    check_refused(
        PASS, model, "are not images: Reshape of 'f' makes them of a tensor with more axes"
    )
    everything = make("gemm-to-conv", {"target": "all"})
    positions = target == [-1, 2]  # the rows are the pixels of a channel-last map
    after = "Transpose Conv Transpose Reshape" if positions else "Reshape Conv Flatten"
    check(everything, model, after, exact=True)


def test_with_a_symbolic_batch_one_row_for_all_images_is_no_flatten() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[1,4] y) { f = Reshape(x, s) y = Gemm(f, W) }",
        W=(12, 4),
        s=np.array([1, -1]),
    )
    check_refused(PASS, model, "are not images")


def test_with_allowzero_a_zero_is_no_copy() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[M,4] y) { f = Reshape<allowzero=1>(x, s) y = Gemm(f, W) }",
        W=(12, 4),
        s=np.array([0, 12]),
    )
    result, _ = apply_to(PASS, model)
    # it runs with no image only, and then it is a Flatten
    assert operators(result) in ("Conv Flatten", "Reshape Gemm")


def test_flatten_at_another_axis_is_left() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[M,4] y) { f = Flatten<axis=2>(x) y = Gemm(f, W) }", W=(4, 4)
    )
    check_refused(PASS, model, "are not images: Flatten of 'f'")


@pytest.mark.parametrize("squeeze", ["Squeeze(x, axes)", "Squeeze(x, negative)", "Flatten(x)"])
def test_squeezed_pixels(squeeze: str) -> None:
    model = graph(
        f"(float[N,5,1,1] x) => (float[N,4] y) {{ f = {squeeze} y = Gemm(f, W) }}",
        W=(5, 4),
        axes=np.array([2, 3]),
        negative=np.array([-1, -2]),
    )
    check(PASS, model, "Conv<kernel_shape=[1,1]> Flatten", exact=True)


def test_squeeze_without_axes_where_every_size_is_fixed() -> None:
    fixed = "(float[2,5,1,1] x) => (float[2,4] y) { f = Squeeze(x) y = MatMul(f, W) }"
    check(PASS, graph(fixed, W=(5, 4)), "Conv Flatten", exact=True)


@pytest.mark.parametrize(
    ("perm", "sizes"),
    [("0,2,3,1", "3,2,4"), ("0,3,2,1", "3,2,4"), ("0,1,3,2", "3,2,4"), ("0,2,1", "3,4")],
)
@pytest.mark.parametrize("layer", ["Gemm(f, W, b)", "Gemm<transB=1>(f, V, b)"])
def test_a_transpose_before_the_flatten_goes(perm: str, sizes: str, layer: str) -> None:
    row = int(np.prod([int(size) for size in sizes.split(",")]))
    model = graph(
        f"(float[N,{sizes}] x) => (float[N,5] y)"
        f"{{ t = Transpose<perm=[{perm}]>(x) f = Flatten(t) y = {layer} }}",
        W=(row, 5),
        V=(5, row),
        b=(5,),
    )
    result = check(PASS, model, "Conv Flatten", exact=True)
    (weight,) = conv_weights(result)
    assert weight.shape == (5, *(int(size) for size in sizes.split(",")))


def test_a_transpose_that_moves_the_batch_stays() -> None:
    model = graph(
        "(float[2,3,4,2] x) => (float[3,5] y)"
        "{ t = Transpose<perm=[1,0,2,3]>(x) f = Flatten(t) y = Gemm(f, W) }",
        W=(16, 5),
    )
    check(PASS, model, "Transpose Conv<kernel_shape=[4,2]> Flatten", exact=True)


def test_channels_that_a_transpose_makes_first_are_the_channels() -> None:
    model = graph(
        "(float[N,4,2,3] x) => (float[N,5] y)"
        "{ t = Transpose<perm=[0,3,1,2]>(x) f = Flatten(t) y = Gemm(f, W) }",
        W=(24, 5),
    )
    check(PASS, model, "Transpose Conv<kernel_shape=[4,2]> Flatten", exact=True)


def test_a_transpose_for_other_readers_stays() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,5] y, float[N,2,2,3] z)"
        "{ t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) y = Gemm(f, W) z = Neg(t) }",
        W=(12, 5),
    )
    check(PASS, model, "Transpose Conv Flatten Neg", exact=True)


def test_an_activation_between_transpose_and_flatten() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,5] y)"
        "{ t = Transpose<perm=[0,2,3,1]>(x) r = Relu(t) c = Clip(r, low, high) f = Flatten(c)"
        " y = Gemm(f, W) }",
        W=(12, 5),
        low=np.float32(1),
        high=np.float32(3),
    )
    check(PASS, model, "Relu Clip Conv<kernel_shape=[2,2]> Flatten", exact=True)


def test_a_map_of_unknown_size_is_refused() -> None:
    model = graph(
        "(float[N,3,h,w] x) => (float[N,4] y) { f = Flatten(x) y = Gemm(f, W) }", W=(12, 4)
    )
    check_refused(PASS, model, "the size of 'x', [N, 3, h, w], is not fixed")


@pytest.mark.parametrize("map_, perm", [("3,h,2", ""), ("3,2,w", ""), ("2,w,3", "[0,3,1,2]")])
def test_one_unknown_size_follows_from_the_weights(map_: str, perm: str) -> None:
    turn = f"t = Transpose<perm={perm}>(x)" if perm else "t = Relu(x)"
    model = graph(
        f"(float[N,{map_}] x) => (float[N,4] y) {{ {turn} f = Flatten(t) y = Gemm(f, W) }}",
        W=(12, 4),
    )
    after = "Transpose Conv Flatten" if perm else "Relu Conv<kernel_shape=[2,2]> Flatten"
    check(PASS, model, after, exact=True, dims={"N": 3, "h": 2, "w": 2})


def test_a_size_that_weights_do_not_fit_is_refused() -> None:
    model = graph(
        "(float[N,5,h,1] x) => (float[N,4] y) { f = Flatten(x) y = Gemm(f, W) }", W=(12, 4)
    )
    check_refused(PASS, model, "the size of 'x', [N, 5, h, 1], is not fixed")


def test_a_map_of_unknown_rank_is_refused() -> None:
    model = graph(
        "(float[N,12] x, int64[k] s) => (float[N,4] y)"
        "{ r = Reshape(x, s) f = Flatten(r) y = Gemm(f, W) }",
        W=(12, 4),
    )
    check_refused(PASS, model, "the shape of 'r' is not known")


def test_four_spatial_axes_are_refused() -> None:
    model = graph(
        "(float[N,3,2,1,1,2] x) => (float[N,4] y) { f = Flatten(x) y = Gemm(f, W) }", W=(12, 4)
    )
    check_refused(PASS, model, "'x' has 4 spatial axes, a Conv at most 3")


# ------------------------------------------------------------------------ the layer itself


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("alpha", ["1.0", "-2.0", "0.5", "0.0"])
@pytest.mark.parametrize("beta", ["1.0", "4.0", "0.0"])
@pytest.mark.parametrize("shape", ["", "4", "1,4", "1", "1,1"])
def test_gemm(trans_b: int, alpha: str, beta: str, shape: str) -> None:
    sizes = [int(size) for size in shape.split(",")] if shape else []
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        f"{{ f = Flatten(x) y = Gemm<transB={trans_b}, alpha={alpha}, beta={beta}>(f, W, b) }}",
        W=integers(4, 12) if trans_b else integers(12, 4),
        b=integers(*sizes),
    )
    check(PASS, model, "Conv Flatten", exact=True)


@pytest.mark.parametrize(("batch", "shape"), [("3", (3, 1)), ("3", (3, 4))])
@pytest.mark.parametrize("beta", ["1.0", "2.0"])
def test_a_bias_for_each_image_is_added_after(
    batch: str, shape: tuple[int, int], beta: str
) -> None:
    model = graph(
        f"(float[{batch},3,2,2] x) => (float[{batch},4] y)"
        f"{{ f = Flatten(x) y = Gemm<beta={beta}>(f, W, b) }}",
        W=(12, 4),
        b=shape,
    )
    check(PASS, model, "Conv Flatten Add", exact=True)


@pytest.mark.parametrize(("beta", "after"), [("1.0", "Add"), ("2.0", "Mul Add"), ("0.0", "")])
def test_a_bias_known_at_run_time_is_added_after(beta: str, after: str) -> None:
    model = graph(
        "(float[N,3,2,2] x, float[4] b) => (float[N,4] y)"
        f"{{ f = Flatten(x) y = Gemm<beta={beta}>(f, W, b) }}",
        W=(12, 4),
    )
    result, _ = apply_to(PASS, model)
    assert sorted(operators(result).split()) == sorted(f"Conv Flatten {after}".split())
    check_valid(model, result)
    check_equal(model, result, exact=True)


def test_an_overridable_bias_stays_overridable() -> None:
    model = graph(
        "(float[N,12] x, float[4] b) => (float[N,4] y) { y = Gemm(x, W, b) }", W=(12, 4), b=(4,)
    )
    result = check(PASS, model, "Unsqueeze Conv Flatten Add", exact=True)
    feed = {"x": integers(2, 12), "b": integers(4, seed=9)}
    check_equal(model, result, exact=True, inputs=feed)


@pytest.mark.parametrize("add", ["Add(m, b)", "Add(b, m)"])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (), (1,)])
def test_matmul_with_its_bias(add: str, shape: tuple[int, ...]) -> None:
    model = graph(
        f"(float[N,3,2,2] x) => (float[N,4] y) {{ f = Flatten(x) m = MatMul(f, W) y = {add} }}",
        W=(12, 4),
        b=integers(*shape),
    )
    result = check(PASS, model, "Conv Flatten", exact=True)
    assert len(result.graph.node[0].input) == 3


def test_matmul_alone() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y) { f = Flatten(x) y = MatMul(f, W) }", W=(12, 4)
    )
    result = check(PASS, model, "Conv Flatten", exact=True)
    assert len(result.graph.node[0].input) == 2


@pytest.mark.parametrize(
    ("shape", "added"),
    [("3,1", "3,4"), ("3,4", "3,4"), ("1,1,4", "1,3,4"), ("2,1,1", "2,3,4")],
)
def test_an_add_that_is_no_bias_stays(shape: str, added: str) -> None:
    model = graph(
        f"(float[3,3,2,2] x) => (float[{added}] y)"
        "{ f = Flatten(x) m = MatMul(f, W) y = Add(m, b) }",
        W=(12, 4),
        b=integers(*(int(size) for size in shape.split(","))),
    )
    check(PASS, model, "Conv Flatten Add", exact=True)


def test_an_add_after_a_product_that_others_read_stays() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y, float[N,4] z)"
        "{ f = Flatten(x) m = MatMul(f, W) y = Add(m, b) z = Neg(m) }",
        W=(12, 4),
        b=(4,),
    )
    result, _ = apply_to(PASS, model)
    check_valid(model, result)
    check_equal(model, result, exact=True)
    assert "MatMul" not in operators(result) and operators(result).count("Conv") == 1


def test_an_add_of_two_products() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        "{ f = Flatten(x) m = MatMul(f, W) n = MatMul(f, V) y = Add(m, n) }",
        W=(12, 4),
        V=(12, 4),
    )
    check(PASS, model, "Conv Conv Add Flatten", exact=True)


def test_transposed_input() -> None:
    model = graph(
        "(float[12,N] x) => (float[N,4] y) { y = Gemm<transA=1>(x, W, b) }", W=(12, 4), b=(4,)
    )
    check(PASS, model, "Transpose<perm=[1,0]> Unsqueeze Conv Flatten", exact=True)


def test_a_transposed_flatten_is_no_map() -> None:
    model = graph(
        "(float[3,2,2] x) => (float[4,5] y) { f = Flatten(x) y = Gemm<transA=1>(f, W) }", W=(3, 5)
    )
    result = check(PASS, model, exact=True)
    assert "Gemm" not in operators(result)


def test_one_output() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,1] y) { f = Flatten(x) y = Gemm(f, W, b) }",
        W=(12, 1),
        b=(1,),
    )
    check(PASS, model, "Conv Flatten", exact=True)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 19, 20, 21, 22])
def test_every_opset(opset: int) -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,5] y)"
        "{ f = Flatten(x) g = Gemm(f, W, b) r = Relu(g) h = Gemm<transB=1>(r, V, c)"
        " y = Softmax<axis=1>(h) }",
        opset=opset,
        ir_version=8 if opset < 19 else 10,
        W=(12, 4),
        b=(4,),
        V=(5, 4),
        c=(5,),
    )
    check(PASS, model, "Conv Relu Conv Softmax<axis=1> Flatten")


@pytest.mark.parametrize("opset", [7, 12, 13, 21])
def test_plain_rows(opset: int) -> None:
    model = graph(
        "(float[N,12] x) => (float[N,4] y) { y = Gemm(x, W, b) }",
        opset=opset,
        ir_version=8 if opset < 19 else 10,
        W=(12, 4),
        b=(4,),
    )
    check(PASS, model, "Unsqueeze Conv<kernel_shape=[1,1]> Flatten", exact=True)


def test_plain_rows_are_left_where_only_features_are_asked_for() -> None:
    model = graph("(float[N,12] x) => (float[N,4] y) { y = Gemm(x, W) }", W=(12, 4))
    check_untouched(FEATURES, model)


def test_layers_after_a_map_belong_to_its_head() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        "{ f = Flatten(x) g = Gemm(f, W) r = Relu(g) d = Dropout(r) y = Gemm(d, V) }",
        W=(12, 5),
        V=(5, 4),
    )
    check(FEATURES, model, "Conv Relu Dropout Conv Flatten", exact=True)


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(UsageError, match="one of dense, features, all, not 'everything'"):
        make("gemm-to-conv", {"target": "everything"})


def test_float16() -> None:
    model = graph(
        "(float16[N,3,2,2] x) => (float16[N,4] y)"
        "{ f = Flatten(x) g = Gemm<alpha=2.0>(f, W, b) r = Relu(g) y = Gemm(r, V) }",
        W=integers(12, 5, dtype=np.float16) / 2,
        b=integers(5, dtype=np.float16),
        V=integers(5, 4, dtype=np.float16) / 4,
    )
    result = check(PASS, model, "Conv Relu Conv Flatten", exact=True)
    assert {weight.dtype for weight in conv_weights(result)} == {np.dtype(np.float16)}


def test_a_float16_weight_that_alpha_overflows_is_refused() -> None:
    model = graph(
        "(float16[N,3,2,2] x) => (float16[N,4] y) { f = Flatten(x) y = Gemm<alpha=100.0>(f, W) }",
        W=np.full((12, 4), 1000, np.float16),
    )
    check_refused(PASS, model, "overflows float16")


def test_a_float16_bias_that_beta_overflows_is_refused() -> None:
    model = graph(
        "(float16[N,3,2,2] x) => (float16[N,4] y){ f = Flatten(x) y = Gemm<beta=100.0>(f, W, b) }",
        W=integers(12, 4, dtype=np.float16),
        b=np.full(4, 1000, np.float16),
    )
    check_refused(PASS, model, "would overflow float16")


def test_bfloat16_where_there_is_a_conv_of_it() -> None:
    text = "(bfloat16[N,3,2,2] x) => (bfloat16[N,4] y) { f = Flatten(x) y = Gemm(f, W) }"
    weight = integers(12, 4).astype(ml_dtypes.bfloat16)
    new = graph(text, opset=22, ir_version=10, W=weight)
    result, _ = apply_to(PASS, new)
    check_operators(result, "Conv Flatten")
    check_valid(new, result)
    old = graph(text, opset=21, ir_version=10, W=weight)
    check_refused(PASS, old, "in opset 21 there is no Conv of bfloat16 numbers")


@pytest.mark.parametrize(
    ("kind", "dtype", "reason"),
    [
        ("double", np.float64, "ONNX Runtime has no Conv of double numbers"),
        ("int32", np.int32, "there is no Conv of int32 numbers"),
    ],
)
def test_types_without_a_conv_are_refused(kind: str, dtype: Any, reason: str) -> None:
    model = graph(
        f"({kind}[N,3,2,2] x) => ({kind}[N,4] y) {{ f = Flatten(x) y = MatMul(f, W) }}",
        W=integers(12, 4, dtype=dtype),
    )
    check_refused(PASS, model, reason)


def test_gemm_before_opset_7_is_refused() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y) { f = Flatten(x) y = Gemm<broadcast=1>(f, W, b) }",
        opset=6,
        W=(12, 4),
        b=(4,),
    )
    check_refused(PASS, model, "broadcasts by attributes, as before opset 7")


def test_a_computed_weight_is_refused() -> None:
    model = graph(
        "(float[N,3,2,2] x, float[12,4] w) => (float[N,4] y)"
        "{ f = Flatten(x) [head] y = Gemm(f, w) }"
    )
    check_refused(PASS, model, "the weight of Gemm 'head', 'w', is not a constant")


@pytest.mark.parametrize("layer", ["Gemm(f, w)", "MatMul(f, w)"])
def test_an_overridable_weight_is_refused(layer: str) -> None:
    model = graph(
        f"(float[N,3,2,2] x, float[12,4] w) => (float[N,4] y) {{ f = Flatten(x) y = {layer} }}",
        w=(12, 4),
    )
    check_refused(PASS, model, "'w' may be overridden at run time (it is also a graph input)")


def test_products_of_stacks_are_left() -> None:
    model = graph(
        "(float[N,T,12] x, float[N,12,T] k) => (float[N,T,4] y, float[N,T,T] z)"
        "{ m = MatMul(x, W) y = Add(m, b) z = MatMul(x, k) }",
        W=(12, 4),
        b=(4,),
    )
    _, applied = apply_to(PASS, model)
    assert len(applied.refusals) == 2 and not applied.rewrites


def test_rows_of_unknown_rank_are_refused() -> None:
    model = graph(
        "(float[N,12] x, int64[k] s) => (float y) { r = Reshape(x, s) y = MatMul(r, W) }",
        W=(12, 4),
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    check_refused(PASS, model, "the rank of 'r' is not known")


def test_the_positions_of_a_sequence_are_left() -> None:
    model = graph(
        "(float[N,T,12] x) => (float[M,4] y)"
        "{ r = Reshape(x, s) g = Gemm(r, W, b) e = Gelu(g) y = Gemm(e, V) }",
        opset=20,
        ir_version=9,
        W=(12, 5),
        b=(5,),
        V=(5, 4),
        s=np.array([-1, 12]),
    )
    _, applied = apply_to(PASS, model)
    assert len(applied.refusals) == 2 and not applied.rewrites
    assert all("are not images: Reshape of 'r'" in refusal.reason for refusal in applied.refusals)


@pytest.mark.parametrize("output", ["h", ", h"])
def test_the_steps_of_a_recurrent_layer_are_left_its_last_state_is_not(output: str) -> None:
    axes = [6, 1, "N", 4] if output == "h" else [1, "N", 4]
    perm = list(range(len(axes)))
    perm.insert(0, perm.pop(axes.index("N")))
    model = graph(
        "(float[6,N,3] x) => (float[N,2] y) {"
        f"{output} = LSTM<hidden_size=4>(x, W, R) t = Transpose<perm={perm}>(h)"
        " r = Relu(t) f = Flatten(r) y = Gemm(f, V) }",
        W=(1, 16, 3),
        R=(1, 16, 4),
        V=(24 if output == "h" else 4, 2),
    )
    if output == "h":
        check_refused(PASS, model, "the steps of a sequence: LSTM of 'h' makes them")
        everything = make("gemm-to-conv", {"target": "all"})
        check(everything, model, "LSTM Transpose Relu Conv Flatten")
    else:
        check(PASS, model, "LSTM Transpose Relu Conv Flatten")


CELL = """(float[5,N,3] x, float[N,4] h) => (float[N,4] y) {{
    y = Loop <body = g (int64 i, bool on, float[N,4] s) => (bool go, float[N,4] t) {{
        go = Identity(on) e = Gather<axis=0>(x, i) {body} }}> (five, , h)
}}"""


@pytest.mark.parametrize(
    "body",
    ["a = Gemm(e, V) t = Add(a, s)", "r = Relu(s) a = Gemm(r, R) t = Add(a, s)"],
    ids=["the element of a trip", "the state"],
)
def test_the_cell_of_a_loop_is_left(body: str) -> None:
    """As tf2onnx writes the GRU of Keras: as Conv it takes 2.3 times as long."""
    model = graph(CELL.format(body=body), five=np.array(5), V=(3, 4), R=(4, 4))
    check_refused(PASS, model, "are not images, but steps: Gemm of 'a' runs in each trip of a loop")
    everything = apply_to(make("gemm-to-conv", {"target": "all"}), model)[0]
    assert "Conv" in {node.op_type for node in all_nodes(everything)}


def test_the_head_of_each_frame_is_converted_in_a_loop() -> None:
    text = """(float[5,1,2,4,4] x, float[1,3] h) => (float[1,3] y) {
        y = Loop <body = g (int64 i, bool on, float[1,3] s) => (bool go, float[1,3] t) {
            go = Identity(on) e = Gather<axis=0>(x, i) c = Conv(e, W) r = Relu(c) f = Flatten(r)
            a = Gemm(f, V) t = Add(a, s) }> (five, , h)
    }"""
    model = graph(text, five=np.array(5), W=(2, 2, 3, 3), V=(8, 3))
    result = apply_to(PASS, model)[0]
    assert [node.op_type for node in all_nodes(result)].count("Conv") == 2
    check_equal(model, result)


def test_a_chain_of_refused_layers_is_refused_to_its_end() -> None:
    layers = " ".join(f"h{i + 1} = MatMul(h{i}, W)" for i in range(1100))
    model = graph(
        "(float[N,T,2] x) => (float[M,2] h1100) { h0 = Reshape(x, s) " + layers + " }",
        W=(2, 2),
        s=np.array([-1, 2]),
    )
    _, applied = apply_to(PASS, model)
    assert len(applied.refusals) == 1100 and not applied.rewrites


def test_operators_of_another_domain_are_not_taken_for_layers() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y) { f = Flatten(x) y = other.Gemm(f, W) }",
        domains={"other": 1},
        W=(12, 4),
    )
    check_untouched(PASS, model)


# ------------------------------------------------------------------------- several readers


def test_every_head_on_one_flatten() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y, float[N,2] z, float[N,1] v)"
        "{ f = Flatten(x) y = Gemm(f, W, b) z = MatMul(f, V) m = MatMul(f, U) v = Add(m, c) }",
        W=(12, 4),
        b=(4,),
        V=(12, 2),
        U=(12, 1),
        c=(1,),
    )
    check(PASS, model, "Conv Flatten Conv Flatten Conv Flatten", exact=True)


def test_a_flatten_that_others_read_stays_for_them() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y, float[N,12] f) { f = Flatten(x) y = Gemm(f, W) }",
        W=(12, 4),
    )
    check(PASS, model, "Flatten Conv Flatten", exact=True)


def test_two_layers_with_one_weight_still_share_it() -> None:
    model = graph(
        "(float[N,3,8,8] p, float[N,3,8,8] q) => (float[N,40] y, float[N,40] z)"
        "{ f = Flatten(p) y = Gemm<transB=1>(f, W) g = Flatten(q) z = Gemm<transB=1>(g, W) }",
        W=(40, 192),
    )
    result = check(PASS, model, "Conv Flatten Conv Flatten", exact=True)
    assert len(result.graph.initializer) == 1


def test_a_weight_that_others_read_stays_as_it_is() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y, float[12,4] z)"
        "{ f = Flatten(x) y = Gemm(f, W) z = Neg(W) }",
        W=(12, 4),
    )
    check(PASS, model, "Conv Flatten Neg", exact=True)


def test_names_stay_apart() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y, float[N,12] z)"
        "{ [flat] f = Flatten(x) [fc] y = Gemm(f, W) [neg] z = Neg(f) }",
        W=(12, 4),
    )
    result = check(PASS, model, exact=True)
    names = [node.name for node in result.graph.node]
    assert len(set(names)) == len(names) and {"flat", "fc", "neg"} <= set(names)


# -------------------------------------------------------------------- what follows a layer


@pytest.mark.parametrize(
    "f",
    [
        "Relu(g)",
        "LeakyRelu<alpha=0.5>(g)",
        "Clip(g, low, high)",
        "Clip(g, , high)",
        "Neg(g)",
        "Identity(g)",
        "Dropout(g)",
        "Dropout(g, ratio, off)",
        "PRelu(g, c)",
        "PRelu(g, c2)",
        "PRelu(g, low)",
        "Mul(g, c)",
        "Mul(c2, g)",
        "Add(g, c)",
        "Sub(g, c)",
        "Sub(c, g)",
        "Sub(low, g)",
        "Div(g, two)",
        "Max(g, c)",
        "Min(c, g)",
        "Mul(g, g)",
        "BatchNormalization<epsilon=0.25>(g, c, c, c, var)",
    ],
)
def test_the_flatten_sinks(f: str) -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,2] y)"
        f"{{ p = Flatten(x) g = Gemm(p, W, b) h = {f} y = Gemm(h, V) }}",
        W=(12, 4),
        b=(4,),
        V=(4, 2),
        c=integers(4),
        c2=integers(1, 4),
        low=np.float32(-2),
        high=np.float32(6),
        two=np.array([[2]], np.float32),
        ratio=np.float32(0.5),
        off=np.array(False),
        var=np.array([3.75, 0.75, 15.75, 0.75], np.float32),
    )
    name = f.split("(")[0].split("<")[0]
    check(PASS, model, f"Conv {name} Conv Flatten", exact=True)


@pytest.mark.parametrize(
    ("f", "opset"),
    [
        ("Sigmoid(g)", 17),
        ("Tanh(g)", 17),
        ("HardSwish(g)", 17),
        ("HardSigmoid(g)", 17),
        ("Elu(g)", 17),
        ("Selu(g)", 17),
        ("Softplus(g)", 17),
        ("Erf(g)", 17),
        ("Gelu(g)", 20),
        ("Mish(g)", 20),
    ],
)
def test_the_flatten_sinks_through_smooth_functions(f: str, opset: int) -> None:
    model = parsed(
        "(float[N,3,2,2] x) => (float[N,2] y)"
        f"{{ p = Flatten(x) g = Gemm(p, W, b) h = {f} y = Gemm(h, V) }}",
        opset=opset,
        ir_version=9,
        W=(12, 4),
        b=(4,),
        V=(4, 2),
    )
    check(PASS, model, f"Conv {f.split('(')[0]} Conv Flatten")


@pytest.mark.parametrize("f", ["Add(g, c)", "Mul(c, g)", "PRelu(g, c)", "Relu(g)", "Dropout(g)"])
def test_the_flatten_of_a_map_sinks_towards_a_layer(f: str) -> None:
    model = graph(
        f"(float[N,3,2,2] x) => (float[N,4] y) {{ g = Flatten(x) h = {f} y = Gemm(h, W) }}",
        W=(12, 4),
        c=integers(12),
    )
    check(PASS, model, f"{f.split('(')[0]} Conv<kernel_shape=[2,2]> Flatten", exact=True)


@pytest.mark.parametrize(
    ("f", "batch"),
    [
        ("Add(g, rows)", "2"),
        ("Mul(g, column)", "2"),
        ("Add(g, cube)", "2"),
        ("Add(g, z)", "N"),
        ("Softmax<axis=0>(g)", "N"),
        ("PRelu(c2, g)", "1"),
        ("LayerNormalization(g, c)", "N"),
        ("CumSum(g, axis1)", "N"),
    ],
)
def test_the_flatten_stays_above_what_mixes_rows_or_images(f: str, batch: str) -> None:
    shape = "1,2,4" if "cube" in f else f"{batch},4"
    model = graph(
        f"(float[{batch},3,2,2] x, float[4] z) => (float[{shape}] y)"
        f"{{ p = Flatten(x) g = Gemm(p, W, b) y = {f} }}",
        W=(12, 4),
        b=(4,),
        rows=integers(2, 4),
        column=integers(2, 1),
        cube=integers(1, 2, 4),
        c=integers(4),
        c2=integers(1, 4),
        axis1=np.array(1),
    )
    result = check(PASS, model)
    assert operators(result) == f"Conv Flatten {f.split('(')[0].split('<')[0]}"


def test_a_column_is_not_taken_for_channels_where_the_numbers_fit() -> None:
    model = graph(
        "(float[4,3,2,2] x) => (float[4,4] y)"
        "{ p = Flatten(x) g = Gemm(p, W, b) y = Mul(g, column) }",
        W=(12, 4),
        b=(4,),
        column=integers(4, 1),
    )
    check(PASS, model, "Conv Flatten Mul", exact=True)


def test_dropout_in_training_stays() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        "{ p = Flatten(x) g = Gemm(p, W) y = Dropout(g, ratio, on) }",
        W=(12, 4),
        ratio=np.float32(0.5),
        on=np.array(True),
    )
    result, _ = apply_to(PASS, model)
    assert operators(result) == "Conv Flatten Dropout"


def test_a_mask_of_dropout_that_is_used_stays() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y, bool[N,4] mask)"
        "{ p = Flatten(x) g = Gemm(p, W) y, mask = Dropout(g) }",
        W=(12, 4),
    )
    check(PASS, model, "Conv Flatten Dropout", exact=True)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(
    ("opset", "attributes"),
    [(7, ""), (9, "<axis=1>"), (11, "<axis=-1>"), (12, ""), (13, ""), (13, "<axis=1>"), (21, "")],
)
def test_softmax_over_classes_moves_to_axis_1(op: str, opset: int, attributes: str) -> None:
    model = parsed(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        f"{{ f = Flatten(x) g = Gemm(f, W, b) y = {op}{attributes}(g) }}",
        opset=opset,
        ir_version=8 if opset < 19 else 10,
        W=(12, 4),
        b=(4,),
    )
    check(PASS, model, f"Conv {op}<axis=1> Flatten")


def test_a_batch_normalization_that_gives_statistics_stays_behind_the_flatten() -> None:
    model = graph(
        "(float[2,3,4,4] x) => (float[2,5] y) {c = Conv(x, W) f = Flatten(c)"
        " b, bm, bv, sm, sv = BatchNormalization(f, s, s, s, s) y = Gemm(b, V)}",
        opset=12,
        W=integers(6, 3, 4, 4),
        V=integers(6, 5),
        s=np.ones(6, np.float32),
    )
    result, _ = apply_to(PASS, model)
    assert operators(result).startswith("Conv Flatten BatchNormalization")


@pytest.mark.parametrize("opset", [12, 13])
def test_softmax_over_images_stays(opset: int) -> None:
    model = parsed(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        "{ f = Flatten(x) g = Gemm(f, W) y = Softmax<axis=0>(g) }",
        opset=opset,
        W=(12, 4),
    )
    check(PASS, model, "Conv Flatten Softmax<axis=0>")


def test_a_norm_over_the_features_moves_to_axis_1() -> None:
    model = parsed(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        "{ f = Flatten(x) g = Gemm(f, W, b) y = LpNormalization(g) }",
        W=(12, 4),
        b=(4,),
    )
    check(PASS, model, "Conv LpNormalization<axis=1> Flatten")


def test_a_network_without_layers_is_left_alone() -> None:
    model = graph(
        "(float[N,3,4,4] x) => (float[N,4] y)"
        "{ c = Conv(x, W) p = GlobalAveragePool(c) f = Flatten(p) r = Relu(f) y = Softmax(r) }",
        W=(4, 3, 3, 3),
    )
    check_untouched(PASS, model)


@pytest.mark.parametrize("view", ["Unsqueeze(s, axes)", "Reshape(s, same)", "Reshape(s, rest)"])
def test_a_gate_gets_its_map_back(view: str) -> None:
    model = parsed(
        "(float[N,3,4,4] x) => (float[N,3,4,4] y)"
        "{ p = GlobalAveragePool(x) f = Flatten(p) g = Gemm(f, W, b) r = Relu(g) h = Gemm(r, V, c)"
        f" s = Sigmoid(h) u = {view} y = Mul(x, u) }}",
        W=(3, 2),
        b=(2,),
        V=(2, 3),
        c=(3,),
        axes=np.array([2, 3]),
        same=np.array([0, 3, 1, 1]),
        rest=np.array([-1, 3, 1, 1]),
    )
    check(PASS, model, "GlobalAveragePool Conv Relu Conv Sigmoid Mul")


def test_a_view_of_another_shape_is_not_the_map() -> None:
    model = graph(
        "(float[N,4,1,1] x) => (float[N,2,2,1] y)"
        "{ f = Flatten(x) g = Gemm(f, W) y = Reshape(g, other) }",
        W=(4, 4),
        other=np.array([0, 2, 2, 1]),
    )
    check(PASS, model, "Conv Flatten Reshape", exact=True)


def test_two_branches_join_as_maps() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,2] y)"
        "{ f = Flatten(x) g = Gemm(f, W, b) r = Relu(g) h = Gemm(r, U) a = Add(h, r)"
        " y = Gemm(a, V) }",
        W=(12, 4),
        b=(4,),
        U=(4, 4),
        V=(4, 2),
    )
    check(PASS, model, "Conv Relu Conv Add Conv Flatten", exact=True)


# --------------------------------------------------------------------------- whole networks


def test_alexnet() -> None:
    model = parsed(
        "(float[N,3,31,31] x) => (float[N,7] y) {"
        " c1 = Conv<strides=[2,2], pads=[2,2,2,2]>(x, W1, b1) r1 = Relu(c1)"
        " n1 = LRN<size=5>(r1) p1 = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(n1)"
        " c2 = Conv<group=2, pads=[1,1,1,1]>(p1, W2, b2) r2 = Relu(c2)"
        " p2 = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(r2)"
        " f = Flatten(p2) g6 = Gemm<transB=1>(f, W6, b6) r6 = Relu(g6) d6 = Dropout(r6)"
        " g7 = Gemm<transB=1>(d6, W7, b7) r7 = Relu(g7) d7 = Dropout(r7)"
        " g8 = Gemm<transB=1>(d7, W8, b8) y = Softmax(g8) }",
        opset=12,
        W1=(6, 3, 5, 5),
        b1=(6,),
        W2=(8, 3, 3, 3),
        b2=(8,),
        W6=(16, 8 * 4 * 4),
        b6=(16,),
        W7=(16, 16),
        b7=(16,),
        W8=(7, 16),
        b8=(7,),
    )
    check(
        [make("clean-up"), PASS],
        model,
        "Conv Relu LRN MaxPool Conv Relu MaxPool"
        " Conv<kernel_shape=[4,4]> Relu Conv Relu Conv Softmax<axis=1> Flatten",
    )


def vgg_bn() -> onnx.ModelProto:
    """VGG16 with BatchNormalization: its 13 Conv blocks with few channels, on 32x32."""
    widths = [2, 2, 0, 3, 3, 0, 4, 4, 4, 0, 5, 5, 5, 0, 5, 5, 5, 0]
    lines: list[str] = []
    held: dict[str, Any] = {}
    last, depth, channels = "x", 0, 3
    rng = np.random.default_rng(0)
    for width in widths:
        depth += 1
        if width == 0:
            lines.append(f"p{depth} = MaxPool<kernel_shape=[2,2], strides=[2,2]>({last})")
            last = f"p{depth}"
            continue
        held[f"W{depth}"] = rng.normal(0, 0.3, (width, channels, 3, 3)).astype(np.float32)
        for part in ("b", "s", "o", "m"):
            held[f"{part}{depth}"] = rng.normal(size=width).astype(np.float32)
        held[f"v{depth}"] = rng.uniform(0.5, 2, width).astype(np.float32)
        lines.append(f"c{depth} = Conv<pads=[1,1,1,1]>({last}, W{depth}, b{depth})")
        lines.append(
            f"n{depth} = BatchNormalization(c{depth}, s{depth}, o{depth}, m{depth}, v{depth})"
        )
        lines.append(f"a{depth} = Relu(n{depth})")
        last, channels = f"a{depth}", width
    for layer, (inputs, outputs) in enumerate([(5, 8), (8, 8), (8, 10)], start=6):
        held[f"F{layer}"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
        held[f"f{layer}"] = rng.normal(size=outputs).astype(np.float32)
    head = (
        f"i = Identity({last}) f = Flatten(i) g6 = Gemm<transB=1>(f, F6, f6) r6 = Relu(g6)"
        " d6 = Dropout(r6) g7 = Gemm<transB=1>(d6, F7, f7) r7 = Relu(g7) d7 = Dropout(r7)"
        " y = Gemm<transB=1>(d7, F8, f8)"
    )
    return parsed(f"(float[N,3,32,32] x) => (float[N,10] y) {{ {' '.join(lines)} {head} }}", **held)


def test_vgg16_with_batch_normalization() -> None:
    steps = [make(name) for name in ("clean-up", "fold-batchnorm", "gemm-to-conv")]
    result = check(steps, vgg_bn())
    count = {op: operators(result).split().count(op) for op in set(operators(result).split())}
    assert count == {"Conv": 16, "Relu": 15, "MaxPool": 5, "Flatten": 1}


def test_a_second_run_finds_nothing() -> None:
    once, _ = apply_to(PASS, vgg_bn())
    check_untouched(PASS, once)


def test_two_runs_give_the_same_bytes() -> None:
    first, _ = apply_to(PASS, vgg_bn())
    second, _ = apply_to(PASS, vgg_bn())
    assert first.SerializeToString() == second.SerializeToString()


def test_a_large_weight_is_not_read() -> None:
    model = parsed(
        "(float[N,64,7,7] x) => (float[N,256] y) { f = Flatten(x) y = Gemm<transB=1>(f, W) }",
        W=(256, 64 * 49),
    )
    loaded = Model.load(model)
    before = loaded.graph.initializers[0].weight.tensor
    apply(PASS, loaded)
    (weight,) = loaded.proto.graph.initializer
    assert before is not None and list(weight.dims) == [256, 64, 7, 7]
    assert weight.external_data == before.external_data


def test_inside_bodies_and_with_tensors_of_outer_graphs() -> None:
    model = graph(
        "(float[N,3,2,2] x, bool p) => (float[N,4] y) {"
        " f = Flatten(x) y = If(p) <"
        " then_branch = t () => (float[N,4] a) { a = Gemm(f, W) },"
        " else_branch = e () => (float[N,4] d) { v = Relu(x) h = Flatten(v) d = Gemm(h, W) }> }",
        W=(12, 4),
    )
    result, applied = apply_to(PASS, model)
    check_valid(model, result)
    for flag in (True, False):
        feed = {"x": integers(2, 3, 2, 2), "p": np.array(flag)}
        check_equal(model, result, exact=True, inputs=feed)
    assert {rewrite.rule for rewrite in applied.rewrites} == {"DenseOnFeatureMap", "DenseOnRows"}


# -------------------------------------------------------------------------------- drawn ones


@st.composite
def heads(draw: st.DrawFn) -> onnx.ModelProto:
    """A head of one to three layers in any of the forms, in small integers."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    batch = draw(st.sampled_from(["N", "1", "2"]))
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    held: dict[str, Any] = {"rest": np.array([0, -1])}
    lines, last = [], "x"
    if len(sizes) == 3 and draw(st.booleans()):
        order = draw(st.permutations([1, 2, 3]))
        lines.append(f"t = Transpose<perm=[0,{','.join(map(str, order))}]>({last})")
        last = "t"
    flatten = draw(st.sampled_from(["Flatten({})", "Reshape({}, rest)"]))
    lines.append(f"f = {flatten.format(last)}")
    last, width = "f", int(np.prod(sizes))
    for index in range(draw(st.integers(1, 3))):
        outputs = draw(st.integers(1, 4))
        form = draw(st.sampled_from(["Gemm", "Gemm<transB=1>", "MatMul", "MatMul+Add"]))
        shape = (outputs, width) if "transB" in form else (width, outputs)
        held[f"W{index}"] = rng.integers(-1, 2, shape).astype(np.float32)
        bias = draw(st.sampled_from([(outputs,), (1, outputs), (1,), ()]))
        held[f"b{index}"] = rng.integers(-2, 3, bias).astype(np.float32)
        if form == "MatMul":
            lines.append(f"g{index} = MatMul({last}, W{index})")
        elif form == "MatMul+Add":
            lines.append(f"m{index} = MatMul({last}, W{index}) g{index} = Add(b{index}, m{index})")
        else:
            factors = draw(st.sampled_from(["", "alpha=2.0", "alpha=-1.0, beta=2.0", "beta=0.0"]))
            inner = ", ".join(filter(None, ["transB=1" if "transB" in form else "", factors]))
            written = f"Gemm<{inner}>" if inner else "Gemm"
            lines.append(f"g{index} = {written}({last}, W{index}, b{index})")
        last, width = f"g{index}", outputs
        held[f"c{index}"] = rng.integers(-2, 3, (1, width)).astype(np.float32)
        after = draw(
            st.sampled_from(["", "Relu({})", "Add({}, {c})", "Mul({c}, {})", "PRelu({}, {c})"])
        )
        if after:
            lines.append(f"a{index} = " + after.format(last, c=f"c{index}"))
            last = f"a{index}"
    lines.append(f"y = Neg({last})")
    shown = ",".join(map(str, sizes))
    text = f"(float[{batch},{shown}] x) => (float[{batch},{width}] y) {{ {' '.join(lines)} }}"
    return parsed(text, **held)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(heads())
def test_drawn_heads(model: onnx.ModelProto) -> None:
    result, _ = apply_to(PASS, model)
    check_valid(model, result)
    check_equal(model, result, exact=True, seeds=(0,))
    assert not {"Gemm", "MatMul"} & set(operators(result).split())
    kinds = operators(result).split()
    assert "Flatten" not in kinds[: len(kinds) - 2]
