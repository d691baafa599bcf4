"""Which channels of a network belong together, what they hold, and which of them can go.

Each place along axis 1 of a tensor has a wire, a number. Operators that treat channels one by one
pass wires on or tie some together; what is unknown here pins those that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from graphpass import Graph, Node, Tensor, is_output, label, producer, readers, static_dim
from graphpass.ir.copying import captured
from graphpass.ir.questions import has_effects
from graphpass.ir.refusal import RefusedError

from ..shared.affine import Floats

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Kept = Callable[[Tensor], Ints | None]  # the places of a tensor that stay; None: all
Narrowed = Callable[[list[Any], Kept], Any]  # the node as a term, of what it reads by then


@dataclass(frozen=True)
class Held:
    """What is known of the places along axis 1: the wire and the value of each, or NaN."""

    wires: Ints
    value: Floats


@dataclass(frozen=True, eq=False)
class Part:
    """A node that can do with fewer channels.

    `mixes`: each channel that it makes is a sum of all that it reads, so that they go by
    themselves. `constant`: which of those that it makes are.
    """

    node: Node
    narrowed: Narrowed
    mixes: bool = False
    constant: Bools | None = None


@dataclass
class _Found:
    """Which wires go. `label`: the first of those that each is tied to."""

    label: Ints
    goes: Bools
    reasons: dict[int, str] = field(default_factory=dict)  # by label, why it stays


class Wiring:
    """The wires of a scope."""

    def __init__(self, scope: Graph, part_of: Callable[[Node, Wiring], Part | None]) -> None:
        """`part_of` notes what a node does to channels; None where that is not known."""
        self.scope = scope
        self.parts: list[Part] = []
        self._held: dict[int, Held] = {}
        self._count = 0
        self._ties: list[tuple[Ints, Ints]] = []
        self._pins: list[tuple[Ints, str]] = []
        self._even: list[Ints] = []
        needed = _needed(scope)
        for node in scope.nodes:
            # what nobody needs stays as it is, and what it reads
            part = self._looked_at(part_of, node) if id(node) in needed else None
            if part is None:
                for tensor in _read_by(node):
                    if id(tensor) in self._held:
                        self.pin(self._held[id(tensor)].wires, f"{label(node)} reads them")
            else:
                self.parts.append(part)
        for key, tensor in self._tensors():
            if is_output(tensor):
                self.pin(self._held[key].wires, f"'{tensor.name}' is an output of the graph")

    def _looked_at(self, part_of: Callable[[Node, Wiring], Part | None], node: Node) -> Part | None:
        further = [t for t in node.outputs[1:] if t.outputs or is_output(t)]
        try:
            part = part_of(node, self)
        except RefusedError:
            part = None
        if part is not None and further and any(id(t) not in self._held for t in further):
            part = None
        if part is None:
            for tensor in node.outputs:
                self._held.pop(id(tensor), None)
        return part

    # ------------------------------------------------------------------- what operators say

    def of(self, tensor: Tensor) -> Held:
        """Return what is known of a tensor. Raises `RefusedError` where that is nothing."""
        if id(tensor) not in self._held:
            size = static_dim(tensor, 1)
            if not size:
                raise RefusedError(f"the channels of '{tensor.name}' are not known")
            self.makes(tensor, size)
            self.pin(self._held[id(tensor)].wires, f"'{tensor.name}' is not made of them here")
        return self._held[id(tensor)]

    def knows(self, tensor: Tensor) -> bool:
        """Whether anything is known of the channels of a tensor."""
        return id(tensor) in self._held

    def makes(self, tensor: Tensor, size: int, value: Floats | None = None) -> Held:
        """Give a tensor wires of its own."""
        wires = np.arange(self._count, self._count + size)
        self._count += size
        return self.passes(tensor, wires, np.full(size, np.nan) if value is None else value)

    def passes(self, tensor: Tensor, wires: Ints, value: Floats) -> Held:
        """Let a tensor have these wires, on which another one may be."""
        held = self._held[id(tensor)] = Held(wires, value)
        if any(reader.graph is not self.scope for reader in readers(tensor)):
            self.pin(wires, f"'{tensor.name}' is read in a body")
        return held

    def tie(self, one: Ints, other: Ints) -> None:
        """Let wires go only together."""
        self._ties.append((one, other))

    def pin(self, wires: Ints, reason: str) -> None:
        """Let wires stay."""
        if wires.size:
            self._pins.append((wires, reason))

    def even(self, wires: Ints) -> None:
        """Let as many wires go of each row."""
        self._even.append(wires)

    # ------------------------------------------------------------------------ what comes of it

    @property
    def label(self) -> Ints:
        """By wire, the first of those that it is tied to."""
        return self._found.label

    @property
    def goes(self) -> Bools:
        """By wire, whether it goes."""
        return self._found.goes

    def kept_constants(self) -> Iterator[tuple[Node, int, str]]:
        """Yield nodes that make constant channels which stay, how many, and why they do."""
        for part in self.parts:
            if part.constant is None or len(part.constant) < 2:
                continue
            wires = self.of(part.node.outputs[0]).wires[part.constant]
            stay = self.label[wires[~self.goes[wires]]]
            reasons = [self._found.reasons[k] for k in stay.tolist() if k in self._found.reasons]
            if reasons:
                yield part.node, len(stay), reasons[0]

    @cached_property
    def _found(self) -> _Found:
        found = _Found(self._labels(), np.ones(self._count, np.bool_))
        for wires, reason in self._pins:
            labels = found.label[wires]
            for key in np.unique(labels[found.goes[labels]]).tolist():
                found.reasons[key] = reason
            found.goes[labels] = False
        settled = False
        while not settled:
            settled = True
            for wires in self._too_many(found):
                found.goes[found.label[wires]] = False
                settled = False
            found.goes = found.goes[found.label]
        return found

    def _too_many(self, found: _Found) -> Iterator[Ints]:
        """Yield wires that have to stay so that each tensor has a channel, and groups are alike."""
        found.goes = found.goes[found.label]
        for held in self._held.values():
            if found.goes[held.wires].all():
                yield held.wires[:1]
        for rows in self._even:
            goes = found.goes[rows]
            fewest = goes.sum(axis=1).min()
            # the first of each row may go
            beyond = goes & (np.cumsum(goes, axis=1) > fewest)
            if beyond.any():
                yield rows[beyond]

    def _labels(self) -> Ints:
        """Return the first of the wires that each is tied to."""
        labels = np.arange(self._count)
        if not self._ties:
            return labels
        one, other = (np.concatenate(side) for side in zip(*self._ties, strict=True))
        while True:
            first = np.minimum(labels[one], labels[other])
            before = labels.copy()
            for side in (one, other):
                np.minimum.at(labels, labels[side], first)
                np.minimum.at(labels, side, first)
            labels = labels[labels]
            if (labels == before).all():
                return labels

    def _tensors(self) -> Iterator[tuple[int, Tensor]]:
        for node in self.scope.nodes:
            for tensor in node.outputs:
                if id(tensor) in self._held:
                    yield id(tensor), tensor


def _needed(scope: Graph) -> set[int]:
    """Return the nodes that an output, or a body, depends on."""
    needed: set[int] = set()
    waiting = [
        node
        for node in scope.nodes
        for tensor in node.outputs
        if is_output(tensor) or any(reader.graph is not scope for reader in readers(tensor))
    ]
    waiting.extend(node for node in scope.nodes if has_effects(node))
    while waiting:
        node = waiting.pop()
        if id(node) not in needed:
            needed.add(id(node))
            sources = (producer(tensor) for tensor in _read_by(node))
            waiting.extend(source for source in sources if source is not None)
    return needed


def _read_by(node: Node) -> Iterable[Tensor]:
    bodies = node.graph.subgraphs_of(node)
    return [*node.inputs, *(tensor for body in bodies for tensor in captured(body))]


def places(held: Held, goes: Bools) -> Ints | None:
    """Return which places stay where the wires of `goes` go; None: all."""
    stays = ~goes[held.wires]
    return None if stays.all() else np.flatnonzero(stays)


def joined(parts: Sequence[Held]) -> tuple[Ints, Floats]:
    """Return the wires and values of several tensors one after the other."""
    return (
        np.concatenate([part.wires for part in parts]),
        np.concatenate([part.value for part in parts]),
    )
