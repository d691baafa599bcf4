"""set-opset: the model in another version of ONNX's operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx
import onnx.version_converter

from graphpass import Pass, require
from graphpass.errors import UsageError
from graphpass.ir.proto_walk import all_graphs, label_of
from graphpass.rewrite.interface import Interface
from graphpass.storage.reference import is_external

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class SetOpset(Pass):
    """The model in another version of ONNX's operators, by ONNX's own converter.

    Nodes whose operator did not change in between stay as they are, as does all that is said
    around the nodes. Refused, in one sentence, is what the converter does not know: operators
    without a conversion, bodies and functions whose operators changed, types other than tensors.
    """

    name: ClassVar[str] = "set-opset"
    changes_interface: ClassVar[Interface] = Interface.OPSETS
    required: ClassVar[bool] = True
    opset: int = field(default=0, metadata={"help": "its version; 0: as it is"})

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if not 0 <= self.opset <= newest:
            raise UsageError(f"there is no opset {self.opset}: the newest known here is {newest}")

    def convert(self, proto: onnx.ModelProto) -> list[str]:
        """Let ONNX convert the nodes, and keep the rest."""
        held = next((e.version for e in proto.opset_import if e.domain in _STANDARD), None)
        if not self.opset or held in (None, self.opset):
            return []
        _require_convertible(proto, held, self.opset)
        try:
            converted = onnx.version_converter.convert_version(_bare(proto), self.opset)
        except Exception as error:  # it raises what its C++ throws: RuntimeError, IndexError, …
            ways = f"from opset {held} to {self.opset}"
            require(False, f"ONNX's converter does not get {ways}: {_reason(error)}")
        _take(proto, converted, held, self.opset)
        return [f"opset {held} became {self.opset}"]


def _require_convertible(proto: onnx.ModelProto, held: int, version: int) -> None:
    """Refuse what the converter would lose or leave in the old version."""
    for function in proto.functions:
        for node in function.node:
            _require_unchanged(node, held, version, f"function '{function.name}'")
    for graph in list(all_graphs(proto))[1:]:
        for node in graph.node:
            _require_unchanged(node, held, version, f"the body '{graph.name}'")
    for value in (*proto.graph.input, *proto.graph.output):
        require(
            value.type.WhichOneof("value") == "tensor_type",
            f"'{value.name}' is no tensor, and ONNX's converter takes nothing else",
        )
    require(not proto.training_info, "ONNX's converter takes no model with training information")
    require(not proto.graph.sparse_initializer, "ONNX's converter takes no sparse initializers")


def _require_unchanged(node: onnx.NodeProto, held: int, version: int, where: str) -> None:
    require(
        node.domain not in _STANDARD or not _changes(node, held, version),
        f"{label_of(node)} in {where} changes between opset {held} and {version}, and ONNX's"
        " converter leaves what is in there as it is",
    )


def _changes(node: onnx.NodeProto, held: int, version: int) -> bool:
    """Whether the operator of a node is another one in the other version."""
    found = []
    for opset in (held, version):
        try:
            found.append(onnx.defs.get_schema(node.op_type, opset, "").since_version)
        except onnx.defs.SchemaError:
            return True
    return found[0] != found[1]


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return what the converter is to see: without functions, large weights as inputs."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.functions[:]
    large = [tensor for tensor in bare.graph.initializer if is_external(tensor)]
    kept = [tensor for tensor in bare.graph.initializer if not is_external(tensor)]
    listed = {value.name for value in bare.graph.input}
    for tensor in large:
        if tensor.name not in listed:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    return bare


def _take(proto: onnx.ModelProto, converted: onnx.ModelProto, held: int, version: int) -> None:
    """Put converted nodes, and constants that they need, into the model."""
    before = {tuple(node.output): node for node in proto.graph.node}
    nodes = [_merged(before, node, held, version) for node in converted.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    there = {tensor.name for tensor in proto.graph.initializer}
    proto.graph.initializer.extend(t for t in converted.graph.initializer if t.name not in there)
    for entry in proto.opset_import:
        if entry.domain in _STANDARD:
            entry.version = version


def _merged(
    before: dict[tuple[str, ...], onnx.NodeProto], node: onnx.NodeProto, held: int, version: int
) -> onnx.NodeProto:
    """Return the old node where its operator is the same, else the new one with its notes."""
    old = before.get(tuple(node.output))
    if old is None:
        return node
    alike = old.op_type == node.op_type and list(old.input) == list(node.input)
    if alike and (node.domain not in _STANDARD or not _changes(old, held, version)):
        return old
    node.doc_string = old.doc_string
    node.metadata_props.extend(e for e in old.metadata_props if e not in node.metadata_props)
    return node


def _reason(error: Exception) -> str:
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    told = " ".join(filter(None, lines)) or type(error).__name__
    told = told.split("` failed: ")[-1]  # behind the assertion itself
    return told if len(told) <= 200 else f"{told[:199]}…"
