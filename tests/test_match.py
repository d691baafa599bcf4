"""What a pattern fits, what it does not, and what is said when it nearly does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass import Op, Pass, Rule, any_, const, either, optional, require
from graphpass.errors import RuleError
from graphpass.testing import apply_to, check, check_refused, check_untouched, graph


class FoldScale(Rule):
    """Mul(Conv(x, W, b), s) = Conv(x, s·W, s·b) for a scalar s."""

    pattern = Op(
        "Mul",
        Op("Conv", any_("x"), const("weight"), optional(const("bias")), bind="conv"),
        const("scale"),
        commutative=True,
    )

    def rewrite(self, x: Any, weight: Any, bias: Any, scale: Any, conv: Any) -> Any:
        require(scale.size == 1, f"the scale of Conv '{conv.name}' is no scalar")
        factor = scale.array().reshape(())
        return Op(
            "Conv",
            x,
            weight.array() * factor,
            None if bias is None else bias.array() * factor,
            **conv.attrs,
        )


@dataclass(frozen=True)
class Fold(Pass):
    """Fold scalar scales."""

    name = "fold-scale"
    rules = (FoldScale(),)


BODY = "(float[N,2,5,5] x) => (float[N,3,3,3] y)"
HALF = np.array(0.5, np.float32)


@pytest.mark.parametrize("operands", ["(c, s)", "(s, c)"])
def test_commutative_operands_match_in_either_order(operands: str) -> None:
    model = graph(f"{BODY} {{ c = Conv(x, W) y = Mul{operands} }}", W=(3, 2, 3, 3), s=HALF)
    check(Fold(), model, "Conv")


def test_optional_input_given() -> None:
    model = graph(f"{BODY} {{ c = Conv(x, W, b) y = Mul(c, s) }}", W=(3, 2, 3, 3), b=(3,), s=HALF)
    check(Fold(), model, "Conv")


@pytest.mark.parametrize(
    "constant",
    [
        "s = Constant<value_float=0.5>()",
        "s = Constant<value=float {0.5}>()",
        "r = Constant<value_floats=[0.5]>() s = Identity(r)",
        "r = Constant<value=double {0.5}>() s = Cast<to=1>(r)",
        "r = Constant<value=float[1] {0.5}>() s = Squeeze(r)",
    ],
)
def test_a_constant_is_a_constant_however_it_is_written(constant: str) -> None:
    model = graph(f"{BODY} {{ {constant} c = Conv(x, W) y = Mul(c, s) }}", W=(3, 2, 3, 3))
    result = check(Fold(), model)
    assert "Mul" not in [node.op_type for node in result.graph.node]


def test_transposed_weight_is_a_constant() -> None:
    model = graph(
        f"{BODY} {{ w = Transpose<perm=[3,2,0,1]>(W) c = Conv(x, w) y = Mul(c, s) }}",
        W=(3, 3, 2, 3),
        s=HALF,
    )
    check(Fold(), model, "Conv")


def test_refused_where_the_node_has_several_readers() -> None:
    model = graph(
        f"{BODY} {{ c = Conv(x, W) d = Mul(c, s) y = Add(c, d) }}", W=(3, 2, 3, 3), s=HALF
    )
    check_refused(Fold(), model, "Conv of 'c' feeds 2 nodes")


def test_refused_where_a_body_captures_the_tensor() -> None:
    model = graph(
        "(float[N,2,5,5] x, bool p) => (float[N,3,3,3] y, float[N,3,3,3] z) {"
        " c = Conv(x, W) y = Mul(c, s)"
        " z = If(p) <then_branch = t () => (float[N,3,3,3] u) { u = Relu(c) },"
        " else_branch = e () => (float[N,3,3,3] v) { v = Neg(c) }> }",
        W=(3, 2, 3, 3),
        s=HALF,
    )
    check_refused(Fold(), model, "feeds 3 nodes")


def test_refused_where_a_body_returns_the_tensor_itself() -> None:
    model = graph(
        "(float[N,2,5,5] x, bool p) => (float[N,3,3,3] y, float[N,3,3,3] z) {"
        " c = Conv(x, W) y = Mul(c, s)"
        " z = If(p) <then_branch = t () => (float[N,3,3,3] c) { k = Relu(x) },"
        " else_branch = e () => (float[N,3,3,3] v) { v = Conv(x, W) }> }",
        W=(3, 2, 3, 3),
        s=HALF,
    )
    check_refused(Fold(), model, "Conv of 'c' is an output of the graph")


def test_refused_where_the_node_is_an_output() -> None:
    model = graph(
        "(float[N,2,5,5] x) => (float[N,3,3,3] y, float[N,3,3,3] c)"
        " { c = Conv(x, W) y = Mul(c, s) }",
        W=(3, 2, 3, 3),
        s=HALF,
    )
    check_refused(Fold(), model, "Conv of 'c' is an output of the graph")


def test_refused_where_the_constant_may_be_overridden() -> None:
    model = graph(
        "(float[N,2,5,5] x, float s) => (float[N,3,3,3] y) { c = Conv(x, W) y = Mul(c, s) }",
        W=(3, 2, 3, 3),
        s=HALF,
    )
    check_refused(Fold(), model, "'s' may be overridden at run time (it is also a graph input)")


def test_before_ir_version_4_an_initializer_is_constant_though_it_is_an_input() -> None:
    model = graph(
        "(float[N,2,5,5] x, float s, float[3,2,3,3] W) => (float[N,3,3,3] y)"
        " { c = Conv(x, W) y = Mul(c, s) }",
        ir_version=3,
        opset=8,
        W=(3, 2, 3, 3),
        s=HALF,
    )
    result, applied = apply_to(Fold(), model)
    assert len(applied.rewrites) == 1
    onnx.checker.check_model(result)
    initializers = {tensor.name for tensor in result.graph.initializer}
    assert initializers <= {value.name for value in result.graph.input}
    assert {value.name for value in result.graph.input} - initializers == {"x"}


def test_refused_where_the_constant_is_computed() -> None:
    model = graph(
        "(float[N,2,5,5] x, float q) => (float[N,3,3,3] y)"
        " { s = Neg(q) c = Conv(x, W) y = Mul(c, s) }",
        W=(3, 2, 3, 3),
    )
    check_refused(Fold(), model, "the scale of Mul of 'y', 's', is not a constant")


def test_the_reason_of_require_reaches_the_reader() -> None:
    model = graph(f"{BODY} {{ c = Conv(x, W) y = Mul(c, s) }}", W=(3, 2, 3, 3), s=(3, 1, 1))
    check_refused(Fold(), model, "is no scalar")


def test_custom_domains_are_not_taken_for_standard_operators() -> None:
    model = graph(
        f"{BODY} {{ c = Conv(x, W) y = com.me.Mul(c, s) }}",
        domains={"com.me": 1},
        W=(3, 2, 3, 3),
        s=HALF,
    )
    check_untouched_without_running(model)


def test_a_function_may_define_a_standard_operator_anew() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.me" : 1]>
    agraph (float[N,2,5,5] x) => (float[N,3,3,3] y) { c = Conv(x, W) y = Mul(c, s) }
    <domain: "", opset_import: ["" : 17]> Mul (a, b) => (r) { r = Sub(a, b) }"""
    check_untouched_without_running(graph(text, W=(3, 2, 3, 3), s=HALF))


def check_untouched_without_running(model: onnx.ModelProto) -> None:
    check_untouched(Fold(), model)


def test_same_name_twice_means_the_same_tensor() -> None:
    class Double(Rule):
        """Add(x, x) = Mul(x, 2)."""

        pattern = Op("Add", any_("x"), any_("x"))

        def rewrite(self, x: Any) -> Any:
            return Op("Mul", x, np.array(2, np.float32))

    @dataclass(frozen=True)
    class Doubling(Pass):
        """Double."""

        name = "double"
        rules = (Double(),)

    same = graph("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    check(Doubling(), same, "Mul", exact=True)
    other = graph("(float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add(x, z) }")
    check_untouched(Doubling(), other)


def test_either_takes_the_first_alternative_that_fits() -> None:
    class Negative(Rule):
        """Neg(Relu(x)) = Min(Neg(x), 0) and Neg(Neg(x)) = x."""

        pattern = Op("Neg", either(Op("Relu", any_("x"), bind="relu"), Op("Neg", any_("x"))))

        def rewrite(self, x: Any, relu: Any) -> Any:
            return x if relu is None else Op("Min", Op("Neg", x), np.array(0, np.float32))

    @dataclass(frozen=True)
    class Negatives(Pass):
        """Negate."""

        name = "negate"
        rules = (Negative(),)

    twice = graph("(float[N,3] x) => (float[N,3] y) { a = Neg(x) b = Neg(a) y = Abs(b) }")
    check(Negatives(), twice, "Abs", exact=True)
    relu = graph("(float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Neg(a) y = Abs(b) }")
    check(Negatives(), relu, "Neg Min Abs", exact=True)


def test_a_rule_that_fails_is_named() -> None:
    class Broken(Rule):
        """Relu(x) = 1/0."""

        pattern = Op("Relu", any_("x"))

        def rewrite(self, x: Any) -> Any:
            return 1 / 0

    @dataclass(frozen=True)
    class Breaks(Pass):
        """Break."""

        name = "break"
        rules = (Broken(),)

    model = graph("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(RuleError, match="rule Broken failed at Relu of 'y': ZeroDivisionError"):
        apply_to(Breaks(), model)


def test_a_rule_that_never_ends_is_named() -> None:
    class Swap(Rule):
        """Add(a, b) = Add(b, a)."""

        pattern = Op("Add", any_("a"), any_("b"))

        def rewrite(self, a: Any, b: Any) -> Any:
            return Op("Add", b, a)

    @dataclass(frozen=True)
    class Swaps(Pass):
        """Swap."""

        name = "swap"
        rules = (Swap(),)

    model = graph("(float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add(x, z) }")
    with pytest.raises(RuleError, match="rule Swap does not come to an end"):
        apply_to(Swaps(), model)
