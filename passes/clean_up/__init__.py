"""clean-up: what computes nothing goes, what is computed twice is computed once.

One file for each family of rules; those that other passes use as well are in `shared`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from graphpass import Pass, Rule, Survey

from ..shared.fewest_transposes import FewestTransposes
from ..shared.reshapes import DropReshape, FixReshape, MergeReshapes
from .bounds import BOUND_RULES
from .broadcast import BROADCAST_RULES
from .casts import CAST_RULES
from .constants import FOLD_BUDGET, ConstantToInitializer, FoldConstants, SplitConstant
from .control import CONTROL_RULES
from .counting import COUNTING_RULES
from .equal import EqualInitializers, EqualNodes
from .functions import InlineFunctions
from .layouts import LAYOUT_RULES
from .neutral import NEUTRAL_RULES
from .pads import PAD_RULES
from .pieces import PIECE_RULES
from .products import PRODUCT_RULES
from .quotients import QUOTIENT_RULES
from .scatter import SCATTER_RULES
from .sequences import SEQUENCE_RULES
from .views_around import DropViewsAround
from .zeros import ZERO_RULES

_RULES: tuple[Rule, ...] = (
    *NEUTRAL_RULES,
    *CAST_RULES,
    *LAYOUT_RULES,
    DropReshape(),
    MergeReshapes(),
    FixReshape(),
    *PAD_RULES,
    *PIECE_RULES,
    *SCATTER_RULES,
    *PRODUCT_RULES,
    *QUOTIENT_RULES,
    *SEQUENCE_RULES,
    *COUNTING_RULES,
    *BOUND_RULES,
    *BROADCAST_RULES,
    *ZERO_RULES,
    *CONTROL_RULES,
)


@dataclass(frozen=True)
class CleanUp(Pass):
    """Remove what computes nothing; make constants in disguise into initializers."""

    name: ClassVar[str] = "clean-up"
    sweeps: ClassVar[bool] = True
    fold_budget: int = field(
        default=FOLD_BUDGET,
        metadata={"help": "bytes that folding one chain of constants may add to the file"},
    )

    @property
    def surveys(self) -> tuple[Survey, ...]:  # type: ignore[override]
        """What is looked for in whole scopes."""
        return (
            InlineFunctions(),
            FoldConstants(self.fold_budget),
            EqualInitializers(),
            EqualNodes(),
            DropViewsAround(),
            FewestTransposes(),
        )

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """What is looked for node by node."""
        budget = self.fold_budget
        return (ConstantToInitializer(budget), SplitConstant(budget), *_RULES)


__all__ = ["CleanUp"]
