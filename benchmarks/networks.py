"""AlexNet, VGG16 and ResNet-50 in shape and size, with random weights: made here, not stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphpass.ir.cost import cost_of

_OPSET = 17
NATIVE_PX = 224
CLASSES = 1000


class _Network:
    """Appends one layer after another; every method returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def conv(self, x: str, channels: int, out: int, kernel: int, stride: int, pad: int) -> str:
        return self.op(
            "Conv",
            x,
            *self._parameters(out, channels, kernel, kernel),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
        )

    def gemm(self, x: str, features: int, out: int) -> str:
        return self.op("Gemm", x, *self._parameters(out, features), transB=1)

    def max_pool(self, x: str, kernel: int, pad: int = 0) -> str:
        return self.op("MaxPool", x, kernel_shape=[kernel] * 2, strides=[2, 2], pads=[pad] * 4)

    def _parameters(self, *shape: int) -> tuple[str, str]:
        """Weight and bias that keep the scale of what passes through (He et al., 2015)."""
        gain = np.sqrt(2 / np.prod(shape[1:]))
        names = (f"w{len(self._weights)}", f"b{len(self._weights)}")
        for name, dims, scale in zip(names, (shape, shape[:1]), (gain, 0.1), strict=True):
            values = self._random.standard_normal(dims, dtype=np.float32) * np.float32(scale)
            self._weights.append(numpy_helper.from_array(values, name))
        return names

    def model(self, name: str, scores: str) -> onnx.ModelProto:
        """From `image` [N, 3, 224, 224] to `probabilities` [N, 1000]."""
        self._nodes.append(helper.make_node("Softmax", [scores], ["probabilities"], axis=1))
        shapes: dict[str, list[str | int | None]] = {
            "image": ["N", 3, NATIVE_PX, NATIVE_PX],
            "probabilities": ["N", CLASSES],
        }
        image, probabilities = (
            helper.make_tensor_value_info(each, TensorProto.FLOAT, shape)
            for each, shape in shapes.items()
        )
        graph = helper.make_graph(self._nodes, name, [image], [probabilities], self._weights)
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def alexnet() -> onnx.ModelProto:
    """Krizhevsky's one-weird-trick variant, as torchvision has it: 0.7 G multiply-adds."""
    net = _Network(seed=1)
    x = net.max_pool(net.op("Relu", net.conv("image", 3, 64, 11, 4, 2)), 3)
    x = net.max_pool(net.op("Relu", net.conv(x, 64, 192, 5, 1, 2)), 3)
    for channels, out in ((192, 384), (384, 256), (256, 256)):
        x = net.op("Relu", net.conv(x, channels, out, 3, 1, 1))
    x = net.op("Flatten", net.max_pool(x, 3))
    for features in (256 * 6 * 6, 4096):
        x = net.op("Relu", net.gemm(x, features, 4096))
    return net.model("alexnet", net.gemm(x, 4096, CLASSES))


def vgg16() -> onnx.ModelProto:
    """Simonyan and Zisserman's configuration D: 15.5 G multiply-adds."""
    net = _Network(seed=2)
    x, channels = "image", 3
    for out, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            x = net.op("Relu", net.conv(x, channels, out, 3, 1, 1))
            channels = out
        x = net.max_pool(x, 2)
    x = net.op("Flatten", x)
    for features in (512 * 7 * 7, 4096):
        x = net.op("Relu", net.gemm(x, features, 4096))
    return net.model("vgg16", net.gemm(x, 4096, CLASSES))


def resnet50() -> onnx.ModelProto:
    """He et al.'s bottleneck network, BatchNormalization folded already: 4.1 G multiply-adds."""
    net = _Network(seed=3)
    x = net.max_pool(net.op("Relu", net.conv("image", 3, 64, 7, 2, 3)), 3, pad=1)
    channels = 64
    for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            y = net.op("Relu", net.conv(x, channels, width, 1, 1, 0))
            y = net.op("Relu", net.conv(y, width, width, 3, stride, 1))
            y = net.conv(y, width, 4 * width, 1, 1, 0)
            shortcut = x if block else net.conv(x, channels, 4 * width, 1, stride, 0)
            x = net.op("Relu", net.op("Add", y, shortcut))
            channels = 4 * width
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model("resnet50", net.gemm(x, channels, CLASSES))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "resnet50": resnet50,
}


def multiply_adds(path: Path, batch: int, side_px: int) -> int:
    """How many multiply-adds the Conv, Gemm and MatMul of a model take for square images."""
    model = onnx.load(path)
    for stale in (*model.graph.output, *model.graph.value_info):
        stale.type.tensor_type.ClearField("shape")
    return cost_of(model, {model.graph.input[0].name: (batch, 3, side_px, side_px)}).multiply_adds
