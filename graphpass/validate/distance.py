"""Distances between arrays: plain functions, no policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from graphpass.validate.process.channel import Array, Value

# Parts smaller than this have a maximum that says little about them; axes longer than that
# would make as many parts.
_MIN_PART_ELEMENTS = 32
_MAX_PARTS = 4096
# ml_dtypes' floats have kind 'V' or 'f', depending on its version; never take them for integers.
_LOW_FLOATS = {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"}


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


def structure_difference(reference: Array | None, candidate: Array | None) -> str:
    """Say in which way one is not of the kind of the other; "" if it is."""
    if reference is None and candidate is None:
        return ""
    if reference is None or candidate is None:
        return f"is {'missing' if candidate is None else 'there, but was not'}"
    if reference.dtype != candidate.dtype:
        return f"has dtype {candidate.dtype} instead of {reference.dtype}"
    if reference.shape != candidate.shape:
        return f"has shape {list(candidate.shape)} instead of {list(reference.shape)}"
    return ""


def identical(one: Array | None, two: Array | None) -> bool:
    """Whether both are the same to the bit."""
    if one is None or two is None:
        return one is two
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.dtype.kind in "OUS":
        return bool((one == two).all())
    return one.tobytes() == two.tobytes()


def is_discrete(array: Array) -> bool:
    """Whether elements are equal or not, without anything between: integers, bools, strings."""
    return array.dtype.kind in "biuOUS" and array.dtype.name not in _LOW_FLOATS


def wide(array: Array) -> Array:
    """Return float64, or complex128."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def classes(array: Array) -> Array:
    """Return 0 for finite elements, 1 for +inf, 2 for -inf, 3 for NaN."""
    found: Array = np.where(np.isnan(array), 3, np.where(np.isinf(array), 1 + (array.real < 0), 0))
    return found


def magnitude(array: Array | None) -> float:
    """Return the largest finite magnitude; 0 for what has none."""
    if array is None or array.size == 0 or array.dtype.kind in "OUSb":
        return 0.0
    values = wide(array)
    return largest(np.abs(values), np.isfinite(values))


def largest(values: Array, where: Array) -> float:
    """Return the largest of the selected values, none of them negative; 0 without any."""
    return float(np.max(values, where=where, initial=0.0))


def difference(one: Array, two: Array, where: Array) -> Array:
    """Return |two - one| where selected, 0 elsewhere."""
    with np.errstate(all="ignore"):
        return np.where(where, np.abs(two - one), 0.0)


def parts(values: Array) -> Iterator[tuple[int, Array]]:
    """Yield (axis, maximum of each slice along it) where slices are large enough to judge.

    Outputs often hold unlike things side by side, coordinates and scores, say. An error that is
    small against the coordinates can be large against the scores.
    """
    for axis, count in enumerate(values.shape):
        if 1 < count <= _MAX_PARTS and values.size // count >= _MIN_PART_ELEMENTS:
            others = tuple(other for other in range(values.ndim) if other != axis)
            yield axis, values.max(axis=others)


def part_name(axis: int, index: int) -> str:
    """Return the slice as numpy writes it: ``[:, 7]``."""
    return f"[{':, ' * axis}{index}]"


def max_relative(delta: Array, reference: Array, where: Array) -> float:
    """Return the largest elementwise delta / |reference|."""
    with np.errstate(all="ignore"):
        return largest(np.nan_to_num(delta / np.abs(reference)), where)


def max_ulps(delta: Array, reference: Array, where: Array) -> float:
    """Return the largest delta in units in the last place of the reference's own dtype."""
    if reference.dtype.kind == "c" or reference.dtype.name.startswith("float8"):
        return 0.0
    with np.errstate(all="ignore"):
        spacing = np.abs(np.spacing(np.abs(reference))).astype(np.float64)
        return largest(np.nan_to_num(delta / spacing), where)


def cosine(one: Array, two: Array, where: Array) -> float:
    """Return the cosine of the angle between the selected elements; 1 for two zero vectors."""
    a: Any = one[where]
    b: Any = two[where]
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norm == 0 or not np.isfinite(norm):
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.abs(np.vdot(a, b)) / norm)


def top1_agreement(reference: Array, candidate: Array) -> float | None:
    """Fraction of rows with the same largest element, where rows look like class scores."""
    if reference.ndim != 2 or reference.shape[1] < 2 or reference.dtype.kind == "c":
        return None
    same: Array = np.argmax(reference, axis=1) == np.argmax(candidate, axis=1)
    return float(np.mean(same))
