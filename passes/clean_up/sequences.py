"""Sequences whose parts are known: Split and Concat do the same, and other rules know them."""

from __future__ import annotations

from typing import Any

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    each,
    integers,
    optional,
    rank,
    siblings,
    static_dim,
)

_MOST_PARTS = 256


def _parts(node: Node, x: Tensor) -> list[int] | None:
    """Return how long the parts of a SplitToSequence are; None where that is computed."""
    size = static_dim(x, attribute(node, "axis"))
    if len(node.inputs) < 2 or not node.inputs[1].name:
        return None if size is None else [1] * size
    given = integers(node.inputs[1])
    if given is None or not given:
        return None
    if rank(node.inputs[1]) == 1:
        return given
    if size is None or given[0] < 1:
        return None
    whole, rest = divmod(size, given[0])
    return [given[0]] * whole + ([rest] if rest else [])


_AT = Op(
    "SequenceAt",
    Op("SplitToSequence", any_("x"), optional(any_("lengths")), bind="sequence", shared=True),
    const("position"),
    bind="at",
)


class SequenceAtIsSplit(Rule):
    """SequenceAt(SplitToSequence(x), i) for several i = the outputs of Split(x)."""

    pattern = siblings(_AT, of="x")

    def rewrite(
        self,
        x: Tensor,
        at: list[Node],
        sequence: list[Node],
        lengths: list[Tensor | None],
        position: list[Weight],
    ) -> Any:
        if any(other is not sequence[0] for other in sequence):
            return None
        return _taken(sequence[0], x, position)


class SequenceAtIsSplitOnce(Rule):
    """SequenceAt(SplitToSequence(x), i) = an output of Split(x)."""

    pattern = _AT

    def rewrite(
        self, at: Node, sequence: Node, x: Tensor, lengths: Tensor | None, position: Weight
    ) -> Any:
        if len(sequence.outputs[0].outputs) > 1:
            return None  # they share one Split
        found = _taken(sequence, x, [position])
        return None if found is None else found[0]


def _taken(sequence: Node, x: Tensor, positions: list[Weight]) -> list[Any] | None:
    parts, axis = _parts(sequence, x), attribute(sequence, "axis")
    if parts is None or not 0 < len(parts) <= _MOST_PARTS:
        return None
    places = [int(weight.array().reshape(-1)[0]) for weight in positions]
    if not all(-len(parts) <= place < len(parts) for place in places):
        return None
    made = Op("Split", x, axis=axis, split=parts, outputs=len(parts))
    drops = len(sequence.inputs) < 2 and not attribute(sequence, "keepdims")
    taken = [made[place % len(parts)] for place in places]
    if not drops:
        return taken
    return [Op("Squeeze", part, axes=[axis]) for part in taken]


class SequenceAtIsPart(Rule):
    """SequenceAt(SequenceConstruct(a, b, …), i) = the i-th of them."""

    pattern = Op(
        "SequenceAt", Op("SequenceConstruct", each("parts"), shared=True), const("position")
    )

    def rewrite(self, parts: list[Tensor | None], position: Weight) -> Any:
        place = int(position.array().reshape(-1)[0])
        return parts[place] if -len(parts) <= place < len(parts) else None


class ConcatOfSequence(Rule):
    """ConcatFromSequence(SequenceConstruct(a, b, …)) = Concat(a, b, …)."""

    pattern = Op(
        "ConcatFromSequence", Op("SequenceConstruct", each("parts"), shared=True), bind="concat"
    )

    def rewrite(self, concat: Node, parts: list[Tensor | None]) -> Any:
        axis = attribute(concat, "axis")
        if not attribute(concat, "new_axis"):
            return Op("Concat", *parts, axis=axis)
        widened = [Op("Unsqueeze", part, axes=[axis]) for part in parts]
        return Op("Concat", *widened, axis=axis)


class ConcatOfSplitSequence(Rule):
    """ConcatFromSequence(SplitToSequence(x)) = x along the same axis."""

    pattern = Op(
        "ConcatFromSequence",
        Op("SplitToSequence", any_("x"), optional(any_("lengths")), bind="sequence", shared=True),
        bind="concat",
    )

    def rewrite(self, concat: Node, sequence: Node, x: Tensor, lengths: Tensor | None) -> Any:
        count = rank(x)
        if count is None or attribute(concat, "new_axis"):
            return None
        if lengths is None and not attribute(sequence, "keepdims"):
            return None
        same = attribute(concat, "axis") % count == attribute(sequence, "axis") % count
        return x if same else None


SEQUENCE_RULES = (
    SequenceAtIsSplit(),
    SequenceAtIsSplitOnce(),
    SequenceAtIsPart(),
    ConcatOfSequence(),
    ConcatOfSplitSequence(),
)

__all__ = ["SEQUENCE_RULES"]
