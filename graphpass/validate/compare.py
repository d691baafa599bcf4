"""How far outputs are from the original's, and how far they may be.

Distances are relative to the output's scale, its largest finite magnitude in the original: the
rounding errors of a network are proportional to what is summed up, not to the single element
that remains. For integers, booleans and strings the distance is the fraction that differs.

The noise floor of an output is its distance from itself when the original is run with inputs
moved by one ulp, or with ONNX Runtime's optimizations. A rewrite only reorders or merges
arithmetic, so that it may move an output by a small multiple of that, but never needs to be
closer than a base which follows from the precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphpass.validate.channel import Array, Value

# A floor beyond this and the tolerance would let anything pass: the output says nothing.
MAX_NOISE_FLOOR = 0.05
_CLASS_AXIS_MIN = 2


@dataclass(frozen=True)
class OutputComparison:
    """One output on one feed and provider. Distances are relative to `scale`, see the module.

    `error` is at the same time the tolerance that would have been needed. `noise_floor` is None
    where it did not have to be measured. `max_rel_error` is the largest elementwise
    |difference| / |original|, over elements above 1e-3 of the scale; `max_ulps` likewise, in
    units of the output's own dtype. `comparable` is False where the floor exceeds
    `MAX_NOISE_FLOOR` and the outputs are further apart than the base.
    """

    name: str
    provider: str
    feed: str
    dtype: str
    scale: float
    max_abs_error: float
    max_rel_error: float
    error: float
    noise_floor: float | None
    tolerance: float
    max_ulps: float
    cosine: float
    top1_agreement: float | None
    ok: bool
    comparable: bool = True
    reason: str = ""

    @property
    def needed_tolerance(self) -> float:
        """The smallest tolerance with which the comparison would have passed."""
        return self.error


@dataclass(frozen=True)
class Noise:
    """What moved when the original was run again with noise.

    `distance`: as in `OutputComparison.error`. `unstable`: elements that became or ceased to be
    finite (None: none). `structure_changed`: another shape or length, as after NonMaxSuppression.
    """

    distance: float
    unstable: npt.NDArray[np.bool_] | None = None
    structure_changed: bool = False

    def joined(self, other: Noise) -> Noise:
        """Return the worse of both."""
        if self.structure_changed or other.structure_changed:
            return Noise(np.inf, None, True)
        masks = [mask for mask in (self.unstable, other.unstable) if mask is not None]
        mask = None if not masks else np.logical_or.reduce(masks)
        return Noise(max(self.distance, other.distance), mask)


@dataclass(frozen=True)
class Policy:
    """How strict to be: base by dtype name, factor on the floor, or the user's rtol and atol.

    `rtol` is relative to the output's scale, `atol` is absolute; given either, the noise floor
    plays no part.
    """

    base: float
    factor: float = 10.0
    rtol: float | None = None
    atol: float | None = None

    @property
    def fixed(self) -> bool:
        """Whether the user has set the tolerance."""
        return self.rtol is not None or self.atol is not None

    def tolerance(self, floor: float, scale: float, *, discrete: bool) -> float:
        """Return the tolerance relative to `scale`."""
        if self.fixed:
            absolute = (self.atol or 0.0) / scale if scale else 0.0
            return (self.rtol or 0.0) + absolute
        return max(0.0 if discrete else self.base, self.factor * floor)


def leaves(outputs: Mapping[str, Value]) -> dict[str, Array | None]:
    """Flatten sequences and maps: ``y[0]``, ``y[key]``; an empty optional is None."""
    flat: dict[str, Array | None] = {}
    for name, value in outputs.items():
        if isinstance(value, list):
            flat[f"len({name})"] = np.array(len(value))
            flat.update(leaves({f"{name}[{index}]": item for index, item in enumerate(value)}))
        elif isinstance(value, Mapping):
            flat.update(leaves({f"{name}[{key}]": np.asarray(v) for key, v in value.items()}))
        else:
            flat[name] = value
    return flat


def measure_noise(reference: Mapping[str, Value], again: Mapping[str, Value]) -> dict[str, Noise]:
    """Measure how far each leaf of `again` is from that of `reference`."""
    first, second = leaves(reference), leaves(again)
    return {name: _noise(array, second.get(name)) for name, array in first.items()}


def _noise(reference: Array | None, again: Array | None) -> Noise:
    if _structure_difference(reference, again):
        return Noise(np.inf, None, True)
    if reference is None or again is None or reference.size == 0:
        return Noise(0.0)
    if _is_discrete(reference):
        return Noise(float(np.mean(reference != again)))
    one, two = _wide(reference), _wide(again)
    unstable = _class_of_elements(one) != _class_of_elements(two)
    finite = np.isfinite(one) & np.isfinite(two)
    scale = _scale(one)
    distance = _max_abs(one, two, finite) / (scale or 1.0)
    return Noise(distance, unstable if unstable.any() else None)


def compare_leaf(
    name: str,
    reference: Array | None,
    candidate: Array | None,
    *,
    noise: Noise | None,
    policy: Policy,
    fallback_scale: float,
    provider: str,
    feed: str,
) -> OutputComparison:
    """Compare one leaf. `fallback_scale` stands in where the original is zero throughout."""
    make = _Maker(name, provider, feed, "none" if reference is None else reference.dtype.name)
    problem = _structure_difference(reference, candidate)
    if problem:
        unsteady = noise is not None and noise.structure_changed
        return make.structural(problem, comparable=not unsteady)
    if reference is None or candidate is None or reference.size == 0:
        return make.equal()
    if noise is not None and noise.structure_changed:
        noise = None
    if _is_discrete(reference):
        return _compare_discrete(make, reference, candidate, noise, policy)
    return _compare_floats(make, reference, candidate, noise, policy, fallback_scale)


@dataclass(frozen=True)
class _Maker:
    """Makes comparisons that share name, provider, feed and dtype."""

    name: str
    provider: str
    feed: str
    dtype: str

    def make(self, **figures: Any) -> OutputComparison:
        neutral: dict[str, Any] = {
            "scale": 0.0,
            "max_abs_error": 0.0,
            "max_rel_error": 0.0,
            "error": 0.0,
            "noise_floor": None,
            "tolerance": 0.0,
            "max_ulps": 0.0,
            "cosine": 1.0,
            "top1_agreement": None,
            "ok": True,
        }
        return OutputComparison(
            self.name, self.provider, self.feed, self.dtype, **{**neutral, **figures}
        )

    def equal(self) -> OutputComparison:
        return self.make()

    def structural(self, problem: str, *, comparable: bool = True) -> OutputComparison:
        return self.make(error=np.inf, ok=False, reason=problem, comparable=comparable)


def _structure_difference(reference: Array | None, candidate: Array | None) -> str:
    if reference is None and candidate is None:
        return ""
    if reference is None or candidate is None:
        return "is there on one side only"
    if reference.dtype != candidate.dtype:
        return f"has dtype {candidate.dtype} instead of {reference.dtype}"
    if reference.shape != candidate.shape:
        return f"has shape {list(candidate.shape)} instead of {list(reference.shape)}"
    return ""


def _compare_discrete(
    make: _Maker, reference: Array, candidate: Array, noise: Noise | None, policy: Policy
) -> OutputComparison:
    error = float(np.mean(reference != candidate))
    floor = noise.distance if noise is not None else None
    tolerance = policy.tolerance(floor or 0.0, 1.0, discrete=True)
    if policy.fixed:
        tolerance = 0.0
    too_noisy = floor is not None and floor > MAX_NOISE_FLOOR and error > 0
    return make.make(
        scale=1.0,
        max_abs_error=_max_integer_difference(reference, candidate),
        error=error,
        noise_floor=floor,
        tolerance=tolerance,
        top1_agreement=1.0 - error if error else None,
        ok=error <= tolerance and not too_noisy,
        comparable=not too_noisy,
        reason="" if error <= tolerance else f"differs in {error:.2%} of its elements",
    )


def _compare_floats(
    make: _Maker,
    reference: Array,
    candidate: Array,
    noise: Noise | None,
    policy: Policy,
    fallback_scale: float,
) -> OutputComparison:
    one, two = _wide(reference), _wide(candidate)
    classes = _class_of_elements(one)
    misplaced = classes != _class_of_elements(two)
    if noise is not None and noise.unstable is not None:
        misplaced &= ~noise.unstable
    finite = np.isfinite(one) & np.isfinite(two)
    scale = _scale(one) or fallback_scale
    max_abs = _max_abs(one, two, finite)
    error = np.inf if misplaced.any() else max_abs / scale
    floor = noise.distance if noise is not None else None
    tolerance = policy.tolerance(floor or 0.0, scale, discrete=False)
    too_noisy = not policy.fixed and floor is not None and floor > MAX_NOISE_FLOOR
    too_noisy = too_noisy and error > policy.base
    large = finite & (np.abs(one) > 1e-3 * scale)
    return make.make(
        scale=scale,
        max_abs_error=max_abs,
        max_rel_error=_max(np.abs(two - one), np.abs(one), large),
        error=error,
        noise_floor=floor,
        tolerance=tolerance,
        max_ulps=_max_ulps(reference, one, two, large),
        cosine=_cosine(one, two, finite),
        top1_agreement=_top1_agreement(reference, candidate),
        ok=error <= tolerance and not too_noisy,
        comparable=not too_noisy,
        reason=_float_reason(misplaced, error, tolerance),
    )


def _float_reason(misplaced: Array, error: float, tolerance: float) -> str:
    if misplaced.any():
        return f"has NaN or infinity in other places ({int(misplaced.sum())} elements)"
    if error > tolerance:
        return f"differs by {error:.2g} of its scale"
    return ""


def _is_discrete(array: Array) -> bool:
    return array.dtype.kind in "biuOUS" and array.dtype.name not in _LOW_FLOATS


# ml_dtypes' floats have kind 'V' or 'f', depending on its version; never take them for integers.
_LOW_FLOATS = {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"}


def _wide(array: Array) -> Array:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _class_of_elements(array: Array) -> Array:
    """Return 0 for finite elements, 1 for +inf, 2 for -inf, 3 for NaN."""
    real = array.real
    classes: Array = np.where(np.isnan(array), 3, np.where(np.isinf(array), 1 + (real < 0), 0))
    return classes


def _scale(array: Array) -> float:
    return _max(np.abs(array), np.ones(()), np.isfinite(array))


def _max_abs(one: Array, two: Array, where: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return _max(np.abs(two - one), np.ones(()), where)


def _max(numerator: Array, denominator: Array, where: Array) -> float:
    if not where.any():
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.max(numerator / denominator, where=where, initial=0.0))


def _max_integer_difference(one: Array, two: Array) -> float:
    if one.dtype.kind not in "iub":
        return 0.0
    return float(np.max(np.abs(one.astype(np.float64) - two.astype(np.float64))))


def _max_ulps(reference: Array, one: Array, two: Array, where: Array) -> float:
    if reference.dtype.kind == "c" or reference.dtype.name.startswith("float8"):
        return 0.0
    with np.errstate(all="ignore"):
        spacing = np.abs(np.spacing(np.abs(reference))).astype(np.float64)
        return _max(np.abs(two - one), spacing, where)


def _cosine(one: Array, two: Array, where: Array) -> float:
    a, b = one[where], two[where]
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norm == 0 or not np.isfinite(norm):
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.abs(np.vdot(a, b)) / norm) if a.dtype.kind == "c" else float(a @ b / norm)


def _top1_agreement(reference: Array, candidate: Array) -> float | None:
    """Fraction of rows with the same largest element, where the output looks like class scores."""
    if reference.ndim != 2 or reference.shape[1] < _CLASS_AXIS_MIN or reference.dtype.kind == "c":
        return None
    same: Array = np.argmax(reference, axis=1) == np.argmax(candidate, axis=1)
    return float(np.mean(same))
