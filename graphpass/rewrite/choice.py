"""Rewrites that are slower on one runtime and faster on another: who decides whether they happen.

A rule that is such a choice says so (`Rule.choice`). Before it takes place, a chooser looks at it:
`ByCost` counts, the tuner of `graphpass.run` measures, `Everything` takes all that is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import onnx

from graphpass.ir.cost import Cost, cost_of, node_costs
from graphpass.ir.refusal import RefusalKind, RefusedError, require
from graphpass.rewrite.window import Window

NOT_LESS = RefusalKind("not-less", "give --tune, which measures whether it pays")
# a size for what is symbolic: whatever cuts it into equal parts does so
_ASSUMED_SIZE = 48


class Choice(Enum):
    """What becomes of a rule that is a choice where nothing is measured."""

    MEASURED = auto()  # it is not tried: it is known to be more to write
    WHERE_LESS = auto()  # it takes place where it is less, by counting
    AS_ASKED = auto()  # it takes place: who runs its pass wants its form

    @property
    def told(self) -> str:
        """When such a rule takes place, for people."""
        return {
            Choice.MEASURED: "only where --tune finds it faster",
            Choice.WHERE_LESS: "where it is less work, or --tune finds it faster",
            Choice.AS_ASKED: "unless --tune finds it no faster",
        }[self]


@dataclass(frozen=True)
class Offer:
    """A rewrite that could take place. `site` names the tensor that it computes anew.

    `windows`: its nodes before and after as two models, with what reads them, and then without,
    for where that cannot be run.
    """

    step: str
    rule: str
    site: str
    choice: Choice
    windows: Callable[[], list[Window]]


class Chooser(Protocol):
    """Decides which choices are made."""

    def tries(self, choice: Choice) -> bool:
        """Whether rules of this kind are to be matched at all."""

    def decide(self, offer: Offer) -> None:
        """Return to let a rewrite take place. Raises `RefusedError`."""


class Everything:
    """Makes every choice: for tests, which look at whether a rule is right."""

    def tries(self, choice: Choice) -> bool:
        """See `Chooser`."""
        return True

    def decide(self, offer: Offer) -> None:
        """See `Chooser`."""


class Nothing:
    """Makes no choice."""

    def tries(self, choice: Choice) -> bool:
        """See `Chooser`."""
        return False

    def decide(self, offer: Offer) -> None:
        """See `Chooser`."""
        raise RefusedError(f"{offer.rule} is a choice, and none is made")


class ByCost:
    """Counts multiply-adds, bytes and nodes: none may become more, and one has to become less."""

    def tries(self, choice: Choice) -> bool:
        """See `Chooser`."""
        return choice is not Choice.MEASURED

    def decide(self, offer: Offer) -> None:
        """See `Chooser`."""
        if offer.choice is Choice.AS_ASKED:
            return
        windows = offer.windows()
        known = [_counted(side) for side in (windows[-1].before, windows[-1].after)]
        before, after = known if windows else (None, None)
        if before is None or after is None:
            raise RefusedError("whether it is less work cannot be counted", NOT_LESS)
        for what, old, new in zip(_COUNTED, before, after, strict=True):
            require(new <= old, f"it would be more {what}: {new:,} instead of {old:,}", NOT_LESS)
        require(after != before, "it would be no less work", NOT_LESS)


_COUNTED = ("multiply-adds", "bytes of weights", "bytes of activations", "nodes")


def _counted(model: onnx.ModelProto) -> tuple[int, int, int, int] | None:
    """Return what is counted of a window, in the order of `_COUNTED`; None where it is unknown."""
    shapes = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            return None
        shapes[value.name] = [
            dim.dim_value if dim.HasField("dim_value") else _ASSUMED_SIZE
            for dim in tensor.shape.dim
        ]
    if any(node.output is None for node in node_costs(model, shapes)):
        return None
    cost: Cost = cost_of(model, shapes)
    return cost.multiply_adds, cost.weight_bytes, cost.activation_bytes, len(model.graph.node)
