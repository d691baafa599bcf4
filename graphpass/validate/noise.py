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
_DRAWN = (TensorProto.FLOAT, TensorProto.DOUBLE)  # what ONNX Runtime draws noise in
_CONSTANT_SHARE = 80  # a tenth of n/4, in ulps, which are two u


def arithmetic_epsilon(model: onnx.ModelProto) -> float:
    """Return the epsilon of the coarsest float type that the model computes in."""
    found = [_EPSILON[kind] for kind in _types(model) if kind in _EPSILON]
    return max(found, default=_EPSILON[TensorProto.FLOAT])


HALF_EPSILON = _EPSILON[TensorProto.FLOAT16]


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

    `constant_maps`: all inputs are zeros, and behind a bias what is averaged is one number
    throughout, so that its rounding errors are the same each time and add up. Runtimes add in at
    least four lanes, each n/4 numbers, and each addition rounds by u at most: n/4 of u.
    There an average over more than 64 moves by up to a tenth of that, of which an output may move
    by ten times. On other inputs errors cancel as they do everywhere. None where no result is
    known to be a float; functions are left alone.
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
            *self._sized(node, draw, ulp, step, kind),
            *self._scaled(quiet, step, moved, kind, wide),
            make("Add", [quiet, moved], [name]),
        ]

    def _sized(
        self, node: onnx.NodeProto, draw: str, ulp: str, step: str, kind: int
    ) -> list[onnx.NodeProto]:
        """Return nodes for `draw * ulp`, times what roundings of a long average add up to."""
        make = helper.make_node
        if not (self._constant_maps and node.op_type in _AVERAGING_OPS and kind in _DRAWN):
            return [make("Mul", [draw, ulp], [step])]
        one, least, share, n = (f"{step}.{part}" for part in ("one", "least", "share", "n"))
        wide = kind
        numbers = {f"{n}.few": 1e-4, one: 1.0, least: float(_SHORT_SUM), share: 1 / _CONSTANT_SHARE}
        sized = [
            make("Constant", [], [name], value=helper.make_tensor(name, wide, [], [number]))
            for name, number in numbers.items()
        ]
        for source, count in ((node.input[0], f"{n}.in"), (node.output[0], f"{n}.out")):
            sized += [
                make("Size", [source], [f"{count}.whole"]),
                make("Cast", [f"{count}.whole"], [count], to=wide),
            ]
        return [
            *sized,
            make("Div", [f"{n}.in", f"{n}.out"], [n]),
            make("Mul", [n, share], [f"{n}.grown"]),
            make("Greater", [n, least], [f"{n}.long"]),
            make("Cast", [f"{n}.long"], [f"{n}.is_long"], to=wide),  # there is no Where before 9
            *self._is_of_one_number(node, n, wide),
            make("Mul", [f"{n}.is_long", f"{n}.is_one"], [f"{n}.chosen"]),
            make("Sub", [f"{n}.grown", one], [f"{n}.beyond"]),
            make("Mul", [f"{n}.chosen", f"{n}.beyond"], [f"{n}.added"]),
            make("Add", [one, f"{n}.added"], [f"{n}.factor"]),
            make("Mul", [draw, ulp], [f"{step}.one_ulp"]),
            make("Mul", [f"{step}.one_ulp", f"{n}.factor"], [step]),
        ]

    def _is_of_one_number(self, node: onnx.NodeProto, n: str, kind: int) -> list[onnx.NodeProto]:
        """Return nodes that give 1 where what is averaged is one number throughout, 0 elsewhere.

        There the mean of the squares is the square of the mean.
        """
        make = helper.make_node
        of_squares = onnx.NodeProto()
        of_squares.CopyFrom(node)
        of_squares.name = ""
        of_squares.input[0], of_squares.output[0] = f"{n}.square", f"{n}.of_squares"
        sums = node.op_type == "ReduceSum"
        mean = f"{n}.times" if sums else f"{n}.of_squares"
        return [
            make("Mul", [node.input[0], node.input[0]], [f"{n}.square"]),
            of_squares,
            *([make("Mul", [f"{n}.of_squares", n], [mean])] if sums else []),
            make("Mul", [node.output[0], node.output[0]], [f"{n}.squared"]),
            make("Sub", [mean, f"{n}.squared"], [f"{n}.spread"]),
            make("Mul", [mean, f"{n}.few"], [f"{n}.little"]),
            make("Less", [f"{n}.spread", f"{n}.little"], [f"{n}.flat"]),
            make("Cast", [f"{n}.flat"], [f"{n}.is_one"], to=kind),
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
