"""If whose condition is known, Loop whose trips are few, states that no trip changes."""

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
    is_output,
    label,
    operator,
    opset,
    optional,
    producer,
    rank,
    readers,
    require,
)
from graphpass.ir.operators import Trait, has
from graphpass.rewrite.pattern import Body

from ..shared.inlined import inlined, is_settled

_MOST_NODES = 4096
_MOST_UNROLLED = 16  # nodes: more would be a larger graph for nothing
_SCAN_HAS_NO_BATCH = 9


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
                stack.append(Op("Unsqueeze", value, axes=[0]))
        return [
            *values,
            *(stack[0] if count == 1 else Op("Concat", *stack, axis=0) for stack in stacks),
        ]


class DropLoopState(Rule):
    """A Loop or Scan whose body hands a state on as it came: the body reads it from outside.

    The state is the same in each trip, and after the last one, or none, what it was before. A
    weight that nothing else reads becomes the body's own.
    """

    pattern = Op(("Loop", "Scan"), ..., bind="node", all_outputs=True)

    def rewrite(self, node: Node) -> Any:
        body = node.attrs["body"]
        if not isinstance(body, Graph) or not is_settled(body):
            return None
        own = 2 if operator(node) == "Loop" else 0  # inputs of a Loop before its states
        if not own and opset(node) < _SCAN_HAS_NO_BATCH:
            return None
        count = len(body.inputs) - own - (0 if own else int(node.attrs["num_scan_inputs"]))
        skipped = 1 if own else 0  # outputs of a Loop's body before its states
        states = node.inputs[own : own + count]
        dropped = [
            place
            for place in range(count)
            if _source(body, body.outputs[skipped + place]) is body.inputs[own + place]
        ]
        if not dropped or len(states) != count:
            return None
        gone = {id(body.inputs[own + place]) for place in dropped}
        kept = [i for i in range(len(body.outputs)) if i - skipped not in dropped]
        for place in kept:
            is_made = id(body.outputs[place]) not in gone
            require(is_made, f"the body of {label(node)} hands a state on as another output too")
        outputs: dict[int, Any] = {place: states[place] for place in dropped}
        if len(kept) > skipped:
            instead = {id(body.inputs[own + place]): _state(node, own, place) for place in dropped}
            made = Op(
                node.op,
                *(t for i, t in enumerate(node.inputs) if i - own not in dropped),
                **node.attrs | {"body": Body(body, instead, kept, holds=True)},
                outputs=len(kept) - skipped,
            )
            outputs |= {place - skipped: made[i] for i, place in enumerate(kept[skipped:])}
        return [outputs[place] for place in range(len(node.outputs))]


def _state(node: Node, own: int, place: int) -> Tensor | Weight:
    """Return what a body reads in the place of a state: a weight, where that is for it alone."""
    state: Tensor = node.inputs[own + place]
    result = node.outputs[place]
    held = constant(state) if producer(state) is None else None
    shared = len(readers(state)) > 1 or is_output(state) or is_output(result) or readers(result)
    if held is None or held.tensor is None or shared:
        return state
    return Weight.of(held.tensor, state.name)


def _source(body: Graph, tensor: Tensor) -> Tensor:
    """Return what `tensor` is another name of, inside of `body`."""
    node = producer(tensor)
    while node is not None and operator(node) == "Identity" and node.graph is body:
        tensor = node.inputs[0]
        node = producer(tensor)
    return tensor


def _goes_on(body: Graph, begins: Tensor | None) -> bool:
    """Whether nothing but the number of trips ends a Loop."""
    first = None if begins is None else constant(begins)
    if begins is not None and (first is None or not first.array().all()):
        return False
    last = _source(body, body.outputs[0])
    held = constant(last)
    return last is body.inputs[1] or (held is not None and bool(held.array().all()))


CONTROL_RULES = (InlineIf(), UnrollLoop(), DropLoopState())

__all__ = ["CONTROL_RULES"]
