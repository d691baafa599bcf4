"""Where a kernel looks, as a view of what it slides over."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphpass.validate.exact.field import Array
from graphpass.validate.exact.number import UnknownError
from graphpass.validate.exact.step import Step


@dataclass(frozen=True)
class Grid:
    """Position p, tap t sees the element stride·p − begin + dilation·t, one of each per axis."""

    taps: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begins: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, step: Step, taps: Sequence[int], sizes: Sequence[int]) -> Grid:
        """Read the attributes of a node over an input of these sizes."""
        axes = len(taps)
        strides = list(step.attribute("strides", [1] * axes))
        dilations = list(step.attribute("dilations", [1] * axes))
        pads = list(step.attribute("pads", [0] * (2 * axes)))
        auto = step.attribute("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            spans = [d * (k - 1) + 1 for d, k in zip(dilations, taps, strict=True)]
            needed = [
                max((-(-n // s) - 1) * s + span - n, 0)
                for n, s, span in zip(sizes, strides, spans, strict=True)
            ]
            less, more = [n // 2 for n in needed], [n - n // 2 for n in needed]
            pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
        elif auto == "VALID":
            pads = [0] * (2 * axes)
        if step.attribute("ceil_mode", 0):
            for axis, size in enumerate(sizes):
                room = (
                    size + pads[axis] + pads[axes + axis] - dilations[axis] * (taps[axis] - 1) - 1
                )
                if room % strides[axis]:
                    raise UnknownError("a pool that reaches beyond its pads")
        return cls(taps, strides, dilations, pads[:axes], pads[axes:])

    def positions(self, sizes: Sequence[int]) -> list[int]:
        """Return how many places the kernel has along each axis."""
        return [
            (n + b + e - d * (k - 1) - 1) // s + 1
            for n, b, e, d, k, s in zip(
                sizes, self.begins, self.ends, self.dilations, self.taps, self.strides, strict=True
            )
        ]

    def patches(self, array: Array, fill: float) -> Array:
        """Return what the kernel sees, [N, C, positions…, taps…]."""
        if any(n < 0 for n in (*self.begins, *self.ends)):
            raise UnknownError("pads that are negative")
        widths = [(0, 0), (0, 0), *zip(self.begins, self.ends, strict=True)]
        padded = (
            np.pad(array, widths, constant_values=fill)
            if any(itertools.chain(self.begins, self.ends))
            else array
        )
        places = self.positions(array.shape[2:])
        if any(count < 1 for count in places):
            raise UnknownError("a kernel that is larger than what it slides over")
        steps = padded.strides
        moves = [step * stride for step, stride in zip(steps[2:], self.strides, strict=True)]
        taps = [step * dilation for step, dilation in zip(steps[2:], self.dilations, strict=True)]
        return np.lib.stride_tricks.as_strided(
            padded,
            (*array.shape[:2], *places, *self.taps),
            (*steps[:2], *moves, *taps),
            writeable=False,
        )
