"""A few bytes that stand for gigabytes: one sentence, and no gigabytes."""

from __future__ import annotations

import resource
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphpass import optimize
from graphpass.cli import run
from graphpass.dense.convolutionalize import convolutionalize
from graphpass.errors import ModelError, RuntimeUnavailableError
from graphpass.ir.cost import growth_of
from graphpass.testing import graph, operators
from graphpass.validate.growth import GrowthError, limits_unasked
from graphpass.validate.process.runtime import Limits
from tests.mutants import SEEDS, function_laughs

SIZE = 7_000_000  # 56 MiB of int64: each value alone is small enough


def bomb(op: str, count: int, kind: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a model whose `count` large constants come down to one number each."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    model = graph("(float[1] x) => (float[1] y) { y = Add(x, total) }")
    nodes = []
    for index in range(count):
        value = numpy_helper.from_array(np.array([index], dtype))
        if op == "ConstantOfShape":
            node = onnx.helper.make_node(op, ["size"], [f"c{index}"], value=value)
        else:
            value.name = f"k{index}"
            model.graph.initializer.append(value)
            node = onnx.helper.make_node(op, [value.name, "size"], [f"c{index}"])
        peak = onnx.helper.make_node("ReduceMax", [f"c{index}"], [f"m{index}"], keepdims=1)
        nodes += [node, peak]
    nodes.append(onnx.helper.make_node("Max", [f"m{i}" for i in range(count)], ["most"]))
    nodes.append(onnx.helper.make_node("Cast", ["most"], ["total"], to=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([SIZE]), "size"))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile"])
def test_constants_that_are_large_together_are_not_run(op: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"it makes \d+ MiB out of the \d+ bytes"):
        optimize(bomb(op, 40))


def test_a_memory_limit_lets_it_run() -> None:
    result = optimize(bomb("Expand", 20), memory_limit_mib=1024, latency=False)
    assert result.report.validated


@pytest.mark.parametrize("kind", [onnx.TensorProto.INT64, onnx.TensorProto.FLOAT16])
def test_constants_that_are_large_together_are_not_folded(kind: int) -> None:
    few = optimize(bomb("Expand", 2, kind), validate=False)
    assert not {"Expand", "ReduceMax"} & set(operators(few.model).split())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = optimize(bomb("Expand", 40, kind), validate=False)
    assert operators(many.model).count("Expand") == 40
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200 << 10
    said = [refusal.reason for step in many.report.passes for refusal in step.refusals]
    assert any("would take 2136 MiB to compute" in reason for reason in said), said


def test_a_chain_of_constants_is_not_kept_in_memory() -> None:
    model = graph("(float[1] x) => (float[1] y) { c0 = Expand(one, size) y = Add(x, total) }")
    chain = [onnx.helper.make_node("Add", [f"c{i}", "c0"], [f"c{i + 1}"]) for i in range(150)]
    chain.append(onnx.helper.make_node("ReduceMax", ["c150"], ["most"], keepdims=1))
    chain.append(onnx.helper.make_node("Cast", ["most"], ["total"], to=1))
    last = model.graph.node.pop()
    model.graph.node.extend([*chain, last])
    for name, value in (("one", 1), ("size", SIZE)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimize(model, validate=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200 << 10


@pytest.mark.parametrize(
    "text",
    [
        "{ y = Expand(x, wide) }",
        "{ y = Tile(x, times) }",
        "{ y = Pad(x, pads) }",
        "{ w = Conv<pads = [20000,20000,20000,20000]>(x, k) y = Relu(w) }",
        "{ r = Range(zero, far, one) s = ReduceSum(r) y = Add(x, s) }",
    ],
)
def test_what_inputs_grow_into_counts_as_well(text: str) -> None:
    model = graph(f"(float[1,1,2,2] x) => (float[a,b,c,d] y) {text}", k=(1, 1, 3, 3))
    for name, value in (
        ("wide", [1, 1, 1 << 14, 1 << 14]),
        ("times", [1, 1, 1 << 14, 1 << 14]),
        ("pads", [0, 0, 1 << 14, 1 << 14, 0, 0, 0, 0]),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    for name, number in (("zero", 0.0), ("far", 3e8), ("one", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(number), name))
    if "wide" in text:
        model.graph.input[0].CopyFrom(
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 1, 1])
        )
    with pytest.raises(GrowthError):
        limits_unasked(model, Limits())


@pytest.mark.parametrize("count", [9_000, 11_000])
@pytest.mark.parametrize("side", ["input", "output"])
def test_inputs_without_end_are_not_fed(side: str, count: int) -> None:
    model = graph("(float[1] x) => (float[1] y) { y = Relu(x) }")
    more = [onnx.helper.make_tensor_value_info(f"i{i}", 1, [1]) for i in range(count)]
    getattr(model.graph, side).extend(more)
    if count < 10_000:
        limits_unasked(model, Limits())
    else:
        with pytest.raises(GrowthError, match="it has 11002 inputs and outputs, more than"):
            limits_unasked(model, Limits())


def test_honest_growth_is_no_matter() -> None:
    model = graph(
        """(float[1,8,2048,64] q) => (float[1,8,2048,64] y) {
            k = Transpose<perm = [0,1,3,2]>(q) s = MatMul(q, k)
            ones = ConstantOfShape(size) mask = Trilu(ones) m = Add(s, mask)
            p = Softmax(m) y = MatMul(p, q) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([2048, 2048]), "size"))
    limits_unasked(model, Limits())
    growth = growth_of(model, {})
    assert growth.made == 2 * 4 * 2048 * 2048 and growth.held == 4 * 8 * 2048 * 64 + 16


def test_sizes_whose_product_is_no_number_of_bytes() -> None:
    model = graph("(float[1] x) => (float[a,b,c] y) { y = Expand(x, wide) }")
    wide = numpy_helper.from_array(np.array([1 << 40, 1 << 40, 1 << 40]), "wide")
    model.graph.initializer.append(wide)
    with pytest.raises(GrowthError):
        limits_unasked(model, Limits())


def test_a_candidate_is_a_stranger_as_well(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(bomb("Expand", 1), good)
    onnx.save(bomb("Expand", 40), bad)
    assert run(["compare", str(good), str(bad)]) == 4
    assert run(["compare", str(bad), str(good)]) == 4


def test_a_page_of_two_models_draws_none_without_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    model = SEEDS[3]()
    onnx.save(model, good)
    while len(model.functions) < 30:
        function_laughs(model, Random(0))
    onnx.save(model, bad)
    for pair in ((good, bad), (bad, good)):
        page = tmp_path / "page.html"
        assert run(["diff", *map(str, pair), "-o", str(page)]) == 3
        assert f"{bad}: its functions call each other so often" in capsys.readouterr().err
        assert not page.exists()


def test_what_is_not_valid_is_no_bug_of_any_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    model = graph("(float[2,3] x) => (float[2,4] y) { y = Gemm(x, w) }", w=(3, 4))
    del model.graph.node[0].output[:]
    onnx.save(model, path)
    for command in (["check", str(path), "--target", "tensorrt"], ["inspect", str(path), "--cost"]):
        assert run(command) in (0, 1, 3), command
        assert "bug" not in capsys.readouterr().err


# -------------------------------------------------------------------------- score maps

HEAD = "p = GlobalAveragePool(a) q = Flatten(p) y = Gemm<transB = 1>(q, g, h)"


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("Conv<pads = [5000,5000,5000,5000]>(x, w)", "the network is not run: it makes"),
        ("Conv<pads = [99999999,1,99999999,1]>(x, w)", "windows of 3 cells along one axis"),
        ("Conv<strides = [3000,3000]>(x, w)", "too many to check anything with"),
        ("Conv<strides = [4611686018427387904,1]>(x, w)", "more than can be followed"),
    ],
)
def test_windows_without_end_are_refused(first: str, said: str) -> None:
    text = f"(float[1,3,8,8] x) => (float[1,5] y) {{ a = {first} {HEAD} }}"
    model = graph(text, w=(4, 3, 3, 3), g=(5, 4), h=(5,))
    with pytest.raises((ModelError, RuntimeUnavailableError), match=said):
        convolutionalize(model)


def test_an_image_without_end_is_refused() -> None:
    text = f"(float[1,3,9000000,8] x) => (float[1,5] y) {{ a = Conv(x, w) {HEAD} }}"
    model = graph(text, w=(4, 3, 3, 3), g=(5, 4), h=(5,))
    with pytest.raises(ModelError, match="'x' is 9000000 pixels long, more than can be followed"):
        convolutionalize(model)
