"""What ONNX Runtime's quantizer makes of networks: layers become convolutions, integers stay."""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphpass
from graphpass.rewrite.registry import make
from graphpass.testing import check_refused, graph
from tests.small_networks import network

SMALL = """(float[1,3,8,8] x) => (float[1,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, K, b)  r = Relu(c)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    f = Flatten(p)  g = Gemm<transB=1>(f, W, d)  h = Relu(g)  m = MatMul(h, V)  y = Add(m, e)
}"""
MODES = ("QDQ", "QDQ by channel", "QOperator", "QOperator by channel", "dynamic")
LAYERS = {"Gemm", "MatMul", "QLinearMatMul", "MatMulInteger", "QGemm"}
NETWORKS = ("alexnet", "resnet", "mobilenet", "shufflenet", "mtcnn", "convnext")
PASSES = "fold-batchnorm,flatten-gemm-to-gap-conv,gemm-to-conv{target=all}"


class Reader:
    """Three draws of every input, as the quantizer asks for them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        rng = np.random.default_rng(0)
        shapes = {
            value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        }
        self._feeds: Iterator[dict[str, Any]] = iter(
            [
                {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
                for _ in range(3)
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantized(model: onnx.ModelProto, mode: str, folder: Path) -> Path:
    logging.getLogger().setLevel(logging.ERROR)
    tool = importlib.import_module("onnxruntime.quantization")
    if model.opset_import[0].version < 13:
        model = onnx.version_converter.convert_version(model, 13)
    before, after = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(model, before)
    if mode == "dynamic":
        tool.quantize_dynamic(before, after, weight_type=tool.QuantType.QUInt8)
        return after
    tool.quantize_static(
        before,
        after,
        Reader(model),
        quant_format=tool.QuantFormat[mode.split()[0]],
        per_channel=mode.endswith("channel"),
        weight_type=tool.QuantType.QInt8,
        activation_type=tool.QuantType.QUInt8,
    )
    return after


def integers(model: onnx.ModelProto) -> Counter[tuple[str, bytes]]:
    """Return the integers of each weight, in whatever order they lie."""
    arrays = map(numpy_helper.to_array, model.graph.initializer)
    return Counter(
        (array.dtype.name, np.sort(array.reshape(-1)).tobytes())
        for array in arrays
        if array.dtype.kind in "iu" and array.dtype.itemsize == 1 and array.size > 8
    )


def check(model: onnx.ModelProto, mode: str, folder: Path) -> None:
    path = quantized(model, mode, folder)
    before = onnx.load(path)
    assert LAYERS & {node.op_type for node in before.graph.node}
    with graphpass.optimize(path, PASSES) as result:
        undone = [entry for entry in result.report.passes if entry.reason or entry.quarantined]
        statuses = {entry.check.status for entry in result.report.passes if entry.check}
        after = result.model
    assert not undone
    assert statuses == {"equal"}
    assert not LAYERS & {node.op_type for node in after.graph.node}
    assert integers(after) == integers(before)


@pytest.mark.parametrize("mode", MODES)
def test_a_small_network_of_each_kind(mode: str, tmp_path: Path) -> None:
    model = graph(SMALL, K=(4, 3, 3, 3), b=(4,), W=(6, 64), d=(6,), V=(6, 5), e=(5,))
    check(model, mode, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, mode: str, tmp_path: Path) -> None:
    check(network(name), mode, tmp_path)


QGEMM = """(uint8[N,3,2,2] x) => (OUT[N,4] y) {
    f = Flatten(x)
    y = com.microsoft.QGemm<transB=1, alpha=ALPHA>(f, step, zero, W, steps, none, bias, scale, out)
}"""


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("bias, scale, out", "bias", "gives numbers, and no integers with a step"),
        ("ALPHA", "0.5", "scales its sum"),
        ("transB=1", "transA=1, transB=1", "takes its rows transposed"),
    ],
)
def test_qgemm_that_stays_says_why(old: str, new: str, reason: str) -> None:
    text = QGEMM.replace(old, new).replace("ALPHA", "1.0")
    text = text.replace("OUT", "float" if new == "bias" else "uint8")
    if "transA" in new:
        text = text.replace("f = Flatten(x)", "g = Flatten(x) f = Identity(g)")
    rng = np.random.default_rng(0)
    model = graph(
        text,
        domains={"com.microsoft": 1},
        W=rng.integers(-9, 9, (4, 12)).astype(np.int8),
        step=np.float32(0.5),
        zero=np.uint8(3),
        steps=np.float32(0.25),
        none=np.int8(0),
        bias=rng.integers(-9, 9, 4).astype(np.int32),
        scale=np.float32(2),
        out=np.uint8(7),
    )
    check_refused(make("gemm-to-conv"), model, reason)
