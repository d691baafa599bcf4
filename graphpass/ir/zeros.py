"""Tensors that hold nothing but zeros, however large they are when run."""

from __future__ import annotations

import numpy as np

from graphpass.ir.nodes import Node, Tensor
from graphpass.ir.operators import Trait, has, row
from graphpass.ir.questions import constant, operator, producer
from graphpass.ir.weight import Array

_MOST_NODES = 64
_MOST_ELEMENTS = 1 << 20  # of a constant that is looked at


def makers_of_zeros(tensor: Tensor) -> list[Node] | None:
    """Return the nodes that make `tensor` of constants that are 0 throughout, and none is −0.

    None where another number may be among its elements. It is empty for a constant.
    """
    found: dict[int, Node] = {}
    waiting = [tensor]
    while waiting:
        tensor = waiting.pop()
        weight = constant(tensor)
        node = producer(tensor)
        if weight is not None:
            if weight.size > _MOST_ELEMENTS or not _is_zero(weight.array()):
                return None
        elif node is None or len(found) >= _MOST_NODES:
            return None
        elif id(node) not in found:
            found[id(node)] = node
            if operator(node) == "ConstantOfShape":
                value = node.attrs.get("value")
                if value is not None and not _is_zero(np.asarray(value.values)):
                    return None
            elif operator(node) == "Cast" or has(node, Trait.MOVEMENT | Trait.KEEPS_ZERO):
                known = row(node.op, node.domain)
                assert known is not None
                waiting.extend(node.inputs[: known.data])
            else:
                return None
    return list(found.values())


def _is_zero(array: Array) -> bool:
    return array.dtype.kind in "fiub" and not (array.any() or np.signbit(array).any())


__all__ = ["makers_of_zeros"]
