"""Shape inference is kept from what would take all memory."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import make_tensor_value_info

from graphpass.ir.inference import infer_shapes
from graphpass.testing import graph


@pytest.mark.parametrize("kind", ["int64", "float"])
@pytest.mark.parametrize("levels", [23, 40])
def test_vectors_that_double_are_not_followed(levels: int, kind: str) -> None:
    body = "\n".join(f"k{i + 1} = Concat<axis = 0>(k{i}, k{i})" for i in range(levels))
    first = f"k0 = Constant<value = {kind}[1] {{1}}>()"
    model = graph(f"(float[1] x) => ({kind}[M] k{levels}) {{ {first}\n{body} }}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    infer_shapes(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_shapes_of_ordinary_lengths_are_followed() -> None:
    text = """(float[N,3] x, float[2,3,4] z) => (float[A,B] y) {
        s = Shape(z) e = Slice(s, one, three) d = Concat<axis = 0>(e, one) r = Slice(d, zero, two)
        y = ConstantOfShape(r)
    }"""
    model = graph(text)
    for name, value in (("zero", 0), ("one", 1), ("two", 2), ("three", 3)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    found = infer_shapes(model).graph.output[0].type.tensor_type.shape
    assert [dim.dim_value for dim in found.dim] == [3, 4]


@pytest.mark.parametrize("op", ["com.microsoft.QuickGelu", "ai.onnx.ml.Scaler", "own.Mystery"])
@pytest.mark.parametrize("declared", [True, False])
def test_sizes_behind_an_operator_that_onnx_does_not_infer(op: str, declared: bool) -> None:
    text = f"(float[2,3] x) => (float[A,B] y) {{ d = {op}(x) y = Transpose(d) }}"
    domains = {"com.microsoft": 1, "ai.onnx.ml": 3, "own": 1}
    model = graph(text, domains=domains)
    if declared:
        value = make_tensor_value_info("d", TensorProto.FLOAT, [2, 3])
        model.graph.value_info.append(value)
    found = infer_shapes(model).graph.output[0].type.tensor_type.shape
    known = declared or op != "own.Mystery"
    assert [dim.dim_value for dim in found.dim] == ([3, 2] if known else [0, 0])


def test_sizes_pass_through_onnx_runtimes_operators_on_integers() -> None:
    text = """(uint8[N,3,8,8] x, float d, uint8 z) => (uint8[a,b] y) {
        p = com.microsoft.QLinearAveragePool<kernel_shape=[2,2], strides=[2,2]>(x, d, z, d, z)
        s = com.microsoft.QLinearAdd(p, d, z, p, d, z, d, z)
        k = com.microsoft.QLinearConcat<axis=1>(d, z, s, d, z, p, d, z)
        g = com.microsoft.QLinearGlobalAveragePool(k, d, z, d, z)
        f = Flatten(g)
        m = com.microsoft.QGemm<transB=1>(f, d, z, W, d, z, b, d, z)
        y = com.microsoft.QLinearSigmoid(m, d, z, d, z)
    }"""
    model = graph(text, domains={"com.microsoft": 1}, W=np.zeros((5, 6), np.int8), b=(5,))
    found = infer_shapes(model)
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*found.graph.value_info, *found.graph.output)
    }
    assert shapes["k"] == ["N", 6, 4, 4] and shapes["g"] == ["N", 6, 1, 1]
    assert shapes["m"] == ["N", 5]
    last = text.replace("AveragePool(k", "AveragePool<channels_last=1>(k")
    model = graph(last, domains={"com.microsoft": 1}, W=np.zeros((5, 6), np.int8), b=(5,))
    assert "g" not in {value.name for value in infer_shapes(model).graph.value_info}


def test_operators_of_ai_onnx_ml_make_floats_where_they_always_do() -> None:
    text = """(float[N,3] x) => (int64[N] y, float[N,2] z) {
        y, p = ai.onnx.ml.SVMClassifier(x) z = Cast<to = 1>(p)
    }"""
    model = graph(text, domains={"ai.onnx.ml": 3})
    (found,) = [v for v in infer_shapes(model).graph.value_info if v.name == "p"]
    assert found.type.tensor_type.elem_type == TensorProto.FLOAT
    assert not found.type.tensor_type.HasField("shape")
