"""Affine maps y = factor·x + shift with one pair per channel, and weights that take them in.

Pure arithmetic on numbers: everything is computed in float64 and rounded once, to the type that
the weight has. With unit roundoff u of that type, each new weight is within u of the exact product
relative to itself, or, where it falls below the smallest normal number, relative to the largest
weight of its channel; what would lose more than that is refused. Errors below the smallest normal
float32 are let pass: runtimes compute in float32 at best, and many flush what is smaller to 0
(dead channels of trained networks do hold such weights).

A factor of 0 is taken in like any other. It makes the weights 0, so that activations which
overflowed to infinity, and then gave 0·∞ = NaN, now give 0: the value that the formula has over
the real numbers. Networks with pruned channels have such factors on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphpass import Weight, require
from graphpass.ir.refusal import PRECISION

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

FLOAT_TYPES = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
_SMALLEST = float(np.finfo(np.float32).smallest_normal)
_BLOCK_ELEMENTS = 1 << 21  # 16 MiB in float64: a large weight is never held twice


@dataclass(frozen=True)
class Affine:
    """y = factor·x + shift, both of shape [channels]."""

    factor: Floats
    shift: Floats

    @property
    def scales(self) -> bool:
        """Whether any factor differs from 1."""
        return bool((self.factor != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether any shift differs from 0."""
        return bool((self.shift != 0).any())

    def of(self, inner: Affine) -> Affine:
        """Return the map that applies `inner` first and this one to its result."""
        return Affine(self.factor * inner.factor, self.factor * inner.shift + self.shift)


def of_batch_normalization(
    scale: Floats, offset: Floats, mean: Floats, variance: Floats, epsilon: float
) -> Affine:
    """Return scale·(x − mean)/√(variance + ε) + offset as factor·x + shift.

    Ioffe & Szegedy, "Batch Normalization" (2015), algorithm 2, step 11. variance + ε > 0.
    """
    factor = scale / np.sqrt(variance + epsilon)
    return Affine(factor, offset - factor * mean)


def of_arithmetic(op: str, term: Floats, *, term_first: bool) -> Affine:
    """Return `x op term`, or `term op x`, as factor·x + shift; term / x is no such map."""
    one, zero = np.ones_like(term), np.zeros_like(term)
    if op == "Mul":
        return Affine(term, zero)
    if op == "Add":
        return Affine(one, term)
    if op == "Sub":
        return Affine(-one, term) if term_first else Affine(one, -term)
    if op == "Div" and not term_first:
        return Affine(1 / term, zero)
    raise ValueError(f"{op} is not affine")


def scaled(weight: Weight, factor: Floats) -> Weight | Array:
    """Return factor·weight in the weight's type; `factor` has as many axes and broadcasts to it.

    Refuses what is not finite, before or after, and what loses more than rounding.
    """
    if (factor == 1).all():
        return weight
    source = weight.array()
    result = np.empty(source.shape, source.dtype)
    smallest = float(limits(source.dtype).smallest_normal)
    narrow, flushed = smallest > _SMALLEST, False
    with np.errstate(all="ignore"):
        for block in _blocks(source.shape):
            product = source[block].astype(np.float64) * _rows(factor, block)
            result[block] = product
            _require_finite(weight, source[block], result[block])
            if narrow and not flushed:
                flushed = bool(((np.abs(result[block]) < smallest) & (product != 0)).any())
    if flushed:
        _require_precise(weight, source, factor, result)
    return result


def _require_finite(weight: Weight, source: Array, result: Array) -> None:
    if not np.isfinite(result).all():
        require(np.isfinite(source).all(), f"'{weight.name}' holds values that are not finite")
        require(False, f"folding into '{weight.name}' overflows {weight.dtype}", PRECISION)


def _require_precise(weight: Weight, source: Array, factor: Floats, result: Array) -> None:
    """Refuse where a channel's error exceeds the rounding of its largest weight."""
    alike = tuple(axis for axis, size in enumerate(factor.shape) if size == 1)
    lost, largest = np.zeros(factor.shape), np.zeros(factor.shape)
    for block in _blocks(source.shape):
        product = source[block].astype(np.float64) * _rows(factor, block)
        error = np.abs(result[block].astype(np.float64) - product)
        for held, values in ((lost, error), (largest, np.abs(product))):
            rows = _rows(held, block)
            np.maximum(rows, values.max(axis=alike, keepdims=True), out=rows)
    unit_roundoff = float(limits(source.dtype).eps) / 2
    require(
        (lost <= unit_roundoff * largest).all(),
        f"folding into '{weight.name}' makes it so small that {weight.dtype} loses its digits",
        PRECISION,
    )


def weighted_sum(weight: Weight, vector: Floats, axis: int) -> Floats:
    """Return the sum of weight·vector over all axes but `axis`; `vector` broadcasts to weight."""
    total = np.zeros(weight.shape[axis])
    others = tuple(k for k in range(weight.ndim) if k != axis)
    source = weight.array()
    for block in _blocks(source.shape):
        part = (source[block].astype(np.float64) * _rows(vector, block)).sum(axis=others)
        if axis == 0:
            total[block] = part
        else:
            total += part
    return total


def rounded(values: Floats, dtype: np.dtype[Any], name: str) -> Array:
    """Return `values` as `dtype`; refuse what is not finite in it."""
    with np.errstate(all="ignore"):
        result: Array = values.astype(dtype)
    require(np.isfinite(values).all(), f"{name} would not be finite")
    require(np.isfinite(result).all(), f"{name} would overflow {dtype}")
    return result


def rescaled_step(step: Weight, factor: Floats) -> Array:
    """Return factor·step, the step of a DequantizeLinear, each rounded to the type of `step`."""
    exact = step.astype(np.float64) * factor
    result = rounded(exact, step.dtype, f"'{step.name}' after folding")
    smallest = float(limits(step.dtype).smallest_normal)
    require(
        (np.abs(exact) >= smallest).all(),
        f"folding into '{step.name}' makes it so small that {step.dtype} loses its digits",
        PRECISION,
    )
    return result


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut axis 0 so that each piece has about `_BLOCK_ELEMENTS` elements."""
    row = math.prod(shape[1:])
    rows = max(1, _BLOCK_ELEMENTS // max(row, 1))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _rows(values: Floats, block: slice) -> Floats:
    """Return the part of an array that broadcasts over a block of axis 0."""
    return values if values.shape[0] == 1 else values[block]


def limits(dtype: np.dtype[Any]) -> Any:
    """Return what numpy's finfo has of a type, of bfloat16 as well."""
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # numpy's knows no bfloat16
