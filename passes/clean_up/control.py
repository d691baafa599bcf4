"""If whose condition is known, Loop whose trips are few: what they run takes their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Graph,
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    const,
    constant,
    each,
    label,
    operator,
    opset,
    optional,
    producer,
    rank,
    require,
)
from graphpass.ir.operators import Trait, has

from ..shared.inlined import inlined, is_settled

_MOST_NODES = 4096
_MOST_UNROLLED = 16  # nodes: more would be a larger graph for nothing
_AXES_ARE_INPUTS = 13


class InlineIf(Rule):
    """If(true, f, g) = f, If(false, f, g) = g."""

    pattern = Op("If", const("condition", quiet=True), bind="node", all_outputs=True)

    def rewrite(self, node: Node, condition: Weight) -> Any:
        branch = node.attrs["then_branch" if condition.array().all() else "else_branch"]
        if not isinstance(branch, Graph) or condition.size != 1 or not is_settled(branch):
            return None
        require(len(branch.nodes) <= _MOST_NODES, f"the branch of {label(node)} is large")
        return inlined(branch, node)


class UnrollLoop(Rule):
    """Loop(n, true, …) = its body, n times, where n is small and the body never ends it."""

    pattern = Op(
        "Loop",
        const("trips", quiet=True),
        optional(any_("begins")),
        each("state"),
        bind="loop",
        all_outputs=True,
    )

    def rewrite(
        self, loop: Node, trips: Weight, begins: Tensor | None, state: list[Tensor | None]
    ) -> Any:
        body = loop.attrs["body"]
        count = int(trips.array().reshape(-1)[0]) if trips.size == 1 else -1
        if not isinstance(body, Graph) or count < 0 or not _goes_on(body, begins):
            return None
        if not is_settled(body):
            return None
        scans = len(body.outputs) - 1 - len(state)
        if scans and not count:
            return None
        nodes = count * (len(body.nodes) + scans)
        require(nodes <= _MOST_UNROLLED, f"{label(loop)} would become {nodes} nodes")
        is_random = any(has(inner, Trait.RANDOM) for inner in body.nodes)
        require(count == 1 or not is_random, f"{label(loop)} draws random numbers")
        values: list[Any] = list(state)
        stacks: list[list[Any]] = [[] for _ in range(scans)]
        number, goes_on = body.inputs[0], body.inputs[1]
        for turn in range(count):
            turn_number = np.full([1] * (rank(number) or 0), turn, np.int64)
            bound = {id(number): turn_number, id(goes_on): np.array(True)}
            bound |= {id(t): value for t, value in zip(body.inputs[2:], values, strict=True)}
            made = inlined(body, loop, bound)[1:]
            values = made[: len(state)]
            for stack, value in zip(stacks, made[len(state) :], strict=True):
                stack.append(unsqueezed(loop, value, 0))
        return [
            *values,
            *(stack[0] if count == 1 else Op("Concat", *stack, axis=0) for stack in stacks),
        ]


def _goes_on(body: Graph, begins: Tensor | None) -> bool:
    """Whether nothing but the number of trips ends a Loop."""
    first = None if begins is None else constant(begins)
    if begins is not None and (first is None or not first.array().all()):
        return False
    last = body.outputs[0]
    source = producer(last)
    while source is not None and operator(source) == "Identity" and source.graph is body:
        last = source.inputs[0]
        source = producer(last)
    held = constant(last)
    return last is body.inputs[1] or (held is not None and bool(held.array().all()))


def unsqueezed(node: Node, part: Any, axis: int) -> Op:
    """Return Unsqueeze along one axis as the opset of `node` writes it."""
    if opset(node) < _AXES_ARE_INPUTS:
        return Op("Unsqueeze", part, axes=[axis])
    return Op("Unsqueeze", part, np.array([axis], np.int64))


CONTROL_RULES = (InlineIf(), UnrollLoop())

__all__ = ["CONTROL_RULES", "unsqueezed"]
