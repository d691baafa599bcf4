"""What the words of a pattern mean: attributes, names, every input, siblings, several outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass import Op, Pass, Rule, any_, attribute, const, each, label, require, siblings
from graphpass.testing import (
    apply_to,
    check,
    check_operators,
    check_refused,
    check_replay,
    check_untouched,
    check_valid,
    graph,
)


@dataclass(frozen=True)
class Applying(Pass):
    """Apply the rules given."""

    name = "applying"
    given: tuple[Rule, ...] = field(default=())

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """Those that were given."""
        return self.given


def applying(*rules: Rule) -> Applying:
    return Applying(tuple(rules))


# --------------------------------------------------------------------------------- attributes


class SwapGoes(Rule):
    """Transpose(x, [0, 1]) = x."""

    pattern = Op("Transpose", any_("x"), perm=[0, 1])

    def rewrite(self, x: Any) -> Any:
        return x


class FlattensAtOne(Rule):
    """Abs(Flatten(x, 1)) = Flatten(Abs(x), 1)."""

    pattern = Op("Abs", Op("Flatten", any_("x"), axis=1))

    def rewrite(self, x: Any) -> Any:
        return Op("Flatten", Op("Abs", x), axis=1)


class DefaultLeaky(Rule):
    """LeakyRelu(x, 0.01) = PRelu(x, 0.01)."""

    pattern = Op("LeakyRelu", any_("x"), alpha=0.01)

    def rewrite(self, x: Any) -> Any:
        return Op("PRelu", x, np.array([0.01], np.float32))


@pytest.mark.parametrize("perm, goes", [("[0,1]", True), ("[1,0]", False)])
def test_an_attribute_of_a_pattern_is_matched(perm: str, goes: bool) -> None:
    model = graph(
        f"(float[2,2] x) => (float[2,2] y) {{ t = Transpose<perm={perm}>(x) y = Abs(t) }}"
    )
    check(applying(SwapGoes()), model, "Abs" if goes else f"Transpose<perm={perm}> Abs", exact=True)


@pytest.mark.parametrize("written, goes", [("", True), ("<axis=1>", True), ("<axis=2>", False)])
def test_the_default_of_the_schema_counts(written: str, goes: bool) -> None:
    model = graph(f"(float[2,1,3] x) => (float y) {{ f = Flatten{written}(x) y = Abs(f) }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result, _ = apply_to(applying(FlattensAtOne()), model)
    check_operators(result, "Abs Flatten" if goes else "Flatten Abs")


@pytest.mark.parametrize("written", ["", "<alpha=0.01>"])
def test_numbers_are_compared_as_onnx_holds_them(written: str) -> None:
    model = graph(f"(float[3] x) => (float[3] y) {{ y = LeakyRelu{written}(x) }}")
    check(applying(DefaultLeaky()), model, "PRelu", exact=True)
    other = graph("(float[3] x) => (float[3] y) { y = LeakyRelu<alpha=0.02>(x) }")
    check_untouched(applying(DefaultLeaky()), other)


def test_an_attribute_that_is_a_parameter_of_its_function_is_a_refusal() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    agraph (float[2,2] x) => (float[2,2] y) { y = own.Turn<order=[1,0]>(x) }
    <domain: "own", opset_import: ["" : 17]>
    Turn <order> (a) => (b) { b = Transpose<perm: ints = @order>(a) }"""
    check_refused(applying(SwapGoes()), graph(text), "is a parameter of its function")


def test_attribute_takes_a_default_of_ones_own() -> None:
    seen: list[Any] = []

    class Looks(Rule):
        """Conv(x, W) = nothing else."""

        pattern = Op("Conv", any_("x"), const("weight"), bind="conv")

        def rewrite(self, conv: Any, x: Any, weight: Any) -> Any:
            names = ("pads", "group", "auto_pad", "strides")
            seen.append([attribute(conv, name, "mine") for name in names])

    model = graph(
        "(float[1,1,3,3] x) => (float[1,1,3,3] y) { y = Conv<pads=[1,1,1,1]>(x, W) }",
        W=(1, 1, 3, 3),
    )
    check_untouched(applying(Looks()), model)
    assert seen == [[[1, 1, 1, 1], 1, "NOTSET", "mine"]]


# ------------------------------------------------------------------------- the same name twice


class Square(Rule):
    """Mul(Add(x, c), Add(y, c)) … = Abs(x) where both c are the same: only to see what matches."""

    pattern = Op("Mul", Op("Add", any_("x"), const("c")), Op("Add", any_("y"), const("c")))

    def rewrite(self, x: Any, y: Any, c: Any) -> Any:
        return Op("Mul", Op("Sub", x, -c.array()), Op("Sub", y, -c.array()))


class DoubleOf(Rule):
    """Add(x, x) = Mul(x, 2)."""

    pattern = Op("Add", any_("x"), any_("x"))

    def rewrite(self, x: Any) -> Any:
        return Op("Mul", x, np.array([2], np.float32))


ONE, ALSO_ONE, ZERO = (np.array([v], np.float32) for v in (1, 1, 0))
MINUS_ZERO = -ZERO


@pytest.mark.parametrize(
    "c, d, fits",
    [
        (ONE, ALSO_ONE, True),
        (ONE, ZERO, False),
        (ZERO, MINUS_ZERO, False),
        (ONE, ONE.reshape(1, 1), False),
        (np.array([np.nan], np.float32), np.array([np.nan], np.float32), True),
    ],
)
def test_the_same_constant_twice_is_equal_to_the_bit(c: Any, d: Any, fits: bool) -> None:
    model = graph(
        "(float[1,1] x, float[1,1] z) => (float[1,1] y)"
        " { a = Add(x, c) b = Add(z, d) y = Mul(a, b) }",
        c=c,
        d=d,
    )
    check(applying(Square()), model, "Sub Sub Mul" if fits else "Add Add Mul")


def test_the_same_tensor_twice_may_be_an_equal_constant() -> None:
    text = "(float[1] x) => (float[1] y) {{ a = Add({}) y = Mul(a, x) }}"
    check(applying(DoubleOf()), graph(text.format("c, d"), c=ONE, d=ALSO_ONE), "Mul Mul")
    check_untouched(applying(DoubleOf()), graph(text.format("c, d"), c=ONE, d=ZERO))
    check_untouched(applying(DoubleOf()), graph(text.format("c, x"), c=ONE))


# ---------------------------------------------------------------------------------- each input


class ConcatOfRelus(Rule):
    """Concat(Relu(a), Relu(b), …) = Relu(Concat(a, b, …))."""

    pattern = Op("Concat", each(Op("Relu", any_("xs"), bind="relus")), bind="concat")

    def rewrite(self, concat: Any, relus: list[Any], xs: list[Any]) -> Any:
        require(len(relus) == len(xs) > 1, f"{label(concat)} joins nothing")
        return Op("Relu", Op("Concat", *xs, **concat.attrs))


class FirstAndRest(Rule):
    """Sum(x, …) = Add(x, …) of two."""

    pattern = Op("Sum", any_("x"), each("rest"))

    def rewrite(self, x: Any, rest: list[Any]) -> Any:
        return Op("Add", x, rest[0]) if len(rest) == 1 else None


@pytest.mark.parametrize("count", [2, 3, 40])
def test_each_binds_every_input(count: int) -> None:
    names = [f"x{i}" for i in range(count)]
    inputs = ", ".join(f"float[N,2] {name}" for name in names)
    relus = " ".join(f"r{name} = Relu({name})" for name in names)
    joined = ", ".join(f"r{name}" for name in names)
    text = f"({inputs}) => (float[N,{2 * count}] y) {{ {relus} y = Concat<axis=1>({joined}) }}"
    check(applying(ConcatOfRelus()), graph(text), "Concat Relu", exact=True)


def test_each_asks_the_same_of_every_input() -> None:
    text = "(float[2] a, float[2] b) => (float[4] y){} {{ r = Relu(a) {} }}"
    other = text.format("", "s = Abs(b) y = Concat<axis=0>(r, s)")
    check_untouched(applying(ConcatOfRelus()), graph(other))
    one = text.format("", "y = Concat<axis=0>(r)").replace("float[4]", "float[2]")
    check_refused(applying(ConcatOfRelus()), graph(one), "joins nothing")
    twice = text.format("", "y = Concat<axis=0>(r, r)")
    check_refused(applying(ConcatOfRelus()), graph(twice), "Relu of 'r' feeds 2 nodes")


def test_each_takes_what_comes_after_the_first() -> None:
    text = "(float[2] a, float[2] b) => (float[2] y) {{ y = Sum({}) }}"
    check(applying(FirstAndRest()), graph(text.format("a, b")), "Add", exact=True)
    for inputs in ("a", "a, b, a"):
        check_untouched(applying(FirstAndRest()), graph(text.format(inputs)))


# ------------------------------------------------------------------------------------ siblings


class ParallelConvs(Rule):
    """Conv(x, V), Conv(x, W), … = Split(Conv(x, [V; W; …])) of convolutions that look alike."""

    pattern = siblings(Op("Conv", any_("x"), const("weight"), bind="conv"), of="x")

    def rewrite(self, x: Any, conv: list[Any], weight: list[Any]) -> Any:
        alike = [w.shape[1:] == weight[0].shape[1:] for w in weight]
        chosen = [w for w, fits in zip(weight, alike, strict=True) if fits]
        if len(chosen) < 2:
            return None
        sizes = np.array([w.shape[0] for w in chosen], np.int64)
        joined = Op("Conv", x, np.concatenate([w.array() for w in chosen]), **conv[0].attrs)
        parts = iter(Op("Split", joined, sizes, axis=1, outputs=len(chosen)))
        return [next(parts) if fits else None for fits in alike]


class EqualNodes(Rule):
    """Two nodes of the same operator, inputs and attributes compute the same: one will do."""

    pattern = siblings(Op(..., any_("x"), ..., bind="node"), of="x")

    def rewrite(self, x: Any, node: list[Any]) -> Any:
        seen: list[Any] = []
        terms = []
        for candidate in node:
            same = next((other for other in seen if _alike(other, candidate)), None)
            if same is None:
                seen.append(candidate)
            terms.append(None if same is None else same.outputs[0])
        return terms


def _alike(one: Any, other: Any) -> bool:
    return (
        one.op == other.op
        and one.attrs == other.attrs
        and [id(t) for t in one.inputs] == [id(t) for t in other.inputs]
    )


class QueryKeyValue(Rule):
    """Add(MatMul(x, V), a), Add(MatMul(x, W), b), … = Split(Add(MatMul(x, [V W …]), [a b …]))."""

    pattern = siblings(
        Op("Add", Op("MatMul", any_("x"), const("weight", quiet=True)), const("bias")), of="x"
    )

    def rewrite(self, x: Any, weight: list[Any], bias: list[Any]) -> Any:
        sizes = np.array([w.shape[1] for w in weight], np.int64)
        product = Op("MatMul", x, np.concatenate([w.array() for w in weight], 1))
        total = Op("Add", product, np.concatenate([b.array() for b in bias]))
        return Op("Split", total, sizes, axis=-1, outputs=len(sizes))


CONVS = """(float[N,2,5,5] x) => (float[N,3,3,3] y, float[N,4,3,3] z, float[N,2,5,5] o) {
    a = Conv(x, U) y = Relu(a) z = Conv(x, V) o = Conv(x, W) }"""
WEIGHTS: dict[str, Any] = {"U": (3, 2, 3, 3), "V": (4, 2, 3, 3), "W": (2, 2, 1, 1)}


def test_siblings_become_one_node_and_a_split() -> None:
    model = graph(CONVS, **WEIGHTS)
    check(applying(ParallelConvs()), model, "Conv Split<axis=1> Relu Conv")
    check_replay(applying(ParallelConvs()), model)


def test_each_output_of_a_rewrite_over_siblings_is_proven_by_a_window() -> None:
    result = graphpass.optimize(graph(CONVS, **WEIGHTS), applying(ParallelConvs()))
    (rewrite,) = result.report.passes[0].rewrites
    assert rewrite.proof is not None and rewrite.proof.status == "ok"
    assert rewrite.before == ("Conv of 'a'", "Conv of 'z'")
    assert rewrite.after == ("Conv of 'a.split.conv'", "Split of 'a'") or len(rewrite.after) == 2


class WrongSecond(ParallelConvs):
    """Conv(x, V), Conv(x, W), … = … with an error in the last one."""

    def rewrite(self, x: Any, conv: list[Any], weight: list[Any]) -> Any:
        w = [entry.array() for entry in weight]
        w[1] = w[1] * np.float32(1.001)
        sizes = np.array([2, 2], np.int64)
        joined = Op("Conv", x, np.concatenate(w), **conv[0].attrs)
        return Op("Split", joined, sizes, axis=1, outputs=2)


def test_a_wrong_second_result_is_caught() -> None:
    text = """(float[N,2,5,5] x) => (float[N,2,3,3] y, float[N,2,3,3] z)
        { y = Conv(x, U) z = Conv(x, V) }"""
    model = graph(text, U=(2, 2, 3, 3), V=(2, 2, 3, 3))
    entry = graphpass.optimize(model, applying(WrongSecond())).report.passes[0]
    assert not entry.rewrites and entry.quarantined[0].rewrite.key == ("WrongSecond", "y")
    assert "off by" in entry.quarantined[0].reason


def test_siblings_through_a_bias() -> None:
    text = """(float[N,4] x) => (float[N,3] q, float[N,5] k, float[N,2] v) {
        a = MatMul(x, A) q = Add(a, d) b = MatMul(x, B) k = Add(b, e) c = MatMul(x, C) v = Add(c, f)
    }"""
    model = graph(text, A=(4, 3), B=(4, 5), C=(4, 2), d=(3,), e=(5,), f=(2,))
    check(applying(QueryKeyValue()), model, "MatMul Add Split<axis=-1>")
    check_replay(applying(QueryKeyValue()), model)


@pytest.mark.parametrize("computed, said", [("V", True), ("both", True)])
def test_siblings_that_something_stands_in_the_way_of_are_left_out(
    computed: str, said: bool
) -> None:
    text = """(float[N,2,5,5] x, float[3,2,3,3] p) => (float[N,3,3,3] y, float[N,3,3,3] z,
        float[N,3,3,3] o) { q = Abs(p) y = Conv(x, %s) z = Conv(x, q) o = Conv(x, W) }"""
    model = graph(text % ("q" if computed == "both" else "V"), V=(3, 2, 3, 3), W=(3, 2, 3, 3))
    if computed == "both":
        check_refused(applying(ParallelConvs()), model, "is not a constant")
    else:
        check(applying(ParallelConvs()), model, "Abs Conv Split Conv")


def test_one_place_has_no_siblings() -> None:
    text = "(float[N,2,5,5] x) => (float[N,3,3,3] y) { y = Conv(x, U) }"
    check_untouched(applying(ParallelConvs()), graph(text, U=(3, 2, 3, 3)))


def test_equal_nodes_become_one_all_the_way_down() -> None:
    text = """(float[3] x) => (float[3] y) { a = Relu(x) b = Relu(x) c = Abs(a) d = Abs(b)
        e = Add(c, d) f = Elu<alpha=0.5>(x) g = Elu<alpha=0.25>(x) h = Add(f, g) y = Mul(e, h) }"""
    result = check(applying(EqualNodes()), graph(text), exact=True)
    check_operators(result, "Relu Abs Add Elu<alpha=0.5> Elu<alpha=0.25> Add Mul")


def test_equal_nodes_that_are_outputs_keep_their_names() -> None:
    text = "(float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Relu(x) }"
    check(applying(EqualNodes()), graph(text), "Relu Identity", exact=True)


def test_siblings_stay_in_their_body() -> None:
    branch = "{name} () => (float[3] {out}) {{ {out} = Relu(x) }}"
    text = f"""(float[3] x, bool p) => (float[3] y, float[3] r) {{ r = Relu(x) y = If(p) <
        then_branch = {branch.format(name="t", out="u")},
        else_branch = {branch.format(name="e", out="v")}> }}"""
    check_untouched(applying(EqualNodes()), graph(text))


class JoinedAdds(Rule):
    """Add(x, a), Add(x, b) = Split(Add(Concat(x, x), Concat(a, b)))."""

    pattern = siblings(Op("Add", any_("x"), any_("other"), bind="add"), of="x")

    def rewrite(self, x: Any, other: list[Any], add: list[Any]) -> Any:
        total = Op("Add", Op("Concat", x, x, axis=0), Op("Concat", *other, axis=0))
        return Op("Split", total, np.array([3, 3], np.int64), axis=0, outputs=2)


def test_siblings_of_which_one_feeds_another_are_refused() -> None:
    fed = "(float[3] x, float[3] w) => (float[3] y) { a = Add(x, w) b = Abs(a) y = Add(x, b) }"
    check_refused(
        applying(JoinedAdds()), graph(fed), "feeds another one of the nodes it would join"
    )
    apart = """(float[3] x, float[3] w) => (float[3] y) {
        a = Add(x, w) v = Abs(w) b = Add(x, v) y = Mul(a, b) }"""
    check(applying(JoinedAdds()), graph(apart), "Concat Abs Concat Add Split Mul", exact=True)


def test_a_tensor_with_many_readers_takes_no_quadratic_time() -> None:
    count = 3000
    convs = " ".join(f"y{i} = Abs(x)" for i in range(count))
    outputs = ", ".join(f"float[1] y{i}" for i in range(count))
    model = graph(f"(float[1] x) => ({outputs}) {{ {convs} }}")
    looked: list[int] = []

    class Idle(Rule):
        """Siblings that stay."""

        pattern = siblings(Op("Abs", any_("x"), bind="node"), of="x")

        def rewrite(self, x: Any, node: list[Any]) -> Any:
            looked.append(len(node))

    check_untouched(applying(Idle()), model)
    assert len(looked) <= 2 and max(looked) <= 256


# ----------------------------------------------------------------- several outputs, other domains


class SplitBehindRelu(Rule):
    """Split(Relu(x)) = Relu(Split(x)), for each part."""

    pattern = Op("Split", Op("Relu", any_("x")), ..., bind="split", all_outputs=True)

    def rewrite(self, split: Any, x: Any) -> Any:
        parts = Op("Split", x, *split.inputs[1:], outputs=len(split.outputs), **split.attrs)
        return [Op("Relu", part) for part in parts]


def test_a_rule_may_replace_every_output_of_its_root() -> None:
    text = """(float[6] x) => (float[2] y, float[2] z) {
        r = Relu(x) a, b, c = Split<axis=0>(r, s) y = Abs(a) z = Neg(c) }"""
    model = graph(text, s=np.array([2, 2, 2], np.int64))
    check(applying(SplitBehindRelu()), model, "Split Relu Relu Relu Abs Neg", exact=True)
    # ONNX Runtime crashes on a Split with an output left out
    left_out = graph(text.replace("a, b, c", "a, , c"), s=np.array([2, 2, 2], np.int64))
    result, _ = apply_to(applying(SplitBehindRelu()), left_out)
    check_operators(result, "Split Relu Relu Abs Neg")


class FusedProduct(Rule):
    """Relu(MatMul(a, b)) = Relu of an operator of another domain."""

    pattern = Op("Relu", Op("MatMul", any_("a"), any_("b")))
    domain: Any = "com.microsoft"

    def rewrite(self, a: Any, b: Any) -> Any:
        return Op("Relu", Op("FusedMatMul", a, b, domain="com.microsoft", alpha=1.0))


class Versioned(Rule):
    """Abs(x) = Thing(x), version 3."""

    pattern = Op("Abs", any_("x"))

    def rewrite(self, x: Any) -> Any:
        return Op("Thing", x, domain=("own", 3))


PRODUCT = "(float[N,3] a, float[3,4] b) => (float[N,4] y) { c = MatMul(a, b) y = Relu(c) }"


def test_the_opset_of_a_new_domain_is_imported() -> None:
    model = graph(PRODUCT)
    result, _ = apply_to(applying(FusedProduct()), model)
    assert {o.domain: o.version for o in result.opset_import} == {"": 17, "com.microsoft": 1}
    check_valid(model, result)
    graphpass.testing.check_equal(model, result)
    report = graphpass.optimize(model, applying(FusedProduct())).report.passes[0]
    assert report.outcome == "kept" and "status='ok'" in repr(report.rewrites[0].proof)


def test_a_function_imports_for_itself() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    agraph (float[N,3] a, float[3,4] b) => (float[N,4] y) { y = own.F(a, b) }
    <domain: "own", opset_import: ["" : 17]>
    F (a, b) => (y) { c = MatMul(a, b) y = Relu(c) }"""
    result, _ = apply_to(applying(FusedProduct()), graph(text))
    assert {o.domain for o in result.opset_import} == {"", "own", "com.microsoft"}
    assert {o.domain for o in result.functions[0].opset_import} == {"", "com.microsoft"}


def test_a_version_that_the_model_imports_otherwise_is_a_refusal() -> None:
    text = "(float[3] x) => (float[3] y) { y = Abs(x) }"
    result, _ = apply_to(applying(Versioned()), graph(text))
    assert {o.domain: o.version for o in result.opset_import} == {"": 17, "own": 3}
    check_refused(
        applying(Versioned()),
        graph(text, domains={"own": 2}),
        "is of version 3 of own, and the model imports 2",
    )


def test_a_node_twice_in_a_term_is_made_once() -> None:
    class Halves(Rule):
        """Abs(x) = Max(Neg(Relu…)): shares what it computes twice."""

        pattern = Op("Abs", any_("x"))

        def rewrite(self, x: Any) -> Any:
            negative = Op("Neg", x)
            return Op("Sub", Op("Max", x, negative), Op("Sub", negative, negative))

    model = graph("(float[3] x) => (float[3] y) { y = Abs(x) }")
    check(applying(Halves()), model, "Neg Max Sub Sub", exact=True)


def test_onnx_itself_takes_what_was_made() -> None:
    for rule, model in (
        (ParallelConvs(), graph(CONVS, **WEIGHTS)),
        (
            SplitBehindRelu(),
            graph(
                "(float[6] x) => (float[3] a, float[3] b) { r = Relu(x) a, b = Split<axis=0>(r) }"
            ),
        ),
    ):
        result, _ = apply_to(applying(rule), model)
        onnx.checker.check_model(result, full_check=True)
