"""What is computed or stored twice is computed or stored once."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass import Constant, Graph, Node, Survey, Tensor, Weight, attribute, is_output, operator
from graphpass.ir.operators import Trait, is_training, named
from graphpass.ir.questions import has_effects, schema
from graphpass.ir.refusal import IS_OUTPUT, RefusedError
from graphpass.rewrite.survey import Refused, Twin

_SMALL_BYTES = 4096  # what is compared at once; of what is larger a part is looked at first
_PART_BYTES = 1 << 24  # of a large weight, read in one piece
_COMMUTATIVE = frozenset(named(Trait.COMMUTATIVE))
# another result each time, or one that is to stay on its own
_ALONE = frozenset((*named(Trait.RANDOM), "Identity"))


class EqualInitializers(Survey):
    """Two initializers of the same type, shape and bytes = one."""

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Twin]:
        """Yield a pair for each initializer that holds what an earlier one does."""
        alike: dict[tuple[int, tuple[int, ...]], list[Constant]] = {}
        for tensor in scope.initializers:
            # running statistics are moved where they lie: two of them must not lie in one place
            stays = is_output(tensor) or any(map(is_training, tensor.outputs))
            if tensor.outputs and not stays:
                weight = tensor.weight
                alike.setdefault((weight.data_type, weight.shape), []).append(tensor)
        for group in alike.values():
            # looking at a part first, a large weight is read only where another begins like it
            for part in _split(group, _beginning) if len(group) > 1 else ():
                first, *others = part
                yield from (Twin(other, first) for other in others)


def _split(group: list[Constant], content: Any) -> Iterator[list[Constant]]:
    parts: dict[bytes, list[Constant]] = {}
    for tensor in group:
        parts.setdefault(content(tensor.weight), []).append(tensor)
    for part in parts.values():
        if len(part) > 1 and content is _beginning and part[0].weight.nbytes > _SMALL_BYTES:
            yield from _split(part, _digest)
        elif len(part) > 1:
            yield part


def _beginning(weight: Weight) -> bytes:
    if weight.nbytes <= _SMALL_BYTES or not weight.ndim:
        return _bytes(weight.array())
    return _bytes(weight.rows(slice(0, _rows(weight, _SMALL_BYTES))))


def _digest(weight: Weight) -> bytes:
    found = hashlib.sha256()
    step = _rows(weight, _PART_BYTES)
    for start in range(0, weight.shape[0], step):
        found.update(_bytes(weight.rows(slice(start, start + step))))
    return found.digest()


def _rows(weight: Weight, part_bytes: int) -> int:
    """Return how many rows along axis 0 take about `part_bytes`."""
    return max(1, part_bytes * weight.shape[0] // weight.nbytes)


def _bytes(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.kind in "OSU":
        return repr(array.tolist()).encode()
    return array.tobytes()


class EqualNodes(Survey):
    """f(x) twice = f(x) once, where f is the same operator with equal attributes and bodies."""

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Twin | Refused]:
        """Yield a pair for each node that computes what an earlier one of `scope` does.

        Not what is random or trains, nor what ONNX does not know. A body may never run, or often:
        nodes are compared within one scope.
        """
        first: dict[Hashable, Node] = {}  # by operator and inputs: nearly all are alone there
        known: dict[Hashable, Node] = {}  # by their attributes as well, where others are like them
        for node in scope.nodes:
            if not node.outputs or operator(node) in _ALONE:
                continue
            key = _key(node)
            other = first.setdefault(key, node)
            if other is node or not _is_repeatable(node):
                continue
            known.setdefault((key, _attributes(other, {})), other)
            kept = known.setdefault((key, _attributes(node, {})), node)
            twin = Twin(node, kept)
            if kept is node or not _gives(kept, node):
                continue
            both = [(old, new) for old, new in twin.outputs() if is_output(old) and is_output(new)]
            if both:
                names = "' and '".join(tensor.name for tensor in both[0])
                reason = f"'{names}' are outputs of the graph and keep their names"
                yield Refused(node, RefusedError(reason, IS_OUTPUT))
            else:
                yield twin


def _key(node: Node) -> Hashable:
    inputs = [id(tensor) if tensor.name else 0 for tensor in node.inputs]
    while inputs and not inputs[-1]:
        inputs.pop()
    op = operator(node)
    return op, tuple(sorted(inputs) if op in _COMMUTATIVE else inputs)


def _is_repeatable(node: Node) -> bool:
    """Whether running `node` again gives the same, and changes nothing else."""
    if operator(node) in _ALONE or has_effects(node):
        return False
    if is_training(node):
        return False
    return all(
        _is_repeatable(inner) or operator(inner) == "Identity"
        for body in node.graph.subgraphs_of(node)
        for inner in body.nodes
    )


def _gives(kept: Node, node: Node) -> bool:
    """Whether `kept` has all the outputs of `node` that something reads."""
    used = [t.name and (t.outputs or is_output(t)) for t in node.outputs]
    named = [tensor.name for tensor in kept.outputs]
    return any(used) and all(
        named[index : index + 1] for index, is_used in enumerate(used) if is_used
    )


def _attributes(node: Node, names: dict[int, int]) -> Hashable:
    """Return what is equal for equal attributes, those that are not given among them.

    `names`: numbers of the tensors of the bodies around, which are told apart by where they stand.
    """
    found = schema(node)
    given = {*node.attrs, *(found.attributes if found else ())}
    listed = {}
    for name in sorted(given):
        value = node.attrs.get(name)
        value = attribute(node, name) if value is None else value
        if value is not None:
            listed[name] = _content(value, names)
    return tuple(listed.items())


def _content(value: Any, names: dict[int, int]) -> Hashable:
    if isinstance(value, (list, tuple)):
        return tuple(_content(part, names) for part in value)
    if isinstance(value, Graph):
        return _body(value, dict(names))
    if isinstance(value, gs.Node.AttributeRef):
        return "parameter", value.name
    if isinstance(value, onnx.AttributeProto):
        return bytes(value.SerializeToString(deterministic=True))
    if isinstance(value, Constant):
        weight = value.weight
        if weight.nbytes > _PART_BYTES:
            return id(value)
        return weight.data_type, weight.shape, _bytes(weight.array())
    if isinstance(value, float):
        return struct.pack("d", value)  # 0.0 == -0.0, which is another attribute
    known: Hashable = value if isinstance(value, Hashable) else id(value)
    return type(value).__name__, known


def _body(graph: Graph, names: dict[int, int]) -> Hashable:
    """Return what is equal for bodies that differ at most in the names of what is inside."""

    def named(tensor: Tensor) -> Hashable:
        if not tensor.name:
            return ""
        return names.get(id(tensor), ("outer", id(tensor)))

    for tensor in (*graph.inputs, *graph.initializers):
        names[id(tensor)] = len(names)
    constants = tuple(_content(tensor, names) for tensor in graph.initializers)
    nodes = []
    for node in graph.nodes:
        read = tuple(named(tensor) for tensor in node.inputs)
        nodes.append((operator(node), read, len(node.outputs), _attributes(node, names)))
        for tensor in node.outputs:
            names[id(tensor)] = len(names)
    return len(graph.inputs), constants, tuple(nodes), tuple(map(named, graph.outputs))


__all__ = ["EqualInitializers", "EqualNodes"]
