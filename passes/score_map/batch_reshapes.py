"""What Reshape and Flatten make of the rows of a batch, and a Reshape that keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphpass import Node, label, operator, opset, require

from ..shared.sizes import Size, as_target, product, quotient, reshaped
from .batch_rows import ONE, Batch, Changes, Rows


def reshape(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    """Find the axis of the output that can hold the rows, and name no batch there.

    Which axis of size 1 the batch is among several makes no difference natively: the first that
    is the batch alone is taken, or else the one that rows share with other axes.
    """
    if not held:
        return None
    require(held == [0], f"{label(node)} has a shape that is computed from the rows of a batch")
    rows = batch.rows[id(node.inputs[0])]
    own, made = batch.freed(node.inputs[0]), batch.native(node.outputs[0])
    require(
        own is not None and made is not None,
        f"what {label(node)} makes of the shape of '{node.inputs[0].name}' is not known",
    )
    assert own is not None and made is not None
    as_is = _as_is(batch, node, own, rows)
    wanted = _wanted(batch, own, made, rows)
    if as_is is not None and (as_is.plain or wanted is None or not wanted.plain):
        return [as_is]
    require(
        wanted is not None,
        f"{label(node)} joins the rows of a batch with other axes, in an order that leaves none "
        "of its axes to the batch",
    )
    assert wanted is not None
    sizes = list(made)
    sizes[wanted.axis] = wanted.size(Size(1, (batch.name,)))
    target = as_target(sizes, own)
    require(
        target is not None and opset(node) >= 5,
        f"{label(node)} names the batch beside another size that varies",
    )
    assert target is not None
    shape = np.array(target, np.int64)

    def change(changes: Changes) -> None:
        like = node if operator(node) == "Reshape" else None
        new = changes.edit.one("Reshape", [node.inputs[0], shape], like=like, allowzero=None)
        changes.edit.replace(node.outputs[0], new)

    batch.change(change, f"{label(node)} takes the batch as it comes")
    return [wanted]


def _as_is(batch: Batch, node: Node, own: list[Size], rows: Rows) -> Rows | None:
    """Return where the node as it is puts the rows; None where it mixes them."""
    made = reshaped(node, own, batch.freed)
    if made is None:
        return None
    places = [axis for axis, size in enumerate(made) if batch.holds_count(size)]
    if len(places) != 1 or made[places[0]].names.count(batch.name) != 1:
        return None
    return _split(made, places[0], made[places[0]], own, rows, Size(1, (batch.name,)))


def _wanted(batch: Batch, own: list[Size], made: list[Size], rows: Rows) -> Rows | None:
    """Return where the rows lie best under the sizes `made`, those of the output natively."""
    found = [
        _split(made, axis, size, own, rows, Size(batch.count)) for axis, size in enumerate(made)
    ]
    return min(
        (place for place in found if place is not None),
        key=lambda place: (not place.plain, abs(place.axis - rows.axis)),
        default=None,
    )


def _split(
    made: list[Size], axis: int, size: Size, own: list[Size], rows: Rows, count: Size
) -> Rows | None:
    """Return how `axis` of size `size` holds `count` rows, if it does.

    As many elements lie before the rows, and behind them, as in the tensor that is reshaped.
    """
    before = product((*own[: rows.axis], rows.outer))
    outer = quotient(before, product(made[:axis]))
    inner = None if outer is None else quotient(size, product((outer, count)))
    if outer is None or inner is None:
        return None
    behind = product((rows.inner, *own[rows.axis + 1 :]))
    if product((inner, *made[axis + 1 :])) != behind:
        return None
    return Rows(axis, outer, inner)


__all__ = ["ONE", "reshape"]
