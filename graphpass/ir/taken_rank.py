"""The rank of what an If makes where its branches differ: the one that its readers take.

A model whose branches make a matrix and a map, and whose next layer takes a matrix only, runs with
the matrix or not at all. ONNX leaves the rank open there, and all that is computed from it.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, field
from typing import Final

import onnx

from graphpass.ir.proto_walk import all_graphs, subgraphs
from graphpass.ir.questions import STANDARD_DOMAINS

_DEEPEST: Final = 12  # operators followed
_MOST_TRIED: Final = 512  # operators that a rank is tried on, for one model
_CHANGES_RANK: Final = {"Identity": 0, "Squeeze": -1, "Unsqueeze": 1}
_WHOLE: Final = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)

_Assumed = dict[str, int]


@dataclass
class _Scope:
    """A graph and those around it: what makes a name, and what is known of it; who reads it."""

    graph: onnx.GraphProto
    makers: ChainMap[str, onnx.NodeProto]
    types: ChainMap[str, onnx.TypeProto]
    constants: ChainMap[str, onnx.TensorProto]
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: onnx.GraphProto, around: _Scope | None = None) -> _Scope:
        """Open `graph`, inside of `around`."""
        scope = cls(
            graph,
            ChainMap() if around is None else around.makers.new_child(),
            ChainMap() if around is None else around.types.new_child(),
            ChainMap() if around is None else around.constants.new_child(),
        )
        for value in (*graph.input, *graph.value_info, *graph.output):
            scope.types[value.name] = value.type
        for tensor in graph.initializer:
            kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            scope.types[tensor.name], scope.constants[tensor.name] = kind, tensor
        for node in graph.node:
            scope.makers.update(dict.fromkeys(node.output, node))
            for name in {*node.input, *_captured(node)}:
                scope.readers.setdefault(name, []).append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                scope.constants[node.output[0]] = node.attribute[0].t
        return scope


def settle_ranks(model: onnx.ModelProto) -> bool:
    """Note the rank of what Ifs make where it follows; return whether there was one.

    `model` has the types that ONNX infers, and gets more of them. Nothing comes of an If of which
    more than one rank, or none, is taken by all that reads it. What branches declare of their
    outputs is not relied on.
    """
    graphs = [graph for graph in all_graphs(model) if any(map(_is_if, graph.node))]
    if not any(_rank(v.type) is None for graph in graphs for v in graph.value_info):
        return False
    search = _Search(model)
    waiting = [_Scope.of(model.graph)]
    found = False
    while waiting and search.left > 0:
        scope = waiting.pop()
        made = {name: node for node in scope.graph.node if _is_if(node) for name in node.output}
        for value in scope.graph.value_info:
            if value.name in made and _rank(value.type) is None:
                rank = search.taken_rank(made[value.name], value.name, scope)
                if rank is not None:
                    found = True
                    value.type.tensor_type.shape.dim.extend(
                        [onnx.TensorShapeProto.Dimension()] * rank
                    )
        waiting.extend(_Scope.of(body, scope) for body in subgraphs(scope.graph.node))
    return found


class _Search:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.left = _MOST_TRIED
        self.ir_version = model.ir_version
        self.imports = list(model.opset_import)
        self.opset = next(
            (entry.version for entry in self.imports if entry.domain in STANDARD_DOMAINS), 0
        )
        self.overridden = {(function.domain, function.name) for function in model.functions}

    def taken_rank(self, node: onnx.NodeProto, name: str, scope: _Scope) -> int | None:
        """Return the one rank of what an If makes that is taken; None where it is not one."""
        ranks = self._possible(node, list(node.output).index(name), scope, {})
        taken = [rank for rank in ranks if self._is_taken(name, rank, scope, {})]
        return taken[0] if len(ranks) > 1 and len(taken) == 1 and self.left > 0 else None

    def _possible(
        self, node: onnx.NodeProto, place: int, scope: _Scope, assumed: _Assumed
    ) -> list[int]:
        """Return the ranks that an output of an If may have; none where one is not known."""
        found = set()
        for body in subgraphs([node]):
            ranks = self._ranks(body.output[place].name, _Scope.of(body, scope), assumed)
            if not ranks:
                return []
            found.update(ranks)
        return sorted(found)

    def _ranks(self, name: str, scope: _Scope, assumed: _Assumed) -> list[int]:
        change = 0
        for _ in range(_DEEPEST):
            if name in assumed:
                return [assumed[name] + change]
            node, kind = scope.makers.get(name), scope.types.get(name)
            if node is not None and _is_if(node):
                inner = self._possible(node, list(node.output).index(name), scope, assumed)
                return [rank + change for rank in inner]
            if name not in {value.name for value in scope.graph.output}:
                rank = None if kind is None else _rank(kind)
                return [] if rank is None else [rank + change]
            step = None if node is None else self._step(node, scope)
            if node is None or step is None:
                return []
            name, change = node.input[0], change + step
        return []

    def _step(self, node: onnx.NodeProto, scope: _Scope) -> int | None:
        """Return by how much one of three operators changes a rank; None: it is another one."""
        sign = _CHANGES_RANK.get(node.op_type)
        if sign is None or not self._is_standard(node):
            return None
        for attribute in node.attribute:
            if attribute.name == "axes":
                return sign * len(attribute.ints)
        if sign == 0:
            return 0
        axes = scope.constants.get(node.input[1]) if len(node.input) > 1 else None
        return None if axes is None or len(axes.dims) != 1 else sign * axes.dims[0]

    def _is_taken(self, name: str, rank: int, scope: _Scope, assumed: _Assumed) -> bool:
        """Whether all that reads `name` in this scope may run where it has this rank."""
        if len(assumed) >= _DEEPEST or name in assumed:
            return True
        assumed = {**assumed, name: rank}
        for node in scope.readers.get(name, ()):
            if _is_if(node) and name not in node.input:
                if not any(
                    self._is_branch_taken(node, body, scope, assumed) for body in subgraphs([node])
                ):
                    return False
            elif list(subgraphs([node])) or not self._is_standard(node):
                continue
            else:
                made = self._made(node, scope, assumed)
                if made is None:
                    return False
                if not all(
                    self._is_taken(output, known, scope, assumed) for output, known in made.items()
                ):
                    return False
        return True

    def _is_branch_taken(
        self, node: onnx.NodeProto, body: onnx.GraphProto, around: _Scope, assumed: _Assumed
    ) -> bool:
        scope = _Scope.of(body, around)
        name = next(reversed(assumed))
        rest = {key: rank for key, rank in assumed.items() if key != name}
        if not self._is_taken(name, assumed[name], scope, rest):
            return False
        for place, output in enumerate(node.output):
            ranks = self._ranks(body.output[place].name, scope, assumed)
            if ranks and not any(self._is_taken(output, r, around, assumed) for r in ranks):
                return False
        return True

    def _made(
        self, node: onnx.NodeProto, scope: _Scope, assumed: _Assumed
    ) -> dict[str, int] | None:
        """Return the ranks of what `node` makes, as far as known; None: it does not run."""
        self.left -= 1
        if self.left < 0:
            return {}
        types, data = {}, {}
        for name in filter(None, node.input):
            kind = scope.types.get(name)
            if kind is None or not kind.HasField("tensor_type"):
                return {}
            types[name] = kind
            if name in assumed:
                element = kind.tensor_type.elem_type
                types[name] = onnx.helper.make_tensor_type_proto(element, [None] * assumed[name])
            if name in scope.constants and scope.types[name].tensor_type.elem_type in _WHOLE:
                data[name] = scope.constants[name]
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
            made = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=self.imports, ir_version=self.ir_version
            )
        except onnx.shape_inference.InferenceError:
            return None
        except Exception:  # says nothing of the rank
            return {}
        known = {name: _rank(kind) for name, kind in made.items()}
        return {name: rank for name, rank in known.items() if rank is not None}

    def _is_standard(self, node: onnx.NodeProto) -> bool:
        is_own = (node.domain, node.op_type) in self.overridden
        return node.domain in STANDARD_DOMAINS and not is_own


def _is_if(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and node.domain in STANDARD_DOMAINS


def _rank(kind: onnx.TypeProto) -> int | None:
    tensor = kind.tensor_type
    return len(tensor.shape.dim) if tensor.HasField("shape") else None


def _captured(node: onnx.NodeProto) -> set[str]:
    """Return the names that the bodies of `node` read, some of them from outside."""
    names: set[str] = set()
    waiting = list(subgraphs([node]))
    while waiting:
        body = waiting.pop()
        names.update(value.name for value in body.output)
        names.update(name for inner in body.node for name in inner.input)
        waiting.extend(subgraphs(body.node))
    return names
