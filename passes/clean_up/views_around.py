"""A view ahead of what looks at each element alone, and those behind it that undo it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graphpass import (
    Graph,
    Node,
    Survey,
    Tensor,
    constant,
    is_output,
    operator,
    rank,
    readers,
)
from graphpass.ir.operators import Trait, has, row
from graphpass.ir.shapes import RESHAPES, reshaped, sizes
from graphpass.rewrite.survey import Proposal, Several

from ..shared.affine_nodes import rebuilt

_MOST_NODES = 64  # between the views


class DropViewsAround(Survey):
    """Reshape(F(Reshape(x, s)), shape of x) = F(x), F element by element, with single numbers.

    To the bit: each element is computed as before. As in a GELU of several operators between two
    dense layers that both view their input as a matrix.
    """

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Proposal]:
        """See `Survey`."""
        for node in list(scope.nodes):
            # what was replaced before has no outputs
            if node.outputs and node.graph is scope and operator(node) in RESHAPES:
                found = _Between(node).replaced()
                if found is not None:
                    yield found


class _Between:
    """All that reads a view, up to the views behind it."""

    def __init__(self, first: Node) -> None:
        self.first, self.x, self.view = first, first.inputs[0], first.outputs[0]
        ranks = (rank(self.x), rank(self.view))
        self.most_axes = min(count or 0 for count in ranks)
        self.nodes: list[Node] = []  # a node comes after its readers
        self.last: list[Node] = []
        self.inside: dict[int, Any] = {}  # by tensor, what it becomes; None: not known yet

    def replaced(self) -> Several | None:
        """Return what becomes of the last views; None where something else is among it."""
        before = sizes(self.x)
        after = reshaped(self.first, before)
        if before is None or after is None or not self._goes(self.first):
            return None
        if len(self.nodes) == len(self.last) + 1:
            return None  # views alone: other rules merge them
        if not self.last or any(reshaped(last, after) != before for last in self.last):
            return None
        values = [(last.outputs[0], self._term(last.inputs[0])) for last in self.last]
        return None if any(term is None for _, term in values) else Several(self.nodes, values)

    def _goes(self, node: Node) -> bool:
        """Whether all that reads a node of this kind is inside, or a view at the end."""
        if id(node.outputs[0]) in self.inside:
            return True
        if len(node.outputs) > 1 or node.graph is not self.first.graph:
            return False
        is_view = operator(node) in RESHAPES
        ends = is_view and node is not self.first
        if ends:
            self.last.append(node)
        elif is_output(node.outputs[0]) or not (is_view or _is_element_by_element(node)):
            return False
        if len(self.inside) > _MOST_NODES:
            return False
        self.inside[id(node.outputs[0])] = None
        if not ends and not all(self._goes(reader) for reader in readers(node.outputs[0])):
            return False
        self.nodes.append(node)
        return True

    def _term(self, tensor: Tensor) -> Any:
        """Return a tensor as it is computed of `x`; None where it reads something else."""
        if tensor is self.view:
            return self.x
        known = self.inside.get(id(tensor))
        if known is not None or id(tensor) not in self.inside:
            return known
        operands: list[Any] = []
        node = tensor.inputs[0]
        known_of = row(node.op, node.domain)
        data = known_of.data if known_of is not None else None
        for place, operand in enumerate(node.inputs):
            is_number = self._is_number(operand)
            taken = operand if is_number else self._term(operand)
            # bounds and slopes are numbers, and what they belong to is none
            if taken is None or (data is not None and is_number == (place < data)):
                return None
            operands.append(taken)
        self.inside[id(tensor)] = rebuilt(node, operands)
        return self.inside[id(tensor)]

    def _is_number(self, tensor: Tensor) -> bool:
        """Whether it is no input, or a constant of one element that adds no axes."""
        held = constant(tensor) if tensor.name else None
        return not tensor.name or (
            held is not None and held.size == 1 and held.ndim <= self.most_axes
        )


def _is_element_by_element(node: Node) -> bool:
    is_it = has(node, Trait.ELEMENTWISE) or has(node, Trait.BROADCASTING)
    return is_it and not has(node, Trait.RANDOM)


__all__ = ["DropViewsAround"]
