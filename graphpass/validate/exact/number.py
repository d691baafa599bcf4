"""Floats of a model as exact numbers: their residues, and about how large they are."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphpass.validate.exact.field import Array, Field

Value = Any  # a Number, an array of integers, booleans or strings, or a list (a sequence)


class UnknownError(Exception):
    """Something cannot be computed exactly; the message says what, as part of a sentence."""


_MOST_ELEMENTS = 1 << 23


def require_moderate(*sizes: int) -> None:
    """Raise `UnknownError` where an array of these sizes would take too much memory."""
    if math.prod(sizes) > _MOST_ELEMENTS:
        raise UnknownError("results of this size")


@dataclass(frozen=True)
class Number:
    """A float tensor: the residue of each element, and its value as float64.

    `size` decides where a function has several pieces (Relu, MaxPool); the residues are what is
    compared. `degree`: of the polynomial in what was drawn. `arbitrary`: the operators on the way
    in whose place any function of the elements would do as well.
    """

    residue: Array
    size: Array
    dtype: np.dtype[Any]
    degree: int = 1
    arbitrary: frozenset[str] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.residue.shape

    def moved(self, move: Callable[[Array], Array]) -> Number:
        """Return its elements elsewhere."""
        residue = move(self.residue)
        size = residue if self.size is self.residue else move(self.size)
        return Number(residue, size, self.dtype, self.degree, self.arbitrary)


class Numbers:
    """What can be done with numbers, modulo one prime."""

    def __init__(self, field: Field, *, sizes: bool = True) -> None:
        """`sizes`: whether they are needed; where no operator has pieces, residues stand in."""
        self.field = field
        self.sizes = sizes

    def of(self, array: Array, dtype: Any = None, degree: int = 0) -> Any:
        """Take floats, or integers where a float is made of them."""
        kind = np.dtype(array.dtype if dtype is None else dtype)
        return Number(
            self.field.residues(array), array.astype(np.float64, copy=False), kind, degree
        )

    def like(
        self, residue: Array, size: Array, parts: Sequence[Number], degree: int | None = None
    ) -> Number:
        """Return a number computed from `parts`; its degree is theirs where none is given."""
        if degree is None:
            degree = max(part.degree for part in parts)
        arbitrary = parts[0].arbitrary
        for part in parts[1:]:
            arbitrary |= part.arbitrary
        return Number(residue, size, parts[0].dtype, degree, arbitrary)

    def add(self, one: Number, other: Number, sign: int = 1) -> Number:
        """Return the sum, or with `sign` -1 the difference."""
        residue = self.field.reduce(one.residue + sign * other.residue)
        size = one.size + sign * other.size if self.sizes else residue
        return self.like(residue, size, (one, other))

    def multiply(self, one: Number, other: Number) -> Number:
        """Return the product, element by element."""
        residue = self.field.multiply(one.residue, other.residue)
        size = one.size * other.size if self.sizes else residue
        return self.like(residue, size, (one, other), one.degree + other.degree)

    def inverse(self, value: Number) -> Number:
        """Return 1/x."""
        with np.errstate(all="ignore"):
            size = 1 / value.size
        return self.like(self.field.inverse(value.residue), size, (value,))

    def total(self, value: Number, axes: tuple[int, ...], *, keep: bool) -> Number:
        """Return the sum along `axes`."""
        residue = self.field.reduce(value.residue.sum(axis=axes, keepdims=keep))
        size = value.size.sum(axis=axes, keepdims=keep) if self.sizes else residue
        return self.like(residue, size, (value,))

    def scaled(self, value: Number, factor: Array, *, down: bool = False) -> Number:
        """Multiply by what is known to the bit, or with `down` divide by it."""
        known = self.of(np.asarray(factor, np.float64), value.dtype)
        return self.multiply(value, self.inverse(known) if down else known)

    def arbitrary(self, name: str, salt: bytes, *values: Number) -> Number:
        """Return a function of which nothing is used but that it is one, element by element."""
        seed = zlib.crc32(salt + name.encode())
        residue = values[0].residue
        for index, value in enumerate(values):
            mixed = residue if index == 0 else residue + value.residue
            residue = self.field.scrambled(mixed, (seed << 20) + index)
        found = self.like(residue, residue * 2.0**-20, values)
        return replace(found, degree=found.degree + 1, arbitrary=found.arbitrary | {name})


class Bits(Numbers):
    """Floats that only move: taken for the integers of the same bits, which are equal or not."""

    def of(self, array: Array, dtype: Any = None, degree: int = 0) -> Any:
        """Take floats as they lie in memory."""
        return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)
