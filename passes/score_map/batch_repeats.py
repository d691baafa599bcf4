"""What is the same for each row of a batch, read once for each of them."""

from __future__ import annotations

import numpy as np

from graphpass import Node, Tensor, constant, label, opset, require

from .batch_rows import ONE, Batch, Changes, Rows, Size


def rows_of_first(batch: Batch, node: Node, held: list[int]) -> Rows | None:
    """Return the rows of the first input; None where it is another that has them."""
    return batch.rows[id(node.inputs[0])] if held == [0] else None


def is_one_row(batch: Batch, rows: Rows) -> bool:
    """Whether the axis of the rows has one element natively, so that it can be left alone."""
    return batch.count == 1 and rows.plain


def repeat(batch: Batch, node: Node, index: int, axis: int) -> None:
    """Let the node read input `index`, natively of `count` equal rows, once for each row."""
    tensor = node.inputs[index]
    rank = batch.rank(node, tensor)
    sizes = batch.native(tensor) or []
    size = sizes[axis] if axis < rank else None
    require(
        id(tensor) not in batch.counted and size == Size(batch.count) and opset(node) >= 8,
        f"{label(node)} reads '{tensor.name}', which is of another size than the batch",
    )
    row: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None = None
    if batch.count > 1:
        weight = constant(tensor)
        values = weight.array() if weight is not None else None
        same = values is not None and bool(
            np.all(values == values.take([0], axis)) or not np.any(values)
        )
        require(same, f"{label(node)} reads '{tensor.name}', which has other values for each row")
        assert values is not None
        row = values.take([0], axis)
    batch.change(
        lambda changes: _read_repeated(changes, node, index, tensor if row is None else row, axis),
        f"'{tensor.name}' is repeated for each row at {label(node)}",
    )


def _read_repeated(
    changes: Changes, node: Node, index: int, tensor: Tensor | np.ndarray, axis: int
) -> None:
    rank = tensor.ndim if isinstance(tensor, np.ndarray) else changes.batch.rank(node, tensor)
    node.inputs[index] = changes.repeated(tensor, axis, rank)


def tile(batch: Batch, node: Node, index: int, axis: int, rows: Rows) -> bool:
    """Let what has an element for each part of a row meet every row; return whether it can.

    Where `axis` of the input natively has what the axis of the one row has, (row, inner).
    """
    tensor = node.inputs[index]
    sizes = batch.native(tensor)
    fits = sizes is not None and sizes[axis] == rows.inner and rows.outer == ONE
    if not fits or batch.count != 1 or opset(node) < 6:
        return False
    rank = batch.rank(node, tensor)

    def change(changes: Changes) -> None:
        times = changes.vector(changes.count, axis, rank)
        source = changes.edit.current(tensor)
        node.inputs[index] = changes.edit.one("Tile", [source, times])

    batch.change(change, f"'{tensor.name}' is repeated for each row at {label(node)}")
    return True


__all__ = ["is_one_row", "repeat", "rows_of_first", "tile"]
