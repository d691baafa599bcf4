"""What a run costs, counted by shapes: multiply-adds, bytes of weights and of activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from benchmarks.networks import resnet50
from graphpass.cli import commands
from graphpass.ir.cost import cost_of, growth_of, node_costs
from graphpass.report.rows import amount
from graphpass.run.optimization import optimize
from graphpass.testing import graph
from graphpass.validate.cost import natural_shapes


def counted(text: str, shapes: dict[str, tuple[int, ...]], **constants: Any) -> int:
    return cost_of(graph(text, **constants), shapes).multiply_adds


def test_resnet50_has_the_published_count() -> None:
    """4.09 G at 224x224, with the strides in the 3x3 Convs."""
    cost = cost_of(resnet50(), {"image": (1, 3, 224, 224)})
    assert cost.multiply_adds == 4_089_184_256
    assert cost.weight_bytes == pytest.approx(4 * 25.53e6, rel=1e-3)
    assert cost.uncounted == 0
    twice = cost_of(resnet50(), {"image": (2, 3, 224, 224)})
    assert twice.multiply_adds == 2 * cost.multiply_adds
    assert twice.activation_bytes == 2 * cost.activation_bytes


@pytest.mark.parametrize(
    ("text", "shapes", "constants", "expected"),
    [
        (
            "(float[N,4,H,W] x) => (float[N,6,?,?] y) {y = Conv<group=2>(x, W)}",
            {"x": (2, 4, 8, 7)},
            {"W": (6, 2, 3, 3)},
            2 * 6 * 6 * 5 * 2 * 9,
        ),
        (
            "(float[N,4,5,5] x) => (float[N,6,?,?] y) {y = ConvTranspose<strides=[2,2]>(x, W)}",
            {"x": (1, 4, 5, 5)},
            {"W": (4, 6, 3, 3)},
            4 * 25 * 6 * 9,
        ),
        (
            "(float[N,7] x) => (float[N,3] y) {y = Gemm<transB=1>(x, W)}",
            {"x": (2, 7)},
            {"W": (3, 7)},
            2 * 7 * 3,
        ),
        (
            "(float[B,5,8] q, float[B,8,5] k) => (float[B,5,5] y) {y = MatMul(q, k)}",
            {"q": (2, 5, 8), "k": (2, 8, 5)},
            {},
            2 * 5 * 5 * 8,
        ),
        (
            "(float[T,B,4] x) => (float[T,1,B,3] y) {y = LSTM<hidden_size=3>(x, W, R)}",
            {"x": (5, 2, 4)},
            {"W": (1, 12, 4), "R": (1, 12, 3)},
            5 * 2 * (12 * 4 + 12 * 3),
        ),
        ("(float[N,4] x) => (float[N,4] y) {a = Relu(x) y = Mul(a, x)}", {"x": (1, 4)}, {}, 0),
    ],
    ids=["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "none"],
)
def test_sums_of_products(
    text: str, shapes: dict[str, tuple[int, ...]], constants: dict[str, Any], expected: int
) -> None:
    assert counted(text, shapes, **constants) == expected


def test_bytes_are_those_of_each_type_and_views_write_nothing() -> None:
    model = graph(
        "(float16[N,6] x) => (float16[N,3] y) {"
        "r = Reshape(x, k) f = Flatten(r) h = MatMul(f, W) y = Relu(h)}",
        k=np.array([0, 2, 3], np.int64),
        W=np.zeros((6, 3), np.float16),
    )
    nodes = node_costs(model, {"x": (4, 6)})
    assert [node.activation_bytes for node in nodes] == [0, 0, 24, 24]
    assert [node.weight_bytes for node in nodes] == [24, 0, 36, 0]
    cost = cost_of(model, {"x": (4, 6)})
    assert (cost.weight_bytes, cost.activation_bytes) == (60, 48)


def test_weights_in_constant_nodes_are_weights() -> None:
    """PaddlePaddle's exporter writes no initializers."""
    numbers = ",".join("1" * 18)
    model = graph(
        "(float[N,6] x) => (float[N,3] y) {"
        f"W = Constant<value=float[6,3] {{{numbers}}}>() s = Constant<value_float=2.0>()"
        "b = Constant<value_floats=[1.0,2.0,3.0]>() h = MatMul(x, W) m = Mul(h, s) y = Add(m, b)}"
    )
    costs = {node.operator: node for node in node_costs(model, {"x": (4, 6)})}
    assert [costs[op].weight_bytes for op in ("MatMul", "Mul", "Add")] == [72, 4, 12]
    assert costs["Constant"].activation_bytes == 0
    cost = cost_of(model, {"x": (4, 6)})
    assert (cost.weight_bytes, cost.activation_bytes) == (88, 3 * 48)
    growth = growth_of(model, {"x": (4, 6)})
    assert (growth.made, growth.held) == (0, 88 + 96)


def test_weights_in_bodies_and_functions_are_weights() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2,3] x, bool c) => (float[2,3] y) {
            h = local.scaled(x)
            y = If (c) <then_branch = a () => (float[2,3] t) {
                w = Constant<value=float[3] {1,2,3}>() t = Mul(h, w)
            }, else_branch = b () => (float[2,3] e) { e = Neg(h) }>
        }
        <domain: "local", opset_import: ["" : 17]>
        scaled (a) => (r) {s = Constant<value_floats=[1.0,2.0,3.0]>() r = Mul(a, s)}"""
    )
    assert cost_of(model, {"x": (2, 3), "c": ()}).weight_bytes == 24


def test_what_has_no_shape_is_said_and_not_guessed() -> None:
    model = graph(
        "(float[N,25] x) => (float[?,?] y) {"
        "i = NonZero(x) t = Transpose(i) f = Cast<to=1>(t) y = MatMul(f, W)}",
        W=(2, 30),
    )
    cost = cost_of(model, {"x": (4, 25)})
    assert (cost.multiply_adds, cost.uncounted) == (0, 1)


def test_functions_are_counted_as_what_they_do() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[2,3] x, float[3,5] w) => (float[2,5] y) {y = local.twice(x, w)}
    <domain: "local", opset_import: ["" : 17]>
    twice (a, b) => (c) {d = MatMul(a, b) c = Relu(d)}"""
    assert cost_of(onnx.parser.parse_model(text), {}).multiply_adds == 30


def test_natural_sizes_are_a_batch_of_one_and_what_is_bound() -> None:
    model = graph("(float[N,3,H,W] x) => (float[N,3,H,W] y) {y = Relu(x)}")
    assert natural_shapes(model, {"H": 320}) == {"x": (1, 3, 320, 64)}


MERGED: dict[str, Any] = {
    "text": "(float[N,4,7,6] x) => (float[N,4,7,6] y) {"
    "a = Conv<pads=[1,1,1,1]>(x, W) d = Conv(x, V) y = Add(a, d)}",
    "W": (4, 4, 3, 3),
    "V": (4, 4, 1, 1),
}


@pytest.mark.parametrize("validate", [True, False])
def test_a_report_tells_the_cost_before_and_after(validate: bool) -> None:
    report = optimize(graph(**MERGED), "fast", validate=validate).report
    before, after = report.input.cost, report.output.cost
    assert before is not None and after is not None
    assert before.inputs == after.inputs == {"x": [1, 4, 7, 6]}
    assert (before.multiply_adds, after.multiply_adds) == (42 * 160, 42 * 144)
    assert (before.weight_bytes, after.weight_bytes) == (640, 576)
    assert (before.activation_bytes, after.activation_bytes) == (3 * 672, 672)
    told = report.to_dict()
    assert told["output"]["cost"]["multiply_adds"] == 42 * 144


def test_inspect_lists_the_cost_of_nodes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        graph("(float[N,4,H,W] x) => (float[N,2,H,W] y) {y = Conv(x, W)}", W=(2, 4, 1, 1)), path
    )
    run = CliRunner().invoke(commands, ["inspect", str(path), "--cost", "--bind", "H=10"])
    assert run.exit_code == 0
    assert "multiply-adds 5.12 k (5,120)" in run.output and "[1, 2, 10, 64] float32" in run.output
    one = CliRunner().invoke(commands, ["inspect", str(path), "y", "--cost"])
    assert "[1, 2, 64, 64] float32" in one.output and "weights" in one.output
    wrong = CliRunner().invoke(commands, ["inspect", str(path), "--cost", "--bind", "Z=10"])
    assert "no symbolic dimension 'Z'" in str(wrong.exception)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (4_089_184_256, "4.09 G")]
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text
