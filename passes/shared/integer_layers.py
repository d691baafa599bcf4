"""Dense layers on integers: QLinearMatMul, QGemm, MatMulInteger become convolutions of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphpass import (
    Beyond,
    Choice,
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    const,
    either,
    label,
    operator,
    optional,
    producer,
    rank,
    require,
)
from graphpass.ir.refusal import POSITIONS, UNKNOWN_SIZE, needed

from .affine import Array
from .heads import flattens, map_sizes
from .rows import makes_rows_of_map, merging_view, require_images

_MOST_AXES = 5  # of a convolution: the batch, the channels and three spatial axes


@dataclass(frozen=True)
class IntegerDense(Rule):
    """QLinearMatMul(Flatten(y), W) = Flatten(QLinearConv(y, W as [M, C, H, W])); rows likewise.

    MatMulInteger likewise becomes ConvInteger. Both sides add up the same integers and scale the
    sum in the same way, so that they are equal to the bit; nothing is padded.
    """

    positions: bool = False  # also where rows are the positions of a sequence or image

    choice = Choice.AS_ASKED
    pattern = either(
        Op(
            "QLinearMatMul",
            *(any_("x"), any_("x_step"), any_("x_zero"), const("matrix")),
            *(const("step"), const("zero"), any_("y_step"), any_("y_zero")),
            bind="layer",
        ),
        Op(
            "MatMulInteger",
            *(any_("x"), const("matrix"), optional(any_("x_zero")), optional(const("zero"))),
            bind="layer",
        ),
    )

    def rewrite(
        self,
        layer: Node,
        x: Tensor,
        x_step: Tensor | None,
        x_zero: Tensor | None,
        matrix: Weight,
        step: Weight | None,
        zero: Weight | None,
        y_step: Tensor | None,
        y_zero: Tensor | None,
    ) -> Any:
        axes = rank(x)
        axes = needed(axes, f"the rank of '{x.name}' is not known", UNKNOWN_SIZE)
        require(matrix.ndim == 2 and matrix.size, f"the weight of {label(layer)} is no matrix")
        require(axes >= 2, f"'{x.name}' is a vector")
        for tensor in (x_step, x_zero, y_step, y_zero):
            given = tensor is not None and rank(tensor) != 0
            require(not given, f"{label(layer)} has a step or zero point for each row")
        zero_point = _common(zero, layer)
        if step is not None:
            fits = step.shape in ((), (matrix.shape[1],))
            require(fits, f"the steps of {label(layer)} are not one for each output")

        def convolved(y: Any, sizes: tuple[int, ...]) -> Op:
            kernel = _kernel(matrix.array(), sizes)
            window = list(sizes[1:])
            if operator(layer) == "MatMulInteger":
                return Op("ConvInteger", y, kernel, x_zero, zero_point, kernel_shape=window)
            zeros = zero_point if step is None or step.size == 1 else _repeated(zero_point, step)
            parts = (x_step, x_zero, kernel, step, zeros, y_step, y_zero)
            return Op("QLinearConv", y, *parts, kernel_shape=window)

        if axes > 2:
            return self._on_positions(layer, x, axes, convolved, matrix.shape[0])
        return _on_rows(layer, x, convolved, matrix.shape[0], self.positions)

    def _on_positions(self, layer: Node, x: Tensor, axes: int, convolved: Any, inputs: int) -> Op:
        require(
            self.positions,
            f"the rows of '{x.name}' are not images, but positions of a sequence",
            POSITIONS,
        )
        require(axes <= _MOST_AXES, f"'{x.name}' has {axes} axes, a Conv at most {_MOST_AXES}")
        first = Op("Transpose", x, perm=[0, axes - 1, *range(1, axes - 1)])
        result = convolved(first, (inputs, *[1] * (axes - 2)))
        return Op("Transpose", result, perm=[0, *range(2, axes), 1])


@dataclass(frozen=True)
class QuantizedGemm(Rule):
    """QGemm(Flatten(y), W, b) = Flatten(QLinearConv(y, W as [M, C, H, W], b)); rows likewise.

    Both sides add up the same integers and scale the sum in the same way: equal to the bit.
    """

    positions: bool = False  # also where rows are the positions of a sequence or image

    pattern = Op(
        "QGemm",
        *(any_("x"), any_("x_step"), any_("x_zero"), const("matrix"), const("step")),
        *(
            const("zero"),
            optional(const("bias")),
            optional(any_("y_step")),
            optional(any_("y_zero")),
        ),
        bind="layer",
        domain="com.microsoft",
    )

    def rewrite(
        self,
        layer: Node,
        x: Tensor,
        x_step: Tensor,
        x_zero: Tensor,
        matrix: Weight,
        step: Weight,
        zero: Weight,
        bias: Weight | None,
        y_step: Tensor | None,
        y_zero: Tensor | None,
    ) -> Any:
        name = label(layer)
        require(y_step is not None, f"{name} gives numbers, and no integers with a step")
        require(matrix.ndim == 2 and matrix.size, f"the weight of {name} is no matrix")
        require(not layer.attrs.get("transA"), f"{name} takes its rows transposed")
        require(layer.attrs.get("alpha", 1.0) == 1, f"{name} scales its sum")
        columns = matrix.array().T if layer.attrs.get("transB") else matrix.array()
        inputs, outputs = columns.shape
        require(step.shape in ((), (outputs,)), f"the steps of {name} are not one for each output")
        fits = bias is None or bias.shape in ((outputs,), (1, outputs))
        require(fits, f"the bias of {name} is not one for each output")
        zero_point = _common(zero, layer)
        zeros = zero_point if step.size == 1 else _repeated(zero_point, step)
        term = None if bias is None else bias.reshape(outputs)

        def convolved(y: Any, sizes: tuple[int, ...]) -> Op:
            parts = (x_step, x_zero, _kernel(columns, sizes), step, zeros, y_step, y_zero, term)
            return Op("QLinearConv", y, *parts, kernel_shape=list(sizes[1:]))

        return _on_rows(layer, x, convolved, inputs, self.positions)


def _on_rows(layer: Node, x: Tensor, convolved: Any, inputs: int, positions: bool) -> Any:
    """Return the layer on rows, or on the map that they were made of."""
    if not positions:
        require_images(layer, layer.inputs[3 if operator(layer) != "MatMulInteger" else 1], x)
        view = merging_view(layer)
        require(
            view is None,
            f"the rows of '{x.name}' are not images: {label(view or layer)} makes them of a "
            "tensor with more axes",
            POSITIONS,
        )
    source = producer(x)
    if source is not None and makes_rows_of_map(source, layer):
        y = source.inputs[0]
        sizes = needed(map_sizes(y), f"the size of '{y.name}' is not fixed", UNKNOWN_SIZE)
        fits = flattens(y, source) and len(sizes) < _MOST_AXES
        require(fits, f"{label(source)} is no map of at most three spatial axes")
        return Beyond(Op("Flatten", convolved(y, sizes), axis=1), [source])
    pixels = Op("Unsqueeze", x, axes=[2, 3])
    return Op("Flatten", convolved(pixels, (inputs, 1, 1)), axis=1)


def _kernel(columns: Array, sizes: tuple[int, ...]) -> Array:
    """Return [K, M] as [M, C, H, W, …]."""
    kernel = columns.reshape(*sizes, columns.shape[1])
    return np.ascontiguousarray(np.moveaxis(kernel, -1, 0))


def _common(zero: Weight | None, layer: Node) -> Array | None:
    """Return the zero point of the weights, one number: runtimes have no Conv with several."""
    if zero is None:
        return None
    values = zero.array().reshape(-1)
    require(
        values.size and (values == values[0]).all(),
        f"the weights of {label(layer)} have several zero points",
    )
    return np.array(values[0])


def _repeated(zero: Array | None, step: Weight) -> Array | None:
    """Give a zero point the shape of the steps, as QLinearConv wants it."""
    return None if zero is None else np.full(step.shape, zero)
