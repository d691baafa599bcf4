"""Windows with heavy weights: one side after the other is in memory, and no copy of its weights.

The bound on a sum takes the magnitudes of all weights, a copy of them. Instead the largest output
of a channel stands for the sizes of its sums, which it never exceeds: what is within that much is
within the bound of the channel's largest element. On zeros, where a mean and a shift may cancel,
that on normal inputs does. Where a window is not within it, as it may be where sums cancel on every
input, it is looked at as all others are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphpass.rewrite.window import WindowVerdict
from graphpass.validate.process.channel import Array
from graphpass.validate.process.runtime import Runtime
from graphpass.validate.window.bounds import judge
from graphpass.validate.window.feeds import Draws
from graphpass.validate.window.joined import Side, joined
from graphpass.validate.window.prepare import Prepared

HEAVY_BYTES = 96 << 20  # of the weights of both sides
_KINDS = ("normal", "zeros", "probes")
_SIDES: tuple[Side, ...] = ("before", "after")


def is_heavy(item: Prepared) -> bool:
    """Whether a window has so many weights, and a bound that takes a copy of them."""
    return item.weight_bytes > HEAVY_BYTES and item.magnitudes is not None


def acquits(item: Prepared, runtime: Runtime, draws: Draws) -> bool:
    """Compare a window's sides on fewer inputs by a tighter bound; False for a closer look.

    Raises RunError.
    """
    drawn = [draws.of(item, kind) for kind in _KINDS]
    found: dict[Side, list[Array]] = {}
    for side in _SIDES:
        name = f"{item.mark}{side}/{item.window.output}"
        model = joined([item], [item], (side,), bounded=False)
        with runtime.load(model, whole=True) as session:
            feeds = [{item.mark + n: array for n, array in draw.values.items()} for draw in drawn]
            found[side] = [np.asarray(session.run(feed).outputs[name]) for feed in feeds]
    size = dict(zip(_KINDS, map(_size_of_channels, found["before"]), strict=True))
    size["zeros"] = np.maximum(size["zeros"], size["normal"])
    for draw, before, after in zip(drawn, found["before"], found["after"], strict=True):
        judge(item, draw, before, after, size[draw.kind])
    if item.verdict.ok:
        item.verdict = replace(item.verdict, bound="norm")
        return True
    item.verdict = WindowVerdict("ok")
    return False


def _size_of_channels(array: Array) -> Array:
    """Return the largest magnitude of an element's channel, along the second or the last axis."""
    magnitudes = np.abs(array.astype(np.float64))
    if array.ndim < 2:
        return np.full(array.shape, magnitudes.max(initial=0.0))
    second = magnitudes.max(axis=(0, *range(2, array.ndim)), keepdims=True)
    last = magnitudes.max(axis=tuple(range(array.ndim - 1)), keepdims=True)
    return np.broadcast_to(np.minimum(second, last), array.shape)
