"""A body of a node once more, in another place: what it reads from outside may be others there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphpass.ir.nodes import Constant, Graph, Node, Tensor, Variable
from graphpass.ir.writer import Writer

Link = tuple[Node, Tensor]  # a node inside, and what it reads from outside


def captured(body: Graph) -> Iterator[Tensor]:
    """Yield what `body` reads from outside, each mention of it, outputs among them."""
    inside: set[int] = set()
    for scope in body.scopes():
        inside.update(id(tensor) for tensor in (*scope.inputs, *scope.initializers))
        inside.update(id(tensor) for node in scope.nodes for tensor in node.outputs)
    for scope in body.scopes():
        read = (tensor for node in scope.nodes for tensor in node.inputs)
        yield from (t for t in (*read, *scope.outputs) if t.name and id(t) not in inside)


def copied(
    body: Graph,
    parent: Graph,
    instead: Mapping[int, Tensor],
    outputs: Sequence[int] | None = None,
    own: Sequence[Constant] = (),
) -> tuple[Graph, list[Link]]:
    """Return a copy of `body` inside of `parent`, which reads `instead` (by id) of what it read.

    An input that has something in its place is none any more. `outputs`: the places of those that
    stay, all without it. `own`: of those in `instead`, what the copy holds itself. What it reads
    from outside does not know of it: the links say what is to be told.
    """
    links: list[Link] = []
    copy = _copied(body, parent, dict(instead), links)
    copy.initializers.extend(own)
    if outputs is not None:
        copy.outputs = [copy.outputs[place] for place in outputs]
        stay = set(outputs)
        for place in reversed(range(len(copy.proto.output))):
            if place not in stay:
                del copy.proto.output[place]
    store = onnx.numpy_helper.from_array  # of nothing: all it holds is in a proto already
    Writer(store, initializers_are_inputs=False, adopts=False).write(copy)
    return copy, links


def _copied(body: Graph, parent: Graph, known: dict[int, Tensor], links: list[Link]) -> Graph:
    assert isinstance(body.proto, onnx.GraphProto)
    proto = onnx.GraphProto()
    proto.CopyFrom(body.proto)
    copy = Graph(proto, body.opsets, parent, body.own_functions)
    copy.lists_initializers = body.lists_initializers
    for held in body.initializers:
        known[id(held)] = Constant(held.name, held.weight)
        copy.initializers.append(known[id(held)])
    made = {id(tensor) for node in body.nodes for tensor in node.outputs}
    gone: set[str] = set()  # inputs that have something in their place
    for node in body.nodes:
        for tensor in node.outputs:
            known[id(tensor)] = _variable(tensor)
    for tensor in body.inputs:
        if id(tensor) in known:
            gone.add(tensor.name)
        else:
            known[id(tensor)] = _variable(tensor)
            copy.inputs.append(known[id(tensor)])
            made.add(id(tensor))
    for place in reversed(range(len(proto.input) if gone else 0)):
        if proto.input[place].name in gone:
            del proto.input[place]
    made.update(id(tensor) for tensor in body.initializers)
    for node in body.nodes:
        attributes = {key: _value(value, copy, known, links) for key, value in node.attrs.items()}
        new = Node(node.op, node.name, attributes, domain=node.domain, graph=copy)
        for tensor in node.inputs:
            read = known.get(id(tensor), tensor) if tensor.name else Variable("")
            list.append(new.inputs, read)
            if id(tensor) in made or not tensor.name:
                list.append(read.outputs, new)
            else:
                links.append((new, read))
        for tensor in node.outputs:
            list.append(new.outputs, known[id(tensor)])
            list.append(known[id(tensor)].inputs, new)
        copy.nodes.append(new)
    copy.outputs = [known.get(id(tensor), tensor) for tensor in body.outputs]
    copy.overridable = {name: known[id(tensor)] for name, tensor in body.overridable.items()}
    return copy


def _value(value: Any, parent: Graph, known: dict[int, Tensor], links: list[Link]) -> Any:
    if isinstance(value, Graph):
        return _copied(value, parent, dict(known), links)
    return Constant(value.name, value.weight) if isinstance(value, gs.Constant) else value


def _variable(tensor: Tensor) -> Variable:
    made = Variable(tensor.name, tensor.dtype, tensor.shape)
    made.is_graph_output = tensor.is_graph_output
    return made


__all__ = ["Link", "captured", "copied"]
