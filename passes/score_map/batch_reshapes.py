"""What Reshape and Flatten make of the rows of a batch, and a Reshape that keeps them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphpass import Node, Tensor, label, operator, opset, require
from graphpass.ir.shapes import as_target, reshaped, target_of
from graphpass.ir.sizes import INFERRED, Size, product, quotient
from graphpass.ir.weight import Array

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
    own, made = batch.freed(node.inputs[0]), _native(batch, node)
    require(
        own is not None and made is not None,
        f"what {label(node)} makes of the shape of '{node.inputs[0].name}' is not known",
    )
    assert own is not None and made is not None
    as_is = _as_is(batch, node, own, rows)
    wanted = _wanted(batch, own, made, rows)
    if wanted is None or not wanted.plain:
        moved = _moved(batch, node, own, made, rows)
        if moved is not None:
            return [moved]
    if as_is is not None and (
        wanted is None
        or not wanted.plain
        or (as_is.plain and _is_meant(batch, node, as_is, wanted))
    ):
        return [as_is]
    unknown = any(_is_unknown(name) for size in (*own, *made) for name in size.names)
    require(
        wanted is not None or not unknown,
        f"the sizes at {label(node)} are computed and not known: clean-up makes constants of what "
        "does not vary (--passes clean-up,free-batch)",
    )
    require(
        wanted is not None,
        f"{label(node)} joins the rows of a batch with other axes, in an order that leaves none "
        "of its axes to the batch",
    )
    assert wanted is not None
    shape = _target(batch, node, own, made, wanted)

    def change(changes: Changes) -> None:
        like = node if operator(node) == "Reshape" else None
        operands = [changes.edit.current(node.inputs[0]), shape(changes)]
        new = changes.edit.one("Reshape", operands, like=like, allowzero=None)
        changes.replace(node, new)

    batch.change(change, f"{label(node)} takes the batch as it comes")
    return [wanted]


def _moved(batch: Batch, node: Node, own: list[Size], made: list[Size], rows: Rows) -> Rows | None:
    """Let the rows have the first axis of size 1, which a single row may have natively.

    Where one axis has one element, the order of elements does not say where it lies.
    """
    units = [axis for axis, size in enumerate(made) if size == ONE]
    if not (batch.moves and batch.count == 1 and rows.plain and units):
        return None
    place = units[0]
    first = [own[rows.axis], *_without(own, rows.axis)]
    shape = as_target([own[rows.axis], *_without(made, place)], first)
    if shape is None:
        return None

    def change(changes: Changes) -> None:
        edit, x = changes.edit, changes.edit.current(node.inputs[0])
        if rows.axis:
            order = [rows.axis, *_without(list(range(len(own))), rows.axis)]
            x = edit.one("Transpose", [x], perm=order)
        like = node if operator(node) == "Reshape" else None
        x = edit.one("Reshape", [x, np.array(shape, np.int64)], like=like, allowzero=None)
        if place:
            order = [*range(1, place + 1), 0, *range(place + 1, len(made))]
            x = edit.one("Transpose", [x], perm=order)
        changes.replace(node, x)

    batch.change(change, f"{label(node)} keeps the rows of the batch on an axis of their own")
    return Rows(place)


def _without(values: list[Any], index: int) -> list[Any]:
    return [*values[:index], *values[index + 1 :]]


def _native(batch: Batch, node: Node) -> list[Size] | None:
    """Return the sizes that the node makes with as many rows as natively."""
    made = reshaped(node, batch.native(node.inputs[0]), batch.native)
    inferred = batch.native(node.outputs[0])
    plain = inferred is not None and not any(size.names for size in inferred)
    return inferred if plain or made is None else made


def _target(
    batch: Batch, node: Node, own: list[Size], made: list[Size], wanted: Rows
) -> Callable[[Changes], Tensor | Array]:
    """Return what makes the shape under which the rows lie as `wanted`: a constant if possible."""
    require(opset(node) >= 5, f"{label(node)} names the batch in an attribute, before opset 5")
    sizes = list(made)
    sizes[wanted.axis] = wanted.size(Size(1, (batch.name,)))
    constant = as_target(sizes, own)
    if constant is not None:
        return lambda changes: np.array(constant, np.int64)
    asked = target_of(node, batch.freed) or []
    others = [size for axis, size in enumerate(asked) if axis != wanted.axis]
    require(
        operator(node) == "Reshape" and len(asked) == len(made) and opset(node) >= 10,
        f"{label(node)} names the batch beside another size that varies",
    )
    require(
        wanted.plain or INFERRED not in others,
        f"{label(node)} infers a size beside that of the batch",
    )

    def computed(changes: Changes) -> Tensor:
        edit, source, axis = changes.edit, node.inputs[1], wanted.axis
        rows = changes.count if INFERRED in others else np.array([-1], np.int64)
        parts: list[Tensor | Array] = [rows]
        if axis:
            parts.insert(0, edit.one("Slice", [source, *_bounds(0, axis)]))
        if axis < len(made) - 1:
            parts.append(edit.one("Slice", [source, *_bounds(axis + 1, len(made))]))
        return edit.one("Concat", parts, axis=0)

    return computed


def _bounds(start: int, end: int) -> list[Array]:
    return [np.array([start], np.int64), np.array([end], np.int64)]


def _is_unknown(name: str) -> bool:
    """Whether a size has no name of the user's: ONNX's inference, or we, made one up."""
    return name.startswith(("unk__", "?"))


def _is_meant(batch: Batch, node: Node, as_is: Rows, wanted: Rows) -> bool:
    """Whether the node says itself that the rows lie there, and does not only infer it."""
    asked = target_of(node, batch.freed) if operator(node) == "Reshape" else None
    named = asked is not None and asked[as_is.axis] != INFERRED
    return as_is.axis == wanted.axis or named


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
