"""For which values ONNX says what an operator makes of them: every evaluator asks here first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from graphpass.ir.questions import Node, cast_type, operator
from graphpass.ir.weight import Array


def is_defined(node: Node, held: Sequence[Array]) -> bool:
    """Whether every runtime makes the same of `held`, which the inputs of `node` hold."""
    guard = _GUARDS.get(operator(node))
    return guard is None or guard(node, *held)


def lost(cast: Node, held: Array) -> Array | None:
    """Return where a Cast of floats to integers has a number that some runtime does not hold."""
    target = cast_type(cast)
    if target is None or target.kind not in "iu" or held.dtype.kind != "f":
        return None
    least, most = (0, 2**7) if target.itemsize == 1 else (-(2.0**15), 2.0**15)
    if target.itemsize >= 4:
        least, most = (-(2.0**30) if target.kind == "i" else 0), 2.0**30
    return np.asarray(~((held >= least) & (held < most)))  # NaN among them


def _cast(node: Node, held: Array, *_: Array) -> bool:
    if cast_type(node) == np.float16 and held.dtype not in (np.float16, np.float32, np.bool_):
        # some go by way of float32, which rounds twice, and some leave out what comes between
        with np.errstate(over="ignore"):
            return bool((held.astype(np.float16).astype(held.dtype) == held).all())
    gone = lost(node, held)
    return gone is None or not gone.any()


def _divides(node: Node, whole: Array, part: Array) -> bool:
    # the least integer through -1 is larger than the largest
    return part.dtype.kind not in "iu" or bool(part.all() and not (part == -1).any())


def _product(node: Node, data: Array, *_: Array) -> bool:
    """Some compute the product of integers in float64, and their sum."""
    if data.dtype.kind not in "iu":
        return True
    return math.prod(max(1, abs(int(value))) for value in data.reshape(-1)) < 2**53


def _total(node: Node, data: Array, *_: Array) -> bool:
    return data.dtype.kind not in "iu" or np.abs(data.astype(np.float64)).sum() < 0.999 * 2**53


def _where(node: Node, mask: Array, *either: Array) -> bool:
    """Some compute it as a sum, which loses −0."""
    return not any(
        (np.signbit(part) & (part == 0)).any() for part in either if part.dtype.kind == "f"
    )


def _extreme(node: Node, *data: Array) -> bool:
    """Of 0 and −0 either may be the larger, and NaN is kept or not."""
    floats = (part for part in data if part.dtype.kind == "f")
    return not any(((part == 0) | np.isnan(part)).any() for part in floats)


_GUARDS: dict[str, Callable[..., Any]] = {
    "Cast": _cast,
    "CastLike": _cast,
    "Div": _divides,
    "Max": _extreme,
    "Min": _extreme,
    "Mod": _divides,
    "ReduceProd": _product,
    "ReduceSum": _total,
    "Where": _where,
}
GUARDED: Final = frozenset(_GUARDS)

__all__ = ["GUARDED", "is_defined", "lost"]
