"""An If whose branches differ in rank makes what its readers take."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphpass.ir.inference import infer_shapes
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, graph, operators

W = np.arange(6, dtype=np.float32).reshape(3, 2, 1)  # of a Conv over maps [N, 2, L]
AXES: dict[str, Any] = {"zero": np.array([0]), "last": np.array([-1]), "two": np.array(2)}
LAST = "v = Squeeze(x, last)"
SAME = "w = Identity(x)"


def branches(then: str = LAST, other: str = SAME) -> str:
    return f"""If <then_branch = g1 () => (float[a,b] v) {{ {then} }},
        else_branch = g2 () => (float[c,d,e] w) {{ {other} }}> (c)"""


def ranked(body: str, outputs: str = "float[A,B,C] y", x: str = "N,2,L") -> onnx.ModelProto:
    return graph(f"(float[{x}] x, bool c) => ({outputs}) {{ {body} }}", W=W, **AXES)


def rank_of(name: str, model: onnx.ModelProto) -> int | None:
    infos = {v.name: v.type.tensor_type for v in infer_shapes(model).graph.value_info}
    return len(infos[name].shape.dim) if infos[name].HasField("shape") else None


def test_a_conv_takes_maps_only() -> None:
    model = ranked(f"t = {branches()} y = Conv(t, W)")
    assert rank_of("t", model) == 3


@pytest.mark.parametrize(
    ("view", "rank"),
    [("u = Unsqueeze(t, zero)", 2), ("u = Squeeze(t, zero)", None), ("u = Identity(t)", 3)],
)
def test_what_views_make_of_it_is_taken_or_not(view: str, rank: int | None) -> None:
    """Neither [a, b] nor [c, d, e] is a map once an axis is gone."""
    assert rank_of("t", ranked(f"t = {branches()} {view} y = Conv(u, W)")) == rank


@pytest.mark.parametrize("readers", ["y = Relu(t)", "s = Shape(t) y = ConstantOfShape(s)"])
def test_what_all_ranks_fit_decides_nothing(readers: str) -> None:
    assert rank_of("t", ranked(f"t = {branches()} {readers}", "float y")) is None


def test_a_reader_that_may_not_run_decides_nothing() -> None:
    body = f"""t = {branches()} y = If <then_branch = g3 () => (float[p,q,r] z) {{z = Conv(t, W)}},
        else_branch = g4 () => (float[p,q] z2) {{z2 = Relu(t)}}> (c)"""
    assert rank_of("t", ranked(body, "float y")) is None


def test_a_reader_in_both_branches_decides() -> None:
    body = f"""t = {branches()} y = If <then_branch = g3 () => (float[p,q,r] z) {{z = Conv(t, W)}},
        else_branch = g4 () => (float[p,q,r] z2) {{k = Relu(t) z2 = Conv(k, W)}}> (c)"""
    assert rank_of("t", ranked(body)) == 3


def test_one_if_decides_another() -> None:
    body = f"""t = {branches()} s = Shape(t) n = Size(s) e = Equal(n, two) d = Not(e)
        u = If <then_branch = g3 () => (float[p,q,r,s] z) {{z = Unsqueeze(t, zero)}},
                else_branch = g4 () => (float[p,q,r] z2) {{z2 = Identity(t)}}> (d)
        k = Unsqueeze(u, zero) y = Conv(k, W)"""
    model = ranked(body)
    assert rank_of("t", model) == rank_of("u", model) == 2
    result, _ = apply_to(make("clean-up"), model)
    assert operators(result) == "If Unsqueeze Conv"
    x = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    feed = {"x": x, "c": np.array(True)}
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, feed)[0]
        for m in (model, result)
    )
    assert np.array_equal(before, after)


def test_what_a_branch_declares_is_not_relied_on() -> None:
    """It says that Relu makes a matrix, and makes a map of it."""
    body = branches(then="v = Mystery(x)").replace("Mystery", "own.Mystery")
    model = graph(
        f"(float[N,2,L] x, bool c) => (float[A,B,C] y) {{ t = {body} y = Conv(t, W) }}",
        domains={"own": 1},
        W=W,
        **AXES,
    )
    assert rank_of("t", model) is None


def test_an_operator_that_onnx_does_not_know_decides_nothing() -> None:
    text = f"(float[N,2,L] x, bool c) => (float[A,B,C] y) {{ t = {branches()} y = own.Conv(t) }}"
    assert rank_of("t", graph(text, domains={"own": 1}, **AXES)) is None


def test_in_bodies_as_well() -> None:
    inner = f"t = {branches()} s = Shape(t) n = Size(s) m = Cast<to = 1>(n) q = Conv(t, W)"
    body = f"""y, z = If <then_branch = g5 () => (float[A,B,C] q, float m) {{ {inner} }},
        else_branch = g6 () => (float[A,B,C] q2, float m2)
        {{ q2 = Relu(x) m2 = ReduceSum<keepdims = 0>(x) }}> (c)"""
    result, _ = apply_to(make("clean-up"), ranked(body, "float[A,B,C] y, float z"))
    (outer,) = result.graph.node
    then = next(a.g for a in outer.attribute if a.name == "then_branch")
    assert "Size" not in [node.op_type for node in then.node]


def test_many_ifs_are_looked_at_in_linear_time() -> None:
    count = 300
    ifs = " ".join(
        f"t{i} = {branches()} y{i} = Relu(t{i})".replace("(c)", f"(c{i})")
        .replace("g1", f"g{2 * i + 1}")
        .replace("g2", f"g{2 * i + 2}")
        for i in range(1, count)
    )
    conditions = ", ".join(f"bool c{i}" for i in range(1, count))
    outputs = ", ".join(f"float y{i}" for i in range(1, count))
    model = graph(f"(float[N,2,L] x, {conditions}) => ({outputs}) {{ {ifs} }}", **AXES)
    infer_shapes(model)
