"""Whether what a candidate computes in float16 has a place there, as the original computes it.

On a CPU, ONNX Runtime computes much of a float16 model in float32, and leaves out Casts between:
what overflows on a GPU may not be seen to. So it is looked up in the original, value by value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphpass.ir.inference import infer_shapes
from graphpass.ir.proto_walk import label_of
from graphpass.storage.wire import tensors
from graphpass.validate.process.channel import Value
from graphpass.validate.process.runtime import RunError, Runtime
from graphpass.validate.references import values_of

_LARGEST = 65504.0
_ROUNDS_TO_INFINITY = 65520.0  # from here on


def computes_in_half(model: onnx.ModelProto) -> bool:
    """Whether a model holds float16 weights or makes float16 of float32."""
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in tensors(model)):
        return True
    kinds = (TensorProto.FLOAT16,)
    return any(_cast_to(node) in kinds for node in model.graph.node)


def beyond_half(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feed: Mapping[str, Value],
    runtime: Runtime,
    provider: str,
) -> str:
    """Name a value that float16 has no place for and that `candidate` computes in it; "" for none.

    Raises RunError.
    """
    names = _computed_in_half(original, candidate)
    try:
        largest = _largest(original, names, feed, runtime, provider)
    except RunError:  # an operator finds no largest of no elements
        values = values_of(original, names, feed, runtime, provider)
        largest = {n: float(np.abs(np.asarray(v)).max(initial=0)) for n, v in values.items()}
    for name in names:
        if _ROUNDS_TO_INFINITY <= largest.get(name, 0.0) < np.inf:
            makers = (node for node in original.graph.node if name in node.output)
            who = next((f"{label_of(node)} gives" for node in makers), f"'{name}' holds")
            return (
                f"{who} {largest[name]:.3g}, beyond {_LARGEST:.0f}, the largest number of float16"
            )
    return ""


def _computed_in_half(original: onnx.ModelProto, candidate: onnx.ModelProto) -> list[str]:
    """Return the float32 values of the original that the candidate has in float16, in its order."""
    half = {
        value.name
        for value in infer_shapes(candidate).graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    # what keeps its name and type for a reader is made in float16 ahead of a Cast
    half |= {node.output[0] for node in candidate.graph.node if _casts_from(node, half)}
    half |= {
        node.input[0] for node in candidate.graph.node if _cast_to(node) == TensorProto.FLOAT16
    }
    inferred = infer_shapes(original).graph
    told = (*inferred.input, *inferred.value_info, *inferred.output)
    held = {tensor.name for tensor in original.graph.initializer}
    names = [v.name for v in told if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    return [name for name in dict.fromkeys(names) if name in half and name not in held]


def _cast_to(node: onnx.NodeProto) -> int:
    if node.op_type != "Cast":
        return TensorProto.UNDEFINED
    return next((a.i for a in node.attribute if a.name == "to"), 0)


def _casts_from(node: onnx.NodeProto, half: set[str]) -> bool:
    return _cast_to(node) == TensorProto.FLOAT and node.input[0] in half


def _largest(
    original: onnx.ModelProto,
    names: Sequence[str],
    feed: Mapping[str, Value],
    runtime: Runtime,
    provider: str,
) -> dict[str, float]:
    """Return the largest magnitude of each value in a run, without fetching all of it."""
    wider = onnx.ModelProto()
    wider.CopyFrom(original)
    mark = "graphpass.largest/"
    for name in names:
        inner, outer = f"{mark}of/{name}", f"{mark}{name}"
        wider.graph.node.append(helper.make_node("Abs", [name], [inner]))
        wider.graph.node.append(helper.make_node("ReduceMax", [inner], [outer], keepdims=0))
        wider.graph.output.append(helper.make_tensor_value_info(outer, TensorProto.FLOAT, []))
    with runtime.load(wider, provider) as session:
        found = session.run(dict(feed)).outputs
    told = {n.removeprefix(mark): v for n, v in found.items() if n.startswith(mark)}
    return {name: float(value) for name, value in told.items() if isinstance(value, np.ndarray)}


__all__ = ["beyond_half", "computes_in_half"]
