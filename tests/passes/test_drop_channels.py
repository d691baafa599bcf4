"""drop-channels: filters of zeros, and channels that nobody reads, leave the model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper

from graphpass.ir.cost import cost_of
from graphpass.rewrite.registry import make
from graphpass.testing import check, check_refused, check_replay, check_untouched, graph

PASS = make("drop-channels")
Array = npt.NDArray[Any]


def weights(*shape: int, zero: tuple[int, ...] = (), axis: int = 0) -> Array:
    rng = np.random.default_rng(shape)
    array = rng.integers(1, 4, shape) * rng.choice([-1, 1], shape)
    array[(slice(None),) * axis + (list(zero),)] = 0
    made: Array = array.astype(np.float32)
    return made


def model(body: str, **constants: Array) -> Any:
    held: dict[str, Any] = {
        "W": weights(6, 3, 3, 3, zero=(1, 4)),
        "b": np.array([1, -2, 3, -1, 0, 2], np.float32),
        "V": weights(5, 6, 3, 3, zero=(5,), axis=1),
        "P": weights(5, 6, 1, 1),
        "c": weights(5),
        **constants,
    }
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in held.items() if name in words}
    return graph(f"(float[N,3,8,7] x) => (float[?,?,?,?] y) {{{body}}}", **used)


def channels(result: Any) -> int:
    tensors = {t.name: t for t in result.graph.initializer}
    return int(numpy_helper.to_array(tensors[result.graph.node[0].input[1]]).shape[0])


POSITIVE = {"b": np.array([1, 2, 3, -1, 0, 2], np.float32)}


@pytest.mark.parametrize(
    ("body", "constants", "left"),
    [
        # 1 and 4 give max(-2, 0) = 0 and 0; nobody reads 5
        ("a = Conv(x, W, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, V, c)", {}, 3),
        ("a = Conv(x, W) y = Conv<pads=[1,1,1,1]>(a, V)", {}, 3),
        # 1 gives 2, which goes into the bias where nothing is padded
        ("a = Conv(x, W, b) r = Relu(a) y = Conv(r, V, c)", POSITIVE, 3),
        ("a = Conv(x, W, b) r = Relu(a) y = Conv(r, V)", POSITIVE, 3),
        ("a = Conv(x, W, b) y = Conv<strides=[2,1]>(a, V, c)", POSITIVE, 3),
        ("a = Conv(x, W, b) r = LeakyRelu<alpha=0.5>(a) y = Conv(r, V, c)", {}, 3),
        # and stays where it is padded
        ("a = Conv(x, W, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, V, c)", POSITIVE, 4),
        ("a = Conv(x, W, b) r = Tanh(a) y = Conv<pads=[1,1,1,1]>(r, P, c)", {}, 5),
        ("a = Conv(x, Z) y = Conv<pads=[1,1,1,1]>(a, V)", {"Z": weights(6, 3, 3, 3) * 0}, 1),
    ],
)
def test_dropped(body: str, constants: dict[str, Array], left: int) -> None:
    result = check(PASS, model(body, **constants), exact="Tanh" not in body)
    assert channels(result) == left
    assert [node.op_type for node in result.graph.node] == re.findall(r"= (\w+)", body)


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, F, b) r = Relu(a) y = Conv(r, P, c)",  # all count
        "a = Conv(x, W, b) r = Softmax<axis=1>(a) y = Conv(r, V, c)",  # channels meet
        "a = Conv(x, One) y = Conv(a, Q)",
        "a = Conv(x, F, b) r = Relu(a) s = Tanh(r) t = Add(r, s) y = Conv(t, P)",  # no dead one
    ],
)
def test_another_structure(body: str) -> None:
    more = {
        "F": weights(6, 3, 3, 3),
        "One": weights(1, 3, 1, 1) * 0,
        "Q": weights(5, 1, 1, 1),
    }
    check_untouched(PASS, model(body, **more))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "a = Conv(x, W, b) r = Relu(a) y = Conv<pads=[1,0,0,0]>(r, P, c)",
            "2 channels of Conv of 'a' are constant, but not 0 where Conv of 'y' pads",
        ),
        (
            "a = Conv(x, W, b) r = Softplus(a) y = Conv(r, P, c)",
            "2 channels of Conv of 'a' are constant, but not of a known value where Conv of 'y'",
        ),
        (
            "a = Conv(x, W, b) r = Relu(a) s = Exp(r) t = Conv(r, P) u = Conv(s, P2) y = Add(t, u)",
            "not of a known value where Conv of 'u' reads them",
        ),
        (
            "a = Conv(x, W) r = Relu(a) p = Conv(r, P) q = Conv(x, W) t = Conv(q, P2) "
            "y = Add(p, t)",
            "2 channels of Conv of 'a' are constant, but 'W' has other readers",
        ),
        ("a = Conv(x, W) y = Softmax<axis=1>(a)", "but Softmax of 'y' reads them"),
        ("a = Conv(x, W) y = Relu(a)", "but 'y' is an output of the graph"),
        # the other branch is not constant there
        (
            "a = Conv(x, W) d = Conv(x, F) s = Add(a, d) y = Conv(s, P)",
            "2 channels of Conv of 'a' are constant, but not of a known value where Conv of 'y'",
        ),
        # one group would have fewer than the other
        ("a = Conv(x, T) r = Relu(a) y = Conv<group=2>(r, G)", ""),
        # a mean that counts padding is not the same at each pixel
        (
            "a = Conv(x, W, b) p = AveragePool<kernel_shape=[2,2], pads=[1,1,0,0], "
            "count_include_pad=1>(a) y = Conv(p, P)",
            "not of a known value where Conv of 'y' reads them",
        ),
        (
            "a = Conv(x, W, b) p = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(a) "
            "y = Conv(p, P)",
            "not of a known value where Conv of 'y' reads them",
        ),
        (
            "a = Conv(x, W, b) p = Pad(a, pads) y = Conv(p, P)",
            "not of a known value where Conv of 'y' reads them",
        ),
        (
            'a = Conv(x, W, b) r = Resize<mode="linear", '
            'coordinate_transformation_mode="tf_crop_and_resize">(a, roi, twice) y = Conv(r, P)',
            "not of a known value where Conv of 'y' reads them",
        ),
        ("a = Conv(x, W) g = GlobalAveragePool(a) y = Tile(g, many)", "Tile of 'y' reads them"),
        # a MatMul has no bias
        (
            "a = Conv(x, W, b) g = GlobalAveragePool(a) f = Flatten(g) h = MatMul(f, M) "
            "y = Unsqueeze(h, pixel)",
            "not 0 where MatMul of 'h' has no bias",
        ),
    ],
)
def test_refused(body: str, reason: str) -> None:
    more = {
        "b": np.array([1, 2, 3, -1, 4, 2], np.float32),
        "P2": weights(5, 6, 1, 1),
        "F": weights(6, 3, 3, 3),
        "T": weights(6, 3, 3, 3, zero=(1,)),
        "G": weights(4, 3, 1, 1),
        "M": weights(6, 5),
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64),
        "roi": np.array([0, 0, 0, 0, 1, 1, 1.5, 1.5], np.float32),
        "twice": np.array([1, 1, 2, 2], np.float32),
        "many": np.array([1, 2, 1, 1], np.int64),
        "pixel": np.array([2, 3], np.int64),
    }
    if reason:
        check_refused(PASS, model(body, **more), reason)
    else:
        check_untouched(PASS, model(body, **more))


# ------------------------------------------------------------- through what treats them one by one

_STREAM = {
    "A": weights(6, 3, 1, 1, zero=(1, 4)),
    "B": weights(5, 6, 1, 1),
    "C": weights(6, 5, 3, 3, zero=(1, 3, 4)),
    "D": weights(5, 6, 1, 1),
    "E": weights(6, 5, 3, 3, zero=(0, 1, 4)),
    "bA": np.array([1, -2, 3, -1, 0, 2], np.float32),
    "bC": np.array([1, 2, 0, 0, -1, 2], np.float32),
    "bE": np.array([0, 0, 1, 2, 0, -1], np.float32),
    "L": weights(4, 6, 1, 1),
    "L3": weights(4, 6, 3, 3),
    "lb": weights(4),
    "K": weights(6, 1, 3, 3, zero=(2,)),
    "K2": weights(12, 1, 3, 3),
    "L12": weights(4, 12, 1, 1),
    "bK": np.array([2, 0, 1, 0, 3, 1], np.float32),
    "M": weights(6, 4),
    "M63": weights(4, 6 * 56),
    "H": weights(3, 6, 1, 1),
    "I": weights(6, 3, 1, 1),
    "ns": np.array([1, 0, 2, -1, 0, 1], np.float32),
    "nt": np.array([1, 2, -1, 0, 0, 3], np.float32),
    "nm": np.array([1, -1, 2, 0, 1, 0], np.float32),
    "nv": np.array([4, 1, 0.25, 1, 1, 4], np.float32),
    "ff": weights(6, 1, 1),
    "one": np.array([2], np.float32),
    "oo": weights(8, 3, 1, 1, zero=(1, 5)),
    "G": weights(4, 4, 1, 1),
    "g8": weights(8, 4, 1, 1, zero=(0, 6)),
    "L8": weights(4, 8, 1, 1),
    "half": np.array([3, 3], np.int64),
    "from2": np.array([2], np.int64),
    "to6": np.array([6], np.int64),
    "axis1": np.array([1], np.int64),
    "L4": weights(4, 4, 1, 1),
    "L33": weights(4, 3, 1, 1),
    "roi": np.zeros(0, np.float32),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "flat": np.array([0, -1], np.int64),
    "flat6": np.array([-1, 6], np.int64),
    "pixels": np.array([2, 3], np.int64),
    "corner": np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64),
}


def stream(body: str, **more: Array) -> Any:
    words = set(re.findall(r"\w+", body))
    held: dict[str, Any] = {**_STREAM, **more}
    used = {name: value for name, value in held.items() if name in words}
    return graph(f"(float[N,3,8,7] x) => (float[?,?,?,?] y) {{{body}}}", **used)


def sizes(result: Any) -> list[int]:
    """Return how many channels each Conv, Gemm and MatMul makes."""
    held = {t.name: t.dims for t in result.graph.initializer}
    return [
        held[node.input[1]][1 if node.op_type == "MatMul" else 0]
        for node in result.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
    ]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # 1 and 4 are constant in both branches: 1 is max(-2 + 2, 0) = 0, 4 is max(0 - 1, 0) = 0
        (
            "a = Conv(x, A, bA) b1 = Conv(x, A2) b2 = Relu(b1) c = Conv<pads=[1,1,1,1]>(b2, C, bC) "
            "s = Add(a, c) r = Relu(s) y = Conv<pads=[1,1,1,1]>(r, L3, lb)",
            [4, 5, 4, 4],
        ),
        # a chain of two blocks over one stream, whose nodes lie between those that change
        (
            "a = Conv(x, A) b = Conv(a, B) c = Conv<pads=[1,1,1,1]>(b, C) s = Add(a, c) "
            "d = Conv(s, D) e = Conv<pads=[1,1,1,1]>(d, E) t = Add(s, e) r = Relu(t) "
            "y = Conv(r, L)",
            [4, 5, 4, 5, 4, 4],
        ),
        # a branch of one operator that reads and makes what goes
        (
            "a = Conv(x, A) c = Conv(a, J) s = Add(a, c) y = Conv(s, L)",
            [4, 4, 4],
        ),
        # nobody reads 5 behind, so that it goes from both branches
        ("a = Conv(x, F) c = Conv(x, F2) s = Sub(a, c) y = Conv(s, U)", [5, 5, 4]),
        # depthwise: a dead filter, and dead channels that it reads
        (
            "a = Conv(x, A) d = Conv<group=6, pads=[1,1,1,1]>(a, K, bK) r = Relu(d) y = Conv(r, L)",
            [3, 3, 4],
        ),
        (
            "a = Conv(x, A) d = Conv<group=6, pads=[1,1,1,1]>(a, K2) r = Relu(d) y = Conv(r, L12)",
            [4, 8, 4],
        ),
        # BatchNormalization, of what is constant and by a scale of 0
        (
            "a = Conv(x, A, bA) n = BatchNormalization<epsilon=0.0>(a, ns, nt, nm, nv) r = Relu(n) "
            "y = Conv(r, L, lb)",
            [4, 4],
        ),
        # a gate: nothing times anything is nothing
        (
            "a = Conv(x, A) g = GlobalAveragePool(a) h = Conv(g, H) i = Conv(h, I) "
            "j = HardSigmoid<alpha=0.25, beta=0.5>(i) s = Mul(a, j) y = Conv(s, L)",
            [4, 3, 4, 4],
        ),
        ("a = Conv(x, A) s = Add(a, ff) r = Relu(s) y = Conv(r, L)", [4, 4]),
        ("a = Conv(x, A, bA) s = Mul(a, one) y = Conv(s, L)", [4, 4]),
        ("a = Conv(x, A) s = Clip(a) p = MaxPool<kernel_shape=[2,2]>(s) y = Conv(p, L)", [4, 4]),
        (
            "a = Conv(x, A, bA) p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a) "
            "y = Conv(p, L)",
            [4, 4],
        ),
        (
            "a = Conv(x, A) p = AveragePool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1], "
            "count_include_pad=1>(a) y = Conv(p, L)",
            [4, 4],
        ),
        # joined, and in parts
        ("a = Conv(x, A, bA) c = Concat<axis=1>(x, a) y = Conv(c, L9)", [4, 4]),
        ("a = Conv(x, A) c = Concat<axis=2>(a, a) y = Conv(c, L)", [4, 4]),
        (
            "a = Conv(x, A) p, q = Split<axis=1>(a, half) r = Relu(p) c = Concat<axis=1>(q, r) "
            "y = Conv(c, L)",
            [4, 4],
        ),
        # only the first part has one that goes; nobody reads the last channel of it
        (
            "a = Conv(x, S) p, q = Split<axis=1>(a, half) r = Conv(p, L33) t = Conv(q, L33b) "
            "y = Add(r, t)",
            [5, 4, 4],
        ),
        # what is cut off is not computed
        ("a = Conv(x, F) p = Slice(a, from2, to6, axis1) y = Conv(p, L4)", [4, 4]),
        ("a = Conv(x, A) p = Slice(a, from2, to6, axis1) r = Relu(p) y = Conv(r, L4)", [3, 4]),
        # groups lose as many
        ("a = Conv(x, oo) r = Relu(a) y = Conv<group=2>(r, G)", [6, 4]),
        ("a = Conv<group=2>(p8, g8) r = Relu(a) y = Conv(r, L8)", [6, 4]),
        # larger maps, and padded ones
        (
            'a = Conv(x, A, bA) r = Resize<mode="nearest">(a, roi, twice) y = Conv(r, L)',
            [4, 4],
        ),
        ("a = Conv(x, A) p = Pad(a, corner) y = Conv(p, L)", [4, 4]),
        # into a classifier
        (
            "a = Conv(x, A, bA) g = GlobalAveragePool(a) f = Flatten(g) "
            "h = Gemm<alpha=2.0, beta=3.0>(f, M, lb) y = Unsqueeze(h, pixels)",
            [4, 4],
        ),
        (
            "a = Conv(x, A) g = ReduceMean<axes=[2,3], keepdims=0>(a) h = MatMul(g, M) "
            "y = Unsqueeze(h, pixels)",
            [4, 4],
        ),
        (
            "a = Conv(x, A, bA) r = Relu(a) f = Flatten(r) h = Gemm<transB=1>(f, M63) "
            "y = Unsqueeze(h, pixels)",
            [4, 4],
        ),
        (
            "a = Conv(x, A, bA) g = GlobalMaxPool(a) f = Reshape(g, flat) h = Gemm(f, M, lb) "
            "y = Unsqueeze(h, pixels)",
            [4, 4],
        ),
        (
            "a = Conv(x, A) g = GlobalMaxPool(a) f = Reshape(g, flat6) h = Gemm(f, M, lb) "
            "y = Unsqueeze(h, pixels)",
            [4, 4],
        ),
        (
            "a = Conv(x, A) g = GlobalMaxPool(a) f = Squeeze(g, pixels) h = Gemm(f, M0) "
            "k = Gemm(h, M2, lb) y = Unsqueeze(k, pixels)",
            [4, 3, 4],
        ),
    ],
)
def test_dropped_through(body: str, left: list[int]) -> None:
    more = {
        "A2": weights(5, 3, 1, 1),
        "F": weights(6, 3, 1, 1),
        "F2": weights(6, 3, 1, 1),
        "J": weights(6, 6, 1, 1, zero=(1, 4)),
        "U": weights(4, 6, 1, 1, zero=(5,), axis=1),
        "S": weights(6, 3, 1, 1),
        "L9": weights(4, 9, 1, 1),
        "L33": weights(4, 3, 1, 1, zero=(2,), axis=1),
        "L33b": weights(4, 3, 1, 1),
        "M0": weights(6, 4, zero=(3,), axis=1),
        "M2": weights(4, 4),
    }
    if "p8" in body:
        body = f"p8 = Conv(x, W8) {body}"
        more["W8"] = weights(8, 3, 1, 1)
        left = [8, *left]
    # a mean of 56 pixels is rounded
    result = check(PASS, stream(body, **more), exact="GlobalAverage" not in body)
    assert sorted(sizes(result)) == sorted(left)
    assert sorted(n.op_type for n in result.graph.node) == sorted(re.findall(r"= (\w+)", body))
    assert count_multiply_adds(result) < count_multiply_adds(stream(body, **more))


def count_multiply_adds(result: Any) -> int:
    return cost_of(result, {"x": [1, 3, 8, 7]}).multiply_adds


def test_what_a_body_reads_stays() -> None:
    body = (
        "a = Conv(x, A) g = GlobalAveragePool(a) q = ReduceMax<keepdims=0>(g) k = Cast<to=9>(q) "
        "y = If(k)<then_branch = one_way () => (float[?,?,?,?] u) {u = Conv(a, L)}, "
        "else_branch = other () => (float[?,?,?,?] v) {v = Conv(a, L)}>"
    )
    check_refused(PASS, stream(body), "'a' is read in a body")


def test_what_nobody_needs_stays_as_it_is() -> None:
    """It reads a part of which channels could go: clean-up removes it, not this pass."""
    body = (
        "a = Conv(x, A) p, q = Split<axis=1>(a, half) d = Sigmoid(p) e = Mul(p, d) y = Conv(q, L33)"
    )
    check(PASS, stream(body, L33=weights(4, 3, 1, 1)), exact=True)
    check(PASS, stream("a = Conv(x, A) d = Relu(a) y = Conv(x, L33)"), exact=True)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
def test_parts_in_each_opset(opset: int) -> None:
    split = "Split<axis=1, split=[3,3]>(a)" if opset < 13 else "Split<axis=1>(a, half)"
    cut = (
        "Slice<axes=[1], starts=[2], ends=[6]>(c)" if opset < 10 else "Slice(c, from2, to6, axis1)"
    )
    body = f"a = Conv(x, A) p, q = {split} c = Concat<axis=1>(q, p) s = {cut} y = Conv(s, L4)"
    before = stream(body)
    del before.opset_import[:]
    before.opset_import.add(version=opset)
    # the first two of q are cut off, of which one is constant
    assert sizes(check(PASS, before, exact=True)) == [3, 4]


def test_replay() -> None:
    body = (
        "a = Conv(x, A) b = Conv(a, B) c = Conv<pads=[1,1,1,1]>(b, C) s = Add(a, c) r = Relu(s) "
        "y = Conv(r, L)"
    )
    check_replay(PASS, stream(body))


def test_float16_and_an_overflowing_bias() -> None:
    half = {
        "A": weights(6, 3, 1, 1, zero=(1,)),
        "bA": np.array([1, 60000, 1, 1, 1, 1], np.float32),
    }
    body = "a = Conv(x, A, bA) y = Conv(a, L)"
    held: dict[str, Any] = {name: {**_STREAM, **half}[name] for name in ("A", "bA", "L")}
    halved = {name: value.astype(np.float16) for name, value in held.items()}
    before = graph(f"(float16[N,3,8,7] x) => (float16[?,?,?,?] y) {{{body}}}", **halved)
    check_refused(PASS, before, "would overflow float16")


@pytest.mark.parametrize(
    "activation",
    [
        "r = Clip(a, low, high)",
        "r = HardSigmoid<alpha=0.25, beta=0.5>(a)",
        "r = HardSwish(a)",
        "r = Tanh(a)",
        "h = Sigmoid(a) r = Mul(a, h)",
        "h = Elu(a) r = Mul(a, h)",  # of what is 0 alone
    ],
)
def test_what_activations_make_of_a_constant(activation: str) -> None:
    held = {
        "A": weights(6, 3, 1, 1, zero=(1, 2, 3, 4)),
        "b6": np.array([1, -1, 0, 2, -9, 1], np.float32),
        "low": np.array(-1.5, np.float32),
        "high": np.array(1.5, np.float32),
    }
    result = check(PASS, stream(f"a = Conv(x, A, b6) {activation} y = Conv(r, L, lb)", **held))
    assert sizes(result) == [5 if "Elu" in activation else 2, 4]


# ------------------------------------------------------------------------------ whole branches


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("r = Relu(x) a = Conv(r, Z) s = Add(x, a) y = Relu(s)", "Relu"),
        ("r = Relu(x) a = Conv(r, Z, z) s = Add(a, x) y = Relu(s)", "Relu"),
        ("r = Relu(x) a = Conv(r, Z, b3) s = Add(x, a) y = Relu(s)", "Add Relu"),
    ],
)
def test_a_branch_of_nothing_goes(body: str, after: str) -> None:
    held = {
        "Z": np.zeros((3, 3, 1, 1), np.float32),
        "z": np.zeros(3, np.float32),
        "b3": np.array([1, -2, 3], np.float32),
    }
    before = stream(body, **held)
    check(PASS, before, after, exact=True)
    check_replay(PASS, before)


def test_a_branch_of_nothing_that_makes_a_map_stays() -> None:
    body = "r = GlobalMaxPool(x) a = Conv(x, Z) y = Add(r, a)"
    held = {"Z": np.zeros((3, 3, 1, 1), np.float32)}
    check_refused(PASS, stream(body, **held), "'r' may be smaller than the output of Conv of 'a'")
