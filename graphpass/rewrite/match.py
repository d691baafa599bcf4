"""Lay a pattern over a node: does it fit, and if only nearly, what stands in the way?"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs

from graphpass.ir.nodes import Node, Tensor
from graphpass.ir.questions import constant, is_output, is_overridable, label, operator, producer
from graphpass.ir.weight import Weight
from graphpass.rewrite.pattern import Op, Pattern, any_, const, either, optional


@dataclass
class Match:
    """A pattern found at `root`.

    `bound`: names to tensors, weights, nodes or None. `nodes`: what the pattern covers, root
    first. `blockers`: sentences; where there are any, the operators fit but nothing may be done.
    """

    root: Node
    bound: dict[str, Any]
    nodes: list[Node] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)


def match(pattern: Op | either, root: Node) -> Match | None:
    """Lay `pattern` over `root`; None where the operators differ."""
    if not _may_fit(pattern, root):
        return None
    laid = _lay_node(pattern, root, Match(root, {}), None)
    if laid is None:
        return None
    for name in pattern.names():
        laid.bound.setdefault(name, None)
    if any(tensor.outputs or is_output(tensor) for tensor in root.outputs[1:]):
        laid.blockers.append(f"{label(root)} has further outputs that are used")
    return laid


def _may_fit(pattern: Op | either, root: Node) -> bool:
    """Look at the operators right above: nearly every node is settled by that."""
    if isinstance(pattern, either) or pattern.commutative:
        return True
    inputs = root.inputs
    for index, part in enumerate(pattern.inputs):
        if not isinstance(part, Op):
            continue
        source = producer(inputs[index]) if index < len(inputs) else None
        if source is None or not _is_operator(part, source):
            return False
    return True


def _lay_node(pattern: Op | either, node: Node, found: Match, reader: Node | None) -> Match | None:
    """Return `found` extended by what lies at `node`, or None; `found` itself stays as it is."""
    if isinstance(pattern, either):
        return _best(
            _lay_node(part, node, found, reader)
            for part in pattern.alternatives
            if isinstance(part, (Op, either))
        )
    if not _is_operator(pattern, node):
        return None
    inputs = list(node.inputs)
    while inputs and inputs[-1].name == "":
        inputs.pop()
    orders = [inputs]
    if pattern.commutative and len(inputs) == 2:
        orders.append(inputs[::-1])
    laid = _best(_lay_inputs(pattern, node, order, found) for order in orders)
    if laid is None or reader is None:
        return laid
    laid.blockers.extend(_why_kept(pattern, node))
    return laid


def _is_operator(pattern: Op, node: Node) -> bool:
    name = operator(node)
    if pattern.domain:
        return name in {f"{pattern.domain}::{op}" for op in pattern.ops}
    return name in pattern.ops


def _why_kept(pattern: Op, node: Node) -> list[str]:
    """Say why a node inside the pattern cannot go."""
    first, *others = node.outputs
    reasons = []
    if any(tensor.outputs or is_output(tensor) for tensor in others):
        reasons.append(f"{label(node)} has further outputs that are used")
    if pattern.shared:
        return reasons
    if is_output(first):
        reasons.append(f"{label(node)} is an output of the graph")
    elif len(first.outputs) > 1:
        reasons.append(f"{label(node)} feeds {len(first.outputs)} nodes")
    return reasons


def _lay_inputs(pattern: Op, node: Node, inputs: list[Tensor], found: Match) -> Match | None:
    if len(inputs) > len(pattern.inputs) and not pattern.open:
        return None
    laid: Match | None = Match(
        found.root, dict(found.bound), [*found.nodes, node], list(found.blockers)
    )
    assert laid is not None
    if pattern.bind is not None:
        laid.bound[pattern.bind] = node
    for index, part in enumerate(pattern.inputs):
        tensor = inputs[index] if index < len(inputs) else None
        laid = _lay(part, tensor, laid, node)
        if laid is None:
            return None
    return laid


def _lay(part: Pattern, tensor: Tensor | None, found: Match, reader: Node) -> Match | None:
    missing = tensor is None or tensor.name == ""
    if isinstance(part, optional):
        return found if missing else _lay(part.part, tensor, found, reader)
    if missing:
        return None
    assert tensor is not None
    if isinstance(part, either):
        return _best(_lay(choice, tensor, found, reader) for choice in part.alternatives)
    if isinstance(part, Op):
        node = producer(tensor)
        # a node of an outer graph runs once, a body many times or never: it stays where it is
        if node is None or node.outputs[0] is not tensor or node.graph is not reader.graph:
            return None
        return _lay_node(part, node, found, reader)
    if isinstance(part, const):
        return _lay_const(part, tensor, found, reader)
    assert isinstance(part, any_)
    if part.name in found.bound and found.bound[part.name] is not tensor:
        return None
    return _extended(found, part.name, tensor)


def _lay_const(part: const, tensor: Tensor, found: Match, reader: Node) -> Match | None:
    weight = constant(tensor)
    if weight is not None:
        bound = copy.copy(weight)
        bound.name = tensor.name
        bound.origin = tensor
        return _extended(found, part.name, bound)
    overridable = is_overridable(tensor)
    if part.quiet and not overridable:
        return None
    laid = _extended(found, part.name, None)
    if overridable:
        reason = f"'{tensor.name}' may be overridden at run time (it is also a graph input)"
    else:
        reason = f"the {part.name} of {label(reader)}, '{tensor.name}', is not a constant"
    laid.blockers.append(reason)
    return laid


def _extended(found: Match, name: str, value: Tensor | Weight | gs.Node | None) -> Match:
    return Match(found.root, {**found.bound, name: value}, found.nodes, list(found.blockers))


def _best(candidates: Any) -> Match | None:
    """Return the first match that nothing blocks, or else the first."""
    first: Match | None = None
    for candidate in candidates:
        if candidate is None:
            continue
        if not candidate.blockers:
            return candidate  # type: ignore[no-any-return]
        first = first or candidate
    return first
