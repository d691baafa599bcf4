"""Draw inputs for a model: seeded, of several kinds, inside what the model accepts."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphpass.validate.feeds.sizes import Bindings, rank_symbol, size_of
from graphpass.validate.feeds.specs import InputSpec
from graphpass.validate.process.channel import Array, Value

# Ranges for integers that index nothing we know of, tried in this order: [low, high).
INTEGER_RANGES = ((-100, 100), (0, 100), (0, 10), (0, 2), (1, 2), (0, 1))

# What decides a size is drawn small: a pad of 90 on each side makes a gigabyte of a few numbers.
_SIZES = {"added": (0, 3), "count": (1, 4)}
# More is not drawn: elements where sizes are free, bytes where they are not.
_MOST_ELEMENTS = 1 << 22
_MOST_BYTES = 1 << 30
_SPECIAL = (np.nan, np.inf, -np.inf, -0.0)
_LONG = 1 << 40
_CHUNK = 1 << 20  # elements; drawn one after the other they are those drawn at once

_SHAPES_BY_RANK = ((), (16,), (2, 3), (1, 16, 16), (1, 3, 64, 64), (1, 3, 8, 8, 8))
_WORDS = ("graph", "pass", "", "Knoten", "节点", "a b")


@dataclass(frozen=True)
class Recipe:
    """How to draw a feed: kind of values, a number per symbol, the range of plain integers.

    `large` is the standard deviation of values of that kind.
    """

    kind: str
    bindings: Bindings
    integers: tuple[int, int] = INTEGER_RANGES[0]
    large: float = 100.0


@dataclass(frozen=True)
class Feed:
    """Inputs by name; `name` says kind and bound dimensions, as the report shows it."""

    name: str
    values: Mapping[str, Value]
    bindings: Bindings = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input that is a tensor."""
        arrays = self.values.items()
        return {name: value.shape for name, value in arrays if isinstance(value, np.ndarray)}


class TooLargeError(ValueError):
    """More would have to be drawn than is sensible; one sentence names the input."""


def too_large(specs: Sequence[InputSpec], bindings: Bindings) -> str:
    """Say which input is more than is drawn in these sizes; "" if none is."""
    for spec in specs:
        if spec.dtype is None or spec.overridable:
            continue
        elements = math.prod(shape_of(spec, bindings))
        size = elements * spec.dtype.itemsize
        is_free = spec.dims is None or any(isinstance(dim, str) for dim in spec.dims)
        if size > _MOST_BYTES or (is_free and elements > _MOST_ELEMENTS):
            return f"input '{spec.name}' would have {elements:,} elements, {size >> 20:,} MiB"
    return ""


def draw_feed(specs: Sequence[InputSpec], recipe: Recipe, seed: int) -> Feed:
    """Draw every input that has no default.

    Raises `TooLargeError` for one that is more than is drawn, ValueError for a type that cannot
    be fed.
    """
    specs = [spec for spec in specs if not spec.overridable]
    if why := too_large(specs, recipe.bindings):
        raise TooLargeError(why)
    values = {
        spec.name: _draw(spec, recipe, _generator(seed, recipe.kind, spec.name)) for spec in specs
    }
    return Feed(feed_name(recipe.kind, recipe.bindings), values, recipe.bindings)


def feed_name(kind: str, bindings: Mapping[str, int]) -> str:
    """Return for instance ``normal, N=2, H=64``."""
    return ", ".join([kind, *(f"{symbol}={size}" for symbol, size in bindings.items())])


def overrides(defaults: Mapping[str, Array], seed: int) -> dict[str, Value]:
    """Draw other values for inputs with a default: same sign, 0.5 to 1.5 times as large.

    Keeping the sign keeps variances positive; zeros become small positive numbers.
    """
    drawn: dict[str, Value] = {}
    for name, default in defaults.items():
        rng = _generator(seed, "override", name)
        wide = default.astype(np.float64)
        moved = wide * rng.uniform(0.5, 1.5, wide.shape)
        drawn[name] = np.where(wide == 0, rng.uniform(0, 0.1, wide.shape), moved).astype(
            default.dtype
        )
    return drawn


def _generator(seed: int, kind: str, name: str) -> np.random.Generator:
    # By name and not by position: one input more does not change the others.
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), zlib.crc32(name.encode())])


def _draw(spec: InputSpec, recipe: Recipe, rng: np.random.Generator) -> Value:
    if spec.dtype is None:
        raise ValueError(f"input '{spec.name}' has a type that cannot be drawn: {spec.type_text}")
    shape = shape_of(spec, recipe.bindings)
    if spec.kind == "sequence":
        return [_array(spec, shape, recipe, rng) for _ in range(2)]
    return _array(spec, shape, recipe, rng)


def shape_of(spec: InputSpec, bindings: Mapping[str, int]) -> tuple[int, ...]:
    """Return the input's shape under these bindings."""
    if spec.dims is None:
        return _SHAPES_BY_RANK[bindings[rank_symbol(spec.name)]]
    return tuple(size_of(dim, bindings) for dim in spec.dims)


def _array(
    spec: InputSpec, shape: tuple[int, ...], recipe: Recipe, rng: np.random.Generator
) -> Array:
    dtype = spec.dtype
    assert dtype is not None
    if dtype.kind == "O":
        return rng.choice(np.array(_WORDS, dtype=object), shape)
    if dtype.kind == "b":
        low, high = recipe.integers
        return rng.integers(max(low, 0), min(high, 2), shape).astype(dtype)
    if dtype.kind in "iu":
        return _integers(spec, shape, recipe, rng)
    if dtype.kind == "c":
        size = math.prod(shape)
        values = _floats(size, recipe, rng) + 1j * _floats(size, recipe, rng)
        return values.astype(dtype).reshape(shape)
    # in its own type, piece by piece: at once it would be twice as much, in double precision
    array: Array = np.empty(math.prod(shape), dtype)
    with np.errstate(over="ignore"):
        for start in range(0, array.size, _CHUNK):
            part = array[start : start + _CHUNK]
            part[...] = _floats(part.size, recipe, rng).astype(dtype)
    return array.reshape(shape)


def _floats(shape: int, recipe: Recipe, rng: np.random.Generator) -> Array:
    if recipe.kind == "zeros":
        return np.zeros(shape)
    if recipe.kind == "uniform":
        return rng.uniform(0.0, 1.0, shape)
    if recipe.kind == "one to two":
        return rng.uniform(1.0, 2.0, shape)
    if recipe.kind == "special":
        chosen = rng.integers(0, 4 * len(_SPECIAL), shape)
        values = rng.standard_normal(shape)
        return np.choose(np.minimum(chosen, len(_SPECIAL)), [*_SPECIAL, values])
    return rng.standard_normal(shape) * {"large": recipe.large, "small": 0.01}.get(recipe.kind, 1.0)


def _integers(
    spec: InputSpec, shape: tuple[int, ...], recipe: Recipe, rng: np.random.Generator
) -> Array:
    dtype = spec.dtype
    assert dtype is not None
    if spec.role in ("target", "ones"):  # everything goes into the last axis, whatever there is
        ones = np.ones(shape, dtype)
        if spec.role == "target" and ones.size and dtype.kind == "i":
            ones[..., -1] = -1
        return ones
    is_plain = not spec.role and spec.index_bound is None
    if recipe.kind == "special" and is_plain and dtype.itemsize == 8:  # more than 32 bits hold
        return rng.integers(0 if dtype.kind == "u" else -_LONG, _LONG, shape).astype(dtype)
    low, high = _SIZES[spec.role] if spec.role in _SIZES else _range(spec, dtype, recipe)
    if recipe.kind == "zeros" and low <= 0:
        return np.zeros(shape, dtype)
    return rng.integers(low, high, shape).astype(dtype)


def _range(spec: InputSpec, dtype: np.dtype[Any], recipe: Recipe) -> tuple[int, int]:
    name = spec.name.lower()
    if spec.index_bound is not None:
        return 0, max(1, spec.index_bound)
    if dtype.itemsize == 1:
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1
    if re.search(r"mask|token_type|segment", name):
        return max(0, recipe.integers[0]), min(2, recipe.integers[1])
    if re.fullmatch(r"sr|fs|sample_?rate", name):
        return 16000, 16001
    low, high = recipe.integers
    return (max(low, 0) if dtype.kind == "u" else low), high
