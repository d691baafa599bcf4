"""Arithmetic modulo a prime, on float64 arrays, exactly.

Residues are integers in float64, at most half the prime in size. The prime lies between 2^26 and
2^27, so that a product of two residues, and a sum of 2^14 products with half of one, is below
2^53: what float64 holds, whatever order BLAS adds in. A float is a fraction m·2^e, and has a
residue for that, since 2 has an inverse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_LOWEST, _HIGHEST = 1 << 26, 1 << 27
# by the prime number theorem there are 3.6 million in between
PRIMES = 2.0**21.7
_HALF = float(1 << 13)  # what one factor of a matrix product is split by
_MOST_SUMMANDS = 1 << 14
_EXACT = float(1 << 52)
_BLOCK = 1 << 16  # elements that stay in a cache while they are reduced


class Field:
    """The integers modulo a prime that is drawn."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.prime = _draw_prime(rng)
        self._p = float(self.prime)
        self._powers: dict[int, float] = {}

    def reduce(self, values: Array) -> Array:
        """Return the residues of integers below 2^52 in size."""
        flat = np.ascontiguousarray(values, np.float64).reshape(-1)
        out = np.empty(flat.shape)
        for start in range(0, flat.size, _BLOCK):
            part, made = flat[start : start + _BLOCK], out[start : start + _BLOCK]
            np.multiply(part, 1 / self._p, out=made)
            np.rint(made, out=made)
            made *= -self._p
            made += part
        return out.reshape(np.shape(values))

    def residues(self, values: Array) -> Array:
        """Return the residues of floats or integers; what is not finite gets one of its own."""
        if values.dtype.kind in "iub":
            signed = np.mod(values.astype(np.int64), self.prime).astype(np.float64)
            return self.reduce(signed)
        exact = np.asarray(values, np.float64)
        if _is_whole(exact):
            return self.reduce(exact)
        return self._of_fractions(exact, 53 if values.dtype == np.float64 else 24)

    def _of_fractions(self, values: Array, digits: int) -> Array:
        """Return the residues of floats whose mantissas have so many binary digits."""
        finite = np.isfinite(values)
        mantissa, exponent = np.frexp(values if finite.all() else np.where(finite, values, 0.0))
        held = np.ldexp(mantissa, digits)
        if digits > 25:
            high = np.trunc(held / 2.0**27)
            low = held - high * 2.0**27
            held = self.reduce(self.reduce(high) * self.power(27) + self.reduce(low))
        least = int(exponent.min(initial=0))
        last = int(exponent.max(initial=0)) + 1
        powers = np.array([self.power(e - digits) for e in range(least, last)])
        made = self.multiply(held, powers[exponent - least])
        if not finite.all():
            made[~finite] = np.where(np.isnan(values[~finite]), 3.0**15, 3.0**16)
            made[~finite] *= np.where(values[~finite] < 0, -1, 1)
        return made

    def power(self, exponent: int) -> float:
        """Return the residue of 2^exponent."""
        if exponent not in self._powers:
            residue = pow(2, exponent, self.prime)
            self._powers[exponent] = float(residue - self.prime * (2 * residue > self.prime))
        return self._powers[exponent]

    def multiply(self, one: Array, other: Array) -> Array:
        """Return the product of residues, element by element."""
        return self.reduce(one * other)

    def inverse(self, values: Array) -> Array:
        """Return 1/x of residues by Fermat's little theorem; 0 has none and gives 0."""
        result, base, exponent = np.ones(values.shape), values, self.prime - 2
        while exponent:
            if exponent & 1:
                result = self.multiply(result, base)
            base = self.multiply(base, base)
            exponent >>= 1
        return result

    def matmul(self, one: Array, other: Array) -> Array:
        """Return the matrix product of residues."""
        count = one.shape[-1]
        if count <= _MOST_SUMMANDS:
            return self._matmul(one, other)
        total: Array = np.zeros(())
        for start in range(0, count, _MOST_SUMMANDS):
            part = slice(start, start + _MOST_SUMMANDS)
            total = self.reduce(total + self._matmul(one[..., part], other[..., part, :]))
        return total

    def _matmul(self, one: Array, other: Array) -> Array:
        if one.size < other.size:  # the smaller one is split
            turned = self._matmul(np.swapaxes(other, -1, -2), np.swapaxes(one, -1, -2))
            return np.swapaxes(turned, -1, -2)
        high = np.rint(other / _HALF)
        low = other - high * _HALF
        columns = other.shape[-1]
        both = np.matmul(one, np.concatenate([high, low], axis=-1))
        top = self.reduce(both[..., :columns])
        return self.reduce(top * _HALF + self.reduce(both[..., columns:]))

    def scrambled(self, values: Array, salt: int) -> Array:
        """Return what an arbitrary function, told by `salt`, gives for residues."""
        with np.errstate(over="ignore"):
            bits = np.mod(values, self._p).astype(np.uint64) + np.uint64(salt)
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
            bits ^= bits >> np.uint64(31)
        return self.reduce((bits >> np.uint64(16)).astype(np.float64))


def _is_whole(values: Array) -> bool:
    """Whether all are integers that can be reduced, looked at while they are in a cache."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        if not (np.rint(part) == part).all() or not max(part.max(), -part.min()) < _EXACT:
            return False
    return True


class Fields:
    """A field for each draw, with a prime of its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._fields: dict[int, Field] = {}

    def of(self, number: int) -> Field:
        """Return that of one draw."""
        if number not in self._fields:
            self._fields[number] = Field(np.random.default_rng([self.seed, 10, number]))
        return self._fields[number]


def _draw_prime(rng: np.random.Generator) -> int:
    while True:
        number = int(rng.integers(_LOWEST, _HIGHEST)) | 1
        if _is_prime(number):
            return number


def _is_prime(number: int) -> bool:
    """By Miller and Rabin; bases 2, 3, 5 and 7 decide below 3·10⁹."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return math.gcd(number, 2 * 3 * 5 * 7) == 1
