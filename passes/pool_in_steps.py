"""pool-in-steps: global pools over maps that are too large for a target, a window at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from graphpass import Node, Op, Pass, Rule, Tensor, any_, label, needed, rank, require, static_dim
from graphpass.errors import UsageError
from graphpass.ir.refusal import UNKNOWN_SIZE


@dataclass(frozen=True)
class MeanOfMeans(Rule):
    """GlobalAveragePool(x) = GlobalAveragePool(AveragePool_k(x)) with strides k, k dividing sizes.

    The mean of the means of equally many is the mean of all. Equal in real arithmetic: sums round
    in another order. NaN and infinities come through; a sum that overflows does so in fewer terms,
    never in more. Each step takes the largest windows up to `side` that tile the map.
    """

    pattern = Op("GlobalAveragePool", any_("x"), bind="pool")
    side: int = 7

    def rewrite(self, pool: Node, x: Tensor) -> Any:
        count = needed(rank(x), f"the rank of '{x.name}' is not known", UNKNOWN_SIZE)
        unknown = f"the size of '{x.name}', which {label(pool)} pools, is not known"
        sizes = [needed(static_dim(x, axis), unknown, UNKNOWN_SIZE) for axis in range(2, count)]
        if max(sizes, default=0) <= self.side:
            return None
        windows = [self._window(size) for size in sizes]
        for size, window in zip(sizes, windows, strict=True):
            require(
                size <= self.side or window > 1,
                f"{label(pool)} pools over {size} rows or columns, which no window of 2 to "
                f"{self.side} tiles",
            )
        step = Op("AveragePool", x, kernel_shape=windows, strides=windows)
        return Op("GlobalAveragePool", step)

    def _window(self, size: int) -> int:
        if size <= self.side:
            return 1
        return next(window for window in range(self.side, 0, -1) if size % window == 0)


@dataclass(frozen=True)
class PoolInSteps(Pass):
    """Global pools over maps that are too large for a target, a window at a time.

    Where a runtime pools any map in one go this is no gain: it runs only where it is asked for, as
    the profiles of targets do.
    """

    name: ClassVar[str] = "pool-in-steps"
    side: int = field(
        default=7, metadata={"help": "the most rows and columns that one pool may take in"}
    )

    def __post_init__(self) -> None:
        if self.side < 2:
            raise UsageError(f"pool-in-steps needs a side of 2 or more, and not {self.side}")

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """The rule for pools of this side."""
        return (MeanOfMeans(self.side),)
