"""gemm-to-conv on quantized layers: the integers are those that were there, equal to the bit."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import check, check_refused, graph, operators

PASS = make("gemm-to-conv")
ALL = make("gemm-to-conv", {"target": "all"})
GAP = make("flatten-gemm-to-gap-conv")

Array = npt.NDArray[Any]


def levels(*shape: int, dtype: npt.DTypeLike = np.int8, seed: int = 5) -> Array:
    low = 0 if "u" in np.dtype(dtype).name else -4
    return np.random.default_rng(seed).integers(low, 5, shape).astype(np.int8).astype(dtype)


def powers(*values: float) -> Array:
    return np.array(values, np.float32)


def read(text: str, **given: Any) -> dict[str, Any]:
    """Return those of `given` that `text` mentions."""
    words = re.findall(r"\w+", text)
    return {name: value for name, value in given.items() if name in words}


STEPS: dict[str, tuple[Any, str, Any]] = {
    "one step": (np.float32(0.5), "", None),
    "one step and zero": (np.float32(0.5), "", np.int8(3)),
    "one for each output": (powers(1, 0.5, 2, 0.25), "<axis=0>", None),
    "with zeros": (powers(1, 0.5, 2, 0.25), "<axis=0>", np.array([1, 0, 2, -1], np.int8)),
    "counted from the end": (powers(1, 0.5, 2, 0.25), "<axis=-2>", None),
}


@pytest.mark.parametrize("body", ["f = Flatten(x)", "f = Reshape(x, s)"])
@pytest.mark.parametrize("step, axis, zero", STEPS.values(), ids=STEPS)
def test_weights_behind_dequantize_linear(step: Any, axis: str, zero: Any, body: str) -> None:
    more = "" if zero is None else ", z"
    model = graph(
        f"(float[N,3,2,2] x) => (float[N,4] y) {{{body} w = DequantizeLinear{axis}(q, d{more})"
        " b = DequantizeLinear<axis=0>(qb, db) y = Gemm<transB=1>(f, w, b)}",
        q=levels(4, 12),
        d=np.asarray(step),
        qb=levels(4, dtype=np.int32),
        db=powers(0.25, 1, 2, 0.5),
        **read(body + more, z=zero, s=np.array([0, -1])),
    )
    result = check(PASS, model, exact=True)
    assert sorted(operators(result).split()) == sorted(
        "DequantizeLinear DequantizeLinear Conv Flatten".split()
    )
    kept = [onnx.numpy_helper.to_array(t) for t in result.graph.initializer]
    assert any(a.shape == (4, 3, 2, 2) and (a.reshape(4, 12) == levels(4, 12)).all() for a in kept)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4])
@pytest.mark.parametrize("layer", ["y = MatMul(x, w)", "m = MatMul(x, w) y = Add(m, b)"])
def test_rows_and_types(dtype: Any, layer: str) -> None:
    model = graph(
        "(float[N,8] x) => (float[N,4] y) {w = DequantizeLinear<axis=1>(q, d) " + layer + "}",
        opset=21,
        ir_version=10,
        q=levels(8, 4, dtype=dtype),
        d=powers(1, 0.5, 2, 0.25),
        **read(layer, b=powers(1, 2, 3, 4)),
    )
    check(PASS, model, "Unsqueeze DequantizeLinear Conv Flatten", exact=True)


def test_a_head_between_quantizations() -> None:
    """The Flatten moves below both halves of each pair, so that the head has none inside."""
    pair = "{1} = QuantizeLinear({0}, d, z) {2} = DequantizeLinear({1}, d, z)"
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y) {f = Flatten(x) " + pair.format("f", "g", "h")
        + " w = DequantizeLinear(q, d) k = Gemm<transB=1>(h, w) " + pair.format("k", "l", "m")
        + " r = Relu(m) v = DequantizeLinear(p, d) y = MatMul(r, v)}",
        q=levels(4, 12),
        p=levels(4, 4),
        d=np.float32(0.5),
        z=np.int8(0),
    )  # fmt: skip
    result = check(PASS, model, exact=True)
    assert operators(result).split()[-2:] == ["Conv", "Flatten"]
    assert operators(result).count("Flatten") == 1


def test_a_sequence() -> None:
    model = graph(
        "(float[N,6,8] x) => (float[N,6,4] y) {w = DequantizeLinear<axis=1>(q, d)"
        " y = MatMul(x, w)}",
        q=levels(8, 4),
        d=powers(1, 0.5, 2, 0.25),
    )
    check(ALL, model, "Transpose DequantizeLinear Conv Transpose", exact=True)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a step for each input": (
        "w = DequantizeLinear<axis=1>(q, d) y = Gemm<transB=1>(f, w)",
        {"q": levels(4, 12), "d": np.ones(12, np.float32)},
        "are not one for each output of Gemm",
    ),
    "alpha": (
        "w = DequantizeLinear(q, d) y = Gemm<transB=1, alpha=2.0>(f, w)",
        {"q": levels(4, 12), "d": np.float32(1)},
        "scales the integers of DequantizeLinear",
    ),
    "computed steps": (
        "e = ReduceMax<keepdims=0>(x) w = DequantizeLinear(q, e) y = Gemm<transB=1>(f, w)",
        {"q": levels(4, 12)},
        "is not a constant",
    ),
}


@pytest.mark.parametrize("body, constants, reason", REFUSED.values(), ids=REFUSED)
def test_refused(body: str, constants: dict[str, Any], reason: str) -> None:
    model = graph(f"(float[N,3,2,2] x) => (float[N,4] y) {{f = Flatten(x) {body}}}", **constants)
    check_refused(PASS, model, reason)


def test_integers_are_not_summed_over_pixels() -> None:
    model = graph(
        "(float[N,3,2,2] x) => (float[N,4] y) {f = Flatten(x) w = DequantizeLinear(q, d)"
        " y = Gemm<transB=1>(f, w)}",
        q=np.repeat(levels(4, 3), 4, axis=1),
        d=np.float32(1),
    )
    check_refused(GAP, model, "are integers, whose sum over pixels may be none")


# ------------------------------------------------------------------ operators on integers alone


def linear(ends: str, x: str, step: Any, zero: Any, **more: Any) -> onnx.ModelProto:
    return graph(
        f"({ends}) => (uint8[N,4] y) {{{x} y = QLinearMatMul(f, a, za, W, d, z, e, ze)}}",
        W=levels(12, 4),
        a=np.float32(0.5),
        za=np.uint8(3),
        d=np.asarray(step),
        z=np.asarray(zero),
        e=np.float32(2),
        ze=np.uint8(100),
        **more,
    )


@pytest.mark.parametrize("x, after", [
    ("f = Flatten(x)", "QLinearConv<kernel_shape=[2,2]> Flatten"),
    ("g = Flatten(x) f = Identity(g)", "Flatten Identity Unsqueeze QLinearConv Flatten"),
])  # fmt: skip
@pytest.mark.parametrize("step, zero", [
    (np.float32(0.25), np.int8(0)),
    (np.float32(0.3), np.int8(1)),
    (np.array([0.1, 0.7, 0.3, 1], np.float32), np.zeros(4, np.int8)),
    (np.array([0.1, 0.7, 0.3, 1], np.float32), np.full(4, 2, np.int8)),
])  # fmt: skip
def test_qlinear_matmul(x: str, after: str, step: Any, zero: Any) -> None:
    check(PASS, linear("uint8[N,3,2,2] x", x, step, zero), after, exact=True)


@pytest.mark.parametrize("zeros", ["", ", zx", ", zx, z"])
@pytest.mark.parametrize("kind, dtype", [("uint8", np.uint8), ("int8", np.int8)])
def test_matmul_integer(kind: str, dtype: Any, zeros: str) -> None:
    model = graph(
        f"({kind}[N,12] x) => (int32[N,4] y) {{y = MatMulInteger(x, W{zeros})}}",
        W=levels(12, 4),
        **({"zx": dtype(5)} if "zx" in zeros else {}),
        **({"z": np.int8(2)} if zeros[-3:] == ", z" else {}),
    )
    check(PASS, model, "Unsqueeze ConvInteger Flatten", exact=True)


def test_matmul_integer_on_a_sequence() -> None:
    model = graph(
        "(uint8[N,6,12] x) => (int32[N,6,4] y) {y = MatMulInteger(x, W)}", W=levels(12, 4)
    )
    check_refused(PASS, model, "the rows of 'x' are not images, but positions of a sequence")
    check(ALL, model, "Transpose ConvInteger Transpose", exact=True)


def test_integers_that_stay() -> None:
    several = linear(
        "uint8[N,3,2,2] x",
        "f = Flatten(x)",
        np.ones(4, np.float32),
        np.array([0, 1, 2, 3], np.int8),
    )
    check_refused(PASS, several, "have several zero points")
    rows = graph(
        "(uint8[2,12] x) => (int32[2,4] y) {y = MatMulInteger(x, W, z)}",
        W=levels(12, 4),
        z=np.array([1, 2], np.uint8),
    )
    check_refused(PASS, rows, "has a step or zero point for each row")
    open_size = graph(
        "(uint8[N,3,H,2] x) => (int32[N,4] y) {f = Flatten(x) y = MatMulInteger(f, W)}",
        W=levels(12, 4),
    )
    check_refused(PASS, open_size, "the size of 'x' is not fixed")


# ------------------------------------------------------------------------------- rows of others


def test_steps_of_an_unrolled_cell_stay() -> None:
    steps = " ".join(f"g{i} = Gemm(h{i}, W, b) h{i + 1} = Tanh(g{i})" for i in range(3))
    model = graph(f"(float[N,4] h0) => (float[N,4] h3) {{{steps}}}", W=(4, 4), b=(4,))
    check_refused(PASS, model, "but steps: 3 layers share the weights 'W'")


def test_regions_of_an_image_stay() -> None:
    model = graph(
        "(float[1,3,8,8] x, float[R,4] r, int64[R] i) => (float[R,4] y) {"
        "a = RoiAlign<output_height=2, output_width=2>(x, r, i) f = Flatten(a)"
        " g = Gemm(f, W) h = Relu(g) y = Gemm(h, V)}",
        W=(12, 5),
        V=(5, 4),
    )
    check_refused(PASS, model, "are not images, but regions: RoiAlign of 'a' cuts them")
