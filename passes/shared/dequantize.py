"""Constants that are stored as integers behind DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphpass import Node, Tensor, Weight, attribute, constant, label, operator, producer, require

from .affine import Floats
from .linear import require_numbers


@dataclass(frozen=True)
class Quantized:
    """The constant (levels − zero)·step that `node`, a DequantizeLinear, makes."""

    node: Node
    levels: Weight
    step: Weight
    zero: Weight | None

    def require_steps(self) -> None:
        """Refuse steps that are no numbers of the result's type."""
        require_numbers(self.step)
        require(
            not attribute(self.node, "output_dtype"),
            f"{label(self.node)} may give another type than its step has",
        )

    def values(self) -> Floats:
        """Return what it makes, as float64; refuse steps that are given block by block."""
        step, start = self._spread(self.step), 0.0 if self.zero is None else self._spread(self.zero)
        exact = (self.levels.astype(np.float64) - start) * step
        return exact.astype(self.step.dtype).astype(np.float64)

    def _spread(self, part: Weight) -> Floats:
        """Give a step or zero for each index of an axis the shape that broadcasts."""
        if part.size == 1:
            return part.astype(np.float64).reshape(())
        axis = attribute(self.node, "axis")
        axis = (1 if axis is None else axis) % max(self.levels.ndim, 1)
        fits = part.ndim == 1 and self.levels.shape[axis] == part.size
        require(fits, f"the steps of {label(self.node)} are not one for each index of an axis")
        shape = [1] * self.levels.ndim
        shape[axis] = part.size
        return part.astype(np.float64).reshape(shape)


def quantized(tensor: Tensor) -> Quantized | None:
    """Return the constants behind a DequantizeLinear; None where there are none."""
    node = producer(tensor)
    if node is None or operator(node) != "DequantizeLinear":
        return None
    given = [source for source in node.inputs if source.name]
    found = [constant(source) for source in given]
    if len(found) < 2 or found[0] is None or found[1] is None or None in found:
        return None
    return Quantized(node, found[0], found[1], found[2] if len(found) > 2 else None)


def stored_weight(tensor: Tensor) -> Weight | None:
    """Return a constant, or the integers behind a DequantizeLinear of constants; None: neither."""
    found = quantized(tensor)
    return constant(tensor) if found is None else found.levels
