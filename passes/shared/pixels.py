"""Do all pixels of a feature map have the same weights in a dense layer?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from graphpass import label, require
from graphpass.ir.refusal import PER_PIXEL

from .affine import Array
from .dense import Dense, FeatureMap

_BLOCK_BYTES = 1 << 22  # weights read at a time


def common_pixel(found: Dense, features: FeatureMap) -> Array:
    """Return the weights [outputs, C, 1, …] that all pixels share, to the bit, or refuse.

    Reads no further than to the first block of weights in which two pixels differ.
    """
    channels, *window = features.sizes
    pixel = np.empty((found.outputs, channels), found.matrix.dtype)
    for outputs, part, first, values in _blocks(found, features):
        if first:
            pixel[outputs, part] = values[..., 0]
        shared = pixel[outputs, part]
        if (_bits(values) != _bits(shared)[..., None]).any():
            kernel = "x".join(map(str, window))
            require(
                False,
                f"the weights of {label(found.layer)} depend on the pixel (relative spread "
                f"{_spread(values, shared):.2g}): gemm-to-conv makes a {kernel} kernel of it",
                PER_PIXEL,
            )
    return pixel.reshape(found.outputs, channels, *[1] * len(window))


def _blocks(found: Dense, features: FeatureMap) -> Iterator[tuple[slice, slice, bool, Array]]:
    """Yield (outputs, channels, whether they come for the first time, [outputs, channels, pixels]).

    Each holds weights that lie together in the file.
    """
    weight, row, order = found.matrix, features.row, features.order
    channels, pixels = features.sizes[0], math.prod(features.sizes[1:])
    everything = slice(None)
    row_bytes = weight.nbytes // weight.shape[0]
    if found.outputs_first:
        for part in _parts(found.outputs, row_bytes):
            values = weight.rows(part).reshape(-1, *row).transpose(0, *(axis + 1 for axis in order))
            yield part, everything, True, values.reshape(-1, channels, pixels)
    elif order[0] == 0:
        for part in _parts(channels, row_bytes * pixels):
            lines = slice(part.start * pixels, part.stop * pixels)
            values = weight.rows(lines).reshape(-1, pixels, found.outputs)
            yield everything, part, True, values.transpose(2, 0, 1)
    else:
        lines_each = found.inputs // row[0]
        for index in range(row[0]):
            lines = slice(index * lines_each, (index + 1) * lines_each)
            values = weight.rows(lines).reshape(*row[1:], found.outputs)
            values = np.moveaxis(values, (-1, order[0] - 1), (0, 1))
            yield everything, everything, index == 0, values.reshape(found.outputs, channels, -1)


def _parts(count: int, bytes_each: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // bytes_each)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _bits(values: Array) -> Array:
    """Return the numbers as integers, so that 0.0 and -0.0 differ and NaN equals itself."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _spread(values: Array, shared: Array) -> float:
    """Return the largest distance between two pixels' weights, relative to the larger of them."""
    both = np.concatenate([values, shared[..., None]], axis=-1).astype(np.float64)
    largest = np.abs(both).max(axis=-1)
    distance = both.max(axis=-1) - both.min(axis=-1)
    return float((distance / np.where(largest > 0, largest, 1)).max())
