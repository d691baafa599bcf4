"""Channels that are shuffled, split and joined again and again, as ShuffleNet v2 has them.

No order of channels matters to a Conv of one group: it may read each from where it was computed.
Then nothing has to be shuffled, and what is only passed on is not copied from unit to unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphpass import (
    Beyond,
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    constant,
    is_output,
    label,
    operator,
    optional,
    producer,
    rank,
    readers,
    require,
    static_dim,
)
from graphpass.ir.refusal import RefusedError

from ..shared.affine import FLOAT_TYPES
from ..shared.linear import is_read_elsewhere
from .shuffles import order_of_shuffle

_MOST_NODES = 256

Channel = tuple[int, int]  # of which source, and which of its channels
Run = tuple[int, int, int]  # of which source, from which channel, to which


class MovedChannelsIntoReader(Rule):
    """Conv(m(x, y, …), W, b) = Conv(Concat(pieces of x, y, …), W', b), m moves whole channels.

    m is made of Concat, Split and Slice of channels and of channel shuffles, at least one. The Conv
    has one group; where a depthwise Conv stands between, its filters move along. The sums run in
    another order. Only where all that reads moved channels can do so, and less is written then.
    """

    pattern = Op("Conv", any_("x"), const("weight"), optional(const("bias")), bind="conv")

    def rewrite(self, conv: Node, x: Tensor, weight: Weight, bias: Weight | None) -> Any:
        if attribute(conv, "group") != 1 or weight.dtype not in FLOAT_TYPES:
            return None
        depthwise = _depthwise(x)
        moved = _Moves()
        read = x if depthwise is None else depthwise.inputs[0]
        channels = moved.of(read)
        if channels is None or not moved.shuffles or len(channels) != weight.shape[1]:
            return None
        if len(set(channels)) < len(channels):
            return None
        nodes = moved.nodes()
        moved.require_less()
        for tensor in [conv.inputs[1], *([] if depthwise is None else depthwise.inputs[1:2])]:
            require(
                not is_read_elsewhere(tensor),
                f"'{tensor.name}' has other readers, for which it would have to stay",
            )
        sorted_channels = sorted(channels)
        order = [channels.index(channel) for channel in sorted_channels]
        between: Any = moved.joined(_runs(sorted_channels))
        if depthwise is not None:
            nodes.insert(0, depthwise)
            between = _reordered(depthwise, between, order)
        planes = np.ascontiguousarray(weight.array()[:, order])
        return Beyond(Op("Conv", between, planes, bias, **conv.attrs), nodes)


def _depthwise(x: Tensor) -> Node | None:
    """Return the depthwise Conv that makes `x` for one reader alone, where there is one."""
    node = producer(x)
    if node is None or operator(node) != "Conv" or len(readers(x)) != 1 or is_output(x):
        return None
    held = [constant(tensor) for tensor in node.inputs[1:] if tensor.name]
    if any(weight is None for weight in held) or held[0] is None:
        return None
    filters = held[0].shape
    return node if filters[1] == 1 and filters[0] == attribute(node, "group") else None


def _reordered(conv: Node, x: Any, order: Sequence[int]) -> Op:
    """Return a depthwise Conv whose channels come in another order."""
    held = [constant(tensor) for tensor in conv.inputs[1:] if tensor.name]
    parts = [np.ascontiguousarray(weight.array()[order]) for weight in held if weight is not None]
    return Op("Conv", x, *parts, **conv.attrs)


def _runs(channels: Sequence[Channel]) -> list[Run]:
    """Return sorted channels as ranges."""
    found: list[Run] = []
    for source, channel in channels:
        if found and found[-1][0] == source and found[-1][2] == channel:
            found[-1] = source, found[-1][1], channel + 1
        else:
            found.append((source, channel, channel + 1))
    return found


@dataclass
class _Moves:
    """Which channels of which sources a tensor is made of, and the nodes that moved them."""

    sources: list[Tensor] = field(default_factory=list)
    shuffles: list[Node] = field(default_factory=list)
    _known: dict[int, list[Channel] | None] = field(default_factory=dict)
    _visited: dict[int, Node] = field(default_factory=dict)  # a node behind those that it reads
    _behind: set[int] = field(default_factory=set)  # tensors that a shuffle has a part in
    _to_go: list[Node] = field(default_factory=list)  # what makes them

    def of(self, tensor: Tensor) -> list[Channel] | None:
        """Return the channels of `tensor` in order; None where they cannot be told."""
        if id(tensor) not in self._known:
            require(len(self._visited) < _MOST_NODES, f"too much moves before '{tensor.name}'")
            self._known[id(tensor)] = self._found(tensor)
        return self._known[id(tensor)]

    def _found(self, tensor: Tensor) -> list[Channel] | None:
        node = producer(tensor)
        if node is not None and (above := _above(node)) is not None:
            inputs, nodes, order = above
            parts = [self.of(each) for each in inputs]
            if all(part is not None for part in parts):
                joined = [channel for part in parts for channel in part or ()]
                chosen = order(tensor, len(joined))
                if chosen is not None:
                    self._visited.update((id(each), each) for each in nodes)
                    if len(nodes) > 1:
                        self.shuffles.append(nodes[1])
                    if len(nodes) > 1 or any(id(each) in self._behind for each in inputs):
                        self._behind.add(id(tensor))
                        self._to_go.extend(nodes)
                    return [joined[index] for index in chosen]
        count = static_dim(tensor, 1)
        if count is None:
            return None
        self.sources.append(tensor)
        return [(len(self.sources) - 1, channel) for channel in range(count)]

    def nodes(self) -> list[Node]:
        """Return the nodes that moved channels, each behind those that read it."""
        return list(self._visited.values())[::-1]

    def joined(self, runs: Sequence[Run]) -> Any:
        """Return the sources' pieces side by side."""
        pieces = [self._piece(*run) for run in runs]
        return pieces[0] if len(pieces) == 1 else Op("Concat", *pieces, axis=1)

    def _piece(self, source: int, start: int, end: int) -> Any:
        x = self.sources[source]
        if (start, end) == (0, static_dim(x, 1)):
            return x
        return Op("Slice", x, starts=[start], ends=[end], axes=[1])

    def require_less(self) -> None:
        """Refuse where something needs the channels in their order, or more would be written."""
        before, after = 0, 0
        seen: set[int] = set()
        written: set[tuple[Run, ...]] = set()
        above, waiting = self.nodes(), list(self._to_go)
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            require(len(seen) <= _MOST_NODES, f"too much reads what {label(node)} moves")
            before += _written(node)
            for tensor in node.outputs:
                require(not is_output(tensor), f"'{tensor.name}' is an output of the graph")
                for reader in tensor.outputs:
                    if _moves(reader):
                        waiting.append(reader)
                        continue
                    runs = tuple(self._read_by(reader, tensor))
                    if runs not in written:
                        written.add(runs)
                        after += self._cost(runs)
        for node in above:  # what is read by nothing else goes, too
            if id(node) not in seen and all(
                id(reader) in seen and not is_output(tensor)
                for tensor in node.outputs
                for reader in tensor.outputs
            ):
                seen.add(id(node))
                before += _written(node)
        require(
            after < before,
            f"{after} channels would be written to leave out {label(self.shuffles[0])}, not fewer",
        )

    def _read_by(self, reader: Node, tensor: Tensor) -> list[Run]:
        """Return what a Conv that reads moved channels reads; refuse another reader."""
        conv = reader
        if operator(reader) == "Conv" and _depthwise(reader.outputs[0]) is reader:
            conv = readers(reader.outputs[0])[0]
        plain = operator(conv) == "Conv" and attribute(conv, "group") == 1
        if not plain or reader.inputs[0] is not tensor:
            raise RefusedError(
                f"{label(reader)} reads what {label(self.shuffles[0])} moves, in that order"
            )
        channels = self.of(tensor)
        require(channels is not None, f"the channels of '{tensor.name}' are not known")
        return _runs(sorted(channels or ()))

    def _cost(self, runs: Sequence[Run]) -> int:
        """Return how many channels are written to put pieces side by side."""
        cut = sum(
            end - start
            for source, start, end in runs
            if (start, end) != (0, static_dim(self.sources[source], 1))
        )
        return cut + (sum(end - start for _, start, end in runs) if len(runs) > 1 else 0)


# ------------------------------------------------------------------------- what moves channels


def _moves(node: Node) -> bool:
    """Whether `node` is, or is part of, what only moves channels."""
    if _above(node) is not None:
        return True
    # the first two nodes of a shuffle, whose last one tells
    last = node
    for _ in range(2):
        following = readers(last.outputs[0])
        if operator(last) not in ("Reshape", "Transpose") or len(following) != 1:
            return False
        last = following[0]
        found = _above(last)
        if found is not None:
            return any(each is node for each in found[1])
    return False


def _written(node: Node) -> int:
    """Return how many channels `node` writes; a Reshape is another view of what is there."""
    if operator(node) == "Reshape":
        return 0
    if operator(node) == "Transpose":  # of channels in two axes
        return (static_dim(node.outputs[0], 1) or 0) * (static_dim(node.outputs[0], 2) or 0)
    return sum(static_dim(tensor, 1) or 0 for tensor in node.outputs)


def _above(node: Node) -> tuple[list[Tensor], list[Node], Any] | None:
    """Return what `node` moves channels of, the nodes that it takes, and which are taken.

    The last is a function of an output and the number of channels above.
    """
    kind = operator(node)
    axes = rank(node.outputs[0])
    if axes is None or axes < 3:
        return None
    if kind in ("Concat", "Split") and attribute(node, "axis") in (1, 1 - axes):
        if kind == "Concat":
            return list(node.inputs), [node], lambda tensor, count: range(count)
        return [node.inputs[0]], [node], _part
    if kind == "Reshape":
        turned = producer(node.inputs[0])
        parts = None if turned is None else producer(turned.inputs[0])
        if turned is None or parts is None or operator(turned) != "Transpose":
            return None
        if operator(parts) != "Reshape":
            return None
        count = static_dim(parts.inputs[0], 1)
        try:
            order = None if count is None else order_of_shuffle(parts, turned, node, count)
        except RefusedError:
            return None
        if order is None:
            return None
        chosen = [int(index) for index in order]
        return [parts.inputs[0]], [parts, turned, node], lambda tensor, above: chosen
    return None


def _part(tensor: Tensor, count: int) -> range | None:
    """Return which channels an output of Split takes; None where its sizes are not known."""
    node = producer(tensor)
    assert node is not None
    start = 0
    for output in node.outputs:
        size = static_dim(output, 1)
        if size is None:
            return None
        if output is tensor:
            return range(start, start + size) if start + size <= count else None
        start += size
    return None
