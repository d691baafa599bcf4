"""Lay a pattern over a node: does it fit, and if only nearly, what stands in the way?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphpass.ir.nodes import Node, Tensor
from graphpass.ir.questions import (
    attribute,
    constant,
    is_output,
    is_overridable,
    label,
    operator,
    producer,
)
from graphpass.ir.refusal import (
    COMPUTED,
    FURTHER_OUTPUTS,
    IS_OUTPUT,
    OVERRIDABLE,
    READERS,
    RefusedError,
)
from graphpass.ir.weight import Weight
from graphpass.rewrite.form import ANY_OPERATOR, Form
from graphpass.rewrite.pattern import Op, Pattern, any_, const, each, either, optional

_MOST_SIBLINGS = 256  # readers of one tensor that are looked at


@dataclass
class Match:
    """A pattern found at `roots`, one but for siblings; `results` is what has to be computed anew.

    `bound`: names to tensors, weights, nodes, lists of these, or None. `nodes`: what the pattern
    covers, a root before what is above it. `blockers`: refusals; where there are any, the
    operators fit but nothing may be done.
    """

    roots: list[Node]
    bound: dict[str, Any]
    nodes: list[Node] = field(default_factory=list)
    blockers: list[RefusedError] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)

    @property
    def root(self) -> Node:
        """The node that the match is named after."""
        return self.roots[0]


def computing(tensors: Iterable[Tensor], nodes: list[Node]) -> list[Node]:
    """Return those of `nodes` that `tensors` are computed by, in their order."""
    inside = {id(node) for node in nodes}
    needed: set[int] = set()
    waiting = list(tensors)
    while waiting:
        source = producer(waiting.pop())
        if source is not None and id(source) in inside and id(source) not in needed:
            needed.add(id(source))
            waiting.extend(source.inputs)
    return [node for node in nodes if id(node) in needed]


def match(form: Form, node: Node) -> Match | Node | None:
    """Lay a pattern over `node`; None where the operators differ.

    Of siblings, only the first finds all: for another one, that node is returned.
    """
    if not _may_fit(form.root, node):
        return None
    found = _at(form, node)
    return found if found is None or form.of is None else _family(form, found)


def _at(form: Form, node: Node) -> Match | None:
    laid = _lay_node(form.root, node, Match([node], {}), None)
    if laid is None:
        return None
    for name in form.names:
        laid.bound.setdefault(name, None)
    laid.results = list(node.outputs) if form.all_outputs else [node.outputs[0]]
    if not form.all_outputs and _has_further_outputs(node):
        laid.blockers.append(_further_outputs(node))
    return laid


def _family(form: Form, found: Match) -> Match | Node | None:
    """Join `found` with the other places that compute on the same tensor."""
    of = form.of or ""
    shared = found.bound[of]
    if not isinstance(shared, gs.Tensor):
        return None
    family: list[Match] = []
    for node in islice(_candidates(form, shared, found.root), _MOST_SIBLINGS):
        laid = found if node is found.root else _at(form, node)
        if laid is None or laid.bound[of] is not shared:
            continue
        if not family and node is not found.root:
            return node
        family.append(laid)
    free = [laid for laid in family if not laid.blockers]
    if len(family) < 2:
        return None
    if len(free) < 2:
        return next(laid for laid in family if laid.blockers)
    bound = {name: [laid.bound[name] for laid in free] for name in form.names}
    return Match(
        [laid.root for laid in free],
        {**bound, of: shared},
        list(dict.fromkeys(node for laid in free for node in laid.nodes)),
        [],
        [result for laid in free for result in laid.results],
    )


def _candidates(form: Form, shared: Tensor, near: Node) -> Iterator[Node]:
    """Yield the nodes around `near` that a pattern on `shared` may begin at, each once."""
    seen: set[int] = set()
    for path in form.paths:
        waiting = [(shared, 0)]
        while waiting:
            tensor, level = waiting.pop()
            onward = []
            for reader in tensor.outputs:
                if reader.graph is not near.graph or not _is_one_of(path[level], reader):
                    continue
                if level + 1 < len(path):
                    onward.append((reader.outputs[0], level + 1))
                elif id(reader) not in seen:
                    seen.add(id(reader))
                    yield reader
            waiting.extend(reversed(onward))


def _is_one_of(operators: frozenset[str], node: Node) -> bool:
    return ANY_OPERATOR in operators or operator(node) in operators


def _has_further_outputs(node: Node) -> bool:
    return any(tensor.outputs or is_output(tensor) for tensor in node.outputs[1:])


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
    if pattern.bind is not None and found.bound.get(pattern.bind, node) is not node:
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
    return name in pattern.ops or not pattern.ops


def _why_kept(pattern: Op, node: Node) -> list[RefusedError]:
    """Say why a node inside the pattern cannot go."""
    first = node.outputs[0]
    reasons = []
    if _has_further_outputs(node):
        reasons.append(_further_outputs(node))
    if pattern.shared:
        return reasons
    if is_output(first):
        reasons.append(RefusedError(f"{label(node)} is an output of the graph", IS_OUTPUT))
    elif len(first.outputs) > 1:
        reasons.append(RefusedError(f"{label(node)} feeds {len(first.outputs)} nodes", READERS))
    return reasons


def _further_outputs(node: Node) -> RefusedError:
    return RefusedError(f"{label(node)} has further outputs that are used", FURTHER_OUTPUTS)


def _lay_inputs(pattern: Op, node: Node, inputs: list[Tensor], found: Match) -> Match | None:
    parts = pattern.inputs
    every = parts[-1] if parts and isinstance(parts[-1], each) else None
    count = len(parts) - (every is not None)
    if len(inputs) > count and not (pattern.open or every is not None):
        return None
    laid: Match | None = Match(
        found.roots, dict(found.bound), [*found.nodes, node], list(found.blockers)
    )
    assert laid is not None
    if pattern.attributes and not _has_attributes(pattern, node, laid):
        return None
    if pattern.bind is not None:
        laid.bound[pattern.bind] = node
    for index, part in enumerate(parts[:count]):
        tensor = inputs[index] if index < len(inputs) else None
        laid = _lay(part, tensor, laid, node)
        if laid is None:
            return None
    return laid if every is None else _lay_each(every, inputs[count:], laid, node)


def _has_attributes(pattern: Op, node: Node, found: Match) -> bool:
    """Whether the attributes have the values that the pattern gives, by default or written."""
    for name, wanted in pattern.attributes.items():
        try:
            value = attribute(node, name)
        except RefusedError as refusal:
            found.blockers.append(refusal)
            continue
        if value is None or _plain(value) != _plain(wanted):
            return False
    return True


def _plain(value: Any) -> Any:
    """Return a value as it is compared: lists whatever they are held in, text decoded."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return float(np.float32(value)) if isinstance(value, float) else value  # as ONNX holds it


def _lay_each(part: each, inputs: list[Tensor], found: Match, reader: Node) -> Match | None:
    """Lay the part of `each` over every further input; its names are bound to lists."""
    names = list(dict.fromkeys(part.names()))
    bound: dict[str, list[Any]] = {name: [] for name in names}
    outer = found.bound
    for tensor in inputs:
        own: Match | None = Match(found.roots, dict(outer), found.nodes, list(found.blockers))
        if tensor.name:
            assert own is not None
            own = _lay(part.part, tensor, own, reader)
        if own is None:
            return None
        for name in names:
            bound[name].append(own.bound.get(name))
        found = own
    return Match(found.roots, {**outer, **bound}, found.nodes, found.blockers)


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
    held = found.bound.get(part.name)
    if held is None:
        return _extended(found, part.name, tensor)
    return found if held is tensor or _equal(constant(held), constant(tensor)) else None


def _equal(one: Weight | None, other: Weight | None) -> bool:
    """Whether two constants are the same to the bit."""
    if one is None or other is None:
        return False
    if one.data_type != other.data_type or tuple(one.shape) != tuple(other.shape):
        return False
    return bool(one.array().tobytes() == other.array().tobytes())


def _lay_const(part: const, tensor: Tensor, found: Match, reader: Node) -> Match | None:
    weight = constant(tensor)
    if weight is not None:
        bound = copy.copy(weight)
        bound.name = tensor.name
        bound.origin = tensor
        held = found.bound.get(part.name)
        if held is None:
            return _extended(found, part.name, bound)
        return found if held.origin is tensor or _equal(held, weight) else None
    overridable = is_overridable(tensor)
    if part.quiet and not overridable:
        return None
    laid = _extended(found, part.name, None)
    laid.blockers.append(
        RefusedError(
            f"'{tensor.name}' may be overridden at run time (it is also a graph input)", OVERRIDABLE
        )
        if overridable
        else RefusedError(
            f"the {part.name} of {label(reader)}, '{tensor.name}', is not a constant", COMPUTED
        )
    )
    return laid


def _extended(found: Match, name: str, value: Tensor | Weight | gs.Node | None) -> Match:
    return Match(found.roots, {**found.bound, name: value}, found.nodes, list(found.blockers))


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
