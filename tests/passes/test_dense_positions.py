"""gemm-to-conv on sequences and channel-last maps: before ⇒ after, in integers, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_refused,
    check_replay,
    check_untouched,
    graph,
    operators,
)

ALL = make("gemm-to-conv", {"target": "all"})
DENSE = make("gemm-to-conv")
FEATURES = make("gemm-to-conv", {"target": "features"})


def constants(body: str, **given: Any) -> dict[str, Any]:
    """Return those of `given` that `body` reads: what nothing reads is not wanted in a model."""
    return {name: value for name, value in given.items() if f"{name})" in body}


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


LAYER = "m = MatMul(x, W) y = Add(m, b)"


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("lead", ["N,7", "N,T", "2,3", "N,4,6", "N,2,3,4", "1,1"])
@pytest.mark.parametrize("body", [LAYER, "m = MatMul(x, W) y = Add(b, m)", "y = MatMul(x, W)"])
def test_positions_become_pixels(body: str, lead: str, opset: int) -> None:
    model = graph(
        f"(float[{lead},8] x) => (float[{lead},5] y) {{{body}}}",
        opset=opset,
        ir_version=10 if opset > 17 else 8,
        exact=True,
        W=(8, 5),
        **constants(body.replace("(b, m)", "(m, b)"), b=(5,)),
    )
    pixel = [1] * lead.count(",")
    check(ALL, model, f"Transpose Conv<kernel_shape={pixel}> Transpose", exact=True)
    if opset == 13:
        check_replay(ALL, model)


@pytest.mark.parametrize("bias, after", [
    ((1, 1, 5), "Transpose Conv Transpose"),
    ((1,), "Transpose Conv Transpose"),
    ((), "Transpose Conv Transpose"),
    ((7, 5), "Transpose Conv Transpose Add"),
    ((1, 7, 1), "Transpose Conv Transpose Add"),
    ((3, 1, 7, 5), "Transpose Conv Transpose Add"),
])  # fmt: skip
def test_only_one_value_for_each_output_is_a_bias(bias: tuple[int, ...], after: str) -> None:
    more = "3," if len(bias) > 3 else ""
    model = graph(
        f"(float[N,7,8] x) => (float[{more}N,7,5] y) {{{LAYER}}}", exact=True, W=(8, 5), b=bias
    )
    check(ALL, model, after, exact=True)


LAYOUTS: dict[str, tuple[str, str, str]] = {
    "two layers and an activation": (
        "float[N,7,8] x) => (float[N,7,8] y",
        "a = MatMul(x, W) b = Add(a, c) r = Relu(b) d = MatMul(r, V) y = Add(d, e)",
        "Transpose Conv Relu Conv Transpose",
    ),
    "a residual sum": (
        "float[N,8,3,4] i) => (float[N,8,3,4] y",
        "x = Transpose<perm=[0,2,3,1]>(i) a = MatMul(x, W) r = Relu(a) d = MatMul(r, V)"
        " s = Add(d, x) y = Transpose<perm=[0,3,1,2]>(s)",
        "Conv Relu Conv Add",
    ),
    "a factor per channel": (
        "float[N,8,3,4] i) => (float[N,8,3,4] y",
        "x = Transpose<perm=[0,2,3,1]>(i) a = MatMul(x, W) r = Relu(a) d = MatMul(r, V)"
        " s = Mul(d, e) y = Transpose<perm=[0,3,1,2]>(s)",
        "Conv Relu Conv Mul",
    ),
    "scores over the channels": (
        "float[N,8,3,4] i) => (float[N,5] y",
        "x = Transpose<perm=[0,2,3,1]>(i) a = MatMul(x, W) s = Softmax<axis=-1>(a)"
        " y = ReduceMean<axes=[1,2], keepdims=0>(s)",
        "Conv Softmax<axis=1> ReduceMean<axes=[2,3]>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("ends, body, after", LAYOUTS.values(), ids=LAYOUTS)
def test_transposes_meet_their_inverse(ends: str, body: str, after: str) -> None:
    model = graph(
        f"({ends}) {{{body}}}",
        exact=True,
        **constants(body, W=(8, 5), V=(5, 8), c=(5,), e=(8,)),
    )
    result = check(ALL, model, after, exact="Softmax" not in after)
    check_untouched(ALL, result)


def test_a_sequence_made_rows_is_a_sequence() -> None:
    model = graph(
        "(float[N,7,8] x) => (float[N,7,4] y) {r = Reshape(x, s) g = Gemm<transB=1>(r, W, b)"
        " t = Relu(g) h = Gemm(t, V) y = Reshape(h, u)}",
        exact=True,
        W=(5, 8),
        b=(5,),
        V=(5, 4),
        s=ints(-1, 8),
        u=ints(-1, 7, 4),
    )
    result = check(ALL, model, exact=True)
    (first, *_) = [node for node in result.graph.node if node.op_type == "Conv"]
    kernel = next(t for t in result.graph.initializer if t.name == first.input[1])
    assert list(kernel.dims) == [5, 8, 1]
    assert operators(result).startswith("Transpose Conv")


# ------------------------------------------------------------------------ what stands in the way

STAYS: dict[str, tuple[str, str, Any, str]] = {
    "not asked for": ("float[N,7,8] x", LAYER, DENSE,
                      "the rows of 'x' are not images, but positions of a sequence or map"),
    "two computed": ("float[N,7,8] x, float[N,8,5] k", "y = MatMul(x, k)", ALL,
                     "both operands of MatMul of 'y' are computed: it is no layer"),
    "weights first": ("float[N,8,7] x", "y = MatMul(F, x)", ALL,
                      "the weights of MatMul of 'y' come first"),
    "a stack of weights": ("float[3,7,8] x", "y = MatMul(x, S)", ALL,
                           "MatMul of 'y' has several matrices"),
    "too many axes": ("float[N,2,2,2,7,8] x", LAYER, ALL, "'x' has 6 axes, a Conv at most 5"),
    "double": ("double[N,7,8] x", "y = MatMul(x, D)", ALL, "no Conv of double numbers"),
}  # fmt: skip


@pytest.mark.parametrize("ends, body, step, reason", STAYS.values(), ids=STAYS)
def test_what_stays_is_explained(ends: str, body: str, step: Any, reason: str) -> None:
    kind = "double" if "double" in ends else "float"
    model = graph(
        f"({ends}) => ({kind} y) {{{body}}}",
        exact=True,
        W=(8, 5),
        b=(5,),
        F=(5, 8),
        S=(3, 8, 5),
        D=np.ones((8, 5)),
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    check_refused(step, model, reason)
    assert len(apply_to(step, model)[1].refusals) == 1


def test_features_says_nothing_of_positions() -> None:
    model = graph(f"(float[N,7,8] x) => (float[N,7,5] y) {{{LAYER}}}", W=(8, 5), b=(5,))
    assert not apply_to(FEATURES, model)[1].refusals


@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ("7,1,8", [1, 2, 0]),  # a sequence that comes first, of one batch
        ("7,2,8", [0, 2, 1]),
        ("1,1,8", [0, 2, 1]),
        ("N,1,8", [0, 2, 1]),  # how many there are is not known
        ("7,3,1,8", [2, 3, 0, 1]),
    ],
)
def test_the_positions_of_a_sequence_that_comes_first_are_pixels(
    shape: str, perm: list[int]
) -> None:
    out = f"{shape[:-1]}5"
    model = graph(f"(float[{shape}] x) => (float[{out}] y) {{{LAYER}}}", W=(8, 5), b=(5,))
    result = check(ALL, model)
    (turn, *_) = [node for node in result.graph.node if node.op_type == "Transpose"]
    assert list(turn.attribute[0].ints) == perm
