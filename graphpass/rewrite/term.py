"""What takes the place of a match: the other side of a rule, as the surgeon takes it.

A rule returns an `Op`, a tensor, a `Weight` or an array; where its pattern has several results
(siblings, all outputs of the root), a list of them. It is read here: what belongs into a pattern
only, or is no operand, is an error that says how to write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphpass.errors import RuleError
from graphpass.ir.copying import captured
from graphpass.ir.nodes import Node, Tensor
from graphpass.ir.weight import Array, Weight
from graphpass.rewrite.pattern import Body, Op, Output, Pattern


@dataclass(frozen=True, eq=False)
class Term:
    """A node to be made. The same object twice is the same node.

    `version` of its domain to import, None: as the model does, or the newest that ONNX knows.
    """

    op: str
    domain: str
    version: int | None
    operands: tuple[Operand | None, ...]
    attributes: dict[str, Any]
    outputs: int
    like: Node | None = None

    @property
    def below(self) -> list[Term]:
        """Every term below this one, in reading order, each mention of it."""
        held = (part for body in self.bodies for part in body.instead.values())
        direct = [part.term for part in (*self.operands, *held) if isinstance(part, Made)]
        return [term for part in direct for term in (part, *part.below)]

    @property
    def bodies(self) -> list[Body]:
        """Bodies among its attributes."""
        return [value for value in self.attributes.values() if isinstance(value, Body)]


@dataclass(frozen=True)
class Made:
    """An output of a node to be made."""

    term: Term
    index: int = 0


Operand = Made | Tensor | Weight | Array


def read(value: Any, count: int | None = None) -> list[Operand | None]:
    """Return what `rewrite` returned, one operand for each result.

    `count`: how many terms a list must have; None: a single term, no list. Raises `RuleError`.
    """
    known: dict[int, Term] = {}
    if count is None:
        return [_operand(value, known, "the term")]
    if isinstance(value, Op):
        value = list(value)
    if not isinstance(value, Sequence) or len(value) != count:
        found = len(value) if isinstance(value, Sequence) else type(value).__name__
        raise RuleError(f"it must return a list of {count} terms, one for each result, not {found}")
    return [
        None if part is None else _operand(part, known, f"term {index}")
        for index, part in enumerate(value)
    ]


def _operand(value: Any, known: dict[int, Term], where: str) -> Operand:
    if isinstance(value, Output):
        return Made(_term(value.op, known), value.index)
    if isinstance(value, Op):
        if value.outputs != 1:
            raise RuleError(
                f"{where} is {value!r} with {value.outputs} outputs: say which, as in op[0]"
            )
        return Made(_term(value, known))
    if isinstance(value, (gs.Tensor, Weight, np.ndarray, np.generic)):
        return value  # type: ignore[return-value]
    if isinstance(value, Pattern):
        raise RuleError(f"{where} is {value!r}, which is for patterns: use what it bound")
    hint = "np.array(…) of the right dtype" if isinstance(value, (bool, int, float, list)) else ""
    if isinstance(value, gs.Node):
        hint = "one of its outputs"
    shown = repr(value) if len(repr(value)) < 40 else type(value).__name__
    instead = f": give {hint}" if hint else ", which is no tensor, Weight, array or Op"
    raise RuleError(f"{where} is {shown}{instead}")


def _body(body: Body, known: dict[int, Term], where: str) -> Body:
    """Read what a body reads from outside; `instead` may hold more than that."""
    read = {id(tensor) for tensor in (*captured(body.graph), *body.graph.inputs)}
    instead = {key: _operand(body.instead[key], known, where) for key in read & body.instead.keys()}
    return Body(body.graph, instead, body.outputs, holds=body.holds)


def _term(op: Op, known: dict[int, Term]) -> Term:
    if id(op) in known:
        return known[id(op)]
    if len(op.ops) != 1:
        raise RuleError(f"the term {op!r} names no operator or several: a new node has one")
    options = {
        "bind": op.bind is not None,
        "commutative": op.commutative,
        "shared": op.shared,
        "all_outputs": op.all_outputs,
        "...": op.open,
    }
    for name, given in options.items():
        if given:
            raise RuleError(f"{name} in the term {op!r} is for patterns: leave it out")
    if op.outputs < 1:
        raise RuleError(f"the term {op!r} has {op.outputs} outputs")
    operands = tuple(
        None
        if part is None or (isinstance(part, gs.Tensor) and not part.name)
        else _operand(part, known, f"input {index} of the term {op.ops[0]}")
        for index, part in enumerate(op.inputs)
    )
    attributes = {
        key: _body(value, known, f"body {key} of the term {op.ops[0]}")
        if isinstance(value, Body)
        else value
        for key, value in op.attributes.items()
        if value is not None
    }
    made = Term(op.ops[0], op.domain, op.version, operands, attributes, op.outputs, op.like)
    known[id(op)] = made
    return made
