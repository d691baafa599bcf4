"""The only place that swaps nodes."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass.ir.nodes import Constant, Graph, Node, Shape, Tensor, Variable
from graphpass.ir.questions import (
    RefusedError,
    constant,
    has_effects,
    is_output,
    label,
    producer,
    schema,
)
from graphpass.ir.reader import value_type
from graphpass.ir.weight import Array, Weight
from graphpass.ir.writer import node_proto
from graphpass.rewrite.match import Match
from graphpass.rewrite.pattern import Op
from graphpass.storage.spool import chunks

_PART_BYTES = 1 << 24  # of a computed weight, looked at in one piece
_SMALL_ELEMENTS = 256  # constants up to this size are shown to shape inference

Content = tuple[int, str, tuple[int, ...], bytes]  # graph, type, shape and what tells the data


@dataclass
class Built:
    """A term made into nodes, not yet in the graph."""

    nodes: list[Node] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)  # of those constants, in their order
    result: Tensor | None = None  # where the term is no operator


class Surgeon:
    """Replaces matches by terms in every scope of one model."""

    def __init__(
        self,
        store: Callable[[Array, str], onnx.TensorProto],
        names: Callable[[], set[str]],
        ir_version: int,
    ) -> None:
        """`names`: every name of a value or node in the model, which new ones must not meet."""
        self._store = store
        self._names = names
        self._ir_version = ir_version
        self._spliced: dict[int, list[Node]] = {}
        self._dead: dict[int, Node] = {}
        self._dead_constants: dict[int, Constant] = {}
        self._touched: dict[int, Graph] = {}
        self._named: dict[int, set[str]] = {}
        # layers that shared a weight share what was made of it: the file must not grow by it
        self._made: dict[Content, Constant] = {}
        self._numbers: dict[str, int] = {}  # by base of a made-up name: the last that was tried

    # ------------------------------------------------------------------ a term becomes nodes

    def build(self, found: Match, term: Any) -> Built:
        """Make the nodes of `term`; the graph is not touched."""
        root, graph = found.root, found.root.graph
        output = root.outputs[0]
        built = Built()
        if isinstance(term, gs.Tensor):
            built.result = term
            return built
        if not isinstance(term, Op):
            if isinstance(term, Weight) and term.origin is not None:
                built.result = term.origin
                return built
            if not is_output(output) and graph.holds_initializers:
                # the tensor goes, so that its name is free
                built.result = Constant(output.name, self._stored(term, output.name))
                built.constants.append(built.result)
                return built
            weight = self._stored(term, self.fresh(output.name))
            term = Op("Constant", value=Constant(weight.name, weight))
        heirs = _names_left(found)
        name = self._root_name(found, term, heirs)
        self._node(graph, term, Variable(output.name), name, heirs, built)
        return built

    def _node(
        self,
        graph: Graph,
        term: Op,
        output: Variable,
        name: str,
        heirs: dict[str, list[str]],
        built: Built,
    ) -> None:
        op = term.ops[0]
        operands: list[Tensor] = []
        for index, part in enumerate(term.inputs):
            if part is None:
                operands.append(Variable(""))
            elif isinstance(part, Op):
                base = f"{output.name}.{part.ops[0].lower()}"
                inner = Variable(self.fresh(base))
                left = heirs.get(part.ops[0])
                inner_name = left.pop(0) if left else self.fresh(base) if name else ""
                self._node(graph, part, inner, inner_name, heirs, built)
                operands.append(inner)
            elif isinstance(part, gs.Tensor):
                operands.append(part)
            else:
                role = _operand_name(name or output.name, op, index)
                operands.append(self._operand(graph, part, role, built))
        while operands and operands[-1].name == "":
            operands.pop()
        attrs = {key: value for key, value in term.attributes.items() if value is not None}
        node = Node(op, name, attrs, domain=term.domain, graph=graph)
        # linked on one side only: until it is committed, no tensor may see a new reader
        list.extend(node.inputs, operands)
        list.append(node.outputs, output)
        list.append(output.inputs, node)
        self._infer(node)
        built.nodes.append(node)

    def _operand(self, graph: Graph, value: Weight | Array, base: str, built: Built) -> Tensor:
        if isinstance(value, Weight) and value.origin is not None:
            origin: Tensor = value.origin
            return origin
        content = (id(graph), *_content(value))
        known = self._made.get(content)
        if (
            known is not None
            and id(known) not in self._dead_constants
            and _holds(known.weight, value)
        ):
            return known
        weight = self._stored(value, self.fresh(base))
        constant_tensor = Constant(weight.name, weight)
        if graph.holds_initializers:
            built.constants.append(constant_tensor)
            built.contents.append(content)
            return constant_tensor
        node = Node("Constant", "", {"value": constant_tensor}, graph=graph)
        output = Variable(weight.name, weight.dtype, list(weight.shape))
        list.append(node.outputs, output)
        list.append(output.inputs, node)
        built.nodes.append(node)
        return output

    def _stored(self, value: Weight | Array, name: str) -> Weight:
        if isinstance(value, Weight) and value.tensor is not None:
            return Weight.of(value.tensor, name)
        return Weight.of(self._store(np.asarray(value), name), name)

    def _root_name(self, found: Match, term: Op, heirs: dict[str, list[str]]) -> str:
        op, root = term.ops[0], found.root
        if heirs.get(op):
            return heirs[op].pop(0)
        if root.name and any(part.ops[0] == root.op for part in _inner(term)):
            return self.fresh(f"{root.name}.{op.lower()}")
        return str(root.name)

    def fresh(self, base: str) -> str:
        """Return a name near `base` that nothing in the model has."""
        names = self._names()
        name = base
        while name in names or not name:
            self._numbers[base] = self._numbers.get(base, 0) + 1
            name = f"{base}_{self._numbers[base]}"
        names.add(name)
        return name

    def _infer(self, node: Node) -> None:
        """Fill in dtype and shape of the node's output as far as ONNX can tell."""
        output = node.outputs[0]
        found = schema(node)
        if found is None:
            return
        types, data = {}, {}
        for tensor in node.inputs:
            if tensor.name == "" or tensor.dtype is None:
                continue
            types[tensor.name] = _type_proto(tensor)
            weight = constant(tensor)
            if weight is not None and weight.size <= _SMALL_ELEMENTS:
                data[tensor.name] = onnx.numpy_helper.from_array(weight.array(), tensor.name)
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                found,
                node_proto(node),
                types,
                data,
                opset_imports=[
                    onnx.helper.make_opsetid(domain, version)
                    for domain, version in node.graph.opsets.items()
                ],
                ir_version=self._ir_version,
            )
        except (onnx.shape_inference.InferenceError, RuntimeError, KeyError, ValueError):
            return
        if output.name in inferred:
            output.dtype, output.shape = value_type(inferred[output.name])

    # --------------------------------------------------------------- the nodes take their place

    def commit(self, found: Match, built: Built) -> list[Node]:
        """Put `built` in the place of the matched nodes; return the nodes whose turn comes again.

        Raises `RefusedError` where an output of the graph would have to take another name, or is
        declared to have another shape than it has.
        """
        root, graph = found.root, found.root.graph
        made = built.nodes[-1].outputs[0] if built.result is None else built.result
        is_stale = self._contradicts_declared(root.outputs[0], made)
        name = root.outputs[0].name
        again = self._replace(root, built) if built.result is None else self._forward(root, built)
        self._touched[id(graph)] = graph
        if is_stale:
            graph.stale.add(name)
        return again

    def _replace(self, root: Node, built: Built) -> list[Node]:
        """The root's outputs become those of the last node that was built."""
        graph: Graph = root.graph
        last = built.nodes[-1]
        old_inputs = list(root.inputs)
        outputs = list(root.outputs)
        count = len(outputs) if last.op == root.op else 1
        taken = outputs[:count]
        taken[0].shape = _sharpened(taken[0].shape, last.outputs[0].shape)
        if taken[0].dtype is None:
            taken[0].dtype = last.outputs[0].dtype
        list.clear(last.outputs)
        _unlink(root)
        for tensor in taken:
            last.outputs.append(tensor)
        for node in built.nodes:
            for tensor in node.inputs:
                list.append(tensor.outputs, node)
        graph.initializers.extend(built.constants)
        self._made.update(zip(built.contents, built.constants, strict=True))
        self._spliced[id(root)] = built.nodes
        self._dead[id(root)] = root
        self._release(old_inputs)
        return list(built.nodes)

    def _forward(self, root: Node, built: Built) -> list[Node]:
        """The root's output *is* `result`: let its readers read that."""
        result, output = built.result, root.outputs[0]
        assert result is not None
        graph: Graph = root.graph
        source = producer(result)
        if not is_output(output):
            self._check_visible(result, output, graph)
            graph.initializers.extend(built.constants)
            again = [*output.outputs, *([source] if source is not None else [])]
            _relink(output, result)
        elif source is not None and source.graph is graph and not is_output(result):
            self._check_visible(output, result, graph)
            index = next(i for i, tensor in enumerate(source.outputs) if tensor is result)
            list.clear(output.inputs)
            list.__setitem__(source.outputs, index, output)
            list.append(output.inputs, source)
            list.clear(result.inputs)
            list.clear(root.outputs)
            again = [*result.outputs, source]
            _relink(result, output)
        elif root.op == "Identity":
            raise RefusedError(f"'{output.name}' is an output of the graph and keeps its name")
        else:
            identity = Node("Identity", root.name, {}, graph=graph)
            old_inputs = list(root.inputs)
            _unlink(root)
            identity.inputs.append(result)
            identity.outputs.append(output)
            self._spliced[id(root)] = [identity]
            self._dead[id(root)] = root
            self._release(old_inputs)
            return [identity]
        old_inputs = list(root.inputs)
        _unlink(root)
        self._dead[id(root)] = root
        self._release(old_inputs)
        return [node for node in again if id(node) not in self._dead]

    @staticmethod
    def _contradicts_declared(old: Tensor, new: Tensor) -> bool:
        """Whether a wrong declaration must go, lest it come to light: the checker stumbles then."""
        wrong = _contradict(old.shape, new.shape)
        if wrong and is_output(old):
            raise RefusedError(
                f"output '{old.name}' is declared with shape {old.shape}, but has {new.shape}"
            )
        return wrong

    def _check_visible(self, tensor: Tensor, instead_of: Tensor, graph: Graph) -> None:
        """Refuse where a reader in a body would take the name of `tensor` for one of its own."""
        for reader in instead_of.outputs:
            scope: Graph | None = reader.graph
            while scope is not graph and scope is not None:
                if tensor.name in self._own_names(scope):
                    raise RefusedError(
                        f"in the body around {label(reader)} '{tensor.name}' is another tensor"
                    )
                scope = scope.parent

    def _own_names(self, graph: Graph) -> set[str]:
        """Return the names that `graph` itself gives to tensors."""
        if id(graph) not in self._named:
            values = (*graph.proto.input, *graph.proto.initializer)
            outputs = (name for node in graph.proto.node for name in node.output)
            self._named[id(graph)] = {*(value.name for value in values), *outputs}
        return self._named[id(graph)]

    def _release(self, tensors: Iterable[Tensor]) -> None:
        """Remove what nothing reads any more, upwards from `tensors`."""
        stack = list(tensors)
        while stack:
            tensor = stack.pop()
            if tensor.name == "" or tensor.outputs or is_output(tensor):
                continue
            if isinstance(tensor, gs.Constant):
                self._dead_constants[id(tensor)] = tensor
                continue
            node = producer(tensor)
            if node is None or id(node) in self._dead:
                continue
            if any(output.outputs or is_output(output) for output in node.outputs):
                continue
            if has_effects(node):
                continue
            self._dead[id(node)] = node
            self._touched[id(node.graph)] = node.graph
            stack.extend(node.inputs)
            stack.extend(self._captured(node))
            _unlink(node)

    def _captured(self, node: Node) -> list[Tensor]:
        """Return what the bodies of `node` read from outside; unlink the bodies."""
        released: list[Tensor] = []
        for body in node.graph.subgraphs_of(node):
            for scope in body.scopes():
                for inner in scope.nodes:
                    released.extend(inner.inputs)
                    _unlink(inner)
                    self._dead[id(inner)] = inner
        return released

    def remove(self, node: Node) -> None:
        """Remove a node whose outputs nothing reads, and what only it needed."""
        self._touched[id(node.graph)] = node.graph
        self._release(list(node.outputs))

    def remove_constant(self, tensor: Constant) -> None:
        """Remove an initializer that nothing reads."""
        self._release([tensor])

    def is_dead(self, what: Node | Constant) -> bool:
        """Whether a node or initializer has been replaced or removed."""
        return id(what) in self._dead or id(what) in self._dead_constants

    def close(self, scopes: Iterable[Graph]) -> None:
        """Bring the node and initializer lists up to date, in one pass over them."""
        for graph in scopes:
            if id(graph) in self._touched:
                graph.nodes[:] = self._living(graph.nodes)
            if self._dead_constants:
                graph.initializers[:] = [
                    c for c in graph.initializers if id(c) not in self._dead_constants
                ]
        self._spliced.clear()
        self._dead.clear()
        self._dead_constants.clear()
        self._touched.clear()

    def _living(self, nodes: list[Node]) -> list[Node]:
        living: list[Node] = []
        stack = list(reversed(nodes))
        while stack:
            node = stack.pop()
            if id(node) in self._spliced:
                stack.extend(reversed(self._spliced[id(node)]))
            elif id(node) not in self._dead:
                living.append(node)
        return living


def _names_left(found: Match) -> dict[str, list[str]]:
    """Return the names of the matched nodes that go, by operator: new ones of a kind take them."""
    gone: set[int] = set()
    left: dict[str, list[str]] = {}
    for node in found.nodes:  # a node comes after its readers
        read = [reader for tensor in node.outputs for reader in tensor.outputs]
        stays = any(is_output(tensor) for tensor in node.outputs) or any(
            id(reader) not in gone for reader in read
        )
        if id(node) in gone or (node is not found.root and stays):
            continue
        gone.add(id(node))
        if node.name:
            left.setdefault(str(node.op), []).append(str(node.name))
    return left


def _inner(term: Op) -> list[Op]:
    """Return the operators below the root of `term`."""
    direct = [part for part in term.inputs if isinstance(part, Op)]
    return [op for part in direct for op in (part, *_inner(part))]


def _content(value: Weight | Array) -> tuple[str, tuple[int, ...], bytes]:
    """Return what is equal for equal constants: where the data is, or a checksum of it."""
    if isinstance(value, Weight) and value.tensor is not None:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value.tensor)
        tensor.ClearField("name")
        return str(value.data_type), tuple(value.shape), tensor.SerializeToString()
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return str(array.dtype), array.shape, repr(array.tolist()).encode()
    checksum = 0
    for chunk in chunks(array):
        checksum = zlib.crc32(chunk, checksum)
    return str(array.dtype), array.shape, checksum.to_bytes(4, "big")


def _holds(known: Weight, value: Weight | Array) -> bool:
    """Whether `known`, whose content is told by the same, is `value`: a checksum proves nothing."""
    if (isinstance(value, Weight) and value.tensor is not None) or known.dtype.kind in "OSU":
        return True
    array = np.asarray(value)
    if array.ndim == 0:
        return array.tobytes() == known.array().tobytes()
    step = max(1, _PART_BYTES * len(array) // max(array.nbytes, 1))
    return all(
        array[start : start + step].tobytes() == known.rows(slice(start, start + step)).tobytes()
        for start in range(0, len(array), step)
    )


def _operand_name(node: str, op: str, index: int) -> str:
    formal = ("x", "weight", "bias") if op.startswith("Conv") else ()
    return f"{node}.{formal[index] if index < len(formal) else index}"


def _unlink(node: Node) -> None:
    for tensor in node.inputs:
        _remove_reader(tensor.outputs, node)
    list.clear(node.inputs)
    for tensor in node.outputs:
        list.clear(tensor.inputs)
    list.clear(node.outputs)


def _remove_reader(readers: list[Node], node: Node) -> None:
    """Remove one mention of `node`; nearly always, readers are in the order they were made in."""
    index = bisect_left(readers, node.serial, key=attrgetter("serial"))
    if index < len(readers) and readers[index] is node:
        list.__delitem__(readers, index)
    else:
        list.remove(readers, node)


def _relink(old: Tensor, new: Tensor) -> None:
    """Let every reader of `old` read `new`: linear in the readers."""
    place: dict[int, int] = {}  # by reader, which is listed once for each mention
    for reader in old.outputs:
        index = list.index(reader.inputs, old, place.get(id(reader), 0))
        place[id(reader)] = index + 1
        list.__setitem__(reader.inputs, index, new)
    readers = {id(reader): reader for reader in old.outputs}
    mentions = Counter(map(id, old.outputs))
    for key, reader in readers.items():
        list.extend(new.outputs, [reader] * mentions[key])
    list.clear(old.outputs)


def _contradict(declared: Shape | None, found: Shape | None) -> bool:
    if declared is None or found is None:
        return False
    if len(declared) != len(found):
        return True
    pairs = zip(declared, found, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _sharpened(known: Shape | None, found: Shape | None) -> Shape | None:
    """Fill in what is unknown of one shape from another."""
    if known is None or found is None or _contradict(known, found):
        return known if found is None else found
    return [b if a is None else a for a, b in zip(known, found, strict=True)]


def _type_proto(tensor: Tensor) -> onnx.TypeProto:
    data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return onnx.helper.make_tensor_type_proto(data_type, tensor.shape)
