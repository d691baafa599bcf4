"""What is no model at all is refused where it is read; nodes that are out of order are sorted."""

import re

import onnx
import pytest

import graphpass
from graphpass.errors import ModelError
from graphpass.ir.model import Model

from .validate.models import parse

IF = """g (bool c, float[2] x) => (float[2] y) {{
    y = If (c) <
        then_branch = t () => (float[2] p) {{ {then} }},
        else_branch = e () => (float[2] q) {{ q = Neg (x) }}>
    {after}
}}"""
FUNCTION = """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
g (float[2] x) => (float[2] y) {{ y = own.f (x) }}
<opset_import: ["" : 17], domain: "own">
f (a) => (b) {{ {body} }}"""


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("g (float[2] x) => () { y = Relu (x) }", "no outputs"),
        ("g (float[2] x) => (float[2] y) { z = Relu (x) }", "the graph gives out 'y', which noth"),
        ("g (float[2] x) => (float[2] y) { y = Add (x, z) }", "'y' reads 'z', which nothing makes"),
        ("g (float[2] x) => (float[2] y) { y = Relu (y) }", "reads what it makes itself"),
        (
            "g (float[2] x) => (float[2] y) { a = Add (x, b) b = Relu (a) y = Neg (b) }",
            "cycle: the Relu that makes 'b', the Add that makes 'a' wait for each other",
        ),
        (  # even where nothing reads it
            "g (float[2] x) => (float[2] y) { y = Relu (x) a = Neg (b) b = Neg (a) }",
            "has a cycle",
        ),
        ("g (float[2] x) => (float[2] y) { y = Reluu (x) }", "no operator of ONNX"),
        ("g (float[2] x) => (float[2] y) { y = Gelu (x) }", "no operator of ONNX before opset 20"),
        (IF.format(then="p = Abs (z)", after=""), "'p' reads 'z', which nothing makes"),
        (IF.format(then="p = Abs (w)", after="w = Relu (y)"), "has a cycle"),
        (FUNCTION.format(body="b = Add (a, x)"), "'b' reads 'x', which nothing makes"),
        (FUNCTION.format(body="b = Sinn (a)"), "the Sinn that makes 'b' is no operator of ONNX"),
    ],
)
def test_what_is_no_model_is_refused(text: str, why: str) -> None:
    model = onnx.parser.parse_model(text) if text.startswith("<") else parse(text)
    with pytest.raises(ModelError, match=re.escape(why)) as caught:
        graphpass.optimize(model)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("g (float[2] x) => (float[2] y) { y = other.Reluu (x) }", "Reluu"),
        ("g (float[2,2] x) => (float[2,2] y) { y = ParametricSoftplus (x) }", "ParametricSoftplus"),
    ],
)
def test_operators_of_others_are_none_of_our_business(text: str, operator: str) -> None:
    assert operators(Model.load(parse(text, '"other" : 1')).proto) == [operator]


def test_the_operators_of_a_function_are_those_of_its_own_opset() -> None:
    text = FUNCTION.format(body="b = Gelu (a)").replace('["" : 17], domain', '["" : 20], domain')
    Model.load(onnx.parser.parse_model(text))


def test_nodes_are_sorted_and_otherwise_stay_where_they_are() -> None:
    text = """g (float[2] x) => (float[2] y, float[2] z) {
        z = Neg (x) y = Mul (b, c) c = Abs (a) b = Relu (a) a = Exp (x) }"""
    model = Model.load(parse(text)).proto
    assert operators(model) == ["Neg", "Exp", "Relu", "Abs", "Mul"]
    onnx.checker.check_model(model)


def test_what_a_body_reads_comes_before_its_node() -> None:
    text = IF.format(then="p = Abs (w)", after="w = Relu (x)")
    assert operators(Model.load(parse(text)).proto) == ["Relu", "If"]


def test_nodes_of_bodies_and_functions_are_sorted() -> None:
    body = Model.load(parse(IF.format(then="p = Abs (h) h = Exp (x)", after=""))).proto
    branch = body.graph.node[0].attribute[0].g
    assert [node.op_type for node in branch.node] == ["Exp", "Abs"]
    function = Model.load(onnx.parser.parse_model(FUNCTION.format(body="b = Abs (h) h = Exp (a)")))
    assert [node.op_type for node in function.proto.functions[0].node] == ["Exp", "Abs"]


def test_a_model_that_was_out_of_order_is_rewritten_like_any_other() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) {
        y = Identity (c) c = Identity (b) b = Relu (a) a = Identity (x) }"""
    assert operators(graphpass.optimize(parse(text), "clean-up").model) == ["Relu"]
