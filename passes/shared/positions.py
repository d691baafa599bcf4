"""Dense layers on sequences and channel-last maps: their positions are pixels of a 1x1 Conv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphpass import Choice, Node, Op, Rule, Tensor, any_, label, operator, rank, require
from graphpass.ir.refusal import POSITIONS
from graphpass.ir.shapes import RESHAPES, reshaped, sizes
from graphpass.ir.sizes import product

from .dense import dense, resolve
from .dequantize import stored_weight
from .heads import flattens

_MOST_AXES = 5  # of a Conv: the batch, the channels and three spatial axes


@dataclass(frozen=True)
class DenseOnPositions(Rule):
    """MatMul(x[B, …, K], W) + b = Transpose(Conv(Transpose(x, K first), W as [M, K, 1, …], b))."""

    asked: bool = False  # otherwise only what stands in the way is said

    choice = Choice.AS_ASKED
    pattern = dense(any_("x"))

    def rewrite(
        self, layer: Node, matrix: Tensor, bias: Tensor | None, add: Node | None, x: Tensor
    ) -> Any:
        axes = rank(x)
        if operator(layer) != "MatMul" or None in (axes, rank(matrix)):
            return None  # the rule for rows says so
        if axes == rank(matrix) == 2:
            return None
        if add is None:
            _require_a_layer(layer)
        found = resolve(layer, matrix, bias, add, stacked=True)
        if found is None or axes is None:
            return None
        require(
            self.asked,
            f"the rows of '{x.name}' are not images, but positions of a sequence or map",
            POSITIONS,
        )
        require(axes > 2, f"'{x.name}' is a vector")
        require(axes <= _MOST_AXES, f"'{x.name}' has {axes} axes, a Conv at most {_MOST_AXES}")
        return found.on_positions(x, axes, _batch(x))


def _batch(x: Tensor) -> int:
    """Return which axis is the batch: the first; where a sequence comes first, that of size 1."""
    shape = list(x.shape or ())[:-1]
    return shape.index(1) if 1 in shape and shape[0] != 1 and isinstance(shape[0], int) else 0


def _require_a_layer(product: Node) -> None:
    """Refuse a MatMul that has no constant matrix on the right."""
    weights = [stored_weight(tensor) for tensor in product.inputs]
    require(
        any(weight is not None for weight in weights),
        f"both operands of {label(product)} are computed: it is no layer with weights of its own",
    )
    require(weights[1] is not None, f"the weights of {label(product)} come first")
    require(weights[1] is None or weights[1].ndim == 2, f"{label(product)} has several matrices")


class DenseOnMergedPositions(Rule):
    """Gemm(Reshape(x[B, …, K], [-1, K]), W, b) = Reshape(Gemm on positions of x, [-1, M])."""

    choice = Choice.AS_ASKED
    pattern = dense(Op(RESHAPES, any_("y"), ..., bind="view", shared=True))

    def rewrite(
        self,
        layer: Node,
        matrix: Tensor,
        bias: Tensor | None,
        add: Node | None,
        view: Node,
        y: Tensor,
    ) -> Any:
        axes, shape = rank(y), sizes(y)
        if axes is None or shape is None or not 2 < axes <= _MOST_AXES or flattens(y, view):
            return None
        if reshaped(view, shape) != [product(shape[:-1]), shape[-1]]:
            return None
        found = resolve(layer, matrix, bias, add)
        if found is None or found.transposed or found.rest is not None:
            return None  # it has a term for each row: those stay rows
        rows = np.array([-1, found.outputs], np.int64)
        return Op("Reshape", found.on_positions(y, axes), rows)
