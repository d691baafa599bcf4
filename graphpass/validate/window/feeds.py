"""What a window is fed: seeded draws, and probes under which a single wrong weight shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.validate.process.channel import Array
from graphpass.validate.window.prepare import Fed, Prepared

KINDS = ("normal", "mixed", "zeros", "probes", "columns")

# As many numbers are drawn, then they repeat: a prime, that no axis of a tensor is a multiple of.
_PERIOD = 8191
# A probe is so large that what a window adds (bias, mean, shift) hides nothing behind its size.
_AMPLITUDE = {"float16": 2.0**6, "bfloat16": 2.0**10, "float32": 2.0**16, "float64": 2.0**16}


@dataclass(frozen=True)
class Draw:
    """Inputs of one kind by name; `active`: how many elements of a probe are not 0 (0: any)."""

    kind: str
    values: dict[str, Array]
    active: int = 0


class Draws:
    """Draws what windows are fed; windows that take the same are given the same arrays."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[tuple[str, Fed], tuple[list[Array], int]] = {}

    def of(self, item: Prepared, kind: str) -> Draw:
        """Draw the inputs of one window."""
        if (kind, item.fed) not in self._drawn:
            self._drawn[kind, item.fed] = self._draw(kind, item.fed)
        arrays, active = self._drawn[kind, item.fed]
        return Draw(kind, dict(zip(sorted(item.shapes), arrays, strict=True)), active)

    def _draw(self, kind: str, fed: Fed) -> tuple[list[Array], int]:
        rng = np.random.default_rng([self._seed, 8 if kind == "non-finite" else 7])
        arrays, active = [], 0
        for shape, elem_type in fed.inputs:
            dtype = np.dtype(tensor_dtype_to_np_dtype(elem_type))
            if kind in ("probes", "columns") and fed.probes and dtype.kind not in "iub":
                draw = _columns if kind == "columns" and fed.is_sampled else _partition
                array, active = draw(shape, fed, dtype, rng)
            else:
                array = drawn(shape, dtype, kind, rng)
            arrays.append(array.astype(dtype))
        return arrays, active


def drawn(shape: Sequence[int], dtype: np.dtype[Any], kind: str, rng: np.random.Generator) -> Array:
    """Return an array of one of `KINDS`, as float64, float32 or integers."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape)
    if dtype.kind in "iu":
        return np.zeros(shape) if kind == "zeros" else rng.integers(0, 3, shape)
    if kind == "zeros":
        return np.zeros(shape)
    size = math.prod(shape)
    exactly: Any = np.float64 if dtype.itemsize > 4 else np.float32
    count = min(size, _PERIOD)
    array = rng.standard_normal(count, exactly)
    if kind == "mixed":
        # magnitudes over four decades, and a tenth zeros
        array = np.ldexp(array, rng.integers(-7, 8, count, np.int8))
        array[rng.random(count, np.float32) < 0.1] = 0
    if kind == "negative":
        array = -np.abs(array)
    if kind == "non-finite":
        chosen = rng.random(count, np.float32)
        array[chosen < 0.3] = np.nan
        array[chosen < 0.2] = np.inf
        array[chosen < 0.1] = -np.inf
    array = np.resize(array, shape)
    if kind == "probes":
        array *= rng.random(shape, np.float32) < 16 / max(math.prod(shape[1:]), 16)
    return array


def _partition(
    shape: Sequence[int], fed: Fed, dtype: np.dtype[Any], rng: np.random.Generator
) -> tuple[Array, int]:
    """Return a batch of probes; each input element is non-zero in exactly one of them.

    Sums over a few elements have tight bounds: one wrong weight among thousands shows. All
    elements are powers of two, with which a product is exact.
    """
    elements, probes = math.prod(shape[1:]), fed.probes
    owner = rng.permutation(elements) % probes
    values = rng.choice([-1.0, 1.0], size=elements) * rng.choice([0.5, 1.0], size=elements)
    if fed.strong:
        values *= _AMPLITUDE.get(dtype.name, 1.0)
    array = (owner == np.arange(probes)[:, None]) * values
    return array.reshape(probes, *shape[1:]), -(-elements // probes)


def _columns(
    shape: Sequence[int], fed: Fed, dtype: np.dtype[Any], rng: np.random.Generator
) -> tuple[Array, int]:
    """Return probes of one element each, a sample: the bound on what they show is tightest."""
    elements, probes = math.prod(shape[1:]), fed.probes
    array = np.zeros((probes, elements))
    value = _AMPLITUDE.get(dtype.name, 1.0) if fed.strong else 1.0
    array[np.arange(probes), rng.choice(elements, probes, replace=False)] = value
    return array.reshape(probes, *shape[1:]), 1
