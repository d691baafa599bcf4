"""How far outputs are from the original's, and how far they may be.

Distances are relative to the output's scale, its largest finite magnitude in the original: the
rounding errors of a network are proportional to what is summed up, not to the single element
that remains. Slices of an output that have a scale of their own are measured by that, too. For
integers, booleans and strings the distance is the fraction of elements that differ.

The noise floor of an output is its distance from itself when the original is run with inputs
moved by one ulp, or with ONNX Runtime's optimizations. A rewrite only reorders or merges
arithmetic, so that it may move an output by a small multiple of that, but never needs to be
closer than a base which follows from the precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from graphpass.validate.distance import (
    classes,
    cosine,
    difference,
    identical,
    is_discrete,
    largest,
    leaves,
    magnitude,
    max_relative,
    max_ulps,
    part_name,
    parts,
    structure_difference,
    top1_agreement,
    wide,
)
from graphpass.validate.process.channel import Array, Value

# With a floor beyond this, the tolerance would let anything pass: the output says nothing.
MAX_NOISE_FLOOR = 0.05
# A slice may hold the remains of a cancellation of larger numbers; it gets more room.
_PART_SLACK = 8.0
# Slices whose scales are within this factor hold the same kind of thing.
_SAME_KIND = 4.0


@dataclass(frozen=True)
class OutputComparison:
    """One output on one feed and provider.

    `scale`, `error`, `noise_floor`, `tolerance` belong together: to the whole output, or to the
    slice `part` (``[:, 7]``) that came closest to its tolerance. `error`, `noise_floor` and
    `tolerance` are relative to `scale`. `error` is at the same time the tolerance that would
    have been needed. `noise_floor` is None where it did not have to be measured.

    `max_abs_error`, `max_rel_error`, `max_ulps`, `cosine` are of the whole output;
    `max_rel_error` (elementwise, relative to the element) and `max_ulps` (in units of the
    output's own dtype) leave out elements below 1e-3 of its scale.

    `comparable` is False where the floor exceeds `MAX_NOISE_FLOOR` and would excuse the error.
    `blank`: the original is NaN throughout, or has no elements, which says nothing.
    """

    name: str
    provider: str
    feed: str
    dtype: str = "none"
    part: str = ""
    scale: float = 0.0
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    error: float = 0.0
    noise_floor: float | None = None
    tolerance: float = 0.0
    max_ulps: float = 0.0
    cosine: float = 1.0
    top1_agreement: float | None = None
    ok: bool = True
    comparable: bool = True
    blank: bool = False
    reason: str = ""

    @property
    def needed_tolerance(self) -> float:
        """The smallest tolerance with which the comparison would have passed."""
        return self.error


@dataclass(frozen=True)
class Noise:
    """What moved when the original was run again with noise, in the output's own unit.

    `distance`: the largest movement, or the fraction of elements that changed. `parts`: by axis,
    the largest in each slice. `unstable`: elements that became or ceased to be finite (None:
    none). `structure_changed`: another shape or length, as after NonMaxSuppression.
    """

    distance: float = 0.0
    parts: Mapping[int, Array] = field(default_factory=dict)
    unstable: Array | None = None
    structure_changed: bool = False

    def joined(self, other: Noise) -> Noise:
        """Return the worse of both."""
        if self.structure_changed or other.structure_changed:
            return Noise(structure_changed=True)
        masks = [mask for mask in (self.unstable, other.unstable) if mask is not None]
        return Noise(
            max(self.distance, other.distance),
            {axis: np.maximum(found, other.parts[axis]) for axis, found in self.parts.items()},
            np.logical_or.reduce(masks) if masks else None,
        )


@dataclass(frozen=True)
class Policy:
    """How strict to be: a base, a factor on the noise floor, or the user's rtol and atol.

    `base` and `rtol` are relative to the output's scale, `atol` is absolute. Given rtol or atol,
    the noise floor plays no part, nor do slices.
    """

    base: float
    factor: float = 10.0
    rtol: float | None = None
    atol: float | None = None

    @property
    def fixed(self) -> bool:
        """Whether the user has set the tolerance."""
        return self.rtol is not None or self.atol is not None

    def tolerance(self, scale: float, floor: float, slack: float = 1.0) -> float:
        """Return the tolerance relative to `scale`; `floor` is relative, too."""
        if self.fixed:
            return (self.rtol or 0.0) + (self.atol or 0.0) / scale
        return max(self.base * slack, self.factor * floor)


@dataclass(frozen=True)
class Place:
    """Which output, where: what a comparison is labelled with."""

    name: str
    provider: str
    feed: str


def measure_noise(reference: Mapping[str, Value], again: Mapping[str, Value]) -> dict[str, Noise]:
    """Measure how far each leaf of `again` is from that of `reference`."""
    first, second = leaves(reference), leaves(again)
    return {name: _noise(array, second.get(name)) for name, array in first.items()}


def _noise(reference: Array | None, again: Array | None) -> Noise:
    if structure_difference(reference, again):
        return Noise(structure_changed=True)
    if reference is None or again is None or reference.size == 0:
        return Noise()
    if is_discrete(reference):
        return Noise(float(np.mean(reference != again)))
    one, two = wide(reference), wide(again)
    delta = difference(one, two, np.isfinite(one) & np.isfinite(two))
    unstable = classes(one) != classes(two)
    return Noise(float(delta.max()), dict(parts(delta)), unstable if unstable.any() else None)


def compare_leaf(
    place: Place,
    reference: Array | None,
    candidate: Array | None,
    *,
    noise: Noise | None,
    policy: Policy,
    fallback_scale: Callable[[], float],
) -> OutputComparison:
    """Compare one leaf. `fallback_scale` is asked where the original is zero throughout."""
    label = (place.name, place.provider, place.feed)
    problem = structure_difference(reference, candidate)
    if problem:
        excused = noise is not None and noise.structure_changed
        return OutputComparison(
            *label, error=np.inf, ok=False, comparable=not excused, reason=problem
        )
    if reference is None or candidate is None:
        return OutputComparison(*label)
    if reference.size == 0:
        return OutputComparison(*label, dtype=reference.dtype.name, blank=True)
    if noise is not None and noise.structure_changed:
        noise = None
    if is_discrete(reference):
        return _compare_discrete(place, reference, candidate, noise, policy)
    return _compare_floats(place, reference, candidate, noise, policy, fallback_scale)


def _compare_discrete(
    place: Place, reference: Array, candidate: Array, noise: Noise | None, policy: Policy
) -> OutputComparison:
    error = float(np.mean(reference != candidate))
    floor = None if noise is None else noise.distance
    tolerance = 0.0 if policy.fixed or floor is None else policy.factor * floor
    comparable = error == 0 or floor is None or floor <= MAX_NOISE_FLOOR
    numbers = reference.dtype.kind in "iub"
    return OutputComparison(
        place.name,
        place.provider,
        place.feed,
        reference.dtype.name,
        scale=1.0,
        max_abs_error=float(np.abs(wide(reference) - wide(candidate)).max()) if numbers else 0.0,
        error=error,
        noise_floor=floor,
        tolerance=tolerance,
        top1_agreement=1.0 - error if reference.dtype.kind in "iu" else None,
        ok=error <= tolerance and comparable,
        comparable=comparable,
        reason=f"differs in {error:.2%} of its elements" if error > tolerance else "",
    )


@dataclass(frozen=True)
class _Part:
    """The figures of the whole output, or of one slice."""

    name: str
    scale: float
    error: float
    floor: float | None
    tolerance: float

    @property
    def urgency(self) -> float:
        """How close to the tolerance; beyond 1 it is exceeded."""
        if self.tolerance == 0:
            return np.inf if self.error > 0 else 0.0
        return self.error / self.tolerance


def _compare_floats(
    place: Place,
    reference: Array,
    candidate: Array,
    noise: Noise | None,
    policy: Policy,
    fallback_scale: Callable[[], float],
) -> OutputComparison:
    if identical(reference, candidate):
        return _equal(place, reference, noise, policy, fallback_scale)
    one, two = wide(reference), wide(candidate)
    misplaced = classes(one) != classes(two)
    if noise is not None and noise.unstable is not None:
        misplaced &= ~noise.unstable
    both_finite = np.isfinite(one) & np.isfinite(two)
    delta = difference(one, two, both_finite)
    sizes = np.where(np.isfinite(one), np.abs(one), 0.0)
    worst = max(
        _measured_parts(sizes, delta, noise, policy, fallback_scale), key=lambda p: p.urgency
    )
    excess = worst.error > worst.tolerance
    # Too noisy to judge, unless it is as close as any output must be, or off beyond all noise.
    noisy = not policy.fixed and (worst.floor or 0.0) > MAX_NOISE_FLOOR
    comparable = bool(misplaced.any()) or excess or worst.error <= policy.base or not noisy
    reason = _reason(int(misplaced.sum()), worst, excess)
    large = both_finite & (sizes > 1e-3 * worst.scale)
    return OutputComparison(
        place.name,
        place.provider,
        place.feed,
        reference.dtype.name,
        part=worst.name,
        scale=worst.scale,
        max_abs_error=float(delta.max()),
        max_rel_error=max_relative(delta, one, large),
        error=np.inf if misplaced.any() else worst.error,
        noise_floor=worst.floor,
        tolerance=worst.tolerance,
        max_ulps=max_ulps(delta, reference, large),
        cosine=cosine(one, two, both_finite),
        top1_agreement=top1_agreement(reference, candidate),
        ok=not reason and comparable,
        comparable=comparable,
        blank=bool(np.isnan(one).all()),
        reason=reason,
    )


def _equal(
    place: Place,
    array: Array,
    noise: Noise | None,
    policy: Policy,
    fallback_scale: Callable[[], float],
) -> OutputComparison:
    scale = magnitude(array) or fallback_scale()
    floor = None if noise is None else noise.distance / scale
    return OutputComparison(
        place.name,
        place.provider,
        place.feed,
        array.dtype.name,
        scale=scale,
        noise_floor=floor,
        tolerance=policy.tolerance(scale, floor or 0.0),
        top1_agreement=top1_agreement(array, array),
        blank=bool(np.isnan(wide(array)).all()),
    )


def _measured_parts(
    sizes: Array,
    delta: Array,
    noise: Noise | None,
    policy: Policy,
    fallback_scale: Callable[[], float],
) -> Iterator[_Part]:
    """Yield the whole output, then the worst slice along each axis that has slices."""
    everywhere = np.ones(sizes.shape, dtype=bool)
    scale = largest(sizes, everywhere) or fallback_scale()
    floor = None if noise is None else noise.distance / scale
    tolerance = policy.tolerance(scale, floor or 0.0)
    yield _Part("", scale, largest(delta, everywhere) / scale, floor, tolerance)
    if policy.fixed:
        return
    for (axis, scales), (_, errors) in zip(parts(sizes), parts(delta), strict=True):
        floors = np.zeros_like(scales) if noise is None else _pooled(noise.parts[axis], scales)
        room = np.maximum(policy.base * _PART_SLACK * scales, policy.factor * floors)
        with np.errstate(all="ignore"):
            urgencies = np.where(scales > 0, errors / room, 0.0)
        index = int(np.argmax(urgencies))
        own = float(scales[index])
        if own > 0:
            floor = None if noise is None else float(floors[index]) / own
            tolerance = policy.tolerance(own, floor or 0.0, _PART_SLACK)
            yield _Part(part_name(axis, index), own, float(errors[index]) / own, floor, tolerance)


def _pooled(movements: Array, scales: Array) -> Array:
    """Let each slice move as far as any of its kind did: at most four times its scale.

    A few draws of noise may leave a slice in peace by chance; not all of its kind.
    """
    order = np.argsort(scales)
    reach = np.searchsorted(scales[order], _SAME_KIND * scales, side="right")
    pooled: Array = np.maximum.accumulate(movements[order])[reach - 1]
    return pooled


def _reason(misplaced: int, worst: _Part, excess: bool) -> str:
    if misplaced:
        return f"has NaN or infinity in other places ({misplaced} elements)"
    if excess:
        where = f" in {worst.name}" if worst.name else ""
        return f"differs by {worst.error:.2g} of its scale{where}"
    return ""
