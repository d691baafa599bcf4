"""What picks elements by their place, Slice and Gather, where rows of a batch lie there.

A single row is natively at place 0, and all that is counted in it is counted within the row: with
more rows each picks from its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphpass import (
    Node,
    Tensor,
    attribute,
    constant,
    integers,
    label,
    operator,
    opset,
    producer,
    require,
)
from graphpass.ir.shapes import as_target, slices
from graphpass.ir.weight import Array

from .batch_repeats import is_one_row, repeat, rows_of_first, tile
from .batch_rows import ONE, Batch, Changes, Rows, Size

_OPEN_END = (1 << 31) - 1  # the end of a Slice that means "to the end", or beyond it
_BATCHED_GATHER = 12  # GatherND has batch_dims from this opset on
_INDICES = 1 << 22  # more are not looked at


def _slice(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    rows = rows_of_first(batch, node, held)
    if rows is None:
        return None
    rank = batch.rank(node, node.inputs[0])
    bounds = slices(node)
    if bounds is None:
        return None
    ours = [cut for cut in bounds if cut[0] % rank == rows.axis]
    if not ours:
        return None
    (_, start, end, step) = ours[0]
    if (start, step) == (0, 1) and end >= _OPEN_END:
        return [rows]
    whole = range(1)[start:end:step] == range(1)
    require(
        is_one_row(batch, rows) and whole,
        f"{label(node)} cuts axis {rows.axis} of '{node.inputs[0].name}', where the rows of a "
        "batch lie",
    )
    rest = [cut for cut in bounds if cut[0] % rank != rows.axis]

    def change(changes: Changes) -> None:
        edit, source = changes.edit, changes.edit.current(node.inputs[0])
        axes, starts, ends, steps = ([cut[column] for cut in rest] for column in range(4))
        lists = {"axes": axes, "starts": starts, "ends": ends}
        if opset(node) >= 10:
            lists["steps"] = steps
        if rest:
            new = edit.one("Slice", [source], like=node, **lists)
        else:
            new = edit.one("Identity", [source])
        changes.replace(node, new)

    batch.change(change, f"{label(node)} takes every row")
    return [rows]


def _gather(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    if held == [0, 1]:
        return _one_for_each(batch, node)
    rows = rows_of_first(batch, node, held)
    if rows is None or attribute(node, "axis") % batch.rank(node, node.inputs[0]) != rows.axis:
        return None
    picked = integers(node.inputs[1])
    one = picked in ([0], [-1]) and batch.rank(node, node.inputs[1]) == 1
    if one and is_one_row(batch, rows):
        batch.change(
            lambda changes: changes.replace(
                node, changes.edit.one("Identity", [changes.edit.current(node.inputs[0])])
            ),
            f"{label(node)} takes every row",
        )
        return [rows]
    places = _places(batch, node)
    shape = _apart(batch, node.inputs[0], rows)
    require(
        places is not None and shape is not None,
        f"{label(node)} picks from axis {rows.axis} of '{node.inputs[0].name}', where the rows of "
        "a batch lie",
    )
    assert places is not None and shape is not None

    def change(changes: Changes) -> None:
        target = np.array(shape, np.int64)
        apart = changes.edit.one("Reshape", [changes.edit.current(node.inputs[0]), target])
        within = np.asarray(places[0])  # without the axis that the rows have
        taken = changes.edit.one("Gather", [apart, within], like=node, axis=rows.axis + 1)
        changes.replace(node, taken)

    batch.change(change, f"{label(node)} picks within each row")
    return [Rows(rows.axis)]


def _one_for_each(batch: Batch, node: Node) -> Sequence[Rows | None]:
    """Where each row says itself which of its parts it wants, let it have those."""
    rows, asked = (batch.rows[id(tensor)] for tensor in node.inputs)
    shape = _apart(batch, node.inputs[0], rows)
    require(
        batch.count == 1
        and rows.axis == attribute(node, "axis") % batch.rank(node, node.inputs[0]) == 0
        and asked == Rows(0)
        and shape is not None
        and opset(node) >= _BATCHED_GATHER,
        f"{label(node)} picks by rows of a batch from rows of a batch",
    )
    assert shape is not None

    def change(changes: Changes) -> None:
        edit = changes.edit
        apart = edit.one("Reshape", [edit.current(node.inputs[0]), np.array(shape, np.int64)])
        rank = batch.rank(node, node.inputs[1])
        each = edit.one("Unsqueeze", [edit.current(node.inputs[1])], axes=[rank])
        changes.replace(node, edit.one("GatherND", [apart, each], batch_dims=1))

    batch.change(change, f"{label(node)} picks within each row")
    return [asked]


def _places(batch: Batch, node: Node) -> Array | None:
    """Return constant indices that leave an axis of size 1 in front, which the rows can have."""
    weight = constant(node.inputs[1])
    if batch.count != 1 or weight is None or not weight.shape or weight.shape[0] != 1:
        return None
    return weight.array() if weight.size <= _INDICES else None


def _apart(batch: Batch, tensor: Tensor, rows: Rows) -> list[int] | None:
    """Return a shape in which the rows have an axis of their own, and behind it lies each row."""
    own = batch.freed(tensor)
    if own is None or rows.outer != ONE:
        return None
    apart = [*own[: rows.axis], Size(1, (batch.name,)), rows.inner, *own[rows.axis + 1 :]]
    found = as_target(apart, own)
    return None if found is None else [int(size) for size in found]


def _gather_nd(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    """GatherND whose first index is that of the one row picks within each row."""
    if held == [0, 1] and not attribute(node, "batch_dims"):
        return _nd_for_each(batch, node)
    rows = rows_of_first(batch, node, held)
    if rows is None or rows.axis or not rows.plain or attribute(node, "batch_dims"):
        return None
    places = _places(batch, node)
    fits = places is not None and places.shape[-1] == 2 and not np.any(places[..., 0])
    if not fits or places is None or places.ndim < 2:
        return None

    def change(changes: Changes) -> None:
        source = changes.edit.current(node.inputs[0])
        taken = changes.edit.one("Gather", [source, np.asarray(places[0, ..., 1])], axis=1)
        changes.replace(node, taken)

    batch.change(change, f"{label(node)} picks within each row")
    return [rows]


def _nd_for_each(batch: Batch, node: Node) -> Sequence[Rows | None] | None:
    """The same where indices are computed, behind a constant 0 that stands for the one row."""
    joined = producer(node.inputs[1])
    rank = batch.rank(node, node.inputs[1])
    if joined is None or operator(joined) != "Concat" or opset(node) < _BATCHED_GATHER:
        return None
    first = constant(joined.inputs[0])
    leads = (
        attribute(joined, "axis") % rank == rank - 1
        and first is not None
        and first.shape[-1] == 1
        and first.size <= _INDICES
        and not np.any(first.array())
    )
    alike = [batch.rows[id(tensor)] for tensor in node.inputs] == [Rows(0), Rows(0)]
    if not (leads and alike and rank > 1 and batch.count == 1):
        return None

    def change(changes: Changes) -> None:
        bounds = [np.array([number], np.int64) for number in (1, _OPEN_END, rank - 1)]
        source, indices = (changes.edit.current(tensor) for tensor in node.inputs)
        rest = changes.edit.one("Slice", [indices, *bounds])
        changes.replace(node, changes.edit.one("GatherND", [source, rest], batch_dims=1))

    batch.change(change, f"{label(node)} picks within each row")
    return [Rows(0)]


def _gather_elements(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    """Data and indices have rows on one axis; what is the same for all of them is repeated."""
    if not held:
        return None
    found = {batch.rows[id(node.inputs[index])] for index in held}
    (rows, *others) = found
    axis = attribute(node, "axis") % batch.rank(node, node.inputs[0])
    require(
        not others and rows.axis != axis,
        f"{label(node)} picks along axis {axis}, or from rows on other axes than its indices",
    )
    for index in {0, 1} - set(held):
        if not tile(batch, node, index, rows.axis, rows):
            repeat(batch, node, index, rows.axis)
    return [rows]


PICKS: dict[str, Callable[[Batch, Node, list[int]], Sequence[Rows | None] | None]] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Slice": _slice,
}

__all__ = ["PICKS"]
