"""Models of two meanings, or without end: refused when they are read, by name."""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import pytest
from onnx import helper

from graphpass.cli import run
from graphpass.errors import ModelError
from graphpass.ir import admission
from graphpass.ir.admission import require_admissible
from graphpass.ir.model import Model
from graphpass.rewrite.driver import apply
from graphpass.rewrite.registry import make
from graphpass.testing import graph

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]


def plain() -> onnx.ModelProto:
    return graph("(float[2] x) => (float[2] y) { t = Relu(x) y = Add(t, w) }", w=(2,))


def nested(depth: int, width: int, *, last: str = "Relu") -> onnx.ModelProto:
    """Return a model of functions each of which calls the next `width` times."""
    made = []
    for level in range(depth + 1):
        op, domain = (
            (f"F{level + 1}", "f") if level < depth else (last, "f" if last != "Relu" else "")
        )
        names = ["x", *(f"t{i}" for i in range(width - 1)), "y"]
        nodes = [
            helper.make_node(op, [names[i]], [names[i + 1]], domain=domain) for i in range(width)
        ]
        made.append(helper.make_function("f", f"F{level}", ["x"], ["y"], nodes, OPSETS))
    values = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    calls = [helper.make_node("F0", ["x"], ["y"], domain="f")]
    main = helper.make_graph(calls, "g", values[:1], values[1:])
    return helper.make_model(main, functions=made, opset_imports=OPSETS, ir_version=8)


def twice_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def twice_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def twice_made(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "t"


def made_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].output[0] = "x"


def made_initializer(model: onnx.ModelProto) -> None:
    model.graph.node[0].output[0] = "w"


def twice_attribute(model: onnx.ModelProto) -> None:
    for value in (0, 1):
        model.graph.node[0].attribute.append(helper.make_attribute("axis", value))


def new_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 2**40


def no_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = -3


def huge_opset(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="other", version=2**40)


def segment(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.begin = 1


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def unknown_element_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = 99


def reference(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="alpha", type=1, ref_attr_name="beta")


def endless(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("axes", [0] * (1 << 21)))


DAMAGES = {
    endless: "has an attribute of more than 1048576 numbers",
    unknown_type: "tensor 'w' is of type 99",
    unknown_element_type: "'y' is of element type 99",
    reference: "from the attribute 'beta' of a function",
    twice_input: "graph input 'x' is there twice",
    twice_initializer: "initializer 'w' is there twice",
    twice_made: "makes 't', by another node as well",
    made_input: "makes 'x', though it is there already",
    made_initializer: "makes 'w', though it is there already",
    twice_attribute: "has the attribute 'axis' twice",
    new_ir: "is of IR version 1099511627776",
    no_opset: "there is no opset -3",
    huge_opset: "of domain 'other'",
    segment: "tensor 'w' is a segment",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_means_two_things_is_refused(damage: object, tmp_path: Path) -> None:
    model = plain()
    damage(model)  # type: ignore[operator]
    with pytest.raises(ModelError, match=DAMAGES[damage]):  # type: ignore[index]
        Model.load(model)
    onnx.save(model, tmp_path / "m.onnx")
    for command in ("optimize", "inspect", "convolutionalize"):
        assert run([command, str(tmp_path / "m.onnx")]) == 3


def test_a_name_twice_in_a_body_is_refused_and_in_two_bodies_is_not() -> None:
    model = graph("""(bool c, float[2] x) => (float[2] y) {
        y = If(c) <then_branch = a () => (float[2] t) { t = Relu(x) },
                   else_branch = b () => (float[2] t) { t = Neg(x) }>
    }""")
    require_admissible(model)
    body = model.graph.node[0].attribute[0].g
    body.node.append(body.node[0])
    with pytest.raises(ModelError, match="makes 't', by another node as well"):
        require_admissible(model)


def test_an_initializer_may_be_an_input_and_outputs_may_be_left_out() -> None:
    model = graph("(float[4] x) => (float[2] y) { y, z = Split(x) }")
    model.graph.node[0].output[1] = ""
    model.graph.input.add().CopyFrom(helper.make_tensor_value_info("w", 1, [2]))
    model.graph.initializer.append(helper.make_tensor("w", 1, [2], [1, 2]))
    require_admissible(model)


@pytest.mark.parametrize("last", ["F0", "F2", "F3"])
def test_a_function_that_calls_itself_is_refused(last: str) -> None:
    with pytest.raises(ModelError, match="calls itself"):
        Model.load(nested(3, 1, last=last))


def test_a_function_that_is_there_twice_is_refused() -> None:
    model = nested(1, 1)
    model.functions.append(model.functions[0])
    with pytest.raises(ModelError, match="function 'f::F0' is there twice"):
        Model.load(model)


@pytest.mark.parametrize(("depth", "width"), [(30, 2), (14, 2), (2, 700), (150, 3)])
def test_functions_that_stand_for_too_many_nodes_are_refused_at_once(
    depth: int, width: int
) -> None:
    start = time.process_time()
    with pytest.raises(ModelError, match="stand for"):
        Model.load(nested(depth, width))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(("depth", "width"), [(0, 1), (8, 2), (2, 20), (150, 1)])
def test_ordinary_functions_are_admitted(depth: int, width: int) -> None:
    require_admissible(nested(depth, width))


def test_functions_deeper_than_anybody_writes_are_refused() -> None:
    with pytest.raises(ModelError, match="200 deep"):
        Model.load(nested(300, 1))


def test_an_attribute_of_many_numbers_is_not_looked_through_one_by_one() -> None:
    model = plain()
    endless(model)
    start = time.process_time()
    with pytest.raises(ModelError, match="more than 1048576"):
        Model.load(model.SerializeToString())
    assert time.process_time() - start < 5


@pytest.mark.parametrize("depth", [4, 24])
def test_bodies_in_bodies_are_looked_at_once(depth: int) -> None:
    values = [helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    body = helper.make_graph([helper.make_node("Not", ["c"], ["t"])], "b", [], [])
    body.output.append(helper.make_tensor_value_info("t", onnx.TensorProto.BOOL, []))
    for level in range(depth):
        other = helper.make_graph([helper.make_node("Not", ["c"], [f"e{level}"])], "e", [], [])
        other.output.append(helper.make_tensor_value_info(f"e{level}", 9, []))
        name = f"t{level}"
        branch = helper.make_node("If", ["c"], [name], then_branch=body, else_branch=other)
        body = helper.make_graph([branch], "b", [], [])
        body.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []))
    read = helper.make_node("Not", ["c"], ["y"])
    main = helper.make_graph([*body.node, read], "g", values, [])
    main.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, []))
    model = helper.make_model(main, opset_imports=OPSETS[:1], ir_version=8)
    start = time.process_time()
    applied = apply(make("clean-up"), Model.load(model))
    assert [rewrite.rule for rewrite in applied.rewrites] == ["UnreadNode"]
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("what", "few", "many"),
    [
        ("nodes", 1_000, 2_200),
        ("initializers", 1_000, 2_200),
        ("inputs", 500, 1_400),
        ("value types", 2_000, 4_800),
        ("sizes of a value", 1_000, 30_000),
        ("sizes of a tensor", 1_000, 30_000),
        ("numbers", 20_000, 250_000),
        ("texts", 10_000, 100_000),
        ("attributes", 2_000, 6_000),
        ("notes", 5_000, 32_000),
        ("bytes of text", 500_000, 900_000),
        ("bytes of weights", 900_000, 0),
    ],
)
def test_what_does_not_fit_into_memory_is_refused(
    what: str, few: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth of everything: `few` are what real models have, `many` take over a gibibyte."""
    monkeypatch.setattr(admission, "_MOST_BYTES", admission._MOST_BYTES // 100)
    for count in filter(None, (few, many)):
        model = plain()
        graph = model.graph
        if what == "nodes":
            graph.node.extend([onnx.NodeProto(op_type="Relu", input=["x"])] * count)
        elif what == "initializers":
            graph.initializer.extend(
                onnx.TensorProto(name=f"{i}", data_type=1) for i in range(count)
            )
        elif what == "inputs":
            graph.input.extend(helper.make_tensor_value_info(f"i{i}", 1, [2]) for i in range(count))
        elif what == "value types":
            graph.value_info.extend([helper.make_tensor_value_info("v", 1, [2])] * count)
        elif what == "sizes of a value":
            graph.value_info.append(helper.make_tensor_value_info("v", 1, [1] * count))
        elif what == "sizes of a tensor":
            graph.initializer[0].dims.extend([1] * count)
        elif what in ("numbers", "texts"):
            value = [1] * count if what == "numbers" else [b"t"] * count
            node = helper.make_node("Forest", ["x"], ["f"], domain="ai.onnx.ml", v=value)
            graph.node.append(node)
        elif what == "attributes":
            graph.node[0].attribute.extend(
                onnx.AttributeProto(name=f"{i}", type=onnx.AttributeProto.INT) for i in range(count)
            )
        elif what == "notes":
            model.metadata_props.extend([onnx.StringStringEntryProto(key="k", value="v")] * count)
        elif what == "bytes of text":
            graph.doc_string = "t" * count
        else:
            graph.initializer[0].raw_data = b"w" * count
        if count == few:
            require_admissible(model)
        else:
            with pytest.raises(
                ModelError, match=r"takes about \d+ MiB of memory, more than the 9 MiB"
            ):
                require_admissible(model)
