"""How long two models take, measured in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# What takes less than 5 % longer is not worth a word, nor more runs to be surer of.
_SLOWER_FROM_RATIO = 1.05
_PRECISE = 0.05
_MIN_ROUNDS = 6
# Moods of the scheduler outlast many runs of a small model.
_MIN_SECONDS = 0.2
# A choice pays that is at least so much faster: two sessions of one model may differ by as much.
PAYS_BELOW_RATIO = 0.98


@dataclass(frozen=True)
class Latency:
    """Medians of interleaved runs at ONNX Runtime's default optimization level, in ms.

    With one thread on the CPU, the thread's own time: what else the machine does counts little.
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
    def matters(self) -> bool:
        """Whether it got slower by more than the noise and enough to say so."""
        return self.slower and self.ratio > _SLOWER_FROM_RATIO

    @property
    def pays(self) -> bool:
        """Whether it got faster by more than the noise, that between two sessions included."""
        return self.ratio_high < PAYS_BELOW_RATIO

    @property
    def faster(self) -> bool:
        """Whether it got faster by more than the noise."""
        return self.ratio_high < 1.0


def latency_of(rounds: list[list[float]], feed: str, provider: str) -> Latency:
    """Make medians and a confidence interval of rounds, each (before, after) in seconds."""
    low, high = _interval(rounds)
    return Latency(
        before_ms=statistics.median(before for before, _ in rounds) * 1e3,
        after_ms=statistics.median(after for _, after in rounds) * 1e3,
        ratio=statistics.median(after / before for before, after in rounds),
        ratio_low=low,
        ratio_high=high,
        rounds=len(rounds),
        feed=feed,
        provider=provider,
    )


def is_settled(rounds: Sequence[Sequence[float]], decide_at: float | None = None) -> bool:
    """Whether further rounds would tell nothing that matters.

    `decide_at`: all that matters is on which side of this ratio after/before lies.
    """
    if len(rounds) < _MIN_ROUNDS or sum(map(sum, rounds)) < _MIN_SECONDS:
        return False
    low, high = _interval(rounds)
    if decide_at is not None:
        return not low <= decide_at <= high
    return high - low <= _PRECISE and not low <= _SLOWER_FROM_RATIO <= high


def _interval(rounds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return what holds the median of after/before with about 95 % confidence."""
    ratios = sorted(after / before for before, after in rounds)
    count = len(ratios)
    # Order statistics around the median: Binomial(count, 1/2) within 1.96 standard deviations.
    spread = 1.96 * count**0.5 / 2
    return ratios[max(0, int(count / 2 - spread))], ratios[min(count - 1, int(count / 2 + spread))]
