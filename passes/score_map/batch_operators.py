"""Where operators put the rows of a batch, and what makes those keep rows apart that would not.

A handler gets the batch, the node and the indices of its inputs that depend on rows. It returns
where the rows lie in each output; None: nothing special, the operator is looked up. It may ask
for a change that is exact with one row as natively, and refuses by `require`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from graphpass import (
    Node,
    Tensor,
    attribute,
    axes_of,
    constant,
    integers,
    label,
    operator,
    opset,
    require,
)
from graphpass.ir.operators import Trait, has, named
from graphpass.ir.shapes import moved

from .batch_picks import PICKS
from .batch_repeats import is_one_row, repeat, rows_of_first
from .batch_reshapes import reshape
from .batch_rows import ONE, Batch, Changes, Rows, Size


class Ranks(Protocol):
    """Knows how many axes tensors have."""

    def rank(self, node: Node, tensor: Tensor) -> int:
        """Return the number of axes. Refuses where it is unknown."""


Handler = Callable[[Batch, Node, list[int]], "Sequence[Rows | None] | None"]

_SOFTMAX_BY_AXIS = 13  # before this opset Softmax flattens everything from its axis on
_OPEN_END = (1 << 31) - 1  # the end of a Slice that means "to the end", or beyond it
_MATMULS = ("MatMul", "MatMulInteger")
_STAYS = (
    Trait.KEEPS_AXES,
    Trait.SLIDING,
    Trait.POOL,
    Trait.ALONG_AXIS,
    Trait.NORMALIZATION,
    Trait.SAMPLING,
    Trait.QUANTIZING,
)


def place_after(batch: Ranks, node: Node, index: int, axis: int) -> int:
    """Return on which axis of the outputs lies what lies on `axis` of an input, unmixed."""
    op = operator(node)
    met = met_axes(batch, node, index)
    if axis in met:
        return met[axis]
    if op == "Transpose":
        rank = batch.rank(node, node.inputs[0])
        perm: list[int] = list(attribute(node, "perm") or range(rank)[::-1])
        return perm.index(axis)
    if op == "Gather":
        at: int = attribute(node, "axis") % batch.rank(node, node.inputs[0])
        if index:
            return at + axis
        return axis if axis < at else axis + batch.rank(node, node.inputs[1]) - 1
    if op == "GatherND":
        return axis
    if op == "Gemm":
        return index  # rows of the first, columns of the second
    if op in _MATMULS:  # rows of the left, columns of the right: behind what is met
        ranks = [batch.rank(node, tensor) for tensor in node.inputs[:2]]
        out = max(ranks) - ranks.count(1)
        return out - 1 if index else out - (2 if ranks[1] > 1 else 1)
    if op == "Einsum":
        sides = str(attribute(node, "equation")).replace(" ", "").split("->")
        place: int = sides[1].index(sides[0].split(",")[index][axis])
        return place
    if has(node, Trait.REDUCTION):
        return _after_reduction(batch, node, axis)
    require(
        any(has(node, trait) for trait in _STAYS),
        f"{label(node)} is not known to treat the rows of a batch one by one",
    )
    return axis


def met_axes(batch: Ranks, node: Node, index: int) -> dict[int, int]:
    """Return which axes of an input meet which axis of the output, as numpy broadcasts them."""
    op = operator(node)
    if has(node, Trait.BROADCASTING) or has(node, Trait.ELEMENTWISE) or (op, index) == ("Gemm", 2):
        rank, out = (batch.rank(node, tensor) for tensor in (node.inputs[index], node.outputs[0]))
        return {axis: axis + out - rank for axis in range(rank)}
    if op in _MATMULS and index < 2:
        ranks = [batch.rank(node, tensor) for tensor in node.inputs[:2]]
        out = max(ranks)
        return {axis: axis + out - ranks[index] for axis in range(ranks[index] - 2)}
    return {}


def bound_axes(batch: Ranks, node: Node, index: int) -> dict[int, int]:
    """Return which axes of an input must have the size of which axis of the output, 1 or not."""
    op = operator(node)
    if op in ("BatchNormalization", "InstanceNormalization"):
        return {0: 1} if index else {}
    if op == "ReverseSequence":
        return {0: attribute(node, "batch_axis")} if index else {}
    if op == "GatherND":
        return {axis: axis for axis in range(attribute(node, "batch_dims") or 0)}
    if op in ("QuantizeLinear", "DequantizeLinear") and index:
        rank, scale = (batch.rank(node, t) for t in (node.inputs[0], node.inputs[index]))
        weight = constant(node.inputs[index])
        if scale == 0 or (weight is not None and weight.size == 1):
            return {}
        return {0: attribute(node, "axis") % rank} if scale == 1 else {a: a for a in range(scale)}
    if op == "Einsum":
        sides = str(attribute(node, "equation")).replace(" ", "").split("->")
        letters = sides[0].split(",")[index]
        return {i: sides[1].index(c) for i, c in enumerate(letters) if c in sides[1]}
    return {}


def _after_reduction(batch: Ranks, node: Node, axis: int) -> int:
    op = operator(node)
    if op.startswith("Global") or attribute(node, "keepdims") != 0:
        return axis
    rank = batch.rank(node, node.inputs[0])
    if op in ("ArgMax", "ArgMin"):
        gone = {attribute(node, "axis") % rank}
    else:
        gone = {a % rank for a in axes_of(node) or ()}
    below: int = sum(a < axis for a in gone)
    return axis - below


# ------------------------------------------------------------------------------- handlers


def _moved(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    rows = rows_of_first(batch, node, held)
    if rows is None:
        return None
    rank = batch.rank(node, node.inputs[0])
    marks = moved(node, list(range(rank)))
    require(
        marks is not None,
        f"{label(node)} drops every axis of size 1, the batch too: with several rows it would stay",
    )
    assert marks is not None
    require(rows.axis in marks, f"{label(node)} drops the axis along which the batch lies")
    return [Rows(marks.index(rows.axis), rows.outer, rows.inner)]


def _reduce(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    rows = rows_of_first(batch, node, held)
    if rows is None or operator(node).startswith(("Global", "Arg")):
        return None
    rank = batch.rank(node, node.inputs[0])
    given = axes_of(node)
    if not given and attribute(node, "noop_with_empty_axes"):
        return [rows]
    over = sorted({axis % rank for axis in given or range(rank)})
    if rows.axis not in over:
        return None
    kept = attribute(node, "keepdims") != 0
    require(
        kept and is_one_row(batch, rows),
        f"{label(node)} reduces over axis {rows.axis} of '{node.inputs[0].name}', where the rows "
        "of a batch lie: it would mix them",
    )
    rest = [axis for axis in over if axis != rows.axis]
    require(
        rest or has(node, Trait.OF_ONE_ITSELF),
        f"{label(node)} reduces over the batch alone",
    )

    def change(changes: Changes) -> None:
        edit, source = changes.edit, changes.edit.current(node.inputs[0])
        if not rest:
            new = edit.one("Identity", [source], like=None)
        else:
            new = edit.one(node.op, [source], like=node, axes=rest)
        changes.replace(node, new)

    batch.change(change, f"{label(node)} leaves the batch out of what it reduces over")
    return [rows]


def _softmax(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    rows = rows_of_first(batch, node, held)
    if rows is None or opset(node) >= _SOFTMAX_BY_AXIS:
        return None
    rank = batch.rank(node, node.inputs[0])
    axis = attribute(node, "axis") % rank
    if axis or rows.axis or not is_one_row(batch, rows) or rank < 2:
        return None

    def change(changes: Changes) -> None:
        source = changes.edit.current(node.inputs[0])
        changes.replace(node, changes.edit.one(node.op, [source], like=node, axis=1))

    batch.change(change, f"{label(node)} works on each row alone")
    return [rows]


def _concat(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    """Rows are joined with rows; what is the same for each row is repeated."""
    found = {batch.rows[id(node.inputs[index])] for index in held}
    if not held:
        return None
    require(
        len(found) == 1,
        f"{label(node)} joins tensors in which the batch lies on different axes",
    )
    (rows,) = found
    rank = batch.rank(node, node.inputs[held[0]])
    require(
        attribute(node, "axis") % rank != rows.axis,
        f"{label(node)} joins its inputs along axis {rows.axis}, where the rows of a batch lie",
    )
    for index in range(len(node.inputs)):
        if index not in held:
            repeat(batch, node, index, rows.axis)
    return [rows]


def _recurrent(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    """The steps have rows; initial states and lengths that are the same for all are repeated."""
    if not held:
        return None
    layout = 1 if attribute(node, "layout") else 0
    places = {0: 1 - layout, 4: 0, 5: 1 - layout, 6: 1 - layout}
    require(0 in held, f"{label(node)} has states for each row, but not its steps")
    for index, tensor in enumerate(node.inputs):
        if index in held:
            rows = batch.rows[id(tensor)]
            require(index in places, f"{label(node)} has weights that depend on the batch")
            require(
                rows.plain and rows.axis == places[index],
                f"{label(node)} takes axis {rows.axis} of '{tensor.name}', where the rows of a "
                "batch lie, for something else",
            )
        elif index in places and tensor.name:
            repeat(batch, node, index, places[index])
    return [Rows(0 if layout else 2), *[Rows(1 - layout)] * 2]


def _expand(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    target = batch.values(node.inputs[1])
    data = node.inputs[0]
    require(
        1 not in held and target is not None,
        f"{label(node)} expands to a shape that is not known",
    )
    assert target is not None
    sizes = batch.freed(data)
    rank = batch.rank(node, node.outputs[0])
    require(sizes is not None, f"the shape of '{data.name}' at {label(node)} is not known")
    assert sizes is not None
    counts = [i + rank - len(target) for i, s in enumerate(target) if batch.holds_count(s)]
    if 0 in held:
        rows = batch.rows[id(data)]
        axis = rows.axis + rank - len(sizes)
        asked = target[axis - rank + len(target)] if axis >= rank - len(target) else ONE
        require(
            counts in ([], [axis]) and asked in (ONE, sizes[rows.axis]),
            f"{label(node)} expands to a shape that names the batch",
        )
        return [Rows(axis, rows.outer, rows.inner)]
    if not counts:
        return None
    (axis, *more) = counts
    own = sizes[axis - rank + len(sizes)] if axis >= rank - len(sizes) else ONE
    require(not more and own == ONE, f"{label(node)} expands to a shape that names the batch twice")
    return [_filled(batch, target[axis - rank + len(target)], axis)]


def _filled(batch: Batch, size: Size, axis: int) -> Rows:
    """Return the rows of an axis along which all elements are equal."""
    names = list(size.names)
    names.remove(batch.name)
    return Rows(axis, ONE, Size(size.factor, tuple(names)))


def _constant_of_shape(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    target = batch.values(node.inputs[0])
    require(
        not held and target is not None,
        f"{label(node)} makes a tensor of a shape that is not known",
    )
    assert target is not None
    counts = [axis for axis, size in enumerate(target) if batch.holds_count(size)]
    require(
        len(counts) == 1 and target[counts[0]].names.count(batch.name) == 1,
        f"{label(node)} makes a tensor whose shape is not that of one batch",
    )
    return [_filled(batch, target[counts[0]], counts[0])]


def _resize(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    rows = rows_of_first(batch, node, held)
    sizes = node.inputs[3] if len(node.inputs) > 3 and node.inputs[3].name else None
    if rows is None or sizes is None:
        return None
    own = batch.freed(node.inputs[0])
    target = batch.values(sizes)
    listed = attribute(node, "axes")
    require(
        attribute(node, "coordinate_transformation_mode") != "tf_crop_and_resize"
        and attribute(node, "keep_aspect_ratio_policy") in (None, "stretch")
        and target is not None
        and own is not None,
        f"{label(node)} resizes in a way that may mix the rows of a batch",
    )
    assert target is not None and own is not None
    if listed is not None:
        require(
            rows.axis not in [axis % len(own) for axis in listed],
            f"{label(node)} resizes axis {rows.axis}, where the rows of a batch lie",
        )
        return [rows]
    others = [size for axis, size in enumerate(target) if axis != rows.axis]
    require(
        not any(batch.holds_count(size) for size in others),
        f"{label(node)} resizes to a size that depends on the batch",
    )
    if target[rows.axis] == own[rows.axis]:
        return [rows]
    fixed = integers(sizes)
    require(
        rows.plain and target[rows.axis] == Size(batch.count) and fixed is not None,
        f"{label(node)} resizes axis {rows.axis}, where the rows of a batch lie",
    )
    assert fixed is not None

    def change(changes: Changes) -> None:
        before, after = np.array(fixed[: rows.axis]), np.array(fixed[rows.axis + 1 :])
        parts = [before, changes.count, after]
        used = [part for part in parts if not (isinstance(part, np.ndarray) and not part.size)]
        node.inputs[3] = changes.edit.one("Concat", used, axis=0)

    batch.change(change, f"{label(node)} computes the size of the batch")
    return [rows]


def _max_pool(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    indices = len(node.outputs) > 1 and bool(node.outputs[1].name)
    require(not indices, f"{label(node)} gives indices that count through the whole batch")
    return None


def _grid_sample(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    """Each image at the places of its own row of the grid; what is the same for all is repeated."""
    if not held:
        return None
    for index, tensor in enumerate(node.inputs[:2]):
        if index not in held:
            repeat(batch, node, index, 0)
            continue
        rows = batch.rows[id(tensor)]
        require(
            rows.plain and rows.axis == 0,
            f"{label(node)} takes axis {rows.axis} of '{tensor.name}', where the rows of a batch "
            "lie, for something else",
        )
    return [Rows(0)]


def _one_hot(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    """Each index for itself, along an axis that comes in between the others."""
    rows = rows_of_first(batch, node, held)
    if rows is None:
        return None
    for tensor in node.inputs[1:]:
        require(
            id(tensor) not in batch.counted,
            f"{label(node)} computes with the size of the batch: '{tensor.name}'",
        )
    at = attribute(node, "axis") % (batch.rank(node, node.inputs[0]) + 1)
    return [Rows(rows.axis + (at <= rows.axis), rows.outer, rows.inner)]


def _to_sequence(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    rows = rows_of_first(batch, node, held)
    if rows is None:
        return None
    at = attribute(node, "axis") % batch.rank(node, node.inputs[0])
    require(at != rows.axis, f"{label(node)} cuts axis {at}, where the rows of a batch lie")
    dropped = len(node.inputs) < 2 and attribute(node, "keepdims") == 0 and at < rows.axis
    return [Rows(rows.axis - dropped, rows.outer, rows.inner)]


def _from_sequence(batch: Batch, node: Node, held: list[int]) -> Sequence[Rows | None] | None:
    rows = rows_of_first(batch, node, held)
    return None if rows is None else [rows]


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _moved),
    **dict.fromkeys(("Reshape", "Flatten"), reshape),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(named(Trait.REDUCTION), _reduce),
    **PICKS,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "GridSample": _grid_sample,
    "OneHot": _one_hot,
    "Resize": _resize,
    "MaxPool": _max_pool,
    "SequenceAt": _from_sequence,
    "SplitToSequence": _to_sequence,
}

__all__ = ["HANDLERS", "bound_axes", "met_axes", "place_after"]
