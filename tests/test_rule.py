"""A faulty rule is rejected when it is defined, not when it first matches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from graphpass import Op, Pass, Rule, any_, const, each, either, optional, siblings
from graphpass.errors import RuleError
from graphpass.testing import apply_to, graph


def test_parameters_must_be_the_names_that_the_pattern_binds() -> None:
    with pytest.raises(TypeError, match="binds x, weight but rewrite takes x, kernel"):

        class Wrong(Rule):
            """Conv(x, W) = x."""

            pattern = Op("Conv", any_("x"), const("weight"))

            def rewrite(self, x: Any, kernel: Any) -> Any:
                return x


def test_a_rule_states_its_law() -> None:
    with pytest.raises(RuleError, match="docstring whose first line is its law"):

        class Lawless(Rule):
            pattern = Op("Relu", any_("x"))

            def rewrite(self, x: Any) -> Any:
                return x


def test_a_rule_needs_a_pattern() -> None:
    with pytest.raises(RuleError, match="needs a `pattern`"):

        class Shapeless(Rule):
            """f(x) = x."""

            def rewrite(self, x: Any) -> Any:
                return x


def test_a_rule_needs_a_rewrite() -> None:
    with pytest.raises(RuleError, match="needs a `rewrite`"):

        class Idle(Rule):
            """Relu(x) = Relu(x)."""

            pattern = Op("Relu", any_("x"))


def test_law_and_roots_are_read_off_the_rule() -> None:
    class Either(Rule):
        """Relu(x) = x.

        More words that are not the law.
        """

        pattern = either(Op(("Relu", "Elu"), any_("x")), Op("Gelu", any_("x"), domain="com.me"))

        def rewrite(self, x: Any) -> Any:
            return x

    rule = Either()
    assert rule.law == "Relu(x) = x."
    assert rule.roots == {"Relu", "Elu", "com.me::Gelu"}


def test_a_pass_needs_a_name_and_something_to_do() -> None:
    with pytest.raises(RuleError, match="needs a `name`"):

        @dataclass(frozen=True)
        class Nameless(Pass):
            """Does nothing."""

            rules = ()

    with pytest.raises(RuleError, match="needs `rules` or a `run`"):

        @dataclass(frozen=True)
        class Empty(Pass):
            """Does nothing."""

            name = "empty"


def test_passes_do_not_inherit_from_passes() -> None:
    @dataclass(frozen=True)
    class First(Pass):
        """The first."""

        name = "first"
        rules = ()

    with pytest.raises(RuleError, match="inherits from a pass"):

        @dataclass(frozen=True)
        class Second(First):
            """The second."""

            name = "second"
            rules = ()


# ------------------------------------------------------------------ patterns that make no sense

X = any_("x")
MALFORMED: dict[str, Callable[[], Any]] = {
    "a pattern begins with an Op, or either of several, not with x": lambda: either(
        X, Op("Relu", X)
    ),
    "a pattern begins with an Op, or either of several, not with 'str'": lambda: "Relu",
    "shared says nothing of Relu(x): the root of a pattern always goes": lambda: Op(
        "Relu", X, shared=True
    ),
    "input 1 of Mul is 2, which is no pattern: write const('name')": lambda: Op("Mul", X, 2),
    "input 0 of Relu is 'x', which is no pattern: write any_('name')": lambda: Op("Relu", "x"),
    "input 1 of Clip is None, which is no pattern: write optional(any_('name'))": lambda: Op(
        "Clip", X, None, const("most")
    ),
    "input 0 of Concat is ...: it stands for all further inputs and comes last": lambda: Op(
        "Concat", ..., X
    ),
    "input 0 of Concat is each(…): it takes all further inputs": lambda: Op("Concat", each("a"), X),
    "input 0 of Relu is siblings(…), which only a whole pattern can be": lambda: Op(
        "Relu", siblings(Op("Abs", X), of="x")
    ),
    "either(x) has no alternative": lambda: Op("Relu", either(X)),
    "any_('x') fits everything: put it last": lambda: Op("Relu", either(X, Op("Abs", X))),
    "[x] is no alternative of either": lambda: Op("Relu", either(Op("Abs", X), optional(X))),
    "optional(…) takes any_, const, Op or either": lambda: Op("Clip", X, optional(optional(X))),
    "commutative exchanges two inputs, and Relu(x) lists others": lambda: Op(
        "Relu", X, commutative=True
    ),
    "commutative says nothing of Add(x, y): its inputs are any tensors": lambda: Op(
        "Add", X, any_("y"), commutative=True
    ),
    "all_outputs says nothing of Split(x): it is for the root": lambda: Op(
        "Relu", Op("Split", X, all_outputs=True)
    ),
    "outputs=2 of Split(x) is for terms": lambda: Op("Split", X, outputs=2),
    "a version to import is for terms": lambda: Op("Gelu", X, domain=("com.me", 2)),
    "bind='the node' of Relu(x) is no name": lambda: Op("Relu", X, bind="the node"),
    "'a-b' is no name for a parameter": lambda: Op("Relu", any_("a-b")),
    "'x' is a tensor and a constant: give one another name": lambda: Op("Add", X, const("x")),
    "'x' is a node and a tensor": lambda: Op("Relu", X, bind="x"),
    "'x' is bound for each input and elsewhere": lambda: Op("Concat", X, each("x")),
    "ONNX has no operator 'Trnspose': did you mean Transpose?": lambda: Op("Trnspose", X),
    "ONNX has no operator 'Thing': one of another domain needs domain=…": lambda: Op("Thing", X),
    "Relu has at most 1 inputs, and Relu(x, y) lists 2": lambda: Op("Relu", X, any_("y")),
    "Transpose has no attribute 'axes'; it has: perm": lambda: Op("Transpose", X, axes=[1, 0]),
    "perm=None of Transpose(x) is no value": lambda: Op("Transpose", X, perm=None),
    "the siblings share 'y', but no any_('y')": lambda: siblings(Op("Relu", X), of="y"),
    "siblings have one output each": lambda: siblings(Op("Split", X, all_outputs=True), of="x"),
    "all_outputs is for every alternative of the root, or for none": lambda: either(
        Op("Split", X, all_outputs=True), Op("Relu", X)
    ),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_pattern_is_an_error_in_the_class_statement(message: str) -> None:
    with pytest.raises(RuleError, match=f"^rule Malformed: .*{re.escape(message)}"):

        class Malformed(Rule):
            """f(x) = x."""

            pattern = MALFORMED[message]()

            def rewrite(self, **bound: Any) -> Any:
                return None


def test_an_operator_or_attribute_of_an_old_opset_only_is_known() -> None:
    class Old(Rule):
        """Upsample(x) = x; Dropout(x) = x."""

        pattern = either(Op("Upsample", any_("x")), Op("Dropout", any_("x"), is_test=1))

        def rewrite(self, x: Any) -> Any:
            return x

    assert Old().roots == {"Upsample", "Dropout"}


# --------------------------------------------------------------------- terms that make no sense

TERMS: dict[str, Callable[[Any], Any]] = {
    "input 1 of the term Mul is 2.0: give np.array(…) of the right dtype": lambda x: Op(
        "Mul", x, 2.0
    ),
    "input 0 of the term Relu is x, which is for patterns": lambda x: Op("Relu", any_("x")),
    "the term is 1: give np.array(…)": lambda x: 1,
    "the term is 'x', which is no tensor, Weight, array or Op": lambda x: "x",
    "bind in the term": lambda x: Op("Relu", x, bind="relu"),
    "shared in the term": lambda x: Op("Relu", x, shared=True),
    "... in the term": lambda x: Op("Sum", x, ...),
    "names no operator or several": lambda x: Op(("Relu", "Abs"), x),
    "with 2 outputs: say which, as in op[0]": lambda x: Op("Relu", Op("Split", x, outputs=2)),
}


@pytest.mark.parametrize("message", TERMS)
def test_a_malformed_term_says_how_to_write_it(message: str) -> None:
    class Malformed(Rule):
        """Relu(x) = nonsense."""

        pattern = Op("Relu", any_("x"))

        def rewrite(self, x: Any) -> Any:
            return TERMS[message](x)

    @dataclass(frozen=True)
    class Wrong(Pass):
        """Wrong."""

        name = "wrong"
        rules = (Malformed(),)

    model = graph("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(RuleError, match=re.escape(message)):
        apply_to(Wrong(), model)
