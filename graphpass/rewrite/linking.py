"""How nodes and tensors know of each other: links are made and cut here, on both sides at once."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

from graphpass.ir.nodes import Node, Tensor


def place_of(tensors: Sequence[Tensor], tensor: Tensor) -> int:
    """Return where `tensor` itself is among others."""
    return next(i for i, other in enumerate(tensors) if other is tensor)


def let_go(node: Node, output: Tensor) -> None:
    """Take from `node` an output, which another one is to compute."""
    list.__delitem__(node.outputs, place_of(node.outputs, output))
    list.clear(output.inputs)


def unlink(node: Node) -> None:
    """Let a node read and compute nothing any more."""
    for tensor in node.inputs:
        _remove_reader(tensor.outputs, node)
    list.clear(node.inputs)
    for tensor in node.outputs:
        list.clear(tensor.inputs)
    list.clear(node.outputs)


def _remove_reader(readers: list[Node], node: Node) -> None:
    """Remove one mention of `node`; nearly always, readers are in the order they were made in."""
    index = bisect_left(readers, node.serial, key=attrgetter("serial"))
    if index < len(readers) and readers[index] is node:
        list.__delitem__(readers, index)
    else:
        list.remove(readers, node)


def relink(old: Tensor, new: Tensor) -> None:
    """Let every reader of `old` read `new`: linear in the readers."""
    place: dict[int, int] = {}  # by reader, which is listed once for each mention
    for reader in old.outputs:
        index = list.index(reader.inputs, old, place.get(id(reader), 0))
        place[id(reader)] = index + 1
        list.__setitem__(reader.inputs, index, new)
    readers = {id(reader): reader for reader in old.outputs}
    mentions = Counter(map(id, old.outputs))
    for key, reader in readers.items():
        list.extend(new.outputs, [reader] * mentions[key])
    list.clear(old.outputs)
