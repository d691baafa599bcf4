from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from graphpass.validate import check_structure

from .models import parse

TEXT = "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { y = Mul (x, w) }"


def model(text: str = TEXT, **extra: int) -> onnx.ModelProto:
    return parse(text, **extra)


def test_a_model_is_like_itself() -> None:
    assert check_structure(model(), model()) == []


def test_other_nodes_are_no_matter() -> None:
    other = TEXT.replace("y = Mul (x, w)", "y = Mul (w, x)")
    assert check_structure(model(), model(other)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("x", "z", "input 'x' is gone"),
        ("y", "z", "output 'y' is gone"),
        ("float[N,3] x", "float[M,3] x", "input 'x' was [N, 3] float32 and is [M, 3] float32"),
        ("float[N,3] x", "float[1,3] x", "input 'x' was [N, 3] float32 and is [1, 3] float32"),
        ("float[N,3] x", "float[?,3] x", "input 'x' was [N, 3] float32 and is [?, 3] float32"),
        ("float[N,3] y", "float[] y", "output 'y' was [N, 3] float32 and is float32"),
    ],
)
def test_changes_of_the_interface_are_named(old: str, new: str, problem: str) -> None:
    text = TEXT.replace(old, new)
    assert check_structure(model(), model(text))[0] == problem
    assert problem not in check_structure(model(), model(text), interface_may_change=True)


def test_the_dtype_of_an_output_is_part_of_the_interface() -> None:
    before = model("g (float[3] x) => (float[3] y) { y = Cast <to=1> (x) }")
    after = model("g (float[3] x) => (double[3] y) { y = Cast <to=11> (x) }")
    assert check_structure(before, after) == ["output 'y' was [3] float32 and is [3] float64"]


def test_the_order_of_inputs_is_part_of_the_interface() -> None:
    before = model("g (float[3] a, float[3] b) => (float[3] y) { y = Add (a, b) }")
    after = model("g (float[3] b, float[3] a) => (float[3] y) { y = Add (a, b) }")
    assert check_structure(before, after) == ["the inputs were 'a', 'b' and are 'b', 'a'"]


def test_a_default_that_is_gone_is_named() -> None:
    text = "g (float[3] x, float[3] w) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Mul (x, w) }"
    after = model(text)
    del after.graph.initializer[:]
    assert check_structure(model(text), after) == ["default of input 'w' is gone"]


def test_opsets_and_metadata_are_kept() -> None:
    before = model()
    before.metadata_props.add(key="author", value="someone")
    before.metadata_props.add(key="date", value="today")
    after = model(ir_version=8, opset=18)
    after.metadata_props.add(key="date", value="tomorrow")
    after.opset_import.add(domain="ai.onnx.ml", version=3)
    after.producer_name = "graphpass"
    assert check_structure(before, after) == [
        "opset 'ai.onnx.ml' is new",
        "opset 'ai.onnx' was 17 and is 18",
        "ir_version was 9 and is 8",
        "producer_name was '' and is 'graphpass'",
        "metadata of the model 'author' is gone",
        "metadata of the model 'date' was 'today' and is 'tomorrow'",
    ]


FUNCTION = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
g (float[3] x) => (float[3] y) { y = local.twice (x) }
<domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, a) }
"""


def test_functions_may_go_unless_they_are_called() -> None:
    before = onnx.parser.parse_model(FUNCTION)
    uncalled = onnx.parser.parse_model(FUNCTION.replace("local.twice (x)", "Add (x, x)"))
    del uncalled.functions[:]
    assert check_structure(before, uncalled) == []
    called = onnx.parser.parse_model(FUNCTION)
    del called.functions[:]
    assert "function 'local::twice' is called but no longer there" in check_structure(
        before, called
    )
    other = onnx.parser.parse_model(FUNCTION.replace("(a) => (b)", "(a, c) => (b)"))
    assert "function 'local::twice' has another signature" in check_structure(before, other)


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        ("y = Mul (x, q)", "Nodes in a graph must be topologically sorted"),
        ("y = Nonsense (x, w)", "No Op registered for Nonsense"),
        ("y = Mul (x)", "has input size 1 not in range"),
        ("y = Mul <axis = 1> (x, w)", "Unrecognized attribute: axis"),
        ("q = Mul (x, w) y = Flatten <axis = 7> (q)", "Invalid value(7) for attribute 'axis'"),
        ("s = Shape (x) y = MatMul (x, w2) w2 = Reshape (w, s)", "topologically sorted"),
    ],
)
def test_an_invalid_model_is_told(new: str, problem: str) -> None:
    [found] = check_structure(model(), model(TEXT.replace("y = Mul (x, w)", new)))
    assert found.startswith("the model is not valid ONNX: ")
    assert problem in found and "\n" not in found


def external(name: str, *dims: int) -> TensorProto:
    tensor = TensorProto(name=name, dims=dims, data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="no/such/file")
    return tensor


def test_external_data_is_not_looked_for_but_its_shape_counts() -> None:
    before = model("g (float[N,4] x) => (float[N,5] y) { y = MatMul (x, w) }")
    before.graph.initializer.append(external("w", 4, 5))
    assert check_structure(before, before) == []
    after = model("g (float[N,4] x) => (float[N,5] y) { y = MatMul (x, w) }")
    after.graph.initializer.append(external("w", 3, 5))
    [found] = check_structure(before, after)
    assert "Incompatible dimensions" in found


def test_external_data_in_attributes_and_subgraphs_is_not_looked_for() -> None:
    text = "g (float[4] x, bool c) => (float[4] y) { }"
    node = helper.make_node("Constant", [], ["w"], value=external("w", 4))
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "v"], ["r"])],
        "branch",
        [],
        [helper.make_tensor_value_info("r", 1, [4])],
        [external("v", 4)],
    )
    before = model(text)
    before.graph.node.extend(
        [node, helper.make_node("If", ["c"], ["q"], then_branch=branch, else_branch=branch)]
    )
    before.graph.node.append(helper.make_node("Add", ["q", "w"], ["y"]))
    assert check_structure(before, before) == []


def test_what_was_invalid_before_is_not_held_against_the_candidate() -> None:
    text = TEXT.replace("y = Mul", "z = Nonsense (x) y = Mul")
    assert check_structure(model(text), model(text)) == []
    assert check_structure(model(text), model(text.replace("Mul (x, w)", "Mul (w, x)"))) == []
    [found] = check_structure(model(text), model(text.replace("Mul (x, w)", "Mul (x)")))
    assert "(Mul) is not valid ONNX" in found


def test_large_weights_inside_bodies_keep_their_shapes_for_inference() -> None:
    from graphpass.ir.model import Model
    from graphpass.rewrite.registry import pipeline
    from graphpass.testing import apply_to, graph

    model = graph(
        "(float[N,64] x, bool p) => (float[N,32] y) { y = If(p) <"
        " then_branch = t () => (float[N,32] a) { a = Gemm<transB=1>(x, W) },"
        " else_branch = e () => (float[N,32] b) { b = Gemm<transB=1>(x, V) }> }",
        W=(32, 64),
        V=(32, 64),
    )
    after, applied = apply_to(pipeline("default"), model)
    assert [rewrite.rule for rewrite in applied.rewrites] == ["DenseOnRows"] * 2
    assert check_structure(Model.load(model).proto, Model.load(after).proto) == []


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (lambda m: m, "the model"),
        (lambda m: m.graph, "the graph"),
        (lambda m: m.graph.input[0], "input 'x'"),
        (lambda m: m.graph.output[0], "output 'y'"),
    ],
)
@pytest.mark.parametrize("interface_may_change", [False, True])
def test_descriptions_and_metadata_are_kept(
    where: Callable[[onnx.ModelProto], Any], what: str, interface_may_change: bool
) -> None:
    before = model()
    where(before).doc_string = "d" * 200
    where(before).metadata_props.add(key="k", value="v")
    problems = check_structure(before, model(), interface_may_change=interface_may_change)
    assert problems[0].startswith(f"the doc_string of {what} was 'ddd") and len(problems[0]) < 200
    assert problems[1] == f"metadata of {what} 'k' is gone"


def test_the_name_of_the_graph_is_kept() -> None:
    after = model()
    after.graph.name = "other"
    assert check_structure(model(), after) == ["the name of the graph was 'g' and is 'other'"]
