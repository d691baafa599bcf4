"""From a window to a second graph that computes how large its intermediate sums are.

The rounding error of an affine expression is bounded by its value on absolute values: for
`y = W·x + b` in floating point with unit roundoff u and n summands, `|ŷ - y| <= n·u·(|W|·|x| +
|b|) + O(u²)` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 3). So the
window itself, with Abs after every constant and every difference made a sum, is its own bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

from graphpass.ir.operators import Trait, traits


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
    known = traits(op)
    copied = NodeProto()
    copied.CopyFrom(node)
    copied.name = ""
    del copied.input[:]
    copied.input.extend(inputs)
    del copied.output[:]
    copied.output.extend(outputs)
    if op in ("Resize", "Upsample"):
        return [copied] if _weighs_with_sums_of_one(node) else None
    if Trait.TAME in known:
        return [helper.make_node("Identity", inputs[:1], outputs[:1])]
    if known & (Trait.ON_MAGNITUDES | Trait.SIZES_ONLY | Trait.SOURCE) and not known & Trait.RANDOM:
        for attribute in copied.attribute:
            if attribute.name in ("alpha", "beta") and attribute.type == AttributeProto.FLOAT:
                attribute.f = abs(attribute.f)
        return [copied]
    if _only_moves(node):
        return [copied]  # what is written elsewhere has the size that it had
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
    if op == "PRelu":
        return [
            helper.make_node("Mul", inputs, f"{outputs[0]}.slope".split()),
            _add(inputs, outputs),
        ]
    if Trait.BOUNDED in known:
        zero, one = f"{outputs[0]}.zero", f"{outputs[0]}.one"  # in every opset, of every type
        return [
            helper.make_node("Sub", [inputs[0], inputs[0]], [zero]),
            helper.make_node("Exp", [zero], [one]),
            helper.make_node("Add", [inputs[0], one], outputs[:1]),
        ]
    return None


def _weighs_with_sums_of_one(resize: NodeProto) -> bool:
    """Whether no weight is negative, and nothing beyond the edge is made up."""
    given = {a.name: helper.get_attribute_value(a) for a in resize.attribute}
    edges = given.get("coordinate_transformation_mode", b"")
    return bool(given.get("mode", b"nearest") != b"cubic" and edges != b"tf_crop_and_resize")


def _add(inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    return helper.make_node("Add", [inputs[0], f"{outputs[0]}.slope"], outputs[:1])


@dataclass(frozen=True)
class Roundings:
    """How often a value may be rounded on its way through a window, in units of roundoff.

    `sums`: summands of its sums, one after the other. `chain`: all other operators.
    `sparse`: there is one sum on each way at most, and it reads the window's input with zeros where
    that has zeros, so that no more elements than are not zero add to its rounding errors.
    """

    sums: int
    chain: int
    sparse: bool

    def count(self, active: int = 0, *, constant: bool = False) -> int:
        """Return the number for inputs of which `active` are not zero, powers of two (0: any).

        Of n roundings in a long sum, 8·√n count: independent errors cancel, and more has a
        probability below 2n·exp(−8²/2) = n·3e-14 (Higham and Mary, "A new approach to
        probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019, th. 2.4).
        `constant`: the summands may all be the same, so that the errors are, too: then all n count.
        """
        sums = self.sums
        if active and self.sparse:
            sums = 0 if active == 1 else min(sums, active)
        if constant:
            return self.chain + sums
        return self.chain + min(sums, math.ceil(_LIKELY * math.sqrt(sums)))


def roundings(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> Roundings:
    """Count the roundings of `graph`, at most.

    `shapes`: static shapes of tensors by name, as far as they are known.
    """
    shapes = {**shapes, **{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}}
    producers = {name: node for node in graph.node for name in node.output}
    sparse = True
    # by tensor: what its longest way from the inputs rounds; branches round beside each other
    depths: dict[str, tuple[int, int]] = {}
    for node in graph.node:
        above = [depths.get(name, (0, 0)) for name in node.input]
        sums, chain = (max((depth[part] for depth in above), default=0) for part in (0, 1))
        length = _sum_length(node, [shapes.get(name) for name in node.input])
        if length:
            sparse = sparse and sums == 0 and _keeps_zeros(graph, producers, node)
            sums += length
            chain += 1 if len(node.input) > 2 else 0
        else:
            chain += _chain(node)
        depths.update(dict.fromkeys(node.output, (sums, chain)))
    sums, chain = depths.get(graph.output[0].name, (0, 0))
    return Roundings(sums, chain, sparse)


def _chain(node: NodeProto) -> int:
    """Return how often an operator that sums up nothing rounds a value, at most."""
    known = traits(node.op_type)
    if known & (Trait.PICKS | Trait.SIZES_ONLY | Trait.SOURCE) or _only_moves(node):
        return 0
    if node.op_type == "BatchNormalization":
        return 6  # the root and quotient of its factor, the product, the shift, the sum
    if known & (Trait.ARITHMETIC | Trait.ON_MAGNITUDES) or node.op_type in ("Abs", "Neg"):
        return max(len(node.input) - 1, 1)
    return 12  # functions such as Sigmoid come from approximations good to a few units


def _only_moves(node: NodeProto) -> bool:
    """Whether elements go elsewhere as they are, and are not added to what is there."""
    reduces = any(attribute.name == "reduction" for attribute in node.attribute)
    return Trait.MOVEMENT in traits(node.op_type) and not reduces


def _moves_zeros(node: NodeProto) -> bool:
    """Whether zeros in the first input stay zeros, and nothing is added to them."""
    known = traits(node.op_type)
    single = known & (Trait.ELEMENTWISE | Trait.MOVEMENT | Trait.POOL | Trait.REDUCTION)
    kept = bool(single) and bool(known & (Trait.KEEPS_ZERO | Trait.MOVEMENT))
    return node.op_type in ("Mul", "Div") or (kept and Trait.BROADCASTING not in known)


def _keeps_zeros(
    graph: onnx.GraphProto, producers: Mapping[str, NodeProto], node: NodeProto
) -> bool:
    inputs = {value.name for value in graph.input}
    name = node.input[0]
    if name not in inputs and name not in producers:  # a constant from the left: MatMul(W, x)
        if len(node.input) < 2:
            return False  # a mean of constants
        name = node.input[1]
    while name not in inputs:
        source = producers.get(name)
        if source is None or not source.input or not _moves_zeros(source):
            return False
        name = source.input[0]
    return True


def _sum_length(node: NodeProto, found: Sequence[Sequence[int] | None]) -> int:
    """Return how many summands a node's sum has, at most; 0 where it sums nothing."""
    known = traits(node.op_type)
    if Trait.SUM in known:
        first = 1 if Trait.REDUCTION in known else 2
        return math.prod(found[0][first:]) if found[0] and len(found[0]) > 2 else _LONG_SUM
    if Trait.CONTRACTION | Trait.ON_MAGNITUDES not in known:
        return 0
    weight = found[1] if len(found) > 1 and found[1] else None
    if node.op_type == "Conv" and weight:
        return math.prod(weight[1:])
    if node.op_type == "ConvTranspose" and weight:
        return weight[0] * math.prod(weight[2:])
    if node.op_type == "Gemm" and weight:
        return weight[1 if any(a.name == "transB" and a.i for a in node.attribute) else 0]
    if weight:
        return weight[-2] if len(weight) > 1 else weight[0]
    return max(found[0]) if found[0] else _LONG_SUM


_LIKELY = 8.0
_LONG_SUM = 4096  # where the shapes are not known
