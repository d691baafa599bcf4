"""What an affine map moves through, and what it is on the other side.

A row for each operator f: `before` says which maps b of its inputs make a(f(x)) = f(b(x)), `after`
which map a of its output makes f(b(x)) = a(f(x)). Maps are those of `maps`.

All rows hold over the real numbers. Where elements only move, or the larger of two is kept, they
hold for NaN and infinities as well: a positive factor keeps the order, and which of two equal
elements is kept shows in no value. Elsewhere they round as the fold itself does.
"""

from __future__ import annotations

from graphpass import (
    Node,
    Tensor,
    operator,
)
from graphpass.ir.operators import Trait, has

from .maps import (
    Mover,
)
from .move_elements import ELEMENTS
from .move_values import HOMOGENEOUS, VALUES

ROWS = {**ELEMENTS, **VALUES}


def passes_on(node: Node) -> Mover | None:
    """Return the row for `node`; None where nothing is known of it."""
    found = ROWS.get(operator(node))
    if found is None and has(node, Trait.ELEMENTWISE | Trait.HOMOGENEOUS):
        return HOMOGENEOUS
    return found


def data_inputs(node: Node) -> list[Tensor]:
    """Return the inputs of a mover that hold its elements, not where they move to."""
    joins = operator(node) in ("Concat", "Add", "Sum")
    return list(node.inputs if joins else node.inputs[:1])
