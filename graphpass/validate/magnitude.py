"""From a window to a second graph that computes how large its intermediate sums are.

The rounding error of an affine expression is bounded by its value on absolute values: for
`y = W·x + b` in floating point with unit roundoff u and n summands, `|ŷ - y| <= n·u·(|W|·|x| +
|b|) + O(u²)` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 3). So the
window itself, with Abs after every constant and every difference made a sum, is its own bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

# same operator on magnitudes: sums of products, averages, maxima, and what only moves elements
_LINEAR = frozenset(
    "Conv ConvTranspose Gemm MatMul Add Mul Sum AveragePool GlobalAveragePool MaxPool "
    "GlobalMaxPool ReduceMean ReduceSum ReduceMax Max Flatten Reshape Squeeze Unsqueeze Transpose "
    "Identity Cast Concat Pad Slice Gather Expand Split Tile Shape Constant".split()
)
# |f(x)| <= |x| and Lipschitz constant at most about 1
_CONTRACTIONS = frozenset(
    "Relu LeakyRelu Tanh Elu Selu Softsign HardSwish Swish Gelu Mish Clip Dropout ThresholdedRelu "
    "Abs Neg Floor Ceil Round".split()
)
# bounded by 1, with a Lipschitz constant of at most 1
_BOUNDED = frozenset("Sigmoid HardSigmoid Softmax LogSoftmax Softplus Hardmax".split())
_REDUCING = frozenset("Conv ConvTranspose Gemm MatMul".split())
_AVERAGING = frozenset("AveragePool GlobalAveragePool ReduceMean ReduceSum LpPool".split())
MOVEMENT = frozenset(
    "Flatten Reshape Squeeze Unsqueeze Transpose Identity Concat Slice Gather Expand Split Tile "
    "Shape Constant Dropout Relu MaxPool GlobalMaxPool ReduceMax".split()
)


def magnitude_nodes(graph: onnx.GraphProto, mark: str) -> list[NodeProto] | None:
    """Return nodes that compute the magnitudes of `graph`'s tensors, each named `mark + name`.

    The nodes read the graph's own inputs and initializers. None where the graph holds an
    operator that is not affine or known to be tame.
    """
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    made: list[NodeProto] = []
    magnitudes: dict[str, str] = {}

    def magnitude(name: str) -> str:
        if not name or name in magnitudes:
            return magnitudes.get(name, name)
        if types.get(name) not in _FLOATS:
            return name
        made.append(helper.make_node("Abs", [name], [mark + name]))
        magnitudes[name] = mark + name
        return magnitudes[name]

    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            return None
        inner = _magnitude_of(node, [magnitude(name) for name in node.input], mark)
        if inner is None:
            return None
        made.extend(inner)
        magnitudes.update({name: mark + name for name in node.output if name})
    return made


_FLOATS = frozenset(
    (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
)


def _magnitude_of(node: NodeProto, inputs: list[str], mark: str) -> list[NodeProto] | None:
    outputs = [mark + name if name else "" for name in node.output]
    op = node.op_type
    copied = NodeProto()
    copied.CopyFrom(node)
    copied.name = ""
    del copied.input[:]
    copied.input.extend(inputs)
    del copied.output[:]
    copied.output.extend(outputs)
    if op in _LINEAR:
        for attribute in copied.attribute:
            if attribute.name in ("alpha", "beta") and attribute.type == AttributeProto.FLOAT:
                attribute.f = abs(attribute.f)
        return [copied]
    if op == "Sub":
        copied.op_type = "Add"
        return [copied]
    if op == "Div":
        # a divisor's magnitude would have to be a lower bound: only constants are
        return [copied] if inputs[1] == mark + node.input[1] else None
    if op == "BatchNormalization":
        # (x - mean)·f + shift on magnitudes: the mean must add to |x|
        negated = f"{outputs[0]}.mean"
        copied.input[3] = negated
        del copied.output[1:]
        return [helper.make_node("Neg", [inputs[3]], [negated]), copied]
    if op == "DequantizeLinear":
        plain = f"{outputs[0]}.value"
        copied.output[0] = plain
        del copied.input[:]
        copied.input.extend(node.input)
        return [copied, helper.make_node("Abs", [plain], outputs)]
    if op in _CONTRACTIONS:
        return [helper.make_node("Identity", inputs[:1], outputs[:1])]
    if op == "PRelu":
        return [
            helper.make_node("Mul", inputs, f"{outputs[0]}.slope".split()),
            _add(inputs, outputs),
        ]
    if op in _BOUNDED:
        one = f"{outputs[0]}.one"
        return [
            helper.make_node("CastLike", [_ONE, inputs[0]], [one]),
            helper.make_node("Add", [inputs[0], one], outputs[:1]),
        ]
    return None


_ONE = "graphpass.one"


def _add(inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    return helper.make_node("Add", [inputs[0], f"{outputs[0]}.slope"], outputs[:1])


def one() -> TensorProto:
    """Return the initializer that magnitude graphs share."""
    return helper.make_tensor(_ONE, TensorProto.FLOAT, [], [1.0])


def summands(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many summands the longest sum in `graph` has, at most; at least 1.

    `shapes`: static shapes of tensors by name, as far as they are known.
    """
    shapes = {**shapes, **{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}}
    longest = 0
    for node in graph.node:
        found = [shapes.get(name) for name in node.input]
        if node.op_type in _REDUCING:
            known = [shape for shape in found[:2] if shape]
            weight = found[1] if len(found) > 1 and found[1] else None
            if node.op_type == "Conv" and weight:
                longest += math.prod(weight[1:])
            elif node.op_type == "ConvTranspose" and weight:
                longest += weight[0] * math.prod(weight[2:])
            elif weight:
                longest += max(weight)
            else:
                longest += max((math.prod(shape) for shape in known), default=4096)
        elif node.op_type in _AVERAGING:
            longest += math.prod(found[0][2:]) if found[0] and len(found[0]) > 2 else 4096
        else:
            longest += 1
    return max(longest, 1)
