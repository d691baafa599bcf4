"""What stands around a dense layer: the map that its rows are made of, and what follows it."""

from __future__ import annotations

from graphpass import Node, Tensor, constant, operator, producer, rank, static_dim
from graphpass.ir.operators import Trait, named
from graphpass.ir.shapes import RESHAPES, reshaped, sizes
from graphpass.ir.sizes import product

from .dequantize import stored_weight

POINTWISE = named(Trait.ELEMENTWISE)
BROADCAST = named(Trait.BROADCASTING)
ALONG_AXIS = named(Trait.ALONG_AXIS | Trait.NORMALIZATION)
# element by element, where they have one step for the whole tensor
QUANTIZED = ("QuantizeLinear", "DequantizeLinear")

_POOLS = ("ReduceMax", "ReduceMean")
_LAYERS = ("Gemm", "MatMul")
_NEAR = 64  # nodes looked at between a head and what feeds or reads it


def flattens(y: Tensor, *views: Node) -> bool:
    """Whether `views`, one after the other on `y`, are Flatten(y, axis=1) in every run.

    They keep the elements and their order, so only the shape is in question: two axes, of which
    either the first is the batch or the second is as large as all others together.
    """
    shape = final = sizes(y)
    for view in views:
        final = reshaped(view, final)
    if shape is None or final is None or len(shape) < 2 or len(final) != 2:
        return False
    rows, columns = final
    return rows == shape[0] or columns == product(shape[1:])


def map_sizes(y: Tensor) -> tuple[int, ...] | None:
    """Return the fixed sizes [C, H, W, …] of a feature map; None if one is not known, or 0."""
    if y.shape is None or len(y.shape) < 3:
        return None
    found = [static_dim(y, axis) for axis in range(1, len(y.shape))]
    known = tuple(size for size in found if size)
    return known if len(known) == len(found) else None


def is_pixel(y: Tensor) -> bool:
    """Whether `y` is [N, C, 1, 1] (or with one or three spatial axes)."""
    found = map_sizes(y)
    return found is not None and set(found[1:]) == {1}


def feeds_layer(tensor: Tensor, within: Node) -> bool:
    """Whether a dense layer with constant weights, in the graph of `within`, reads `tensor`.

    Directly, or through views and operators that work element by element.
    """
    seen: set[int] = set()
    stack = [tensor]
    while stack and len(seen) < _NEAR:
        current = stack.pop()
        for reader in current.outputs:
            if id(reader) in seen or reader.graph is not within.graph:
                continue
            seen.add(id(reader))
            op = operator(reader)
            if op in _LAYERS and reader.inputs[0] is current and _is_matrix(reader.inputs[1]):
                if op == "Gemm" or rank(current) == 2:
                    return True
                continue
            plain = op in (*RESHAPES, *POINTWISE, *QUANTIZED, "Transpose", "BatchNormalization")
            if plain or (op in BROADCAST and len(_computed(reader)) == 1):
                stack.append(reader.outputs[0])
    return False


def makes_rows(tensor: Tensor, within: Node) -> bool:
    """Whether `tensor`, or what is computed of it element by element, is flattened or pooled
    into the rows that a dense layer reads.
    """
    stack = [(tensor, 0)]
    while stack:
        current, depth = stack.pop()
        for reader in current.outputs:
            if reader.graph is not within.graph or depth > _NEAR:
                continue
            op = operator(reader)
            if op in POINTWISE or (op in BROADCAST and len(_computed(reader)) == 1):
                stack.append((reader.outputs[0], depth + 1))
                continue
            rows = op in _POOLS or (op in RESHAPES and flattens(current, reader))
            if rows and feeds_layer(reader.outputs[0], reader):
                return True
    return False


def comes_from_conv(tensor: Tensor) -> bool:
    """Whether a Conv computes `tensor`, directly or through operators that keep its pixels."""
    for _ in range(_NEAR):
        node = producer(tensor)
        op = None if node is None else operator(node)
        if node is None or op == "Conv":
            return node is not None
        if op in BROADCAST:
            tensor = [*_computed(node), tensor][0]
        elif op in (*POINTWISE, *ALONG_AXIS, *QUANTIZED, "BatchNormalization"):
            tensor = node.inputs[0]
        else:
            return False
    return False


def _computed(node: Node) -> list[Tensor]:
    return [tensor for tensor in node.inputs if constant(tensor) is None]


def _is_matrix(tensor: Tensor) -> bool:
    weight = stored_weight(tensor)
    return weight is not None and weight.ndim == 2
