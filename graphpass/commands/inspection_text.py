"""What was found in a model, for a terminal: the model, what passes would do, why not elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphpass.ir.cost import cost_of
from graphpass.ir.type_text import type_text
from graphpass.report import costs
from graphpass.report.data import model_facts
from graphpass.report.rows import by_reason
from graphpass.report.summary import counted
from graphpass.report.terminal import say
from graphpass.rewrite.applied import described
from graphpass.run.inspection import about, caller_inputs, find_node, heading, names_of
from graphpass.validate.cost import natural_shapes

if TYPE_CHECKING:
    from rich.console import Console

    from graphpass.ir.model import Model
    from graphpass.rewrite.applied import Applied
    from graphpass.run.inspection import Inspected


def show_model(console: Console, model: Model, bind: Mapping[str, int] | None = None) -> None:
    """Print what a model takes and gives, what it consists of, and what a run costs."""
    values = [("input", caller_inputs(model.proto)), ("output", model.proto.graph.output)]
    width = max((len(value.name) for _, found in values for value in found), default=0)
    for kind, found in values:
        for value in found:
            say(console, f"{kind:6} {value.name:{width}}  {type_text(value.type)}")
    shapes = natural_shapes(model.proto, bind)
    console.print()
    costs.show_operators(console, model.proto, shapes)
    facts = model_facts(model.proto)
    versions = ", ".join(f"{domain} {v}".strip() for domain, v in model.opsets.items())
    console.print()
    parameters = counted(facts.parameters, "parameter")
    say(console, f"{counted(facts.nodes, 'node')}, {parameters}; opset {versions}")
    for line in costs.totals(cost_of(model.proto, shapes)):
        say(console, line)
    for entry in model.proto.metadata_props:
        if entry.key.startswith("graphpass."):
            say(console, f"{entry.key} {entry.value}")


def show_found(
    console: Console,
    model: Model,
    found: Sequence[Inspected],
    name: str | None = None,
    *,
    verbose: bool = False,
) -> None:
    """Print what passes would do: by rule and reason, or `verbose`, or of one node, one by one.

    Raises `UsageError` where there is no node of that name.
    """
    if name is None:
        for one in found:
            _show_pass(console, one, one.applied, verbose)
        return
    node = find_node(model, name)
    say(console, heading(node), style="bold")
    parts = [(one, about(one.applied, names_of(node))) for one in found]
    parts = [(one, part) for one, part in parts if part.changed or part.refusals or part.failures]
    for one, part in parts:
        _show_pass(console, one, part, verbose=True)
    if not parts:
        names = ", ".join(one.step.name for one in found)
        say(console, f"nothing that {names} look for begins or ends here")


def _show_pass(console: Console, one: Inspected, part: Applied, verbose: bool) -> None:
    rewrites = counted(len(part.rewrites), "rewrite")
    say(console, f"\n{one.step.name}: {rewrites}, {len(part.refusals)} refused", style="bold")
    if one.error:
        say(console, f"  failed: {one.error}", style="red")
    for note in part.notes:
        say(console, f"  {note}")
    for failure in part.failures:
        say(console, f"  {described(failure)}")
    if verbose:
        _show_sites(console, part)
        return
    kinds = Counter((rewrite.rule, rewrite.law) for rewrite in part.rewrites)
    for (rule, law), count in kinds.most_common():
        say(console, f"  {count} × {rule}: {law}")
    for group in by_reason(one.step.name, part.refusals):
        one_stays = f"{group.nodes[0]} stays"
        who = one_stays if len(group.nodes) == 1 else f"{len(group.nodes)} stay"
        say(console, f"  {who}: {group.reason}", style="yellow")
        if group.advice:
            say(console, f"    what can be done: {group.advice}")


def _show_sites(console: Console, part: Applied) -> None:
    for rewrite in part.rewrites:
        after = ", ".join(rewrite.after) or "nothing"
        say(console, f"  {rewrite.rule}: {', '.join(rewrite.before)} → {after}")
    for refusal in part.refusals:
        say(console, f"  {refusal.node} stays: {refusal.reason} ({refusal.rule})", style="yellow")
    for said in dict.fromkeys(refusal.advice for refusal in part.refusals):
        if said:
            say(console, f"  what can be done: {said}")
