"""ONNX's shape inference, kept from what makes it fail or take all memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto
from onnx.helper import make_tensor_value_info

from graphpass.ir.operators import Trait, traits
from graphpass.ir.questions import STANDARD_DOMAINS
from graphpass.ir.taken_rank import settle_ranks
from graphpass.storage.reference import is_external

_LONG_VECTOR = 1 << 20  # elements; no shape or list of axes has as many
_LONG_IN_ALL = 1 << 22
_MOST_ROUNDS = 4  # one rank may decide another
_ML = "ai.onnx.ml"
_USUAL_RANK = 8  # what a Shape gives, roughly
_WHOLE = (TensorProto.INT32, TensorProto.INT64)


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return `proto` with inferred types; where ONNX's inference fails, with those declared."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    bare.graph.value_info.extend(_declared_only(proto))
    bare.graph.value_info.extend(_always(proto))
    _stand_in(bare)
    for data_prop in (True, False):
        if data_prop and _has_long_vectors(proto.graph):
            continue
        try:
            inferred = onnx.shape_inference.infer_shapes(bare, data_prop=data_prop)
            for _ in range(_MOST_ROUNDS):
                if not settle_ranks(inferred):
                    break
                inferred = onnx.shape_inference.infer_shapes(inferred, data_prop=data_prop)
            return inferred
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, MemoryError):
            continue
    return proto


def _declared_only(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the declared types of what operators unknown to ONNX make: nobody infers them."""
    known = {(function.domain, function.name) for function in proto.functions}
    made = {
        name
        for node in proto.graph.node
        if (node.domain, node.op_type) not in known
        and not onnx.defs.has(node.op_type, "" if node.domain in STANDARD_DOMAINS else node.domain)
        for name in node.output
    }
    return [value for value in proto.graph.value_info if value.name in made]


def _always(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the types of what operators of ai.onnx.ml make, where each has one in any model."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    own = {(function.domain, function.name) for function in proto.functions}
    found = []
    for node in proto.graph.node:
        if node.domain != _ML or (_ML, node.op_type) in own:
            continue
        with contextlib.suppress(onnx.defs.SchemaError):
            schema = onnx.defs.get_schema(node.op_type, versions.get(_ML, 1), _ML)
            pairs = zip(schema.outputs, node.output, strict=False)
            named = [name for output, name in pairs if name and output.type_str == "tensor(float)"]
            found += [make_tensor_value_info(name, TensorProto.FLOAT, None) for name in named]
    return found


# ONNX Runtime's operators on integers: what has the same sizes, and which inputs it reads
_OF_INTEGERS: Mapping[str, tuple[str, Sequence[int] | slice]] = {
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QGemm": ("Gemm", (0, 3)),
}
_SAYS_SIZES = {"Gemm": ("transA", "transB"), "Identity": ()}  # others: all attributes


def _stand_in(proto: onnx.ModelProto) -> None:
    """Put what ONNX can infer in the place of operators of other domains."""
    defined = {(function.domain, function.name) for function in proto.functions}
    for node in proto.graph.node:
        if node.domain == "com.microsoft" and node.op_type in _OF_INTEGERS:
            _stand_in_for_integers(node)
            continue
        makes_floats = node.domain == _ML and node.op_type in ("Normalizer", "Scaler")
        keeps = makes_floats or Trait.ELEMENTWISE in traits(node.op_type, node.domain)
        if node.domain in STANDARD_DOMAINS or not keeps or (node.domain, node.op_type) in defined:
            continue
        node.domain, node.op_type = "", "Cast" if makes_floats else "Identity"
        del node.attribute[:], node.input[1:], node.output[1:]
        if makes_floats:
            node.attribute.append(onnx.helper.make_attribute("to", TensorProto.FLOAT))


def _stand_in_for_integers(node: onnx.NodeProto) -> None:
    if any(a.name == "channels_last" and a.i for a in node.attribute):
        return
    kind, read = _OF_INTEGERS[node.op_type]
    given = list(node.input)
    inputs = given[read] if isinstance(read, slice) else [given[i] for i in read if i < len(given)]
    kept = [a for a in node.attribute if a.name in _SAYS_SIZES.get(kind, (a.name,))]
    kept = [a for a in kept if a.name != "channels_last"]
    node.domain, node.op_type = "", kind
    del node.input[:], node.attribute[:]
    node.input.extend(inputs)
    node.attribute.extend(kept)


def _has_long_vectors(graph: onnx.GraphProto) -> bool:
    """Whether following the values of integers through `graph` would take too much memory.

    ONNX keeps some 70 bytes for each element of each vector on the way, and a few bytes of a
    model can stand for a vector of any length.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            tensors.update((name, node.attribute[0].t) for name in node.output)
    if any(
        len(tensor.dims) == 1 and tensor.dims[0] > _LONG_VECTOR and tensor.data_type in _WHOLE
        for tensor in tensors.values()
    ):
        return True
    for node in graph.node:
        if node.op_type not in ("ConstantOfShape", "Expand", "Range", "Tile"):
            continue
        for name in node.input:
            tensor = tensors.get(name)
            if tensor is None or math.prod(tensor.dims) > 1 or is_external(tensor):
                continue
            if tensor.data_type == onnx.TensorProto.STRING:
                continue
            if np.any(onnx.numpy_helper.to_array(tensor).astype(np.float64) > _LONG_VECTOR):
                return True
    return _grow_long(graph, tensors)


def _grow_long(graph: onnx.GraphProto, tensors: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether constants become long vectors where they are put together, each twice as long."""
    lengths = {
        name: max(math.prod(tensor.dims), 1)
        for name, tensor in tensors.items()
        if len(tensor.dims) < 2
    }
    total = 0
    for node in graph.node:
        known = [lengths.get(name) for name in node.input if name]
        if node.op_type == "Shape":
            known = [_USUAL_RANK]
        found = [length for length in known if length is not None]
        if not found or len(found) < len(known):
            continue
        length = sum(found) if node.op_type == "Concat" else max(found)
        total += length
        if length > _LONG_VECTOR or total > _LONG_IN_ALL:
            return True
        lengths.update(dict.fromkeys(node.output, length))
    return False
