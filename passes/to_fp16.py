"""to-fp16: half precision where that is safe, behind the same interface."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto

from graphpass import Pass, require
from graphpass.ir.inference import infer_shapes
from graphpass.ir.operators import Trait, named
from graphpass.ir.proto_walk import all_nodes, label_of
from graphpass.rewrite.interface import Interface
from graphpass.storage.wire import tensor_array

_FLOAT, _HALF = "tensor(float)", "tensor(float16)"
_STANDARD = ("", "ai.onnx")
_LEAST_OPSET = 7  # from here on Casts say their type by number
_LISTED = 3  # nodes of one reason
_MOST_BYTES = 1_900_000_000  # of weights, in a message that holds two GiB

# What leaves the range of float16, or sums up too much, although its inputs fit.
_LOSSES = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
SENSITIVE = " ".join((*named(Trait.WIDENS), *_LOSSES))
# What says the type of its output itself, or whose integers would be rounded.
_OF_THEIR_OWN_TYPE = frozenset((*named(Trait.OWN_TYPE), "DynamicQuantizeLinear"))
# Numbers so large stand for infinity: masks of attention, on their way into a Softmax. In float16
# they would become it, and infinity less infinity is NaN.
_ENDLESS = 1e30
_BOUNDING = frozenset(named(Trait.SQUASHES))


@dataclass(frozen=True)
class ToFp16(Pass):
    """f(x) in float32 ≈ f(x) in float16, node by node: lossy, and checked as such.

    Inputs and outputs stay float32: Casts stand behind the one and ahead of the other. A node stays
    in float32 where its operator takes no float16 or loses too much in it, where it has a body, and
    where one of its constants lies beyond 65504, the largest number of float16. Each is told. The
    model as a whole is held against the original by the noise of half precision, and nothing inside
    it may come beyond 65504.
    """

    name: ClassVar[str] = "to-fp16"
    changes_interface: ClassVar[Interface] = Interface.PRECISION
    required: ClassVar[bool] = True
    keep: str = field(
        default="", metadata={"help": "names of nodes that stay, globs with spaces between"}
    )
    keep_operators: str = field(
        default=SENSITIVE, metadata={"help": "operators that stay, with spaces between"}
    )

    def convert(self, proto: onnx.ModelProto) -> list[str]:
        """Decide node by node, then put Casts where float32 and float16 meet."""
        versions = {entry.domain: entry.version for entry in proto.opset_import}
        version = max((versions.get(domain, 0) for domain in _STANDARD), default=0)
        require(version >= _LEAST_OPSET, f"opset {version} is older than {_LEAST_OPSET}")
        decided = _Decisions(proto, version, self.keep.split(), self.keep_operators.split())
        if not decided.halved:
            whole = "; ".join(decided.told()[1:])
            require(not decided.kept, f"no node can compute in float16: {whole}")
            return []
        _Writer(proto, decided).write()
        return decided.told()


class _Decisions:
    """Which nodes of the main graph compute in float16, and why the others do not."""

    def __init__(
        self, proto: onnx.ModelProto, version: int, keep: list[str], operators: list[str]
    ) -> None:
        self.version, self.keep, self.operators = version, keep, set(operators)
        self.types = _types(proto)
        self.constants = _constants(proto)
        self.halves: dict[str, TensorProto] = {}  # constants in float16, as far as looked at
        self.halved: dict[int, tuple[set[int], set[int]]] = {}  # by place: inputs and outputs
        self.kept: dict[str, list[str]] = {}
        self.underflows = 0
        self.endless: set[str] = set()  # what may hold numbers that stand for infinity
        for place, node in enumerate(proto.graph.node):
            if not any(self.is_float(name) for name in (*node.input, *node.output)):
                continue
            if node.op_type == "Constant" and node.output[0] in self.constants:
                continue
            reason, inputs, outputs = self._look_at(node)
            if reason:
                self.kept.setdefault(reason, []).append(label_of(node))
                if node.op_type not in _BOUNDING and not self.endless.isdisjoint(node.input):
                    self.endless.update(node.output)
            elif inputs or outputs:
                self.halved[place] = (inputs, outputs)
        large = sum(len(tensor.raw_data) for tensor in self.halves.values())
        require(large <= _MOST_BYTES, f"weights of {large:,} bytes are more than one model holds")

    def is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def _look_at(self, node: onnx.NodeProto) -> tuple[str, set[int], set[int]]:
        """Return why a node stays, or the places of inputs and outputs that become float16."""
        nothing: tuple[set[int], set[int]] = (set(), set())
        name = node.name or next(iter(node.output), "")
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            return "as keep asks", *nothing
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            return "it has a body", *nothing
        if node.domain not in _STANDARD or not onnx.defs.has(node.op_type, self.version, ""):
            return f"{node.op_type} is no operator of ONNX", *nothing
        if node.op_type in self.operators:
            return f"{node.op_type} loses too much in float16", *nothing
        if node.op_type in _OF_THEIR_OWN_TYPE:
            return f"{node.op_type} says itself which type it makes or takes", *nothing
        if node.op_type == "CastLike" and not all(map(self.is_float, node.input)):
            return "CastLike makes other numbers of integers", *nothing
        schema = onnx.defs.get_schema(node.op_type, self.version, "")
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        places = []
        for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
            found = set()
            for index, tensor in enumerate(names):
                if not tensor:
                    continue
                kind = formal[min(index, len(formal) - 1)].type_str
                if tensor not in self.types:
                    return "what type its tensors have is not known", *nothing
                if not self.is_float(tensor) or kind == _FLOAT:
                    continue
                if _HALF not in allowed.get(kind, ()):
                    return f"{node.op_type} takes no float16 in opset {self.version}", *nothing
                found.add(index)
            places.append(found)
        for index in sorted(places[0]):
            if problem := self._overflow(node.input[index]):
                return problem, *nothing
            if node.input[index] in self.endless:
                return "a mask of numbers beyond 65504 goes into it", *nothing
        return "", places[0], places[1]

    def _overflow(self, name: str) -> str:
        """Convert a constant; say which number of it has no place in float16."""
        if name not in self.constants or name in self.halves:
            return ""
        values = tensor_array(self.constants[name])
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        beyond = np.isinf(half) & np.isfinite(values)
        if beyond.any():
            if np.abs(values[beyond]).max() > _ENDLESS:
                self.endless.add(name)
            return f"'{name}' holds {values[beyond][0]:.3g}, beyond 65504"
        self.underflows += int(((half == 0) & (values != 0)).sum())
        self.halves[name] = onnx.numpy_helper.from_array(half, name)
        return ""

    def told(self) -> list[str]:
        """Say how much computes in float16, and what does not and why."""
        stay = sum(map(len, self.kept.values()))
        lines = [f"{len(self.halved):,} of {len(self.halved) + stay:,} nodes compute in float16"]
        if self.underflows:
            lines.append(f"{self.underflows:,} weights are 0 now, being smaller than 3e-8")
        for reason, labels in self.kept.items():
            more = f" and {len(labels) - _LISTED:,} more" if len(labels) > _LISTED else ""
            listed = ", ".join(labels[:_LISTED]) + more
            lines.append(f"{listed} {'stay' if len(labels) > 1 else 'stays'} in float32: {reason}")
        return lines


class _Writer:
    """Rewrites a graph with tensors in either type, each where somebody reads it so."""

    def __init__(self, proto: onnx.ModelProto, decided: _Decisions) -> None:
        self.proto, self.graph, self.decided = proto, proto.graph, decided
        self.names = set(decided.types)
        self.names.update(n for node in all_nodes(proto) for n in (*node.input, *node.output))
        # what somebody outside of the nodes here reads keeps its name and its type
        self.fixed = {value.name for value in proto.graph.output} | _captured(proto.graph)
        self.half: dict[str, str] = {}
        given = {value.name for value in proto.graph.input} | set(decided.constants)
        given |= {tensor.name for tensor in proto.graph.initializer}
        self.full = {name: name for name in given}
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, TensorProto] = {}

    def write(self) -> None:
        """Put new nodes, weights and types into the model."""
        for place, node in enumerate(self.graph.node):
            inputs, outputs = self.decided.halved.get(place, (set(), set()))
            changed = onnx.NodeProto()
            changed.CopyFrom(node)
            for index, name in enumerate(node.input):
                if self.decided.is_float(name):
                    wanted = self._as_half if index in inputs else self._as_full
                    changed.input[index] = wanted(name)
            self.nodes.append(changed)
            for index, name in enumerate(node.output):
                if self.decided.is_float(name):
                    self._made(changed, index, name, index in outputs)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._leave_out_unread()
        self.graph.initializer.extend(self.held.values())
        for value in self.graph.value_info:
            if self.half.get(value.name) == value.name:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16

    def _made(self, node: onnx.NodeProto, index: int, name: str, half: bool) -> None:
        if not half:
            self.full[name] = name
        elif name in self.fixed:
            node.output[index] = self.half[name] = self._fresh(f"{name}.fp16")
            self.full[name] = name
            self._cast(self.half[name], name, TensorProto.FLOAT)
        else:
            self.half[name] = name

    def _as_half(self, name: str) -> str:
        if name not in self.half:
            target = self._fresh(f"{name}.fp16")
            if name in self.decided.halves:
                tensor = self.decided.halves[name]
                tensor.name = target
                self.held[name] = tensor
            else:
                self._cast(self._as_full(name), target, TensorProto.FLOAT16)
            self.half[name] = target
        return self.half[name]

    def _as_full(self, name: str) -> str:
        if name not in self.full:
            if name not in self.half:
                return name
            self.full[name] = self._fresh(f"{name}.fp32")
            self._cast(self.half[name], self.full[name], TensorProto.FLOAT)
        return self.full[name]

    def _cast(self, source: str, target: str, kind: int) -> None:
        name = self._fresh(f"{target}.cast")
        self.nodes.append(onnx.helper.make_node("Cast", [source], [target], name=name, to=kind))

    def _fresh(self, name: str) -> str:
        found, count = name, 1
        while found in self.names:
            found, count = f"{name}.{count}", count + 1
        self.names.add(found)
        return found

    def _leave_out_unread(self) -> None:
        """Take away float32 constants that only nodes in float16 read."""
        read = {name for node in self.nodes for name in node.input} | self.fixed
        gone = {name for name in self.held if name not in read}
        kept = [tensor for tensor in self.graph.initializer if tensor.name not in gone]
        nodes = [n for n in self.graph.node if n.op_type != "Constant" or n.output[0] not in gone]
        for held, left in ((self.graph.initializer, kept), (self.graph.node, nodes)):
            if len(left) < len(held):
                copies = [type(entry).FromString(entry.SerializeToString()) for entry in left]
                del held[:]
                held.extend(copies)
        values = [value for value in self.graph.value_info if value.name not in gone]
        del self.graph.value_info[:]
        self.graph.value_info.extend(values)


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the type of the elements of every tensor of the main graph that has one."""
    found: dict[str, int] = {}
    for graph in (proto.graph, infer_shapes(proto).graph):
        for value in (*graph.value_info, *graph.output, *graph.input):
            if value.type.tensor_type.elem_type:
                found[value.name] = value.type.tensor_type.elem_type
        found.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return found


def _constants(proto: onnx.ModelProto) -> dict[str, TensorProto]:
    """Return the float32 constants of the main graph that nobody can override, by name."""
    inputs = {value.name for value in proto.graph.input} if proto.ir_version >= 4 else set()
    found = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name not in inputs}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.domain in _STANDARD:
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return {name: tensor for name, tensor in found.items() if tensor.data_type == TensorProto.FLOAT}


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return the names that bodies inside of `graph` read, their own included."""
    bodies: Iterable[onnx.GraphProto] = [
        body for node in graph.node for a in node.attribute for body in (a.g, *a.graphs)
    ]
    found: set[str] = set()
    for body in bodies:
        found |= {name for node in body.node for name in node.input}
        found |= {value.name for value in body.output} | _captured(body)
    return found


__all__ = ["SENSITIVE", "ToFp16"]
