"""What passes would make of a model, and site by site why they would not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from graphpass.errors import RuleError, UsageError
from graphpass.ir.model import Model
from graphpass.report import costs
from graphpass.report.data import model_facts, nodes_of, operator_name
from graphpass.report.terminal import say
from graphpass.rewrite.driver import Applied, apply, described
from graphpass.rewrite.rule import Pass
from graphpass.validate.cost import natural_shapes
from graphpass.validate.process.constants import runtime_for_constants

if TYPE_CHECKING:
    from rich.console import Console


_LISTED = 64  # numbers of an attribute


@dataclass(frozen=True)
class Inspected:
    """What one pass would do, after those before it. `error`: it failed, one sentence."""

    step: Pass
    applied: Applied
    error: str = ""


def inspect(
    model: Model, steps: Sequence[Pass], time_limit_s: float | None = None
) -> list[Inspected]:
    """Apply `steps` one after the other to a copy of `model`; nothing is run or validated.

    `time_limit_s`: for each of them.
    """
    tried = model.copy()
    found: list[Inspected] = []
    for step in steps:
        before = onnx.ModelProto()
        before.CopyFrom(tried.proto)
        try:
            with runtime_for_constants():
                found.append(Inspected(step, apply(step, tried, time_limit_s=time_limit_s)))
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


def show(console: Console, model: Model, found: Sequence[Inspected], name: str | None) -> None:
    """Print what `inspect` found, all of it or what concerns one node or tensor.

    Raises `UsageError` where there is no node of that name.
    """
    if name is None:
        _show_model(console, model)
        for one in found:
            _show_pass(console, one, one.applied)
        return
    node = find_node(model, name)
    say(console, heading(node), style="bold")
    parts = [(one, about(one.applied, names_of(node))) for one in found]
    for one, part in parts:
        if part.changed or part.refusals or part.failures:
            _show_pass(console, one, part)
    if not any(part.changed or part.refusals or part.failures for _, part in parts):
        names = ", ".join(one.step.name for one in found)
        say(console, f"nothing that {names} look for begins or ends here")


def show_cost(
    console: Console, model: Model, name: str | None, bind: Mapping[str, int] | None = None
) -> None:
    """Print what each node costs, or one: with a batch of 1 and sizes as `bind` has them.

    Raises `UsageError` where there is no node of that name, nor such a dimension.
    """
    names = None if name is None else names_of(find_node(model, name))
    costs.show(console, model.proto, natural_shapes(model.proto, bind), names)


def _show_model(console: Console, model: Model) -> None:
    graph = model.proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.name not in constants:
                shown = onnx.helper.printable_value_info(value).removeprefix("%")
                say(console, f"{kind} {shown}")
    facts = model_facts(model.proto)
    counts = sorted(facts.operators.items(), key=lambda entry: -entry[1])
    say(console, f"{facts.nodes} nodes: " + ", ".join(f"{n} {name}" for name, n in counts))
    for entry in model.proto.metadata_props:
        if entry.key.startswith("graphpass."):
            say(console, f"{entry.key} {entry.value}")
    versions = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in model.opsets.items())
    say(console, f"{facts.parameters:,} parameters; opsets: {versions}")


def _show_pass(console: Console, one: Inspected, part: Applied) -> None:
    say(console, f"\n{one.step.name}: {len(part.rewrites)} rewrites, {len(part.refusals)} refused")
    if one.error:
        say(console, f"  failed: {one.error}", style="red")
    for note in part.notes:
        say(console, f"  {note}")
    for rewrite in part.rewrites:
        after = ", ".join(rewrite.after) or "nothing"
        say(console, f"  {rewrite.rule}: {', '.join(rewrite.before)} → {after}")
    for failure in part.failures:
        say(console, f"  {described(failure)}")
    for refusal in part.refusals:
        say(console, f"  {refusal.node} stays: {refusal.reason} ({refusal.rule})", style="yellow")
    for said in dict.fromkeys(refusal.advice for refusal in part.refusals):
        if said:
            say(console, f"  what can be done: {said}")
