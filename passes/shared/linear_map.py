"""Linear maps of channels, each with the kernel of a convolution; their sums and compositions.

Pure arithmetic on numbers. A matrix product is the case without spatial axes, a normalization, an
average or the input itself that of one channel to each group. Weights are computed row by row in
float64 when they are asked for and rounded once, so that no large weight is held twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from graphpass import require

from .affine import Array, Floats, limits, rounded

Sizes = tuple[int, ...]
_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class Grid:
    """Where a kernel looks: position p, tap t sees the element stride·p − begin + dilation·t.

    One number for each spatial axis. Beyond its edges the input is 0.
    """

    taps: Sizes
    begins: Sizes
    ends: Sizes
    strides: Sizes
    dilations: Sizes

    @property
    def pads(self) -> bool:
        """Whether anything lies beyond the edges."""
        return any((*self.begins, *self.ends))

    @property
    def spans(self) -> Sizes:
        """How far the last tap is from the first."""
        return tuple(d * (k - 1) for d, k in zip(self.dilations, self.taps, strict=True))

    @property
    def growth(self) -> Sizes:
        """By how much there are more positions than elements, where the stride is 1."""
        edges = zip(self.begins, self.ends, self.spans, strict=True)
        return tuple(begin + end - span for begin, end, span in edges)

    @staticmethod
    def point(axes: int) -> Grid:
        """Return the grid that sees each element alone."""
        ones, zeros = (1,) * axes, (0,) * axes
        return Grid(ones, zeros, zeros, ones, ones)


@dataclass(frozen=True)
class LinearMap:
    """y[o, p] = Σ W[o, i, t]·x[i, place of tap t at p] + bias[o], inputs counted in their group.

    `rows` returns those of W for a slice of the outputs, [outputs, inputs of a group, *taps] in
    float64. `multiplications` for one position and `parameters` are those of the operators that
    it was read from. `name` is for sentences.
    """

    name: str
    outputs: int
    inputs: int
    group: int
    grid: Grid
    rows: Callable[[slice], Floats]
    bias: Floats | None
    multiplications: int
    parameters: int

    @property
    def elements(self) -> int:
        """How many weights it has, which are multiplications for one position, too."""
        return self.outputs * (self.inputs // self.group) * math.prod(self.grid.taps)

    @property
    def adds(self) -> bool:
        """Whether any bias differs from 0."""
        return self.bias is not None and bool((self.bias != 0).any())

    @property
    def is_diagonal(self) -> bool:
        """Whether each output is one input element, scaled and shifted."""
        own = self.group == self.inputs == self.outputs
        return own and self.grid == Grid.point(len(self.grid.taps))

    def within(self, group: int, block: slice) -> Floats:
        """Return rows as of a map of fewer groups, zeros where those of its own do not look."""
        held = self.rows(block)
        if group == self.group:
            return held
        own, wide = self.inputs // self.group, self.inputs // group
        made = np.zeros((len(held), wide, *self.grid.taps))
        row = np.arange(block.start, block.start + len(held))
        first = row // (self.outputs // self.group) * own - row // (self.outputs // group) * wide
        made[np.arange(len(held))[:, None], first[:, None] + np.arange(own)] = held
        return made


def diagonal(name: str, factor: Floats, shift: Floats | None, axes: int, stored: int) -> LinearMap:
    """Return factor·x + shift; `stored`: how many numbers the model holds for it."""
    size = len(factor)
    shape = (-1, 1, *[1] * axes)
    return LinearMap(
        name,
        size,
        size,
        size,
        Grid.point(axes),
        lambda block: factor[block].reshape(shape),
        shift,
        size if stored else 0,
        stored,
    )


def average(name: str, channels: int, grid: Grid) -> LinearMap:
    """Return the mean over the taps, of which those beyond the edges count as zeros."""
    share = 1 / math.prod(grid.taps)
    return LinearMap(
        name,
        channels,
        channels,
        channels,
        grid,
        lambda block: np.full((len(range(channels)[block]), 1, *grid.taps), share),
        None,
        0,
        0,
    )


# ----------------------------------------------------------------------------------------- sums


def added(one: LinearMap, other: LinearMap, signs: tuple[float, float] = (1, 1)) -> LinearMap:
    """Return the map that is ±one ± other, by `signs`, which may be other factors.

    Refuses where that is no such map.
    """
    names = f"{one.name} and {other.name}"
    require(
        (one.outputs, one.inputs) == (other.outputs, other.inputs),
        f"{one.name} makes {one.outputs} channels of {one.inputs}, {other.name} makes "
        f"{other.outputs} of {other.inputs}",
    )
    grid = _joint_grid(one, other, names)
    group = math.gcd(one.group, other.group)
    parts = list(zip((one, other), signs, strict=True))

    def rows(block: slice) -> Floats:
        count = len(range(one.outputs)[block])
        total = np.zeros((count, one.inputs // group, *grid.taps))
        for part, sign in parts:
            places = (slice(None), slice(None), *_taps_of(part.grid, grid))
            total[places] += sign * part.within(group, block)
        return total

    biases = [sign * part.bias for part, sign in parts if part.bias is not None]
    return LinearMap(
        names,
        one.outputs,
        one.inputs,
        group,
        grid,
        rows,
        reduce(np.add, biases) if biases else None,
        one.multiplications + other.multiplications,
        one.parameters + other.parameters,
    )


def _joint_grid(one: LinearMap, other: LinearMap, names: str) -> Grid:
    """Return the grid that has all taps of both."""
    a, b = one.grid, other.grid
    require(
        a.strides == b.strides,
        f"{names} move by strides {list(a.strides)} and {list(b.strides)}",
    )
    dilations = []
    for axis, (k, m) in enumerate(zip(a.taps, b.taps, strict=True)):
        apart = {g.dilations[axis] for g, taps in ((a, k), (b, m)) if taps > 1}
        require(
            len(apart) < 2,
            f"{names} have dilations {list(a.dilations)} and {list(b.dilations)}",
        )
        dilations.append(next(iter(apart), 1))
    require(
        a.growth == b.growth,
        f"{names} pad so differently that their results may differ in size",
    )
    begins = tuple(map(max, a.begins, b.begins))
    ends = tuple(map(max, a.ends, b.ends))
    spans = [x + y - z for x, y, z in zip(begins, ends, a.growth, strict=True)]
    offsets = [abs(x - y) for x, y in zip(a.begins, b.begins, strict=True)]
    require(
        all(far % d == 0 for far, d in zip(offsets, dilations, strict=True)),
        f"the taps of {names} do not lie on one grid",
    )
    taps = tuple(span // d + 1 for span, d in zip(spans, dilations, strict=True))
    return Grid(taps, begins, ends, a.strides, tuple(dilations))


def _taps_of(part: Grid, whole: Grid) -> Iterator[slice]:
    """Yield where the taps of `part` are among those of `whole`, axis by axis."""
    for begin, taps, first, step in zip(
        part.begins, part.taps, whole.begins, whole.dilations, strict=True
    ):
        start = (first - begin) // step
        yield slice(start, start + taps)


# --------------------------------------------------------------------------------- compositions


def composed(outer: LinearMap, inner: LinearMap) -> LinearMap:
    """Return the map that is `outer` of `inner`. Refuses where that is no such map.

    A position that `outer` pads is 0. Were it computed, it would be the bias of `inner`, and, if
    the kernel of `inner` reaches back to the input, more: both have to be nothing.
    """
    grid = _composed_grid(outer, inner)
    require(
        not (outer.grid.pads and inner.adds),
        f"{outer.name} pads with zeros, which the bias of {inner.name} does not reach",
    )
    group = math.gcd(outer.group, inner.group)
    bias = outer.bias
    if inner.bias is not None:
        raised = np.concatenate(
            [_raised(outer, inner.bias, block) for block in blocks(outer.outputs, outer.elements)]
        )
        bias = raised if bias is None else bias + raised

    def rows(block: slice) -> Floats:
        if outer.is_diagonal:
            factor = outer.rows(block).reshape(-1, *[1] * (1 + len(grid.taps)))
            return factor * inner.rows(block)
        return _product(outer, inner, grid, group, block)

    return LinearMap(
        f"{outer.name} of {inner.name}",
        outer.outputs,
        inner.inputs,
        inner.group if outer.is_diagonal else group,
        grid,
        rows,
        bias,
        outer.multiplications + inner.multiplications,
        outer.parameters + inner.parameters,
    )


def _raised(outer: LinearMap, bias: Floats, block: slice) -> Floats:
    """Return what `outer` makes of an input that is `bias` everywhere, its own bias left out."""
    held = outer.rows(block).sum(axis=tuple(range(2, 2 + len(outer.grid.taps))))
    own = outer.inputs // outer.group
    row = np.arange(block.start, block.start + len(held))
    seen = row[:, None] // (outer.outputs // outer.group) * own + np.arange(own)
    raised: Floats = (held * bias[seen]).sum(axis=1)
    return raised


def _composed_grid(outer: LinearMap, inner: LinearMap) -> Grid:
    a, b = outer.grid, inner.grid
    for axis in range(len(a.taps)):
        alone = b.taps[axis] == 1 and not b.begins[axis] and not b.ends[axis]
        require(
            alone or not (a.begins[axis] or a.ends[axis]),
            f"{outer.name} pads the result of {inner.name} with zeros",
        )
    steps = tuple(d * s for d, s in zip(a.dilations, b.strides, strict=True))
    taps, dilations = [], []
    for axis, (k, m) in enumerate(zip(a.taps, b.taps, strict=True)):
        apart = [step for step, count in ((steps[axis], k), (b.dilations[axis], m)) if count > 1]
        dilations.append(math.gcd(*apart) if apart else 1)
        span = steps[axis] * (k - 1) + b.dilations[axis] * (m - 1)
        taps.append(span // dilations[axis] + 1)
    return Grid(
        tuple(taps),
        tuple(p * s + q for p, s, q in zip(a.begins, b.strides, b.begins, strict=True)),
        tuple(p * s + q for p, s, q in zip(a.ends, b.strides, b.ends, strict=True)),
        tuple(s * r for s, r in zip(a.strides, b.strides, strict=True)),
        tuple(dilations),
    )


def _product(outer: LinearMap, inner: LinearMap, grid: Grid, group: int, block: slice) -> Floats:
    """Return rows of the composition, in `group` groups."""
    block = slice(block.start, min(block.stop, outer.outputs))
    made = np.zeros((block.stop - block.start, inner.inputs // group, *grid.taps))
    size, between = outer.outputs // group, inner.outputs // group
    for index in range(block.start // size, -(-block.stop // size)):
        rows = slice(max(block.start, index * size), min(block.stop, (index + 1) * size))
        last = outer.within(group, rows)
        first = inner.within(group, slice(index * between, (index + 1) * between))
        part = made[rows.start - block.start : rows.stop - block.start]
        for tap in np.ndindex(*outer.grid.taps):
            seen = (slice(None), slice(None), *tap)
            places = (slice(None), slice(None), *_places(tap, outer.grid, inner.grid, grid))
            part[places] += np.tensordot(last[seen], first, axes=1)
    return made


def _places(tap: Sizes, a: Grid, b: Grid, whole: Grid) -> Iterator[slice]:
    """Yield where the taps of `b` are that one tap of `a` sees, axis by axis."""
    for axis, index in enumerate(tap):
        unit, count = whole.dilations[axis], b.taps[axis]
        step = b.dilations[axis] // unit if count > 1 else 1
        start = index * a.dilations[axis] * b.strides[axis] // unit
        yield slice(start, start + step * (count - 1) + 1, step)


# ------------------------------------------------------------------------------------- numbers


def blocks(outputs: int, elements: int) -> Iterator[slice]:
    """Cut the outputs of a map so that each piece has about `_BLOCK_ELEMENTS` weights."""
    count = max(1, _BLOCK_ELEMENTS * outputs // max(elements, 1))
    for start in range(0, outputs, count):
        yield slice(start, min(start + count, outputs))


def weight_of_map(linear: LinearMap, dtype: np.dtype[Any], *, columns: bool = False) -> Array:
    """Return the weights rounded to `dtype`, [outputs, …], or, as `columns`, [inputs, outputs].

    Refuses what is not finite, and what loses more than rounding.
    """
    shape = (linear.outputs, linear.inputs // linear.group, *linear.grid.taps)
    made: Array = np.empty(shape[1::-1] if columns else shape, dtype)
    roundoff = float(limits(dtype).eps) / 2
    for block in blocks(linear.outputs, linear.elements):
        exact = linear.rows(block)
        with np.errstate(all="ignore"):
            part = exact.astype(dtype)
        require(
            np.isfinite(exact).all(),
            f"the weights of {linear.name} hold values that are not finite",
        )
        require(np.isfinite(part).all(), f"the sum of {linear.name} overflows {dtype}")
        if dtype.itemsize < 4:
            axes = tuple(range(1, exact.ndim))
            lost = np.abs(part.astype(np.float64) - exact).max(axis=axes)
            require(
                (lost <= roundoff * np.abs(exact).max(axis=axes)).all(),
                f"merging {linear.name} makes weights so small that {dtype} loses their digits",
            )
        if columns:
            made[:, block] = part.T
        else:
            made[block] = part
    return made


def bias_of_map(linear: LinearMap, dtype: np.dtype[Any]) -> Array | None:
    """Return the bias rounded to `dtype`; None where there is none. Refuses what overflows."""
    if linear.bias is None:
        return None
    return rounded(linear.bias, dtype, f"the bias of {linear.name}")
