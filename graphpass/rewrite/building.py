"""Terms become nodes and constants, which no tensor of the graph knows of yet."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass.ir.copying import Link, copied
from graphpass.ir.nodes import Constant, Graph, Node, Tensor, Variable
from graphpass.ir.questions import (
    STANDARD_DOMAINS,
    RefusedError,
    as_written,
    constant,
    is_output,
    label,
    producer,
    schema,
)
from graphpass.ir.reader import value_type
from graphpass.ir.weight import Array, Weight
from graphpass.ir.writer import node_proto
from graphpass.rewrite.match import Match
from graphpass.rewrite.pattern import Body
from graphpass.rewrite.term import Made, Operand, Term
from graphpass.storage.spool import chunks

_PART_BYTES = 1 << 24  # of a computed weight, looked at in one piece
_SMALL_ELEMENTS = 256  # constants up to this size are shown to shape inference

Content = tuple[int, str, tuple[int, ...], bytes]  # graph, type, shape and what tells the data


@dataclass
class Built:
    """Terms made into nodes, not yet in the graph.

    `results`: the tensor that is to be each result of the match, an output of one of `nodes` or
    one that is there already; None where a result stays as it is computed. `bodies` of the nodes
    are copies; `links`: what they read from outside, which does not know of them yet.
    """

    nodes: list[Node] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    contents: dict[Content, Constant] = field(default_factory=dict)  # of operands among them
    results: list[Tensor | None] = field(default_factory=list)
    imports: dict[str, int] = field(default_factory=dict)  # domains to import, by version
    bodies: list[Graph] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


class Builder:
    """Makes what takes the place of matches in one model."""

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
        # layers that shared a weight share what was made of it: the file must not grow by it
        self._made: dict[Content, Constant] = {}
        self._numbers: dict[str, int] = {}  # by base of a made-up name: the last that was tried

    def build(self, found: Match, terms: Sequence[Operand | None]) -> Built:
        """Make the nodes of `terms`, one for each result; the graph is not touched."""
        return _Building(self, found, terms).done()

    def remember(self, built: Built) -> None:
        """Note the constants of what has taken its place, for others that need the same."""
        self._made.update(built.contents)

    def operand(self, graph: Graph, value: Weight | Array, base: str, built: Built) -> Tensor:
        """Return the constant that `value` is to be: one that is there, or a new one."""
        if isinstance(value, Weight) and value.origin is not None:
            origin: Tensor = value.origin
            return origin
        content = (id(graph), *_content(value))
        known = self._made.get(content)
        if known is not None and known.outputs and _holds(known.weight, value):
            return known
        weight = self.stored(value, self.fresh(base))
        constant_tensor = Constant(weight.name, weight)
        if graph.holds_initializers:
            built.constants.append(constant_tensor)
            built.contents[content] = constant_tensor
            return constant_tensor
        node = Node("Constant", "", {"value": constant_tensor}, graph=graph)
        output = Variable(weight.name, weight.dtype, list(weight.shape))
        list.append(node.outputs, output)
        list.append(output.inputs, node)
        built.nodes.append(node)
        return output

    def stored(self, value: Weight | Array, name: str) -> Weight:
        """Put a value where it costs no memory."""
        if isinstance(value, Weight) and value.tensor is not None:
            return Weight.of(value.tensor, name)
        return Weight.of(self._store(np.asarray(value), name), name)

    def fresh(self, base: str) -> str:
        """Return a name near `base` that nothing in the model has."""
        names = self._names()
        name = base
        while name in names or not name:
            self._numbers[base] = self._numbers.get(base, 0) + 1
            name = f"{base}_{self._numbers[base]}"
        names.add(name)
        return name

    def infer(self, node: Node) -> None:
        """Fill in dtype and shape of the node's outputs as far as ONNX can tell."""
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
        for output in node.outputs:
            if output.name in inferred:
                output.dtype, output.shape = value_type(inferred[output.name])


class _Building:
    """The terms of one match on their way to nodes."""

    def __init__(self, builder: Builder, found: Match, terms: Sequence[Operand | None]) -> None:
        self._builder = builder
        self._found = found
        self._graph: Graph = found.root.graph
        self._terms = terms
        self._built = Built()
        self._nodes: dict[int, Node] = {}  # by term
        self._wanted: dict[tuple[int, int], Tensor] = {}  # by term and output: the first result
        pairs = [
            (result, term)
            for result, term in zip(found.results, terms, strict=True)
            if result.name and term is not None
        ]
        for result, term in pairs:
            if isinstance(term, Made):
                self._wanted.setdefault((id(term.term), term.index), result)
        self._heirs = _names_left(found, {id(result) for result, _ in pairs})

    def done(self) -> Built:
        for result, term in zip(self._found.results, self._terms, strict=True):
            wanted = None if not result.name or term is None else self._result(result, term)
            self._built.results.append(wanted)
        return self._built

    def _result(self, result: Tensor, term: Operand) -> Tensor:
        if isinstance(term, gs.Tensor):
            held: Tensor = term
            return held
        if isinstance(term, Made):
            return self._output(term, result)
        if isinstance(term, Weight) and term.origin is not None:
            origin: Tensor = term.origin
            return origin
        builder = self._builder
        if not is_output(result) and self._graph.holds_initializers:
            # the tensor goes, so that its name is free
            made = Constant(result.name, builder.stored(term, result.name))
            self._built.constants.append(made)
            return made
        weight = builder.stored(term, builder.fresh(result.name))
        attributes = {"value": Constant(weight.name, weight)}
        return self._output(Made(Term("Constant", "", None, (), attributes, 1)), result)

    def _output(self, made: Made, result: Tensor) -> Tensor:
        """Return the output of a term that is to be a result."""
        term = made.term
        if id(term) not in self._nodes:
            self._node(term, result.name, self._root_name(term, result), made.index)
        output: Tensor = self._nodes[id(term)].outputs[made.index]
        return output

    def _node(self, term: Term, base: str, name: str, named: int = 0) -> Node:
        """Make the node of a term; `base`: what its output number `named` is called."""
        outputs = []
        for index in range(term.outputs):
            result = self._wanted.get((id(term), index))
            if result is not None:
                outputs.append(Variable(result.name))
            elif index == named:
                outputs.append(Variable(base))
            else:
                outputs.append(Variable(self._builder.fresh(f"{base}.{index}")))
        role = outputs[named].name
        given, held = as_written(term.op, term.domain, self._graph, term.operands, term.attributes)
        operands: list[Tensor] = []
        for index, part in enumerate(given):
            if part is None:
                operands.append(Variable(""))
            elif isinstance(part, Made):
                operands.append(self._inner(part, role, name))
            elif isinstance(part, gs.Tensor):
                operands.append(part)
            else:
                operand = _operand_name(name or role, term.op, index)
                operands.append(self._builder.operand(self._graph, part, operand, self._built))
        while operands and operands[-1].name == "":
            operands.pop()
        attributes = {
            key: self._body(value, role, name) if isinstance(value, Body) else value
            for key, value in held.items()
        }
        node = Node(term.op, name, attributes, domain=term.domain, graph=self._graph)
        node.like = term.like
        # linked on one side only: until it is committed, no tensor may see a new reader
        list.extend(node.inputs, operands)
        for output in outputs:
            list.append(node.outputs, output)
            list.append(output.inputs, node)
        self._built.imports.update(_imports(node, term.version))
        self._builder.infer(node)
        self._built.nodes.append(node)
        self._nodes[id(term)] = node
        return node

    def _body(self, body: Body, role: str, name: str) -> Graph:
        """Copy a body to where the new node is."""
        instead: dict[int, Tensor] = {}
        own: list[Constant] = []
        holds = body.holds and not self._graph.lists_initializers
        for key, part in body.instead.items():
            if isinstance(part, Made):
                instead[key] = self._inner(part, role, name)
            elif isinstance(part, gs.Tensor):
                instead[key] = part
            elif holds and isinstance(part, Weight) and part.origin is None:
                fresh = self._builder.fresh(part.name or role)
                own.append(Constant(fresh, self._builder.stored(part, fresh)))
                instead[key] = own[-1]
            else:
                instead[key] = self._builder.operand(self._graph, part, role, self._built)
        made, links = copied(body.graph, self._graph, instead, body.outputs, own)
        self._built.bodies.append(made)
        self._built.links.extend(links)
        return made

    def _inner(self, part: Made, role: str, name: str) -> Tensor:
        term = part.term
        if id(term) not in self._nodes:
            base = f"{role}.{term.op.lower()}"
            fresh = self._builder.fresh(base)
            left = self._heirs.get(term.op)
            inner = left.pop(0) if left else self._builder.fresh(base) if name else ""
            self._node(term, fresh, inner, part.index)
        output: Tensor = self._nodes[id(term)].outputs[part.index]
        return output

    def _root_name(self, term: Term, result: Tensor) -> str:
        root = producer(result)
        assert root is not None
        if self._heirs.get(term.op):
            return self._heirs[term.op].pop(0)
        if root.name and (
            len(self._found.roots) > 1 or any(part.op == root.op for part in term.below)
        ):
            return self._builder.fresh(f"{root.name}.{term.op.lower()}")
        return str(root.name)


def _names_left(found: Match, replaced: set[int]) -> dict[str, list[str]]:
    """Return the names of the matched nodes that go, by operator: new ones of a kind take them.

    `replaced`: the results that are computed anew.
    """
    gone: set[int] = set()
    left: dict[str, list[str]] = {}
    for node in found.nodes:  # a node comes after its readers
        read = [reader for tensor in node.outputs for reader in tensor.outputs]
        stays = any(is_output(tensor) for tensor in node.outputs) or any(
            id(reader) not in gone for reader in read
        )
        is_root = any(node is root for root in found.roots)
        if is_root:
            stays = not any(id(tensor) in replaced for tensor in node.outputs)
        if id(node) in gone or stays:
            continue
        gone.add(id(node))
    for node in _as_made(found):
        if id(node) in gone and node.name:
            left.setdefault(str(node.op), []).append(str(node.name))
    return left


def _as_made(found: Match) -> list[Node]:
    """Return the matched nodes in the order in which a term of their form is made: from the results
    upwards, input by input.
    """
    inside = {id(node): node for node in found.nodes}
    order: dict[int, Node] = {}
    waiting = [producer(result) for result in reversed(found.results)]
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) in inside and id(node) not in order:
            order[id(node)] = node
            waiting.extend(producer(tensor) for tensor in reversed(node.inputs))
    return list((order | inside).values())


def _imports(node: Node, wanted: int | None) -> dict[str, int]:
    """Return the domain of a new node with the version to import, where it is not yet imported."""
    domain, opsets = node.domain, node.graph.opsets
    if domain in STANDARD_DOMAINS:
        return {}
    held = opsets.get(domain)
    if held is None:
        return {domain: _newest(domain) if wanted is None else wanted}
    if wanted not in (None, held):
        raise RefusedError(
            f"{label(node)} is of version {wanted} of {domain}, and the model imports {held}"
        )
    return {}


@lru_cache(maxsize=64)
def _newest(domain: str) -> int:
    """Return the newest version of a domain that ONNX knows; 1 of others, as com.microsoft."""
    schemas = onnx.defs.get_all_schemas()
    return max((s.since_version for s in schemas if s.domain == domain), default=1)


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


def _type_proto(tensor: Tensor) -> onnx.TypeProto:
    data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return onnx.helper.make_tensor_type_proto(data_type, tensor.shape)
