"""Whether a model is one at all, decided where it is read: names, order, operators, outputs.

ONNX wants nodes in an order in which each comes after those that it reads; what is not so, and
still can be brought into one, is sorted, as ONNX Runtime does when it loads a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from graphpass.errors import ModelError
from graphpass.ir.proto_walk import all_graphs

# Of early versions, which ONNX has dropped or never had, but ONNX Runtime knows or has known.
_UNLISTED = frozenset(
    "ATen Affine ConstantFill Crop DynamicSlice GRUUnit GivenTensorFill ImageScaler "
    "LayerNormalization ParametricSoftplus Scale ScaledTanh SimplifiedLayerNormalization".split()
)
_MOST_NAMED = 6  # nodes of a cycle

# The names that a graph takes from those around it, each with who reads it.
_Free = dict[str, str]


def make_sound(model: onnx.ModelProto) -> None:
    """Sort nodes that come before what they read, in bodies and functions as well.

    Raises `ModelError`, naming node or tensor: there is no output, a name that nothing makes, a
    cycle, or an operator that ONNX does not have in the opset of the model.
    """
    if not model.graph.output:
        raise ModelError("the model has no outputs: nothing that it computes can be seen")
    free = _settle_graph(model.graph)
    for function in model.functions:
        free |= _settle(function.node, set(function.input), function.output)
    for name, reader in free.items():
        raise ModelError(f"{reader} '{name}', which nothing makes")
    _require_known_operators(model)


def _settle_graph(graph: onnx.GraphProto) -> _Free:
    own = {value.name for value in graph.input}
    own.update(tensor.name for tensor in graph.initializer)
    own.update(sparse.values.name for sparse in graph.sparse_initializer)
    return _settle(graph.node, own, [value.name for value in graph.output])


def _settle(nodes: Sequence[onnx.NodeProto], known: set[str], outputs: Iterable[str]) -> _Free:
    """Bring `nodes` into order; `known`: what is there before the first of them, which grows."""
    captured: dict[int, _Free] = {}
    early: list[tuple[int, str, str]] = []
    for index, node in enumerate(nodes):
        early += [(index, name, "") for name in node.input if name and name not in known]
        if node.attribute and (bodies := _bodies(node)):
            captured[index] = {}
            for body in bodies:
                captured[index] |= _settle_graph(body)
            early += [(index, n, who) for n, who in captured[index].items() if n not in known]
        known.update(node.output)
    free = {
        name: reader or f"{label(nodes[index])} reads"
        for index, name, reader in early
        if name not in known
    }
    if len(free) < len({name for _, name, _ in early}):
        _sort(nodes, captured)
    free |= {name: "the graph gives out" for name in outputs if name not in known}
    return free


def _sort(nodes: Sequence[onnx.NodeProto], captured: Mapping[int, _Free]) -> None:
    """Put each node behind those that it reads, otherwise as they were. Raises `ModelError`."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}

    def sources(index: int) -> list[int]:
        names = (*nodes[index].input, *captured.get(index, ()))
        return [makers[name] for name in names if name in makers]

    order: list[int] = []
    entered: set[int] = set()
    done: set[int] = set()
    for start in range(len(nodes)):
        if start in entered:
            continue
        entered.add(start)
        path = [(start, iter(sources(start)))]
        while path:
            index, waiting = path[-1]
            source = next((s for s in waiting if s not in done), None)
            if source is None:
                done.add(index)
                order.append(index)
                path.pop()
            elif source in entered:
                on_it = [entry for entry, _ in path]
                cycle = on_it[on_it.index(source) :]
                raise ModelError(_of_cycle([nodes[i] for i in cycle]))
            else:
                entered.add(source)
                path.append((source, iter(sources(source))))
    held = onnx.GraphProto()  # of their own: clearing the list frees what is in it
    held.node.extend(nodes[index] for index in order)
    for node, moved in zip(nodes, held.node, strict=True):
        node.CopyFrom(moved)


def _of_cycle(cycle: Sequence[onnx.NodeProto]) -> str:
    if len(cycle) == 1:
        return f"{label(cycle[0])} reads what it makes itself"
    named = ", ".join(label(node) for node in reversed(cycle[-_MOST_NAMED:]))
    more = f" and {len(cycle) - _MOST_NAMED} more" if len(cycle) > _MOST_NAMED else ""
    return f"the graph has a cycle: {named}{more} wait for each other"


def _require_known_operators(model: onnx.ModelProto) -> None:
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    own = {(function.domain or "ai.onnx", function.name) for function in model.functions}
    seen: set[tuple[str, int]] = set()
    for node, opset in _nodes_with_opset(model, versions.get("ai.onnx", 1)):
        op = node.op_type
        if (op, opset) in seen or node.domain not in ("", "ai.onnx"):
            continue
        seen.add((op, opset))
        if op in _UNLISTED or ("ai.onnx", op) in own or _has(op, opset):
            continue
        since = f" before opset {_first(op)}" if onnx.defs.has(op) else ""
        raise ModelError(f"{label(node)} is no operator of ONNX{since} (the model has {opset})")


def _nodes_with_opset(model: onnx.ModelProto, opset: int) -> Iterator[tuple[onnx.NodeProto, int]]:
    for graph in all_graphs(model):
        yield from ((node, opset) for node in graph.node)
    for function in model.functions:
        imported = (e.version for e in function.opset_import if e.domain in ("", "ai.onnx"))
        version = next(imported, opset)
        yield from ((node, version) for node in function.node)


def _has(op: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _first(op: str) -> int:
    return next(v for v in range(1, onnx.defs.onnx_opset_version() + 1) if _has(op, v))


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    found = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def label(node: onnx.NodeProto) -> str:
    """Return what a sentence calls a node: by its name, or else by what it makes."""
    if node.name:
        return f"node '{node.name}' ({node.op_type})"
    made = next((name for name in node.output if name), "")
    return f"the {node.op_type} that makes '{made}'" if made else f"a {node.op_type}"
