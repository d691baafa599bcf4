"""Who decides on a rule that is a choice, and when two sites are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass import Choice, Op, Pass, Rule, Tensor, Weight, any_, const
from graphpass.errors import RuleError
from graphpass.rewrite.choice import ByCost, Everything, Nothing, Offer
from graphpass.rewrite.likeness import likeness
from graphpass.rewrite.registry import make
from graphpass.rewrite.window import Window
from graphpass.testing import apply_to, graph, operators


class Squares(Rule):
    """Pow(x, 2) = Mul(x, x): as many nodes."""

    pattern = Op("Pow", any_("x"), const("two"))
    choice = Choice.WHERE_LESS

    def rewrite(self, x: Tensor, two: Weight) -> Op | None:
        return Op("Mul", x, x) if two.size == 1 and two.array() == 2 else None


class Fourth(Rule):
    """Pow(x, 4) = Mul(Mul(x, x), Mul(x, x)): more nodes."""

    pattern = Op("Pow", any_("x"), const("four"))
    choice = Choice.WHERE_LESS

    def rewrite(self, x: Tensor, four: Weight) -> Op | None:
        square = Op("Mul", x, x)
        return Op("Mul", square, square) if four.size == 1 and four.array() == 4 else None


class Doubled(Rule):
    """MatMul(x, W) + MatMul(x, W) = MatMul(x, 2·W)."""

    pattern = Op("Add", Op("MatMul", any_("x"), const("w")), Op("MatMul", any_("x"), const("v")))
    choice = Choice.WHERE_LESS

    def rewrite(self, x: Tensor, w: Weight, v: Weight) -> Op:
        return Op("MatMul", x, w.array() + v.array())


class Powers(Pass):
    """Powers by hand."""

    name = "powers"
    rules = (Squares(), Fourth(), Doubled())


def power(exponent: float, shape: str = "[N,4]") -> onnx.ModelProto:
    return graph(f"(float{shape} x) => (float{shape} y) {{y = Pow(x, p)}}", p=np.float32(exponent))


def reasons(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    found = apply_to(Powers(), model, ByCost())[1].refusals
    return [(refusal.reason, refusal.code, refusal.advice) for refusal in found]


def test_more_of_anything_is_refused_with_the_way_out() -> None:
    told = ("not-less", "give --tune, which measures whether it pays")
    before = power(4)
    assert operators(apply_to(Powers(), before, ByCost())[0]) == "Pow"
    ((reason, *rest),) = reasons(before)
    assert reason.startswith("it would be more bytes of activations: ") and tuple(rest) == told


def test_as_much_is_refused() -> None:
    # the exponent, four bytes of a weight, is no longer read: that is less
    assert operators(apply_to(Powers(), power(2), ByCost())[0]) == "Mul"
    model = graph("(float[N,4] x, float[N,4] z) => (float[N,4] y) {y = Sub(x, z)}")

    class Turned(Rule):
        """Sub(x, z) = Add(x, −z) without its sign: as much work."""

        pattern = Op("Sub", any_("x"), any_("z"))
        choice = Choice.WHERE_LESS

        def rewrite(self, x: Tensor, z: Tensor) -> Op:
            return Op("Add", x, z)

    class TurnedPass(Pass):
        """Turned."""

        name = "turned"
        rules = (Turned(),)

    result, applied = apply_to(TurnedPass(), model, ByCost())
    assert operators(result) == "Sub"
    assert [refusal.reason for refusal in applied.refusals] == ["it would be no less work"]


def test_less_takes_place() -> None:
    model = graph(
        "(float[N,4] x) => (float[N,5] y) {a = MatMul(x, W) b = MatMul(x, V) y = Add(a, b)}",
        W=(4, 5),
        V=(4, 5),
    )
    assert operators(apply_to(Powers(), model, ByCost())[0]) == "MatMul"


def test_what_cannot_be_counted_is_refused() -> None:
    model = graph("(float x) => (float[?,?] y) {y = Pow(x, p)}", p=np.float32(2))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    ((reason, *_),) = reasons(model)
    assert reason == "whether it is less work cannot be counted"


def test_everything_and_nothing() -> None:
    assert operators(apply_to(Powers(), power(4), Everything())[0]) == "Mul Mul"
    result, applied = apply_to(Powers(), power(4), Nothing())
    assert operators(result) == "Pow" and not applied.refusals


@pytest.mark.parametrize(
    ("choice", "tried"),
    [(Choice.MEASURED, False), (Choice.WHERE_LESS, True), (Choice.AS_ASKED, True)],
)
def test_what_counting_tries(choice: Choice, tried: bool) -> None:
    assert ByCost().tries(choice) is tried
    assert Everything().tries(choice) and not Nothing().tries(choice)
    if choice is Choice.AS_ASKED:
        ByCost().decide(Offer("p", "r", "s", choice, lambda: pytest.fail("it is not looked at")))


def test_a_rule_may_say_it_with_options() -> None:
    assert make("gemm-to-conv").rules[0].choice is Choice.AS_ASKED
    assert make("clean-up").rules[0].choice is None


def test_what_a_rule_raises_is_not_taken_for_a_refusal() -> None:
    class Broken:
        def tries(self, choice: Choice) -> bool:
            return True

        def decide(self, offer: Offer) -> None:
            raise ValueError("a chooser that fails")

    with pytest.raises(RuleError, match="a chooser that fails"):
        apply_to(Powers(), power(2), Broken())


# ------------------------------------------------------------------------------ likeness


def window(
    text: str, after: str = "(float[N,4] x) => (float[N,4] y) {y = Neg(x)}", **held: Any
) -> Window:
    return Window(graph(text, **held), graph(after), ("x",), "y")


PLAIN = "(float[N,4] x) => (float[N,5] y) {c = MatMul(x, W) y = LeakyRelu<alpha=0.5>(c)}"
SHAPES = {"x": (2, 4)}


def test_names_and_what_weights_hold_do_not_count() -> None:
    one = window(PLAIN, W=(4, 5))
    other = Window(
        graph(
            "(float[M,4] in) => (float[M,5] out) {k = MatMul(in, V) out = LeakyRelu<alpha=0.5>(k)}",
            V=(4, 5),
            seed=3,
        ),
        graph("(float[M,4] in) => (float[M,4] out) {out = Neg(in)}"),
        ("in",),
        "out",
    )
    assert likeness(one, SHAPES) == likeness(other, {"in": (2, 4)})
    assert likeness(one) == likeness(other)
    assert len(likeness(one)) == 16


@pytest.mark.parametrize(
    "other",
    [
        window(PLAIN.replace("0.5", "0.25"), W=(4, 5)),
        window(PLAIN.replace("LeakyRelu<alpha=0.5>", "Relu"), W=(4, 5)),
        window(PLAIN, W=(4, 6)),
        window(PLAIN, W=np.zeros((4, 5), np.float64)),
        window(PLAIN, "(float[N,4] x) => (float[N,4] y) {y = Abs(x)}", W=(4, 5)),
        window(PLAIN, opset=13, W=(4, 5)),
    ],
    ids=["attribute", "operator", "size of a weight", "type", "what it becomes", "opset"],
)
def test_what_counts(other: Window) -> None:
    assert likeness(other, SHAPES) != likeness(window(PLAIN, W=(4, 5)), SHAPES)


def test_sizes_of_a_run_count_where_they_are_given() -> None:
    one = window(PLAIN, W=(4, 5))
    assert likeness(one, {"x": (2, 4)}) != likeness(one, {"x": (8, 4)})


def test_integers_that_say_where_count() -> None:
    text = "(float[N,6] x) => (float[N,?] y) {y, z = Split<axis=1>(x, k)}"
    halves, parts = (window(text, k=np.array(sizes)) for sizes in ((3, 3), (2, 4)))
    assert likeness(halves) != likeness(parts)


def test_a_model_that_does_not_run_is_not_tuned() -> None:
    model = graph(
        "(float[N,4] x0) => (float[N,4] a, float[N,4] b, float[N,4] c) {"
        "a = MatMul(x0, V) b = MatMul(x0, W) r = Relu(x0) d = Relu(r) c = mine.Unknown(d)}",
        V=(4, 4),
        W=(4, 4),
        domains={"mine": 1},
    )
    with graphpass.optimize(
        model, "clean-up,merge-siblings", tune=True, tune_cache=False
    ) as result:
        (site,) = result.report.tuning.sites  # type: ignore[union-attr]
        assert not site.kept
        assert site.reason == (
            "it was not measured: the model is not run, so that its sizes are not known"
        )
