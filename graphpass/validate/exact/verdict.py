"""What exact arithmetic says of a rewrite, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphpass.validate.exact.field import PRIMES
from graphpass.validate.exact.number import Number, Value

# both values, one over the number of values of what was drawn, and what few values add to that
Point = tuple[Value, Value, float, float]


@dataclass(frozen=True)
class ExactVerdict:
    """What exact arithmetic says of a rewrite.

    `status`: "equal", then wrong with probability below 2^-`bits` (0: not wrong at all);
    "differs"; or "not replayed", `reason` says why in one sentence. `alike_bits`: of a rewrite
    that is like this one but for sizes, where that was looked at more closely; with no `bits`,
    where that alone was looked at.
    """

    status: str
    bits: int = 0
    reason: str = ""
    alike_bits: int = 0

    @property
    def text(self) -> str:
        """One line for a report."""
        if self.status == "equal":
            if not self.bits and self.alike_bits:
                return f"equal at other sizes, wrong with probability < 2^-{self.alike_bits}"
            if not self.bits:
                return "equal"
            told = f"equal, wrong with probability < 2^-{self.bits}"
            return f"{told} (at other sizes < 2^-{self.alike_bits})" if self.alike_bits else told
        return f"{self.status}: {self.reason}"


class DiffersError(Exception):
    """Both sides are not equal.

    `arbitrary`: the operators that stand for any function; `relative`: by how much of their size.
    """

    def __init__(self, arbitrary: Iterable[str], relative: float) -> None:
        super().__init__()
        self.arbitrary = sorted(arbitrary)
        self.relative = relative


def _flat(value: Value) -> list[Value]:
    return (
        [part for entry in value for part in _flat(entry)] if isinstance(value, list) else [value]
    )


def bits_of(
    one: Value, other: Value, wide: float, narrow: float, factors: int, freedom: int
) -> float:
    """Return how improbable it is that what differs is equal on one draw, in bits.

    `wide`: one over the number of values that a constant or input could have had; `narrow`: what
    those add that could have had few. `freedom`: how many times the degree of what is right a
    mistake may have. `factors`: how many primes may divide a number on the way.
    """
    numbers = [part for part in (*_flat(one), *_flat(other)) if isinstance(part, Number)]
    degree = max((number.degree for number in numbers), default=1)
    if not wide and not numbers:  # nothing is drawn, nothing computed modulo a prime
        return math.inf
    chance = freedom * max(degree, 1) * wide + narrow + (factors / PRIMES if numbers else 0.0)
    return max(-math.log2(chance), 0.0) if chance < 1 else 0.0


def difference(one: Value, other: Value) -> DiffersError:
    """Return how two values differ, to be raised."""
    arbitrary: set[str] = set()
    relative = 0.0
    for a, b in zip(_flat(one), _flat(other), strict=False):
        if isinstance(a, Number) and isinstance(b, Number):
            arbitrary |= a.arbitrary | b.arbitrary
            if a.shape == b.shape and a.size.size:
                scale = float(np.abs(a.size).max()) or 1.0
                relative = max(relative, float(np.abs(a.size - b.size).max()) / scale)
                continue
        relative = math.inf
    return DiffersError(arbitrary, relative)


def equal(bits: Sequence[float]) -> ExactVerdict:
    """Return the verdict for several results: a mistake shows in one of them at least."""
    if math.isinf(min(bits)):
        return ExactVerdict("equal")
    least = int(min(bits))
    if least < 1:
        return ExactVerdict("not replayed", reason="too few values can be drawn to say anything")
    return ExactVerdict("equal", least)


def rests_on(operators: Sequence[str]) -> ExactVerdict:
    """Return the verdict where both sides differ if any function stood for these operators."""
    named = ", ".join(operators)
    return ExactVerdict(
        "not replayed", reason=f"it rests on what {named} computes, which is no polynomial"
    )
