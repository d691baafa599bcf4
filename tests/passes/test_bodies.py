"""Bodies that take the place of their If or Loop, with what lies inside of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_replay, graph, operators

CLEAN_UP = make("clean-up")
YES = np.array(True)
K = np.array([1, 2, 3], np.float32)


def settled(model: onnx.ModelProto, after: str) -> onnx.ModelProto:
    """Check what becomes of a model, and that a second run finds nothing more."""
    result = check(CLEAN_UP, model, after, exact=True)
    assert not apply_to(CLEAN_UP, result)[1].rewrites
    return result


def said(model: onnx.ModelProto) -> str:
    """Return all refusals."""
    return "; ".join(refusal.reason for refusal in apply_to(CLEAN_UP, model)[1].refusals)


# ---------------------------------------------------------------------------------------- If


def nested(then: str, outputs: str = "float[3] t, float[3] u", **constants: Any) -> Any:
    text = f"""(float[3] x, bool d) => (float[3] y) {{
        a, b = If <then_branch = g1 () => ({outputs}) {{ {then} }},
                   else_branch = g2 () => (float[3] v, float[3] w) {{v = Relu(x) w = Relu(v)}}> (c)
        e = Abs(a) y = Add(e, b)
    }}"""
    return graph(text, c=YES, k=K, **constants)


INNER = """u = If <then_branch = g3 () => (float[3] p) {{ {0} }},
                   else_branch = g4 () => (float[3] q) {{ {1} }}> (d)"""


def test_a_branch_with_an_undecided_if_inside_takes_the_place_of_its_if() -> None:
    then = "s = Neg(x) t = Add(s, k) " + INNER.format("p = Sub(s, t)", "q = Mul(t, k)")
    result = settled(nested(then), "Neg Add If Abs Add")
    (inner,) = (node for node in result.graph.node if node.op_type == "If")
    assert [len(a.g.node) for a in inner.attribute] == [1, 1]


def test_bodies_inside_of_bodies_read_what_they_read() -> None:
    deep = (
        "q1 = Add(s, k) q = If <then_branch = g5 () => (float[3] z) {z = Add(t, q1)},"
        " else_branch = g6 () => (float[3] z2) {z2 = Sub(x, s)}> (d)"
    )
    then = "s = Neg(x) t = Add(s, k) " + INNER.format("p = Neg(s)", deep)
    settled(nested(then), "Neg Add If Abs Add")


def test_a_body_reads_weights_of_the_branch() -> None:
    then = "s = Constant<value_floats=[3.0, 1.0, 2.0]>() t = Relu(x) " + INNER.format(
        "p = Sub(x, s)", "q = Mul(t, s)"
    )
    settled(nested(then), "Relu If Abs Add")


def test_a_loop_inside_of_a_branch_goes_with_it() -> None:
    then = """n = Size(x) t = Neg(x) u = Loop <body = g3 (int64 i, bool on, float[3] h)
        => (bool on2, float[3] h2) {on2 = Identity(d) h2 = Add(h, t)}> (n, d, x)"""
    settled(nested(then), "Neg Loop Abs Add")


def test_a_result_that_another_result_reads_may_vanish() -> None:
    """What is written for the first output goes at once; the second one reads what it read."""
    model = nested("t = Add(x, z) u = Neg(t)", z=np.float32(-0.0))
    settled(model, "Neg Abs Add")


def test_the_names_of_both_branches_may_be_the_same() -> None:
    one = (
        "If <then_branch = g1 () => (float[3] t) {s = Neg(x) t = Exp(s)},"
        " else_branch = g2 () => (float[3] v) {v = Relu(x)}>"
    )
    text = f"(float[3] x) => (float[3] y) {{ a = {one}(c) b = {one}(c) e = Abs(a) y = Mul(e, b) }}"
    result = check(CLEAN_UP, graph(text, c=YES), exact=True)
    onnx.checker.check_model(result, full_check=True)
    assert "If" not in operators(result)


# -------------------------------------------------------------------------------------- Loop


def loop(trips: Any, body: str, after: str = "", begin: str = "") -> onnx.ModelProto:
    text = f"""(float[3] x) => (float[3] y) {{
        h = Loop <body = g (int64 i, bool on, float[3] p) => (bool go, float[3] q) {{ {body} }}>
            (n, {begin}, x)
        y = Abs(h)
    }}"""
    return graph(text, n=np.array(trips, np.int64), k=K, yes=YES)


ADD = "go = Identity(on) q = Add(p, k)"


@pytest.mark.parametrize(
    ("trips", "body", "begin", "after"),
    [
        (1, ADD, "yes", "Add Abs"),
        (3, ADD, "", "Add Add Add Abs"),
        (2, "go = Identity(on) f = Cast<to=1>(i) a = Add(p, f) q = Neg(a)", "yes",
         "Neg Add Neg Abs"),
        (2, "go = Constant<value_int=1>() q = Relu(p)", "yes", "Loop Abs"),
    ],
    ids=["one trip", "no condition", "the number of the trip", "another type of condition"],
)  # fmt: skip
def test_few_trips_are_unrolled(trips: int, body: str, begin: str, after: str) -> None:
    if "value_int" in body:
        body = body.replace("Constant<value_int=1>()", "Identity(yes)")
        after = "Relu Abs"
    settled(loop(trips, body, begin=begin), after)


def test_no_trip_leaves_what_it_began_with() -> None:
    settled(loop(0, ADD), "Abs")


def test_what_is_collected_is_stacked() -> None:
    text = """(float[3] x) => (float[3] y, float[N,3] z) {
        y, z = Loop <body = g (int64 i, bool on, float[3] p) => (bool go, float[3] q, float[3] r)
            { go = Identity(on) q = Add(p, k) r = Neg(q) }> (n, , x)
    }"""
    settled(
        graph(text.replace("[N,3]", "[2,3]"), n=np.array(2), k=K),
        "Add Add Neg Unsqueeze Neg Unsqueeze Concat",
    )
    settled(graph(text.replace("[N,3]", "[1,3]"), n=np.array(1), k=K), "Add Neg Unsqueeze")
    empty = graph(text, n=np.array(0), k=K)
    assert operators(check(CLEAN_UP, empty)) == "Loop"


@pytest.mark.parametrize(
    "body",
    ["s = ReduceSum<keepdims=0>(p) go = Greater(s, zero) q = Add(p, k)", "go = Not(on) q = Neg(p)"],
    ids=["computed", "another one"],
)
def test_a_loop_that_may_end_by_itself_stays(body: str) -> None:
    model = loop(2, body)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))
    assert operators(check(CLEAN_UP, model)).startswith("Loop")


def test_many_trips_stay_a_loop() -> None:
    assert "would become 40 nodes" in said(loop(20, ADD))


def test_numbers_drawn_in_each_trip_stay_a_loop() -> None:
    body = "go = Identity(on) r = RandomNormal<shape=[3], seed=2.0>() q = Add(p, r)"
    assert "draws random numbers" in said(loop(2, body))


def test_replay() -> None:
    check_replay(CLEAN_UP, loop(2, "go = Identity(on) q = Add(p, k)"))
    then = "s = Neg(x) t = Add(s, k) " + INNER.format("p = Sub(s, t)", "q = Mul(t, k)")
    check_replay(CLEAN_UP, nested(then))


# ------------------------------------------------------------- states that no trip changes


def carried(body: str, trips: Any = 20, type_: str = "float[3]") -> onnx.ModelProto:
    """A Loop over p, which changes, and w, which may not; both are read behind it."""
    text = f"""(float[3] x, {type_} v) => (float[3] y, {type_} z) {{
        h, z = Loop <body = g (int64 i, bool on, float[3] p, {type_} w)
            => (bool go, float[3] q, {type_} u) {{ {body} }}> (n, yes, x, v)
        y = Abs(h)
    }}"""
    return graph(text, n=np.array(trips, np.int64), k=K, yes=YES)


def states(model: onnx.ModelProto, operator: str = "Loop") -> tuple[int, int]:
    (node,) = (node for node in model.graph.node if node.op_type == operator)
    (body,) = (a.g for a in node.attribute if a.name == "body")
    return len(body.input), len(body.output)


def test_a_state_that_no_trip_changes_is_read_from_outside() -> None:
    result = settled(
        carried("go = Identity(on) q = Add(p, w) u = Identity(w)"), "Identity Loop Abs"
    )
    assert states(result) == (3, 2)


def test_how_often_a_loop_runs_need_not_be_known() -> None:
    text = """(float[3] x, float[3] v, int64 n, bool c) => (float[3] y) {
        h, z = Loop <body = g (int64 i, bool on, float[3] p, float[3] w)
            => (bool go, float[3] q, float[3] u)
            { s = ReduceSum<keepdims=0>(p) go = Less(s, limit) q = Add(p, w) u = Identity(w) }>
            (n, c, x, v)
        y = Sub(h, z)
    }"""
    model = graph(text, limit=np.float32(9))
    assert states(settled(model, "Loop Sub")) == (3, 2)
    for trips, goes in [(0, True), (5, False), (5, True)]:
        feeds = {"x": K, "v": K, "n": np.array(trips), "c": np.array(goes)}
        before, after = (
            onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0]
            for m in (model, apply_to(CLEAN_UP, model)[0])
        )
        assert np.array_equal(before, after)


def test_the_weights_among_the_states_are_weights_then() -> None:
    """As tf2onnx writes the cells of Keras."""
    text = """(float[3] x) => (float[3] y) {
        h, z = Loop <body = g (int64 i, bool on, float[3] p, float[2,3] w)
            => (bool go, float[3] q, float[2,3] u) {
                go = Identity(on) a, b = Split<axis=0>(w, halves) s = Squeeze(b, first)
                q = Add(p, s) u = Identity(w) }> (n, yes, x, weights)
        y = Abs(h)
    }"""
    constants: dict[str, Any] = {
        "halves": np.array([1, 1]),
        "first": np.array([0]),
        "weights": (2, 3),
    }
    result = check(CLEAN_UP, graph(text, n=np.array(20), yes=YES, **constants), "Loop Abs")
    assert states(result) == (3, 2)


def test_a_loop_of_nothing_but_such_states_goes() -> None:
    text = """(float[3] x, int64 n) => (float[3] y) {
        h = Loop <body = g (int64 i, bool on, float[3] p) => (bool go, float[3] q)
            { go = Identity(on) q = Identity(p) }> (n, , x)
        y = Abs(h)
    }"""
    settled(graph(text), "Abs")


def test_what_is_collected_keeps_its_place() -> None:
    text = """(float[3] x, float[3] v, int64 n) => (float[3] y, float[N,3] z) {
        h, f, z = Loop <body = g (int64 i, bool on, float[3] w, float[3] p)
            => (bool go, float[3] u, float[3] q, float[3] r)
            { go = Identity(on) u = Identity(w) q = Add(p, w) r = Neg(q) }> (n, , x, v)
        y = Sub(h, f)
    }"""
    result = settled(graph(text), "Loop Sub")
    assert states(result) == (3, 3)


def test_a_state_of_a_scan_is_read_from_outside() -> None:
    text = """(float[3] x, float[3] v, float[4,3] s) => (float[3] y, float[4,3] z) {
        h, f, z = Scan <num_scan_inputs=1, body = g (float[3] w, float[3] p, float[3] e)
            => (float[3] u, float[3] q, float[3] r)
            { u = Identity(w) q = Mul(p, w) r = Add(q, e) }> (x, v, s)
        y = Sub(h, f)
    }"""
    result = settled(graph(text), "Scan Sub")
    assert states(result, "Scan") == (2, 2)


@pytest.mark.parametrize(
    "body",
    [
        "go = Identity(on) q = Add(p, w) u = Neg(w)",
        "go = Identity(on) q = Identity(w) u = Identity(p)",
        "go = Identity(on) q = Add(p, w) u = Identity(q)",
    ],
    ids=["changed", "swapped", "another"],
)
def test_a_state_that_changes_stays(body: str) -> None:
    result = check(CLEAN_UP, carried(body))
    assert states(result)[0] == 4


def test_a_state_that_is_two_outputs_stays() -> None:
    body = "go = Identity(on) q = Add(p, w)"
    model = carried(body + " u = Identity(w)")
    loop_body = next(a.g for a in model.graph.node[0].attribute if a.name == "body")
    del loop_body.node[2]
    for value in (loop_body.input[3], loop_body.output[2]):
        value.name = "w"
    extra = loop_body.output.add()
    extra.CopyFrom(loop_body.output[2])
    model.graph.node[0].output.append("all")
    model.graph.output.append(onnx.helper.make_tensor_value_info("all", 1, ["N", 3]))
    assert "hands a state on as another output too" in said(model)


def test_a_changed_state_would_be_seen() -> None:
    check_replay(CLEAN_UP, carried("go = Identity(on) q = Add(p, w) u = Identity(w)"))


HANDED = """(float[3] x) => (float[3] y{0}) {{
    h, z = Loop <body = g (int64 i, bool on, float[3] p, float[3] w)
        => (bool go, float[3] q, float[3] u)
        {{ go = Identity(on) m = Mul(p, w) q = Tanh(m) u = Identity(w) }}> (n, yes, x, weights)
    y = {1}
}}"""


@pytest.mark.parametrize(
    ("more", "end", "inside"),
    [
        ("", "Neg(h)", True),
        ("", "Mul(h, weights)", False),
        ("", "Mul(h, z)", False),
        (", float[3] z", "Neg(h)", False),
    ],
    ids=["for it alone", "read around it", "read behind it", "an output"],
)
def test_a_weight_that_a_body_alone_reads_is_its_own(more: str, end: str, inside: bool) -> None:
    """A runtime prepares the weights that a scope holds itself."""
    model = graph(HANDED.format(more, end), n=np.array(20), yes=YES, weights=(3,))
    result, _ = apply_to(CLEAN_UP, model)
    check(CLEAN_UP, model)
    (loop,) = (node for node in result.graph.node if node.op_type == "Loop")
    body = next(a.g for a in loop.attribute if a.name == "body")
    held = {tensor.name for tensor in body.initializer}
    around = {tensor.name for tensor in result.graph.initializer if list(tensor.dims) == [3]}
    assert (len(held), len(around)) == ((1, 0) if inside else (0, 1))
    assert not apply_to(CLEAN_UP, result)[1].rewrites
    onnx.checker.check_model(result, full_check=True)


def test_before_ir_version_4_a_body_holds_nothing_itself() -> None:
    model = graph(HANDED.format("", "Neg(h)"), opset=8, n=np.array(20), yes=YES, weights=(3,))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(kind)
    result, _ = apply_to(CLEAN_UP, model)
    assert states(result) == (3, 2)
    (loop,) = (node for node in result.graph.node if node.op_type == "Loop")
    assert not next(a.g for a in loop.attribute if a.name == "body").initializer
