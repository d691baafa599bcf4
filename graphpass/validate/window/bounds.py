"""Whether a window's two sides are as close as their rounding errors allow, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphpass.rewrite.window import WindowVerdict
from graphpass.validate.process.channel import Array
from graphpass.validate.window.feeds import Draw
from graphpass.validate.window.prepare import Prepared, picks_otherwise

# Beyond what before and after round: the fold rounds each weight, and weights of its own.
_FOLD_ROUNDINGS = 4
# unit roundoff: half the distance from 1 to the next number
_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def judge(item: Prepared, draw: Draw, before: Array, after: Array, size: Array | None) -> None:
    """Compare a window's outputs on one draw; its verdict becomes that of the worst so far.

    `size`: how large the sums behind each element are (see `magnitude`), where that is known.
    """
    verdict = _compare(item, draw.kind, before, after, size, draw.active)
    if verdict.status == "differs" and item.verdict.status == "differs":
        return
    if verdict.status == "differs" or verdict.ratio >= item.verdict.ratio:
        item.verdict = verdict


def judge_stacked(
    item: Prepared, draws: Sequence[Draw], before: Array, after: Array, size: Array | None
) -> None:
    """Compare outputs on several draws, one behind the other along the first axis."""
    rows = [len(next(iter(draw.values.values()))) for draw in draws]
    verdict = _at_one_look(item, draws, rows, before, after, size)
    if verdict is not None:
        item.verdict = verdict
        return
    if len(before) != sum(rows):  # a constant of more axes made a batch of its own
        judge(item, Draw("mixed", {}), before, after, size)
        return
    end = 0
    for draw, count in zip(draws, rows, strict=True):
        start, end = end, end + count
        part = slice(start, end)
        judge(item, draw, before[part], after[part], None if size is None else size[part])


def _at_one_look(
    item: Prepared,
    draws: Sequence[Draw],
    rows: Sequence[int],
    before: Array,
    after: Array,
    size: Array | None,
) -> WindowVerdict | None:
    """Acquit a window of which nothing is out of the ordinary; None for a closer look."""
    granted = item.terms.rtol or item.terms.atol
    if size is None or granted or before.dtype.kind in "iubOSU" or before.dtype != after.dtype:
        return None
    if not before.shape == after.shape == size.shape or len(before) != sum(rows) or not size.size:
        return None
    units = [_unit(item, before.dtype.name, draw.active, draw.kind) for draw in draws]
    error = np.abs(before.astype(np.float64) - after.astype(np.float64)).reshape(len(before), -1)
    allowed = size.reshape(error.shape) * np.repeat(units, rows)[:, None] + _tiny(before)
    with np.errstate(invalid="ignore"):
        ratio = (error / allowed).max(axis=1, initial=0.0)
    if not ratio.max(initial=0.0) <= 1:  # nor is NaN
        return None
    starts = np.cumsum([0, *rows[:-1]])
    of_draw = np.maximum.reduceat(ratio, starts)
    worst = len(draws) - 1 - int(np.argmax(of_draw[::-1]))
    part = slice(starts[worst], starts[worst] + rows[worst])
    index = int(np.argmax(error[part]))
    return WindowVerdict(
        "ok",
        float(of_draw[worst]),
        float(error[part].flat[index]),
        float(allowed[part].flat[index]),
        draws[worst].kind,
    )


def _compare(
    item: Prepared, kind: str, before: Array, after: Array, size: Array | None, active: int
) -> WindowVerdict:
    if before.shape != after.shape or before.dtype != after.dtype:
        return WindowVerdict(
            "differs",
            math.inf,
            math.inf,
            feed=kind,
            reason=f"the output is {after.dtype}{list(after.shape)} "
            f"instead of {before.dtype}{list(before.shape)}",
        )
    floating = before.dtype.kind not in "iubOSU"
    if item.exact or not floating:
        same = _bit_equal(before, after, signed_zeros=not picks_otherwise(item.window))
        return WindowVerdict(
            "ok" if same else "differs",
            0.0 if same else math.inf,
            bound="equal",
            feed=kind,
            reason="" if same else f"elements differ on {kind} inputs where they may only move",
        )
    old, new = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(old) & np.isfinite(new)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) and not _may_overflow(
        old, new, kind
    ):
        return WindowVerdict(
            "differs", math.inf, math.inf, feed=kind, reason=f"NaN or infinity on {kind} inputs"
        )
    error = np.abs(old[finite] - new[finite])
    allowed, bound = allowed_error(item, before, size, finite, active, kind)
    worst = _worst_ratio(error, allowed)
    index = int(np.argmax(error)) if error.size else 0
    largest = float(error[index]) if error.size else 0.0
    limit = float(np.broadcast_to(allowed, error.shape)[index]) if error.size else 0.0
    return WindowVerdict(
        "ok" if worst <= 1 else "differs",
        worst,
        largest,
        limit,
        kind,
        bound,
        "" if worst <= 1 else f"off by {largest:.3g} on {kind} inputs, {worst:.3g} times the bound",
    )


def _may_overflow(old: Array, new: Array, kind: str) -> bool:
    """Whether it is no wonder that some are not finite: inputs are large and sums overflow."""
    return kind in ("mixed", "probes", "columns") and bool(
        np.isinf(old).any() or np.isinf(new).any()
    )


def _bit_equal(before: Array, after: Array, signed_zeros: bool) -> bool:
    if before.dtype.kind != "f":
        return bool(np.array_equal(before, after))
    known = ~np.isnan(before)
    if not np.array_equal(known, ~np.isnan(after)):
        return False
    old, new = before[known], after[known]
    signs = np.signbit(old) == np.signbit(new)
    return bool(np.array_equal(old, new) and (not signed_zeros or signs.all()))


def allowed_error(
    item: Prepared, before: Array, size: Array | None, finite: Array, active: int, kind: str
) -> tuple[Array, str]:
    """Return how far the elements may be apart that `finite` selects, and the kind of bound."""
    unit = _unit(item, before.dtype.name, active, kind)
    scale = float(np.abs(before.astype(np.float64)[finite]).max(initial=0.0))
    granted = item.terms.atol + item.terms.rtol * scale
    if size is None:
        return np.asarray(unit * max(scale, 1.0) + _tiny(before) + granted), "norm"
    sums = np.broadcast_to(np.asarray(size, np.float64), before.shape)[finite]
    return unit * sums + _tiny(before) + granted, "elementwise"


def _unit(item: Prepared, dtype_name: str, active: int, kind: str) -> float:
    """Return what rounding may do, relative to the size of the sums."""
    constant = kind == "zeros"  # behind a bias, a map of zeros is a map of one number
    rounded = sum(side.count(active, constant=constant) for side in item.roundings)
    rounded += _FOLD_ROUNDINGS
    return rounded * _ROUNDOFF.get(dtype_name, 2.0**-24)


def _tiny(array: Array) -> float:
    return float(np.finfo(np.float32).tiny) if array.dtype.name != "float16" else 2.0**-24


def _worst_ratio(error: Array, allowed: Array) -> float:
    if not error.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        ratio = error / allowed
    return float(np.nan_to_num(ratio, nan=0.0).max())
