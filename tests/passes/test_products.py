"""Products, scatters, and constants with several outputs or with elements that nobody sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_refused, check_replay, graph, operators

CLEAN_UP = make("clean-up")
GENEROUS = make("clean-up", {"fold_budget": "4096"})


def keeps(text: str, after: str, **options: Any) -> None:
    """Check that the operators stay."""
    assert operators(check(CLEAN_UP, graph(text, **options))) == after


# ---------------------------------------------------------------------------------- products

PRODUCTS = {
    "row": ("(float[N,4] x) => (float[N,3] y) { h = MatMul(x, w) y = Add(h, b) }", (3,), "Gemm"),
    "first": ("(float[N,4] x) => (float[N,3] y) { h = MatMul(x, w) y = Add(b, h) }", (3,), "Gemm"),
    "matrix": ("(float[2,4] x) => (float[2,3] y) { h = MatMul(x, w) y = Add(h, b) }", (2, 3),
               "Gemm"),
    "number": ("(float[N,4] x) => (float[N,3] y) { h = MatMul(x, w) y = Add(h, b) }", (), "Gemm"),
    "turned": ("(float[4,N] x) => (float[N,3] y) { t = Transpose(x) h = MatMul(t, w) y = Add(h, b)"
               " }", (3,), "Gemm"),
    "turned weight": ("(float[N,4] x, float[3,4] v) => (float[N,3] y) { t = Transpose(v)"
                      " h = MatMul(x, t) y = Add(h, b) }", (3,), "Gemm"),
    "turned twice": ("(float[4,N] x) => (float[N,3] y) { t = Transpose(x)"
                     " y = Gemm<transB=0>(t, w, b) }", (3,), "Gemm"),
    "turned back": ("(float[N,4] x) => (float[N,3] y) { t = Transpose(x)"
                    " y = Gemm<transA=1, alpha=2.0>(t, w, b) }", (3,), "Gemm"),
    "no sum": ("(float[4,N] x) => (float[N,3] y) { t = Transpose(x) y = MatMul(t, w) }", (3,),
               "Gemm"),
}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("name", PRODUCTS)
def test_one_gemm_does_it(name: str, opset: int) -> None:
    text, shape, after = PRODUCTS[name]
    model = graph(
        text, opset=opset, w=(4, 3), b=np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    )
    check(CLEAN_UP, model, after)
    check_replay(CLEAN_UP, model)


OTHERS = {
    "a stack of matrices": (
        "(float[N,5,4] x) => (float[N,5,3] y) { h = MatMul(x, w) y = Add(h, b) }", "MatMul Add",
        (3,)),
    "a sum that is wider": (
        "(float[N,4] x) => (float[2,N,3] y) { h = MatMul(x, w) y = Add(h, b) }", "MatMul Add",
        (2, 1, 3)),
    "a sum with more rows": (
        "(float[1,4] x) => (float[2,3] y) { h = MatMul(x, w) y = Add(h, b) }", "MatMul Add",
        (2, 3)),
    "a product that others read": (
        "(float[N,4] x) => (float[N,3] y, float[N,3] z) { h = MatMul(x, w) y = Add(h, b)"
        " z = Neg(h) }", "MatMul Add Neg", (3,)),
    "axes of a stack": (
        "(float[5,4,N] x) => (float[5,N,3] y) { t = Transpose<perm=[0,2,1]>(x) y = MatMul(t, w) }",
        "Transpose MatMul", (3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_gemm_does_stays(name: str) -> None:
    text, after, shape = OTHERS[name]
    keeps(text, after, w=(4, 3), b=np.ones(shape, np.float32))


def test_integers_and_quantized_weights_stay_products() -> None:
    text = "(int32[N,4] x) => (int32[N,3] y) { h = MatMul(x, w) y = Add(h, b) }"
    keeps(text, "MatMul Add", w=np.ones((4, 3), np.int32), b=np.ones(3, np.int32))
    text = (
        "(float[N,4] x) => (float[N,3] y) { v = DequantizeLinear(w, s, z) h = MatMul(x, v)"
        " y = Add(h, b) }"
    )
    held = {"w": np.ones((4, 3), np.int8), "s": np.float32(0.5), "z": np.int8(0)}
    keeps(text, "DequantizeLinear MatMul Add", **held, b=(3,))


# ---------------------------------------------------------------------------------- scatters

EVERY = np.stack(np.meshgrid(np.arange(2), np.arange(3), indexing="ij"), -1).astype(np.int64)
SCATTER = (
    "(float[2,3,4] x, float[2,3,4] u) => (float[2,3,4] y) { s = ScatterND(x, i, u) y = Abs(s) }"
)


@pytest.mark.parametrize(
    "indices", [EVERY, EVERY - np.array([2, 3]), np.array([[0], [1]])],
    ids=["pairs", "from the end", "rows"],
)  # fmt: skip
def test_a_scatter_of_every_element_is_its_updates(indices: Any) -> None:
    model = graph(SCATTER, i=indices)
    check(CLEAN_UP, model, "Abs", exact=True)
    check_replay(CLEAN_UP, model)


def test_updates_of_another_shape_are_reshaped() -> None:
    text = SCATTER.replace("float[2,3,4] u", "float[6,4] u")
    check(CLEAN_UP, graph(text, i=EVERY.reshape(6, 2)), "Reshape Abs", exact=True)


@pytest.mark.parametrize(
    ("indices", "attribute"),
    [
        (EVERY[::-1], ""),
        (EVERY * 0, ""),
        (EVERY, '<reduction="add">'),
        (np.array([[0], [0]]), ""),
    ],
    ids=["another order", "one place", "added", "a row twice"],
)
def test_other_scatters_stay(indices: Any, attribute: str) -> None:
    text = SCATTER.replace("ScatterND", "ScatterND" + attribute)
    keeps(text, "ScatterND Abs", i=np.ascontiguousarray(indices))


def test_a_scatter_of_a_part_stays() -> None:
    text = SCATTER.replace("float[2,3,4] u", "float[1,3,4] u")
    keeps(text, "ScatterND Abs", i=np.array([[0]]))


def test_scatter_elements_along_an_axis() -> None:
    text = (
        "(float[2,3] x, float[2,3] u) => (float[2,3] y) { s = ScatterElements<axis=1>(x, i, u)"
        " y = Abs(s) }"
    )
    along = np.tile(np.arange(3), (2, 1))
    check(CLEAN_UP, graph(text, i=along), "Abs", exact=True)
    check(CLEAN_UP, graph(text, i=along - 3), "Abs", exact=True)
    keeps(text, "ScatterElements Abs", i=along[:, ::-1].copy())
    keeps(
        text.replace("axis=1", 'axis=1,reduction="mul"'), "ScatterElements Abs", i=along, opset=18
    )


# --------------------------------------------------------------------------------- constants


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_split_of_a_constant_is_its_parts(opset: int) -> None:
    sizes = "<axis=1, split=[1,3]>(w)" if opset < 13 else "<axis=1>(w, s)"
    text = f"""(float[N,2,3] x) => (float[N,2,3] y) {{
        a, b = Split{sizes} h = Mul(x, a) y = Add(h, b) }}"""
    held: dict[str, Any] = {} if opset < 13 else {"s": np.array([1, 3])}
    model = graph(text, opset=opset, w=np.arange(8, dtype=np.float32).reshape(2, 4), **held)
    result = check(CLEAN_UP, model, "Mul Add", exact=True)
    assert result.ByteSize() <= model.ByteSize()


def test_a_split_of_a_weight_that_stays_would_store_it_twice() -> None:
    text = """(float[N,2,400] x) => (float[N,2,200] y) {
        a, b = Split<axis=1>(w, s) k = Mul(x, w) l, r = Split<axis=2>(k, s) h = Mul(l, a)
        y = Add(h, b) }"""
    weight = np.arange(800, dtype=np.float32).reshape(2, 400)
    model = graph(text, w=weight, s=np.array([200, 200]))
    check_refused(CLEAN_UP, model, "bytes larger")


BUCKETS = """(float[N,6] x) => (float[N,6] y) {{
    l = Log(n) m = Mul(l, two) i = Cast<to=7>(m) j = Add(i, one) k = Min(j, three)
    s = Less(n, low) b = Where(s, zero, k) f = Cast<to=1>(b) {} }}"""
HELD = {
    "n": np.array([0, 1, 2, 4, 8, 16], np.float32), "two": np.float32(2), "one": np.int64(1),
    "three": np.int64(3), "zero": np.int64(0), "low": np.float32(1),
}  # fmt: skip


def test_numbers_that_no_integer_holds_are_of_no_matter_where_a_where_drops_them() -> None:
    """The logarithm of 0 has no integer; its bucket is another one anyway."""
    check(CLEAN_UP, graph(BUCKETS.format("y = Add(x, f)"), **HELD), "Add")
    plain = BUCKETS.replace("l = Log(n)", "l = Div(n, none)")
    held = {**HELD, "none": np.array([0, 1, 1, 1, 1, 1], np.float32), "low": np.float32(0.5)}
    held["n"] = np.array([-1, 1, 2, 4, 8, 16], np.float32)
    check(CLEAN_UP, graph(plain.format("y = Add(x, f)"), **held), "Add", exact=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("low = 1", "low = 0"),
        ("b = Where(s, zero, k)", "b = Where(s, k, zero)"),
        ("k = Min(j, three)", "c = CumSum(j, zero) k = Min(c, three)"),
        ("s = Less(n, low)", "s = Less(j, one)"),
        ("f = Cast<to=1>(b)", "g = Cast<to=1>(j) f = Add(g, g)"),
    ],
    ids=["not dropped", "the others are dropped", "spread", "decides", "read besides"],
)
def test_such_numbers_that_are_seen_are_not_computed(old: str, new: str) -> None:
    held = {**HELD, "low": np.float32(0)} if old.startswith("low") else HELD
    text = BUCKETS.format("y = Add(x, f)").replace(old, new)
    refusals = apply_to(GENEROUS, graph(text, **held))[1].refusals
    assert any("is up to the runtime" in refusal.reason for refusal in refusals)


# -------------------------------------------------------------------------------- transposes


def turned(shape: str, first: str, second: str) -> Any:
    text = (
        f"(float[{shape}] x) => (float[a,b,c,d] y) {{ h = Transpose<perm=[{first}]>(x)"
        f" y = Transpose<perm=[{second}]>(h) }}"
    )
    sizes = [int(size) for size in shape.split(",")]
    order = [[int(a) for a in perm.split(",")] for perm in (first, second)]
    final = [sizes[order[0][axis]] for axis in order[1]]
    return graph(text.replace("a,b,c,d", ",".join(map(str, final))))


def test_two_transposes_that_move_blocks_are_not_one_that_does_not() -> None:
    model = turned("8,49,3,32", "2,0,1,3", "0,1,3,2")
    check_refused(CLEAN_UP, model, "run faster than one would")


@pytest.mark.parametrize(
    ("shape", "first", "second"),
    [
        ("8,9,3,4", "2,0,1,3", "0,1,3,2"),
        ("1,49,1,320", "2,0,1,3", "0,1,3,2"),
        ("8,49,3,32", "2,0,1,3", "1,0,2,3"),
        ("8,49,3,32", "3,1,0,2", "1,0,2,3"),
        ("8,49,3,32", "2,0,1,3", "1,2,0,3"),
    ],
    ids=["few elements", "one axis", "still blocks", "slow anyway", "nothing"],
)
def test_other_transposes_become_one(shape: str, first: str, second: str) -> None:
    assert operators(check(CLEAN_UP, turned(shape, first, second))).count("Transpose") < 2
