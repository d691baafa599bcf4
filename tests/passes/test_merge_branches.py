"""merge-branches: sums of linear branches and linear layers in a row become one operator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import graphpass
from graphpass.rewrite.registry import make
from graphpass.testing import (
    check,
    check_refused,
    check_replay,
    check_untouched,
    graph,
    session,
)

PASS = make("merge-branches")
Array = npt.NDArray[Any]


def bn(channels: int, prefix: str = "") -> dict[str, Array]:
    rng = np.random.default_rng(len(prefix))
    draw = {
        "s": rng.uniform(0.5, 1.5, channels),
        "t": rng.normal(size=channels),
        "m": rng.normal(size=channels),
        "v": rng.uniform(0.5, 2, channels),
    }
    return {prefix + name: values.astype(np.float32) for name, values in draw.items()}


def branches(body: str, x: str = "float[N,4,7,6] x", **options: Any) -> onnx.ModelProto:
    """A graph whose nodes are `body`, with weights for all that it names."""
    held: dict[str, Any] = {
        "W": (4, 4, 3, 3),
        "V": (4, 4, 1, 1),
        "U": (4, 1, 3, 3),
        "P": (4, 1, 1, 1),
        "R": (4, 4, 1, 3),
        "C": (4, 4, 3, 1),
        "b": (4,),
        "c": (4,),
        "l": (4, 1, 1),
        **bn(4),
        **options.pop("held", {}),
    }
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in held.items() if name in words}
    dims = len(x.split("[")[1].split("]")[0].split(","))
    shape = ",".join("?" * dims)
    return graph(f"({x}) => (float[{shape}] y) {{{body}}}", **used, **options)


SAME = "pads=[1,1,1,1]"

SUMS = {
    "RepVGG": (
        f"a = Conv<{SAME}>(x, W, b) d = Conv(x, V) e = Add(a, d) "
        "f = BatchNormalization(x, s, t, m, v) y = Add(f, e)",
        "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>",
    ),
    "the input itself": (f"a = Conv<{SAME}>(x, W) y = Add(x, a)", "Conv<kernel_shape=[3,3]>"),
    "the input scaled": (f"a = Conv<{SAME}>(x, W) d = Mul(l, x) y = Add(d, a)", "Conv"),
    "less the input": ("a = Conv(x, V, b) y = Sub(a, x)", "Conv"),
    "the input less": ("a = Conv(x, V, b) y = Sub(x, a)", "Conv"),
    "depthwise with a layer scale, as FastViT": (
        f"a = Conv<{SAME}, group=4>(x, U, b) d = BatchNormalization(x, s, t, m, v) e = Sub(a, d)"
        "f = Mul(l, e) y = Add(x, f)",
        "Conv<group=4, kernel_shape=[3,3]>",
    ),
    "BatchNormalization over the sum, as RepViT": (
        f"a = Conv<{SAME}, group=4>(x, U, b) d = Conv<group=4>(x, P, c) e = Add(a, d) "
        "f = Add(e, x) y = BatchNormalization(f, s, t, m, v)",
        "Conv<group=4>",
    ),
    "ACNet": (
        f"a = Conv<{SAME}>(x, W, b) d = Conv<pads=[0,1,0,1]>(x, R) e = Conv<pads=[1,0,1,0]>(x, C)"
        "f = Add(a, d) y = Add(f, e)",
        "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>",
    ),
    "ACNet, the small ones first": (
        f"a = Conv<{SAME}>(x, W, b) d = Conv<pads=[0,1,0,1]>(x, R) e = Conv<pads=[1,0,1,0]>(x, C)"
        "f = Add(d, e) y = Add(f, a)",
        "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>",
    ),
    "a pooled branch": (
        f"a = Conv<{SAME}>(x, W, b) "
        f"d = AveragePool<kernel_shape=[3,3], {SAME}, count_include_pad=1>(x) y = Add(a, d)",
        "Conv",
    ),
    "DBB: 1x1 and pooling": (
        f"a = Conv<{SAME}>(x, W, b) e = Conv(x, V) "
        f"d = AveragePool<kernel_shape=[3,3], {SAME}, count_include_pad=1>(e) y = Add(d, a)",
        "Conv<kernel_shape=[3,3]>",
    ),
    "DBB: 1x1 and 3x3": (
        f"a = Conv<{SAME}>(x, W, b) e = Conv(x, V) d = Conv<{SAME}>(e, W2, c) y = Add(a, d)",
        "Conv<kernel_shape=[3,3]>",
    ),
    "strides": (
        f"a = Conv<{SAME}, strides=[2,2]>(x, W) d = Conv<strides=[2,2]>(x, V, b) y = Add(a, d)",
        "Conv<strides=[2,2]>",
    ),
    "dilation beside a point": (
        "a = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, W) d = Conv(x, V) y = Add(a, d)",
        "Conv<dilations=[2,2], pads=[2,2,2,2]>",
    ),
    "a kernel off the centre": (
        "a = Conv<pads=[2,2,0,0]>(x, W) d = Conv(x, V) y = Add(a, d)",
        "Conv<kernel_shape=[3,3], pads=[2,2,0,0]>",
    ),
    "even kernels": (
        "a = Conv<pads=[1,0,1,0], group=1>(x, E) d = Conv<pads=[1,0,1,0]>(x, E2) y = Add(a, d)",
        "Conv<kernel_shape=[3,1]>",
    ),
    "groups of a small kernel beside none": (
        f"a = Conv<{SAME}>(x, W) d = Conv<group=2>(x, G, b) y = Add(a, d)",
        "Conv<group=1>",
    ),
    "auto_pad": ('a = Conv<auto_pad="SAME_UPPER">(x, W) y = Add(a, x)', "Conv<pads=[1,1,1,1]>"),
    "auto_pad, even": (
        'a = Conv<auto_pad="SAME_LOWER">(x, Q) d = Conv(x, V) y = Add(a, d)',
        "Conv<pads=[1,1,0,0]>",
    ),
    "more beside it": (
        f"r = Relu(x) a = Conv<{SAME}>(x, W, b) d = Add(r, a) e = Conv(x, V) y = Add(e, d)",
        "Relu Conv Add",
    ),
    "differences": (
        f"r = Relu(x) a = Conv<{SAME}>(x, W, b) d = Sub(r, a) e = Conv(x, V) y = Sub(e, d)",
        "Relu Conv Sub",
    ),
    "differences with more to add": (
        f"r = Relu(x) a = Conv<{SAME}>(x, W, b) d = Sub(a, r) e = Conv(x, V) y = Sub(e, d)",
        "Relu Conv Add",
    ),
    "Sum": (
        f"a = Conv<{SAME}>(x, W, b) d = Conv(x, V) r = Relu(x) y = Sum(r, a, x, d)",
        "Relu Conv Add",
    ),
}
SMALL = {
    "W2": (4, 4, 3, 3),
    "E": (4, 4, 3, 1),
    "E2": (4, 4, 3, 1),
    "G": (4, 2, 1, 1),
    "Q": (4, 4, 2, 2),
}


@pytest.mark.parametrize(("body", "after"), SUMS.values(), ids=SUMS)
def test_sums(body: str, after: str) -> None:
    model = branches(body, held=SMALL)
    check(PASS, model, after)
    if "AveragePool" not in body:  # a ninth is no small integer
        check_replay(PASS, model)


@pytest.mark.parametrize("opset", [7, 9, 13, 17, 21])
def test_opsets(opset: int) -> None:
    body, after = SUMS["RepVGG"]
    check(PASS, branches(body, opset=opset), after)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_types(kind: str) -> None:
    array = {"float16": np.float16, "double": np.float64}[kind]
    rng = np.random.default_rng(0)
    model = graph(
        f"({kind}[N,4,5] x) => ({kind}[N,4,5] y)"
        "{a = Conv<pads=[1,1]>(x, W) d = Conv(x, V) e = Add(a, d) y = Add(e, x)}",
        W=rng.normal(size=(4, 4, 3)).astype(array),
        V=rng.normal(size=(4, 4, 1)).astype(array),
    )
    if kind == "double":  # ONNX Runtime has no such Conv: only what is computed of it is looked at
        model.graph.node[0].op_type = model.graph.node[1].op_type = "MatMul"
        del model.graph.node[0].attribute[:]
        for tensor in model.graph.initializer:
            tensor.CopyFrom(onnx.numpy_helper.from_array(rng.normal(size=(5, 5)), tensor.name))
    check(PASS, model, "Conv" if kind == "float16" else "MatMul")


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_one_to_three_axes_in_groups(axes: int, group: int) -> None:
    sizes = ",".join(["7", "6", "5"][:axes])
    pads = f"[{','.join('1' * 2 * axes)}]"
    body = (
        f"a = Conv<pads={pads}, group={group}>(x, W, b) d = Conv<group={group}>(x, V) "
        "e = Add(a, d) y = Add(e, x)"
    )
    held = {"W": (4, 4 // group, *[3] * axes), "V": (4, 4 // group, *[1] * axes)}
    model = branches(body, f"float[N,4,{sizes}] x", held=held)
    check(PASS, model, f"Conv<group={group}>")
    check_replay(PASS, model)


def test_any_number_of_branches_over_inputs_of_unknown_size() -> None:
    names = [f"W{index}" for index in range(6)]
    parts = [f"a{i} = Conv<pads=[{i % 2},{i % 2}]>(x, {name})" for i, name in enumerate(names)]
    sums = ["s0 = Add(a0, a1)", *(f"s{i} = Add(s{i - 1}, a{i + 1})" for i in range(1, 5))]
    model = branches(
        " ".join((*parts, *sums, "y = Add(x, s4)")),
        "float[N,4,L] x",
        held={name: (4, 4, 1 + 2 * (i % 2)) for i, name in enumerate(names)},
    )
    check(PASS, model, "Conv<kernel_shape=[3]>")
    check_replay(PASS, model)


LAYERS = {
    "LoRA": (
        "a = MatMul(x, W) d = Add(c, a) e = MatMul(x, A) f = MatMul(e, B) g = Mul(f, k) "
        "y = Add(d, g)",
        "MatMul Add",
    ),
    "two layers": (
        "a = MatMul(x, W) d = Add(a, c) e = MatMul(x, V) f = Add(e, c2) y = Add(d, f)",
        "MatMul Add",
    ),
    "a layer and its input": ("a = MatMul(x, Q) y = Add(x, a)", "MatMul"),
    "a bottleneck that is none": ("a = MatMul(x, X) y = MatMul(a, Y)", "MatMul"),
    "with a bias between": ("a = MatMul(x, X) d = Add(x9, a) y = MatMul(d, Y)", "MatMul Add"),
    "with a bias after both": (
        "a = MatMul(x, X) d = Sub(x9, a) e = MatMul(d, Y) y = Add(e, c)",
        "MatMul Add",
    ),
}


@pytest.mark.parametrize(("body", "after"), LAYERS.values(), ids=LAYERS)
def test_matrices(body: str, after: str) -> None:
    held = {
        "W": (8, 6),
        "V": (8, 6),
        "c": (6,),
        "c2": (6,),
        "A": (8, 2),
        "B": (2, 6),
        "k": np.float32(2),
        "Q": (8, 8),
        "X": (8, 9),
        "x9": (9,),
        "Y": (9, 6),
    }
    model = branches(body, "float[N,5,8] x", held=held)
    check(PASS, model, after)
    check_replay(PASS, model)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Gemm<transB=1>(x, W, b) d = Gemm(x, V, c) y = Add(a, d)", "Gemm"),
        ("a = Gemm<transB=1, alpha=2.0, beta=3.0>(x, W, b) d = MatMul(x, V) y = Sub(a, d)", "Gemm"),
        ("a = Gemm<transB=1>(x, W, b) d = BatchNormalization(x, s, t, m, v) y = Add(a, d)", "Gemm"),
        (
            "f = BatchNormalization(x, s, t, m, v) a = Gemm(f, W, b) d = Gemm(x, V, c)"
            "e = Add(a, d) y = Div(e, two)",
            "Gemm",
        ),
        ("a = Gemm(x, X, w) y = Gemm<beta=2.0>(a, Y, b)", "Gemm"),
        ("a = Gemm(x, X) y = MatMul(a, Y)", "Gemm"),
        # a sum that came in as the C of one of them
        ("a = Gemm(x, W, b) d = MatMul(x, V) y = Gemm(d, W2, a)", "Gemm"),
        ("a = Gemm<transB=1>(x, W, b) y = Gemm<alpha=2.0, beta=3.0>(x, V, a)", "Gemm"),
        ("f = Mul(x, two) y = Gemm(f, W, x)", "Gemm"),
        ("a = BatchNormalization(x, s, t, m, v) y = Gemm<beta=0.5>(x, V, a)", "Gemm"),
    ],
)
def test_gemm(body: str, after: str) -> None:
    held = {
        "W": (4, 4),
        "V": (4, 4),
        "W2": (4, 4),
        "two": np.float32(2),
        "X": (4, 9),
        "w": (9,),
        "Y": (9, 4),
    }
    model = branches(body, "float[N,4] x", held=held)
    check(PASS, model, after)
    check_replay(PASS, model)


ROWS = {
    "1x1 behind 3x3, padded, with a bias": (f"a = Conv<{SAME}>(x, W, b) y = Conv(a, V, c)", {}),
    "1x1 behind 3x3, both with strides": (
        f"a = Conv<{SAME}, strides=[2,1]>(x, W, b) y = Conv<strides=[1,2]>(a, V, c)",
        {},
    ),
    "3x3 behind 1x1 with a bias, unpadded": ("a = Conv(x, T, b9) y = Conv(a, Z, c)", {}),
    "3x3 behind 1x1, padded": (f"a = Conv(x, T) y = Conv<{SAME}>(a, Z, c)", {}),
    "3x3 behind 1x1 with a stride": (
        "a = Conv<strides=[2,2]>(x, T) y = Conv<pads=[1,0,1,1]>(a, Z, c)",
        {},
    ),
    "dilation behind a stride": (
        "a = Conv<strides=[2,1]>(x, T) y = Conv<pads=[0,2,0,2], dilations=[1,2]>(a, Z, c)",
        {},
    ),
    "depthwise 1x1 behind depthwise": (
        f"a = Conv<{SAME}, group=4>(x, U, b) y = Conv<group=4>(a, P, c)",
        {},
    ),
    "in groups": (
        f"a = Conv<{SAME}, group=2>(x, G3, b) y = Conv<group=2>(a, G, c)",
        {"G3": (4, 2, 3, 3), "G": (4, 2, 1, 1)},
    ),
}


@pytest.mark.parametrize(("body", "held"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("size", [(7, 6), (8, 9)])
def test_one_behind_the_other(body: str, held: dict[str, Any], size: tuple[int, int]) -> None:
    held = {"T": (9, 4, 1, 1), "b9": (9,), "Z": (4, 9, 3, 3), **held}
    model = branches(body, f"float[N,4,{size[0]},{size[1]}] x", held=held)
    check(PASS, model, "Conv")
    check_replay(PASS, model)


REFUSED = {
    "strides": (
        "a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, W) d = Conv<strides=[2,1]>(x, V) y = Add(a, d)",
        "move by strides [2, 2] and [2, 1]",
    ),
    "a map that is broadcast": (
        "a = Conv(x, F) d = Conv(x, V) y = Add(a, d)",
        "pad so differently that their results may differ in size",
    ),
    "channels that are broadcast": (
        "a = Conv(x, one) y = Add(a, x)",
        "'x' makes 4 channels of 4, Conv of 'a' makes 1 of 4",
    ),
    "dilations": (
        f"a = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, W) d = Conv<{SAME}>(x, W2) y = Add(a, d)",
        "have dilations [2, 2] and [1, 1]",
    ),
    "taps between the others": (
        "a = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, W) "
        f"d = Conv<{SAME}, dilations=[2,2]>(x, Q2) y = Add(a, d)",
        "do not lie on one grid",
    ),
    "a cross becomes a square": (
        "a = Conv<pads=[0,1,0,1]>(x, R) d = Conv<pads=[1,0,1,0]>(x, C) y = Add(a, d)",
        "would take 144 multiplications for a position instead of 96",
    ),
    "depthwise beside dense": (
        f"a = Conv<{SAME}, group=4>(x, U) d = Conv(x, V) y = Add(a, d)",
        "would take 144 multiplications for a position instead of 52",
    ),
    "average without its padding": (
        f"a = Conv<{SAME}>(x, W) d = AveragePool<kernel_shape=[3,3], {SAME}>(x) y = Add(a, d)",
        "leaves what it pads out of its mean",
    ),
    "average that rounds up": (
        "a = Conv(x, W) d = AveragePool<kernel_shape=[3,3], ceil_mode=1>(x) y = Add(a, d)",
        "rounds its size up",
    ),
    "another reader": (
        f"a = Conv<{SAME}>(x, W) d = Conv(x, V) e = Add(a, d) f = Relu(d) y = Add(e, f)",
        "feeds 2 nodes",
    ),
    "a weight of two": (
        f"a = Conv<{SAME}>(x, W) d = Conv(x, V) e = Add(a, d) f = Relu(e) y = Conv(f, V)",
        "'V' has other readers",
    ),
    "pads that depend on the size": (
        'a = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, W) d = Conv<strides=[2,2]>(x, V)'
        "y = Add(a, d)",
        "depends on the size of 'x'",
    ),
    "a padded kernel behind a bias": (
        f"a = Conv(x, V, b) y = Conv<{SAME}>(a, U1, c)",
        "pads with zeros, which the bias of Conv of 'a' does not reach",
    ),
    "a padded kernel behind a kernel": (
        f"a = Conv<{SAME}>(x, W) y = Conv<{SAME}>(a, U1, c)",
        "pads the result of Conv of 'a' with zeros",
    ),
    "a bottleneck": (
        "a = Conv(x, N) y = Conv(a, L)",
        "would take 16 multiplications for a position instead of 8",
    ),
    "values that are not finite": (
        f"a = Conv<{SAME}>(x, W) d = Conv(x, bad) y = Add(a, d)",
        "hold values that are not finite",
    ),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals(body: str, reason: str) -> None:
    held = {
        "F": (4, 4, 7, 6),
        "one": (1, 4, 1, 1),
        "W2": (4, 4, 3, 3),
        "Q2": (4, 4, 2, 2),
        "U1": (4, 4, 3, 3),
        "N": (1, 4, 1, 1),
        "L": (4, 1, 1, 1),
        "bad": np.full((4, 4, 1, 1), np.inf, np.float32),
    }
    x = "float[N,4,H,W] x" if "depend" in reason else "float[N,4,7,6] x"
    check_refused(PASS, branches(body, x, held=held), reason)


def test_refused_where_a_branch_is_an_output() -> None:
    model = graph(
        "(float[N,4,7,6] x) => (float[N,4,7,6] y, float[N,4,7,6] d)"
        "{a = Conv<pads=[1,1,1,1]>(x, W) d = Conv(x, V) y = Add(a, d)}",
        W=(4, 4, 3, 3),
        V=(4, 4, 1, 1),
    )
    check_refused(PASS, model, "Conv of 'd' is an output of the graph")


def test_refused_where_a_weight_may_be_overridden() -> None:
    model = graph(
        "(float[N,4,7,6] x, float[4,4,1,1] V) => (float[N,4,7,6] y)"
        "{a = Conv<pads=[1,1,1,1]>(x, W) d = Conv(x, V) y = Add(a, d)}",
        W=(4, 4, 3, 3),
        V=(4, 4, 1, 1),
    )
    check_refused(PASS, model, "'V', which Conv of 'd' reads, may be overridden at run time")


def test_a_computed_weight_is_another_structure() -> None:
    model = graph(
        "(float[N,4,7,6] x, float[4,4,1,1] V) => (float[N,4,7,6] y)"
        "{a = Conv<pads=[1,1,1,1]>(x, W) d = Conv(x, V) y = Add(a, d)}",
        W=(4, 4, 3, 3),
    )
    check_untouched(PASS, model)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Conv(x, W) d = Conv(x, W2) y = Add(a, d)", "overflows float16"),
        ("a = Conv(x, T) y = Conv(a, T2)", "so small that float16 loses their digits"),
        ("a = Conv(x, W, b) d = Conv(x, W3, b2) y = Add(a, d)", "would overflow float16"),
    ],
)
def test_refused_where_float16_is_too_narrow(body: str, reason: str) -> None:
    def half(value: float, *shape: int) -> Array:
        return np.full(shape, value, np.float16)

    held: dict[str, Any] = {
        "W": half(4e4, 4, 4, 1, 1),
        "W2": half(4e4, 4, 4, 1, 1),
        "W3": half(1, 4, 4, 1, 1),
        "b": half(4e4, 4),
        "b2": half(4e4, 4),
        "T": half(1.1e-4, 4, 4, 1, 1),
        "T2": half(1.3e-4, 4, 4, 1, 1),
    }
    model = graph(
        f"(float16[N,4,3,3] x) => (float16[N,4,3,3] y) {{{body}}}",
        **{name: value for name, value in held.items() if f" {name}" in body},
    )
    check_refused(PASS, model, reason)


def test_no_pair_is_worth_a_weight_that_stays() -> None:
    """Two blocks that share their weights keep them: merged, the file would hold more."""
    body = (
        f"a = Conv<{SAME}>(x, W) d = Conv(x, V) e = Add(a, d) r = Relu(e) "
        f"f = Conv<{SAME}>(r, W) g = Conv(r, V) y = Add(f, g)"
    )
    check_refused(PASS, branches(body), "has other readers, for which it would have to stay")


def test_weights_that_cancel_are_no_less_exact_than_before() -> None:
    """What is left of large weights is what their rounding left, to the last bit of the sum."""
    rng = np.random.default_rng(0)
    large = (1000 * rng.normal(size=(4, 4, 1, 1))).astype(np.float32)
    model = graph(
        "(float[N,4,7,6] x) => (float[N,4,7,6] y) {a = Conv(x, W) d = Conv(x, V) y = Add(a, d)}",
        W=large,
        V=(np.float32(1e-3) * rng.normal(size=(4, 4, 1, 1)) - large).astype(np.float32),
    )
    after = check(PASS, model, "Conv", rtol=1.0)
    (weight,) = [onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer]
    held = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert np.array_equal(weight, (held[0].astype(np.float64) + held[1]).astype(np.float32))


def test_folds_alone_leave_the_sum() -> None:
    body, _ = SUMS["RepVGG"]
    check(make("fold-batchnorm"), branches(body), "Conv Conv Add BatchNormalization Add")


@pytest.mark.parametrize("seed", range(12))
def test_drawn_sums_and_compositions(seed: int) -> None:
    """Kernels, pads, strides, dilations and groups as they come: merged or refused, never wrong."""
    rng = np.random.default_rng(seed)
    kernels = rng.integers(1, 4, (2, 2))
    pads = rng.integers(0, 2, (2, 4)) if seed % 2 else np.zeros((2, 4), int)
    steps, apart = rng.integers(1, 3, (2, 2)), rng.integers(1, 3, (2, 2))
    if seed % 3:
        steps[1], apart[1] = steps[0], apart[0]
        kernels[1] = 1
        pads[1] = 0
        if seed % 3 == 1:
            pads[0] = [*(d * (k - 1) // 2 for d, k in zip(apart[0], kernels[0], strict=True))] * 2
    groups = [int(g) for g in rng.choice([1, 2, 4], 2)]
    listed = [
        f"pads={list(map(int, pads[i]))}, strides={list(map(int, steps[i]))}, "
        f"dilations={list(map(int, apart[i]))}, group={groups[i]}"
        for i in (0, 1)
    ]
    held = {f"W{i}": (4, 4 // groups[i], *map(int, kernels[i])) for i in (0, 1)}
    for body in (
        f"a = Conv<{listed[0]}>(x, W0, b) d = Conv<{listed[1]}>(x, W1, c) y = Add(a, d)",
        f"a = Conv<{listed[0]}>(x, W0, b) y = Conv<{listed[1]}>(a, W1, c)",
        f"a = Conv<{listed[1]}>(x, W1) y = Conv<{listed[0]}>(a, W0)",
    ):
        model = branches(body, "float[N,4,11,10] x", held=held)
        try:
            session(model).run(None, {"x": np.zeros((1, 4, 11, 10), np.float32)})
        except Exception:  # ONNX Runtime's: the two do not fit
            continue
        check(PASS, model)


# ---------------------------------------------------------------------- padded with the bias


def edges(shape: tuple[int, ...], axis: int, place: int) -> Array:
    """Return the indices of one row of a map, as slices that are assigned to are exported."""
    row = np.array([place])
    counted = np.indices(shape).take(row, axis + 1)
    return np.moveaxis(counted, 0, -1).astype(np.int64)


def padded(
    *,
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    sides: str = "tblr",
    off: float = 0.0,
    turned: bool = False,
    conv: str = "Conv(x, V, b)",
    last: str = "y = Conv(p, W, c)",
    batch: int = 1,
    bias: Sequence[int] = (1, -2, 3, 2),
) -> onnx.ModelProto:
    """A map whose edges get the bias, one side after the other."""
    top, left, bottom, right = pads
    high, wide = 5 + top + bottom, 4 + left + right
    shape = (batch, 4, high, wide)
    values_of_bias = np.array(bias, np.float32)
    rows = {
        "t": [(2, k) for k in range(top)],
        "b": [(2, high - 1 - k) for k in range(bottom)],
        "l": [(3, k) for k in range(left)],
        "r": [(3, wide - 1 - k) for k in range(right)],
        "i": [(2, 3)],
    }
    held: dict[str, Any] = {
        "b": values_of_bias,
        "pads": np.array([0, 0, *pads[:2], 0, 0, *pads[2:]]),
    }
    body, name = f"a = {conv} d = Pad(a, pads) ", "d"
    for number, (axis, place) in enumerate(r for side in sides for r in rows[side]):
        indices = edges(shape, axis, place)
        values = np.broadcast_to(values_of_bias.reshape(1, 4, 1, 1) + off, indices.shape[:-1])
        source = name
        if turned:  # the axis in front, and one index for it
            source, perm = f"q{number}", [0, 1, 2, 3]
            perm[0], perm[axis] = axis, 0
            body += f"{source} = Transpose<perm={perm}>({name}) "
            indices, values = np.array([[place]]), values.transpose(perm)
        made = f"s{number}"
        held |= {f"i{number}": indices, f"u{number}": np.ascontiguousarray(values, np.float32)}
        body += f"{made} = ScatterND({source}, i{number}, u{number}) "
        if turned:
            made = f"t{number}"
            body += f"{made} = Transpose<perm={perm}>(s{number}) "
        name = made
    body += last.replace("(p", f"({name}")
    return branches(body, f"float[{batch},4,5,4] x", held=held, exact=True)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"turned": True},
        {"batch": 2},
        {"pads": (2, 1, 0, 1), "last": "y = Conv(p, V, c)"},
        {"last": "y = AveragePool<kernel_shape=[3,3], count_include_pad=1>(p)"},
        {"conv": "Conv<group=4>(x, P, b)"},
    ],
)
def test_padded_with_the_bias(given: dict[str, Any]) -> None:
    # weights are small integers; a mean over nine of them is rounded
    for bias in ((1, -2, 3, 2), (0, 3, -3, 1), (-1, -1, 2, -3)):
        mean = "AveragePool" in given.get("last", "")
        result = check(PASS, padded(bias=bias, **given), exact=not mean)
    kinds = {node.op_type for node in result.graph.node}
    assert kinds <= {"Conv", "AveragePool"}
    assert len(result.graph.node) <= 2


@pytest.mark.parametrize(
    "given",
    [
        {"sides": "tbl"},  # zeros are left on one side
        {"sides": "itblr"},  # and a row inside is written
        {"conv": "Conv<pads=[1,1,1,1]>(x, W, b)"},  # it sees its neighbours
    ],
)
def test_padded_with_something_else(given: dict[str, Any]) -> None:
    check_untouched(PASS, padded(**given))


def test_padded_with_rounding_or_more() -> None:
    check(PASS, padded(off=2e-7), "Conv", rtol=1e-6)
    check_refused(PASS, padded(off=1e-4), "is padded with another number than the bias of")


def test_padded_and_read_elsewhere() -> None:
    last = "e = Conv(p, W, c) f = GlobalMaxPool(d) y = Add(e, f)"
    check_refused(PASS, padded(last=last), "Pad of 'd' feeds 2 nodes")


def test_refused_where_the_c_of_a_gemm_is_no_branch() -> None:
    held = {"W": (4, 4), "V": (4, 4), "O": (4, 1)}
    for body, reason in (
        ("a = MatMul(x, O) y = Gemm(x, V, a)", "makes 4 channels of 4, MatMul of 'a' makes 1 of 4"),
        ("a = MatMul(x, W) y = Gemm<transA=1>(x, V, a)", "Gemm of 'y' transposes its input"),
    ):
        x = "float[4,4] x" if "transA" in body else "float[N,4] x"
        check_refused(PASS, branches(body, x, held=held), reason)
    # a C over something else stays
    body = "r = Relu(x) a = MatMul(r, W) y = Gemm(x, V, a)"
    check_untouched(PASS, branches(body, "float[N,4] x", held=held))


# --------------------------------------------------------------------------- the whole model


def test_at_the_end_of_a_long_chain_the_whole_model_is_within_its_noise() -> None:
    rng = np.random.default_rng(0)
    turns = {f"W{k}": np.linalg.qr(rng.normal(size=(8, 8)))[0] for k in range(60)}
    held: dict[str, Any] = {name: turn.astype(np.float32) for name, turn in turns.items()}
    names = ["x", *(f"a{k}" for k in range(59)), "y"]
    pairs = itertools.pairwise(names)
    body = " ".join(f"{b} = MatMul({a}, W{k})" for k, (a, b) in enumerate(pairs))
    model = graph(f"(float[N,8] x) => (float[N,8] y) {{{body}}}", **held)
    with graphpass.optimize(model, "merge-branches", latency=False) as result:
        (told,) = result.report.passes
        assert len(result.model.graph.node) == 1
        assert (len(told.rewrites), told.quarantined) == (59, [])
        assert told.check is not None and told.check.status == "within tolerance"
        worst = max(told.check.comparisons, key=lambda entry: entry.error / entry.tolerance)
        assert worst.error < 2e-6  # of 59 merges; one may round by 6e-8


def test_weights_that_cancel_are_undone_and_named_where_the_whole_is_out_of_tolerance() -> None:
    """Each window is within its bound, which knows how large the weights are."""
    rng = np.random.default_rng(0)
    large = (1e5 * rng.normal(size=(4, 4, 3, 3))).astype(np.float32)
    body = "a = Conv(x, V) b = Conv(x, W) y = Add(a, b)"
    rest = (rng.normal(size=large.shape) - large).astype(np.float32)
    model = graph(f"(float[N,4,6,6] x) => (float[N,4,4,4] y) {{{body}}}", V=large, W=rest)
    with graphpass.optimize(model, "merge-branches", latency=False, rtol=1e-4) as result:
        (told,) = result.report.passes
        assert [node.op_type for node in result.model.graph.node] == ["Conv", "Conv", "Add"]
        (out,) = told.quarantined
        assert (out.rewrite.rule, out.rewrite.site) == ("SumOfBranches", "y")
        assert out.rewrite.proof is not None and out.rewrite.proof.ok
        assert "'y' differs by" in out.reason
