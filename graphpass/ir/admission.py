"""What no pass has to reckon with: a model of two meanings, or without end, is refused when read.

Neither costs more than a look at each name. What makes a model invalid in other ways is for
ONNX's own checker and for ONNX Runtime to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import onnx

from graphpass.errors import ModelError
from graphpass.ir.proto_walk import all_graphs
from graphpass.storage.reference import tensors

_LARGEST_VERSION = 2**31 - 1
# Nodes that calls of functions stand for, as inference and ONNX Runtime write each of them out:
# altogether, and where they are so many times those that the model has.
_MOST_NODES_IN_CALLS = 250_000
_MOST_OF_A_FEW, _FEW = 16_000, 1 / 400
_MOST_CALLS_DEEP = 200

_MOST_NUMBERS = 1 << 20  # in an attribute
# What a graph takes while it is read, looked at, copied and written: bytes for each, as measured.
_NODE, _TENSOR, _VALUE, _TYPE, _FUNCTION = 4400, 4400, 7000, 2000, 3500
_ATTRIBUTE, _NAME, _NUMBER, _TEXT, _SIZE = 1700, 150, 40, 100, 350
_NOTE, _BYTE = 300, 11
_MOST_BYTES = 900 << 20
_DATA_TYPES = frozenset(onnx.TensorProto.DataType.values())

Identity = tuple[str, str, str]


def require_admissible(model: onnx.ModelProto) -> None:
    """Raise `ModelError`, naming the culprit, where `model` is one that is refused unread.

    A graph is no larger than fits into memory, and in it a name is made once; a function is
    there once and does not call itself, however indirectly; calls stand for a number of nodes that
    can be written out; versions are numbers that ONNX has, or may come to have; types are known;
    only functions have attributes to refer to; no tensor is a segment of another.
    """
    _require_moderate(model)
    _require_versions(model)
    for graph in all_graphs(model):
        made = [value.name for value in graph.input]
        constants = [tensor.name for tensor in graph.initializer]
        constants += [sparse.values.name for sparse in graph.sparse_initializer]
        _require_once(made, "graph input")
        _require_once(constants, "initializer")
        for values in (graph.input, graph.output, graph.value_info):
            _require_types(values)
        # an initializer that is also an input is its default
        _require_made_once(graph.node, {*made, *constants})
    for function in model.functions:
        _require_made_once(function.node, set(function.input))
    _require_no_references(model.graph)
    _require_finite_calls(model)
    for tensor in tensors(model):
        if not tensor.data_type or tensor.data_type not in _DATA_TYPES:
            raise ModelError(f"tensor '{tensor.name}' is of type {tensor.data_type}: there is none")
        if tensor.HasField("segment"):
            raise ModelError(f"tensor '{tensor.name}' is a segment of another: ONNX dropped these")


def _require_moderate(model: onnx.ModelProto) -> None:
    """Raise where what a model holds besides its weights takes too much memory."""
    graphs = list(all_graphs(model))
    nodes = [node for holder in (*graphs, *model.functions) for node in holder.node]
    taken = len(model.functions) * _FUNCTION + len(nodes) * _NODE
    taken += len(model.metadata_props) * _NOTE + len(model.opset_import) * _TYPE
    for graph in graphs:
        for values, each in (
            (graph.input, _VALUE),
            (graph.output, _VALUE),
            (graph.value_info, _TYPE),
        ):
            taken += len(values) * each + sum(map(_rank, values)) * _SIZE
        taken += (len(graph.initializer) + len(graph.sparse_initializer)) * _TENSOR
        taken += sum(len(tensor.dims) for tensor in graph.initializer) * _SIZE
        taken += len(graph.quantization_annotation) * _TYPE
    for node in nodes:
        taken += (len(node.input) + len(node.output)) * _NAME + len(node.attribute) * _ATTRIBUTE
        taken += len(node.metadata_props) * _NOTE
        for attribute in node.attribute:
            taken += (len(attribute.ints) + len(attribute.floats)) * _NUMBER
            taken += len(attribute.strings) * _TEXT
    if taken < _MOST_BYTES:  # most have long been found to be small: this looks at every byte
        weights = sum(_payload(tensor) for tensor in tensors(model))
        taken += max(model.ByteSize() - weights, 0) * _BYTE
    if taken > _MOST_BYTES:
        raise ModelError(
            f"what it holds besides weights ({len(nodes)} nodes, names, types, notes) takes about "
            f"{taken >> 20} MiB of memory, more than the {_MOST_BYTES >> 20} MiB that are taken"
        )


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _payload(tensor: onnx.TensorProto) -> int:
    """Return about how many bytes of a file the elements of a tensor take."""
    numbers = len(tensor.int32_data) + len(tensor.int64_data) + len(tensor.uint64_data)
    floats = 4 * len(tensor.float_data) + 8 * len(tensor.double_data)
    return len(tensor.raw_data) + floats + numbers


def _require_versions(model: onnx.ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"the model is of IR version {model.ir_version}; the installed onnx knows versions up "
            f"to {onnx.IR_VERSION}"
        )
    for entry in model.opset_import:
        if not 0 < entry.version <= _LARGEST_VERSION:
            domain = entry.domain or "ai.onnx"
            raise ModelError(f"there is no opset {entry.version} of domain '{domain}'")


def _require_types(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        kind = value.type.tensor_type.elem_type
        if kind not in _DATA_TYPES:
            raise ModelError(f"'{value.name}' is of element type {kind}: there is none")


def _require_once(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        name = next(name for name, count in Counter(names).items() if count > 1)
        raise ModelError(f"{what} '{name}' is there twice: nothing says which one counts")


def _require_made_once(nodes: Iterable[onnx.NodeProto], known: set[str]) -> None:
    made: set[str] = set()
    for node in nodes:
        for name in node.output:
            if not name:
                continue
            if name in made or name in known:
                first = "by another node as well" if name in made else "though it is there already"
                raise ModelError(f"{_called(node)} makes '{name}', {first}")
            made.add(name)
        if any(_is_endless(node, attribute) for attribute in node.attribute):
            raise ModelError(
                f"{_called(node)} has an attribute of more than {_MOST_NUMBERS} numbers"
            )
        if len(node.attribute) > 1 and len({a.name for a in node.attribute}) < len(node.attribute):
            twice = Counter(a.name for a in node.attribute).most_common(1)[0][0]
            raise ModelError(f"{_called(node)} has the attribute '{twice}' twice")


def _is_endless(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    """Whether a list of numbers is longer than any operator takes; trees in ai.onnx.ml may be."""
    count = len(attribute.ints) + len(attribute.floats)
    return count > _MOST_NUMBERS and node.domain in ("", "ai.onnx")


def _require_no_references(graph: onnx.GraphProto) -> None:
    """Raise where an attribute is that of a function, outside of any."""
    waiting = [graph]
    while waiting:
        for node in waiting.pop().node:
            for attribute in node.attribute:
                if attribute.ref_attr_name:
                    raise ModelError(
                        f"{_called(node)} takes '{attribute.name}' from the attribute "
                        f"'{attribute.ref_attr_name}' of a function, but is in none"
                    )
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name}'" if node.name else f"a {node.op_type}"


def _require_finite_calls(model: onnx.ModelProto) -> None:
    """Raise where functions call themselves, or stand for more nodes than can be written out."""
    functions: dict[Identity, onnx.FunctionProto] = {}
    for function in model.functions:
        if functions.setdefault(_identity(function), function) is not function:
            raise ModelError(f"function '{function.domain}::{function.name}' is there twice")
    if not functions:
        return
    calls = {key: _calls(body.node, functions) for key, body in functions.items()}
    sizes: dict[Identity, int] = {}
    for start in functions:
        _measure(start, functions, calls, sizes)
    total = sum(
        sizes[key] * count
        for graph in all_graphs(model)
        for key, count in _calls_here(graph.node, functions).items()
    )
    written = len(model.graph.node) + sum(len(body.node) for body in functions.values())
    most = _MOST_OF_A_FEW if written < total * _FEW else _MOST_NODES_IN_CALLS
    if total > most:
        count = total if total < _LARGEST_VERSION else "billions of"
        raise ModelError(
            f"its functions call each other so often that {written} nodes stand for {count}, more "
            f"than the {most} that graphpass takes"
        )


def _measure(
    start: Identity,
    functions: dict[Identity, onnx.FunctionProto],
    calls: dict[Identity, Counter[Identity]],
    sizes: dict[Identity, int],
) -> None:
    """Note in `sizes` how many nodes `start`, and what it calls, stand for. Raises `ModelError`."""
    path = [start]
    while path:
        key = path[-1]
        waiting = next((callee for callee in calls[key] if callee not in sizes), None)
        if waiting is None:
            own = len(functions[key].node)
            sizes[key] = own + sum(sizes[callee] * count for callee, count in calls[key].items())
            path.pop()
        elif waiting in path:
            raise ModelError(f"function '{waiting[0]}::{waiting[1]}' calls itself")
        elif len(path) > _MOST_CALLS_DEEP:
            raise ModelError(f"its functions call each other more than {_MOST_CALLS_DEEP} deep")
        else:
            path.append(waiting)


def _calls(
    nodes: Iterable[onnx.NodeProto], functions: dict[Identity, onnx.FunctionProto]
) -> Counter[Identity]:
    """Count the calls in `nodes` and in the bodies of their attributes."""
    found: Counter[Identity] = Counter()
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            key = (node.domain, node.op_type, node.overload)
            found[key] += key in functions
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g.node)
                waiting.extend(body.node for body in attribute.graphs)
    return +found


def _calls_here(
    nodes: Iterable[onnx.NodeProto], functions: dict[Identity, onnx.FunctionProto]
) -> Counter[Identity]:
    keys = ((node.domain, node.op_type, node.overload) for node in nodes)
    return Counter(key for key in keys if key in functions)


def _identity(function: onnx.FunctionProto) -> Identity:
    return function.domain, function.name, function.overload
