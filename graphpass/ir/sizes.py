"""Sizes that are known only in part: products and sums of named ones.

A `Size` is a factor times named sizes: 12, N, 3·N. A sum that does not come down to one such
product is a name of its own, 2·(N + 1), and what no rule of arithmetic resolves, as N / 2, is
named after the expression. So two equal Sizes are equal in every run; two others may be, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_MOST_NAMES = 16  # factors of one product, and products of one sum
_LONGEST_NAME = 120
_LARGEST = 2**63  # beyond, integers wrap around
_MAYBE_NEGATIVE = "~"  # how the names of sizes begin that need not be sizes of an axis


@dataclass(frozen=True, slots=True)
class Size:
    """`factor` times the product of `names`."""

    factor: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [*([str(self.factor)] if self.factor != 1 or not self.names else ()), *self.names]
        return "·".join(parts)

    @property
    def is_axis(self) -> bool:
        """Whether it cannot be negative, as the size of an axis."""
        return self.factor >= 0 and not any(name.startswith(_MAYBE_NEGATIVE) for name in self.names)


class _Sum(str):
    """The name of a sum; `terms`: its products, that have no common factor."""

    terms: tuple[Size, ...]


INFERRED = Size(-1)


def unknown(owner: object, place: object = "") -> Size:
    """Return a size that equals itself and nothing else, and need not be the size of an axis."""
    return Size(1, (f"{_MAYBE_NEGATIVE}{id(owner)}.{place}",))


def product(parts: Iterable[Size]) -> Size:
    """Multiply."""
    listed = list(parts)
    factor = math.prod(part.factor for part in listed)
    names = sorted(name for part in listed for name in part.names)
    return Size(factor, tuple(names)) if factor else Size(0)


def quotient(whole: Size, part: Size) -> Size | None:
    """Divide; None where it does not come out even."""
    if part.factor == 0 or whole.factor % part.factor:
        return None
    left = Counter(whole.names)
    left.subtract(part.names)
    if any(count < 0 for count in left.values()):
        return None
    return Size(whole.factor // part.factor, tuple(sorted(left.elements())))


def total(parts: Iterable[Size]) -> Size | None:
    """Add up; None where that takes too many terms."""
    found: Counter[tuple[str, ...]] = Counter()
    for part in parts:
        sums = [name for name in part.names if isinstance(name, _Sum)]
        if len(sums) != 1:
            found[part.names] += part.factor
            continue
        others = list(part.names)
        others.remove(sums[0])
        for term in sums[0].terms:
            found[tuple(sorted((*others, *term.names)))] += part.factor * term.factor
    terms = [Size(factor, names) for names, factor in sorted(found.items()) if factor]
    if len(terms) < 2:
        return terms[0] if terms else Size(0)
    common = Counter(terms[0].names)
    for term in terms[1:]:
        common &= Counter(term.names)
    shared = tuple(sorted(common.elements()))
    factor = math.gcd(*(term.factor for term in terms))
    factor = -factor if terms[0].factor < 0 else factor
    rest = [quotient(term, Size(factor, shared)) for term in terms]
    inner = tuple(term for term in rest if term is not None)
    axes = all(term.is_axis for term in inner)
    name = _Sum(f"{'' if axes else _MAYBE_NEGATIVE}({' + '.join(map(str, inner))})")
    name.terms = inner
    if len(terms) > _MOST_NAMES or len(name) > _LONGEST_NAME:
        return None
    return Size(factor, tuple(sorted((*shared, name))))


def called(op: str, *parts: Size) -> Size | None:
    """Return what a function that is the same in each run makes of sizes, as a name of its own."""
    sign = "" if op != "Sub" and all(part.is_axis for part in parts) else _MAYBE_NEGATIVE
    name = f"{sign}{op}({', '.join(map(str, parts))})"
    return Size(1, (name,)) if len(name) <= _LONGEST_NAME else None


def is_bounded(size: Size) -> bool:
    """Whether `size` is small enough to be worked with: no overflow, not too many factors."""
    return abs(size.factor) < _LARGEST and len(size.names) <= _MOST_NAMES


__all__ = [
    "INFERRED",
    "Size",
    "called",
    "is_bounded",
    "product",
    "quotient",
    "total",
    "unknown",
]
