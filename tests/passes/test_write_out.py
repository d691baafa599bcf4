"""write-out: what ONNX defines by smaller operators is written in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphpass.errors import UsageError
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_refused, check_untouched, graph, session

PASS = make("write-out")
MEAN = "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul"


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis", "width"),
    [("N,6", -1, (6,)), ("N,5,6", 2, (6,)), ("N,5,6", 1, (5, 6)), ("2,3,4,5", -2, (4, 5))],
)
def test_layer_normalization(
    shape: str, axis: int, width: tuple[int, ...], bias: bool, opset: int
) -> None:
    text = (
        f"(float[{shape}] x) => (float[{shape}] y)"
        f" {{ y = LayerNormalization<axis={axis}, epsilon=0.01>(x, s{', b' if bias else ''}) }}"
    )
    terms: dict[str, Any] = {"b": width} if bias else {}
    model = graph(text, opset=opset, s=width, **terms)
    check(PASS, model, MEAN + (" Add" if bias else ""))


def test_over_channels_it_lets_transposes_meet() -> None:
    text = """(float[N,6,4,4] x) => (float[N,6,4,4] y) {
        t = Transpose<perm=[0,2,3,1]>(x)  n = LayerNormalization(t, s, b)
        m = MatMul(n, W)  y = Transpose<perm=[0,3,1,2]>(m)
    }"""
    model = graph(text, s=(6,), b=(6,), W=(6, 6))
    steps = [make("write-out"), make("gemm-to-conv", {"target": "all"})]
    check(steps, model, f"{MEAN} Add Conv")
    after = model
    for step in steps:
        after = apply_to(step, after)[0]
    axes = [
        a.ints[0]
        for n in after.graph.node
        if n.op_type == "ReduceMean"
        for a in n.attribute
        if a.name == "axes"
    ]
    assert axes == [1, 1]


def test_as_onnx_defines_it_also_where_numbers_are_large() -> None:
    model = graph(
        "(float[1,4] x) => (float[1,4] y) { y = LayerNormalization(x, s) }",
        s=np.ones(4, np.float32),
    )
    after = apply_to(PASS, model)[0]
    x = np.array([[1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3]], np.float32)
    exact = (x.astype(float) - x.mean()) / np.sqrt(x.astype(float).var() + 1e-5)
    np.testing.assert_allclose(session(after).run(None, {"x": x})[0], exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "(float[2,4] x) => (float[2,4] y, float[2,1] m) { y, m = LayerNormalization(x, s) }",
            "has further outputs that are used",
        ),
        (
            "(float16[2,4] x, float16[4] h) => (float16[2,4] y) { y = LayerNormalization(x, h) }",
            "computes in float32 what is float16",
        ),
    ],
)
def test_refused(text: str, reason: str) -> None:
    check_refused(PASS, graph(text, s=(4,)), reason)


@pytest.mark.parametrize("opset", [14, 18])
def test_hard_swish_is_equal_to_the_bit(opset: int) -> None:
    model = graph("(float[N,7] x) => (float[N,7] y) { y = HardSwish(x) }", opset=opset)
    check(PASS, model, "HardSigmoid Mul")
    x = np.array([[np.nan, np.inf, -np.inf, -0.0, 3.0, -3.0, 0.7]], np.float32)
    (before,), (after,) = (
        session(m).run(None, {"x": x}) for m in (model, apply_to(PASS, model)[0])
    )
    np.testing.assert_array_equal(before, after)


def test_gelu() -> None:
    text = "(float[N,7] x) => (float[N,7] y) { y = Gelu(x) }"
    check(PASS, graph(text, opset=20), "Div Erf Add Mul Mul")
    tanh = text.replace("Gelu", 'Gelu<approximate="tanh">')
    check_untouched(PASS, graph(tanh, opset=20))


def test_only_what_is_asked_for() -> None:
    model = graph(
        "(float[N,7] x) => (float[N,7] y) { h = HardSwish(x) y = LayerNormalization(h, s) }", s=(7,)
    )
    check(
        make("write-out", {"operators": "HardSwish"}), model, "HardSigmoid Mul LayerNormalization"
    )
    with pytest.raises(UsageError, match="write-out knows LayerNormalization, HardSwish, Gelu"):
        make("write-out", {"operators": "Softmax"})
