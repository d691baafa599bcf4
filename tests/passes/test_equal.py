"""Equal nodes and equal initializers: which are merged, which must not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_refused, check_replay, check_untouched, graph

CLEAN_UP = make("clean-up")


def becomes(text: str, after: str, **options: Any) -> onnx.ModelProto:
    """Check one model, to the bit, and that a second run finds nothing more."""
    result = check(CLEAN_UP, graph(text, **options), after, exact=True)
    assert not apply_to(CLEAN_UP, result)[1].rewrites
    return result


def stays(text: str, **options: Any) -> None:
    check_untouched(CLEAN_UP, graph(text, **options))


MERGED = {
    "two": ("a = Exp(x) b = Exp(x) y = Sub(a, b)", "Exp Sub"),
    "three in a row": ("a = Exp(x) c = Neg(a) b = Exp(x) d = Neg(b) y = Sub(c, d)", "Exp Neg Sub"),
    "an attribute at its default": (
        "a = Softmax(x) b = Softmax<axis=-1>(x) y = Sub(a, b)",
        "Softmax Sub",
    ),
    "what commutes": ("a = Add(x, v) b = Add(v, x) y = Sub(a, b)", "Add Sub"),
    "by equal constants": ("a = Add(x, v) b = Add(x, w) y = Sub(a, b)", "Add Sub"),
    "by Constant nodes": (
        "v1 = Constant<value_float=2.5>() v2 = Constant<value_float=2.5>()"
        " a = Pow(x, v1) b = Pow(x, v2) y = Sub(a, b)",
        "Pow Sub",
    ),
    "an output that is read": ("y = Exp(x) b = Exp(x) z = Neg(b)", "Exp Neg"),
    "an output comes second": ("a = Exp(x) z = Neg(a) y = Exp(x)", "Exp Neg"),
}


@pytest.mark.parametrize("name", MERGED)
def test_equal_nodes_become_one(name: str) -> None:
    body, after = MERGED[name]
    outputs = "float[3] y, float[3] z" if " z = " in f" {body}" else "float[3] y"
    weight = np.array([1, 2, 3], np.float32)
    becomes(f"(float[3] x) => ({outputs}) {{{body}}}", after, v=weight, w=weight.copy())


APART = {
    "another attribute": "a = Softmax<axis=0>(x) b = Softmax<axis=1>(x) y = Sub(a, b)",
    "zero of another sign": "a = Elu<alpha=0.0>(x) b = Elu<alpha=-0.0>(x) y = Sub(a, b)",
    "other operands": "a = Sub(x, v) b = Sub(v, x) y = Sub(a, b)",
    "another type": "a = Cast<to=11>(x) b = Cast<to=10>(x) c = Cast<to=11>(b) y = Sub(a, c)",
    "random": "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b)",
    "random of the same seed": (
        "a = RandomUniformLike<seed=1.0>(x) b = RandomUniformLike<seed=1.0>(x) y = Sub(a, b)"
    ),
    "training": "a = Dropout(x, r, on) b = Dropout(x, r, on) y = Sub(a, b)",
    "two outputs": "y = Exp(x) z = Exp(x)",
    "what ONNX does not know": "a = my.Draw(x) b = my.Draw(x) y = Sub(a, b)",
}


@pytest.mark.parametrize("name", APART)
def test_what_differs_or_draws_stays_apart(name: str) -> None:
    body = APART[name]
    kind = "double" if "to=11" in body else "float"
    outputs = f"{kind}[3,3] y, float[3,3] z" if " z = " in f" {body}" else f"{kind}[3,3] y"
    options: dict[str, Any] = {"v": (3, 3)} if ", v" in body else {}
    if "Dropout" in body:
        options = {"r": np.float32(0.5), "on": np.array(True)}
    model = graph(f"(float[3,3] x) => ({outputs}) {{{body}}}", domains={"my": 1}, **options)
    if name == "two outputs":
        check_refused(CLEAN_UP, model, "are outputs of the graph and keep their names")
        return
    _, applied = apply_to(CLEAN_UP, model)
    assert not [r for r in applied.rewrites if r.rule == "EqualNodes"]


def test_all_outputs_of_a_node_are_merged() -> None:
    becomes(
        """(float[2,6] x) => (float[2,3] y) {
            a, b = Split<axis=1>(x, k) c, d = Split<axis=1>(x, k)
            e = Mul(a, d) f = Sub(e, c) y = Mul(f, b)
        }""",
        "Split Mul Sub Mul",
        k=np.array([3, 3]),
    )


def test_a_node_lacking_an_output_does_not_stand_in() -> None:
    text = "(float[2,6] x) => (float[2,6] y, bool[2,6] m) {y = Dropout(x, r) n, m = Dropout(x, r)}"
    _, applied = apply_to(CLEAN_UP, graph(text, r=np.float32(0.5)))
    assert not [r for r in applied.rewrites if r.rule == "EqualNodes"]


IF = """{name} = If(c) <
    then_branch = g{name} () => (float[3] {name}p) {{{name}p = {op}(x)}},
    else_branch = h{name} () => (float[3] {name}q) {{{name}q = Relu(x)}}
>"""


@pytest.mark.parametrize(("other", "after"), [("Exp", "If Sub"), ("Neg", "If If Sub")])
def test_bodies_are_compared(other: str, after: str) -> None:
    both = IF.format(name="a", op="Exp") + " " + IF.format(name="b", op=other)
    becomes(f"(float[3] x, bool c) => (float[3] y) {{{both} y = Sub(a, b)}}", after)


def test_bodies_that_draw_stay_apart() -> None:
    both = (
        IF.format(name="a", op="RandomNormalLike")
        + " "
        + IF.format(name="b", op="RandomNormalLike")
    )
    stays(f"(float[3] x, bool c) => (float[3] y) {{{both} y = Sub(a, b)}}")


def test_a_body_that_may_not_run_gives_nothing_away() -> None:
    """Exp is computed in both branches and outside, after the If: each stays."""
    stays(
        """(float[3] x, bool c) => (float[3] y) {
            a = If(c) <
                then_branch = g () => (float[3] p) {p = Exp(x)},
                else_branch = h () => (float[3] q) {r = Exp(x) q = Neg(r)}
            >
            e = Exp(x)
            y = Sub(a, e)
        }"""
    )


def test_equal_nodes_of_a_body_become_one() -> None:
    result = becomes(
        """(float[3] x, bool c) => (float[3] y) {
            y = If(c) <
                then_branch = g () => (float[3] p) {a = Exp(x) b = Exp(x) p = Sub(a, b)},
                else_branch = h () => (float[3] q) {q = Neg(x)}
            >
        }""",
        "If",
    )
    body = next(a.g for a in result.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in body.node] == ["Exp", "Sub"]


def test_a_name_that_a_body_gives_to_another_tensor_is_not_captured() -> None:
    text = """(float[3] x, bool c) => (float[3] y) {
        a = Exp(x) b = Exp(x) n = Neg(a)
        i = If(c) <
            then_branch = g () => (float[3] p) {a = Neg(x) r = Neg(b) p = Add(a, r)},
            else_branch = h () => (float[3] q) {q = Relu(x)}
        >
        y = Add(n, i)
    }"""
    check_refused(CLEAN_UP, graph(text), "in the body around Neg of 'r' 'a' is another tensor")


def test_training_batch_normalizations_stay_apart() -> None:
    text = """(float[2,3] x) => (float[2,3] y) {
        a = BatchNormalization<training_mode=1>(x, s, s, s, s)
        b = BatchNormalization<training_mode=1>(x, s, s, s, s)
        y = Sub(a, b)
    }"""
    _, applied = apply_to(CLEAN_UP, graph(text, s=np.ones(3, np.float32), opset=15))
    assert not applied.rewrites


# ------------------------------------------------------------------------------- initializers


@pytest.mark.parametrize("rows", [1, 40, 3000])
def test_equal_initializers_become_one(rows: int) -> None:
    weight = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    other = weight.copy()
    other[-1, -1] += 1  # far from the beginning
    result = becomes(
        f"""(float[{rows},3] x) => (float[{rows},3] y) {{
            a = Add(x, v) b = Mul(a, w) y = Sub(b, u)
        }}""",
        "Add Mul Sub",
        v=weight,
        w=weight.copy(),
        u=other,
    )
    assert {tensor.name for tensor in result.graph.initializer} == {"v", "u"}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (np.zeros(3, np.float32), -np.zeros(3, np.float32)),
        (np.zeros(3, np.float32), np.zeros(3, np.int32).view(np.float32).reshape(3, 1)),
        (np.full(3, np.nan, np.float32), np.array([0x7FC00001] * 3, np.uint32).view(np.float32)),
    ],
)
def test_what_differs_in_sign_shape_or_payload_stays(one: Any, two: Any) -> None:
    text = "(float[3,3] x) => (float[3,3] y) {a = Max(x, v) y = Min(a, w)}"
    _, applied = apply_to(CLEAN_UP, graph(text, v=one, w=two))
    assert not [r for r in applied.rewrites if r.rule == "EqualInitializers"]


def test_an_initializer_that_is_an_output_or_an_input_stays() -> None:
    text = "(float[3] x, float[3] w) => (float[3] y, float[3] v) {a = Max(x, v) y = Min(a, w)}"
    check_untouched(CLEAN_UP, graph(text, v=np.ones(3, np.float32), w=np.ones(3, np.float32)))


# -------------------------------------------------------------------------- how it is checked


def test_each_merge_has_a_window_and_can_be_quarantined() -> None:
    text = "(float[3] x) => (float[3] y) {a = Exp(x) b = Exp(x) c = Sub(a, b) y = Mul(c, v)}"
    model = graph(text, v=np.ones(3, np.float32) * 3)
    with graphpass.optimize(model, CLEAN_UP) as result:
        (rewrite,) = result.report.passes[0].rewrites
        assert rewrite.rule == "EqualNodes" and rewrite.site == "b"
        assert rewrite.proof is not None and rewrite.proof.status == "ok"
        assert result.report.passes[0].outcome == "kept"


def test_equal_to_the_bit_in_small_integers() -> None:
    check_replay(
        CLEAN_UP,
        graph(
            "(float[N,3] x) => (float[N,3] y) {a = MatMul(x, v) b = MatMul(x, v) y = Mul(a, b)}",
            v=(3, 3),
        ),
    )


@pytest.mark.parametrize("opset", [9, 13, 15])
def test_statistics_that_training_moves_stay_apart(opset: int) -> None:
    """ONNX Runtime writes running statistics where the old ones lie."""
    attributes = "training_mode=1" if opset > 13 else "momentum=0.5"
    outputs = "y, n, w" if opset > 13 else "y, n, w, p, q"
    model = graph(
        f"""(float[4,3] x) => (float[4,3] y, float[3] n, float[3] w) {{
            {outputs} = BatchNormalization<{attributes}>(x, s, t, m, v)
        }}""",
        opset=opset,
        s=np.full(3, 2, np.float32),
        t=np.zeros(3, np.float32),
        m=np.ones(3, np.float32),
        v=np.ones(3, np.float32),
    )
    check_untouched(CLEAN_UP, model)
