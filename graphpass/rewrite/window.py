"""One rewrite on its own: its nodes before and after, as two models with the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

from graphpass.ir.nodes import Constant, Graph, Node, Tensor
from graphpass.ir.questions import constant, operator, producer
from graphpass.ir.writer import node_proto
from graphpass.ir.zeros import makers_of_zeros
from graphpass.rewrite.building import Built
from graphpass.rewrite.match import Match, computing

_MOST_NODES = 64  # of a window with what computes its shapes
_MOST_FIXED = 1024  # of one that is replaced by a constant


@dataclass(frozen=True)
class Window:
    """The matched nodes and what replaced them; weights are references, so it is small."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class WindowVerdict:
    """How far one rewrite's output was from what it replaces.

    `ratio` is the largest observed/allowed over all elements and feeds; `status` is "ok",
    "differs" or "not run" (then `reason` says why). `bound`: "elementwise", "norm" (for operators
    that are not affine) or "equal" (nothing is computed, elements only move). `shapes`: what the
    inputs were that showed a difference. `exact`: what exact arithmetic says, one line; empty
    where it was not asked.
    """

    status: str
    ratio: float = 0.0
    max_abs_error: float = 0.0
    allowed: float = 0.0
    feed: str = ""
    bound: str = "elementwise"
    reason: str = ""
    exact: str = ""
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def was_run(self) -> bool:
        """Whether both sides were run."""
        return self.status != "not run"

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the rewrite."""
        return self.status != "differs"


def capture(found: Match, built: Built) -> list[Window | None]:
    """Cut out a rewrite before it is committed, each result that changes by itself.

    None in the place of one where a type is unknown.
    """
    pairs = zip(found.results, built.results, strict=True)
    return [
        _window(found, built, result, made)
        for result, made in pairs
        if made is not None and made is not result
    ]


def _window(found: Match, built: Built, result: Tensor, made: Tensor) -> Window | None:
    graph: Graph = found.root.graph
    root = producer(result)
    assert root is not None
    # a node may have been met twice
    replaced = computing([result], list(dict.fromkeys(reversed(found.nodes))))
    new = computing([made], built.nodes)
    read = [tensor for node in (*replaced, *new) for tensor in node.inputs]
    shapes = sources_of(graph, [*read, made], {id(node) for node in found.nodes})
    folded = any(made is weight for weight in built.constants)
    if folded or {node.op for node in new} == {"Constant"}:
        fixed = _fixed_nodes(graph, root)
        if fixed is None:
            return None
        shapes |= fixed
    opsets = {**graph.opsets, **built.imports}
    before = cut(graph, replaced, [(result, result)], shapes, opsets)
    # what replaces the match may go on reading tensors from the middle of it
    sources = shapes | {id(node): node for node in found.nodes}
    after = cut(graph, new, [(made, result)], sources, opsets)
    if before is None or after is None:
        return None
    names = {value.name for value in (*before.graph.input, *after.graph.input)}
    return Window(before, after, tuple(sorted(names)), result.name)


def capture_constants(graph: Graph, gone: Constant, kept: Constant) -> Window | None:
    """Cut out two initializers that hold the same; None where their type is unknown."""
    before = cut(graph, [], [(gone, gone)], {}, graph.opsets)
    after = cut(graph, [], [(kept, gone)], {}, graph.opsets)
    return None if before is None or after is None else Window(before, after, (), gone.name)


def cut(
    graph: Graph,
    nodes: list[Node],
    outputs: Sequence[tuple[Tensor, Tensor]],
    shapes: Mapping[int, Node],
    opsets: Mapping[str, int],
    *,
    readers: Sequence[Node] = (),
    shown: Sequence[Tensor] | None = None,
) -> onnx.ModelProto | None:
    """Return a model of `nodes`; None where a type is unknown.

    `outputs`: tensors that they compute, or that are there already, each with the one whose name
    it gets. `shapes`: nodes that are taken along where they make what is read. `readers`: nodes
    that read the outputs under those names. `shown`: the outputs of the model, if they
    are others.
    """
    own = {id(tensor) for node in nodes for tensor in node.outputs}
    bare = [(made, named) for made, named in outputs if id(made) not in own]
    nodes = _with_sources(nodes, [made for made, _ in bare], shapes)
    made_here = {id(tensor) for node in (*nodes, *readers) for tensor in node.outputs}
    becomes = {id(made): named.name for made, named in outputs if id(made) in own}
    ready = {named.name for _, named in outputs}
    proto = onnx.GraphProto(name="window")
    seen: set[int] = set()
    for tensor in [*(t for node in nodes for t in _read(node)), *(made for made, _ in bare)]:
        if tensor.name and id(tensor) not in made_here and id(tensor) not in seen:
            seen.add(id(tensor))
            if not _add_source(proto, tensor):
                return None
    for tensor in (t for node in readers for t in node.inputs):
        known = id(tensor) in made_here or id(tensor) in seen or tensor.name in ready
        if tensor.name and not known:
            seen.add(id(tensor))
            if not _add_source(proto, tensor):
                return None
    for node in _ordered(nodes):
        written = proto.node.add()
        written.CopyFrom(node_proto(node))
        for names, tensors in ((written.input, node.inputs), (written.output, node.outputs)):
            for index, tensor in enumerate(tensors):
                if id(tensor) in becomes:
                    names[index] = becomes[id(tensor)]
    for made, named in bare:
        if made.name != named.name:
            proto.node.add(op_type="Identity", input=[made.name], output=[named.name])
    proto.node.extend(node_proto(node) for node in _ordered(readers))
    for tensor in [named for _, named in outputs] if shown is None else shown:
        if tensor.dtype is None:
            return None
        proto.output.append(_value_info(tensor, tensor.name))
    model = onnx.ModelProto(ir_version=10, graph=proto)
    for domain, version in opsets.items():
        model.opset_import.add(domain=domain, version=version)
    return _written_out(model, graph)


def _written_out(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """Return a model without calls of functions: ONNX's own inliner writes them out."""
    if not any((node.domain, node.op_type) in graph.own_functions for node in model.graph.node):
        return model
    protos = {id(function): function.proto for function in graph.own_functions.values()}
    model.functions.extend(protos.values())
    return onnx.inliner.inline_local_functions(model)


def _add_source(proto: onnx.GraphProto, tensor: Tensor) -> bool:
    """Add an initializer or an input for a tensor that is read; False where its type is unknown."""
    weight = constant(tensor)
    if weight is not None and isinstance(tensor, gs.Constant) and weight.tensor is not None:
        proto.initializer.append(weight.tensor)
        proto.initializer[-1].name = tensor.name
    elif weight is not None:
        proto.initializer.append(onnx.numpy_helper.from_array(weight.array(), tensor.name))
    elif tensor.dtype is None:
        return False
    else:
        proto.input.append(_value_info(tensor, tensor.name))
    return True


def sources_of(graph: Graph, tensors: list[Tensor], replaced: set[int]) -> dict[int, Node]:
    """Return the nodes that have to be taken along: what rules know the elements of.

    What computes shapes, dequantizes constants, or makes nothing but zeros.
    """
    zeros = _zeros(graph, tensors)
    shapes = _shape_nodes(graph, [*tensors, *(t for n in zeros for t in n.inputs)], replaced)
    return shapes | _dequantizers(graph, tensors) | {id(node): node for node in zeros}


def _zeros(graph: Graph, tensors: list[Tensor]) -> list[Node]:
    """Return what makes zeros among `tensors`: drawn numbers would not fit."""
    found = {
        id(node): node
        for tensor in tensors
        for node in makers_of_zeros(tensor) or ()
        if constant(tensor) is None
    }
    return list(found.values()) if all(n.graph is graph for n in found.values()) else []


def _shape_nodes(graph: Graph, tensors: list[Tensor], replaced: set[int]) -> dict[int, Node]:
    """Return what computes the shapes and axes among `tensors`: drawn numbers would not fit.

    Both sides of a window have to agree on them, so that it is all or none.
    """
    found: dict[int, Node] = {}
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        source = producer(tensor)
        if source is None or id(source) in found or source.graph is not graph:
            continue
        if not _is_shape(tensor) or constant(tensor) is not None:
            continue
        found[id(source)] = source
        waiting.extend(source.inputs)
    outside = {key: node for key, node in found.items() if key not in replaced}
    return outside if len(outside) <= _MOST_NODES else {}


def _dequantizers(graph: Graph, tensors: list[Tensor]) -> dict[int, Node]:
    """Return the DequantizeLinear that make constants among `tensors`: rules read those, too."""
    sources = (producer(tensor) for tensor in tensors)
    return {
        id(node): node
        for node in sources
        if node is not None
        and node.graph is graph
        and operator(node) == "DequantizeLinear"
        and all(constant(given) is not None for given in node.inputs if given.name)
    }


def _with_sources(
    nodes: list[Node], tensors: list[Tensor], shapes: Mapping[int, Node]
) -> list[Node]:
    found = list(nodes)
    inside = {id(node) for node in nodes}
    waiting = [*tensors, *(tensor for node in nodes for tensor in _read(node))]
    while waiting:
        source = producer(waiting.pop())
        if source is not None and id(source) in shapes and id(source) not in inside:
            inside.add(id(source))
            found.append(source)
            waiting.extend(_read(source))
    return found


def _read(node: Node) -> list[Tensor]:
    """Return what `node` reads, in its bodies as well."""
    read = list(node.inputs)
    inside: set[int] = set()
    for body in node.graph.subgraphs_of(node):
        for scope in body.scopes():
            inside.update(id(tensor) for tensor in (*scope.inputs, *scope.initializers))
            inside.update(id(tensor) for inner in scope.nodes for tensor in inner.outputs)
            read.extend(tensor for inner in scope.nodes for tensor in inner.inputs)
            read.extend(scope.outputs)
    return [tensor for tensor in read if id(tensor) not in inside]


def _fixed_nodes(graph: Graph, root: Node) -> dict[int, Node] | None:
    """Return everything above a node that is replaced by a constant; None where that is too much.

    A CastLike looks at no element of its second input: that may be anything.
    """
    found: dict[int, Node] = {}
    waiting = _looked_at(root)
    while waiting:
        tensor = waiting.pop()
        if tensor.name == "" or constant(tensor) is not None:
            continue
        source = producer(tensor)
        if source is None or source.graph is not graph or len(found) > _MOST_FIXED:
            return None
        if id(source) not in found:
            found[id(source)] = source
            waiting.extend(_looked_at(source))
    return found


def _looked_at(node: Node) -> list[Tensor]:
    """Return the inputs of which a node looks at the elements."""
    count = {"Shape": 0, "Size": 0, "CastLike": 1}.get(operator(node), len(node.inputs))
    return list(node.inputs[:count])


def _is_shape(tensor: Tensor) -> bool:
    kind, shape = tensor.dtype, tensor.shape
    return kind is not None and np.dtype(kind).kind == "i" and shape is not None and len(shape) <= 1


def _ordered(nodes: Iterable[Node]) -> list[Node]:
    """Sort so that producers come first; the lists are short."""
    waiting = list(nodes)
    inside = {id(node) for node in waiting}
    done: set[int] = set()
    ordered: list[Node] = []
    while waiting:
        for node in waiting:
            sources = (producer(tensor) for tensor in _read(node))
            if all(s is None or id(s) not in inside or id(s) in done for s in sources):
                break
        waiting.remove(node)
        done.add(id(node))
        ordered.append(node)
    return ordered


def _value_info(tensor: Tensor, name: str) -> onnx.ValueInfoProto:
    data_type = np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return make_tensor_value_info(name, data_type, tensor.shape)
