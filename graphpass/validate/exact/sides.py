"""Both sides of a window as they are computed exactly: nodes, constants, what is fed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.ir.operators import Trait, traits
from graphpass.storage.wire import tensor_array
from graphpass.validate.exact.field import Array
from graphpass.validate.exact.number import Number, Numbers, UnknownError, Value
from graphpass.validate.window.alike import FLOATS, content_of, is_float


@dataclass(frozen=True)
class Side:
    """One side of a window. `opset`: of ONNX's own operators."""

    model: onnx.ModelProto

    @property
    def graph(self) -> onnx.GraphProto:
        """Its graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        own = [o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")]
        return max(own, default=1)

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """What tells the data of each constant of floats, by name."""
        return {t.name: content_of(t) for t in self.graph.initializer if is_float(t)}

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The constants, by name."""
        return {tensor.name: tensor_array(tensor) for tensor in self.graph.initializer}

    @property
    def is_finite(self) -> bool:
        """Whether its constants are numbers throughout."""
        return all(bool(np.isfinite(self.arrays[name]).all()) for name in self.contents)

    @property
    def elements(self) -> int:
        """How many elements its constants have."""
        return sum(math.prod(tensor.dims) for tensor in self.graph.initializer)


def given_to(
    side: Side, fed: Mapping[str, Value], drawn: Mapping[str, Array], numbers: Numbers
) -> dict[str, Value]:
    """Return inputs and constants as they are computed with; `drawn`: new values for some."""
    given = dict(fed)
    for tensor in side.graph.initializer:
        kind = tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.name in drawn:
            given[tensor.name] = numbers.of(drawn[tensor.name], kind, degree=1)
        elif is_float(tensor):
            given[tensor.name] = numbers.of(side.arrays[tensor.name], kind)
        else:
            given[tensor.name] = side.arrays[tensor.name]
    return given


def is_one_computation(before: Side, after: Side, output: str) -> bool:
    """Whether both sides are the same operators on the same values, and none draws at random."""
    if any(
        Trait.RANDOM in traits(node.op_type) and node.op_type != "Dropout"
        for side in (before, after)
        for node in side.graph.node
    ):
        return False
    one, other = _told(before, output), _told(after, output)
    return one is not None and one == other


def _told(side: Side, output: str) -> bytes | None:
    """Return what tells how a value is computed; None where nobody knows."""
    told = {value.name: value.name.encode() for value in side.graph.input}
    told |= {tensor.name: content_of(tensor) for tensor in side.graph.initializer}
    for node in side.graph.node:
        if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
            return None
        if node.domain not in ("", "ai.onnx") and not traits(node.op_type, node.domain):
            return None  # it may draw at random
        if node.op_type == "Identity":
            told[node.output[0]] = told.get(node.input[0], b"")
            continue
        digest = hashlib.blake2b(f"{node.domain}.{node.op_type}.{len(node.output)}".encode())
        for attribute in sorted(a.SerializeToString() for a in node.attribute):
            digest.update(attribute)
        for name in node.input:
            digest.update(hashlib.blake2b(told.get(name, b"") if name else b"-").digest())
        for index, name in enumerate(node.output):
            told[name] = digest.digest() + index.to_bytes(2, "big")
    return told.get(output)


# ----------------------------------------------------------------------------- what is fed


class Inputs:
    """Draws what a window reads from around it, for both sides."""

    def __init__(self, sides: Sequence[Side], shapes: Mapping[str, Sequence[int]]) -> None:
        self._values = {v.name: v for side in sides for v in side.graph.input}
        self._shapes = shapes
        self._places = _places(node for side in sides for node in side.graph.node)
        self._nodes = [node for side in sides for node in side.graph.node]

    def drawn(
        self,
        rng: np.random.Generator,
        numbers: Numbers,
        *,
        below: bool = False,
        near_bounds: bool = False,
    ) -> tuple[dict[str, Value], float]:
        """Return a value for each input, and how many each element could have had at least.

        `below`: floats are negative, as the largest of many hardly ever is. `near_bounds`: most
        are about as small as bounds are.
        """
        fed: dict[str, Value] = {}
        choices = np.inf
        for name in sorted(self._values):
            shape = tuple(self._shapes[name])
            elem_type = self._values[name].type.tensor_type.elem_type
            if elem_type in FLOATS:
                kind = tensor_dtype_to_np_dtype(elem_type)
                whole = rng.integers(-(1 << 25), 0 if below else 1 << 25, shape)
                whole = np.asarray(whole, np.float64)
                fed[name] = Number(whole, whole, np.dtype(kind))
                if near_bounds:
                    fed[name] = _nearer(fed[name], rng, numbers)
                count: float = 2.0 ** (25 if below else 26)
            else:
                fed[name], count = self._integers(name, shape, elem_type, rng)
            if 0 in shape:
                continue
            choices = min(choices, count)
        return fed, choices

    def _integers(
        self, name: str, shape: tuple[int, ...], elem_type: int, rng: np.random.Generator
    ) -> tuple[Array, float]:
        kind = np.dtype(tensor_dtype_to_np_dtype(elem_type))
        if kind.kind not in "iub":
            raise UnknownError(f"'{name}', which holds no numbers")
        if kind.kind == "b":
            return rng.integers(0, 2, shape).astype(bool), 2.0
        if name in self._places:  # as places, or sizes, they must exist: they say nothing else
            return np.asarray(rng.integers(0, 3, shape), kind), np.inf
        bits = min(8 * kind.itemsize - (kind.kind == "i"), 24)
        low = -(1 << bits) if kind.kind == "i" else 0
        return np.asarray(rng.integers(low, 1 << bits, shape), kind), float((1 << bits) - low)


def _nearer(number: Number, rng: np.random.Generator, numbers: Numbers) -> Number:
    """Divide numbers by powers of two: what is left of 2^25 is 2^25 or from 1/2 to 2^6."""
    exponents = rng.choice([0, 19, 21, 23, 25, 26], number.shape)
    shares = np.ldexp(1.0, -exponents)
    residue = numbers.field.multiply(number.residue, numbers.field.residues(shares))
    return replace(number, residue=residue, size=number.size * shares)


def _places(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return what is read as places or sizes."""
    movers = (*nodes,)
    return {
        name
        for node in movers
        if (Trait.MOVEMENT in traits(node.op_type) and node.op_type not in ("Concat", "Where"))
        or node.op_type in ("ConstantOfShape", "Range", "SequenceAt", "SplitToSequence")
        for name in node.input[node.op_type not in ("ConstantOfShape", "Range") :]
    }


# ----------------------------------------------------------------------- in double precision


def can_be_double(model: onnx.ModelProto) -> bool:
    """Whether every operator of a model computes in float64 where it does in another float."""
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            return False
        if not _takes_double(node.op_type, Side(model).opset):
            return False
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            return False
    return True


@lru_cache(maxsize=1024)
def _takes_double(op: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return False
    for constraint in schema.type_constraints:
        allowed = constraint.allowed_type_strs
        if "tensor(float)" in allowed and "tensor(double)" not in allowed:
            return False
    formal = [*schema.inputs, *schema.outputs]
    return all(entry.type_str != "tensor(float)" for entry in formal)


def in_double(model: onnx.ModelProto, epsilon: float | None, *, widen: bool) -> onnx.ModelProto:
    """Return a model of double precision without the data of its floats.

    `epsilon`: what BatchNormalization adds to a variance. Without `widen` types stay.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    for tensor in graph.initializer:
        if is_float(tensor):
            kept = tensor.data_type if not widen else onnx.TensorProto.DOUBLE
            bare = onnx.TensorProto(name=tensor.name, data_type=kept, dims=tensor.dims)
            tensor.CopyFrom(bare)
    for node in graph.node:
        if node.op_type == "BatchNormalization" and epsilon is not None:
            _set(node, onnx.helper.make_attribute("epsilon", epsilon))
        if not widen:
            continue
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i in FLOATS:
                    attribute.i = onnx.TensorProto.DOUBLE
        for attribute in node.attribute:
            if attribute.HasField("t") and is_float(attribute.t):
                wide = tensor_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(wide, attribute.t.name))
    if widen:
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in FLOATS:
                value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return changed


def _set(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    kept = [held for held in node.attribute if held.name != attribute.name]
    del node.attribute[:]
    node.attribute.extend([*kept, attribute])


def union(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Return one model of the nodes of several that are parts of one graph."""
    if len(models) == 1:
        return models[0]
    joined = onnx.ModelProto(ir_version=models[0].ir_version)
    seen_opsets: dict[str, int] = {}
    nodes: dict[str, onnx.NodeProto] = {}
    for model in models:
        seen_opsets |= {o.domain: o.version for o in model.opset_import}
        for node in model.graph.node:
            nodes.setdefault(node.output[0], node)
    for domain, version in seen_opsets.items():
        joined.opset_import.add(domain=domain, version=version)
    graph = joined.graph
    graph.name = "window"
    graph.node.extend(_sorted(list(nodes.values())))
    made = {name for node in graph.node for name in node.output}
    _extend(graph.initializer, (t for m in models for t in m.graph.initializer), made)
    _extend(graph.input, (v for m in models for v in m.graph.input), made)
    _extend(graph.output, (v for m in models for v in m.graph.output), set())
    return joined


def _extend(field: Any, entries: Iterable[Any], without: set[str]) -> None:
    seen: Callable[[str], bool] = without.__contains__
    known: set[str] = set()
    for entry in entries:
        if not seen(entry.name) and entry.name not in known:
            known.add(entry.name)
            field.append(entry)


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Put producers first."""
    made = {name for node in nodes for name in node.output}
    done: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    while nodes:
        ready = [n for n in nodes if all(i not in made or i in done for i in n.input)]
        if not ready:
            return [*ordered, *nodes]
        for node in ready:
            nodes.remove(node)
            ordered.append(node)
            done.update(node.output)
    return ordered
