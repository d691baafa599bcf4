"""How long two models take, measured in turn."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Medians of interleaved runs at ONNX Runtime's default optimization level, in ms.

    `ratio` is after/before, the median over rounds; [`ratio_low`, `ratio_high`] holds the true
    median with about 95 % confidence.
    """

    before_ms: float
    after_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    feed: str
    provider: str

    @property
    def slower(self) -> bool:
        """Whether it got slower by more than the noise."""
        return self.ratio_low > 1.0

    @property
    def faster(self) -> bool:
        """Whether it got faster by more than the noise."""
        return self.ratio_high < 1.0


def latency_of(rounds: list[list[float]], feed: str, provider: str) -> Latency:
    """Make medians and a confidence interval of rounds, each (before, after) in seconds."""
    ratios = sorted(after / before for before, after in rounds)
    count = len(ratios)
    # Order statistics around the median: Binomial(count, 1/2) within 1.96 standard deviations.
    spread = 1.96 * count**0.5 / 2
    low = ratios[max(0, int(count / 2 - spread))]
    high = ratios[min(count - 1, int(count / 2 + spread))]
    before_ms = statistics.median(before for before, _ in rounds) * 1e3
    after_ms = statistics.median(after for _, after in rounds) * 1e3
    ratio = statistics.median(ratios)
    return Latency(before_ms, after_ms, ratio, low, high, count, feed, provider)
