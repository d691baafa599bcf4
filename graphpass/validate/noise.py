"""Noise for the floor: inputs moved by one ulp; where there are none to move, the first floats.

The idea is Monte Carlo arithmetic: what random changes of the size of rounding errors do to the
outputs shows how much rounding errors can do (D. Stott Parker, "Monte Carlo Arithmetic", 1997).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphpass.validate.channel import Array, Value

# Distance from 1 to the next larger number.
_EPSILON: dict[int, float] = {
    TensorProto.DOUBLE: 2.0**-52,
    TensorProto.FLOAT: 2.0**-23,
    TensorProto.FLOAT16: 2.0**-10,
    TensorProto.BFLOAT16: 2.0**-7,
    TensorProto.FLOAT8E4M3FN: 2.0**-3,
    TensorProto.FLOAT8E4M3FNUZ: 2.0**-3,
    TensorProto.FLOAT8E5M2: 2.0**-2,
    TensorProto.FLOAT8E5M2FNUZ: 2.0**-2,
}
_RANDOM_OPS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_RANDOM_OPS |= {"Multinomial", "Bernoulli", "Dropout"}


def arithmetic_epsilon(model: onnx.ModelProto) -> float:
    """Return the epsilon of the coarsest float type that the model computes in."""
    found = [_EPSILON[kind] for kind in _types(model) if kind in _EPSILON]
    return max(found, default=_EPSILON[TensorProto.FLOAT])


def base_tolerance(epsilon: float) -> float:
    """Return the tolerance that every output has, relative to its scale.

    Sixteen ulps of the scale in single and double precision. In half precision and below, a
    network is commonly accumulated in single precision, and four ulps are plenty.
    """
    return epsilon * (16 if epsilon <= _EPSILON[TensorProto.FLOAT] else 4)


def may_be_random(model: onnx.ModelProto) -> bool:
    """Whether an operator may draw random numbers: known ones, and any that ONNX does not know."""
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        known = node.domain in ("", "ai.onnx", "ai.onnx.ml")
        if (known and node.op_type in _RANDOM_OPS) or not (
            known or (node.domain, node.op_type) in functions
        ):
            return True
    return False


def moved_by_ulp(
    values: Mapping[str, Value], epsilon: float, seed: int
) -> tuple[dict[str, Value], bool]:
    """Move every float by one ulp in a random direction; say whether there was any.

    Zeros move by an ulp of the array's root mean square (of 1 where it is zero throughout).
    """
    moved: dict[str, Value] = {}
    any_moved = False
    for name, value in values.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if isinstance(value, np.ndarray) and _is_float(value):
            moved[name], any_moved = _moved(value, epsilon, rng), True
        elif isinstance(value, list) and all(isinstance(v, np.ndarray) for v in value):
            floats = [isinstance(v, np.ndarray) and _is_float(v) for v in value]
            moved[name] = [
                _moved(v, epsilon, rng) if isinstance(v, np.ndarray) and _is_float(v) else v
                for v in value
            ]
            any_moved |= any(floats)
        else:
            moved[name] = value
    return moved, any_moved


def _moved(array: Array, epsilon: float, rng: np.random.Generator) -> Array:
    if array.dtype.kind == "c":
        return array
    epsilon = max(epsilon, _own_epsilon(array))
    wide = array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    rms = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    size = np.where(wide == 0, rms or 1.0, np.abs(wide))
    with np.errstate(all="ignore"):
        moved = wide + rng.choice((-epsilon, epsilon), wide.shape) * size
    result: Array = moved.astype(array.dtype)
    return result


def _own_epsilon(array: Array) -> float:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return _EPSILON.get(kind, 0.0)


def _is_float(array: Array) -> bool:
    return array.dtype.kind not in "biuOUSc" or array.dtype.name in ("bfloat16",)


def noisy_model(model: onnx.ModelProto, seed: int) -> onnx.ModelProto | None:
    """Insert noise of one ulp behind every node that makes floats from no floats.

    For models whose inputs are all integers (token ids, images of bytes). None where no such
    node is found.
    """
    noisy = onnx.ModelProto()
    noisy.CopyFrom(model)
    sources = set(_float_sources(noisy.graph))
    if not sources:
        return None
    nodes: list[onnx.NodeProto] = []
    taken = {name for node in noisy.graph.node for name in (*node.input, *node.output)}
    outputs = {value.name for value in noisy.graph.output}
    for index, node in enumerate(noisy.graph.node):
        nodes.append(node)
        if index not in sources or node.output[0] in outputs:
            continue
        name = node.output[0]
        quiet, factor = _fresh(name + ".quiet", taken), _fresh(name + ".noise", taken)
        node.output[0] = quiet
        nodes.append(
            helper.make_node(
                "RandomUniformLike",
                [quiet],
                [factor],
                low=1 - 2.0**-23,
                high=1 + 2.0**-23,
                seed=float(seed * 1000 + index),
            )
        )
        nodes.append(helper.make_node("Mul", [quiet, factor], [name]))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del noisy.graph.node[:]
    noisy.graph.node.extend(copies)
    return noisy


def _float_sources(graph: onnx.GraphProto) -> Iterator[int]:
    single = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "Constant" and any(
            a.name == "value" and a.t.data_type == TensorProto.FLOAT for a in node.attribute
        ):
            single.add(node.output[0])
    made = set(single)
    for index, node in enumerate(graph.node):
        if node.op_type == "Gather" and node.input[0] in single:
            yield index
        to_float = any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)
        if node.op_type == "Cast" and to_float and node.input[0] not in made:
            yield index
        if node.op_type == "DequantizeLinear" and node.input[1] in single:
            yield index
        made.update(node.output)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _types(model: onnx.ModelProto) -> Iterator[int]:
    for graph in _graphs(model):
        yield from (tensor.data_type for tensor in graph.initializer)
        for value in (*graph.input, *graph.output):
            yield value.type.tensor_type.elem_type
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.type == onnx.AttributeProto.INT:
                yield attribute.i
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(_subgraphs(graph.node))


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node
        stack = list(_subgraphs(function.node))
        while stack:
            graph = stack.pop()
            yield from graph.node
            stack.extend(_subgraphs(graph.node))


def _subgraphs(nodes: object) -> Iterator[onnx.GraphProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                yield from attribute.graphs
