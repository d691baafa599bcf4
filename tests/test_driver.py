"""The worklist: what is visited again, how often, in what order, and how a run is cut short."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass import Op, Pass, Rule, any_, const, require, static_shape
from graphpass.ir.model import Model
from graphpass.rewrite.applied import Applied
from graphpass.rewrite.driver import apply
from graphpass.testing import graph, operators


class NegNeg(Rule):
    """Neg(Neg(x)) = x."""

    pattern = Op("Neg", Op("Neg", any_("x")))

    def rewrite(self, x: Any) -> Any:
        return x


class FoldShift(Rule):
    """Add(Add(x, a), b) = Add(x, a + b)."""

    pattern = Op("Add", Op("Add", any_("x"), const("a")), const("b"))

    def rewrite(self, x: Any, a: Any, b: Any) -> Any:
        return Op("Add", x, a.array() + b.array())


class AbsToRelu(Rule):
    """Abs(x) = Relu(x), where x is a scalar; wrong, but easy to see."""

    pattern = Op("Abs", any_("x"))

    def rewrite(self, x: Any) -> Any:
        require(static_shape(x) == (), "it is no scalar")
        return Op("Relu", x)


class ReshapeToSqueeze(Rule):
    """Reshape(x, […]) = Squeeze(x), where x has one element."""

    pattern = Op("Reshape", any_("x"), const("shape"))

    def rewrite(self, x: Any, shape: Any) -> Any:
        return Op("Squeeze", x) if static_shape(x) == (1,) else None


@dataclass(frozen=True)
class Negations(Pass):
    """Drop pairs of Neg."""

    name = "negations"
    rules = (NegNeg(),)


@dataclass(frozen=True)
class Shifts(Pass):
    """Merge Adds."""

    name = "shifts"
    rules = (FoldShift(),)


@dataclass(frozen=True)
class Shapes(Pass):
    """One rule that makes a shape known, one that needs it."""

    name = "shapes"
    rules = (AbsToRelu(), ReshapeToSqueeze())


@dataclass(frozen=True)
class Sweep(Pass):
    """Remove what nothing reads."""

    name = "sweep"
    sweeps = True
    rules = ()


def run(step: Pass, model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, Applied]:
    loaded = Model.load(model)
    applied = apply(step, loaded, **options)
    return loaded.to_proto(), applied


def negations(count: int) -> onnx.ModelProto:
    steps = " ".join(f"v{i + 1} = Neg(v{i})" for i in range(count))
    return graph(f"(float[3] v0) => (float[3] y) {{{steps} y = Relu(v{count})}}")


# ---------------------------------------------------------------------------------- to a fixpoint


def test_a_rewrite_lets_another_one_follow() -> None:
    result, applied = run(Negations(), negations(6))
    assert operators(result) == "Relu"
    assert [rewrite.number for rewrite in applied.rewrites] == [1, 2, 3]


def test_rewrites_say_what_they_did() -> None:
    _, applied = run(Negations(), negations(2))
    (rewrite,) = applied.rewrites
    assert rewrite.rule == "NegNeg"
    assert rewrite.site == "v2"
    assert rewrite.law == "Neg(Neg(x)) = x."
    assert rewrite.before == ("Neg of 'v2'", "Neg of 'v1'")
    assert rewrite.after == ()


def test_a_shape_that_a_rewrite_made_known_is_used_in_the_same_run() -> None:
    text = "(float x) => (float y) {a = Abs(x) b = Reshape(a, one) y = Reshape(b, none)}"
    model = graph(text, one=np.array([1]), none=np.zeros(0, np.int64))
    result, applied = run(Shapes(), model)
    assert operators(result) == "Relu Reshape Squeeze"
    assert not run(Shapes(), result)[1].rewrites
    assert len(applied.rewrites) == 2


def test_a_refusal_that_was_overcome_is_not_reported() -> None:
    text = """(float[3] x) => (float[3] y, float[3] z) {
        a = Neg(x) b = Neg(a) c = Neg(b) d = Neg(c) y = Relu(d) z = Exp(b)
    }"""
    result, applied = run(Negations(), graph(text))
    assert operators(result) == "Relu Exp"
    assert not applied.refusals


def test_each_body_and_function_is_a_place_to_work() -> None:
    model = graph(
        """<ir_version: 9, opset_import: ["" : 17, "my" : 1]>
        agraph (float[3] x, bool c) => (float[3] y) {
            a = my.f(x)
            y = If(c) <
                then_branch = g1 () => (float[3] p) {r = Neg(a) s = Neg(r) p = Relu(s)},
                else_branch = g2 () => (float[3] q) {
                    q = If(c) <
                        then_branch = g3 () => (float[3] u) {r = Neg(a) s = Neg(r) u = Exp(s)},
                        else_branch = g4 () => (float[3] w) {w = Relu(a)}
                    >
                }
            >
        }
        <domain: "my", opset_import: ["" : 17]> f (v) => (w) {r = Neg(v) s = Neg(r) w = Relu(s)}"""
    )
    result, applied = run(Negations(), model)
    assert len(applied.rewrites) == 3
    assert [node.op_type for node in result.functions[0].node] == ["Relu"]
    onnx.checker.check_model(result, full_check=True)


def test_two_runs_give_the_same_file() -> None:
    first, second = (run(Shifts(), shifts(20))[0] for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def shifts(count: int) -> onnx.ModelProto:
    steps = " ".join(f"v{i + 1} = Add(v{i}, c{i})" for i in range(count))
    constants: dict[str, Any] = {f"c{i}": np.full(3, i, np.float32) for i in range(count)}
    return graph(f"(float[3] v0) => (float[3] y) {{{steps} y = Relu(v{count})}}", **constants)


# ---------------------------------------------------------------------------------- cut short


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9])
def test_a_limit_takes_the_first_rewrites(limit: int) -> None:
    _, everything = run(Shifts(), shifts(5))
    _, some = run(Shifts(), shifts(5), limit=limit)
    assert [r.key for r in some.rewrites] == [r.key for r in everything.rewrites][:limit]


def test_what_is_quarantined_is_left_alone() -> None:
    model = graph(
        "(float[3] x) => (float[3] y, float[3] z) "
        "{a = Neg(x) b = Neg(a) y = Relu(b) c = Neg(x) d = Neg(c) z = Exp(d)}"
    )
    result, applied = run(Negations(), model, quarantine=frozenset({("NegNeg", "b")}))
    assert [rewrite.site for rewrite in applied.rewrites] == ["d"]
    assert operators(result) == "Neg Neg Relu Exp"


def test_numbers_go_on_from_where_another_pass_ended() -> None:
    _, applied = run(Negations(), negations(4), first_number=7)
    assert [rewrite.number for rewrite in applied.rewrites] == [7, 8]


# ------------------------------------------------------------------------------------- sweeping


def test_what_nothing_reads_goes_as_numbered_rewrites() -> None:
    model = graph(
        "(float[3] x) => (float[3] y) {a = Exp(x) b = Neg(a) c = Add(x, w) y = Relu(x)}",
        w=np.ones(3, np.float32),
        v=np.ones(3, np.float32),
    )
    result, applied = run(Sweep(), model)
    assert operators(result) == "Relu"
    assert not result.graph.initializer
    named = [(r.number, r.rule, r.site) for r in applied.rewrites]
    assert named == [(1, "UnreadNode", "c"), (2, "UnreadNode", "b"), (3, "UnreadInitializer", "v")]


def test_sweeping_heeds_limit_and_quarantine() -> None:
    model = graph("(float[3] x) => (float[3] y) {a = Exp(x) b = Neg(x) y = Relu(x)}")
    result, _ = run(Sweep(), model, limit=1)
    assert operators(result) == "Exp Relu"
    result, _ = run(Sweep(), model, quarantine=frozenset({("UnreadNode", "b")}))
    assert operators(result) == "Neg Relu"


def test_what_a_removed_body_held_is_not_visited() -> None:
    model = graph(
        """(float[3] x, bool c) => (float[3] y) {
            z = If(c) <
                then_branch = g1 () => (float[3] p) {r = Neg(x) s = Neg(r) p = Relu(s)},
                else_branch = g2 () => (float[3] q) {q = Relu(x)}
            >
            y = Relu(x)
        }"""
    )

    @dataclass(frozen=True)
    class Both(Pass):
        """Sweep and drop pairs of Neg."""

        name = "both"
        sweeps = True
        rules = (NegNeg(),)

    result, applied = run(Both(), model)
    assert operators(result) == "Relu"
    assert [rewrite.rule for rewrite in applied.rewrites] == ["UnreadNode"]


def test_a_node_without_outputs_is_passed_by() -> None:
    model = graph("(float[3] x) => (float[3] y) {y = Relu(x)}", domains={"my": 1})
    model.graph.node.append(onnx.helper.make_node("Print", ["x"], [], domain="my"))
    model.graph.node.append(onnx.helper.make_node("Neg", ["x"], []))
    for step in (Sweep(), Negations()):
        result, applied = run(step, model)
        assert not applied.rewrites
        assert result == model


# ------------------------------------------------------------------------------------ time


def seconds(step: Pass, model: onnx.ModelProto) -> float:
    loaded = Model.load(model)
    _ = loaded.graph
    start = time.process_time()  # the machine may be busy
    apply(step, loaded)
    return time.process_time() - start


def test_time_grows_with_nodes_plus_rewrites() -> None:
    short, long = (min(seconds(Negations(), negations(n)) for _ in range(3)) for n in (500, 4000))
    assert long < 8 * 4 * short + 0.5


def test_a_tensor_with_many_readers_is_not_looked_at_from_all_of_them_again() -> None:
    count = 3000
    nodes = " ".join(f"a{i} = Neg(x) b{i} = Neg(a{i}) c{i} = Exp(b{i})" for i in range(count))
    model = graph(f"(float[3] x) => (float[3] y) {{{nodes} y = Relu(c0)}}")
    assert seconds(Negations(), model) < 20  # quadratic, it takes minutes
