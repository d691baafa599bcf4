"""What is known of the original at one feed: its outputs, and how much they move by noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphpass.errors import RuntimeUnavailableError
from graphpass.validate.compare import MAX_NOISE_FLOOR, Noise, measure_noise
from graphpass.validate.distance import leaves, magnitude
from graphpass.validate.feeds.drawn import Feed
from graphpass.validate.process.channel import Value

# Steps in which the noise of a point is measured, cheapest first, each only when needed.
QUIET, ONE_DRAW, REORDERED, FULL_NOISE = range(4)


class ReferenceCannotRunError(RuntimeUnavailableError):
    """ONNX Runtime cannot run the original model; one sentence with its reason and a way out."""


@dataclass
class Point:
    """The original's outputs on one feed and provider; `noise` is what is known of its floor.

    `is_assumed`: the feed was run as a row of a batch, and not yet alone.
    """

    provider: str
    feed: Feed
    outputs: dict[str, Value]
    noise: dict[str, Noise] | None = None
    noise_level: int = QUIET
    is_assumed: bool = False

    def add_noise(self, again: Mapping[str, Value], *, jumps_only: bool = False) -> None:
        """Join the distance of another run of the original.

        `jumps_only`: only of outputs that are so far off that nothing can be said of them.
        """
        known = dict(self.noise or {})
        scales = {name: magnitude(array) for name, array in leaves(self.outputs).items()}
        for name, found in measure_noise(self.outputs, again).items():
            jumps = found.structure_changed or found.distance > MAX_NOISE_FLOOR * scales[name]
            if jumps or not jumps_only:
                known[name] = found.joined(known[name]) if name in known else found
        self.noise = known
