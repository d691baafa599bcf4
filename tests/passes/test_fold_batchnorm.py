"""fold-batchnorm: before ⇒ after, in integers that float32 holds exactly, equal to the bit.

Weights and inputs are small integers; variance + epsilon is a power of four, so that its root is
a power of two. A wrong axis, a forgotten epsilon or a mixed-up group has no tolerance to hide in.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_equal,
    check_refused,
    check_untouched,
    operators,
)
from graphpass.testing import graph as parsed

Array = npt.NDArray[Any]
FOLD = make("fold-batchnorm")
NORM = "BatchNormalization<epsilon=0.25>"


def graph(text: str, **given: Any) -> onnx.ModelProto:
    """As `graphpass.testing.graph`; outputs of unknown rank, `float[] y`, get what is inferred."""
    model = parsed(text, **given)
    found = onnx.shape_inference.infer_shapes(model).graph.output
    for value, inferred in zip(model.graph.output, found, strict=True):
        value.CopyFrom(inferred)
    return model


def op(name: str, attributes: str) -> str:
    return f"{name}<{attributes}>" if attributes else name


def cycle(values: list[float], count: int, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.resize(np.array(values), count).astype(dtype)


def norm(channels: int, dtype: npt.DTypeLike = np.float32) -> dict[str, Any]:
    """The parameters s, o, m, v of a BatchNormalization whose arithmetic is exact."""
    return {
        "s": cycle([1, -2, 4, 8, -1], channels, dtype),
        "o": cycle([3, -1, 0, 2], channels, dtype),
        "m": cycle([-2, 1, 4], channels, dtype),
        "v": cycle([3.75, 0.75, 15.75], channels, dtype),
    }


def integers(*shape: int, seed: int = 7, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def operand(model: onnx.ModelProto, op: str, index: int) -> Array:
    """The constant that the only `op` of the model has at input `index`."""
    (node,) = [node for node in model.graph.node if node.op_type == op]
    return initializers(model)[node.input[index]]


# ------------------------------------------------------------------ Conv, then BatchNormalization

CONVS = {
    "1d": ("N,4,9", (6, 4, 3), ""),
    "2d": ("N,4,7,6", (6, 4, 3, 2), ""),
    "3d": ("N,2,5,4,4", (3, 2, 2, 2, 2), ""),
    "pointwise": ("N,4,5,5", (6, 4, 1, 1), ""),
    "groups": ("N,4,6,6", (6, 2, 3, 3), "group=2"),
    "depthwise": ("N,4,6,6", (4, 1, 3, 3), "group=4"),
    "multiplied depthwise": ("N,3,6,6", (6, 1, 3, 3), "group=3"),
    "pads": ("N,4,6,6", (6, 4, 3, 3), "pads=[1,0,2,1]"),
    "strides and dilations": ("N,4,9,9", (6, 4, 3, 3), "strides=[2,1], dilations=[1,2]"),
    "auto_pad same": ("N,4,6,7", (6, 4, 3, 3), 'auto_pad="SAME_UPPER", strides=[2,2]'),
    "auto_pad valid": ("N,4,6,7", (6, 4, 3, 3), 'auto_pad="VALID"'),
    "kernel_shape": ("N,4,6,7", (6, 4, 3, 3), "kernel_shape=[3,3]"),
    "square": ("N,6,6,6", (6, 6, 3, 3), "pads=[1,1,1,1]"),
}


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("shape, weight, attributes", CONVS.values(), ids=CONVS)
def test_conv(shape: str, weight: tuple[int, ...], attributes: str, bias: str) -> None:
    model = graph(
        f"(float[{shape}] x) => (float[] y)"
        f"{{c = {op('Conv', attributes)}(x, W{bias}) y = {NORM}(c, s, o, m, v)}}",
        W=integers(*weight),
        **({"b": integers(weight[0])} if bias else {}),
        **norm(weight[0]),
    )
    result = check(FOLD, model, op("Conv", attributes.replace('"', "")), exact=True)
    assert len(result.graph.initializer) == 2  # the weight, the bias and nothing else


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 21])
def test_every_form_of_batch_normalization(opset: int) -> None:
    model = graph(
        f"(float[N,2,4,4] x) => (float[N,3,2,2] y){{c = Conv(x, W) y = {NORM}(c, s, o, m, v)}}",
        opset=opset,
        W=integers(3, 2, 3, 3),
        **norm(3),
    )
    check(FOLD, model, "Conv", exact=True)


def test_epsilon_has_the_default_of_the_schema() -> None:
    model = graph(
        "(float[N,2,4,4] x) => (float[N,3,2,2] y)"
        "{c = Conv(x, W) y = BatchNormalization(c, s, o, m, v)}",
        W=(3, 2, 3, 3),
        **{**norm(3), "v": np.full(3, 1e-5, np.float32)},
    )
    result = check(FOLD, model, "Conv")
    ratio = operand(result, "Conv", 1) / initializers(model)["W"]
    np.testing.assert_allclose(ratio[0], 1 / np.sqrt(2e-5), rtol=1e-6)


TRANSPOSED = {
    "plain": ("N,4,5,5", (4, 6, 3, 3), ""),
    "square": ("N,4,5,5", (4, 4, 3, 3), ""),
    "1d": ("N,4,5", (4, 6, 3), "strides=[2]"),
    "3d": ("N,2,3,3,3", (2, 3, 2, 2, 2), ""),
    "groups": ("N,4,5,5", (4, 3, 3, 3), "group=2"),
    "depthwise": ("N,4,5,5", (4, 1, 3, 3), "group=4"),
    "padded": ("N,4,5,5", (4, 6, 3, 3), "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]"),
}


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("shape, weight, attributes", TRANSPOSED.values(), ids=TRANSPOSED)
def test_conv_transpose(shape: str, weight: tuple[int, ...], attributes: str, bias: str) -> None:
    groups = {"group=2": 2, "group=4": 4}.get(attributes, 1)
    channels = weight[1] * groups
    model = graph(
        f"(float[{shape}] x) => (float[] y)"
        f"{{c = {op('ConvTranspose', attributes)}(x, W{bias}) y = {NORM}(c, s, o, m, v)}}",
        W=integers(*weight),
        **({"b": integers(channels)} if bias else {}),
        **norm(channels),
    )
    check(FOLD, model, op("ConvTranspose", attributes), exact=True)


# ------------------------------------------------------------------------------- Gemm and MatMul


@pytest.mark.parametrize("attributes", ["", "alpha=0.5, beta=2.0", "beta=0.0", "alpha=2.0"])
@pytest.mark.parametrize("c", [None, (), (1,), (6,), (1, 6), (1, 1), (3, 1), (3, 6)])
@pytest.mark.parametrize("trans", ["", "transB=1", "transA=1", "transA=1, transB=1"])
def test_gemm(trans: str, c: tuple[int, ...] | None, attributes: str) -> None:
    listed = ", ".join(filter(None, [trans, attributes]))
    model = graph(
        f"(float[{'4,3' if 'transA' in trans else '3,4'}] x) => (float[3,6] y)"
        f"{{g = {op('Gemm', listed)}(x, W{'' if c is None else ', C'}) y = {NORM}(g, s, o, m, v)}}",
        W=integers(*((6, 4) if "transB" in trans else (4, 6))),
        **({} if c is None else {"C": integers(*c)}),
        **norm(6),
    )
    check(FOLD, model, "Gemm", exact=True, dims={}, seeds=[0])


def test_gemm_ignores_a_bias_that_beta_takes_away() -> None:
    model = graph(
        f"(float[N,4] x) => (float[N,6] y)"
        f"{{g = Gemm<beta=0.0>(x, W, C) y = {NORM}(g, s, o, m, v)}}",
        W=integers(4, 6),
        C=np.full(6, np.nan, np.float32),
        **norm(6),
    )
    check(FOLD, model, "Gemm", exact=True)


def test_matmul_gets_a_sum_behind_it() -> None:
    model = graph(
        f"(float[N,4] x) => (float[N,6] y) {{g = MatMul(x, W) y = {NORM}(g, s, o, m, v)}}",
        W=integers(4, 6),
        **norm(6),
    )
    check(FOLD, model, "MatMul Add", exact=True)


@pytest.mark.parametrize(
    "shape, weight, c",
    [
        ("N,4", (4, 6), (6,)),
        ("N,5,4", (4, 6), (1, 6)),
        ("N,5,4", (4, 6), (1, 1, 6)),
        ("N,2,6,4", (4, 6), (6,)),
        ("N,6,4", (4, 6), ()),
        ("2,5,4", (2, 4, 6), (6,)),
        ("4", (4, 6), (6,)),
    ],
)
def test_matmul_scaled(shape: str, weight: tuple[int, ...], c: tuple[int, ...]) -> None:
    model = graph(
        f"(float[{shape}] x) => (float[] y) {{g = MatMul(x, W) y = Mul(g, c)}}",
        W=integers(*weight),
        c=integers(*c),
    )
    check(FOLD, model, "MatMul", exact=True)


@pytest.mark.parametrize("chain, after", [
    ("g = MatMul(x, W) h = Add(g, b) y = Mul(h, c)", "MatMul Add"),
    ("g = MatMul(x, W) h = Add(b, g) y = Mul(c, h)", "MatMul Add"),
    ("g = MatMul(x, W) h = Sub(g, b) y = Sub(h, c)", "MatMul Add"),
    ("g = MatMul(x, W) h = Sub(b, g) y = Sub(c, h)", "MatMul Add"),
    ("g = MatMul(x, W) h = Add(g, b) y = Sub(h, b)", "MatMul"),
    ("g = MatMul(x, W) h = Mul(g, c) i = Add(h, b) j = Mul(i, c) y = Add(j, b)", "MatMul Add"),
])  # fmt: skip
def test_matmul_and_sum(chain: str, after: str) -> None:
    model = graph(
        f"(float[N,5,4] x) => (float[N,5,6] y) {{{chain}}}",
        W=integers(4, 6),
        b=integers(6, seed=1),
        c=integers(1, 6, seed=2),
    )
    check(FOLD, model, after, exact=True)


def test_matmul_and_sum_then_batch_normalization() -> None:
    model = graph(
        f"(float[N,4] x) => (float[N,6] y)"
        f"{{g = MatMul(x, W) h = Add(g, b) y = {NORM}(h, s, o, m, v)}}",
        W=integers(4, 6),
        b=integers(6),
        **norm(6),
    )
    check(FOLD, model, "MatMul Add", exact=True)


@pytest.mark.parametrize("chain, after", [
    ("g = MatMul(W, x) y = Mul(g, c)", "MatMul"),
    ("g = MatMul(W, x) h = Add(g, b) y = Mul(h, c)", "MatMul Add"),
    (f"g = MatMul(W, x) y = {NORM}(g, s, o, m, v)", "MatMul Add"),
])  # fmt: skip
def test_constant_on_the_left(chain: str, after: str) -> None:
    model = graph(
        f"(float[N,4,6] x) => (float[N,6,6] y) {{{chain}}}",
        W=integers(6, 4),
        b=integers(6, 1, seed=1),
        c=integers(6, 1, seed=2),
        **norm(6),
    )
    check(FOLD, model, after, exact=True)


# ------------------------------------------------------------------------------ decomposed forms


@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "step",
    ["Mul(a, c)", "Mul(c, a)", "Add(a, c)", "Add(c, a)", "Sub(a, c)", "Sub(c, a)", "Div(a, d)"],
)
def test_one_operator_behind_conv(step: str, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    model = graph(
        f"(float[N,2,6,6] x) => (float[N,6,4,4] y) {{a = Conv(x, W, b) y = {step}}}",
        W=integers(6, 2, 3, 3),
        b=integers(6),
        c=cycle([3, -2, 0, 1, 5, -1], size).reshape(shape),
        d=cycle([2, -1, 4, 0.5, -8, 1], size).reshape(shape),
    )
    check(FOLD, model, "Conv", exact=True, dims={}, seeds=[0])


def test_chain_of_all_operators() -> None:
    model = graph(
        "(float[N,2,6,6] x) => (float[N,6,4,4] y)"
        "{a = Conv(x, W) e = Sub(a, c) f = Div(e, d) g = Mul(c, f) h = Add(g, c)"
        " i = Sub(c, h) y = Mul(i, d)}",
        W=integers(6, 2, 3, 3),
        c=cycle([3, -2, 0, 1, 5, -1], 6).reshape(6, 1, 1),
        d=cycle([2, -1, 4, 0.5, -8, 1], 6).reshape(6, 1, 1),
    )
    result = check(FOLD, model, "Conv", exact=True)
    assert len(result.graph.initializer) == 2


@pytest.mark.parametrize(
    "channels_last",
    ["e = Mul(t, c) y = Add(e, c)", "n = Mul(c, t) y = Sub(c, n)"],
)
def test_behind_a_transpose(channels_last: str) -> None:
    model = graph(
        "(float[N,6,6,2] x) => (float[N,4,4,6] y)"
        "{u = Transpose<perm=[0,3,1,2]>(x) a = Conv(u, W)"
        f" t = Transpose<perm=[0,2,3,1]>(a) {channels_last}}}",
        W=integers(6, 2, 3, 3),
        c=integers(6),
    )
    check(FOLD, model, "Transpose Conv Transpose<perm=[0,2,3,1]>", exact=True)


def test_behind_a_transpose_that_reverses() -> None:
    model = graph(
        "(float[2,3,6,6] x) => (float[4,4,4,2] y) {a = Conv(x, W) t = Transpose(a) y = Mul(t, c)}",
        W=integers(4, 3, 3, 3),
        c=integers(4, 1),
    )
    check(FOLD, model, "Conv Transpose", exact=True)


def test_batch_normalization_of_the_last_axis() -> None:
    """torch: Linear, then BatchNorm1d over its features, between two transposes."""
    model = graph(
        "(float[N,5,4] x) => (float[N,5,6] y)"
        "{a = MatMul(x, W) t = Transpose<perm=[0,2,1]>(a)"
        f" n = {NORM}(t, s, o, m, v) y = Transpose<perm=[0,2,1]>(n)}}",
        W=integers(4, 6),
        **norm(6),
    )
    check(FOLD, model, "MatMul Add Transpose Transpose", exact=True)


@pytest.mark.parametrize("noise", ["Identity", "Cast<to=1>"])
def test_behind_noise(noise: str) -> None:
    model = graph(
        "(float[N,2,6,6] x) => (float[N,6,4,4] y)"
        f"{{a = Conv(x, W) t = {noise}(a) y = {NORM}(t, s, o, m, v)}}",
        W=integers(6, 2, 3, 3),
        **norm(6),
    )
    check(FOLD, model, "Conv", exact=True)


# --------------------------------------------------------------------------------------- forward

UNPADDED = {
    "plain": ("N,4,6,6", (6, 4, 3, 3), ""),
    "1d": ("N,4,9", (6, 4, 3), ""),
    "3d": ("N,2,4,4,4", (3, 2, 2, 2, 2), ""),
    "zero pads": ("N,4,6,6", (6, 4, 3, 3), "pads=[0,0,0,0]"),
    "groups": ("N,4,6,6", (6, 2, 3, 3), "group=2"),
    "depthwise": ("N,4,6,6", (4, 1, 3, 3), "group=4"),
    "multiplied depthwise": ("N,4,6,6", (8, 1, 3, 3), "group=4"),
    "strides": ("N,4,7,7", (6, 4, 3, 3), "strides=[2,2], dilations=[2,1]"),
    "valid": ("N,4,6,6", (6, 4, 3, 3), 'auto_pad="VALID"'),
    "same that pads nothing": ("N,4,6,6", (6, 4, 1, 1), 'auto_pad="SAME_UPPER", strides=[2,2]'),
    "same by size": ("N,4,6,8", (6, 4, 2, 2), 'auto_pad="SAME_LOWER", strides=[2,2]'),
}


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("shape, weight, attributes", UNPADDED.values(), ids=UNPADDED)
def test_before_conv(shape: str, weight: tuple[int, ...], attributes: str, bias: str) -> None:
    channels = int(shape.split(",")[1])
    model = graph(
        f"(float[{shape}] x) => (float[] y)"
        f"{{n = {NORM}(x, s, o, m, v) y = {op('Conv', attributes)}(n, W{bias})}}",
        W=integers(*weight),
        **({"b": integers(weight[0])} if bias else {}),
        **norm(channels),
    )
    check(FOLD, model, op("Conv", attributes.replace('"', "")), exact=True)


@pytest.mark.parametrize("group", [1, 2])
def test_scale_before_a_padded_conv(group: int) -> None:
    model = graph(
        "(float[N,4,6,6] x) => (float[N,6,6,6] y)"
        f"{{n = Mul(x, c) y = Conv<pads=[1,1,1,1], group={group}>(n, W, b)}}",
        W=integers(6, 4 // group, 3, 3),
        b=integers(6),
        c=integers(4, 1, 1),
    )
    check(FOLD, model, "Conv", exact=True)


@pytest.mark.parametrize("group, weight", [(1, (4, 6, 3, 3)), (2, (4, 3, 3, 3))])
def test_scale_before_conv_transpose(group: int, weight: tuple[int, ...]) -> None:
    model = graph(
        "(float[N,4,5,5] x) => (float[] y)"
        f"{{n = Mul(x, c) y = ConvTranspose<group={group}>(n, W)}}",
        W=integers(*weight),
        c=integers(4, 1, 1),
    )
    check(FOLD, model, "ConvTranspose", exact=True)


def test_shift_before_conv_transpose() -> None:
    model = graph(
        "(float[N,4,5,5] x) => (float[N,6,7,7] y) {n = Add(x, c) y = ConvTranspose(n, W)}",
        W=integers(4, 6, 3, 3),
        c=np.ones((4, 1, 1), np.float32),
    )
    check_refused(FOLD, model, "near its edges ConvTranspose of 'y' adds up fewer weights")


@pytest.mark.parametrize("chain", ["n = Sub(x, c) k = Div(n, d)", "k = Sub(c, x)"])
def test_input_normalization_through_a_transpose(chain: str) -> None:
    model = graph(
        f"(float[N,6,6,4] x) => (float[N,6,4,4] y)"
        f"{{{chain} t = Transpose<perm=[0,3,1,2]>(k) y = Conv(t, W)}}",
        W=integers(6, 4, 3, 3),
        c=integers(4),
        d=cycle([2, -1, 0.5, 4], 4),
    )
    check(FOLD, model, "Transpose Conv", exact=True)


@pytest.mark.parametrize("noise", ["Identity", "Cast<to=1>"])
def test_before_conv_through_noise(noise: str) -> None:
    model = graph(
        f"(float[N,4,6,6] x) => (float[N,6,4,4] y) {{n = Mul(x, c) t = {noise}(n) y = Conv(t, W)}}",
        W=integers(6, 4, 3, 3),
        c=integers(4, 1, 1),
    )
    check(FOLD, model, "Conv", exact=True)


def test_refused_before_a_cast_that_changes_the_type() -> None:
    model = graph(
        "(float16[N,4,6,6] x) => (float[N,6,4,4] y)"
        "{n = Mul(x, c) t = Cast<to=1>(n) y = Conv(t, W)}",
        W=integers(6, 4, 3, 3),
        c=integers(4, 1, 1, dtype=np.float16),
    )
    check_refused(FOLD, model, "Cast of 't' changes the type")


@pytest.mark.parametrize("attributes", ["", "alpha=0.5, beta=2.0", "transB=1", "beta=0.0"])
@pytest.mark.parametrize("c", [None, (), (6,), (2, 1), (2, 6)])
def test_before_gemm(c: tuple[int, ...] | None, attributes: str) -> None:
    model = graph(
        f"(float[2,4] x) => (float[2,6] y) {{n = {NORM}(x, s, o, m, v)"
        f" y = {op('Gemm', attributes)}(n, W{'' if c is None else ', C'})}}",
        W=integers(*((6, 4) if "transB" in attributes else (4, 6))),
        **({} if c is None else {"C": integers(*c)}),
        **norm(4),
    )
    check(FOLD, model, "Gemm", exact=True, dims={}, seeds=[0])


def test_before_a_gemm_that_transposes_its_input() -> None:
    model = graph(
        "(float[4,3] x) => (float[3,6] y){n = Mul(x, c) k = Add(c, n) y = Gemm<transA=1>(k, W, b)}",
        W=integers(4, 6),
        b=integers(6),
        c=integers(4, 1),
    )
    check(FOLD, model, "Gemm<transA=1>", exact=True)


def test_batch_normalization_before_a_gemm_that_transposes_its_input() -> None:
    model = graph(
        f"(float[4,4] x) => (float[4,6] y){{n = {NORM}(x, s, o, m, v) y = Gemm<transA=1>(n, W)}}",
        W=integers(4, 6),
        **norm(4),
    )
    check_refused(FOLD, model, "normalizes axis 1, but the channels of the input of Gemm of 'y'")


def test_before_every_reader() -> None:
    readers = " ".join(f"y{k} = MatMul(n, W{k})" for k in range(5))
    outputs = ", ".join(f"float[N,{k + 2}] y{k}" for k in range(5))
    model = graph(
        f"(float[N,4] x) => ({outputs}) {{r = Relu(x) k = Mul(r, c) n = Add(k, b) {readers}}}",
        c=integers(4, seed=1),
        b=np.array([1, 0, -2, 3], np.float32),
        **{f"W{k}": integers(4, k + 2, seed=k) for k in range(5)},
    )
    check(FOLD, model, "Relu " + " ".join(["MatMul Add"] * 5), exact=True)


def test_before_readers_of_different_kinds() -> None:
    model = graph(
        f"(float[N,4] x) => (float[N,6] y, float[N,5] z)"
        f"{{r = Relu(x) n = {NORM}(r, s, o, m, v)"
        " y = Gemm<transB=1>(n, W, b) p = MatMul(n, V) z = Add(p, d)}",
        W=integers(6, 4),
        V=integers(4, 5),
        b=integers(6),
        d=integers(5),
        **norm(4),
    )
    check(FOLD, model, "Relu Gemm MatMul Add", exact=True)


def test_one_weight_for_several_readers() -> None:
    """Each reader gets its own copy; the weight stays for those that are not folded."""
    model = graph(
        f"(float[N,4,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] z)"
        f"{{a = Conv(x, W) y = {NORM}(a, s, o, m, v) b = Conv(x, W) z = Relu(b)}}",
        W=integers(4, 4, 3, 3),
        **norm(4),
    )
    result = check(FOLD, model, "Conv Conv Relu", exact=True)
    first, second = (node.input[1] for node in result.graph.node if node.op_type == "Conv")
    assert first != second == "W"


def test_backward_comes_before_forward() -> None:
    model = graph(
        f"(float[N,4,9,9] x) => (float[N,6,5,5] y)"
        f"{{a = Conv(x, W) n = {NORM}(a, s, o, m, v) y = Conv(n, V)}}",
        W=integers(4, 4, 3, 3),
        V=integers(6, 4, 3, 3),
        **norm(4),
    )
    result = check(FOLD, model, "Conv Conv", exact=True)
    assert result.graph.node[1].input[1] == "V"


def test_the_sum_behind_a_matmul_is_at_home() -> None:
    model = graph(
        "(float[N,4] x) => (float[N,5] y) {a = MatMul(x, W) n = Add(a, b) y = MatMul(n, V)}",
        W=integers(4, 6),
        b=integers(6),
        V=integers(6, 5),
    )
    check_untouched(FOLD, model)


@pytest.mark.parametrize("model", [
    "(float[N,4] x) => (float[N,5] y) {a = MatMul(x, W) n = Mul(a, b) k = Add(n, b)"
    " y = MatMul(k, V)}",
    "(float[N,4] x) => (float[N,5] y) {a = MatMul(x, W) n = Add(a, b) k = Relu(n) l = Mul(k, b)"
    " y = MatMul(l, V)}",
])  # fmt: skip
def test_a_second_run_finds_nothing(model: str) -> None:
    before = graph(model, W=integers(4, 6), b=integers(6), V=integers(6, 5))
    result = check(FOLD, before, exact=True)
    assert result != before
    check_untouched(FOLD, result)


# ------------------------------------------------------------------ what is in the weights' place


def quantized(
    linear: str = "Conv(x, w)", shape: str = "N,4,6,6", opset: int = 13, **constants: Any
) -> onnx.ModelProto:
    zero = ", zero" if "zero" in constants else ""
    axis = "<axis=0>" if constants["step"].ndim else ""
    model = graph(
        f"(float[{shape}] x) => (float[] y)"
        f"{{w = DequantizeLinear{axis}(levels, step{zero}) a = {linear} y = Mul(a, c)}}",
        opset=opset,
        **constants,
    )
    return model


LEVELS = np.random.default_rng(3).integers(-9, 9, (6, 4, 3, 3)).astype(np.int8)
POSITIVE = cycle([2, 4, 0.5, 1, 8, 0.25], 6)


@pytest.mark.parametrize("zero", [None, 3])
@pytest.mark.parametrize("step", [np.float32(0.5), cycle([0.5, 1, 2], 6)], ids=["one", "six"])
def test_quantized_weight(step: Array, zero: int | None) -> None:
    constants: dict[str, Any] = {"levels": LEVELS, "step": np.asarray(step)}
    if zero is not None:
        constants["zero"] = np.full(np.shape(step), zero, np.int8)
    constants["c"] = POSITIVE.reshape(6, 1, 1)
    result = check(FOLD, quantized(**constants), "DequantizeLinear<axis=0> Conv", exact=True)
    assert (operand(result, "DequantizeLinear", 0) == LEVELS).all()


def test_quantized_weight_of_one_step_keeps_it_under_one_factor() -> None:
    model = quantized(levels=LEVELS, step=np.array(0.5, np.float32), c=np.float32(4), opset=10)
    result = check(FOLD, model, "DequantizeLinear Conv", exact=True)
    assert operand(result, "DequantizeLinear", 1).shape == ()


def test_quantized_weight_and_bias() -> None:
    model = graph(
        "(float[N,4,6,6] x) => (float[N,6,4,4] y)"
        "{w = DequantizeLinear(levels, step) b = DequantizeLinear(bias, step, zero)"
        f" a = Conv(x, w, b) y = {NORM}(a, s, o, m, v)}}",
        levels=LEVELS,
        step=np.float32(0.5),
        bias=np.arange(6, dtype=np.uint8),
        zero=np.uint8(2),
        **{**norm(6), "s": POSITIVE},
    )
    check(FOLD, model, "DequantizeLinear Conv", exact=True)


@pytest.mark.parametrize("linear, shape, levels, after", [
    ("Gemm<transB=1, beta=0.5>(x, w, b)", "N,4", (6, 4), "DequantizeLinear<axis=0> Gemm"),
    ("Gemm(x, w)", "N,4", (4, 6), "DequantizeLinear<axis=1> Gemm"),
    ("MatMul(x, w)", "N,5,4", (4, 6), "DequantizeLinear<axis=1> MatMul"),
    ("ConvTranspose(x, w)", "N,4,5,5", (4, 6, 3, 3), "DequantizeLinear<axis=1> ConvTranspose"),
])  # fmt: skip
def test_quantized_weight_of(linear: str, shape: str, levels: Any, after: str) -> None:
    model = quantized(
        linear,
        shape,
        levels=np.resize(LEVELS, levels),
        step=np.array(0.5, np.float32),
        b=integers(6),
        c=POSITIVE.reshape(6, 1, 1) if "Conv" in linear else POSITIVE,
    )
    check(FOLD, model, after, exact=True)


def test_quantized_weight_that_others_read_too() -> None:
    model = graph(
        "(float[N,4,6,6] x) => (float[N,6,4,4] y, float[N,6,4,4] z)"
        "{w = DequantizeLinear(levels, step) a = Conv(x, w) y = Mul(a, c) z = Conv(x, w)}",
        levels=LEVELS,
        step=np.float32(0.5),
        c=POSITIVE.reshape(6, 1, 1),
    )
    check(FOLD, model, "DequantizeLinear DequantizeLinear Conv Conv", exact=True)


def test_quantized_weight_of_another_type_than_its_step() -> None:
    model = graph(
        "(float16[N,4,6,6] x) => (float16[N,6,4,4] y)"
        "{w = DequantizeLinear<output_dtype=10>(levels, step) a = Conv(x, w) y = Mul(a, c)}",
        opset=23,
        levels=LEVELS,
        step=np.float32(0.5),
        c=POSITIVE.reshape(6, 1, 1).astype(np.float16),
    )
    check_refused(FOLD, model, "DequantizeLinear of 'w' may give another type than its step has")


def test_the_sum_behind_a_quantized_matmul_is_at_home() -> None:
    model = graph(
        "(float[N,4] x) => (float[N,6] y)"
        "{w = DequantizeLinear(levels, step) a = MatMul(x, w) y = Add(a, c)}",
        levels=np.resize(LEVELS, (4, 6)),
        step=np.float32(0.5),
        c=POSITIVE,
    )
    check_untouched(FOLD, model)


@pytest.mark.parametrize("changes, reason", [
    ({"c": -POSITIVE.reshape(6, 1, 1)}, "would get a step that is not positive"),
    ({"c": 0 * POSITIVE.reshape(6, 1, 1)}, "would get a step that is not positive"),
    ({"opset": 10}, "DequantizeLinear of 'w' can have one step only"),
    ({"c": 1e-38 * POSITIVE.reshape(6, 1, 1)}, "loses its digits"),
    ({"c": np.float32(3e38)}, "would overflow float32"),
    (
        {"linear": "ConvTranspose<group=2>(x, w)", "levels": LEVELS.reshape(4, 3, 3, 6)},
        "has no step for each group of ConvTranspose",
    ),
    (
        {"linear": "ConvTranspose(x, w)", "levels": LEVELS.reshape(4, 6, 3, 3),
         "step": cycle([1, 2], 4)},
        "the steps of DequantizeLinear of 'w' are not one for each output channel",
    ),
])  # fmt: skip
def test_quantized_refusals(changes: dict[str, Any], reason: str) -> None:
    given = {"levels": LEVELS, "step": np.array(2, np.float32), "c": POSITIVE.reshape(6, 1, 1)}
    check_refused(FOLD, quantized(**{**given, **changes}), reason)


# ------------------------------------------------------------------------------------ other types


def test_float16() -> None:
    model = graph(
        f"(float16[N,4,6,6] x) => (float16[N,6,4,4] y)"
        f"{{a = Conv(x, W, b) y = {NORM}(a, s, o, m, v)}}",
        W=integers(6, 4, 3, 3, dtype=np.float16),
        b=integers(6, dtype=np.float16),
        **norm(6, np.float16),
    )
    check(FOLD, model, "Conv", exact=True)


def test_float16_with_float32_statistics() -> None:
    model = graph(
        f"(float16[N,4,6,6] x) => (float16[N,6,4,4] y){{a = Conv(x, W) y = {NORM}(a, s, o, m, v)}}",
        opset=15,
        W=integers(6, 4, 3, 3, dtype=np.float16),
        **norm(6, np.float32),
    )
    result, applied = apply_to(FOLD, model)  # ORT has no kernel for these types on the CPU
    assert operators(result) == "Conv" and len(applied.rewrites) == 1
    assert operand(result, "Conv", 1).dtype == operand(result, "Conv", 2).dtype == np.float16
    expected = norm(6)["s"] / np.sqrt(norm(6)["v"] + 0.25)
    found = operand(result, "Conv", 1)
    assert (found == initializers(model)["W"] * expected.reshape(6, 1, 1, 1)).all()


def test_float16_rounds_once() -> None:
    """1.001 · 3 = 3.003 in float64; by way of a float16 factor it would be another number."""
    factor, weight = np.float64(np.float16(1 / 3)), np.float16(1.001)
    model = graph(
        "(float16[N,1,4,4] x) => (float16[N,1,4,4] y) {a = Conv(x, W) y = Div(a, c)}",
        W=np.full((1, 1, 1, 1), weight),
        c=np.full((1, 1, 1), 3, np.float16),
    )
    result, _ = apply_to(FOLD, model)
    found = operand(result, "Conv", 1).item()
    assert found == np.float16(np.float64(weight) / 3) != np.float16(weight * np.float16(factor))


@pytest.mark.parametrize("factor, reason", [
    (1000.0, "folding into 'W' overflows float16"),
    (1e-7, "folding into 'W' makes it so small that float16 loses its digits"),
])  # fmt: skip
def test_float16_out_of_range(factor: float, reason: str) -> None:
    model = graph(
        "(float16[N,1,4,4] x) => (float16[N,2,4,4] y) {a = Conv(x, W) y = Mul(a, c)}",
        W=np.array([99.9, 1], np.float16).reshape(2, 1, 1, 1),
        c=np.array([factor, 1], np.float16).reshape(2, 1, 1),
    )
    check_refused(FOLD, model, reason)


def test_float16_may_lose_what_the_channel_does_not_see() -> None:
    """A weight far below the others of its channel may lose digits that rounding hides anyway."""
    weight = np.array([[1, 2e-7], [1, 1]], np.float16).reshape(2, 2, 1, 1)
    model = graph(
        "(float16[N,2,4,4] x) => (float16[N,2,4,4] y) {a = Conv(x, W) y = Mul(a, c)}",
        W=weight,
        c=np.array([0.3, 1], np.float16).reshape(2, 1, 1),
    )
    result, _ = apply_to(FOLD, model)
    assert operators(result) == "Conv"


def test_float32_dead_channels_are_no_obstacle() -> None:
    """Weight decay drives dead channels below the smallest normal number."""
    model = graph(
        "(float[N,1,4,4] x) => (float[N,2,4,4] y) {a = Conv(x, W) y = Mul(a, c)}",
        W=np.array([1e-42, 1], np.float32).reshape(2, 1, 1, 1),
        c=np.array([0.3, 3], np.float32).reshape(2, 1, 1),
    )
    check(FOLD, model, "Conv")


def test_float64() -> None:
    model = graph(
        "(double[N,4] x) => (double[N,6] y) {a = Gemm(x, W, b) k = Mul(a, c) y = Sub(k, c)}",
        W=integers(4, 6, dtype=np.float64),
        b=integers(6, dtype=np.float64),
        c=integers(6, dtype=np.float64),
    )
    result = check(FOLD, model, "Gemm", exact=True)
    assert operand(result, "Gemm", 1).dtype == np.float64


def test_bfloat16() -> None:
    kind = ml_dtypes.bfloat16
    model = graph(
        "(bfloat16[N,4,6,6] x) => (bfloat16[N,6,4,4] y) {a = Conv(x, W) y = Div(a, c)}",
        opset=22,
        ir_version=10,
        W=integers(6, 4, 3, 3).astype(kind),
        c=np.full((6, 1, 1), 3).astype(kind),
    )
    result, _ = apply_to(FOLD, model)  # ORT has no kernel for it on the CPU
    onnx.checker.check_model(result, full_check=True)
    found = operand(result, "Conv", 1)
    assert found.dtype == kind
    expected = (integers(6, 4, 3, 3).astype(np.float64) / 3).astype(kind)
    assert (found == expected).all()


def test_integers_are_left_alone() -> None:
    model = graph(
        "(int32[N,4] x) => (int32[N,6] y) {a = MatMul(x, W) y = Mul(a, c)}",
        W=integers(4, 6, dtype=np.int32),
        c=integers(6, dtype=np.int32),
    )
    check_refused(FOLD, model, "'W' is int32, not floating point")


def test_a_factor_of_zero() -> None:
    """Pruned channels have a scale of 0: the formula's value over the real numbers."""
    model = graph(
        f"(float[N,2,4,4] x) => (float[N,3,2,2] y){{a = Conv(x, W) y = {NORM}(a, s, o, m, v)}}",
        W=integers(3, 2, 3, 3),
        **{**norm(3), "s": np.array([0, 2, 0], np.float32)},
    )
    check(FOLD, model, "Conv", exact=True)


def test_a_large_weight_in_pieces() -> None:
    model = graph(
        "(float[2,2100] x) => (float[2,2048] y) {n = Mul(x, d) k = Add(n, d)"
        " a = Gemm<transB=1>(k, W) y = Mul(a, c)}",
        W=integers(2048, 2100),
        c=integers(2048, seed=1),
        d=integers(2100, seed=2),
    )
    check(FOLD, model, "Gemm", exact=True, seeds=[0])


def test_a_large_weight_in_pieces_along_its_inputs() -> None:
    model = graph(
        "(float[2,2100] x) => (float[2,2048] y) {n = Mul(x, d) k = Add(n, d) a = MatMul(k, W)"
        " y = Mul(a, c)}",
        W=integers(2100, 2048),
        c=integers(2048, seed=1),
        d=integers(2100, seed=2),
    )
    check(FOLD, model, "MatMul Add", exact=True, seeds=[0])


# --------------------------------------------------------------------------------- where it works


def test_constants_however_they_are_written() -> None:
    model = graph(
        "(float[N,2,6,6] x) => (float[N,6,4,4] y) {i = Identity(W) a = Conv(x, i)"
        " k = Constant<value = float[6,1,1] {1, 2, 4, -1, 3, 0}>()"
        " l = Constant<value_floats = [3.0, 1.0, 0.0, 2.0, -2.0, 5.0]>()"
        " r = Unsqueeze(l, axes) b = Mul(k, a) y = Add(b, r)}",
        W=integers(6, 2, 3, 3),
        axes=np.array([1, 2]),
    )
    check(FOLD, model, "Conv", exact=True)


def test_inside_a_body() -> None:
    model = graph(
        "(float[N,2,4,4] x, bool p) => (float[N,3,2,2] y) {y = If(p)<"
        " then_branch = t () => (float[N,3,2,2] t1)"
        f" {{a = Conv(x, W) t1 = {NORM}(a, s, o, m, v)}},"
        " else_branch = e () => (float[N,3,2,2] e1) {e1 = Conv(x, W)}>}",
        W=integers(3, 2, 3, 3),
        **norm(3),
    )
    result = check(FOLD, model, "If", exact=True)
    bodies = {a.name: [n.op_type for n in a.g.node] for a in result.graph.node[0].attribute}
    assert bodies == {"then_branch": ["Conv"], "else_branch": ["Conv"]}


def test_not_across_the_border_of_a_body() -> None:
    model = graph(
        "(float[N,2,4,4] x, bool p) => (float[N,3,2,2] y) {a = Conv(x, W) y = If(p)<"
        " then_branch = t () => (float[N,3,2,2] t1) {t1 = Mul(a, c)},"
        " else_branch = e () => (float[N,3,2,2] e1) {e1 = Identity(a)}>}",
        W=integers(3, 2, 3, 3),
        c=integers(3, 1, 1),
    )
    check_untouched(FOLD, model)


def test_a_reader_in_a_body_keeps_the_operator_before() -> None:
    model = graph(
        "(float[N,4] x, bool p) => (float[N,4] y, float[N,4] z) {n = Mul(x, c) z = MatMul(n, W)"
        " y = If(p)<then_branch = t () => (float[N,4] t1) {t1 = MatMul(n, W)},"
        " else_branch = e () => (float[N,4] e1) {e1 = Identity(x)}>}",
        W=integers(4, 4),
        c=integers(4),
    )
    check_refused(FOLD, model, "Mul of 'n' also feeds MatMul of 't1', which cannot take it in")


def test_inside_a_function() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "f": 1]>
        g (float[N,2,4,4] x) => (float[N,2,4,4] y) {y = f.block(x)}
        <domain: "f", opset_import: ["": 17]>
        block (x) => (y) {
            w = Constant<value = float[2,2,1,1] {1, 2, -3, 1}>()
            c = Constant<value = float[2,1,1] {2, -1}>()
            a = Conv(x, w)
            b = Mul(a, c)
            y = Add(c, b)
        }
    """)
    result = check(FOLD, model, "f::block", exact=True)
    found = [node.op_type for node in result.functions[0].node if node.op_type != "Constant"]
    assert found == ["Conv"]


# --------------------------------------------------------------------------------------- refusals

CONV = "(float[N,4,4,4] x) => (float[] y) {a = Conv<pads=[1,1,1,1]>(x, W) %s}"


def behind_conv(chain: str, opset: int = 17, **constants: Any) -> onnx.ModelProto:
    """A Conv with four channels whose output is [N,4,4,4], and `chain` on its output `a`."""
    used = {"W": integers(4, 4, 3, 3), **norm(4), **constants}
    model = graph(CONV % chain, opset=opset, **{k: v for k, v in used.items() if v is not None})
    return model


ONES = np.ones((4, 1, 1), np.float32)


@pytest.mark.parametrize("chain, constants, reason", [
    ("y = BatchNormalization<training_mode=1>(a, s, o, m, v)", {},
     "BatchNormalization of 'y' is in training mode"),
    ("y = BatchNormalization(a, s, o, m, v)", {"v": np.array([1, 1, -1, 1], np.float32)},
     "the variance of BatchNormalization of 'y' plus epsilon is not positive everywhere"),
    ("y = BatchNormalization<epsilon=0.0>(a, s, o, m, v)", {"v": np.eye(4, dtype=np.float32)[0]},
     "the variance of BatchNormalization of 'y' plus epsilon is not positive everywhere"),
    ("y = BatchNormalization(a, s, o, m, v)", {"v": np.array([1, 1, np.nan, 1], np.float32)},
     "the variance of BatchNormalization of 'y' plus epsilon is not positive everywhere"),
    ("y = BatchNormalization(a, s, o, m, v)", {"o": np.array([1, 1, np.nan, 1], np.float32)},
     "BatchNormalization of 'y' has parameters that are not finite"),
    ("y = BatchNormalization(a, s, o, m, v)", {"s": np.array([1, 1, np.inf, 1], np.float32)},
     "BatchNormalization of 'y' has parameters that are not finite"),
    ("k = Relu(s) y = BatchNormalization(a, k, o, m, v)", {},
     "the scale of BatchNormalization of 'y', 'k', is not a constant"),
    ("y = Mul(a, c)", {"c": np.ones(4, np.float32) * 2},
     "'c' of shape [4] does not lie along the channels of the output of Conv of 'a', axis 1"),
    ("y = Mul(a, c)", {"c": np.ones((4, 1), np.float32) * 2},
     "'c' of shape [4, 1] does not lie along the channels of the output of Conv of 'a', axis 1"),
    ("y = Mul(a, c)", {"c": np.ones((4, 4, 4), np.float32) * 2},
     "'c' of shape [4, 4, 4] does not lie along the channels of the output of Conv of 'a', axis 1"),
    ("y = Add(a, c)", {"c": np.ones((2, 4, 1, 1), np.float32)},
     "'c' of shape [2, 4, 1, 1] does not lie along the channels of the output of Conv"),
    ("y = Mul(a, c)", {"c": np.ones((1, 1, 4, 1, 1), np.float32) * 2},
     "'c' of shape [1, 1, 4, 1, 1] has more axes than the output of Conv of 'a', which has 4"),
    ("y = Mul(a, c)", {"c": np.ones((1, 1, 1, 1, 1), np.float32) * 2},
     "'c' of shape [1, 1, 1, 1, 1] has more axes than the output of Conv of 'a', which has 4"),
    ("y = Mul(a, c)", {"c": ONES * np.inf}, "Mul of 'y' has parameters that are not finite"),
    ("y = Add(a, c)", {"c": ONES * np.nan}, "Add of 'y' has parameters that are not finite"),
    ("y = Mul(a, c)", {"c": ONES * 2, "W": np.full((4, 4, 3, 3), np.inf, np.float32)},
     "'W' holds values that are not finite"),
    ("y = Mul(a, c)", {"c": ONES * 1e38, "W": np.full((4, 4, 3, 3), 9, np.float32)},
     "folding into 'W' overflows float32"),
    ("y = Div(a, c)", {"c": ONES * 0}, "Div of 'y' divides by zero"),
    ("y = Div(a, c)", {"c": np.array([[[1]], [[2]], [[0]], [[1]]], np.float32)},
     "Div of 'y' divides by zero"),
    ("y = Div(c, a)", {"c": ONES}, "Div of 'y' divides by the output of Conv of 'a'"),
    ("y = Mul(a, c) z = Relu(a)", {"c": ONES * 2}, "Conv of 'a' feeds 2 nodes"),
    ("k = Cast<to=10>(a) y = Mul(k, c)", {"c": ONES.astype(np.float16) * 2},
     "Cast of 'k' changes the type"),
])  # fmt: skip
def test_refused(chain: str, constants: dict[str, Any], reason: str) -> None:
    with np.errstate(all="ignore"):
        check_refused(FOLD, behind_conv(chain, **constants), reason)


def test_refused_widening_of_a_single_channel() -> None:
    model = graph(
        "(float[N,2,4,4] x) => (float[N,4,4,4] y) {a = Conv(x, W) y = Mul(a, c)}",
        W=integers(1, 2, 1, 1),
        c=integers(4, 1, 1),
    )
    check_refused(FOLD, model, "'c' holds 4 values, but the output of Conv of 'a' has 1 channels")


def test_refused_batch_normalization_with_further_outputs() -> None:
    for used in ("", "z = Relu(k)"):
        model = behind_conv(f"y, k, l, q, r = BatchNormalization(a, s, o, m, v) {used}", opset=9)
        reason = "has further outputs that are used" if used else "is in training mode"
        check_refused(FOLD, model, reason)


def test_refused_batch_normalization_of_every_position() -> None:
    model = behind_conv("y = BatchNormalization<spatial=0>(a, s, o, m, v)", opset=7)
    check_refused(FOLD, model, "normalizes every position by itself (spatial=0)")


def test_refused_before_opset_7() -> None:
    model = behind_conv("y = Mul<broadcast=1, axis=1>(a, c)", opset=6, c=np.ones(4, np.float32))
    check_refused(FOLD, model, "Mul of 'y' is from before opset 7")
    model = behind_conv("y = BatchNormalization<is_test=1>(a, s, o, m, v)", opset=6)
    check_refused(FOLD, model, "BatchNormalization of 'y' is from before opset 7")


def test_refused_output_of_the_graph() -> None:
    model = graph(
        "(float[N,4,4,4] x) => (float[N,4,4,4] a, float[N,4,4,4] y) {a = Conv(x, W) y = Mul(a, c)}",
        W=integers(4, 4, 1, 1),
        c=ONES * 2,
    )
    check_refused(FOLD, model, "Conv of 'a' is an output of the graph")


@pytest.mark.parametrize("name", ["W", "b", "s", "v", "c"])
def test_refused_overridable_parameters(name: str) -> None:
    constants = {"W": integers(4, 4, 3, 3), "b": integers(4), "c": ONES * 2, **norm(4)}
    step = "Mul(a, c)" if name == "c" else f"{NORM}(a, s, o, m, v)"
    shape = ",".join(map(str, constants[name].shape))
    model = graph(
        f"(float[N,4,6,6] x, float[{shape}] {name}) => (float[N,4,4,4] y)"
        f"{{a = Conv(x, W, b) y = {step}}}",
        **constants,
    )
    check_refused(FOLD, model, "may be overridden at run time")
    model.ir_version = 3  # where that is not possible
    result, _ = apply_to(FOLD, model)
    assert operators(result) == "Conv"


@pytest.mark.parametrize("name", ["w", "b"])
def test_refused_computed_weights(name: str) -> None:
    inputs = {"w": "float[4,4,3,3] w", "b": "float[4] b"}[name]
    constants = {"w": integers(4, 4, 3, 3), "b": integers(4), **norm(4)}
    model = graph(
        f"(float[N,4,6,6] x, {inputs}) => (float[N,4,4,4] y)"
        f"{{a = Conv(x, w, b) y = {NORM}(a, s, o, m, v)}}",
        **{key: value for key, value in constants.items() if key != name},
    )
    role = {"w": "weight", "b": "bias"}[name]
    check_refused(FOLD, model, f"the {role} of Conv of 'a', '{name}', is not a constant")


def test_refused_shift_before_a_padded_conv() -> None:
    for attributes in ("pads=[0,0,0,1]", 'auto_pad="SAME_LOWER"'):
        model = graph(
            f"(float[N,4,6,6] x) => (float[] y){{n = Add(x, c) y = Conv<{attributes}>(n, W)}}",
            W=integers(6, 4, 3, 3),
            c=ONES,
        )
        check_refused(FOLD, model, "pads with zeros, which a shift of its input does not reach")


def test_refused_where_same_padding_depends_on_an_unknown_size() -> None:
    model = graph(
        "(float[N,4,H,6] x) => (float[] y)"
        '{n = Add(x, c) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(n, W)}',
        W=integers(6, 4, 2, 2),
        c=ONES,
    )
    check_refused(FOLD, model, "pads with zeros")


@pytest.mark.parametrize("shape", ["N,1,6,6", "N,C,6,6", "4,6,6"])
def test_refused_an_input_that_is_widened(shape: str) -> None:
    """x·c has four channels, x itself may have one, or an axis less."""
    model = graph(
        f"(float[{shape}] x) => (float[] y) {{n = Mul(x, c) y = Conv(n, W)}}",
        W=integers(6, 4, 3, 3),
        c=integers(1, 4, 1, 1),
    )
    reason = (
        "Mul of 'n' adds axes to 'x'" if shape == "4,6,6" else "is not known to have 4 channels"
    )
    check_refused(FOLD, model, reason)


def test_refused_an_input_of_unknown_rank() -> None:
    model = graph(
        "(float[N,4] x) => (float[] y) {n = Mul(x, c) y = MatMul(n, W)}",
        W=integers(4, 4),
        c=integers(4),
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    check_refused(FOLD, model, "the rank of 'x' is unknown")


def test_refused_an_output_of_unknown_rank() -> None:
    """Where x is a vector, c adds an axis to the product."""
    model = graph(
        "(float[N,4] x) => (float[] y) {a = MatMul(x, W) y = Mul(a, c)}",
        W=integers(4, 6),
        c=integers(1, 6),
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    check_refused(FOLD, model, "the rank of the output of MatMul of 'a' is unknown")


@pytest.mark.parametrize("readers, reason", [
    ("y = MatMul(n, W) z = Relu(n)", "Mul of 'n' also feeds Relu of 'z', which cannot take it in"),
    ("y = MatMul(n, W) z = MatMul(V, n)", "Mul of 'n' also feeds MatMul of 'z'"),
    ("y = MatMul(n, W) z = MatMul(n, n)", "Mul of 'n' also feeds MatMul of 'z'"),
    ("y = MatMul(n, W) z = MatMul(n, x)", "Mul of 'n' also feeds MatMul of 'z'"),
    ("y = MatMul(n, W) z = Gemm<transA=1>(n, W)", "Mul of 'n' also feeds Gemm of 'z'"),
    ("y = MatMul(n, W) z = Gemm(n, W, x)", "Mul of 'n' also feeds Gemm of 'z'"),
    ("y = MatMul(n, W) z = Identity(n)", "Mul of 'n' also feeds Identity of 'z'"),
])  # fmt: skip
def test_refused_where_another_reader_keeps_the_operator(readers: str, reason: str) -> None:
    model = graph(
        f"(float[4,4] x) => (float[4,4] y, float[4,4] z) {{n = Mul(x, c) {readers}}}",
        W=integers(4, 4),
        V=integers(4, 4),
        c=integers(4),
    )
    check_refused(FOLD, model, reason)


def test_refused_where_another_conv_pads() -> None:
    model = graph(
        "(float[N,4,6,6] x) => (float[N,6,4,4] y, float[N,6,6,6] z)"
        "{n = Add(x, c) y = Conv(n, W) z = Conv<pads=[1,1,1,1]>(n, W)}",
        W=integers(6, 4, 3, 3),
        c=ONES,
    )
    check_refused(FOLD, model, "Add of 'n' also feeds Conv of 'z', which cannot take it in")


def test_refused_before_a_stack_of_matrices() -> None:
    model = graph(
        "(float[N,2,5,4] x) => (float[] y) {n = Add(x, c) y = MatMul(n, W)}",
        W=integers(2, 4, 6),
        c=integers(4),
    )
    check_refused(FOLD, model, "the weight of MatMul of 'y' is no matrix")


def test_refused_where_the_operator_before_is_an_output() -> None:
    model = graph(
        "(float[N,4] x) => (float[N,4] n, float[N,4] y) {n = Mul(x, c) y = MatMul(n, W)}",
        W=integers(4, 4),
        c=integers(4),
    )
    check_refused(FOLD, model, "Mul of 'n' is an output of the graph")


def test_refused_batch_normalization_of_another_axis() -> None:
    model = graph(
        f"(float[N,6,4] x) => (float[N,6,6] y) {{g = MatMul(x, W) y = {NORM}(g, s, o, m, v)}}",
        W=integers(4, 6),
        **norm(6),
    )
    reason = "normalizes axis 1, but the channels of the output of MatMul of 'g' lie along axis 2"
    check_refused(FOLD, model, reason)


def test_refused_where_a_matmul_has_rows_of_its_own() -> None:
    for c in ((6, 1), (6, 6), (1, 1, 1, 6)):
        model = graph(
            "(float[N,6,4] x) => (float[] y) {g = MatMul(x, W) y = Mul(g, c)}",
            W=integers(4, 6),
            c=integers(*c),
        )
        reason = "has more axes than" if len(c) > 3 else "does not lie along the channels"
        check_refused(FOLD, model, reason)


def test_refused_a_vector_behind_the_constant_on_the_left() -> None:
    model = graph(
        "(float[4] x) => (float[6] y) {g = MatMul(W, x) h = Add(g, c) y = Mul(h, c)}",
        W=integers(6, 4),
        c=np.float32(2),
    )
    check_refused(FOLD, model, "MatMul of 'g' may have a vector for its input")
    stack = graph(  # of whose output [4, 4] the rows lie along the last axis as well
        "(float[3] x) => (float[4,4] y) {g = MatMul(W, x) y = Mul(g, c)}",
        W=integers(4, 4, 3),
        c=integers(4, 1),
    )
    check_refused(FOLD, stack, "MatMul of 'g' may have a vector for its input")


def test_refused_a_second_copy_of_a_tied_weight() -> None:
    """The embedding is the last layer's weight too: scaling that would store it twice."""
    for last in ("s = Mul(e, c) y = MatMul(s, t)", "s = MatMul(e, t) y = Mul(s, c)"):
        model = graph(
            f"(int64[N] i) => (float[N,9] y) {{e = Gather(E, i) t = Transpose(E) {last}}}",
            E=integers(9, 4),
            c=np.float32(2),
        )
        check_refused(FOLD, model, "'t' has other readers, and one factor is not worth a second")


def test_refused_a_second_copy_of_a_weight_that_is_an_output() -> None:
    model = graph(
        "(float[N,4] x) => (float[N,9] y, float[4,9] t) {t = Transpose(E) a = MatMul(x, t)"
        " y = Mul(a, c)}",
        E=integers(9, 4),
        c=np.float32(2),
    )
    check_refused(FOLD, model, "'t' has other readers, and one factor is not worth a second")


def test_refused_a_vector_for_a_weight() -> None:
    model = graph(
        "(float[N,4] x) => (float[N] y) {g = MatMul(x, W) y = Mul(g, c)}",
        W=integers(4),
        c=np.float32(2),
    )
    check_refused(FOLD, model, "the weight of MatMul of 'g' is a vector")


# ------------------------------------------------------------- other structures: nothing is said


@pytest.mark.parametrize("chain", [
    "y = Add(a, x)",
    "k = Sigmoid(a) y = Relu(k)",
    "k = Relu(a) y = Add(k, two)",
    "k = MaxPool<kernel_shape=[2,2]>(a) l = Sigmoid(k) y = Mul(l, two)",
    "k = Shape(a) y = Cast<to=1>(k)",
])  # fmt: skip
def test_untouched(chain: str) -> None:
    model = behind_conv(chain, two=np.float32(2))
    check_untouched(FOLD, model)
    assert not apply_to(FOLD, model)[1].refusals


def test_untouched_custom_domain() -> None:
    model = graph(
        "(float[N,4,4,4] x) => (float[N,4,4,4] y) {a = mine.Conv(x, W) y = Mul(a, c)}",
        domains={"mine": 1},
        W=integers(4, 4, 1, 1),
        c=ONES * 2,
    )
    check_untouched(FOLD, model)


def test_untouched_attention() -> None:
    model = graph(
        "(float[N,4,4] q, float[N,4,4] k) => (float[N,4,4] y) {g = MatMul(q, k) y = Div(g, c)}",
        c=np.float32(2),
    )
    check_untouched(FOLD, model)
    assert not apply_to(FOLD, model)[1].refusals


def test_a_pad_of_its_own_is_in_the_way_of_a_shift() -> None:
    """BatchNormalization → Pad → Conv: the zeros of the Pad are not normalized."""
    model = graph(
        f"(float[N,4,4,4] x) => (float[N,6,4,4] y)"
        f"{{n = {NORM}(x, s, o, m, v) k = Pad(n, p) y = Conv(k, W)}}",
        p=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        W=integers(6, 4, 3, 3),
        **norm(4),
    )
    check_untouched(FOLD, model)


def test_partly_folded_where_something_else_reads_the_middle() -> None:
    model = graph(
        "(float[N,4,4,4] x) => (float[N,4,4,4] y, float[N,4,4,4] z)"
        "{a = Conv(x, W) b = Mul(a, c) y = Add(b, c) z = Relu(b)}",
        W=integers(4, 4, 1, 1),
        c=cycle([2, 3], 4).reshape(4, 1, 1),
    )
    check(FOLD, model, "Conv Add Relu", exact=True)


def test_what_came_in_stays_as_it_was() -> None:
    model = behind_conv("k = Mul(a, c) y = Relu(k)", c=ONES * 2)
    model.graph.node[0].name = "stem"
    model.graph.node[0].doc_string = "kept"
    result = check(FOLD, model, "Conv<pads=[1,1,1,1]> Relu", exact=True)
    assert result.graph.node[0].name == "stem"
    assert result.graph.node[0].output == ["k"]
    check_equal(model, result, exact=True)


# ------------------------------------------- functions that runtimes know when they see them whole

ERF = "q = Div(x, root) e = Erf(q)"
TANH = "e = Tanh(x)"
TAKERS = [
    pytest.param("y = MatMul(n, W)", {"W": (8, 5)}, "(float[N,8] x)", id="MatMul"),
    pytest.param("y = Gemm(n, W)", {"W": (8, 5)}, "(float[N,8] x)", id="Gemm"),
    pytest.param("y = Conv(n, W)", {"W": (5, 8, 1, 1)}, "(float[N,8,3,3] x)", id="Conv"),
]


@pytest.mark.parametrize(("taker", "constants", "inputs"), TAKERS)
@pytest.mark.parametrize(
    "gelu",
    [
        f"{ERF} s = Add(e, one) p = Mul(x, s) n = Mul(p, half)",
        f"{ERF} s = Add(one, e) p = Mul(s, x) n = Mul(half, p)",
        f"{TANH} s = Add(e, one) p = Mul(x, s) n = Div(p, two)",
    ],
)
def test_refused_the_end_of_a_gelu(
    taker: str, constants: dict[str, Any], inputs: str, gelu: str
) -> None:
    numbers = {"root": 1.4142135, "one": 1.0, "half": 0.5, "two": 2.0}
    held = {name: np.float32(value) for name, value in numbers.items() if name in gelu}
    model = graph(f"{inputs} => (float[] y) {{ {gelu} {taker} }}", **held, **constants)
    check_refused(FOLD, model, "ends a GELU, which runtimes compute as one operator while whole")


@pytest.mark.parametrize(
    "almost",
    [
        "e = Erf(x) n = Mul(e, half)",
        "e = Erf(x) s = Add(e, one) n = Mul(s, half)",
        "e = Sigmoid(x) s = Add(e, one) p = Mul(x, s) n = Mul(p, half)",
        "e = Erf(x) s = Add(e, x) p = Mul(x, s) n = Mul(p, half)",
        "e = Erf(x) s = Add(e, one) h = Mul(x, s) n = Mul(h, third)",
    ],
)
def test_what_is_only_like_a_gelu_is_folded(almost: str) -> None:
    held = {name: np.float32(1 / 2) for name in ("one", "half") if name in almost}
    if "third" in almost:
        held["third"] = np.float32(1 / 3)
    model = graph(
        f"(float[N,8] x) => (float[] y) {{ {almost} y = MatMul(n, W) }}", **held, W=(8, 5)
    )
    assert len(check(FOLD, model).graph.node) < len(model.graph.node)


MEANS = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m)"
NORMALIZED = [
    "c = Pow(d, two) v = ReduceMean<axes=[-1]>(c) w = Add(v, eps) r = Sqrt(w) z = Div(d, r)",
    "c = Mul(d, d) v = ReduceMean<axes=[1]>(c) w = Add(v, eps) r = Sqrt(w) z = Div(d, r)",
    "c = Mul(d, d) v = ReduceMean<axes=[-1]>(c) w = Add(eps, v) r = Sqrt(w) "
    "i = Reciprocal(r) z = Mul(d, i)",
    "c = Mul(d, d) v = ReduceMean<axes=[-1]>(c) w = Add(v, eps) r = Pow(w, minus) z = Mul(d, r)",
]


@pytest.mark.parametrize("form", NORMALIZED)
@pytest.mark.parametrize(
    "end", ["g = Mul(z, G) n = Add(g, B)", "n = Mul(G, z)", "g = Mul(z, G) n = Sub(g, B)"]
)
def test_refused_the_end_of_a_layer_normalization(form: str, end: str) -> None:
    held = {"two": 2.0, "eps": 1e-5, "minus": -0.5}
    given: dict[str, Any] = {name: np.float32(v) for name, v in held.items() if name in form}
    given |= {name: (8,) for name in "GB" if name in end}
    model = graph(
        f"(float[N,8] x) => (float[] y) {{ {MEANS} {form} {end} y = MatMul(n, W) }}",
        **given,
        W=(8, 5),
    )
    check_refused(FOLD, model, "ends a layer normalization, which runtimes compute as one")


@pytest.mark.parametrize(
    "beyond", ["n = Mul(b, S)", "n = Div(b, S)", "g2 = Mul(b, S) n = Add(g2, B)"]
)
def test_what_comes_after_a_layer_normalization_is_folded(beyond: str) -> None:
    model = graph(
        f"(float[N,8] x) => (float[] y) {{ {MEANS} {NORMALIZED[0]} g = Mul(z, G) b = Add(g, B)"
        f" {beyond} y = MatMul(n, W) }}",
        two=np.float32(2),
        eps=np.float32(1e-5),
        G=(8,),
        B=(8,),
        S=np.linspace(1, 2, 8, dtype=np.float32),
        W=(8, 5),
    )
    found = check(FOLD, model)
    assert len(found.graph.node) < len(model.graph.node)
    assert "b" in [name for node in found.graph.node for name in node.output]


def test_a_batch_normalization_after_a_gelu_is_folded() -> None:
    gelu = f"{ERF} s = Add(e, one) h = Mul(x, half) g = Mul(h, s)"
    model = graph(
        f"(float[N,8] x) => (float[] y) {{ {gelu} n = {NORM}(g, S, B, M, V) y = MatMul(n, W) }}",
        root=np.float32(1.4142135),
        one=np.float32(1),
        half=np.float32(0.5),
        **{name: np.linspace(1, 2, 8, dtype=np.float32) for name in "SBMV"},
        W=(8, 5),
    )
    assert "BatchNormalization" not in operators(check(FOLD, model))


def test_axes_that_are_an_input_are_seen() -> None:
    form = NORMALIZED[0].replace("<axes=[-1]>(c)", "(c, last)")
    means = MEANS.replace("<axes=[-1]>(x)", "(x, last)")
    model = graph(
        f"(float[N,8] x) => (float[] y) {{ {means} {form} n = Mul(z, G) y = MatMul(n, W) }}",
        opset=18,
        two=np.float32(2),
        eps=np.float32(1e-5),
        last=np.array([-1]),
        G=(8,),
        W=(8, 5),
    )
    check_refused(FOLD, model, "ends a layer normalization")


def test_a_division_by_the_mean_is_no_layer_normalization() -> None:
    model = graph(
        "(float[N,8] x) => (float[] y) { a = Abs(x) m = ReduceMean<axes=[-1]>(a) w = Add(m, one)"
        " z = Div(a, w) n = Mul(z, G) y = MatMul(n, W) }",
        one=np.float32(1),
        G=(8,),
        W=(8, 5),
    )
    assert len(check(FOLD, model).graph.node) == len(model.graph.node) - 1


@pytest.mark.parametrize("axes", [[2, 3], [1]])
def test_a_normalization_over_other_axes_is_folded(axes: list[int]) -> None:
    means = MEANS.replace("[-1]", str(axes).replace(" ", ""))
    form = NORMALIZED[0].replace("[-1]", str(axes).replace(" ", ""))
    model = graph(
        f"(float[N,8,4,4] x) => (float[] y) {{ {means} {form} n = Mul(z, G) y = Conv(n, W) }}",
        two=np.float32(2),
        eps=np.float32(1e-5),
        G=(8, 1, 1),
        W=(5, 8, 1, 1),
    )
    assert len(check(FOLD, model).graph.node) == len(model.graph.node) - 1


SHARED = """(float[N,3,4,4] x, float[N,3,4,4] z) => (float[N,5,4,4] y, float[N,5,4,4] w) {{
    a = Conv(x, W) b = Conv(z, W) y = Mul(a, k) {0} }}"""


def test_a_weight_that_all_readers_scale_alike_is_scaled_once() -> None:
    model = graph(SHARED.format("w = Mul(k, b)"), W=(5, 3, 1, 1), k=np.float32(0.2))
    result = check(FOLD, model, "Conv Conv")
    assert len({node.input[1] for node in result.graph.node}) == 1


@pytest.mark.parametrize("other", ["w = Mul(b, j)", "w = Relu(b)", "c = Mul(b, k) w = Add(b, c)"])
def test_a_weight_that_is_scaled_in_one_place_stays(other: str) -> None:
    held = {"j": np.float32(0.3)} if "j)" in other else {}
    model = graph(SHARED.format(other), W=(5, 3, 1, 1), k=np.float32(0.2), **held)
    check_refused(FOLD, model, "one factor is not worth a second copy")
