"""What passes would make of a model, and site by site why they would not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from graphpass.errors import RuleError, UsageError
from graphpass.ir.cost import NodeCost, cost_of, node_costs
from graphpass.ir.model import Model
from graphpass.ir.type_text import dtype_text, type_text
from graphpass.report.data import model_facts, nodes_of, operator_name, plain
from graphpass.rewrite.applied import Applied, described
from graphpass.rewrite.driver import apply
from graphpass.rewrite.rule import Pass
from graphpass.validate.cost import natural_shapes
from graphpass.validate.process.constants import runtime_for_constants

_LISTED = 64  # numbers of an attribute


@dataclass(frozen=True)
class Inspected:
    """What one pass would do, after those before it. `error`: it failed, one sentence."""

    step: Pass
    applied: Applied
    error: str = ""


def inspect(
    model: Model,
    steps: Sequence[Pass],
    time_limit_s: float | None = None,
    left_out: frozenset[str] = frozenset(),
) -> list[Inspected]:
    """Apply `steps` one after the other to a copy of `model`; nothing is run or validated.

    `time_limit_s`: for each of them. `left_out`: names of nodes that no rewrite may touch.
    """
    tried = model.copy()
    found: list[Inspected] = []
    for step in steps:
        before = onnx.ModelProto()
        before.CopyFrom(tried.proto)
        try:
            with runtime_for_constants():
                applied = apply(step, tried, time_limit_s=time_limit_s, left_out=left_out)
                found.append(Inspected(step, applied))
        except RuleError as error:
            tried.restore(before)
            found.append(Inspected(step, Applied(), str(error)))
    return found


def about(applied: Applied, names: Sequence[str]) -> Applied:
    """Return the part of `applied` that concerns the node or tensor known by one of `names`."""

    def meant(*labels: str) -> bool:
        return any(f"'{name}'" in label for name in names for label in labels)

    return Applied(
        [r for r in applied.rewrites if r.site in names or meant(*r.before, *r.after)],
        [f for f in applied.failures if meant(*f.rewrite.before)],
        [r for r in applied.refusals if meant(r.node, r.reason)],
    )


def find_node(model: Model, name: str) -> onnx.NodeProto:
    """Return the node that bears or makes `name`. Raises `UsageError` where there is none."""
    nodes = list(nodes_of(model.proto))
    for node in nodes:
        if node.name == name:
            return node
    for node in nodes:
        if name in node.output:
            return node
    near = [_known_as(node) for node in nodes if name.lower() in _words(node).lower()]
    hint = f"; did you mean {', '.join(near[:5])}?" if near else ""
    raise UsageError(f"there is no node or tensor {name!r} in the model{hint}")


def _known_as(node: onnx.NodeProto) -> str:
    return next((name for name in (node.name, *node.output) if name), node.op_type)


def _words(node: onnx.NodeProto) -> str:
    return "\n".join((node.name, node.op_type, *node.input, *node.output))


def names_of(node: onnx.NodeProto) -> list[str]:
    """Return what refusals and rewrites may call `node`."""
    return [name for name in (node.name, *node.output) if name]


def heading(node: onnx.NodeProto) -> str:
    """Return a node as one line: `y = Conv<group=2>(x, W)`."""
    attributes = ", ".join(
        f"{a.name}={onnx.helper.get_attribute_value(a)!r}"
        for a in node.attribute
        if a.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.FLOAT)
        and len(a.ints) <= _LISTED
    )
    listed = f"<{attributes}>" if attributes else ""
    return f"{', '.join(node.output)} = {operator_name(node)}{listed}({', '.join(node.input)})"


def as_data(
    model: Model,
    found: Sequence[Inspected],
    name: str | None = None,
    bind: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the model, its nodes and what `inspect` found as plain data for JSON.

    `name`: only that node and what concerns it. `bind`: sizes of symbolic dimensions to count with.
    Raises `UsageError` where there is no such node or dimension.
    """
    shapes = natural_shapes(model.proto, bind)
    facts = model_facts(model.proto)
    nodes = node_costs(model.proto, shapes)
    parts = [(one, one.applied) for one in found]
    if name is not None:
        names = names_of(find_node(model, name))
        nodes = [node for node in nodes if node.node in names]
        parts = [(one, about(one.applied, names)) for one in found]
    graph = model.proto.graph
    told = plain(
        {
            "inputs": [_value_data(value) for value in caller_inputs(model.proto)],
            "outputs": [_value_data(value) for value in graph.output],
            "ir_version": model.proto.ir_version,
            "opsets": {domain or "ai.onnx": v for domain, v in model.opsets.items()},
            "metadata": {entry.key: entry.value for entry in model.proto.metadata_props},
            "parameters": facts.parameters,
            "operators": facts.operators,
            "cost": cost_of(model.proto, shapes),
            "nodes": [_node_data(node) for node in nodes],
            "passes": [_pass_data(one, part) for one, part in parts],
        }
    )
    assert isinstance(told, dict)
    return told


def _value_data(value: onnx.ValueInfoProto) -> dict[str, Any]:
    return {"name": value.name, "type": type_text(value.type)}


def _node_data(node: NodeCost) -> dict[str, Any]:
    told: dict[str, Any] = plain(node)
    told["dtype"] = dtype_text(told.pop("data_type")) or None
    told["parameters"] = told.pop("weight_elements")
    return told


def _pass_data(one: Inspected, part: Applied) -> dict[str, Any]:
    return {
        "name": one.step.name,
        "options": one.step.options,
        "error": one.error or None,
        "notes": part.notes,
        "rewrites": part.rewrites,
        "failures": [described(failure) for failure in part.failures],
        "refusals": part.refusals,
    }


def caller_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller has to feed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]
