"""Noise for the floor: inputs moved by one ulp, and results inside the network likewise.

The idea is Monte Carlo arithmetic: what random changes of the size of rounding errors do to the
outputs shows how much rounding errors can do (D. Stott Parker, "Monte Carlo Arithmetic", 1997).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphpass.ir.operators import Trait, named, traits
from graphpass.ir.proto_walk import all_graphs, all_nodes
from graphpass.validate.process.channel import Array, Value

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
# What sums up or makes floats: where roundings happen that a rewrite may make differently.
_ROUNDING_OPS = frozenset(
    (
        *named(Trait.CONTRACTION, Trait.NORMALIZATION, Trait.RECURRENT, Trait.SUM),
        *named(Trait.ARITHMETIC, Trait.QUANTIZING),
        *("Cast", "Gather"),
    )
)
# Their sums are over all that is there: the sizes before and after say of how many elements.
_AVERAGING_OPS = frozenset(named(Trait.SUM, without=Trait.SLIDING))
_SHORT_SUM = 64  # elements, up to which an average is taken for any other operator
_CONSTANT_SHARE = 8


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
    for node in all_nodes(model):
        known = node.domain in ("", "ai.onnx", "ai.onnx.ml")
        if known and Trait.RANDOM in traits(node.op_type):
            return True
        if not known and (node.domain, node.op_type) not in functions:
            return True
    return False


def moved_by_ulp(values: Mapping[str, Value], epsilon: float, seed: int) -> dict[str, Value] | None:
    """Move every float by one ulp in a random direction; None where there is no float.

    `epsilon`: at least this is an ulp of 1, where the model computes coarser than its inputs
    are. Zeros move by an ulp of the array's root mean square (of 1 where it is zero throughout).
    """
    moved = {
        name: _moved(value, epsilon, np.random.default_rng([seed, zlib.crc32(name.encode())]))
        for name, value in values.items()
    }
    return moved if any(moved[name] is not values[name] for name in moved) else None


def _moved(value: Value, epsilon: float, rng: np.random.Generator) -> Value:
    if isinstance(value, list):
        items = [_moved(item, epsilon, rng) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items
    if not isinstance(value, np.ndarray) or value.dtype.kind == "O":
        return value
    own = _EPSILON.get(helper.np_dtype_to_tensor_dtype(value.dtype))
    if own is None:
        return value
    wide: Array = value.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    rms = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    size = np.where(wide == 0, rms or 1.0, np.abs(wide))
    step = max(epsilon, own)
    with np.errstate(all="ignore"):
        result: Array = (wide + rng.choice((-step, step), wide.shape) * size).astype(value.dtype)
    return result


def noisy_model(
    model: onnx.ModelProto, seed: int, *, constant_maps: bool = False
) -> onnx.ModelProto | None:
    """Return the model with results inside multiplied by 1 ± one ulp, at random.

    An average over n > 64 elements moves by up to √n ulps. Its error is below n·u, and with a
    probability near 1 below 8·√n·u where errors are independent (see `window.magnitude`): ten
    times that noise, which is what an output may move by, is not less. `constant_maps`: all
    inputs are zeros, what is averaged may be one number throughout, and its errors are the same
    each time. Then it is n/8. None where no result is known to be a float; functions are left
    alone.
    """
    noisy = onnx.ModelProto()
    noisy.CopyFrom(model)
    types = _value_types(model)
    maker = _NoiseMaker(noisy, seed, constant_maps)
    for graph in all_graphs(noisy):
        maker.add_noise(graph, types)
    return noisy if maker.count else None


class _NoiseMaker:
    """Inserts noise; keeps its names apart from the model's and its draws apart from each other."""

    def __init__(self, model: onnx.ModelProto, seed: int, constant_maps: bool) -> None:
        self.count = 0
        self._seed = seed
        self._constant_maps = constant_maps
        self._prefix = "noise"
        names = {name for node in all_nodes(model) for name in (*node.input, *node.output)}
        while any(name.startswith(self._prefix) for name in names):
            self._prefix += "_"

    def add_noise(self, graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
        """Insert noise behind every rounding operator of one graph."""
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            nodes.append(copy)
            kind = types.get(node.output[0], 0) if node.output and node.output[0] else 0
            if node.op_type in _ROUNDING_OPS and kind in _EPSILON:
                nodes.extend(self._noise_behind(copy, kind))
        del graph.node[:]
        graph.node.extend(nodes)

    def _noise_behind(self, node: onnx.NodeProto, kind: int) -> list[onnx.NodeProto]:
        """Return nodes for `quiet + quiet * draw * ulp`, `draw` between -1 and 1."""
        self.count += 1
        stem, name = f"{self._prefix}{self.count}", node.output[0]
        quiet, draw, ulp, step, moved = (
            f"{stem}.{part}" for part in ("quiet", "draw", "ulp", "step", "moved")
        )
        node.output[0] = quiet
        # ONNX Runtime draws in single and double precision only; attributes are single.
        wide = kind if kind == TensorProto.DOUBLE else TensorProto.FLOAT
        seed = float(self._seed * 9973 + self.count)
        size = helper.make_tensor(ulp, wide, [], [_EPSILON[kind]])
        random: dict[str, Any] = {"dtype": wide, "low": -1.0, "high": 1.0, "seed": seed}
        make = helper.make_node
        return [
            make("Constant", [], [ulp], value=size),
            make("RandomUniformLike", [quiet], [draw], **random),
            *self._sized(node, draw, ulp, step, wide),
            *self._scaled(quiet, step, moved, kind, wide),
            make("Add", [quiet, moved], [name]),
        ]

    def _sized(
        self, node: onnx.NodeProto, draw: str, ulp: str, step: str, wide: int
    ) -> list[onnx.NodeProto]:
        """Return nodes for `draw * ulp`, times what roundings of a long average add up to."""
        make = helper.make_node
        if node.op_type not in _AVERAGING_OPS:
            return [make("Mul", [draw, ulp], [step])]
        one, least, share, n = (f"{step}.{part}" for part in ("one", "least", "share", "n"))
        numbers = {one: 1.0, least: float(_SHORT_SUM), share: 1 / _CONSTANT_SHARE}
        sized = [
            make("Constant", [], [name], value=helper.make_tensor(name, wide, [], [number]))
            for name, number in numbers.items()
        ]
        for source, count in ((node.input[0], f"{n}.in"), (node.output[0], f"{n}.out")):
            sized += [
                make("Size", [source], [f"{count}.whole"]),
                make("Cast", [f"{count}.whole"], [count], to=wide),
            ]
        grown = (
            make("Mul", [n, share], [f"{n}.grown"])
            if self._constant_maps
            else make("Sqrt", [n], [f"{n}.grown"])
        )
        return [
            *sized,
            make("Div", [f"{n}.in", f"{n}.out"], [n]),
            grown,
            make("Greater", [n, least], [f"{n}.long"]),
            make("Cast", [f"{n}.long"], [f"{n}.chosen"], to=wide),  # there is no Where before 9
            make("Sub", [f"{n}.grown", one], [f"{n}.beyond"]),
            make("Mul", [f"{n}.chosen", f"{n}.beyond"], [f"{n}.added"]),
            make("Add", [one, f"{n}.added"], [f"{n}.factor"]),
            make("Mul", [draw, ulp], [f"{step}.one_ulp"]),
            make("Mul", [f"{step}.one_ulp", f"{n}.factor"], [step]),
        ]

    def _scaled(
        self, quiet: str, step: str, moved: str, kind: int, wide: int
    ) -> list[onnx.NodeProto]:
        make = helper.make_node
        if kind == wide:
            return [make("Mul", [quiet, step], [moved])]
        return [
            make("Cast", [quiet], [f"{moved}.wide"], to=wide),
            make("Mul", [f"{moved}.wide", step], [f"{moved}.product"]),
            make("Cast", [f"{moved}.product"], [moved], to=kind),
        ]


def _value_types(model: onnx.ModelProto) -> dict[str, int]:
    # Should the model be malformed, noise comes only where types are declared.
    with contextlib.suppress(Exception):
        model = onnx.shape_inference.infer_shapes(model)
    return {
        value.name: value.type.tensor_type.elem_type
        for graph in all_graphs(model)
        for value in (*graph.value_info, *graph.output)
    }


def _types(model: onnx.ModelProto) -> Iterable[int]:
    for graph in all_graphs(model):
        yield from (tensor.data_type for tensor in graph.initializer)
        for value in (*graph.input, *graph.output):
            yield value.type.tensor_type.elem_type
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype"):
                yield attribute.i
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type
