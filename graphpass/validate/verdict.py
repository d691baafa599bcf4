"""What came of a check, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphpass.validate.compare import OutputComparison

Status = Literal[
    "equal",
    "within tolerance",
    "differs",
    "cannot run",
    "invalid",
    "interface changed",
    "not comparable",
]

SILENT = "has no elements, or is NaN throughout, in the original, whatever is fed"


@dataclass(frozen=True)
class Verdict:
    """What came of a check; `reason` is one sentence with output, feed, provider and figures.

    `random_outputs` differ between two runs of the original and are left out, and so are
    `silent_outputs`, which are NaN throughout or have no elements on every feed. `dropped_feeds`
    are those that the original itself did not take, each with the reason.
    """

    status: Status
    reason: str
    comparisons: tuple[OutputComparison, ...] = ()
    random_outputs: tuple[str, ...] = ()
    silent_outputs: tuple[str, ...] = ()
    dropped_feeds: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the candidate may replace the original."""
        return self.status in ("equal", "within tolerance")


def accusation(failed: list[OutputComparison]) -> str:
    """Say which output is wrong, by how much, and on what."""
    worst = max(failed, key=lambda c: c.error)
    where = f"on feed '{worst.feed}', provider {worst.provider}"
    if not np.isfinite(worst.error):
        return f"output '{worst.name}' {worst.reason} {where}"
    floor = "" if worst.noise_floor is None else f", noise floor {worst.noise_floor:.2g}"
    return f"output '{worst.name}' {worst.reason} (tolerance {worst.tolerance:.2g}{floor}) {where}"


def incomparable(one: OutputComparison) -> str:
    """Say why nothing can be said about an output."""
    if one.blank:
        return f"output '{one.name}' {SILENT}"
    if one.noise_floor is None:
        return f"output '{one.name}' changes its shape when the original's inputs move by one ulp"
    return (
        f"output '{one.name}' moves by {one.noise_floor:.2g} of its scale when the original's"
        f" inputs move by one ulp, so that a difference of {one.error:.2g} says nothing"
    )


def acquittal(comparisons: list[OutputComparison]) -> str:
    """Say which output came closest to its tolerance."""
    worst = max(comparisons, key=lambda c: c.error / c.tolerance if c.tolerance else 0.0)
    return (
        f"output '{worst.name}' differs by {worst.error:.2g} of its scale at most"
        f" (tolerance {worst.tolerance:.2g}) on feed '{worst.feed}', provider {worst.provider}"
    )
