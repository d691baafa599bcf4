"""gemm-to-conv{target=all} around attention: four axes, and one Transpose where two were."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass import Pass
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_replay, check_untouched, graph, session
from passes.shared.fewer_axes import FEWER_AXES
from passes.shared.views_between import VIEWS_BETWEEN

ALL = make("gemm-to-conv", {"target": "all"})


@dataclass(frozen=True)
class Groups(Pass):
    """What has five axes, in four."""

    name = "groups"
    rules = tuple(FEWER_AXES)


@dataclass(frozen=True)
class Between(Pass):
    """Views between Transposes."""

    name = "between"
    rules = tuple(VIEWS_BETWEEN)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


# ------------------------------------------------------------------------- groups of channels

TAKEN = """(float[B,5,24] x) => (float[B,2,5,4] q, float[B,2,5,4] k, float[B,2,5,4] v) {
    r = Reshape(x, shape)  t = Transpose<perm=[2,0,3,1,4]>(r)
    a, b, c = Split<axis=AXIS>(t)  q = Squeeze(a, first)
    k = Squeeze(b, first)  v = Squeeze(c, first)
}"""


@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 4), (-1, 5, 3, 2, 4), (0, 0, 3, 2, 4)])
@pytest.mark.parametrize("axis", [0, -5])
def test_queries_keys_and_values_are_taken_apart_first(shape: Any, axis: int) -> None:
    text = TAKEN.replace("AXIS", str(axis))
    if axis < 0:
        text = text.replace("first)", "last)")
    model = graph(text, shape=ints(*shape), first=ints(0), last=ints(-5))
    check_replay(Groups(), model)
    kinds = [node.op_type for node in apply_to(ALL, model)[0].graph.node]
    assert sorted(kinds) == sorted(["Split", *["Reshape", "Transpose"] * 3])


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18])
def test_in_all_opsets(opset: int) -> None:
    if opset < 13:
        text = TAKEN.replace("AXIS", "0")
        for letter in "abc":
            text = text.replace(f"Squeeze({letter}, first)", f"Squeeze<axes=[0]>({letter})")
    else:
        text = TAKEN.replace("AXIS", "0" if opset < 18 else "0, num_outputs=3")
    model = graph(text, opset=opset, shape=ints(0, 5, 3, 2, 4), first=ints(0))
    after = apply_to(ALL, model)[0]
    assert "Squeeze" not in [node.op_type for node in after.graph.node]
    check_replay(ALL, model)


@pytest.mark.parametrize("index", [0, 2, -1])
def test_one_of_the_three_is_cut_out(index: int) -> None:
    text = """(float[B,5,24] x) => (float[B,2,5,4] q) {
        r = Reshape(x, shape)  t = Transpose<perm=[2,0,3,1,4]>(r)  q = Gather<axis=0>(t, i)
    }"""
    model = graph(text, shape=ints(0, 5, 3, 2, 4), i=np.array(index, np.int64))
    check(Groups(), model, "Slice Reshape Transpose<perm=[0,2,1,3]>")
    check_replay(Groups(), model)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("0, 5, 3, 2, 4", "0, 5, 2, 3, 4", "three groups are split where there are two"),
        ("perm=[2,0,3,1,4]", "perm=[3,0,2,1,4]", "it is the heads that are taken"),
        ("q = Squeeze(a, first)", "q = Relu(a)", "the axis stays"),
        ("float[B,5,24] x", "float[B,15,8] x", "the groups come of two axes"),
    ],
)
def test_what_is_no_group_stays(old: str, new: str, why: str) -> None:
    text = TAKEN.replace("AXIS", "0").replace("SHAPE", "0, 5, 3, 2, 4")
    shape = [int(n) for n in (new if old.startswith("0,") else "0, 5, 3, 2, 4").split(",")]
    text = text.replace(old, new)
    if "Relu" in new:
        text = text.replace("float[B,2,5,4] q", "float[1,B,2,5,4] q")
    if "15,8" in new:
        shape = [-1, *shape[1:]]
    if old.startswith("0,"):
        text = text.replace("a, b, c = Split<axis=0>(t)", "a, b, c = Split<axis=0>(t, lengths)")
        text = text.replace("[2,0,3,1,4]", "[3,0,2,1,4]").replace("Squeeze(", "Squeeze(")
    model = graph(text, shape=ints(*shape), first=ints(0), lengths=ints(1, 1, 1))
    check_untouched(Groups(), model)


def test_a_vector_is_picked_from_as_it_is() -> None:
    text = """(float[7] m, int64[1,1,1,B] i) => (float[1,1,1,B] y) {
        c = Unsqueeze(m, one)  g = Gather(c, i)  y = Reshape(g, shape)
    }"""
    model = graph(text, one=ints(1), shape=ints(1, 1, 1, -1))
    after = apply_to(ALL, model)[0]
    assert [node.op_type for node in after.graph.node] == ["Gather"]
    check_replay(Groups(), model)
    matrix = text.replace("float[7] m", "float[7,2] m").replace(
        "c = Unsqueeze(m, one)", "c = Relu(m)"
    )
    model = graph(matrix.replace("[1,1,1,B] y", "[1,1,1,K] y"), shape=ints(1, 1, 1, -1))
    check_untouched(Groups(), model)


# ------------------------------------------------------------------- views between Transposes


def between(first: list[int], view: list[int], second: list[int], x: list[Any]) -> onnx.ModelProto:
    axes = ",".join("abcd"[: len(view)])
    return graph(
        f"(float[{','.join(map(str, x))}] x) => (float[{axes}] y) {{ t = Transpose<perm={first}>(x)"
        f" r = Reshape(t, shape) y = Transpose<perm={second}>(r) }}",
        shape=ints(*view),
    )


@pytest.mark.parametrize(
    ("first", "view", "second", "x", "expected"),
    [
        ([0, 2, 1], [0, 0, 2, 3], [0, 2, 1, 3], ["B", 6, 5], "Reshape Transpose<perm=[0,1,3,2]>"),
        ([0, 2, 1], [0, 0, 2, 3], [0, 2, 3, 1], ["B", 6, 5], "Reshape"),
        ([0, 2, 1, 3], [0, 0, 6], [0, 2, 1], ["B", 2, 5, 3], "Transpose<perm=[0,1,3,2]> Reshape"),
        ([0, 3, 1, 2], [0, 0, 6], [0, 2, 1], ["B", 2, 3, 5], "Reshape"),
        ([0, 2, 1], [2, 3, 4, 5], [0, 1, 3, 2], [6, 5, 4], "Reshape"),
        ([0, 2, 1], [-1, 5, 2, 3], [0, 2, 1, 3], [1, 6, 5], "Reshape Transpose<perm=[0,1,3,2]>"),
    ],
)
def test_one_transpose_for_two(
    first: list[int], view: list[int], second: list[int], x: list[Any], expected: str
) -> None:
    model = between(first, view, second, x)
    check(Between(), model, expected)
    check_replay(Between(), model)


@pytest.mark.parametrize(
    ("first", "view", "second", "x"),
    [
        ([0, 2, 1], [0, 10, 3], [0, 2, 1], ["B", 6, 5]),  # parts of two axes
        ([0, 2, 1, 3], [0, 0, 2, 3, 1], [0, 2, 1, 3, 4], ["B", 2, 5, 3]),  # five axes
        ([0, 2, 1], [0, 2, -1, 3], [0, 2, 1, 3], ["B", 6, "S"]),  # 2·S/2 is not S, for odd S
    ],
)
def test_other_views_stay(
    first: list[int], view: list[int], second: list[int], x: list[Any]
) -> None:
    axes = ",".join("abcde"[: len(view)])
    model = graph(
        f"(float[{','.join(map(str, x))}] x) => (float[{axes}] y) {{ t = Transpose<perm={first}>(x)"
        f" r = Reshape(t, shape) y = Transpose<perm={second}>(r) }}",
        shape=ints(*view),
    )
    check_untouched(Between(), model)


def test_a_view_that_others_read_stays() -> None:
    model = graph(
        """(float[B,6,5] x) => (float[B,2,5,3] y, float[B,5,2,3] z) {
            t = Transpose<perm=[0,2,1]>(x)  r = Reshape(t, shape)
            y = Transpose<perm=[0,2,1,3]>(r)  z = Relu(r)
        }""",
        shape=ints(0, 5, 2, 3),
    )
    assert [n.op_type for n in apply_to(Between(), model)[0].graph.node].count("Reshape") == 1


@pytest.mark.parametrize("seed", range(60))
def test_any_view_between_any_transposes_moves_every_element_where_it_was(seed: int) -> None:
    """Sizes of 1 and equal sizes, where axes cannot be told apart by their sizes."""
    draw = random.Random(seed)
    x = [draw.choice([1, 2, 2, 3, 4, 6]) for _ in range(draw.choice([3, 4]))]
    first = draw.sample(range(len(x)), len(x))
    view = [x[axis] for axis in first]
    for _ in range(draw.choice([1, 1, 2])):
        at = draw.randrange(len(view))
        if len(view) < 4 and draw.random() < 0.6:
            factor = draw.choice([f for f in (1, 2, 3) if view[at] % f == 0])
            view[at : at + 1] = [factor, view[at] // factor]
        elif at + 1 < len(view) and len(view) > 1:
            view[at : at + 2] = [view[at] * view[at + 1]]
    second = draw.sample(range(len(view)), len(view))
    model = between(first, view, second, x)
    after = apply_to(Between(), model)[0]
    values = np.arange(np.prod(x), dtype=np.float32).reshape(x)
    (before,), (moved,) = (session(m).run(None, {"x": values}) for m in (model, after))
    np.testing.assert_array_equal(moved, before)
    assert [n.op_type for n in after.graph.node].count("Transpose") <= 2


def test_a_split_goes_first_where_its_parts_are_viewed_and_turned() -> None:
    text = """(float[B,12,5] x) => (float[B,2,5,3] q, float[B,2,3,5] k) {
        t = Transpose<perm=[0,2,1]>(x)  a, b = Split<axis=2>(t, sizes)
        r = Reshape(a, shape)  q = Transpose<perm=[0,2,1,3]>(r)
        s = Reshape(b, shape)  k = Transpose<perm=[0,2,3,1]>(s)
    }"""
    model = graph(text, sizes=ints(6, 6), shape=ints(0, 5, 2, 3))
    check(Between(), model, "Split<axis=1> Reshape Transpose<perm=[0,1,3,2]> Reshape")
    check_replay(Between(), model)
    read = text.replace("k = Transpose<perm=[0,2,3,1]>(s)", "k = Relu(s)")
    stays = graph(
        read.replace("[B,2,3,5] k", "[B,5,2,3] k"), sizes=ints(6, 6), shape=ints(0, 5, 2, 3)
    )
    check_untouched(Between(), stays)


# ------------------------------------------------------------------------------ all together

BLOCK = """(float[1,5,12] x) => (float[1,5,12] y) {
    n = LayerNormalization<axis=-1>(x, s, t)  m = MatMul(n, W)  qkv = Add(m, b)
    r = Reshape(qkv, five)  p = Transpose<perm=[2,0,3,1,4]>(r)
    i, j, l = Split<axis=0>(p, ones)  q = Squeeze(i, first)  k = Squeeze(j, first)
    v = Squeeze(l, first)  kt = Transpose<perm=[0,1,3,2]>(k)  qk = MatMul(q, kt)
    e = Softmax<axis=-1>(qk)  o = MatMul(e, v)  ot = Transpose<perm=[0,2,1,3]>(o)
    z = Reshape(ot, three)  d = MatMul(z, V)  h = Add(d, c)  y = Add(x, h)
}"""


def test_a_block_of_attention_has_four_axes_and_convolutions() -> None:
    model = graph(
        BLOCK,
        W=(12, 36),
        b=(36,),
        V=(12, 12),
        c=(12,),
        s=(12,),
        t=(12,),
        five=ints(1, 5, 3, 2, 6),
        three=ints(1, 5, 12),
        ones=ints(1, 1, 1),
        first=ints(0),
    )
    after = apply_to(ALL, model)[0]
    kinds = [node.op_type for node in after.graph.node]
    assert (kinds.count("Conv"), kinds.count("MatMul"), kinds.count("Squeeze")) == (2, 2, 0)
    # 8 without views that move, 5 where each layer keeps its layout
    assert kinds.count("Transpose") == 3
    x = np.random.default_rng(0).normal(size=(1, 5, 12)).astype(np.float32)
    (before,), (found,) = (session(m).run(None, {"x": x}) for m in (model, after))
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- an axis that is one


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(
    ("perm", "axes"),
    [
        ([3, 1, 2, 0, 4], [3]),
        ([4, 0, 3, 1, 2], [1, -2]),
        ([0, 4, 2, 3, 1], [0]),
        ([4, 3, 2, 1, 0], [-1]),
    ],
)
def test_an_axis_of_one_goes_ahead_of_the_transpose(
    perm: list[int], axes: list[int], opset: int
) -> None:
    sizes = [1 if axis in {perm[a] for a in axes} else 2 + axis for axis in range(5)]
    squeeze = f"Squeeze<axes={axes}>(t)" if opset < 13 else "Squeeze(t, axes)"
    given = {} if opset < 13 else {"axes": ints(*axes)}
    model = graph(
        f"(float{sizes} x) => (float[{','.join('?' * (5 - len(axes)))}] y)"
        f" {{t = Transpose<perm={perm}>(x) y = {squeeze}}}".replace(" ,", ","),
        opset=opset,
        **given,
    )
    check_replay(Groups(), model)
    result = check(Groups(), model, "Squeeze Transpose", exact=True)
    assert (
        max(
            len(v.type.tensor_type.shape.dim)
            for v in result.graph.value_info or result.graph.output
        )
        < 5
    )


@pytest.mark.parametrize(
    "text",
    [
        "(float[2,1,3,4] x) => (float[4,3,2] y) {t = Transpose(x) y = Squeeze<axes=[2]>(t)}",
        "(float[2,1,3,1,1] x) => (float[?,?] y) {t = Transpose(x) y = Squeeze(t)}",
    ],
)
def test_of_four_axes_or_of_whichever_are_one_it_stays(text: str) -> None:
    check_untouched(Groups(), graph(text, opset=11))


# ------------------------------------------------------------------------------- head by head

HEADS = """(float[B,3,5,4] q, float[B,3,4,6] k, float[B,3,6,2] v, float[B,1,5,6] m)
    => (float[B,3,5,2] y) {
        s = MatMul(q, k)  d = Div(s, root)  a = Add(m, d)  p = Softmax<axis=-1>(a)
        y = MatMul(p, v)
}"""
BY_HEAD = make("gemm-to-conv", {"target": "all", "by_head": "true"})


def test_attention_head_by_head() -> None:
    model = graph(HEADS, root=np.float32(2))
    each = "MatMul Div Add Softmax MatMul"
    after = check(BY_HEAD, model)
    kinds = [node.op_type for node in after.graph.node]
    assert sorted(kinds) == sorted(["Split"] * 3 + each.split() * 3 + ["Concat"])
    check_untouched(ALL, model)
    check_untouched(BY_HEAD, after)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("float[B,1,5,6] m", "float[B,3,5,6] m", "each head has a mask of its own"),
        ("float[B,1,5,6] m", "float[B,h,5,6] m", "nobody knows whether it has"),
        ("axis=-1", "axis=1", "heads meet in the Softmax"),
        ("Div(s, root)", "Div(root, s)", "the scores divide"),
        ("d = Div(s, root)", "d = Exp(s)", "something else is between"),
    ],
)
def test_heads_that_are_not_alike_stay_together(old: str, new: str, why: str) -> None:
    assert old in HEADS
    check_untouched(BY_HEAD, graph(HEADS.replace(old, new), root=np.float32(2)))


def test_scores_that_others_read_stay_whole() -> None:
    text = HEADS.replace("(float[B,3,5,2] y)", "(float[B,3,5,2] y, float[B,3,5,6] d)")
    check_untouched(BY_HEAD, graph(text, root=np.float32(2)))


def test_before_opset_13_a_softmax_is_over_all_further_axes() -> None:
    check_untouched(BY_HEAD, graph(HEADS, opset=12, root=np.float32(2)))
