"""to-fp16: what computes in half precision, what stays, and that a wrong result is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import graphpass
from graphpass.errors import DifferenceError, UsageError
from graphpass.rewrite.interface import Interface
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, graph, session
from graphpass.validate import Validator
from tests.small_networks import network

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def converted(model: onnx.ModelProto, **options: str) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model in half precision, valid for ONNX and ONNX Runtime, and what is said."""
    result, applied = apply_to(make("to-fp16", options), model)
    onnx.checker.check_model(result, full_check=True)
    session(result)
    for kind in ("input", "output"):
        assert list(getattr(result.graph, kind)) == list(getattr(model.graph, kind))
    return result, applied.notes


def weights(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def ops(model: onnx.ModelProto) -> str:
    return " ".join(node.op_type for node in model.graph.node)


def far_off(before: onnx.ModelProto, after: onnx.ModelProto, x: Any, **more: Any) -> float:
    """Return the largest difference, relative to the largest magnitude."""
    feeds = {before.graph.input[0].name: x, **more}
    pairs = zip(session(before).run(None, feeds), session(after).run(None, feeds), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def drawn(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


CHAIN = "(float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, W, b) r = Relu(c) y = Abs(r) }"


def test_weights_and_what_is_between_are_half_behind_the_same_interface() -> None:
    before = graph(CHAIN, W=(4, 3, 3, 3), b=(4,))
    after, notes = converted(before)
    assert ops(after) == "Cast Conv Relu Abs Cast" and notes == ["3 of 3 nodes compute in float16"]
    assert weights(after) == {"W.fp16": HALF, "b.fp16": HALF}
    assert [list(node.output) for node in after.graph.node][1:3] == [["c"], ["r"]]
    assert 0 < far_off(before, after, drawn(2, 3, 8, 8)) < 2e-3


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet", "convnext", "densenet"])
def test_whole_networks_are_near(name: str) -> None:
    before = network(name)
    after, notes = converted(before)
    assert notes[0].endswith(" nodes compute in float16")
    assert far_off(before, after, drawn(1, 3, 32, 32)) < 1e-2


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ("a = Exp(x) y = Relu(a)", {}, "Exp of 'a' stays in float32: Exp loses too much in"),
        (
            "a = Add(x, c) p = Softmax(a) y = Relu(p)",
            {"c": np.float32(-3.4e38)},
            "Add of 'a' stays in float32: 'c' holds -3.4e+38, beyond 65504",
        ),
        (
            "a = Mul(x, c) y = Relu(a)",
            {"c": np.float32(65520)},
            "Mul of 'a' stays in float32: 'c' holds 6.55e+04, beyond 65504",
        ),
        ("i = Cast<to=6>(x) a = Cast<to=1>(i) y = Relu(a)", {}, "Cast says itself which type"),
    ],
)
def test_what_stays_is_named_with_the_reason(nodes: str, constants: Any, reason: str) -> None:
    before = graph(f"(float[2,3] x) => (float[2,3] y) {{ {nodes} }}", **constants)
    assert reason in " | ".join(converted(before)[1])


def test_operators_that_onnx_does_not_know_stay() -> None:
    before = graph("(float[2,3] x) => (float[2,3] y) { a = Relu(x) b = Gelu(a) y = Neg(b) }")
    before.graph.node[1].domain = "com.microsoft"
    before.opset_import.add(domain="com.microsoft", version=1)
    after, notes = converted(before)
    assert ops(after) == "Cast Relu Cast Gelu Cast Neg Cast"
    assert "Gelu of 'b' stays in float32: Gelu is no operator of ONNX" in notes


def test_masks_stay_in_float32_until_a_softmax_has_taken_them_in() -> None:
    before = graph(
        """(float[2,3] x, bool[2,3] b) => (float[2,3] y) {
            m = Where(b, z, c) s = Mul(x, z) a = Add(s, m) p = Softmax(a) y = Mul(p, x) }""",
        z=np.float32(1),
        c=np.float32(-3.4e38),
    )
    after, notes = converted(before)
    assert ops(after) == "Where Cast Mul Cast Add Softmax Cast Mul Cast"
    assert "Add of 'a' stays in float32: a mask of numbers beyond 65504 goes into it" in notes
    hidden = np.array([[True, False, True], [False, False, False]])
    assert far_off(before, after, drawn(2, 3), b=hidden) < 2e-3
    with Validator(before) as validator:
        verdict = validator.check(after, interface_may_change=Interface.PRECISION)
    assert verdict.ok


def test_bounds_are_no_masks() -> None:
    before = graph(
        "(float[2,3] x) => (float[2,3] y) { a = Max(x, c) y = Neg(a) }", c=np.float32(-3.4e38)
    )
    assert ops(converted(before)[0]) == "Max Cast Neg Cast"


def test_65519_still_has_a_place() -> None:
    before = graph("(float[2,3] x) => (float[2,3] y) { y = Mul(x, c) }", c=np.float32(65519))
    after, _ = converted(before)
    (tensor,) = after.graph.initializer
    assert onnx.numpy_helper.to_array(tensor) == np.float16(65504)


def test_weights_that_vanish_are_counted() -> None:
    values = np.array([1, 1e-8, -1e-9, 0], np.float32)
    before = graph("(float[2,4] x) => (float[2,4] y) { y = Mul(x, c) }", c=values)
    assert "2 weights are 0 now, being smaller than 3e-8" in converted(before)[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep": "first"}, "Relu Cast Abs Neg Cast"),
        ({"keep": "f* l*"}, "Relu Cast Abs Cast Neg"),
        ({"keep_operators": "Neg Relu"}, "Relu Cast Abs Cast Neg"),
    ],
)
def test_nodes_and_operators_may_be_kept(options: dict[str, str], expected: str) -> None:
    before = graph("(float[2,3] x) => (float[2,3] y) { a = Relu(x) b = Abs(a) y = Neg(b) }")
    for node, name in zip(before.graph.node, ("first", "middle", "last"), strict=True):
        node.name = name
    assert ops(converted(before, **options)[0]) == expected


def test_a_value_that_is_read_in_both_types_is_cast_once() -> None:
    before = graph(
        "(float[2,3] x) => (float[2,3] y) { a = Relu(x) b = Exp(a) c = Log(a) d = Mul(a, b)"
        " y = Add(d, c) }"
    )
    after, _ = converted(before)
    assert ops(after) == "Cast Relu Cast Exp Log Cast Mul Cast Add Cast"
    casts = [node.input[0] for node in after.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def test_a_weight_that_is_read_in_both_types_is_there_twice() -> None:
    before = graph("(float[2,3] x) => (float[2,3] y) { a = Pow(x, c) y = Mul(a, c) }", c=(3,))
    assert weights(converted(before)[0]) == {"c": FULL, "c.fp16": HALF}


def test_what_is_given_is_never_rounded_for_nodes_in_float32() -> None:
    text = "(float[2,3] x) => (float[2,3] y) { a = Mul(x, c) b = Pow(x, c) y = Add(a, b) }"
    after, _ = converted(graph(text, c=(3,)))
    (power,) = [node for node in after.graph.node if node.op_type == "Pow"]
    assert list(power.input) == ["x", "c"] and weights(after) == {"c": FULL, "c.fp16": HALF}


def test_a_literal_float_input_stays() -> None:
    before = graph(
        '(float[1,2,4,4] x) => (float[1,2,8,8] y) { y = Resize<mode="nearest">(x, , s) }',
        s=np.array([1, 1, 2, 2], np.float32),
    )
    after, _ = converted(before)
    assert weights(after) == {"s": FULL} and ops(after) == "Cast Resize Cast"


def test_constants_in_nodes_become_weights() -> None:
    before = graph(
        """(float[2,2] x) => (float[2,2] y) {
            c = Constant<value=float[2] {1.0, 2.0}>() y = Mul(x, c) }"""
    )
    after, _ = converted(before)
    assert ops(after) == "Cast Mul Cast" and weights(after) == {"c.fp16": HALF}


def test_what_a_body_reads_keeps_its_name_and_type() -> None:
    before = graph(
        """(float[2,3] x, bool b) => (float[2,3] y) {
            a = Relu(x)
            i = If(b) <then_branch = g () => (float[2,3] t) { t = Neg(a) },
                       else_branch = h () => (float[2,3] e) { e = Mul(a, w) }>
            y = Abs(i)
        }""",
        w=(3,),
    )
    after, notes = converted(before)
    assert any("it has a body" in note for note in notes)
    assert weights(after) == {"w": FULL}
    assert far_off(before, after, drawn(2, 3), b=np.array(False)) < 2e-3


def test_a_default_that_a_caller_may_override_is_cast_at_run_time() -> None:
    before = graph("(float[2,3] x, float[3] c) => (float[2,3] y) { y = Mul(x, c) }", c=(3,))
    assert before.ir_version >= 4
    after, _ = converted(before)
    assert weights(after) == {"c": FULL} and ops(after) == "Cast Cast Mul Cast"


def test_what_is_an_output_as_well_is_given_in_float32() -> None:
    before = graph("(float[2,3] x) => (float[2,3] a, float[2,3] y) { a = Relu(x) y = Neg(a) }")
    after, _ = converted(before)
    assert ops(after) == "Cast Relu Cast Neg Cast"
    assert after.graph.node[3].input[0] == "a.fp16"


def test_nothing_to_do_and_nothing_that_can_be_done() -> None:
    before = graph("(int64[3] x) => (int64[3] y) { y = Neg(x) }")
    result, applied = apply_to(make("to-fp16"), before)
    assert result == before and not applied.changed
    kept = graph("(float[3] x) => (float[3] y) { y = Exp(x) }")
    told = "no node can compute in float16: Exp of 'y' stays in float32: Exp loses too much"
    with pytest.raises(UsageError, match=told):
        graphpass.optimize(kept, "to-fp16")
    old = graph("(float[3] x) => (float[3] y) { y = Neg(x) }")
    old.opset_import[0].version = 6
    with pytest.raises(UsageError, match="to-fp16: opset 6 is older than 7"):
        graphpass.optimize(old, "to-fp16")


# --------------------------------------------------------------------------------- the judge


def test_the_judge_takes_the_noise_of_half_precision_and_tells_the_error() -> None:
    before = network("resnet")
    with graphpass.optimize(before, "fold-batchnorm,to-fp16") as result:
        check = next(entry.check for entry in result.report.passes if entry.name == "to-fp16")
        assert check is not None and check.status == "within tolerance"
        worst = check.worst
        assert worst is not None and 1e-5 < worst.error < worst.tolerance and worst.tolerance > 3e-3
        assert "to-fp16: " in result.report.warnings[0] and not result.report.interface
        with Validator(before) as validator:
            assert not validator.check(result.skeletons[1]).ok  # nobody declared it


def test_what_overflows_inside_is_refused_by_name() -> None:
    before = graph(
        "(float[2,3] x) => (float[2,3] y) { a = Mul(x, c) b = Mul(a, c) y = Mul(b, d) }",
        c=np.float32(1000),
        d=np.float32(1e-6),
    )
    told = r"Mul of 'b' gives .*e\+0\d, beyond 65504, the largest number of float16"
    with pytest.raises(DifferenceError, match=told):
        graphpass.optimize(before, "to-fp16")
    with graphpass.optimize(before, "to-fp16{keep=b y}") as result:
        assert ops(result.skeletons[1]) == "Cast Mul Cast Mul Mul"


@pytest.mark.parametrize("factor", [1.05, 0.0])
def test_sabotage_in_half_precision_is_found(factor: float) -> None:
    before = network("vgg")
    after, _ = converted(before)
    tensor = next(t for t in after.graph.initializer if len(t.dims) == 4)
    spoilt = (onnx.numpy_helper.to_array(tensor) * factor).astype(np.float16)
    tensor.CopyFrom(onnx.numpy_helper.from_array(spoilt, tensor.name))
    with Validator(before) as validator:
        verdict = validator.check(after, interface_may_change=Interface.PRECISION)
    assert verdict.status == "differs"
