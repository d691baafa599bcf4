"""Models that the tests of validation share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, parser

Array = npt.NDArray[Any]


def parse(text: str, *imports: str, ir_version: int = 9, opset: int = 17) -> onnx.ModelProto:
    """Return a model from the text of a graph."""
    domains = ", ".join([f'"" : {opset}', *imports])
    return parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{domains}]> {text}")


# y counts to `trips`, which may be as many as one likes.
COUNTING = """g (int64 trips, float x) => (float y) {
    go = Constant <value = bool {1}> ()
    y = Loop (trips, go, x) <body = b (int64 i, bool c, float v) => (bool d, float w) {
        d = Identity (c)
        one = Constant <value = float {1}> ()
        w = Add (v, one)
    }>
}"""

# y is as many zeros as one likes.
ALLOCATING = "g (int64[1] n) => (float[M] y) { y = ConstantOfShape (n) }"

RELU = "g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"


def convnet(
    *, folded: bool = False, weight_error: float = 0.0, seed: int = 0, depth: int = 4
) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, … with random weights, or the same with the fold done.

    `weight_error` is the relative error of one weight in one channel of the second Conv.
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    value, channels = "x", 3

    def constant(name: str, array: Array) -> str:
        initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    for layer in range(depth):
        kernel = rng.standard_normal((16, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        weight: Array = kernel.astype(np.float32)
        bias, shift, mean = (rng.standard_normal(16).astype(np.float32) * 0.1 for _ in range(3))
        scale, variance = (rng.uniform(0.5, 2, 16).astype(np.float32) for _ in range(2))
        if folded:
            factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + 1e-5)
            weight = weight * factor[:, None, None, None]
            bias = (bias.astype(np.float64) - mean) * factor + shift
            if layer == 1:
                weight[3, 2, 1, 1] *= 1 + weight_error
        inputs = [value, constant(f"weight{layer}", weight), constant(f"bias{layer}", bias)]
        value = f"conv{layer}"
        nodes.append(helper.make_node("Conv", inputs, [value], pads=[1] * 4))
        if not folded:
            parameters = {"scale": scale, "shift": shift, "mean": mean, "variance": variance}
            inputs = [value, *(constant(f"{n}{layer}", array) for n, array in parameters.items())]
            value = f"norm{layer}"
            nodes.append(helper.make_node("BatchNormalization", inputs, [value]))
        nodes.append(helper.make_node("Relu", [value], [f"relu{layer}"]))
        value, channels = f"relu{layer}", 16
    head = constant("head", rng.standard_normal((16, 10)))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", head], ["y"]))
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 10])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
