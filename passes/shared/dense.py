"""A dense layer, however it is written, as a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphpass import (
    Node,
    Op,
    Tensor,
    Weight,
    any_,
    attribute,
    constant,
    either,
    is_output,
    label,
    needed,
    operator,
    opset,
    optional,
    rank,
    readers,
    require,
    static_dim,
)
from graphpass.ir.questions import is_overridable
from graphpass.ir.refusal import COMPUTED, OVERRIDABLE, PRECISION, UNKNOWN_SIZE
from graphpass.rewrite.pattern import Pattern

from .affine import Array, rounded, scaled
from .dequantize import Quantized, quantized, stored_weight
from .heads import flattens, is_pixel, map_sizes

_MOST_SPATIAL_AXES = 3


def dense(x: Pattern) -> either:
    """Return the pattern of a dense layer on `x`; binds layer, matrix, bias and add."""
    product = Op("MatMul", x, any_("matrix"), bind="layer", shared=True)
    return either(
        Op("Gemm", x, any_("matrix"), optional(any_("bias")), bind="layer"),
        Op("Add", product, any_("bias"), commutative=True, bind="add"),
        Op("MatMul", x, any_("matrix"), bind="layer"),
    )


DENSE_ON_MAP = dense(
    Op(
        "Flatten",
        either(Op("Transpose", any_("y"), bind="transpose", shared=True), any_("y")),
        bind="flatten",
        shared=True,
    )
)


@dataclass(frozen=True)
class Dense:
    """alpha · x · matrix + bias, then `+ rest`: what was read out of the nodes.

    `matrix` is [outputs, inputs], or [inputs, outputs] unless `outputs_first`; where it is stored
    as integers behind DequantizeLinear, `stored` has them as well. `bias` holds one value per
    output; what does not is `rest`. `transposed`: x comes as [inputs, N].
    """

    layer: Node
    matrix: Weight
    outputs_first: bool
    alpha: float
    bias: Tensor | Weight | Array | None
    rest: Op | Tensor | Array | None
    transposed: bool
    stored: Quantized | None = None

    @property
    def inputs(self) -> int:
        """The number of elements in a row of x."""
        return self.matrix.shape[1 if self.outputs_first else 0]

    @property
    def outputs(self) -> int:
        """The number of elements in a row of the result."""
        return self.matrix.shape[0 if self.outputs_first else 1]

    def convolution(self, y: Any, kernel: Weight | Array) -> Op:
        """Return Flatten(Conv(y, kernel, bias)) + rest; the Conv's output has one pixel."""
        size = list(kernel.shape[2:])
        conv = Op("Conv", y, self._dequantized(kernel), self.bias, kernel_shape=size)
        rows = Op("Flatten", conv, axis=1)
        return rows if self.rest is None else Op("Add", rows, self.rest)

    def on_positions(self, x: Any, axes: int, batch: int = 0) -> Op:
        """Return the layer on each position of x[B, …, C], which has `axes` axes: a 1x1 Conv.

        The positions become pixels, the channels come first for it and last again after it.
        `batch`: which axis is its batch.
        """
        pixel = [1] * (axes - 2)
        others = [axis for axis in range(axes - 1) if axis != batch]
        order = [batch, axes - 1, *others]
        y = Op("Transpose", x, perm=order)
        kernel = self._dequantized(self.kernel((self.inputs, *pixel)))
        conv = Op("Conv", y, kernel, self.bias, kernel_shape=pixel)
        result = Op("Transpose", conv, perm=[order.index(axis) for axis in range(axes)])
        return result if self.rest is None else Op("Add", result, self.rest)

    def _dequantized(self, kernel: Weight | Array) -> Weight | Array | Op:
        """Return the weights of which `kernel` holds the integers, with one step per output."""
        if self.stored is None:
            return kernel
        node, step = self.stored.node, self.stored.step
        attributes = {**node.attrs, "axis": None if step.size == 1 else 0}
        return Op("DequantizeLinear", kernel, *node.inputs[1:], **attributes)

    def kernel(self, sizes: Sequence[int], order: Sequence[int] | None = None) -> Weight | Array:
        """Return alpha · matrix as [outputs, C, H, W, …].

        `sizes` are those of a row before it was flattened; axis `order[i]` of the row becomes
        axis i of [C, H, W, …]. Nothing is read where only the shape changes.
        """
        axes = list(range(len(sizes))) if order is None else list(order)
        straight = axes == sorted(axes)
        weight = self.matrix
        if self.outputs_first and straight:
            kernel: Weight | Array = weight.reshape(self.outputs, *sizes)
        elif self.outputs_first:
            rows = weight.array().reshape(self.outputs, *sizes)
            kernel = rows.transpose(0, *(axis + 1 for axis in axes))
        else:
            columns = weight.array().reshape(*sizes, self.outputs)
            kernel = columns.transpose(len(sizes), *axes)
        if self.alpha == 1:
            return kernel
        return scaled(_weight(kernel, weight), np.full((1,) * kernel.ndim, self.alpha))

    def on_mean(self, count: int, spatial: int) -> Weight | Array:
        """Return the weights [outputs, inputs, 1, …] for the mean of `count` pixels, not their sum.

        `spatial`: the number of axes behind the channels.
        """
        values = self.matrix.array()
        rows = values if self.outputs_first else np.ascontiguousarray(values.T)
        return self.summed(rows.reshape(self.outputs, self.inputs, *[1] * spatial), count)

    def summed(self, pixel: Array, count: int) -> Weight | Array:
        """Return alpha · count · pixel: the weights of the mean over `count` equal pixels."""
        require(
            self.stored is None,
            f"the weights of {label(self.layer)} are integers, whose sum over pixels may be none",
        )
        return scaled(_weight(pixel, self.matrix), np.full((1,) * pixel.ndim, self.alpha * count))


def _weight(kernel: Weight | Array, like: Weight) -> Weight:
    if isinstance(kernel, Weight):
        return kernel
    return Weight(like.name, kernel.shape, like.data_type, lambda: kernel)


def resolve(
    layer: Node, matrix: Tensor, bias: Tensor | None, add: Node | None, *, stacked: bool = False
) -> Dense | None:
    """Read a dense layer out of what the pattern bound; None where this is another structure.

    `stacked`: one on more than two axes, instead of one on rows. Refuses what no Conv can take the
    place of.
    """
    is_gemm = operator(layer) == "Gemm"
    stored = quantized(matrix)
    weight = constant(matrix) if stored is None else stored.levels
    axes = rank(layer.inputs[0])
    if not is_gemm and (rank(matrix) != 2 or (axes not in (2, None)) != stacked):
        return None  # a product of stacks of matrices
    if weight is None:
        _refuse_matrix(layer, matrix)
        return None
    if weight.ndim != 2:
        return None
    outputs_first = is_gemm and attribute(layer, "transB") != 0
    width = weight.shape[0 if outputs_first else 1]
    if not is_gemm:
        if add is not None and not _absorbs(add, layer, width, axes or 2):
            return None
        if add is None and any(
            _absorbs(reader, layer, width, axes or 2) for reader in readers(layer.outputs[0])
        ):
            return None  # its turn comes at the Add
        unknown = f"the rank of '{layer.inputs[0].name}' is not known"
        require(axes is not None, unknown, UNKNOWN_SIZE)
    _require_convolvable(layer, weight if stored is None else stored.step)
    if stored is not None:
        _require_step_per_output(layer, stored, 0 if outputs_first else 1)
    alpha, beta = (attribute(layer, "alpha"), attribute(layer, "beta")) if is_gemm else (1.0, 1.0)
    within, beyond = _bias(layer, bias, beta, width, axes or 2)
    transposed = is_gemm and attribute(layer, "transA") != 0
    return Dense(layer, weight, outputs_first, alpha, within, beyond, transposed, stored)


def _refuse_matrix(layer: Node, matrix: Tensor) -> None:
    name = f"'{matrix.name}'"
    require(
        not is_overridable(matrix),
        f"{name} may be overridden at run time (it is also a graph input)",
        OVERRIDABLE,
    )
    require(False, f"the weight of {label(layer)}, {name}, is not a constant", COMPUTED)


def _require_step_per_output(layer: Node, stored: Quantized, axis: int) -> None:
    """Refuse integers whose steps do not go with the outputs, on `axis`, or that alpha scales."""
    stored.require_steps()
    name = label(stored.node)
    require(stored.levels.size > 0, f"the weight of {label(layer)} is empty")
    require(
        operator(layer) != "Gemm" or attribute(layer, "alpha") == 1,
        f"{label(layer)} scales the integers of {name}",
    )
    if stored.step.size == 1 and stored.step.ndim < 2:
        return
    given = attribute(stored.node, "axis")
    require(
        stored.step.ndim == 1 and (1 if given is None else given) % 2 == axis,
        f"the steps of {name} are not one for each output of {label(layer)}",
    )


def _require_convolvable(layer: Node, weight: Weight) -> None:
    """Refuse element types and opsets in which the result would not be a Conv that runs."""
    version = opset(layer)
    require(version >= 7, f"{label(layer)} broadcasts by attributes, as before opset 7")
    require(weight.size > 0, f"the weight of {label(layer)} is empty")
    kind = onnx.TensorProto.DataType.Name(weight.data_type).lower()
    types = onnx.defs.get_schema("Conv", version).type_constraints[0].allowed_type_strs
    require(
        f"tensor({kind})" in types,
        f"in opset {version} there is no Conv of {kind} numbers",
        PRECISION,
    )
    # Conv is defined for float64, but ONNX Runtime has no CPU kernel for it, while it has one for
    # Gemm and MatMul: the model would not load any more
    require(kind != "double", "ONNX Runtime has no Conv of double numbers", PRECISION)


def _absorbs(add: Node, layer: Node, width: int, axes: int) -> bool:
    """Whether `add` adds a constant bias to `layer`, which nothing else reads."""
    product = layer.outputs[0]
    if operator(add) != "Add" or is_output(product) or len(readers(product)) != 1:
        return False
    if add.graph is not layer.graph:
        return False
    others = [tensor for tensor in add.inputs if tensor is not product]
    if len(others) != 1:
        return False
    term = stored_weight(others[0])
    return term is not None and _is_per_output(term.shape, width, axes)


def _is_per_output(shape: Sequence[int], width: int, axes: int) -> bool:
    if len(shape) > axes or math.prod(shape[:-1]) != 1:
        return False
    return len(shape) == 0 or shape[-1] in (1, width)


def _bias(layer: Node, bias: Tensor | None, beta: float, width: int, axes: int) -> tuple[Any, Any]:
    """Return beta · bias as one value per output, or else as a term to be added after."""
    if bias is None or beta == 0:
        return None, None
    weight = constant(bias)
    stored = quantized(bias)
    if stored is not None and beta == 1 and stored.levels.shape == (width,):
        return bias, None
    if weight is None:
        factor = np.asarray(beta, bias.dtype) if beta != 1 and bias.dtype is not None else None
        require(beta == 1 or factor is not None, f"the element type of '{bias.name}' is not known")
        return None, bias if factor is None else Op("Mul", bias, factor)
    if not _is_per_output(weight.shape, width, axes):
        return None, bias if beta == 1 else _times_beta(weight.array(), beta, weight)
    if beta == 1 and weight.shape == (width,):
        return bias, None
    if beta == 1 and weight.size == width:
        return weight.reshape(width), None
    values = np.broadcast_to(weight.array().reshape(-1), (width,))
    return (values.copy() if beta == 1 else _times_beta(values, beta, weight)), None


def _times_beta(values: Array, beta: float, weight: Weight) -> Array:
    return rounded(values.astype(np.float64) * beta, weight.dtype, f"beta times '{weight.name}'")


# --------------------------------------------------------------------------- what it works on


@dataclass(frozen=True)
class FeatureMap:
    """The tensor y[N, C, H, W, …] that a Flatten made rows of.

    `sizes` are [C, H, W, …]; `row` those in the order in which the row has them, and axis
    `order[i]` of the row is axis i of `sizes`.
    """

    y: Tensor
    sizes: tuple[int, ...]
    row: tuple[int, ...]
    order: tuple[int, ...]


def dense_on_map(
    x: tuple[Node, Node | None, Tensor],
    layer: Node,
    matrix: Tensor,
    bias: Tensor | None,
    add: Node | None,
) -> tuple[Dense, FeatureMap] | None:
    """Read a dense layer and the map that it works on; None if this is another structure."""
    found = resolve(layer, matrix, bias, add)
    features = None if found is None or found.transposed else _feature_map(*x, found.inputs)
    if found is None or features is None:
        return None
    size = math.prod(features.sizes)
    require(
        size == found.inputs,
        f"{label(layer)} has weights for {found.inputs} elements, '{features.y.name}' has {size}",
    )
    return found, features


def _feature_map(
    flatten: Node, transpose: Node | None, y: Tensor, inputs: int
) -> FeatureMap | None:
    x = flatten.inputs[0]
    axes = needed(rank(x), f"the shape of '{x.name}' is not known", UNKNOWN_SIZE)
    if axes < 3 or not flattens(x, flatten):
        return None
    turned = list(range(axes))
    if transpose is not None and _looks_through(transpose, y, x):
        turned = attribute(transpose, "perm")
    else:
        y = x
    require(
        axes - 2 <= _MOST_SPATIAL_AXES,
        f"'{y.name}' has {axes - 2} spatial axes, a Conv at most {_MOST_SPATIAL_AXES}",
    )
    size = f"the size of '{y.name}', {_shown(y)}, is not fixed"
    sizes = needed(map_sizes(y) or _fixed_by_weights(y, inputs), size, UNKNOWN_SIZE)
    row = tuple(sizes[axis - 1] for axis in turned[1:])
    order = tuple(turned[1:].index(axis) for axis in range(1, axes))
    return FeatureMap(y, sizes, row, order)


def _fixed_by_weights(y: Tensor, inputs: int) -> tuple[int, ...] | None:
    """Return the sizes of a map of which one is not known: with another, the layer would fail.

    `inputs`: the number of elements that the layer has weights for.
    """
    found = [static_dim(y, axis) for axis in range(1, rank(y) or 0)]
    known = math.prod(size for size in found if size is not None)
    if found.count(None) != 1 or known < 1 or inputs % known:
        return None
    return tuple(inputs // known if size is None else size for size in found)


def _looks_through(transpose: Node, y: Tensor, x: Tensor) -> bool:
    """Whether it is the input of `transpose` that has the channels on axis 1."""
    perm = attribute(transpose, "perm")
    if perm is None or perm[0] != 0 or is_pixel(x):
        return False
    makes_them_first = list(perm[1:]) == [len(perm) - 1, *range(1, len(perm) - 1)]
    return is_pixel(y) or not makes_them_first or len(perm) == 3


def _shown(tensor: Tensor) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in tensor.shape or [])}]"
