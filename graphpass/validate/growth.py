"""Models that make gigabytes out of a few bytes, or take for ever, are not run unasked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from graphpass.errors import RuntimeUnavailableError
from graphpass.ir.cost import growth_of
from graphpass.validate.process.runtime import Limits

_MOST_BYTES = 1 << 29
_MOST_SHARE = 4  # of what the model holds and reads: large networks have large masks
_MOST_VALUES = 10_000  # inputs and outputs: ONNX Runtime looks through all of them for each
_MOST_STEPS = 1 << 20  # nodes, which take a microsecond at least
# Where a run alone shows how much it makes: this, or so many times what the model reads and holds.
_UNFORESEEN_MIB, _UNFORESEEN_SHARE = 768, 8
_LOOPS_S = 10.0
_NOTE = ", which is what loops get unless --memory-limit is given"


class GrowthError(RuntimeUnavailableError):
    """A model makes too much out of too little to be run."""


def limits_unasked(
    model: onnx.ModelProto, limits: Limits, shapes: Mapping[str, Sequence[int]] | None = None
) -> Limits:
    """Return in which limits to run `model` where nobody asked for more, at most `limits`.

    `shapes`: of its inputs; what is not known counts as nothing. An honest network makes its
    masks and positions out of nothing; what it makes of its inputs and weights does not count.
    Where it has loops, whose end and whose memory show in a run alone, or sizes that depend on
    values, less is enough.

    Raises:
        GrowthError: nodes make too much out of next to nothing, loops run too many of them, or
            there are too many inputs and outputs.
    """
    count = len(model.graph.input) - len(model.graph.initializer) + len(model.graph.output)
    if count > _MOST_VALUES:
        raise GrowthError(
            f"the network is not run: it has {count} inputs and outputs, more than the "
            f"{_MOST_VALUES} that are run unasked"
        )
    growth = growth_of(model, shapes or {})
    if growth.made > max(_MOST_BYTES, _MOST_SHARE * growth.held):
        raise GrowthError(
            f"the network is not run: it makes {_spelled(growth.made)} out of the "
            f"{_spelled(growth.held)} that it reads and holds, more than the "
            f"{_spelled(_MOST_BYTES)} that are run unasked"
        )
    if growth.steps > _MOST_STEPS:
        raise GrowthError(
            f"the network is not run: its loops run {growth.steps} nodes, more than the "
            f"{_MOST_STEPS} that are run unasked"
        )
    if growth.has_all_sizes and not growth.has_loops:
        return limits
    mib = max(_UNFORESEEN_MIB, _UNFORESEEN_SHARE * growth.held >> 20)
    if limits.memory_mib is not None:
        limits = replace(limits, memory_mib=min(limits.memory_mib, mib))
    if growth.has_loops and limits.time_s is not None and limits.time_s > _LOOPS_S:
        limits = replace(limits, time_s=_LOOPS_S, note=_NOTE)
    return limits


def _spelled(count: int) -> str:
    if count < 1 << 20:
        return f"{count} bytes"
    return f"{count >> 20} MiB" if count < 10 << 30 else f"{count >> 30} GiB"


__all__ = ["GrowthError", "limits_unasked"]
