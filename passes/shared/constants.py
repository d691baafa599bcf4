"""Constants in disguise: Constant nodes and operators on constants become initializers.

Values are computed by ONNX's reference implementation, and only for operators whose result is
fixed to the bit (moving elements, IEEE arithmetic, comparing), so that every runtime agrees.
Nothing is folded where the file would grow by it: 4 bytes expanded to 500 MB stay 4 bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphpass import (
    Graph,
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    attribute,
    constant,
    dtype,
    is_output,
    label,
    operator,
    opset,
    producer,
    readers,
    require,
    static_shape,
)

from .sizes import values

Array = npt.NDArray[Any]
Fold = dict[int, bool]  # by id of a tensor: whether it can be folded

_DEEPEST = 64  # how far up a constant is followed
_LARGEST_SIZE = 2**31 - 1
_NODE_BYTES = 32  # what a Constant node takes besides its value
_LARGEST_BYTES = 1 << 26  # of what is computed on the way, unless its inputs are as large

# operators whose result is fixed to the bit: those that move elements and leave them as they are,
_MOVES = (
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
)
# those that IEEE 754 rounds in one way only (not in float16, which runtimes compute in float32 and
# round when they please),
_ARITHMETIC = ("Abs", "Add", "Ceil", "Div", "Floor", "Mul", "Neg", "Reciprocal", "Sqrt", "Sub")
_COMPARISONS = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or")
# and those that are exact on integers: sums of floats depend on their order, max(-0, 0) on taste
_COUNTS = ("Max", "Min", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum")
_SHAPES = ("Shape", "Size")
_FOLDED = (*_MOVES, *_ARITHMETIC, *_COMPARISONS, *_COUNTS, *_SHAPES, "Cast", "ConstantOfShape")
_KNOWN = frozenset((*_FOLDED, "Constant"))  # what may make a constant
# what these read is folded before them: they may stay, because their result is larger
_GROWING = ("ConstantOfShape", "Expand", "Gather", "Pad", "Range", "Tile", "Where")

_NUMBERS = ("float32", "float64", "int32", "int64")
_INTEGERS = ("int32", "int64")
_NO_SIZES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_))


class ConstantToInitializer(Rule):
    """A Constant node = an initializer."""

    pattern = Op("Constant", bind="node")

    def rewrite(self, node: Node) -> Any:
        output = node.outputs[0]
        value = constant(output)
        if value is None or is_output(output) or not _takes_initializers(node.graph):
            return None
        if _stored_bytes(value, output.name) > _node_bytes(node):
            return None  # a list of small integers is shorter as an attribute
        return value


def _takes_initializers(graph: Graph) -> bool:
    """Whether an initializer can be added without changing anything else."""
    return graph.holds_initializers and not graph.lists_initializers


class FoldConstants(Rule):
    """f(constants) = its value, where f is the same in every runtime and the file does not grow."""

    pattern = Op(_FOLDED, ..., bind="node")

    def rewrite(self, node: Node) -> Any:
        output = node.outputs[0]
        known: Fold = {}
        if not _is_foldable(output, known, 0):
            return None
        if not is_output(output) and all(_folds(reader, known) for reader in readers(output)):
            return None  # it goes when its readers are folded, without being stored in between
        view = constant(output)
        growth = _stored_bytes(view or _of_type(output), output.name) - _freed_bytes(node)
        if is_output(output) or not node.graph.holds_initializers:
            growth += _NODE_BYTES  # it becomes a Constant node
        require(growth <= 0, f"folding {label(node)} would make the file {growth} bytes larger")
        return view if view is not None else _value(output, {})


def _of_type(tensor: Tensor) -> Weight:
    """Return a weight of the type of `tensor`, to look at its size."""
    shape, kind = static_shape(tensor), dtype(tensor)
    assert shape is not None and kind is not None
    return Weight(
        tensor.name,
        shape,
        onnx.helper.np_dtype_to_tensor_dtype(kind),
        lambda: np.broadcast_to(np.zeros((), kind), shape),
    )


def _folds(node: Node, known: Fold) -> bool:
    """Whether `node` is itself folded, with what it reads."""
    if operator(node) in _GROWING or operator(node) not in _FOLDED:
        return False
    return _is_foldable(node.outputs[0], known, 0)


def _is_foldable(tensor: Tensor, known: Fold, depth: int) -> bool:
    if tensor.name == "" or constant(tensor) is not None:
        return True
    if id(tensor) not in known:
        known[id(tensor)] = False
        node = producer(tensor)
        known[id(tensor)] = (
            node is not None
            and depth < _DEEPEST
            and node.outputs[0] is tensor
            and (_is_static(tensor) or _is_computable(node, known, depth + 1))
        )
    return known[id(tensor)]


def _is_static(tensor: Tensor) -> bool:
    """Whether `tensor` holds sizes of a shape that are fixed."""
    if operator(tensor.inputs[0]) == "Size":
        return static_shape(tensor.inputs[0].inputs[0]) is not None
    if tensor.shape != [0] and dtype(tensor) in _NO_SIZES:
        return False
    found = values(tensor)
    return found is not None and not any(s.names or abs(s.factor) > _LARGEST_SIZE for s in found)


def _is_computable(node: Node, known: Fold, depth: int) -> bool:
    if operator(node) not in _FOLDED or operator(node) in _SHAPES:
        return False
    # asked first: nearly always there is something above that only the runtime knows, mostly near
    if any(_is_unknown(source) for source in node.inputs):
        return False
    if not all(_is_foldable(source, known, depth) for source in node.inputs):
        return False
    opaque = (gs.Node.AttributeRef, onnx.AttributeProto)
    if any(isinstance(value, opaque) for value in node.attrs.values()):
        return False
    tensors = [tensor for tensor in (*node.inputs, *node.outputs) if tensor.name]
    kinds = [str(dtype(tensor)) for tensor in tensors]
    shapes = [static_shape(tensor) for tensor in tensors]
    if None in shapes or "None" in kinds or not _is_exact(node, kinds):
        return False
    *held, made = (8 * math.prod(shape or ()) for shape in shapes)
    return made <= max(_LARGEST_BYTES, *held)


def _is_unknown(tensor: Tensor) -> bool:
    """Whether `tensor` is surely not foldable, as far as one look tells."""
    if tensor.name == "" or isinstance(tensor, gs.Constant) or tensor.shape == [0]:
        return False
    source = producer(tensor)
    return source is None or operator(source) not in _KNOWN


def _is_exact(node: Node, kinds: list[str]) -> bool:
    """Whether the result on elements of these types is fixed to the bit."""
    op = operator(node)
    if op in _ARITHMETIC:
        return set(kinds) <= set(_NUMBERS)
    if op in _COMPARISONS or op == "Cast":
        return set(kinds) <= {*_NUMBERS, "float16", "bool"}
    if op in _COUNTS:
        return set(kinds) <= set(_INTEGERS)
    if op == "Pad":
        return str(attribute(node, "mode")) == "constant"
    return "object" not in kinds


def _value(tensor: Tensor, done: dict[int, Array]) -> Array:
    """Compute a tensor that `_is_foldable`."""
    weight = constant(tensor)
    if weight is not None:
        return weight.array()
    if id(tensor) not in done:
        done[id(tensor)] = _sizes(tensor) if _is_static(tensor) else _computed(tensor, done)
    return done[id(tensor)]


def _sizes(tensor: Tensor) -> Array:
    node = tensor.inputs[0]
    if operator(node) == "Size":
        return np.array(math.prod(static_shape(node.inputs[0]) or ()), np.int64)
    found = [size.factor for size in values(tensor) or ()]
    return np.array(found, dtype(tensor)).reshape(static_shape(tensor) or ())


def _computed(tensor: Tensor, done: dict[int, Array]) -> Array:
    node = tensor.inputs[0]
    arrays = [_value(source, done) if source.name else None for source in node.inputs]
    require(_is_defined(node, arrays), f"the value of {label(node)} is up to the runtime")
    value = _evaluated(node, arrays)
    require(value is not None, f"{label(node)} cannot be computed")
    assert value is not None
    fits = value.dtype == dtype(tensor) and value.shape == static_shape(tensor)
    require(fits, f"the value of {label(node)} is not of the type that the model declares")
    return value


def _evaluated(node: Node, arrays: list[Array | None]) -> Array | None:
    from onnx.reference import ReferenceEvaluator  # slow to import, and often not needed

    names = ["" if array is None else f"x{index}" for index, array in enumerate(arrays)]
    feed = {name: array for name, array in zip(names, arrays, strict=True) if name}
    attributes = {
        key: onnx.numpy_helper.from_array(value.values) if isinstance(value, gs.Constant) else value
        for key, value in node.attrs.items()
    }
    try:
        proto = onnx.helper.make_node(operator(node), names, ["y"], **attributes)
        evaluator = ReferenceEvaluator(proto, opsets={"": opset(node)})
        with np.errstate(all="ignore"):
            (result,) = evaluator.run(None, feed)
    except Exception:  # an invalid model: there is no end to what numpy may say about it
        return None
    return np.asarray(result)


def _is_defined(node: Node, arrays: list[Array | None]) -> bool:
    """Whether ONNX says what the result is, for these values."""
    op = operator(node)
    held = [array for array in arrays if array is not None]
    if op == "Div" and held[1].dtype.kind == "i":
        return bool(held[1].all() and not (held[1] == -1).any())
    if op == "ReduceProd":  # computed in float64 by some
        return math.prod(max(1, abs(int(value))) for value in held[0].reshape(-1)) < 2**53
    if op == "Where" and held[1].dtype.kind == "f":  # computed as a sum by some, which loses -0
        return not any((np.signbit(part) & (part == 0)).any() for part in held[1:])
    if op != "Cast":
        return True
    target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))
    if target.kind == "i" and held[0].dtype.kind == "f":
        return bool((np.abs(held[0]) < 2.0**30).all())  # no NaN either
    # to float16 by way of float32 would round twice
    return target != np.float16 or held[0].dtype in (np.float32, np.float16, np.bool_)


def _freed_bytes(node: Node) -> int:
    """Return how much shorter the file is without `node` and what only it needs; at least that."""
    total = 0
    gone = {id(node)}
    stack = [node]
    while stack and len(gone) < _DEEPEST:
        last = stack.pop()
        total += _node_bytes(last)
        for tensor in {id(source): source for source in last.inputs if source.name}.values():
            if is_output(tensor) or any(id(reader) not in gone for reader in readers(tensor)):
                continue
            source = producer(tensor)
            if isinstance(tensor, gs.Constant) and id(tensor) not in gone:
                gone.add(id(tensor))
                total += _stored_bytes(constant(tensor), tensor.name)
            elif source is not None and id(source) not in gone and len(source.outputs) == 1:
                gone.add(id(source))
                stack.append(source)
    return total


def _node_bytes(node: Node) -> int:
    names = [node.op, node.name or "", *(t.name for t in (*node.inputs, *node.outputs))]
    attributes = node.proto.attribute if node.proto is not None else ()
    return 2 * len(names) + sum(map(len, names)) + sum(map(_attribute_bytes, attributes))


def _attribute_bytes(attribute: onnx.AttributeProto) -> int:
    if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
        return _stored_bytes(Weight.of(attribute.t), "")
    return int(attribute.ByteSize())


def _stored_bytes(weight: Weight | None, name: str) -> int:
    """Return how long an initializer is."""
    assert weight is not None
    tensor = weight.tensor
    if tensor is not None and tensor.data_location != onnx.TensorProto.EXTERNAL:
        return int(tensor.ByteSize()) - len(tensor.name) + len(name) + 2
    return int(weight.nbytes) + 2 * weight.ndim + len(name) + 12
