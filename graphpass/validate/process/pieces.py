"""A model cut into pieces that run one after the other, so that few of its weights are in memory.

Without ONNX Runtime's optimizations nothing looks beyond one node, and what comes out is the same
to the bit. With them, nothing is merged across a cut: there is one only before a node whose
weights do not fit any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from graphpass.ir.operators import Trait, traits
from graphpass.ir.proto_walk import all_nodes
from graphpass.storage.reference import reference_of

_WHOLE_BYTES = 192 << 20  # of weights outside of the model: with fewer it is not cut
_PIECE_BYTES = 128 << 20  # of the weights of a piece, if it is more than one node
_KNOWN_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
# ONNX Runtime computes in single precision behind their back, from one node to the next
_WIDENED = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Piece:
    """Some nodes in a row.

    `is_heavy`: its weights are so many that no copy of them is made for speed. `results`: the
    outputs of the whole model, in its order.
    """

    model: onnx.ModelProto
    is_heavy: bool
    results: tuple[str, ...]

    @property
    def inputs(self) -> list[str]:
        """The names of the values that it reads."""
        return [value.name for value in self.model.graph.input]


def pieces_of(model: onnx.ModelProto) -> list[Piece]:
    """Cut a skeleton, none where its weights are few or where a cut could be seen."""
    graph = model.graph
    found = ((tensor.name, reference_of(tensor)) for tensor in graph.initializer)
    sizes = {name: reference.length for name, reference in found if reference is not None}
    if sum(sizes.values()) <= _WHOLE_BYTES or not _may_be_cut(model):
        return []
    parts = _parts(_steps(graph), sizes)
    made = [{name for i in part.nodes for name in graph.node[i].output if name} for part in parts]
    results = {value.name for value in graph.output}
    given = {value.name for value in graph.input}
    handed = [given.union(*made[:i]) & part.reads - made[i] for i, part in enumerate(parts)]
    wanted = [results.union(*handed[i + 1 :]) for i in range(len(parts))]
    types = _types(model, set().union(*handed))
    if types is None or not results <= set().union(*made):
        return []
    return [
        _piece(model, part, [types[name] for name in sorted(inputs)], outputs & later, sizes)
        for part, inputs, outputs, later in zip(parts, handed, made, wanted, strict=True)
    ]


@dataclass(frozen=True)
class _Part:
    """Nodes by their places in the graph, in order, and all that they read."""

    nodes: frozenset[int]
    reads: frozenset[str]


def _may_be_cut(model: onnx.ModelProto) -> bool:
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    own = {(function.domain, function.name) for function in model.functions}
    return (
        not graph.sparse_initializer
        and not any(value.name in constants for value in graph.input)
        # what remembers something from run to run must be in one session
        and not any(
            Trait.RANDOM in traits(node.op_type, node.domain)
            or not (node.domain in _KNOWN_DOMAINS or (node.domain, node.op_type) in own)
            for node in all_nodes(model)
        )
    )


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, and every name in its bodies."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from _reads(inner)


def _steps(graph: onnx.GraphProto) -> Iterator[_Part]:
    """Yield each node that computes of inputs, with those that make constants for it alone.

    They are made again in each piece: handed on, they would be as heavy as the weights.
    """
    constants = {tensor.name: _Part(frozenset(), frozenset()) for tensor in graph.initializer}
    for index, node in enumerate(graph.node):
        names = frozenset(_reads(node))
        before = [constants[name] for name in names if name in constants]
        step = _Part(
            frozenset([index]).union(*(part.nodes for part in before)),
            names.union(*(part.reads for part in before)),
        )
        if len(before) == len(names):
            constants.update(dict.fromkeys(filter(None, node.output), step))
        else:
            yield step


def _parts(steps: Iterable[_Part], sizes: Mapping[str, int]) -> list[_Part]:
    """Join steps as long as their weights fit."""
    parts: list[list[_Part]] = [[]]
    held: set[str] = set()
    for step in steps:
        weights = sizes.keys() & step.reads
        if held and weights and sum(sizes[name] for name in held | weights) > _PIECE_BYTES:
            parts.append([])
            held = set()
        held |= weights
        parts[-1].append(step)
    empty = _Part(frozenset(), frozenset())
    return [
        _Part(
            empty.nodes.union(*(step.nodes for step in part)),
            empty.reads.union(*(step.reads for step in part)),
        )
        for part in parts
    ]


def _types(model: onnx.ModelProto, handed: set[str]) -> dict[str, onnx.ValueInfoProto] | None:
    """Return the types of what pieces read of each other; None where one is not known."""
    types = _told(model)
    if not handed <= types.keys():
        types = _told(onnx.shape_inference.infer_shapes(model)) | types
    for name in handed:
        kind = types[name].type.tensor_type.elem_type if name in types else 0
        if kind == onnx.TensorProto.UNDEFINED or kind in _WIDENED:
            return None
    return types


def _told(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    graph = model.graph
    return {v.name: v for v in (*graph.value_info, *graph.output, *graph.input)}


def _piece(
    model: onnx.ModelProto,
    part: _Part,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: set[str],
    sizes: Mapping[str, int],
) -> Piece:
    graph = model.graph
    piece = onnx.ModelProto(ir_version=model.ir_version)
    piece.opset_import.extend(model.opset_import)
    piece.functions.extend(model.functions)
    piece.graph.name = graph.name
    piece.graph.node.extend(graph.node[index] for index in sorted(part.nodes))
    piece.graph.initializer.extend(t for t in graph.initializer if t.name in part.reads)
    piece.graph.input.extend(inputs)
    piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(outputs))
    made = {name for node in piece.graph.node for name in node.output}
    piece.graph.value_info.extend(v for v in graph.value_info if v.name in made - outputs)
    heavy = sum(sizes[name] for name in sizes.keys() & part.reads) > _PIECE_BYTES
    return Piece(piece, heavy, tuple(value.name for value in graph.output))
