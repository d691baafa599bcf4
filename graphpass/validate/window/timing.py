"""How long one site takes before and after a rewrite, with the surroundings that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.rewrite.window import Window
from graphpass.validate.latency import PAYS_BELOW_RATIO, Latency, latency_of
from graphpass.validate.process.channel import Array
from graphpass.validate.process.runtime import Runtime, run_rounds
from graphpass.validate.window.feeds import drawn
from graphpass.validate.window.prepare import inputs_of

_MIN_ROUNDS, _MAX_ROUNDS, _BUDGET_S = 7, 2000, 1.0


def time_window(
    window: Window, shapes: Mapping[str, Sequence[int]], runtime: Runtime, provider: str
) -> Latency:
    """Time both sides in turn with inputs of these shapes. Raises RunError.

    Twice, loaded in either order, and the less favourable of both counts: where a session's
    memory lies can make it faster by some percent as long as it lives.
    """
    feeds = _feeds(window, shapes)
    found = []
    for swapped in (False, True):
        models = [window.before, window.after][:: -1 if swapped else 1]
        with (
            runtime.load(models[0], provider, "all") as one,
            runtime.load(models[1], provider, "all") as two,
        ):
            rounds = run_rounds(
                [one, two],
                feeds,
                min_rounds=_MIN_ROUNDS,
                max_rounds=_MAX_ROUNDS,
                budget_s=_BUDGET_S,
                decide_at=1 / PAYS_BELOW_RATIO if swapped else PAYS_BELOW_RATIO,
            )
        pairs = [pair[:: -1 if swapped else 1] for pair in rounds]
        found.append(latency_of(pairs, "normal", provider))
    return max(found, key=lambda latency: latency.ratio_high)


def _feeds(window: Window, shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    feeds = {}
    for name, value in inputs_of(window).items():
        dtype = np.dtype(tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        feeds[name] = drawn(shapes[name], dtype, "normal", rng).astype(dtype)
    return feeds
