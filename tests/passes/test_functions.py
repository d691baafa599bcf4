"""Functions of a model, whose bodies take the place of calls where that lets more fit."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import onnx
import onnx.parser
import pytest

import graphpass
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, operators

CLEAN_UP = make("clean-up")
functions = import_module("graphpass.passes.clean_up.functions")

HEAD = '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>'
SCALE = """<domain: "own", opset_import: ["" : 18]> scale (x, w) => (y)
    { h = Mul(x, w) y = Relu(h) }"""
SQUARE = """<domain: "own", opset_import: ["" : 18]> square (x) => (y)
    { h = Neg(x) y = Mul(h, x) }"""
LEAK = """<domain: "own", opset_import: ["" : 18]> leak <alpha, top> (x) => (y)
    { h = LeakyRelu<alpha: float = @alpha>(x) y = Add(h, x) }"""


def model(text: str, *functions: str, **constants: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f"{HEAD} main {text}" + "\n".join(functions))
    for name, value in constants.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return made


def settled(proto: onnx.ModelProto, after: str, functions: int = 0) -> onnx.ModelProto:
    """Check what becomes of a model, and that a second run finds nothing more."""
    result = check(CLEAN_UP, proto, after, exact=True)
    assert len(result.functions) == functions
    assert not apply_to(CLEAN_UP, result)[1].rewrites
    return result


def said(proto: onnx.ModelProto) -> str:
    """Return all refusals."""
    return "; ".join(refusal.reason for refusal in apply_to(CLEAN_UP, proto)[1].refusals)


ONES = np.ones(3, np.float32)


def test_a_constant_that_goes_in_lets_more_fit() -> None:
    text = "(float[N,3] x) => (float[N,3] y) { a = own.scale(x, w) y = own.scale(a, w) }"
    settled(model(text, SCALE, w=ONES), "Relu")


def test_what_is_called_once_is_inlined() -> None:
    settled(model("(float[3] x) => (float[3] y) { y = own.square(x) }", SQUARE), "Neg Mul")


def test_what_computes_on_tensors_at_several_places_stays() -> None:
    text = "(float[3] x) => (float[3] y) { a = own.square(x) y = own.square(a) }"
    result = settled(model(text, SQUARE), "own::square own::square", functions=1)
    assert [node.op_type for node in result.functions[0].node] == ["Neg", "Mul"]


def test_one_node_is_inlined_wherever_it_is_called() -> None:
    one = '<domain: "own", opset_import: ["" : 18]> flip (x) => (y) { y = Neg(x) }'
    text = "(float[3] x) => (float[3] y) { a = own.flip(x) b = Relu(a) y = own.flip(b) }"
    settled(model(text, one), "Neg Relu Neg")


def test_attributes_take_the_place_of_parameters() -> None:
    text = "(float[3] x) => (float[3] y) { a = own.leak<alpha=0.25>(x) y = own.leak<alpha=0.5>(a) }"
    result = settled(model(text, LEAK), "LeakyRelu Add LeakyRelu Add")
    alphas = [a.f for node in result.graph.node for a in node.attribute]
    assert alphas == [0.25, 0.5]


def test_a_parameter_that_is_not_given_is_left_to_its_default() -> None:
    text = "(float[3] x) => (float[3] y) { y = own.leak<top=1>(x) }"
    result = settled(model(text, LEAK), "LeakyRelu Add")
    assert not result.graph.node[0].attribute


def test_functions_that_call_functions_go_together() -> None:
    outer = """<domain: "own", opset_import: ["" : 18, "own" : 1]> twice (x, w) => (y)
        { a = own.scale(x, w) y = own.scale(a, w) }"""
    text = "(float[N,3] x) => (float[N,3] y) { y = own.twice(x, w) }"
    settled(model(text, outer, SCALE, w=ONES), "Relu")


def test_in_bodies_and_with_bodies() -> None:
    choose = """<domain: "own", opset_import: ["" : 18]> choose (c, x) => (y) {
        y = If (c) <then_branch = g1 () => (t) { t = Neg(x) },
                    else_branch = g2 () => (u) { v = Relu(x) u = Neg(v) }> }"""
    text = """(float[3] x, bool c) => (float[3] y) {
        y = If (c) <then_branch = g3 () => (float[3] p) { p = own.choose(c, x) },
                    else_branch = g4 () => (float[3] q) { q = Identity(x) }> }"""
    result = settled(model(text, choose), "If")
    (then,) = (a.g for a in result.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in then.node] == ["If"]


def test_several_outputs_of_which_not_all_are_read() -> None:
    both = """<domain: "own", opset_import: ["" : 18]> both (x) => (y, z)
        { y = Neg(x) z = Abs(y) }"""
    text = "(float[3] x) => (float[3] z) { , z = own.both(x) }"
    settled(model(text.replace("{ ,", "{ y,"), both), "Neg Abs")


def test_an_input_that_is_not_given() -> None:
    clip = """<domain: "own", opset_import: ["" : 18]> bound (x, low, high) => (y)
        { y = Clip(x, low, high) }"""
    text = "(float[3] x, float h) => (float[3] y) { y = own.bound(x, , h) }"
    result = settled(model(text, clip), "Clip")
    assert list(result.graph.node[0].input) == ["x", "", "h"]


def test_what_is_noted_at_nodes_stays() -> None:
    proto = model("(float[3] x) => (float[3] y) { y = own.square(x) }", SQUARE)
    proto.functions[0].node[0].doc_string = "line 7"
    proto.functions[0].node[1].metadata_props.add(key="scope", value="m.square")
    result = settled(proto, "Neg Mul")
    assert result.graph.node[0].doc_string == "line 7"
    assert result.graph.node[1].metadata_props[0].value == "m.square"


def test_a_function_that_nothing_called_stays() -> None:
    proto = model("(float[3] x) => (float[3] y) { y = own.square(x) }", SQUARE, LEAK)
    assert settled(proto, "Neg Mul", functions=1).functions[0].name == "leak"


@pytest.mark.parametrize(
    ("text", "function", "reason"),
    [
        ("y = own.square(x)", SQUARE.replace('["" : 18]', '["" : 17]'), "has opset 17"),
        (
            "y = own.deep<alpha=0.5>(c, x)",
            """<domain: "own", opset_import: ["" : 18]> deep <alpha> (c, x) => (y) {
            y = If (c) <then_branch = g1 () => (t) { t = Elu<alpha: float = @alpha>(x) },
                        else_branch = g2 () => (u) { u = Neg(x) }> }""",
            "has attributes of the function",
        ),
    ],
)
def test_refusals(text: str, function: str, reason: str) -> None:
    proto = model(f"(float[3] x, bool c) => (float[3] y) {{ {text} }}", function)
    assert reason in said(proto)
    assert operators(apply_to(CLEAN_UP, proto)[0]).startswith("own::")


def test_an_operator_that_a_runtime_may_have_stays() -> None:
    gelu = """<domain: "com.microsoft", opset_import: ["" : 18]> Gelu (x) => (y)
        { h = Erf(x) y = Mul(h, x) }"""
    text = "(float[3] x) => (float[3] y) { y = com.microsoft.Gelu(x) }"
    proto = model(text, gelu)
    proto.opset_import.add(domain="com.microsoft", version=1)
    settled(proto, "com.microsoft::Gelu", functions=1)


def test_a_standard_operator_that_a_function_defines_anew_stays() -> None:
    relu = '<domain: "", opset_import: ["" : 18]> Relu (x) => (y) { y = Neg(x) }'
    proto = model("(float[3] x) => (float[3] y) { y = Relu(x) }", relu)
    assert operators(apply_to(CLEAN_UP, proto)[0]) == "Relu"


def test_a_wrong_body_is_seen_by_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window has what ONNX's own inliner makes of a call."""
    other = model("(float[3] x) => (float[3] y) { y = own.square(x) }", SQUARE)

    def damaged(*given: object) -> list[object]:
        ((output, made),) = values(*given)
        made.inputs = (made.inputs[1], made.inputs[1])
        return [(output, made)]

    values = functions._values
    assert isinstance(make("clean-up").surveys[0], functions.InlineFunctions)
    monkeypatch.setattr(functions, "_values", damaged)
    report = graphpass.optimize(other, "clean-up", latency=False).report
    (caught,) = report.passes[0].quarantined
    assert caught.rewrite.rule == "InlineFunctions"


def test_calls_in_a_chain_take_linear_time() -> None:
    lines = " ".join(f"x{i + 1} = own.scale(x{i}, w)" for i in range(1000))
    proto = model(f"(float[N,3] x0) => (float[N,3] x1000) {{ {lines} }}", SCALE, w=2 * ONES)
    result, _ = apply_to(CLEAN_UP, proto)
    assert len(result.graph.node) == 2000 and not result.functions
