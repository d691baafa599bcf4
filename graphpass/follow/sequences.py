"""Sequences of tensors, as PyTorch's newer exporter splits channels into."""

from __future__ import annotations

from graphpass.ir.questions import Node, attribute, constant


def parts_of(node: Node, size: int, split: list[int] | None) -> list[int] | None:
    """Return the sizes of the parts that a SplitToSequence makes of `size` elements.

    `split`: what its second input holds, None where it has none. None where its size is computed.
    """
    if split is None:
        return [1] * size
    weight = constant(node.inputs[1])
    if weight is None:
        return None
    if weight.ndim == 0:
        return [min(split[0], size - start) for start in range(0, size, split[0])]
    return split


def drops_axis(node: Node) -> bool:
    """Whether the parts of a SplitToSequence, of one element each, lose the axis."""
    given = len(node.inputs) > 1 and node.inputs[1].name != ""
    return not given and attribute(node, "keepdims") == 0


__all__ = ["drops_axis", "parts_of"]
