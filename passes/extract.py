"""extract: a part of the model, from some of its tensors to others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx

from graphpass import Pass, require
from graphpass.ir.inference import infer_shapes
from graphpass.rewrite.interface import Interface
from graphpass.wording import nearest


@dataclass(frozen=True)
class Extract(Pass):
    """A part of the model, from some of its tensors to others: its nodes, their weights, no more.

    Without `inputs` it begins where the model does, without `outputs` it ends where the model
    does. Opsets, functions that are called, metadata and what is known of shapes stay. Refused is a
    tensor that there is not, whose type nobody knows, or that the part does not need or depends on.
    """

    name: ClassVar[str] = "extract"
    changes_interface: ClassVar[Interface] = Interface.PART
    required: ClassVar[bool] = True
    inputs: str = field(default="", metadata={"help": "names of tensors, a,b"})
    outputs: str = field(default="", metadata={"help": "names of tensors, c,d"})

    def convert(self, proto: onnx.ModelProto) -> list[str]:
        """Cut the part out of the main graph."""
        inputs, outputs = _names(self.inputs), _names(self.outputs)
        if not inputs and not outputs:
            return []
        part = _Part(proto.graph, inputs, outputs)
        if part.is_whole:
            return []
        kept, nodes = part.kept, len(proto.graph.node)
        _cut(proto, part)
        return [
            f"{len(kept)} of {nodes} nodes, from {_listed(part.inputs)} to {_listed(part.outputs)}"
        ]


class _Part:
    """What belongs to the part. `kept`: indices of its nodes; `needed`: names that they read."""

    def __init__(self, graph: onnx.GraphProto, inputs: list[str], outputs: list[str]) -> None:
        self.graph = graph
        self.weights = {tensor.name for tensor in graph.initializer}
        self.weights |= {tensor.values.name for tensor in graph.sparse_initializer}
        own = [value.name for value in graph.input if value.name not in self.weights]
        self.outputs = outputs or [value.name for value in graph.output]
        self._maker = {n: i for i, node in enumerate(graph.node) for n in node.output if n}
        for name in (*inputs, *self.outputs):
            self._require_tensor(name, own)
        for name in self.outputs:
            made = name in self._maker and name not in inputs
            require(made, f"'{name}' is an input, and nothing computes it")
        self.kept: set[int] = set()
        self.needed: set[str] = set(self.outputs)
        self._walk(set(inputs))
        unused = [name for name in inputs if name not in self.needed]
        require(not unused, f"{_listed(unused)} is not needed for {_listed(self.outputs)}")
        begins = [name for name in own if name in self.needed]
        missing = [name for name in begins if name not in inputs]
        require(
            not inputs or not missing,
            f"{_listed(self.outputs)} also needs the input {_listed(missing)}: name it, too",
        )
        self.inputs = inputs or begins

    @property
    def is_whole(self) -> bool:
        """Whether it is the model as it is."""
        return len(self.kept) == len(self.graph.node) and (
            [value.name for value in self.graph.output] == self.outputs
            and [v.name for v in self.graph.input if v.name not in self.weights] == self.inputs
        )

    def _require_tensor(self, name: str, own: list[str]) -> None:
        require(name not in self.weights, f"'{name}' is a weight, and no part begins or ends there")
        hint = nearest(name, (*self._maker, *own))
        require(name in self._maker or name in own, f"the model has no tensor '{name}'{hint}")

    def _walk(self, inputs: set[str]) -> None:
        waiting = list(self.outputs)
        while waiting:
            index = self._maker.get(waiting.pop())
            if index is None or index in self.kept:
                continue
            self.kept.add(index)
            read = set(_read_by(self.graph.node[index])) - self.needed
            self.needed |= read
            waiting.extend(read - inputs)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, and its bodies from around them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            own = {value.name for value in body.input} | {t.name for t in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            read = {name for inner in body.node for name in _read_by(inner)}
            yield from (read | {value.name for value in body.output}) - own


def _cut(proto: onnx.ModelProto, part: _Part) -> None:
    """Leave nothing but the part in the model."""
    graph = proto.graph
    types = {v.name: v for v in infer_shapes(proto).graph.value_info}
    declared = (*graph.value_info, *graph.input, *graph.output)
    types |= {v.name: v for v in declared if v.name not in types or _has_shape(v)}
    ends = {name: _typed(types, name) for name in (*part.inputs, *part.outputs)}
    listed = [v for v in graph.input if v.name in part.weights & part.needed]
    produced = {name for index in part.kept for name in graph.node[index].output}
    _keep(graph.node, [node for i, node in enumerate(graph.node) if i in part.kept])
    _keep(graph.initializer, [t for t in graph.initializer if t.name in part.needed])
    _keep(
        graph.sparse_initializer,
        [t for t in graph.sparse_initializer if t.values.name in part.needed],
    )
    # before that IR version they are constants that are listed, after it defaults of inputs
    _keep(graph.input, [*(ends[name] for name in part.inputs), *listed])
    _keep(graph.output, [ends[name] for name in part.outputs])
    inside = (produced | part.needed) - set(ends)
    _keep(graph.value_info, [v for v in graph.value_info if v.name in inside])
    there = produced | part.needed
    notes = [n for n in graph.quantization_annotation if n.tensor_name in there]
    _keep(graph.quantization_annotation, notes)
    del proto.training_info[:]
    _keep(proto.functions, _called(proto))


def _typed(types: dict[str, onnx.ValueInfoProto], name: str) -> onnx.ValueInfoProto:
    value = types.get(name)
    known = value is not None and (
        value.type.WhichOneof("value") != "tensor_type" or value.type.tensor_type.elem_type
    )
    require(
        known,
        f"the type of '{name}' is not known: the model does not say it, and ONNX cannot infer it",
    )
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    require(
        _has_shape(copy),
        f"how many axes '{name}' has is not known: the model does not say it, and ONNX cannot infer"
        " it (clean-up may make constants of what hides it: --passes clean-up,extract{…})",
    )
    return copy


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    """Whether it is known how many axes a tensor has; what is no tensor has none to know."""
    kind = value.type.WhichOneof("value")
    return kind != "tensor_type" or bool(value.type.tensor_type.HasField("shape"))


def _called(proto: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """Return the functions that the nodes that are left call, one through the other."""
    by_key = {(f.domain, f.name, f.overload): f for f in proto.functions}
    called: set[tuple[str, str, str]] = set()
    waiting = list(_all_nodes(proto.graph.node))
    while waiting:
        node = waiting.pop()
        key = (node.domain, node.op_type, node.overload)
        if key in by_key and key not in called:
            called.add(key)
            waiting.extend(_all_nodes(by_key[key].node))
    return [f for key, f in by_key.items() if key in called]


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (*attribute.graphs, attribute.g):
                yield from _all_nodes(body.node)


def _keep(field: Any, values: Sequence[Any]) -> None:
    """Let a repeated field hold `values`, which may come from it."""
    copies = []
    for value in values:
        copy = type(value)()
        copy.CopyFrom(value)
        copies.append(copy)
    del field[:]
    field.extend(copies)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
