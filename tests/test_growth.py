"""Work grows with the model, not faster: counted in calls, which are the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphpass.rewrite import registry
from graphpass.run import optimization

_SMALL, _LARGE = 200, 800


def made(nodes: list[onnx.NodeProto], *, inputs: tuple[str, ...] = (), **weights: Any) -> bytes:
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3])]
    values += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 3]) for name in inputs]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 3])
    graph = helper.make_graph(nodes, "g", values, [output], held)
    opsets = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opsets).SerializeToString()
    return content


def ones() -> Any:
    return np.ones((3, 3), np.float32)


def in_a_row(count: int, *operators: tuple[str, dict[str, Any]]) -> list[onnx.NodeProto]:
    nodes = []
    for index in range(count):
        operator, attributes = operators[index % len(operators)]
        nodes.append(helper.make_node(operator, [f"v{index}"], [f"v{index + 1}"], **attributes))
    nodes[0].input[0] = "x"
    return [*nodes, helper.make_node("Abs", [f"v{count}"], ["y"])]


def chain(count: int) -> bytes:
    return made(in_a_row(count, ("Relu", {}), ("Identity", {}), ("Neg", {})))


def casts(count: int) -> bytes:
    return made(in_a_row(count, ("Cast", {"to": 7}), ("Cast", {"to": 1})))


def layered(count: int) -> bytes:
    width = 20
    nodes = [helper.make_node("Relu", ["x"], [f"v0.{index}"]) for index in range(width)]
    for layer in range(1, count // width):
        for index in range(width):
            read = [f"v{layer - 1}.{index}", f"v{layer - 1}.{(7 * index + layer) % width}"]
            operator = ("Add", "Mul", "Identity")[index % 3]
            read = read[:1] if operator == "Identity" else read
            nodes.append(helper.make_node(operator, read, [f"v{layer}.{index}"]))
    last = [f"v{count // width - 1}.{index}" for index in range(width)]
    return made([*nodes, helper.make_node("Sum", last, ["y"])])


def wide(count: int) -> bytes:
    """One weight that all read, every other of them to no effect."""
    nodes = [helper.make_node(("Add", "Mul")[i % 2], ["x", "w"], [f"v{i}"]) for i in range(count)]
    return made([*nodes, helper.make_node("Sum", [f"v{i}" for i in range(count)], ["y"])], w=ones())


def unread(count: int) -> bytes:
    nodes = [helper.make_node("Add", ["x", "w"], [f"v{index}"]) for index in range(count)]
    return made([*nodes, helper.make_node("Add", ["x", "w"], ["y"])], w=ones())


def constants(count: int) -> bytes:
    nodes = []
    for index in range(count):
        value = numpy_helper.from_array(index * ones())
        nodes.append(helper.make_node("Constant", [], [f"k{index}"], value=value))
        nodes.append(helper.make_node("Add", [f"v{index}", f"k{index}"], [f"v{index + 1}"]))
    nodes[1].input[0] = "x"
    return made([*nodes, helper.make_node("Abs", [f"v{count}"], ["y"])])


def branches(count: int) -> bytes:
    def branch(operator: str, index: int) -> onnx.GraphProto:
        name = f"{operator}{index}"
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 3])
        return helper.make_graph(
            [helper.make_node(operator, ["x", "w"], [name])], name, [], [output]
        )

    nodes = [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))]
    for index in range(count):
        both = {"then_branch": branch("Add", index), "else_branch": branch("Sub", index)}
        nodes.append(helper.make_node("If", ["c"], [f"v{index}"], **both))
    return made([*nodes, helper.make_node("Sum", [f"v{i}" for i in range(count)], ["y"])], w=ones())


def overridable(count: int) -> bytes:
    nodes = []
    for index in range(count):
        nodes.append(helper.make_node("MatMul", [f"v{index}", f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Mul", [f"m{index}", f"s{index}"], [f"v{index + 1}"]))
    nodes[0].input[0] = "x"
    names = [f"{kind}{index}" for index in range(count) for kind in "ws"]
    last = helper.make_node("Abs", [f"v{count}"], ["y"])
    return made([*nodes, last], inputs=tuple(names), **{name: ones() for name in names})


def calls(path: Path) -> int:
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    sys.setprofile(counted)
    try:
        with optimization.optimize(path, validate=False) as result:
            result.save(path.with_name("out.onnx"))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "make", [chain, casts, layered, wide, unread, constants, branches, overridable]
)
def test_calls_grow_with_the_model(make: Callable[[int], bytes], tmp_path: Path) -> None:
    registry.passes_of("default")  # imports are no part of it
    path = tmp_path / "m.onnx"
    counts = []
    for size in (_SMALL, _SMALL, _LARGE):
        path.write_bytes(make(size))
        counts.append(calls(path))
    _, small, large = counts
    assert large < 1.3 * (_LARGE / _SMALL) * small


@pytest.mark.parametrize("make", [chain, casts])
def test_a_long_chain_takes_no_recursion(make: Callable[[int], bytes], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(make(3000))
    with optimization.optimize(path, validate=False) as result:
        assert not result.report.faulty


def test_weights_that_are_written_in_a_few_bytes_stay_so(tmp_path: Path) -> None:
    filled = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["w"], value=filled),
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "f", "f", "f", "f"], ["y"], name="bn"),
    ]
    weights: dict[str, Any] = {"s": np.array([64, 64, 3, 3]), "f": np.full(64, 0.5, np.float32)}
    content = made(nodes, **weights)
    model = onnx.ModelProto.FromString(content)
    for value, sizes in (
        (model.graph.input[0], (1, 64, 8, 8)),
        (model.graph.output[0], (1, 64, 6, 6)),
    ):
        del value.type.tensor_type.shape.dim[:]
        for size in sizes:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    with optimization.optimize(model, validate=False) as result:
        written = result.save(tmp_path / "out.onnx")
    assert written.model.size_bytes <= len(content) + 100
    reasons = [refusal.reason for entry in result.report.passes for refusal in entry.refusals]
    assert any("would make the file 147" in reason for reason in reasons)
