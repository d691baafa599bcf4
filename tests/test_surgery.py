"""Swapping nodes: names, outputs, shared constants, bodies and functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphpass import Op, Pass, Rule, any_, const
from graphpass.ir.model import Model
from graphpass.rewrite import building
from graphpass.rewrite.driver import apply
from graphpass.testing import apply_to, check, check_equal, check_valid, graph


class DropIdentity(Rule):
    """Identity(x) = x."""

    pattern = Op("Identity", any_("x"))

    def rewrite(self, x: Any) -> Any:
        return x


class AddOneTwice(Rule):
    """Neg(x) = Sub(Mul(x, 0), x)."""

    pattern = Op("Neg", any_("x"))

    def rewrite(self, x: Any) -> Any:
        return Op("Sub", Op("Mul", x, np.zeros((), np.float32)), x)


class FoldShift(Rule):
    """Add(Add(x, a), b) = Add(x, a + b)."""

    pattern = Op("Add", Op("Add", any_("x"), const("a")), const("b"))

    def rewrite(self, x: Any, a: Any, b: Any) -> Any:
        return Op("Add", x, a.array() + b.array())


@dataclass(frozen=True)
class Steps(Pass):
    """Drop, expand, fold."""

    name = "steps"
    rules = (DropIdentity(), AddOneTwice(), FoldShift())


def names_of(model: onnx.ModelProto) -> list[str]:
    tensors = [tensor.name for tensor in model.graph.initializer]
    return tensors + [name for node in model.graph.node for name in node.output]


def test_identity_before_an_output_gives_its_producer_the_outputs_name() -> None:
    model = graph("(float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Identity(a) }")
    check(Steps(), model, "Relu", exact=True)


def test_readers_of_the_renamed_tensor_follow() -> None:
    model = graph(
        "(float[N,3] x) => (float[N,3] y, float[N,3] z) { a = Relu(x) y = Identity(a) z = Abs(a) }"
    )
    result = check(Steps(), model, "Relu Abs", exact=True)
    assert result.graph.node[1].input[0] == "y"


def test_an_input_passed_through_keeps_its_identity() -> None:
    model = graph("(float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    check(Steps(), model, "Identity", exact=True)


def test_two_outputs_of_the_same_value_keep_both_names() -> None:
    model = graph(
        "(float[N,3] x) => (float[N,3] y, float[N,3] z)"
        " { a = Relu(x) y = Identity(a) z = Identity(a) }"
    )
    check(Steps(), model, "Relu Identity", exact=True)


def test_made_up_names_meet_no_name_of_the_model() -> None:
    model = graph(
        "(float[N,3] x) => (float[N,3] y, float[N,3] z)"
        ' { y = Neg(x) "y.mul" = Relu(x) z = Add("y.mul", taken) }',
        taken=np.ones((), np.float32),
    )
    model.graph.initializer[0].name = model.graph.node[2].input[1] = "y.mul.1"
    result = check(Steps(), model, "Mul Sub Relu Add", exact=True)
    assert len(set(names_of(result))) == len(names_of(result))


def test_names_inside_bodies_are_avoided_too() -> None:
    model = graph(
        "(float[N,3] x, bool p) => (float[N,3] y, float[N,3] z) { y = Neg(x) z = If(p) <"
        ' then_branch = t () => (float[N,3] "y.mul") { "y.mul" = Relu(x) },'
        " else_branch = e () => (float[N,3] v) { v = Abs(x) }> }"
    )
    result, _ = apply_to(Steps(), model)
    check_valid(model, result)
    assert "y.mul" not in names_of(result)


def test_a_shared_constant_stays_for_its_other_reader() -> None:
    model = graph(
        "(float[N,3] x) => (float[N,3] y, float[N,3] z)"
        " { a = Add(x, c) y = Add(a, c) z = Mul(x, c) }",
        c=np.array([1, 2, 3], np.float32),
    )
    result = check(Steps(), model, "Add Mul", exact=True)
    assert "c" in [tensor.name for tensor in result.graph.initializer]


def test_a_constant_that_nothing_reads_any_more_goes() -> None:
    model = graph(
        "(float[N,3] x) => (float[N,3] y) { a = Add(x, c) y = Add(a, d) }", c=(3,), d=(3,)
    )
    result = check(Steps(), model, "Add")
    assert len(result.graph.initializer) == 1


def test_what_was_unused_before_stays() -> None:
    model = graph(
        "(float[N,3] x, float[2] spare) => (float[N,3] y)"
        " { unused = Abs(x) a = Identity(x) y = Relu(a) }",
        idle=(7,),
    )
    result = check(Steps(), model, "Abs Relu", exact=True)
    assert [tensor.name for tensor in result.graph.initializer] == ["idle"]


def test_rewrites_inside_bodies() -> None:
    model = graph(
        "(float[N,3] x, bool p) => (float[N,3] z) { z = If(p) <"
        " then_branch = t () => (float[N,3] u) { a = Identity(x) u = Relu(a) },"
        " else_branch = e () => (float[N,3] v) { b = Add(x, c) v = Add(b, c) }> }",
        c=np.array([1, 2, 3], np.float32),
    )
    result, applied = apply_to(Steps(), model)
    assert sorted(rewrite.rule for rewrite in applied.rewrites) == ["DropIdentity", "FoldShift"]
    check_valid(model, result)
    for choice in (True, False):
        check_equal(
            model,
            result,
            exact=True,
            inputs={"x": np.ones((2, 3), np.float32), "p": np.array(choice)},
        )


def test_constants_in_functions_are_nodes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.me" : 1]>
    agraph (float[N,3] x) => (float[N,3] y) { y = com.me.minus(x) }
    <domain: "com.me", opset_import: ["" : 17]> minus (a) => (r) { r = Neg(a) }"""
    model = graph(text)
    result, applied = apply_to(Steps(), model)
    assert [rewrite.rule for rewrite in applied.rewrites] == ["AddOneTwice"]
    assert [node.op_type for node in result.functions[0].node] == ["Constant", "Mul", "Sub"]
    check_valid(model, result)
    check_equal(model, result, exact=True)


def test_value_info_of_what_is_gone_goes_and_the_rest_stays() -> None:
    model = graph("(float[N,3] x) => (float[N,3] y) { a = Identity(x) b = Relu(a) y = Abs(b) }")
    for name in ("a", "b", "nowhere"):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, ["N", 3]))
    result, _ = apply_to(Steps(), model)
    assert [value.name for value in result.graph.value_info] == ["b", "nowhere"]


def test_limit_and_quarantine_select_rewrites() -> None:
    text = (
        "(float[N,3] x) => (float[N,3] y) { a = Identity(x) b = Identity(a) c = Neg(b) y = Abs(c) }"
    )
    model = Model.load(graph(text))
    first = apply(Steps(), model, limit=2)
    assert [rewrite.site for rewrite in first.rewrites] == ["a", "b"]
    again = Model.load(graph(text))
    kept = apply(Steps(), again, quarantine=frozenset({("AddOneTwice", "c")}))
    assert [rewrite.site for rewrite in kept.rewrites] == ["a", "b"]


def test_a_pass_may_use_graphsurgeon_itself() -> None:
    import onnx_graphsurgeon as gs

    @dataclass(frozen=True)
    class ByHand(Pass):
        """Put an Abs after each Relu, with graphsurgeon's classes."""

        name = "by-hand"

        def run(self, graph: Any) -> list[str]:
            done = []
            for node in list(graph.nodes):
                if node.op == "Relu":
                    middle = gs.Variable(f"{node.outputs[0].name}_relu", dtype=np.float32)
                    out = node.outputs[0]
                    node.outputs = [middle]
                    scale = gs.Constant("scale_by_hand", np.array(2, np.float32))
                    graph.nodes.append(gs.Node("Mul", "scaled", {}, [middle, scale], [out]))
                    done.append(f"scaled {node.name}")
            return done

    model = graph("(float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Abs(a) }")
    result, applied = apply_to(ByHand(), model)
    assert applied.notes == ["scaled "]
    onnx.checker.check_model(result, full_check=True)
    assert [node.op_type for node in result.graph.node] == ["Relu", "Mul", "Abs"]


class ReluFirst(Rule):
    """Relu(Flatten(x)) = Flatten(Relu(x))."""

    pattern = Op("Relu", Op("Flatten", any_("x"), shared=True))

    def rewrite(self, x: Any) -> Any:
        return Op("Flatten", Op("Relu", x))


@dataclass(frozen=True)
class MoveRelu(Pass):
    """A rule whose parts change places."""

    name = "move-relu"
    rules = (ReluFirst(),)


def test_nodes_that_change_places_keep_their_names() -> None:
    model = graph("(float[N,3,2] x) => (float[N,6] y) { [flat] f = Flatten(x) [act] y = Relu(f) }")
    result = check(MoveRelu(), model, "Relu Flatten", exact=True)
    assert [node.name for node in result.graph.node] == ["act", "flat"]


def test_the_name_of_a_node_that_stays_is_not_given_again() -> None:
    model = graph(
        "(float[N,3,2] x) => (float[N,6] y, float[N,6] z)"
        " { [flat] f = Flatten(x) [act] y = Relu(f) z = Abs(f) }"
    )
    result = check(MoveRelu(), model, "Flatten Relu Flatten Abs", exact=True)
    names = [node.name for node in result.graph.node if node.name]
    assert names[0] == "flat" and len(set(names)) == len(names)


def test_part_of_a_weight_is_read_from_where_it_lies() -> None:
    values = np.arange(4096, dtype=np.float32).reshape(64, 8, 8)
    model = graph("(float[64,8,8] x) => (float[64,8,8] y) { y = Add(x, c) }", c=values)
    loaded = Model.load(model)
    weight = loaded.graph.initializers[0].weight
    assert np.array_equal(weight.rows(slice(3, 9)), values[3:9])
    assert np.array_equal(
        weight.reshape(512, 8).rows(slice(500, 600)), values.reshape(512, 8)[500:]
    )


class Doubled(Rule):
    """Neg(Add(x, c)) = Add(x, 2·c)."""

    pattern = Op("Neg", Op("Add", any_("x"), const("c")))

    def rewrite(self, x: Any, c: Any) -> Any:
        return Op("Add", x, c.astype(np.float32) * 2)


class Turned(Rule):
    """Abs(Add(x, c[K])) = Add(x, c[1, K])."""

    pattern = Op("Abs", Op("Add", any_("x"), const("c")))

    def rewrite(self, x: Any, c: Any) -> Any:
        return Op("Add", x, c.reshape(1, -1))


@dataclass(frozen=True)
class NewConstants(Pass):
    """Rules that make constants, computed ones and the same data under another shape."""

    name = "new-constants"
    rules = (Doubled(), Turned())


def test_what_is_made_of_a_shared_constant_is_shared() -> None:
    model = graph(
        "(float[N,500] x) => (float[N,500] y, float[N,500] z, float[N,500] v, float[N,500] w)"
        "{ a = Add(x, c) y = Neg(a) b = Add(x, c) z = Neg(b)"
        "  d = Add(x, c) v = Abs(d) e = Add(x, c) w = Abs(e) }",
        c=np.arange(500, dtype=np.float32),
    )
    result, _ = apply_to(NewConstants(), model)
    shapes = sorted(list(tensor.dims) for tensor in result.graph.initializer)
    assert shapes == [[1, 500], [500]]


@pytest.mark.parametrize("part_bytes", [1 << 24, 600])
def test_constants_of_one_checksum_are_shared_only_if_they_are_equal(
    part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphpass.rewrite.building.zlib.crc32", lambda data, start=0: 0)
    monkeypatch.setattr(building, "_PART_BYTES", part_bytes)
    first = np.arange(500, dtype=np.float32)
    model = graph(
        "(float[N,500] x) => (float[N,500] y, float[N,500] z, float[N,500] w)"
        "{ a = Add(x, c) y = Neg(a) b = Add(x, d) z = Neg(b) e = Add(x, c) w = Neg(e) }",
        c=first,
        d=np.where(first == 499, -first, first),
    )
    result, _ = apply_to(NewConstants(), model)
    made = [numpy_helper.to_array(tensor)[-1] for tensor in result.graph.initializer]
    assert sorted(map(float, made)) in ([-998, 998], [-998, 998, 998])


def window_statuses(name: str, model: onnx.ModelProto) -> list[tuple[str, str]]:
    from graphpass.rewrite.registry import make
    from graphpass.validate.process.runtime import Runtime
    from graphpass.validate.window.check import check_windows

    applied = apply(make(name), Model.load(model), windows=True)
    with Runtime() as runtime:
        verdicts = check_windows([rewrite.window for rewrite in applied.rewrites], runtime)
    return [(r.rule, v.status) for r, v in zip(applied.rewrites, verdicts, strict=True)]


def test_windows_agree_on_what_computes_a_shape() -> None:
    model = graph(
        "(float[N,M] x) => (int64[1] y) {"
        " s = Shape(x) h = Slice(s, zero, one, zero) k = Squeeze(h, zero) u = Unsqueeze(k, zero)"
        " y = Neg(u) }",
        zero=np.array([0]),
        one=np.array([1]),
    )
    statuses = window_statuses("clean-up", model)
    assert statuses
    assert {status for _, status in statuses} == {"ok"}


def test_the_window_of_a_folded_chain_holds_the_whole_chain() -> None:
    model = graph(
        "(float[N,3] x) => (float[4] y, float[N,3] z) {"
        " a = Transpose<perm=[1,0]>(c) b = Slice(a, start, end) d = Reshape(b, flat)"
        " y = Cast<to=1>(d) z = Relu(x) }",
        c=np.arange(4).reshape(2, 2),
        start=np.array([0]),
        end=np.array([9]),
        flat=np.array([-1]),
    )
    statuses = window_statuses("clean-up", model)
    assert "FoldConstants" in [rule for rule, _ in statuses]
    assert {status for _, status in statuses} == {"ok"}


def test_which_zero_is_the_largest_is_left_open() -> None:
    model = graph(
        "(float[N,4,3,3] x) => (float[N,2] y) { a = Relu(x)"
        " p = ReduceMax<axes=[2,3], keepdims=0>(a) y = Gemm<transB=1>(p, W) }",
        W=(2, 4),
    )
    statuses = window_statuses("flatten-gemm-to-gap-conv", model)
    assert statuses
    assert {status for _, status in statuses} == {"ok"}
