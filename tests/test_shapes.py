"""What is computed from sizes: each value once, of any rank and width, symbolic if need be."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from graphpass import optimize
from graphpass.ir.model import Model
from graphpass.ir.shapes import value, values
from graphpass.ir.sizes import Size, product, quotient, total
from graphpass.testing import graph, operators

N, M = Size(1, ("N",)), Size(1, ("M",))
ONE = Size(1)


def _minus(size: Size) -> Size:
    return product((size, Size(-1)))


def test_sums_are_equal_however_they_are_written() -> None:
    two_n_and_two = total((N, Size(2), N))
    assert two_n_and_two is not None and quotient(two_n_and_two, Size(2)) == total((ONE, N))
    for order in itertools.permutations((N, M, ONE)):
        partial = total(order[:2])
        assert partial is not None and total((partial, order[2])) == total((N, M, ONE))


def test_a_sum_comes_apart_again() -> None:
    more = total((N, M, ONE))
    assert more is not None
    assert total((more, _minus(M), _minus(ONE))) == N
    assert total((more, _minus(more))) == Size(0)
    squared = total((product((N, N)), N))
    assert squared is not None and quotient(squared, N) == total((N, ONE))


def test_what_may_be_negative_is_no_axis() -> None:
    less = total((N, Size(-1)))
    more = total((N, ONE))
    assert less is not None and not less.is_axis
    assert more is not None and more.is_axis and N.is_axis and not _minus(N).is_axis


@pytest.mark.parametrize(
    "nodes",
    [
        "v = Shape(x)",
        "v = Shape<start=1, end=-1>(x)",
        "v = Size(x)",
        "s = Shape(x) v = Gather(s, zero)",
        "s = Shape(x) v = Gather(s, first)",
        "s = Shape(x) v = Gather(s, square)",
        "s = Shape(x) v = Slice(s, first, three, axes, two)",
        "s = Shape(x) v = Slice(s, minus, far, axes, minus)",
        "s = Shape(x) v = Add(s, s)",
        "s = Shape(x) t = Mul(s, two) v = Sub(t, s)",
        "s = Shape(x) t = Add(s, two) u = Mul(t, two) v = Div(u, two)",
        "s = Shape(x) t = Sub(s, three) v = Div(t, two)",
        "s = Shape(x) t = Sub(s, three) v = Mod(t, two)",
        "s = Shape(x) t = Sub(three, s) v = Mod<fmod=1>(t, two)",
        "s = Shape(x) v = ReduceProd<keepdims=0>(s)",
        "s = Shape(x) v = ReduceSum(s)",
        "s = Shape(x) v = ReduceMax(s)",
        "s = Shape(x) t = Shape(y) v = Max(s, t)",
        "s = Shape(x) t = Shape(y) v = Concat<axis=0>(s, t, s)",
        "s = Shape(x) c = Equal(s, minus) v = Where(c, two, s)",
        "s = Shape(x) t = Unsqueeze(s, axes) u = Concat<axis=0>(t, t) v = Transpose(u)",
        "s = Shape(x) t = Reshape(s, pairs) w = Slice(t, axes, one, axes) v = Squeeze(w, axes)",
        "s = Shape(x) f = Cast<to=1>(s) g = Mul(f, half) h = Floor(g) v = Cast<to=7>(h)",
        "s = Shape(x) t = Gather(s, first) v = ConstantOfShape<value=int64[1] {7}>(t)",
        "s = Shape(x) v = Tile(s, two)",
        "s = Shape(x) v = Neg(s)",
    ],
)
@pytest.mark.parametrize("fixed", [True, False])
def test_values_are_those_of_onnx_runtime(nodes: str, fixed: bool) -> None:
    declared = "2, 3, 4, 6" if fixed else "N, 3, K, 6"
    names: dict[str, Any] = {
        "zero": np.array(0), "first": np.array([0]), "square": np.array([[0, 3], [1, 2]]),
        "three": np.array([3]), "one": np.array([1]), "axes": np.array([0]), "two": np.array([2]),
        "minus": np.array([-1]), "far": np.array([-(2**62)]), "pairs": np.array([2, 2]),
        "half": np.array([0.5], np.float32),
    }  # fmt: skip
    text = f"(float[{declared}] x, float[{declared}] y) => (int64[A] v) {{ {nodes} }}"
    proto = graph(text, opset=18, **names)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    x = np.zeros((2, 3, 4, 6), np.float32)
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(["v"], {"x": x, "y": x})
    found = value(Model.load(proto).graph.outputs[0])
    if found is None:
        assert not fixed and ("Cast" in nodes or "ConstantOfShape" in nodes)
        return
    assert found.shape == expected.shape
    sizes = {"N": 2, "K": 4}
    for element, wanted in zip(found.reshape(-1).tolist(), expected.reshape(-1), strict=True):
        if not isinstance(element, Size):
            assert element == wanted
        elif set(element.names) <= set(sizes):
            assert element.factor * np.prod([sizes[n] for n in element.names]) == wanted
        else:
            assert not fixed


@pytest.mark.parametrize(
    ("call", "held", "with_value"),
    [
        ("Mod(s, c)", np.array([3, 5, 0, 2]), False),
        ("Div(s, c)", np.array([3, 5, 0, 2]), False),
        ("Mod(s, c)", np.array([3, 5, 4, 2]), True),
        ("Mul(s, c)", np.array([3, 5, 0, 2]), True),
        ("ReduceProd(c)", np.array([2**31, 2**31]), False),
        ("ReduceProd(c)", np.array([2**31, 2**20]), True),
        ("ReduceSum(c)", np.array([2**53, 1]), False),
        ("ReduceSum(c)", np.array([2**52, 1]), True),
        ("Max(c, d)", np.array([-0.0], np.float32), False),
        ("Min(c, d)", np.array([np.nan], np.float32), False),
        ("Max(c, d)", np.array([2], np.float32), True),
        ("Cast<to=7>(c)", np.array([2.0**40], np.float32), False),
        ("Cast<to=7>(c)", np.array([2.0**20], np.float32), True),
    ],
)
def test_what_is_up_to_the_runtime_has_no_value(call: str, held: Any, with_value: bool) -> None:
    proto = graph(
        f"(float[2,3,4,6] x) => (int64[A] v) {{ s = Shape(x) v = {call} }}",
        opset=18,
        c=held,
        d=np.array([1], np.float32),
    )
    proto.graph.output[0].type.tensor_type.ClearField("elem_type")
    found = value(Model.load(proto).graph.outputs[0])
    assert (found is not None and found.dtype != object) == with_value


@pytest.mark.parametrize("op", ["Add", "Mul", "Max"])
def test_a_diamond_is_computed_once_on_each_level(op: str) -> None:
    levels = " ".join(f"t{i + 1} = {op}(t{i}, t{i})" for i in range(40))
    proto = graph(
        f"(float[2,3] x) => (float[A,B] y) {{ t0 = Shape(x) {levels} y = Reshape(x, t40) }}"
    )
    start = time.process_time()
    optimize(proto, validate=False)
    assert time.process_time() - start < 5


def test_a_long_vector_of_sizes_and_an_empty_one_are_folded() -> None:
    parts = " ".join(f"s{i} = Shape<start=1>(x)" for i in range(40))
    names = ", ".join(f"s{i}" for i in range(40))
    many = graph(f"(float[N,3] x) => (int64[40] y) {{ {parts} y = Concat<axis=0>({names}) }}")
    assert operators(optimize(many, validate=False).model) == "Constant"
    empty = graph(
        "(float x, float z) => (float[1] y)"
        "{ a = Shape(x) b = Shape(z) s = Add(a, b) r = Reshape(x, s) y = Unsqueeze(r, i) }",
        i=np.array([0]),
    )
    result = optimize(empty, validate=False)
    assert all(entry.outcome != "rolled back" for entry in result.report.passes)


def test_numbers_that_wrap_around_are_not_computed() -> None:
    levels = " ".join(f"t{i + 1} = Mul(t{i}, t{i})" for i in range(12))
    proto = graph(f"(float[N,3] x) => (int64[2] y) {{ t0 = Shape(x) {levels} y = Neg(t12) }}")
    found = values(Model.load(proto).graph.outputs[0])
    assert found is not None and all(abs(size.factor) < 2**63 for size in found)


def test_nameless_dimensions_are_not_taken_for_one() -> None:
    proto = graph("(float[a,b] x) => (int64[2] y) { y = Shape(x) }")
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    found = values(Model.load(proto).graph.outputs[0])
    assert found is not None and found[0] != found[1]
