"""Passes by hand: once, as a whole or not at all; scripts for graphsurgeon as they are."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import graphpass
from graphpass import Graph, Pass, require
from graphpass.cli import main
from graphpass.errors import ModelError, UsageError
from graphpass.ir.graphsurgeon import LazyValues, SynchronizedList
from graphpass.ir.model import Model
from graphpass.ir.nodes import Constant, Variable
from graphpass.rewrite.edit import Editor
from graphpass.testing import apply_to, check_equal, check_operators, graph

from .toys import Tidy, chain, operators

TEXT = "(float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Neg(a) }"


@dataclass(frozen=True)
class Inserts(Pass):
    """Puts an Abs behind the Relu, once or in each round."""

    name = "inserts"

    def run(self, graph: Graph) -> list[str]:
        """Insert."""
        with Editor(graph) as edit:
            for node in list(graph.nodes):
                if node.op == "Relu":
                    edit.replace(node.outputs[0], edit.one("Abs", [node.outputs[0]]))
        return ["an Abs"]


@dataclass(frozen=True)
class InsertsAgain(Pass):
    """Puts an Abs behind the Relu in each round."""

    name = "inserts-again"
    repeats = True
    run = Inserts.run


def test_a_pass_by_hand_runs_once_unless_it_says_otherwise() -> None:
    result = graphpass.optimize(graph(TEXT), Inserts())
    assert operators(result.model.graph.node) == ["Abs", "Neg", "Relu"]
    again = graphpass.optimize(graph(TEXT), InsertsAgain())
    assert operators(again.model.graph.node).count("Abs") == again.report.rounds == 8


def by_hand(change: Callable[[Any], Any], *, interface: bool = False) -> Pass:
    @dataclass(frozen=True)
    class ByHand(Pass):
        """Does what it is told."""

        name = "by-hand"
        changes_interface = interface

        def run(self, graph: Graph) -> list[str]:
            change(graph)
            return []

    return ByHand()


def test_what_is_made_may_read_what_it_replaces() -> None:
    def change(scope: Graph) -> None:
        with Editor(scope) as edit:
            edit.replace(scope.outputs[0], edit.one("Abs", [scope.outputs[0]]))
            edit.replace(scope.inputs[0], edit.one("Sin", [scope.inputs[0]]))

    result, _ = apply_to(by_hand(change), graph(TEXT))
    check_operators(result, "Sin Relu Neg Abs")
    onnx.checker.check_model(result, full_check=True)
    assert result.graph.output[0].name == "y"


def test_an_edit_that_is_refused_leaves_nothing() -> None:
    model = graph(TEXT)

    def change(scope: Graph) -> None:
        with Editor(scope) as edit:
            edit.replace(scope.outputs[0], edit.one("Abs", [scope.outputs[0]]))
            require(False, "not today")

    result, applied = apply_to(by_hand(change), model)
    assert result == model and applied.refusals[0].reason == "not today"


def test_a_refusal_after_a_change_is_an_error() -> None:
    def change(scope: Graph) -> None:
        scope.nodes[0].op = "Abs"
        require(False, "not today")

    report = graphpass.optimize(graph(TEXT), by_hand(change)).report.passes[0]
    assert report.reason.startswith("it refuses after it has changed Abs ''")


def rename(scope: Graph) -> None:
    with Editor(scope) as edit:
        edit.rename(scope.inputs[0], "image")
        edit.rename(scope.outputs[0], "scores")
        edit.rename(scope.nodes[0].outputs[0], "middle")


def test_inputs_and_outputs_are_renamed_where_the_pass_says_so() -> None:
    model = graph(TEXT)
    model.graph.input[0].doc_string = "what it holds"
    report = graphpass.optimize(model, by_hand(rename))
    assert report.model == model
    assert "input 'x' is called 'image'" in report.report.passes[0].reason
    result, _ = apply_to(by_hand(rename, interface=True), model)
    assert [v.name for v in result.graph.input] == ["image"]
    assert result.graph.input[0].doc_string == "what it holds"
    assert [v.name for v in result.graph.output] == ["scores"]
    assert result.graph.node[0].output == ["middle"] == result.graph.node[1].input
    onnx.checker.check_model(result, full_check=True)


def test_outputs_come_and_go() -> None:
    def change(scope: Graph) -> None:
        with Editor(scope) as edit:
            edit.add_output(scope.nodes[0].outputs[0])

    model = graph(TEXT)
    assert "output 'a' is new" in graphpass.optimize(model, by_hand(change)).report.passes[0].reason
    more, _ = apply_to(by_hand(change, interface=True), model)
    assert [v.name for v in more.graph.output] == ["y", "a"]
    less, _ = apply_to(by_hand(lambda scope: scope.outputs.pop(0), interface=True), more)
    assert [v.name for v in less.graph.output] == ["a"]


def test_an_opset_is_imported_once() -> None:
    def change(scope: Graph) -> None:
        with Editor(scope) as edit:
            edit.import_opset("com.microsoft", 1)
            a = scope.nodes[0].outputs[0]
            edit.replace(a, edit.one("Gelu", [a], domain="com.microsoft"))

    result, _ = apply_to(by_hand(change), graph(TEXT))
    assert {o.domain: o.version for o in result.opset_import} == {"": 17, "com.microsoft": 1}
    _, applied = apply_to(by_hand(change), graph(TEXT, domains={"com.microsoft": 2}))
    assert applied.refusals[0].reason == "the model imports version 2 of com.microsoft, not 1"


def test_dead_nodes_go_in_linear_time() -> None:
    count = 20000
    steps = " ".join(f"v{i + 1} = Neg(v{i})" for i in range(count))
    model = graph(f"(float[3] v0) => (float[3] y) {{{steps} y = Relu(v{count})}}")

    def change(scope: Graph) -> None:
        with Editor(scope) as edit:
            edit.replace(scope.nodes[-1].inputs[0], edit.one("Abs", [scope.inputs[0]]))

    result, _ = apply_to(by_hand(change), model)
    check_operators(result, "Abs Relu")


# --------------------------------------------------------------------------------- transactions


def test_what_is_changed_outside_of_editing_is_an_error() -> None:
    model = Model.load(graph(TEXT))
    model.graph.nodes[0].op = "Abs"
    for use in (model.copy, model.to_proto, lambda: apply_model(model)):
        with pytest.raises(ModelError, match=r"at Abs '', outside of `with model.editing\(\)`"):
            use()


def apply_model(model: Model) -> None:
    with model.editing():
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda scope, node: scope.nodes.append(node),
        lambda scope, node: scope.nodes.clear(),
        lambda scope, node: node.inputs.clear(),
        lambda scope, node: setattr(node, "op", "Abs"),
        lambda scope, node: setattr(node.outputs[0], "name", "z"),
        lambda scope, node: setattr(scope, "name", "other"),
    ],
)
def test_a_graph_is_closed_when_the_edit_has_ended(change: Callable[[Any, Any], None]) -> None:
    model = Model.load(graph(TEXT))
    with model.editing() as scope:
        node = scope.nodes[0]
    assert node.op == "Relu" and len(scope.nodes) == 2
    with pytest.raises(ModelError, match="which has ended"):
        change(scope, node)


def test_an_edit_that_fails_changes_nothing() -> None:
    proto = graph(TEXT)
    model = Model.load(proto)
    with pytest.raises(KeyError), model.editing() as scope:
        scope.nodes.clear()
        raise KeyError
    assert model.to_proto() == proto


# -------------------------------------------------------------------------- graphsurgeon scripts

SCRIPT = '''
import numpy as np
import onnx_graphsurgeon as gs

def drop(graph):
    """Drops Identities as people do."""
    for node in [n for n in graph.nodes if n.op == "Identity"]:
        for reader in list(node.outputs[0].outputs):
            index = [t.name for t in reader.inputs].index(node.outputs[0].name)
            reader.inputs[index] = node.inputs[0]
        node.outputs.clear()
    graph.cleanup().toposort()

def wrong(graph):
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "Abs"

def behind(graph):
    output = graph.outputs[0]
    middle = gs.Variable("middle", dtype=np.float32)
    output.inputs[0].outputs = [middle]
    one = gs.Constant("one", np.ones(1, np.float32))
    graph.nodes.append(gs.Node("Mul", "scaled", inputs=[middle, one], outputs=[output]))
    return graph

def layered(graph):
    output = graph.outputs[0]
    maker = output.inputs[0]
    maker.outputs = [gs.Variable("before", dtype=np.float32)]
    graph.layer(op="Identity", name="last", inputs=[maker.outputs[0]], outputs=[output])

def anew(graph):
    return gs.import_onnx(gs.export_onnx(graph)).cleanup()

def copied(graph):
    return graph.copy()

def cut(graph):
    graph.outputs = [graph.tensors()["a1"]]
    graph.outputs[0].dtype = np.float32
    graph.cleanup().toposort()

def raises(graph):
    graph.nodes.clear()
    raise KeyError("x")
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "my_script.py"
    path.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("drop", "Add Relu Add Relu"),
        ("behind", "Add Identity Relu Add Identity Relu Mul"),
        ("layered", "Add Identity Relu Add Identity Relu Identity"),
        ("anew", "Add Identity Relu Add Identity Relu"),
        ("copied", "Add Identity Relu Add Identity Relu"),
    ],
)
def test_a_script_is_a_pass_as_it_is(script: Path, name: str, after: str) -> None:
    model = chain(2)
    model.metadata_props.add(key="kept", value="yes")
    result = graphpass.optimize(model, f"{script}:{name}")
    report = result.report.passes[0]
    assert report.name == f"{script}:{name}" and not report.reason, report.reason
    check_operators(result.model, after)
    check_equal(model, result.model)
    assert result.model.metadata_props[0].value == "yes"


def test_a_script_is_validated_like_any_other_pass(script: Path) -> None:
    model = chain(2)
    for name, reason in (
        ("wrong", "output 'y' differs"),
        ("cut", "output 'y' is gone"),
        ("raises", "KeyError: 'x'"),
    ):
        result = graphpass.optimize(model, f"{script}:{name}")
        assert reason in result.report.passes[0].reason
        assert result.model == model
    cut = graphpass.optimize(model, f"{script}:cut{{interface=true}}")
    assert [value.name for value in cut.model.graph.output] == ["a1"]


def test_functions_are_passes_of_the_api() -> None:
    def negate_twice(scope: gs.Graph) -> None:
        for tensor in list(scope.outputs):
            inner, outer = gs.Variable("n1", np.float32), gs.Variable("n2", np.float32)
            tensor.inputs[0].outputs = [inner]
            scope.nodes.append(gs.Node("Neg", inputs=[inner], outputs=[outer]))
            scope.nodes.append(gs.Node("Neg", inputs=[outer], outputs=[tensor]))

    result = graphpass.optimize(chain(1), [Tidy(), negate_twice])
    assert [entry.name for entry in result.report.passes] == ["tidy", "negate_twice"]
    assert operators(result.model.graph.node) == ["Add", "Neg", "Neg", "Relu"]
    assert graphpass.optimize(chain(1), negate_twice).changed


def test_a_script_that_is_not_there_is_one_sentence(script: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0", encoding="utf-8")
    for text, reason in (
        (f"{script}:missing", "has no function or pass 'missing'"),
        (f"{tmp_path}/no.py:f", "there is no such file"),
        (f"{broken}:f", "cannot be loaded: .*ZeroDivisionError"),
        (f"{script}:drop{{limit=3}}", "has no option but interface=true"),
    ):
        with pytest.raises(UsageError, match=reason):
            graphpass.optimize(chain(1), text)


def test_a_script_from_the_command_line(script: Path, tmp_path: Path) -> None:
    onnx.save(chain(2), tmp_path / "in.onnx")
    arguments = ["optimize", str(tmp_path / "in.onnx"), "-q", "-o", str(tmp_path / "out.onnx")]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--passes", f"{script}:drop", "--no-latency"])
    assert left.value.code == 0
    check_operators(onnx.load(tmp_path / "out.onnx"), "Add Relu Add Relu")


def test_what_of_graphsurgeon_is_leaned_on_is_there() -> None:
    """What is told in `graphpass.ir.graphsurgeon`."""
    plain = gs.Variable("x", np.float32)
    node = gs.Node("Relu", "r", {"a": 1}, [plain], [gs.Variable("y")])
    assert node.__dict__["attrs"] == {"a": 1} and isinstance(node.inputs, SynchronizedList)
    assert {"parent_obj", "field_name"} <= set(vars(node.inputs))
    assert plain.outputs == [node] and "name" in vars(plain)
    held = gs.Constant("c", np.ones(2))
    assert isinstance(held._values, np.ndarray) and hasattr(LazyValues, "load")
    assert issubclass(Constant, gs.Constant) and issubclass(Variable, gs.Variable)
    assert hasattr(gs.Node, "AttributeRef")
