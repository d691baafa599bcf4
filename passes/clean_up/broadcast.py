"""Expand, Tile and ConstantOfShape ahead of an operator that broadcasts by itself; zero states."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    const,
    is_output,
    operator,
    producer,
    readers,
)
from graphpass.ir.operators import Trait, has, named
from graphpass.ir.shapes import sizes
from graphpass.ir.sizes import Size
from graphpass.ir.zeros import makers_of_zeros
from graphpass.rewrite.pattern import Beyond

from .neutral import PATTERN_ELEMENTS, keeps_shape

_GROWING = ("Expand", "Tile", "ConstantOfShape")
_BROADCASTING = tuple(op for op in named(Trait.BROADCASTING) if op != "PRelu")
_LEAST = 8  # elements of a constant: below that a scalar takes as much


class DropBroadcast(Rule):
    """f(Expand(x), y) = f(x, y) where y alone already gives the result its shape."""

    pattern = Op(_BROADCASTING, ..., bind="f")

    def rewrite(self, f: Node) -> Any:
        if not has(f, Trait.BROADCASTING) or len(f.inputs) < 2:
            return None
        final = sizes(f.outputs[0])
        for place, tensor in enumerate(f.inputs):
            node = producer(tensor)
            if node is None or operator(node) not in _GROWING or node.graph is not f.graph:
                continue
            if is_output(tensor) or any(reader is not f for reader in readers(tensor)):
                continue
            small = _small(node)
            others = [sizes(other) for i, other in enumerate(f.inputs) if i != place]
            if small is None or not _covers(final, [_shape(small), *others]):
                continue
            if operator(node) == "Tile" and not _is_broadcast(final, _shape(small)):
                continue
            operands = [small if i == place else other for i, other in enumerate(f.inputs)]
            return Beyond(Op(f.op, *operands, **f.attrs), [node])
        return None


class UniformIsScalar(Rule):
    """f(x, C) = f(x, c) where all elements of C are c and x alone gives the result its shape."""

    pattern = Op(_BROADCASTING, any_("x"), const("c", quiet=True), commutative=True, bind="f")

    def rewrite(self, f: Node, x: Tensor, c: Weight) -> Any:
        if not has(f, Trait.BROADCASTING) or not _LEAST < c.size <= PATTERN_ELEMENTS:
            return None
        held = next((tensor for tensor in f.inputs if tensor is not x), None)
        if held is None or len(readers(held)) > 1 or not keeps_shape(x, c):
            return None
        array = c.array().reshape(-1)
        if array.dtype.kind == "O":
            return None
        bits = np.ascontiguousarray(array).view(np.uint8).reshape(array.size, -1)
        if (bits != bits[0]).any():
            return None
        scalar = array[0].reshape(())
        return Op(f.op, *((x, scalar) if f.inputs[0] is x else (scalar, x)), **f.attrs)


def _small(node: Node) -> Any:
    """Return what a node repeats."""
    if operator(node) != "ConstantOfShape":
        return node.inputs[0]
    value = node.attrs.get("value")
    return np.float32(0) if value is None else np.asarray(value.values).reshape(())


def _shape(small: Any) -> list[Size] | None:
    return [] if isinstance(small, (np.ndarray, np.generic)) else sizes(small)


def _covers(final: list[Size] | None, shapes: list[list[Size] | None]) -> bool:
    """Whether `shapes`, broadcast, are surely `final`: on each axis one of them has its size.

    A size that is known by name may be 1, but then it is the same 1.
    """
    if final is None or any(shape is None for shape in shapes):
        return False
    known = [shape for shape in shapes if shape is not None]
    if max(map(len, known)) != len(final):
        return False
    for axis in range(1, len(final) + 1):
        there = [shape[-axis] for shape in known if len(shape) >= axis]
        if final[-axis] not in there:
            return False
    return True


def _is_broadcast(final: list[Size] | None, small: list[Size] | None) -> bool:
    """Whether `small`, which a Tile repeats, has one element wherever it is not `final`."""
    if final is None or small is None:
        return False
    pairs = zip(reversed(small), reversed(final), strict=False)
    return all(size in (Size(1), wanted) for size, wanted in pairs)


class DropZeroState(Rule):
    """LSTM(x, …, state = 0) = LSTM(x, …): a state that is not given is zero. GRU and RNN too."""

    pattern = Op(("GRU", "LSTM", "RNN"), ..., bind="node", all_outputs=True)

    def rewrite(self, node: Node) -> Any:
        operands: list[Tensor | None] = list(node.inputs)
        for place in (5, 6):
            if place < len(operands) and (place == 5 or node.op == "LSTM"):
                state = operands[place]
                if state is not None and state.name and makers_of_zeros(state) is not None:
                    operands[place] = None
        if all(a is b for a, b in zip(operands, node.inputs, strict=True)):
            return None
        return list(Op(node.op, *operands, **node.attrs, outputs=len(node.outputs)))


BROADCAST_RULES = (DropBroadcast(), UniformIsScalar(), DropZeroState())

__all__ = ["BROADCAST_RULES"]
