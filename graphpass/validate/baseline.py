"""What is known of the original at one feed: its outputs, and how much they move by noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphpass.errors import RuntimeUnavailableError
from graphpass.validate.compare import Noise, measure_noise
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

    def add_noise(self, again: Mapping[str, Value]) -> None:
        """Join the distance of another run of the original."""
        known = self.noise or {}
        self.noise = {
            name: found.joined(known[name]) if name in known else found
            for name, found in measure_noise(self.outputs, again).items()
        }
