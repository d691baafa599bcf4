"""Layouts of all nodes that are tied to each other: moved together, where that saves Transposes."""

from __future__ import annotations

import importlib
import itertools
import random
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphpass
from graphpass.ir.model import Model
from graphpass.rewrite.driver import apply
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_equal, check_untouched, check_valid, graph
from graphpass.testing import operators as listed

from .layouts import Drawn

ALL = make("gemm-to-conv", {"target": "all"})


def integers(*shape: int) -> Any:
    return np.random.default_rng(3).integers(-3, 4, shape).astype(np.float32)


def transposes(model: onnx.ModelProto) -> int:
    return listed(model).split().count("Transpose")


# what stands between a layer above and one below; a and c are made by a Conv each, in [N, C, S];
# what reads b and d is a Conv. What is left, of how many.
STREAMS: dict[str, tuple[str, int]] = {
    "a sum of two": ("x = Transpose<perm=[0,2,1]>(a) z = Transpose<perm=[0,2,1]>(c) s = Add(x, z)"
                     " b = Transpose<perm=[0,2,1]>(s)", 0),
    "a stream that two layers read": (
        "x = Transpose<perm=[0,2,1]>(a) m = ReduceMean<axes=[2]>(x) n = Sub(x, m)"
        " b = Transpose<perm=[0,2,1]>(n) z = Transpose<perm=[0,2,1]>(c) s = Add(x, z)"
        " k = ReduceMean<axes=[-1]>(s) j = Sub(s, k) o = Mul(j, j) q = ReduceMean<axes=[-1]>(o)"
        " v = Div(j, q) d = Transpose<perm=[0,2,1]>(v)", 0),
    "a constant row before the first": (
        "x = Transpose<perm=[0,2,1]>(a) y = Concat<axis=1>(row, x) s = Add(y, places)"
        " b = Transpose<perm=[0,2,1]>(s)", 0),
    "something else comes in": (
        "x = Transpose<perm=[0,2,1]>(a) z = Transpose<perm=[0,2,1]>(c) t = Slice(other, l, h, l2)"
        " s = Add(x, t) r = Add(s, z) b = Transpose<perm=[0,2,1]>(s)"
        " d = Transpose<perm=[0,2,1]>(r)", 1),
    "it would cost as much as it saves": (
        "x = Transpose<perm=[0,2,1]>(a) t = Slice(other, l, h, l2) s = Add(x, t)"
        " e = Conv(s, K) w = Relu(e)", 1),
}  # fmt: skip


def stream(body: str) -> onnx.ModelProto:
    batch = 1 if "row" in body else "N"
    long = 8 if "row" in body else 7
    outputs = [f"float[N,4,{long}] p"] if "b =" in body else ["float[N,3,4] w"]
    ends = "p = Conv(b, V)" if "b =" in body else ""
    if "d =" in body:
        outputs.append("float[N,4,7] q2")
        ends += " q2 = Conv(d, V)"
    more = ", float[N,9,6] other" if "other" in body else ""
    second = " c = Conv(i, U)" if "c)" in body else ""
    head = f"(float[{batch},3,7] i{more}) => ({', '.join(outputs)})"
    text = f"{head} {{a = Conv(i, W){second} {body} {ends}}}"
    held = {
        "W": integers(6, 3, 1), "U": integers(6, 3, 1), "V": integers(4, 6, 1),
        "K": integers(3, 7, 3), "row": integers(1, 1, 6), "places": integers(1, 8, 6),
        "l": np.array([0], np.int64), "h": np.array([7], np.int64), "l2": np.array([1], np.int64),
    }  # fmt: skip
    names = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return graph(text, opset=17, **{name: held[name] for name in held if name in names})


@pytest.mark.parametrize("body, left", STREAMS.values(), ids=STREAMS)
def test_a_stream_goes_over_as_a_whole(body: str, left: int) -> None:
    result = check(ALL, stream(body), exact="Div" not in body)
    assert transposes(result) == left, listed(result)
    check_untouched(ALL, result)


ATTENTION = """(float[N,12,7] i) => (float[N,6,7] y) {
    a, c, e = Split<axis=1>(i)
    q = Reshape(a, heads) k = Reshape(c, heads) v = Reshape(e, heads)
    x = Transpose<perm=[0,1,3,2]>(q) w = Transpose<perm=[0,1,3,2]>(v)
    s = MatMul(x, k) p = Softmax<axis=-1>(s) o = MatMul(p, w)
    t = Transpose<perm=[0,1,3,2]>(o) u = Reshape(t, whole) y = Conv(u, W)
}"""


def test_attention_takes_one_transpose_of_three() -> None:
    model = graph(
        ATTENTION, opset=13, W=(6, 4, 1), heads=np.array([0, 2, 2, -1]), whole=np.array([0, 4, -1])
    )
    result = check(ALL, model)
    assert transposes(model) == 3 and transposes(result) == 1, listed(result)
    check_untouched(ALL, result)


def test_a_product_of_matrices_of_several_stacks_is_exact() -> None:
    """x·y of [2, 1, 3, 4] and [1, 5, 4, 2], both transposed, and wanted transposed."""
    model = graph(
        "(float[2,1,4,3] i, float[1,5,2,4] j) => (float[2,5,2,3] y) {"
        "x = Transpose<perm=[0,1,3,2]>(i) w = Transpose<perm=[0,1,3,2]>(j) m = MatMul(x, w)"
        " y = Transpose<perm=[0,1,3,2]>(m)}"
    )
    check(ALL, model, "MatMul", exact=True)


@pytest.mark.parametrize(
    "perm, shape", [([0, 2, 1, 3], "float[2,5,1,4] i"), ([1, 0, 3, 2], "float[1,2,4,5] i")]
)
def test_a_product_does_not_go_over_to_other_layouts(perm: list[int], shape: str) -> None:
    text = f"<perm={perm}>".replace(" ", "")
    back = f"<perm={np.argsort(perm).tolist()}>".replace(" ", "")
    model = graph(
        f"({shape}) => (float[?,?,?,?] y) {{x = Transpose{text}(i) k = Transpose<perm=[0,1,3,2]>(x)"
        f" m = MatMul(x, k) y = Transpose{back}(m)}}"
    )
    check(ALL, model, exact=True)


def test_in_a_body_and_where_a_body_reads_the_stream() -> None:
    inner = (
        "then_branch = inner () => (float[N,6,7] o) {"
        " m = Transpose<perm=[0,2,1]>(s) n = Conv(m, V) o = Identity(n) }"
    )
    model = graph(
        f"""(float[N,6,7] a, float[N,6,7] c, bool z) => (float[N,6,7] y, float[N,6,7] p) {{
        x = Transpose<perm=[0,2,1]>(a) w = Transpose<perm=[0,2,1]>(c) s = Add(x, w)
        b = Transpose<perm=[0,2,1]>(s) p = Conv(b, V)
        y = If (z) <{inner}, else_branch = other () => (float[N,6,7] o2) {{ o2 = Identity(c) }}>
        }}""",
        V=integers(6, 6, 1),
    )
    result = check(ALL, model, exact=True)
    assert transposes(result) <= transposes(model)


# --------------------------------------------------------------------------- nothing is missed


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from((9, 12, 13, 17, 18)), st.integers(3, 24))
def test_random_graphs(rng: random.Random, opset: int, steps: int) -> None:
    model = Drawn(rng, opset, steps).model()
    if model is None:
        return
    result, applied = apply_to(ALL, model)
    assert not applied.failures
    check_valid(model, result)
    check_equal(model, result, exact=True, dims={}, seeds=(0,))
    assert transposes(result) <= transposes(model)
    check_untouched(ALL, result)


def fewest(network: Any) -> int:
    """Return the fewest Transposes that any choice of layouts leaves, by trying all."""
    best: int = network.turns
    for goes in itertools.product((0, 1), repeat=len(network.number)):
        layout = {0: 0, 1: 1, **dict(zip(network.number.values(), goes, strict=True))}
        made = [
            (layout[network._maker(tensor)], {layout[end] for end in wanted})
            for tensor, wanted in network.read
        ]
        best = min(best, sum(wanted - {maker} != set() for maker, wanted in made))
    return best


def test_the_cut_is_the_best_of_all_choices() -> None:
    survey = importlib.import_module("graphpass.passes.shared.fewest_transposes")
    saved = looked = 0
    for seed in range(100):
        model = Drawn(random.Random(seed), 17, 14).model()
        assert model is not None
        with Model.load(model).rewriting() as scopes:
            for order in survey._orders(scopes[0]):
                members = [n for n in scopes[0].nodes if survey._goes_over(n, order)]
                for part in survey._tied(members):
                    if len(part) > 7:
                        continue
                    network = survey._Network(scopes[0], order, part)
                    best = fewest(network)
                    assert network.cut() == best, seed
                    looked += 1
                    saved += best < network.turns
    assert looked > 200 and saved > 10


READ_TURNED_ALREADY = (
    "x = Transpose<perm=[0,2,1]>(a) t = Slice(other, l, h, l2) d = Transpose<perm=[0,2,1]>(t)"
    " s = Add(x, t) b = Transpose<perm=[0,2,1]>(s)"
)


def test_a_transpose_that_is_there_is_read_and_looked_at_with_its_readers() -> None:
    model = stream(READ_TURNED_ALREADY)
    with graphpass.optimize(model, "gemm-to-conv{target=all}") as result:
        (entry,) = result.report.passes
        assert not entry.quarantined and not entry.reason
        assert "FewestTransposes" in {rewrite.rule for rewrite in entry.rewrites}
        assert transposes(result.model) == 1  # that of `t`


def test_where_one_node_stays_the_others_do() -> None:
    model = stream(STREAMS["a stream that two layers read"][0])
    moves = [r for r in apply_to(ALL, model)[1].rewrites if r.rule == "FewestTransposes"]
    assert len(moves) > 2
    for move in moves:
        applied = apply(ALL, Model.load(model), quarantine=frozenset({move.key}))
        assert "FewestTransposes" not in {rewrite.rule for rewrite in applied.rewrites}
