"""Resize: an arbitrary linear map along each axis whose size changes, that keeps what is constant.

Nearest, linear and cubic interpolation are such maps. Where a place beyond the edge has a value of
its own, it is none.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from graphpass.validate.exact.number import Number, Numbers, UnknownError, require_moderate
from graphpass.validate.exact.step import Step


def resize(step: Step) -> Number:
    """Return the input under the size that is asked for."""
    if step.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise UnknownError("a Resize that crops")
    if step.attribute("exclude_outside", 0) or step.attribute("antialias", 0):
        raise UnknownError("a Resize that weighs what it sees")
    found = step.number()
    scales = step.input(1 if step.op == "Upsample" or len(step.inputs) == 2 else 2)
    sizes = step.input(3)
    wanted: list[int] | None = None
    factors: list[float] = []
    if isinstance(sizes, np.ndarray) and sizes.size:
        wanted = [int(size) for size in sizes]
        factors = [n / m for n, m in zip(wanted, found.shape[-len(wanted) :], strict=True)]
    elif isinstance(scales, Number) and scales.size.size:
        factors = [float(factor) for factor in scales.size]
    axes = step.attribute("axes") or list(range(len(found.shape)))
    if (
        len(axes) != len(factors)
        or step.attribute("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise UnknownError("a Resize to a size that is not given")
    for index, axis in enumerate(axes):
        if factors[index] != 1:
            size = wanted[index] if wanted else int(np.floor(found.shape[axis] * factors[index]))
            told = step.salt + repr((factors[index], found.shape[axis], size)).encode()
            found = _mapped(step.numbers, found, axis, size, zlib.crc32(told))
    return replace(found, arbitrary=found.arbitrary | {step.op})


def _mapped(numbers: Numbers, number: Number, axis: int, size: int, salt: int) -> Number:
    """Apply a matrix whose rows add up to 1 along one axis."""
    require_moderate(size, count := number.shape[axis], *number.shape)
    field = numbers.field
    matrix = field.scrambled(np.arange(size * count, dtype=np.float64).reshape(size, count), salt)
    matrix[:, -1] = field.reduce(1 - field.reduce(matrix[:, :-1].sum(axis=1)))
    residue = field.matmul(matrix, np.moveaxis(number.residue, axis, -2))
    made = numbers.like(residue, residue * 2.0**-20, (number,), number.degree + 1)
    return made.moved(lambda array: np.moveaxis(array, -2, axis))
