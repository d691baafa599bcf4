"""Transposes of a layout: where they go, where they stay, and that nothing else changes."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpass import Pass
from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_equal,
    check_operators,
    check_refused,
    check_replay,
    check_untouched,
    check_valid,
    graph,
    operators,
)

from .layouts import Drawn

PASS = make("clean-up")
FewestTransposes = importlib.import_module(
    "graphpass.passes.shared.fewest_transposes"
).FewestTransposes
LAYOUTS = {
    "3-D": ((2, 3, 4), [0, 2, 1]),
    "NHWC": ((2, 3, 4, 5), [0, 2, 3, 1]),
    "NCHW": ((2, 4, 5, 3), [0, 3, 1, 2]),
    "5-D": ((1, 2, 3, 4, 2), [0, 2, 3, 4, 1]),
    "all axes": ((2, 3, 4, 5), [3, 1, 0, 2]),
}


def integers(*shape: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    return np.random.default_rng(3).integers(-3, 4, shape).astype(dtype)


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def transposes(model: onnx.ModelProto) -> int:
    return operators(model).split().count("Transpose")


def moves(model: onnx.ModelProto, after: str, *, exact: bool = True) -> onnx.ModelProto:
    """Check what comes of `model`, and that a second run leaves it as it is."""
    result = check(PASS, model, after, exact=exact)
    check_untouched(PASS, result)
    return result


def nhwc(
    text: str,
    after: str,
    *,
    shape: tuple[int, ...] = (2, 3, 4, 5),
    perm: Sequence[int] = (0, 2, 3, 1),
    kind: str = "float",
    exact: bool = True,
    **given: Any,
) -> onnx.ModelProto:
    """Check `text`, which makes a of h (and g): x (and v) in another layout; a goes back."""
    sizes = ",".join(map(str, shape))
    any_size = ",".join("?" * len(perm))
    turned = f"<perm={list(perm)}>".replace(" ", "")
    back = f"<perm={[perm.index(i) for i in range(len(perm))]}>".replace(" ", "")
    two = re.search(r"\bg\b", text)
    second = f", {kind}[{sizes}] v" if two else ""
    other = f"g = Transpose{turned}(v)" if two else ""
    model = graph(
        f"({kind}[{sizes}] x{second}) => ({kind}[{any_size}] y)"
        f"{{ h = Transpose{turned}(x) {other} {text} y = Transpose{back}(a) }}",
        **given,
    )
    return moves(model, after, exact=exact)


def stays(text: str, **given: Any) -> None:
    check_untouched(PASS, graph(text, **given))


# ------------------------------------------------------------------------- element by element


@pytest.mark.parametrize("layout", LAYOUTS)
def test_below_an_activation(layout: str) -> None:
    shape, perm = LAYOUTS[layout]
    nhwc("a = Relu(h)", "Relu", shape=shape, perm=perm)
    nhwc("b = Relu(h) c = Neg(b) a = Abs(c)", "Relu Neg Abs", shape=shape, perm=perm)


@pytest.mark.parametrize(
    ("text", "after", "opset", "exact"),
    [
        ("a = Sigmoid(h)", "Sigmoid", 13, False),
        ("a = LeakyRelu<alpha=2.>(h)", "LeakyRelu<alpha=2.0>", 6, True),
        ("a = Clip<min=-1., max=2.>(h)", "Clip<min=-1.0,max=2.0>", 6, True),
        ("a = Clip(h, low)", "Clip", 11, True),
        ("a = Clip(h, , low)", "Clip", 13, True),
        ("a = HardSwish(h)", "HardSwish", 14, False),
        ('a = Gelu<approximate="tanh">(h)', "Gelu<approximate=tanh>", 20, False),
        ("b = Cast<to=7>(h) a = Cast<to=1>(b)", "Cast<to=7> Cast<to=1>", 13, True),
    ],
)
def test_attributes_and_further_inputs_are_kept(
    text: str, after: str, opset: int, exact: bool
) -> None:
    nhwc(text, after, opset=opset, exact=exact, low=np.float32(-1))


def test_the_bounds_of_a_clip_may_be_computed() -> None:
    model = graph(
        """(float[2,3,4,5] x, float low) => (float[2,3,4,5] y) {
            h = Transpose<perm=[0,2,3,1]>(x) n = Neg(low) a = Clip(h, low, n)
            y = Transpose<perm=[0,3,1,2]>(a)
        }"""
    )
    moves(model, "Neg Clip")


@pytest.mark.parametrize(
    ("kind", "op"),
    [("float16", "Relu"), ("int8", "Abs"), ("bool", "Not"), ("double", "Sign"), ("int64", "Neg")],
)
def test_of_every_type(kind: str, op: str) -> None:
    nhwc(f"a = {op}(h)", op, kind=kind)


def test_without_a_perm_the_axes_are_reversed() -> None:
    model = graph(
        "(float[2,3,4] x) => (float[2,3,4] y) { h = Transpose(x) a = Relu(h) y = Transpose(a) }"
    )
    moves(model, "Relu")


def test_of_unknown_rank() -> None:
    model = graph(
        """(float x) => (float z) {
            h = Transpose<perm=[0,2,3,1]>(x) b = Relu(h) y = Transpose<perm=[0,3,1,2]>(b)
            z = Exp(y)
        }"""
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    after, _ = apply_to(PASS, model)
    check_operators(after, "Relu Exp")
    # where constants broadcast, the rank has to be known
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Add", ["h", "c"], ["b"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(integers(5), "c"))
    check_untouched(PASS, model)


def test_what_a_dropout_dropped_is_in_the_old_layout() -> None:
    stays(
        """(float[2,3,4,5] x) => (float[2,3,4,5] y, bool[2,4,5,3] m) {
            h = Transpose<perm=[0,2,3,1]>(x) b = Relu(h) a, m = Dropout(b)
            y = Transpose<perm=[0,3,1,2]>(a)
        }"""
    )


# ---------------------------------------------------------------------------------- constants


@pytest.mark.parametrize(
    ("shape", "becomes"),
    [
        ((), ()),
        ((1,), (1,)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((3,), (1, 3, 1, 1)),
        ((5, 1), (1, 1, 1, 5)),
        ((1, 4, 1, 1), (1, 1, 4, 1)),
        ((5, 3), (1, 3, 1, 5)),
        ((4, 5, 3), (1, 3, 4, 5)),
        ((2, 4, 5, 3), (2, 3, 4, 5)),
    ],
)
@pytest.mark.parametrize("op", ["Add(h, c)", "Sub(c, h)", "Mul(c, h)", "Max(h, c)"])
def test_below_a_constant_of_any_shape(
    shape: tuple[int, ...], becomes: tuple[int, ...], op: str
) -> None:
    result = nhwc(f"a = {op}", op.split("(")[0], c=integers(*shape))
    assert tuple(result.graph.initializer[0].dims) == becomes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["Sub(h, c)", "Sub(c, h)"])
def test_below_a_constant_in_any_layout(layout: str, op: str) -> None:
    shape, perm = LAYOUTS[layout]
    for axes in range(len(perm) + 1):
        sizes = [shape[axis] for axis in perm][axes:]
        nhwc(f"a = {op}", "Sub", shape=shape, perm=perm, c=integers(*sizes))


def test_of_two_operands_that_cannot_be_exchanged() -> None:
    powers = 2.0 ** integers(3).astype(np.float32)
    nhwc("a = Div(h, c)", "Div", c=powers.astype(np.float32))
    nhwc("a = Pow(h, c)", "Pow", c=np.array([1, 2, 3], np.float32))
    nhwc("b = Abs(h) a = Pow(c, b)", "Abs Pow", c=np.array([1, 2, -1], np.float32))
    nhwc("a = Div(h, c)", "Div", kind="int32", c=np.array([[2], [-1], [3], [1], [2]], np.int32))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1, 3), (5, 1), (4, 5, 3)])
def test_below_a_prelu(shape: tuple[int, ...]) -> None:
    nhwc("a = PRelu(h, c)", "PRelu", c=integers(*shape))


def test_a_constant_that_widens() -> None:
    result = nhwc("a = Add(h, c)", "Add", shape=(2, 3, 1, 5), c=integers(4, 1, 3))
    assert tuple(result.graph.initializer[0].dims) == (1, 3, 4, 1)


def test_a_constant_of_more_axes_than_the_rest() -> None:
    stays(
        """(float[2,3,4] x) => (float[2,7,3,4] y) {
            h = Transpose<perm=[0,2,1]>(x) a = Add(h, c) y = Transpose<perm=[1,0,3,2]>(a)
        }""",
        c=integers(7, 1, 1, 3),
    )


@pytest.mark.parametrize("kind", ["float16", "int32", "double"])
def test_constants_keep_their_type(kind: str) -> None:
    dtype = {"float16": np.float16, "int32": np.int32, "double": np.float64}[kind]
    nhwc("a = Mul(h, c)", "Mul", kind=kind, c=integers(5, 3, dtype=dtype))


def test_a_constant_that_others_read_stays_for_them() -> None:
    model = graph(
        """(float[2,3,4,5] x, float[3] w) => (float[2,3,4,5] y, float[3] z) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Mul(h, c) y = Transpose<perm=[0,3,1,2]>(a)
            z = Mul(w, c)
        }""",
        c=integers(3),
    )
    result = moves(model, "Mul Mul")
    assert sorted(tuple(t.dims) for t in result.graph.initializer) == [(1, 3, 1, 1), (3,)]


def test_two_constants_made_alike_are_stored_once() -> None:
    result = nhwc("b = Add(h, c) a = Mul(b, c)", "Add Mul", c=integers(5, 3))
    assert len(result.graph.initializer) == 1


def test_refused_below_a_constant_that_may_be_overridden() -> None:
    model = graph(
        """(float[2,3,4,5] x, float[3] c) => (float[2,3,4,5] y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Add(h, c) y = Transpose<perm=[0,3,1,2]>(a)
        }""",
        c=integers(3),
    )
    check_refused(PASS, model, "'c' may be overridden at run time")


def test_before_opset_7_constants_broadcast_otherwise() -> None:
    stays(
        """(float[2,3,4,5] x) => (float[2,3,4,5] y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Add<broadcast=1, axis=1>(h, c)
            y = Transpose<perm=[0,3,1,2]>(a)
        }""",
        opset=6,
        c=integers(4),
    )


# ------------------------------------------------------------------------------ two and more


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["Add", "Sub", "Max", "PRelu"])
def test_below_two(layout: str, op: str) -> None:
    shape, perm = LAYOUTS[layout]
    nhwc(f"a = {op}(h, g)", op, shape=shape, perm=perm)
    nhwc(f"a = {op}(g, h)", op, shape=shape, perm=perm)


def test_below_two_that_broadcast() -> None:
    model = graph(
        """(float[2,3,4,5] x, float[2,3,1,1] w) => (float[2,3,4,5] y) {
            h = Transpose<perm=[0,2,3,1]>(x) g = Transpose<perm=[0,2,3,1]>(w)
            a = Mul(g, h) y = Transpose<perm=[0,3,1,2]>(a)
        }"""
    )
    moves(model, "Mul")


def test_the_same_twice() -> None:
    nhwc("a = Add(h, h)", "Add")
    nhwc("a = Concat<axis=2>(h, h, h)", "Concat<axis=3>")
    nhwc("b = Relu(h) a = Mul(b, h)", "Relu Mul")


def test_two_of_different_layouts() -> None:
    """What is of another layout gets one Transpose that does both."""
    model = graph(
        """(float[2,4,4,4] x, float[2,4,4,4] w) => (float[2,4,4,4] y) {
            h = Transpose<perm=[0,2,3,1]>(x) g = Transpose<perm=[0,3,1,2]>(w)
            a = Add(h, g) y = Transpose<perm=[0,3,1,2]>(a)
        }"""
    )
    moves(model, "Transpose<perm=[0,2,3,1]> Add")


@pytest.mark.parametrize("op", ["Sum", "Max"])
def test_of_three(op: str) -> None:
    stays(
        f"""(float[2,3,4,5] x) => (float[2,3,4,5] y) {{
            h = Transpose<perm=[0,2,3,1]>(x) b = Relu(h) a = {op}(b, b, b)
            y = Transpose<perm=[0,3,1,2]>(a)
        }}"""
    )


def test_of_another_rank() -> None:
    stays(
        """(float[2,3,4,5] x, float[4,5,3] w) => (float[2,3,4,5] y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Add(h, w) y = Transpose<perm=[0,3,1,2]>(a)
        }"""
    )


@pytest.mark.parametrize("axis", range(-4, 4))
@pytest.mark.parametrize("count", [2, 6, 9])
def test_below_a_concat(axis: int, count: int) -> None:
    parts = ", ".join(["h", "g", "h", "h", "g", "g", "h", "g", "h"][:count])
    nhwc(f"a = Concat<axis={axis}>({parts})", f"Concat<axis={[0, 2, 3, 1][axis]}>")


def test_below_a_concat_with_something_else() -> None:
    text = """(float[2,3,4,5] x, float[2,4,5,3] w) => (float[2,6,4,5] y) {
        h = Transpose<perm=[0,2,3,1]>(x) a = Concat<axis=3>(h, OTHER)
        y = Transpose<perm=[0,3,1,2]>(a)
    }"""
    moves(graph(text.replace("OTHER", "w")), "Transpose<perm=[0,3,1,2]> Concat<axis=1>")
    moves(graph(text.replace("OTHER", "c"), c=integers(2, 4, 5, 3)), "Concat<axis=1>")


# ------------------------------------------------------------------------------ along axes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_below_a_pad(layout: str, mode: str) -> None:
    shape, perm = LAYOUTS[layout]
    pads = [(axis + side) % 2 * int(shape[perm[axis]] > 1) for side in (0, 1) for axis in perm]
    listed = f"pads={pads}".replace(" ", "")
    given: dict[str, Any] = {"shape": shape, "perm": perm}
    nhwc(f'a = Pad<mode="{mode}", {listed}>(h)', f"Pad<mode={mode}>", opset=10, **given)
    nhwc(f'a = Pad<mode="{mode}">(h, k)', f"Pad<mode={mode}>", k=ints(*pads), **given)


def test_a_pad_keeps_its_value_and_may_cut() -> None:
    nhwc("a = Pad<value=2., pads=[0,1,0,0,0,0,2,0]>(h)", "Pad<pads=[0,0,1,0,0,0,0,2]>", opset=9)
    nhwc("a = Pad(h, k, v)", "Pad", k=ints(0, 1, 0, 0, 0, 0, 2, 0), v=np.float32(7))
    nhwc("a = Pad(h, k)", "Pad", k=ints(0, -1, 0, 2, 0, 0, -2, 0))
    pads = ints(0, 2, 0, 0, 0, 0, 3, 0)
    nhwc('a = Pad<mode="wrap">(h, k)', "Pad<mode=wrap>", opset=19, k=pads)


def test_a_pad_of_computed_or_of_some_axes_stays() -> None:
    text = """(float[2,3,4,5] x, int64[8] p) => (float[a,b,c,d] y) {
        h = Transpose<perm=[0,2,3,1]>(x) a = Pad(h, PADS) y = Transpose<perm=[0,3,1,2]>(a)
    }"""
    stays(text.replace("PADS", "p"))
    stays(text.replace("PADS", "k, , k"), opset=18, k=ints(1, 2))


REDUCTIONS = {
    "ReduceSum": True,
    "ReduceL1": True,
    "ReduceSumSquare": True,
    "ReduceMean": False,
    "ReduceL2": False,
    "ReduceLogSumExp": False,
}


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("axes", [[1, 2], [-1], [3, 0], [-3, 2]])
def test_below_a_reduction(op: str, opset: int, axes: list[int]) -> None:
    as_input = opset >= 18 or (opset >= 13 and op == "ReduceSum")
    listed = "" if as_input else f"<axes={axes}>".replace(" ", "")
    moved = sorted([0, 2, 3, 1][axis] for axis in axes)
    after = op if as_input else f"{op}<axes={moved}>".replace(" ", "")
    result = nhwc(
        f"a = {op}{listed}({'h, k' if as_input else 'h'})",
        after,
        opset=opset,
        exact=REDUCTIONS[op],
        k=ints(*axes),
    )
    if as_input:
        (found,) = (onnx.numpy_helper.to_array(t) for t in result.graph.initializer)
        assert found.tolist() == moved


@pytest.mark.parametrize(
    ("axes", "moved", "left"),
    [("1,2", "2,3", "2,3"), ("3", "1", "2,4,5"), ("-3,-2", "2,3", "2,3"), ("0,1,2", "0,2,3", "3")],
)
def test_below_a_reduction_that_drops_its_axes_no_transpose_is_left(
    axes: str, moved: str, left: str
) -> None:
    model = graph(
        f"(float[2,3,4,5] x) => (float[{left}] y) {{ h = Transpose<perm=[0,2,3,1]>(x)"
        f"y = ReduceSum<axes=[{axes}], keepdims=0>(h) }}",
        opset=12,
    )
    moves(model, f"ReduceSum<axes=[{moved}],keepdims=0>")


def test_a_reduction_that_drops_axes_and_leaves_the_others_in_another_order_stays() -> None:
    stays(
        "(float[2,3,4,5] x) => (float[a,b,c] y) { h = Transpose<perm=[0,2,3,1]>(x)"
        "y = ReduceSum<axes=[1], keepdims=0>(h) }",
        opset=12,
    )


def test_a_reduction_of_axes_that_are_not_known_stays() -> None:
    text = """(float[2,3,4,5] x, int64[2] p) => (float[a,b,c,d] y) {
        h = Transpose<perm=[0,2,3,1]>(x) a = REDUCED y = Transpose<perm=[0,3,1,2]>(a)
    }"""
    stays(text.replace("REDUCED", "ReduceSum(h, p)"))
    stays(text.replace("REDUCED", "ReduceSum(h)"))
    stays(text.replace("REDUCED", "ReduceSum<noop_with_empty_axes=1>(h)"))
    stays(text.replace("REDUCED", "ReduceSum(h, none)"), none=np.array([], np.int64))


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_what_a_maximum_makes_of_nan_depends_on_the_layout(op: str) -> None:
    stays(
        f"(float[2,3,4,5] x) => (float[2,3] y) {{ h = Transpose<perm=[0,2,3,1]>(x)"
        f"y = {op}<axes=[1,2], keepdims=0>(h) }}"
    )


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, -2])
def test_below_a_softmax(op: str, axis: int | None) -> None:
    given = "" if axis is None else f"<axis={axis}>"
    moved = [0, 2, 3, 1][-1 if axis is None else axis]
    nhwc(f"a = {op}{given}(h)", f"{op}<axis={moved}>", opset=13, exact=op == "Hardmax")


def test_a_softmax_that_flattens_stays() -> None:
    stays(
        """(float[2,3,4,5] x) => (float[2,3,4,5] y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Softmax<axis=3>(h)
            y = Transpose<perm=[0,3,1,2]>(a)
        }""",
        opset=12,
    )


# ---------------------------------------------------------------------------- does it pay


def test_one_below_is_no_better_than_one_above() -> None:
    stays(
        """(float[2,3,4,5] x) => (float[2,4,5,3] y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Relu(h) b = Mul(a, c) y = Tanh(b)
        }""",
        c=integers(3),
    )


def test_two_below_are_worse_than_one_above() -> None:
    stays(
        """(float[2,3,4,5] x) => (float[2,4,5,3] y, float[2,4,5,3] z) {
            h = Transpose<perm=[0,2,3,1]>(x) y = Relu(h) z = Neg(h)
        }"""
    )


def test_three_that_go_are_worth_two_that_come() -> None:
    model = graph(
        """(float[2,3,4,5] x) => (float[2,4,5,3] s, float[2,4,5,3] t, float[2,3,4,5] u,
                                  float[2,3,4,5] v, float[2,4,5,3] w) {
            h = Transpose<perm=[0,2,3,1]>(x)
            a = Relu(h) u = Transpose<perm=[0,3,1,2]>(a) s = Exp(a)
            b = Neg(h) v = Transpose<perm=[0,3,1,2]>(b) t = Sin(b)
            w = MatMul(h, m)
        }""",
        m=integers(3, 3),
    )
    result, _ = apply_to(PASS, model)
    assert transposes(result) == 3  # of h, for w, and of a and b, where there were u and v
    check_untouched(PASS, result)


def test_one_that_is_an_output_stays_beside() -> None:
    model = graph(
        """(float[2,3,4,5] x) => (float[2,4,5,3] h, float[2,3,4,5] y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Relu(h) y = Transpose<perm=[0,3,1,2]>(a)
        }"""
    )
    moves(model, "Transpose Relu")


def test_what_is_an_output_keeps_its_layout_and_name() -> None:
    model = graph(
        """(float[2,3,4,5] x, float[2,3,4,5] v) => (float[2,4,5,3] a) {
            h = Transpose<perm=[0,2,3,1]>(x) g = Transpose<perm=[0,2,3,1]>(v) a = Add(h, g)
        }"""
    )
    moves(model, "Add Transpose<perm=[0,2,3,1]>")


def test_what_is_read_in_a_body_keeps_its_layout() -> None:
    stays(
        """(float[2,4,4,4] x, bool c) => (float[2,4,4,4] y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Relu(h)
            y = If(c) <
                then_branch = g1 () => (float[2,4,4,4] p) {p = Transpose<perm=[0,3,1,2]>(a)},
                else_branch = g2 () => (float[2,4,4,4] q) {q = Neg(a)}
            >
        }"""
    )


@dataclass(frozen=True)
class Rules(Pass):
    """What clean-up does, but for inlining functions."""

    name = "rules"
    rules = PASS.rules
    surveys = (FewestTransposes(),)


def test_inside_a_body_and_inside_a_function() -> None:
    model = graph(
        """(float[2,3,4,5] x, bool c) => (float[2,3,4,5] y) {
            y = If(c) <
                then_branch = g1 () => (float[2,3,4,5] p) {
                    h = Transpose<perm=[0,2,3,1]>(x) a = Add(h, w)
                    p = Transpose<perm=[0,3,1,2]>(a)
                },
                else_branch = g2 () => (float[2,3,4,5] q) {q = Neg(x)}
            >
        }""",
        w=integers(3),
    )
    result = check(PASS, model, "If", exact=True, inputs=_with(c=np.array(True)))
    body = result.graph.node[0].attribute[0].g
    assert [node.op_type for node in body.node] == ["Add"]
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        agraph (float[2,3,4,5] x) => (float[2,3,4,5] y) { y = mine.f<p=[0,2,3,1]>(x) }
        <domain: "mine", opset_import: ["" : 17]>
        f <p> (x) => (y) {
            h = Transpose<perm=[0,2,3,1]>(x) a = Relu(h) u = Transpose<perm=[0,3,1,2]>(a)
            e = Floor(u) g = Transpose<perm: ints = @p>(e) b = Neg(g)
            y = Transpose<perm=[0,3,1,2]>(b)
        }"""
    )
    result = check(Rules(), model, "mine::f", exact=True)
    ops = [node.op_type for node in result.functions[0].node]
    assert ops == ["Relu", "Floor", "Transpose", "Neg", "Transpose"]  # @p may be anything


def _with(**given: Any) -> dict[str, Any]:
    return {"x": integers(2, 3, 4, 5), **given}


def test_the_others_of_one_tensor_are_joined() -> None:
    model = graph(
        """(float[2,3,4,5] x) => (float[5,4,3,2] y, float[3,2,4,5] z) {
            h = Transpose<perm=[0,2,3,1]>(x)
            y = Transpose<perm=[2,1,3,0]>(h) z = Transpose<perm=[3,0,1,2]>(h)
        }"""
    )
    result = moves(model, "Transpose<perm=[3,2,1,0]> Transpose<perm=[1,0,2,3]>")
    assert [node.input[0] for node in result.graph.node] == ["x", "x"]


def test_an_inverse_that_is_one_of_the_operands() -> None:
    """Of size 4 everywhere and order 2, one Transpose could be taken for both ends."""
    model = graph(
        """(float[4,4] x) => (float[4,4] y, float[4,4] z) {
            h = Transpose(x) a = Relu(h) b = Transpose(a) y = Sub(a, b) z = Transpose(y)
        }"""
    )
    result, _ = apply_to(PASS, model)
    assert transposes(result) == 2
    check_valid(model, result)
    check_equal(model, result, exact=True)


# ---------------------------------------------------------------------------------- networks


def block(stream: str, number: int) -> tuple[list[str], str]:
    """Return a residual block as raw tf2onnx writes it: NHWC around every Conv."""
    n, s = f"b{number}_", stream
    return [
        f"{n}a = Transpose<perm=[0,3,1,2]>({s}) {n}b = Conv<pads=[1,1,1,1]>({n}a, W)",
        f"{n}c = Transpose<perm=[0,2,3,1]>({n}b) {n}d = Mul({n}c, s) {n}e = Add({n}d, b)",
        f"{n}f = Relu({n}e) {n}g = Pad({n}f, pads) {n}h = Transpose<perm=[0,3,1,2]>({n}g)",
        f"{n}i = Conv({n}h, W) {n}j = Transpose<perm=[0,2,3,1]>({n}i)",
        f"{n}k = Add({n}j, b) {n}l = Add({n}k, {s}) {n}m = Relu({n}l)",
    ], f"{n}m"


def residual(blocks: int) -> onnx.ModelProto:
    lines = ["t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, V) r = Transpose<perm=[0,2,3,1]>(c)"]
    stream = "r"
    for number in range(blocks):
        more, stream = block(stream, number)
        lines += more
    return graph(
        f"(float[N,5,6,3] x) => (float[N,4] y) {{ {' '.join(lines)}"
        f"y = ReduceMean<axes=[1,2], keepdims=0>({stream}) }}",
        V=(4, 3, 1, 1),
        W=np.random.default_rng(0).normal(0, 0.1, (4, 4, 3, 3)).astype(np.float32),
        s=(4,),
        b=(4,),
        pads=ints(0, 1, 1, 0, 0, 1, 1, 0),
    )


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_residual_network_keeps_the_transpose_of_its_image(blocks: int) -> None:
    each = "Conv Mul Add Relu Conv Add Add Relu "
    after = f"Transpose<perm=[0,3,1,2]> Conv {each * blocks}ReduceMean<axes=[2,3]>"
    moves(residual(blocks), after, exact=False)
    check_replay(PASS, residual(1))


def test_a_long_network_is_a_matter_of_a_moment() -> None:
    """A plan ends where it pays: many more blocks than it looks at make it no larger."""
    result, applied = apply_to(PASS, residual(120))
    assert transposes(result) == 1
    assert len(applied.rewrites) < 16 * 120


# -------------------------------------------------------------------------------- properties


@settings(max_examples=120, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from((9, 12, 13, 17, 18)),
    st.integers(3, 24),
)
def test_random_graphs(rng: random.Random, opset: int, steps: int) -> None:
    model = Drawn(rng, opset, steps).model()
    if model is None:
        return
    result, _ = apply_to(PASS, model)
    check_valid(model, result)
    check_equal(model, result, exact=True, dims={}, seeds=(0,))
    assert transposes(result) <= transposes(model)
    check_untouched(PASS, result)


def test_nothing_is_moved_that_does_not_pay() -> None:
    moved = 0
    for seed in range(200):
        model = Drawn(random.Random(seed), 17, 20).model()
        assert model is not None
        result, applied = apply_to(PASS, model)
        if any(rewrite.rule == "FewestTransposes" for rewrite in applied.rewrites):
            assert transposes(result) < transposes(model), seed
            moved += 1
    assert moved > 20


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(20, 60))
def test_random_graphs_of_many_nodes(rng: random.Random, steps: int) -> None:
    model = Drawn(rng, 17, steps).model()
    if model is None:
        return
    result, _ = apply_to(PASS, model)
    assert transposes(result) <= transposes(model)
    check_untouched(PASS, result)
