"""move-linear and merge-siblings: the same with less to do, in another order or from each other."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from graphpass.ir.cost import cost_of
from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_operators,
    check_refused,
    check_replay,
    check_untouched,
    graph,
)

PASS = make("move-linear")
SIBLINGS = make("merge-siblings")
WEIGHTS: dict[str, Any] = {
    "W": (5, 8, 1, 1),
    "b": (5,),
    "zero": np.zeros(5, np.float32),
    "V": (5, 8, 1),
    "G": (6, 4, 1, 1),
    "K": (5, 8, 3, 3),
    "k": np.array([2, 3], np.int64),
    "m": np.array([-1, -2], np.int64),
    "two": np.array([1, 1, 2, 2], np.float32),
    "wide": np.array([1, 1, 1, 3], np.float32),
    "half": np.array([1, 1, 0.5, 0.5], np.float32),
    "both": np.array([1, 1, 2, 0.5], np.float32),
    "deep": np.array([1, 2, 2, 2], np.float32),
    "r": np.zeros(0, np.float32),
}


def model(body: str, x: str = "float[N,8,6,6] x", opset: int = 17, **more: Any) -> Any:
    held = {**WEIGHTS, **more}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    dims = ",".join("?" * len(x.split(",")))
    used = {name: value for name, value in held.items() if name in words}
    return graph(f"({x}) => (float[{dims}] y) {{{body}}}", opset=opset, **used)


MOVED = {
    "the transition of a DenseNet": (
        "c = Conv(x, W) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
        "AveragePool Conv",
    ),
    "with a bias": (
        "c = Conv(x, W, b) y = AveragePool<kernel_shape=[3,3], strides=[2,2]>(c)",
        "AveragePool Conv",
    ),
    "padding left out of the mean": (
        "c = Conv(x, W, b) y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)",
        "AveragePool Conv",
    ),
    "padding counted, no bias": (
        "c = Conv(x, W, zero) y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1],"
        "count_include_pad=1>(c)",
        "AveragePool Conv",
    ),
    "in groups": (
        "c = Conv<group=2>(x, G) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
        "AveragePool Conv<group=2>",
    ),
    "the mean of a map": ("c = Conv(x, W, b) y = GlobalAveragePool(c)", "GlobalAveragePool Conv"),
    "the mean as ReduceMean": (
        "c = Conv(x, W, b) y = ReduceMean<axes=[-1,2]>(c)",
        "ReduceMean Conv",
    ),
    "enlarged by nearest pixels": (
        'c = Resize<mode="nearest">(x, r, two) y = Conv(c, W, b)',
        "Conv Resize",
    ),
    "enlarged by interpolation": (
        'c = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, r, two) '
        "y = Conv(c, W, b)",
        "Conv Resize",
    ),
    "enlarged along one axis": (
        'c = Resize<mode="linear">(x, r, wide) y = Conv(c, W)',
        "Conv Resize",
    ),
    "made smaller": ('c = Conv(x, W, b) y = Resize<mode="linear">(c, r, half)', "Resize Conv"),
}


# means of small integers over 4, and halves of them, are exact; over 9 and 36 they are not
EXACT = [MOVED[name][0] for name in ("the transition of a DenseNet", "in groups", "made smaller")]
EXACT += [MOVED["enlarged by nearest pixels"][0]]


@pytest.mark.parametrize(("body", "after"), MOVED.values(), ids=MOVED)
def test_moved(body: str, after: str) -> None:
    before = model(body)
    check(PASS, before, after)
    if body in EXACT:
        check_replay(PASS, before)
    costs = [cost_of(m, {"x": (2, 8, 6, 6)}) for m in (before, apply_to(PASS, before)[0])]
    assert costs[1].multiply_adds < costs[0].multiply_adds
    assert costs[1].activation_bytes <= costs[0].activation_bytes


def test_reduced_axes_as_an_input_and_upsample_of_old() -> None:
    check(PASS, model("c = Conv(x, W, b) y = ReduceMean(c, k)", opset=18), "ReduceMean Conv")
    check(PASS, model("c = Upsample(x, two) y = Conv(c, W, b)", opset=9), "Conv Upsample")


def test_one_axis_of_unknown_size() -> None:
    body = "c = Conv(x, V, b) y = AveragePool<kernel_shape=[2], strides=[2]>(c)"
    check(PASS, model(body, "float[N,8,L] x"), "AveragePool Conv", dims={"N": 2, "L": 7})


NOT_MOVED = {
    "an average without a stride": "c = Conv(x, W) y = AveragePool<kernel_shape=[3,3]>(c)",
    "a kernel": "c = Conv(x, K) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
    "a Conv with a stride": (
        "c = Conv<strides=[2,2]>(x, W) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)"
    ),
    "padding of the Conv": (
        "c = Conv<pads=[1,1,1,1]>(x, W) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)"
    ),
    "a mean of channels": "c = Conv(x, W) y = ReduceMean<axes=[1,2]>(c)",
    "larger and smaller": "c = Resize(x, r, both) y = Conv(c, W)",
}


@pytest.mark.parametrize("body", NOT_MOVED.values(), ids=NOT_MOVED)
def test_another_structure(body: str) -> None:
    check_untouched(PASS, model(body))


REFUSED = {
    "a bias meets padding that counts": (
        "c = Conv(x, W, b) y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1],"
        "count_include_pad=1>(c)",
        "counts zeros that it pads, to which Conv of 'c' adds a bias",
    ),
    "few channels made of many": (
        "c = Conv(x, Few) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
        "makes 1 channels of 8: AveragePool of 'y' would write more",
    ),
    "many channels made of few": (
        "c = Resize(x, r, two) y = Conv(c, Many)",
        "makes 40 channels of 8: it would write more before Resize of 'c'",
    ),
    "few channels, then smaller": (
        "c = Conv(x, Few) y = Resize(c, r, half)",
        "makes 1 channels of 8: Resize of 'y' would write more",
    ),
    "another reader": (
        "c = Conv(x, W) p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c) "
        "q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = Add(p, q)",
        "feeds 2 nodes",
    ),
    "a cubic interpolation": (
        'c = Resize<mode="cubic">(x, r, two) y = Conv(c, W)',
        "interpolates in the mode cubic",
    ),
    "filled in": (
        'c = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
        "(x, roi, two) y = Conv(c, W)",
        "fills in what lies beyond the edges",
    ),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(body: str, reason: str) -> None:
    more: dict[str, Any] = {
        "Few": (1, 8, 1, 1),
        "Many": (40, 8, 1, 1),
        "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
    }
    check_refused(PASS, model(body, **more), reason)


# --------------------------------------------------------------------------------- siblings

SPP = (
    "a = MaxPool<kernel_shape=[13,13], pads=[6,6,6,6]>(x) "
    "d = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x) "
    "c = MaxPool<kernel_shape=[9,9], pads=[4,4,4,4]>(x) y = Concat<axis=1>(x, d, c, a)"
)


def sizes(path: str) -> str:
    kernels, pads = ([*map(int, part.split(","))] for part in path.split("/"))
    return f"MaxPool<kernel_shape={kernels}, pads={pads}>"


@pytest.mark.parametrize("size", [(6, 6), (3, 17)])
def test_spp_becomes_sppf(size: tuple[int, int]) -> None:
    before = model(SPP, f"float[N,3,{size[0]},{size[1]}] x")
    after = check(SIBLINGS, before, exact=True)
    pool = "MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>"
    check_operators(after, f"{pool} {pool} {pool} Concat")


@pytest.mark.parametrize(
    ("pools", "after"),
    [
        ((("2,3", "0,0,0,0"), ("4,3", "0,0,0,0")), ("2,3/0,0,0,0", "3,1/0,0,0,0")),
        ((("4,4", "3,2,0,1"), ("3,2", "2,1,0,0")), ("3,2/2,1,0,0", "2,3/1,1,0,1")),
    ],
)
def test_windows_off_the_centre(pools: Any, after: tuple[str, ...]) -> None:
    one, other = (f"MaxPool<kernel_shape=[{k}], pads=[{p}]>(x)" for k, p in pools)
    text = f"(float[N,3,7,6] x) => (float[?,?,?,?] y, float[?,?,?,?] z) {{y = {one} z = {other}}}"
    result = check(SIBLINGS, graph(text), exact=True)
    check_operators(result, " ".join(map(sizes, after)))


def test_same_pads_and_other_readers() -> None:
    text = (
        "(float[N,3,7,6] x) => (float[N,3,7,6] y, float[N,3,7,6] z, float[N,3,7,6] w)"
        '{y = MaxPool<kernel_shape=[3,3], auto_pad="SAME_UPPER">(x) '
        'z = MaxPool<kernel_shape=[6,5], auto_pad="SAME_UPPER">(x) w = Relu(x)}'
    )
    result = check(SIBLINGS, graph(text), exact=True)
    assert [node.op_type for node in result.graph.node].count("MaxPool") == 2
    check_operators(result, "MaxPool MaxPool<kernel_shape=[4,3], pads=[1,1,2,1]> Relu")


@pytest.mark.parametrize(
    "other",
    [
        "MaxPool<kernel_shape=[5,5], pads=[2,2,2,2], strides=[2,2]>",
        "MaxPool<kernel_shape=[3,3], pads=[2,2,2,2], dilations=[2,2]>",
        "MaxPool<kernel_shape=[2,5], pads=[0,2,0,2]>",
        "MaxPool<kernel_shape=[4,4], pads=[0,0,0,0]>",
    ],
    ids=["stride", "gaps", "neither holds the other", "pads"],
)
def test_what_does_not_nest_stays(other: str) -> None:
    text = (
        "(float[N,3,9,9] x) => (float[?,?,?,?] y, float[?,?,?,?] z)"
        f"{{y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) z = {other}(x)}}"
    )
    check_untouched(SIBLINGS, graph(text))


def test_refused_where_indices_are_read() -> None:
    text = (
        "(float[N,3,9,9] x) => (float[N,3,9,9] y, int64[N,3,9,9] i, float[N,3,9,9] z)"
        "{y, i = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) "
        "z = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(x)}"
    )
    check_refused(SIBLINGS, graph(text), "has further outputs that are used")


# ---------------------------------------------------------------- strides of pointwise Convs

_STAGE: dict[str, Any] = {
    "A": (6, 8, 1, 1),
    "B": (6, 8, 3, 3),
    "D": (8, 1, 3, 3),
    "P": (4, 6, 1, 1),
    "Q": (5, 6, 1, 1),
    "P8": (4, 8, 1, 1),
    "ch": (6, 1, 1),
    "px": (1, 6, 6, 6),
    "a1": (6,),
}


def stage(body: str, x: str = "float[N,8,7,6] x", opset: int = 17, **more: Any) -> Any:
    held = {**_STAGE, **more}
    words = set(re.findall(r"\w+", body))
    dims = ",".join("?" * len(x.split(",")))
    outputs = ", ".join(f"float[{dims}] {name}" for name in ("y", "z") if f" {name} = " in body)
    used = {name: value for name, value in held.items() if name in words}
    return graph(f"({x}) => ({outputs}) {{{body}}}", opset=opset, exact=True, **used)


STRIDES = {
    "the stage of a ResNet": (
        " c = Conv(x, A, a1) k = Conv(x, A2) s = Add(c, k) r = Relu(s) "
        " y = Conv<strides=[2,2]>(r, P) z = Conv<strides=[2,2]>(r, Q)",
        "Conv<strides=[2,2]> Conv<strides=[2,2]> Add Relu Conv<strides=[1,1]> Conv<strides=[1,1]>",
    ),
    # what others read is cut
    "with a shortcut": (
        " k = Relu(x) b = Conv<pads=[1,1,1,1], strides=[1,1]>(k, B8) s = Add(b, k) r = Relu(s) "
        " y = Conv<strides=[2,2]>(r, P8) g = GlobalAveragePool(k) z = Conv(g, P8)",
        "Relu Conv<strides=[2,2],pads=[1,1,1,1]> Slice Add Relu Conv<strides=[1,1]> "
        "GlobalAveragePool Conv",
    ),
    "strides of both, along one axis": (
        " c = Conv<strides=[2,3], pads=[1,0,0,2]>(x, B) y = Conv<strides=[2,1]>(c, P)",
        "Conv<strides=[4,3],pads=[1,0,0,2]> Conv<strides=[1,1]>",
    ),
    "SAME": (
        ' c = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, B) '
        ' y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(c, P)',
        "Conv<strides=[4,4],pads=[1,0,1,1]> Conv<strides=[1,1]>",
    ),
    "a gate of one number for each channel": (
        " c = Conv(x, A) g = GlobalMaxPool(x) h = Conv(g, A2) i = Relu(h) s = Mul(c, i) "
        " y = Conv<strides=[2,2]>(s, P)",
        "Conv<strides=[2,2]> GlobalMaxPool Conv Relu Mul Conv<strides=[1,1]>",
    ),
    "an activation of several parts": (
        " c = Conv(x, A) h = HardSigmoid<alpha=0.25, beta=0.5>(c) s = Mul(c, h) t = Mul(s, ch) "
        " y = Conv<strides=[3,3]>(t, P)",
        "Conv<strides=[3,3]> HardSigmoid Mul Mul Conv<strides=[1,1]>",
    ),
    "depthwise": (
        " c = Conv<group=8, pads=[1,1,1,1]>(x, D) r = Relu(c) y = Conv<strides=[2,2]>(r, P8)",
        "Conv<strides=[2,2],group=8> Relu Conv<strides=[1,1]>",
    ),
}


@pytest.mark.parametrize("case", STRIDES)
def test_strides_ahead(case: str) -> None:
    body, after = STRIDES[case]
    before = stage(body, A2=(6, 8, 1, 1), B8=(8, 8, 3, 3))
    result = check(PASS, before, exact="Average" not in body)
    if " z = " in body or " g = " in body:  # in another order
        names = sorted(re.findall(r"[A-Z]\w+", re.sub("<[^>]*>", "", after)))
        assert sorted(node.op_type for node in result.graph.node) == names
    else:
        check_operators(result, after)
    costs = [cost_of(m, {"x": [1, 8, 7, 6]}) for m in (before, result)]
    assert costs[1].multiply_adds < costs[0].multiply_adds
    assert costs[1].activation_bytes < costs[0].activation_bytes
    if "Average" not in body:
        check_replay(PASS, before)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strides_of_all_sizes(size: int, stride: int) -> None:
    body = (
        f" c = Conv<strides=[{stride},{stride}], pads=[1,1,0,1]>(x, K2) r = Relu(c) "
        " y = Conv<strides=[2,2]>(r, P8)"
    )
    before = stage(body, f"float[N,8,{size + 1},{size}] x", K2=(8, 8, 2, 2))
    check(PASS, before, f"Conv<strides=[{2 * stride},{2 * stride}]> Relu Conv", exact=True)


@pytest.mark.parametrize(
    "body",
    [
        " c = Conv(x, A) y = Conv<strides=[2,2]>(c, P) z = Conv(c, Q)",  # another stride
        " c = Conv(x, A) y = Conv<strides=[2,2]>(c, P) z = Conv<strides=[2,1]>(c, Q)",
        " c = Conv(x, A) y = Conv<strides=[2,2]>(c, P) z = Relu(c)",
        " c = Conv(x, A) y = Conv<strides=[2,2], pads=[1,1,0,0]>(c, P)",  # sees the padding
        " c = Conv(x, A) y = Conv<strides=[2,2]>(c, B6)",  # sees its neighbours
        " c = Conv(x, A) r = MaxPool<kernel_shape=[2,2]>(c) y = Conv<strides=[2,2]>(r, P)",
        " r = Relu(x) y = Conv<strides=[2,2]>(r, P8)",  # nothing is saved
        " z = Conv(x, A) y = Conv<strides=[2,2]>(z, P)",  # an output
    ],
)
def test_strides_that_stay(body: str) -> None:
    check_untouched(PASS, stage(body, B6=(4, 6, 2, 2)))


@pytest.mark.parametrize(
    ("body", "opset", "x", "reason"),
    [
        (
            " c = Conv(x, A) s = Add(c, px) y = Conv<strides=[2,2]>(s, P)",
            17,
            "float[N,8,6,6] x",
            "'px' is a constant for each pixel",
        ),
        (
            " c = Conv(x, A) m = ReduceMax<axes=[2]>(c2) s = Add(c, m) "
            "y = Conv<strides=[2,2]>(s, P)",
            17,
            "float[N,8,6,6] x",
            "'m' is spread over pixels of 's'",
        ),
        (
            " c = Conv(x, A8) s = Add(c, x) y = Conv<strides=[2,2]>(s, P8)",
            9,
            "float[N,8,6,6] x",
            "a Slice with steps, of 'x', needs opset 10",
        ),
        (
            ' c = Conv<auto_pad="SAME_LOWER">(x, B) y = Conv<strides=[2,2]>(c, P)',
            17,
            "float[N,8,h,w] x",
            "what Conv of 'c' pads depends on the size of 'x'",
        ),
    ],
)
def test_strides_refused(body: str, opset: int, x: str, reason: str) -> None:
    if "c2" in body:
        body = f" c2 = Conv(x, A2) {body}"
    before = stage(body, x, opset, A2=(6, 8, 1, 1), A8=(8, 8, 1, 1))
    check_refused(PASS, before, reason)


# --------------------------------------------------------------------------------- embeddings


def embedded(body: str = "g = Gather(E, i) y = MatMul(g, W)", **more: Any) -> Any:
    held: dict[str, Any] = {"E": (9, 6), "W": (6, 4), **more}
    text = f"(int64[N,3] i) => (float[N,3,M] y) {{{body}}}"
    return graph(text, exact=True, **held)


@pytest.mark.parametrize("depth", [4, 6])
def test_a_layer_behind_an_embedding_is_part_of_it(depth: int) -> None:
    model = embedded(W=(6, depth))
    tokens = np.array([[0, 8, -1], [3, 3, -9]])
    result = check(PASS, model, "Gather", exact=True, inputs={"i": tokens})
    (table,) = result.graph.initializer
    assert list(table.dims) == [9, depth]
    check_replay(PASS, model)


@pytest.mark.parametrize(
    ("body", "more", "reason"),
    [
        (
            "g = Gather(E, i) y = MatMul(g, W)",
            {"E": (30, 6), "W": (6, 14)},
            "'E' times 'W' would hold 420 numbers instead of 264",
        ),
        (
            "g = Gather(E, i) h = Gather(E, i) k = ReduceSum(h) p = MatMul(g, W) y = Add(p, k)",
            {},
            "'E' has other readers",
        ),
        (
            "g = Gather(E, i) p = MatMul(g, W) r = Relu(p) s = MatMul(r, T) y = MatMul(s, W)",
            {"T": (4, 6)},
            "'W' has other readers",
        ),
    ],
)
def test_embeddings_refused(body: str, more: dict[str, Any], reason: str) -> None:
    check_refused(PASS, embedded(body, **more), reason)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("g = Gather<axis=1>(E, i) t = Transpose<perm=[1,2,0]>(g) y = MatMul(t, W9)", {}),
        ("g = Gather(E, i) y = MatMul(g, B)", {"B": (1, 6, 4)}),
        ("g = Gather(E, i) r = Relu(g) y = MatMul(r, W)", {}),
    ],
)
def test_embeddings_of_another_structure(body: str, more: dict[str, Any]) -> None:
    check_untouched(PASS, embedded(body, W9=(9, 4), **more))


def test_an_embedding_that_would_overflow() -> None:
    large = np.full((9, 6), 3e38, np.float32)
    check_refused(PASS, embedded(E=large, W=np.ones((6, 4), np.float32)), "would overflow float32")
