"""A faulty rule is rejected when it is defined, not when it first matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from graphpass import Op, Pass, Rule, any_, const, either
from graphpass.errors import RuleError


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
