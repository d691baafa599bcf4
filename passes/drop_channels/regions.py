"""Channels that go together, and what is computed anew without them."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import Op, Tensor, is_output, readers
from graphpass.ir.refusal import RefusedError
from graphpass.rewrite.survey import Refused, Several

from .tied import Bools, Held, Part, Wiring, places


def regions(wiring: Wiring) -> list[Region]:
    """Return, for channels that go and meet at some node, all that reads or makes them."""
    if not wiring.goes.any():
        return []
    sides = [(part, side) for part in wiring.parts for side in _sides(wiring, part)]
    owner = _owners(wiring, [wires for _, wires in sides])
    by_owner: dict[int, list[Part]] = {}
    for part, wires in sides:
        found = by_owner.setdefault(int(owner[wires[0]]), [])
        if part not in found:
            found.append(part)
    order = {id(part): place for place, part in enumerate(wiring.parts)}
    return [
        Region(
            wiring,
            sorted(parts, key=lambda part: order[id(part)]),
            wiring.goes & (owner[wiring.label] == key),
        )
        for key, parts in by_owner.items()
    ]


def _sides(wiring: Wiring, part: Part) -> list[Any]:
    """Return the labels that go from what a part reads and makes, apart where it mixes them."""
    read, made = (
        [wiring.of(t).wires for t in tensors if wiring.knows(t)]
        for tensors in (part.node.inputs, part.node.outputs)
    )
    found = []
    for wires in (read, made) if part.mixes else ([*read, *made],):
        labels = np.unique(wiring.label[np.concatenate(wires)]) if wires else np.zeros(0, np.int64)
        labels = labels[wiring.goes[labels]]
        if labels.size:
            found.append(labels)
    return found


def _owners(wiring: Wiring, sides: list[Any]) -> Any:
    """Return for each label the first of those that it meets at some node."""
    owner = np.arange(len(wiring.label))
    settled = False
    while not settled:
        settled = True
        for labels in sides:
            first = owner[labels].min()
            if (owner[labels] != first).any():
                owner[labels] = first
                settled = False
    return owner


class Region:
    """Nodes, in order, that read or make channels which go."""

    def __init__(self, wiring: Wiring, parts: list[Part], goes: Bools) -> None:
        self.wiring, self.parts, self.goes = wiring, parts, goes
        self.nodes = [part.node for part in reversed(parts)]
        self._terms: dict[int, Any] = {}  # by tensor

    def proposal(self) -> Several | Refused | None:
        """Return what is computed anew; None where nobody reads any of it."""
        try:
            values = self._values()
        except RefusedError as refusal:
            return Refused(self.nodes[-1], refusal)
        return Several(self.nodes, values) if values else None

    def _values(self) -> list[tuple[Tensor, Any]]:
        values = []
        for part in self.parts:
            inputs = [self._terms.get(id(tensor), tensor) for tensor in part.node.inputs]
            made = part.narrowed(inputs, self._kept)
            for index, tensor in enumerate(part.node.outputs):
                term = made[index] if isinstance(made, Op) and made.outputs > 1 else made
                if self._kept(tensor) is not None:
                    self._terms[id(tensor)] = term
                elif readers(tensor) or is_output(tensor):
                    values.append((tensor, term))
        return values

    def _kept(self, tensor: Tensor) -> Any:
        if not self.wiring.knows(tensor):
            return None
        held: Held = self.wiring.of(tensor)
        return places(held, self.goes)
