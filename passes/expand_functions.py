"""expand-functions: operators that a runtime lacks, written as ONNX's own definition of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Final

import onnx
import onnx.inliner
from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

from graphpass import (
    Graph,
    Node,
    Op,
    Pass,
    Rule,
    Tensor,
    dtype,
    each,
    label,
    needed,
    operator,
    opset,
    require,
)
from graphpass.errors import UsageError
from graphpass.ir.inference import infer_shapes
from graphpass.ir.questions import schema
from graphpass.ir.reader import read_graph
from graphpass.ir.refusal import UNKNOWN_SIZE, RefusalKind
from graphpass.ir.writer import node_proto

from .shared.inlined import inlined

# what `fuse-functions` makes, and what else came late enough for runtimes to lack it
_USUAL: Final = (
    "Attention,Gelu,GroupNormalization,HardSwish,LayerNormalization,Mish,RMSNormalization,"
    "RotaryEmbedding,Swish"
)
_UNDEFINED: Final = RefusalKind("undefined")


@dataclass(frozen=True)
class ExpandFunction(Rule):
    """f(x, …) = the body that ONNX defines f by, in the opset of the model; written by its inliner.

    Where ONNX gives a definition in words only, or one for other types, the operator stays.
    """

    names: tuple[str, ...] = ()

    pattern = Op(..., each("given"), bind="node", all_outputs=True)

    def rewrite(self, node: Node, given: list[Tensor | None]) -> Any:
        found = schema(node)
        if operator(node) not in self.names or found is None:
            return None
        sentence = f"ONNX has no body for {label(node)} in opset {opset(node)}"
        require(_has_body(found), sentence, _UNDEFINED)
        body = _body(node, found)
        is_same = [inner.op for inner in body.nodes] == [node.op]
        require(not is_same, f"{sentence}, for these types", _UNDEFINED)
        bound = {
            id(tensor): value for tensor, value in zip(body.inputs, _named(given), strict=True)
        }
        made = inlined(body, node, bound)
        places = iter(made)
        return [next(places) if tensor.name else tensor for tensor in node.outputs]


def _named(tensors: list[Tensor | None]) -> list[Tensor]:
    """Return each of what is given once."""
    return list({t.name: t for t in tensors if t is not None and t.name}.values())


def _body(node: Node, found: onnx.defs.OpSchema) -> Graph:
    graph = onnx.GraphProto(name="function")
    written = graph.node.add()
    written.CopyFrom(node_proto(node))
    written.attribute.extend(
        held.default_value
        for name, held in found.attributes.items()
        if name not in node.attrs and held.default_value.name
    )
    for tensor in _named(node.inputs):
        kind = needed(dtype(tensor), f"the type of '{tensor.name}' is not known", UNKNOWN_SIZE)
        info = make_tensor_value_info(tensor.name, np_dtype_to_tensor_dtype(kind), tensor.shape)
        graph.input.append(info)
    for tensor in node.outputs:
        if tensor.name:
            kind = needed(dtype(tensor), f"the type of '{tensor.name}' is not known", UNKNOWN_SIZE)
            info = make_tensor_value_info(tensor.name, np_dtype_to_tensor_dtype(kind), tensor.shape)
            graph.output.append(info)
    model = onnx.ModelProto(ir_version=10, graph=graph)
    for domain, version in node.graph.opsets.items():
        model.opset_import.add(domain=domain, version=version)
    names = [("", node.op)]
    model = onnx.inliner.inline_selected_functions(model, names, inline_schema_functions=True)
    return read_graph(model.graph, infer_shapes(model).graph, node.graph.opsets, {}, False)


def _has_body(schema: onnx.defs.OpSchema) -> bool:
    found: Any = schema  # its stub lacks both
    return bool(found.has_function or found.has_context_dependent_function)


@cache
def _defined() -> tuple[str, ...]:
    """Return the operators for which ONNX has a body in some opset."""
    every = onnx.defs.get_all_schemas_with_history()
    return tuple(sorted({one.name for one in every if not one.domain and _has_body(one)}))


@dataclass(frozen=True)
class ExpandFunctions(Pass):
    """Operators that a runtime lacks, as ONNX defines them by smaller ones.

    For runtimes that have the operator this is no gain: it runs only where it is asked for.
    """

    name: ClassVar[str] = "expand-functions"
    operators: str = field(
        default=_USUAL, metadata={"help": "any that ONNX has a body for; with commas"}
    )

    def __post_init__(self) -> None:
        for name in self._listed():
            if name not in _defined():
                known = ", ".join(_defined())
                raise UsageError(f"ONNX has no body for {name!r}, but for {known}")

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """The one rule, for the operators that are listed."""
        return (ExpandFunction(self._listed()),)

    def _listed(self) -> tuple[str, ...]:
        return tuple(filter(None, (name.strip() for name in self.operators.split(","))))
