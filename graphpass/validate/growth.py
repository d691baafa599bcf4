"""Models that make gigabytes out of a few bytes are not run unasked: that is what bombs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from graphpass.errors import RuntimeUnavailableError
from graphpass.ir.cost import grown_bytes

_MOST_BYTES = 1 << 29
_MOST_SHARE = 4  # of what the model holds and reads: large networks have large masks


class GrowthError(RuntimeUnavailableError):
    """A model makes too much out of too little to be run."""


def require_little_growth(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Raise `GrowthError` where nodes of `model` make too much out of next to nothing.

    `shapes`: of its inputs; what is not known counts as nothing. An honest network makes its
    masks and positions so; what it makes of its inputs and weights does not count.
    """
    grown, held = grown_bytes(model, shapes or {})
    if grown > max(_MOST_BYTES, _MOST_SHARE * held):
        raise GrowthError(
            f"it makes {_spelled(grown)} out of the {_spelled(held)} that it reads and holds, more "
            f"than the {_spelled(_MOST_BYTES)} that are run unasked"
        )


def _spelled(count: int) -> str:
    if count < 1 << 20:
        return f"{count} bytes"
    return f"{count >> 20} MiB" if count < 10 << 30 else f"{count >> 30} GiB"


__all__ = ["GrowthError", "require_little_growth"]
