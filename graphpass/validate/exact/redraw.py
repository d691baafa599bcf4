"""New constants for a window, with which exact arithmetic is possible.

Whole numbers, so wide that their products fit float64, in which rules compute. What may decide
whether a rule applies stays: integers, zeros, a constant whose elements are all equal (they are
drawn equal), the sign of each element, constants that are equal. What is divided by is a power of
two. A BatchNormalization gets a variance r² − ε and a scale q·r, for whole q and r, so that the
root and the quotient are whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from graphpass.validate.exact.field import Array

_BLOCK = 1 << 15  # elements
_SAME_BYTES = 1 << 16  # up to here, constants are compared


@dataclass(frozen=True)
class Level:
    """How wide numbers are drawn: bits of factors, exponents of divisors, bits of roots.

    With no bits, roots are powers of two. `epsilon`: of a BatchNormalization.
    """

    bits: int
    exponents: int
    root_bits: int
    epsilon: float


# By binary digits of the type that a rule computes in. The first is enough for one product, or
# for what only moves, the second for a sum of products; at the last anything is exact.
LEVELS = {
    53: (Level(25, 900, 24, 2.0**-4), Level(20, 60, 20, 2.0**-8), Level(13, 8, 13, 2.0**-8)),
    24: (Level(24, 60, 10, 2.0**-4), Level(11, 8, 9, 2.0**-4), Level(7, 4, 6, 2.0**-4)),
    11: (Level(11, 4, 4, 2.0**-2), Level(5, 2, 4, 2.0**-2), Level(3, 2, 3, 2.0**-2)),
}
EASIEST = Level(4, 2, 0, 0.25)

# the input from which on constants stay as they are: exponents, bounds, sizes, steps
_KEPT_FROM = {
    "Pow": 1,
    "Clip": 1,
    "Resize": 1,
    "Pad": 1,
    "QuantizeLinear": 1,
    "Max": 0,
    "Min": 0,
    "Range": 0,
    "Mod": 0,
    "If": 0,
    "Loop": 0,
}


@dataclass
class Drawn:
    """Constants by name, and how many values the least free of them could have had.

    `narrow`: the sum of 1/values over those that have few, such as powers of two. `residues`:
    those that are whole and so small that they are residues modulo any prime.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    residues: set[str] = field(default_factory=set)
    choices: float = np.inf
    narrow: float = 0.0


@dataclass
class Roles:
    """Which constants of a window are what."""

    divisors: set[str] = field(default_factory=set)
    variances: dict[str, str] = field(default_factory=dict)  # by name: the scale beside it
    kept: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, nodes: Iterable[onnx.NodeProto], opset: int) -> Roles:
        """Read the nodes of a window."""
        roles = cls()
        for node in nodes:
            inputs = list(node.input)
            if node.op_type == "Div" and len(inputs) > 1:
                roles.divisors.add(inputs[1])
            elif node.op_type == "Reciprocal":
                roles.divisors.add(inputs[0])
            elif node.op_type == "BatchNormalization":
                roles.variances[inputs[4]] = inputs[1]
            elif node.op_type in _KEPT_FROM:
                roles.kept.update(inputs[_KEPT_FROM[node.op_type] :])
        return roles


def redrawn(
    originals: Mapping[str, Array],
    roles: Roles,
    level: Level,
    rng: np.random.Generator,
    *,
    near_bounds: bool = False,
) -> Drawn:
    """Return new constants, in float64, for those whose values may be others.

    `near_bounds`: factors are divided by a power of two, so that they are at most 1.
    """
    drawn = Drawn()
    scales = {scale: variance for variance, scale in roles.variances.items() if scale in originals}
    known: dict[tuple[tuple[int, ...], bytes], str] = {}
    for name, held in originals.items():
        if name in drawn.arrays or name in roles.kept or not held.size:
            continue
        if held.size <= 16 and not np.isfinite(held).all():
            continue
        if held.nbytes <= _SAME_BYTES and name not in roles.variances and name not in scales:
            content = held.shape, held.tobytes()
            if content in known:
                drawn.arrays[name] = drawn.arrays[known[content]]
                continue
        else:
            content = None
        if name in roles.variances:
            _draw_statistics(name, roles.variances[name], originals, level, rng, drawn)
        elif name in scales and scales[name] in originals:
            continue  # drawn with its variance
        elif name in roles.divisors:
            exponents = rng.integers(-level.exponents, level.exponents + 1, _free(held))
            drawn.arrays[name] = _signed(held, np.ldexp(1.0, exponents))
            drawn.narrow += 1 / (2 * level.exponents + 1)
        else:
            _draw_factors(name, held, level, rng, drawn)
        if content is not None and name in drawn.arrays:
            known[content] = name
    if near_bounds:
        for name in [*drawn.residues, *(name for name in scales if name in drawn.arrays)]:
            drawn.arrays[name] = drawn.arrays[name] * 2.0**-level.bits
        drawn.residues.clear()
    return drawn


def _draw_factors(
    name: str, held: Array, level: Level, rng: np.random.Generator, drawn: Drawn
) -> None:
    free = _free(held)
    if free == () and float(held.reshape(-1)[0]) in (0.0, 1.0, -1.0):
        return
    if free == ():
        drawn.arrays[name] = _signed(held, _whole((), level.bits, rng))
    else:
        drawn.arrays[name] = _whole(free, level.bits, rng, held)
    drawn.residues.add(name)
    drawn.choices = min(drawn.choices, 2.0**level.bits)


def _draw_statistics(
    name: str,
    scale: str,
    originals: Mapping[str, Array],
    level: Level,
    rng: np.random.Generator,
    drawn: Drawn,
) -> None:
    shape = originals[name].shape
    if level.root_bits:
        roots = _whole(shape, level.root_bits, rng)
        drawn.choices = min(drawn.choices, 2.0**level.root_bits)
    else:
        roots = np.ldexp(1.0, rng.integers(0, 4, shape))
        drawn.narrow += 1 / 4
    drawn.arrays[name] = roots * roots - level.epsilon
    if scale in originals and originals[scale].shape == shape:
        factors = _signed(originals[scale], _whole(shape, level.bits, rng))
        drawn.arrays[scale] = factors * roots
        drawn.choices = min(drawn.choices, 2.0**level.bits)


def _free(held: Array) -> tuple[int, ...]:
    """Return the shape of what is drawn: one number where all elements are equal."""
    first = held.reshape(-1)[0]
    if held.size == 1 or (held.reshape(-1)[-1] == first and (held == first).all()):
        return ()
    return held.shape


def _whole(
    shape: tuple[int, ...], bits: int, rng: np.random.Generator, signs: Array | None = None
) -> Array:
    """Return whole numbers from 1 to 2^bits, with the signs and zeros of other numbers."""
    count = math.prod(shape)
    made = np.empty(count)
    others = None if signs is None else signs.reshape(-1)
    for start in range(0, count, _BLOCK):  # which stays in a cache
        part = made[start : start + _BLOCK]
        raw = rng.bit_generator.random_raw(-(-part.size // 2)).view(np.uint32)[: part.size]
        np.add(raw >> np.uint32(32 - bits), 1.0, out=part)
        if others is None:
            continue
        held = others[start : start + _BLOCK]
        if held.all():
            np.copysign(part, held, out=part)
        else:
            part *= np.sign(held)
    return made.reshape(shape)


def _signed(held: Array, sizes: Array) -> Array:
    """Give numbers the signs of others; zeros stay."""
    if held.size <= 16 or not held.all():
        return np.sign(held).astype(np.float64) * sizes
    made: Array = np.copysign(sizes, held)
    return made
