"""What is known of each tensor once a batch has been followed through a graph; see `batch_walk`.

The batch is `name` rows. Of a tensor that depends on them, the freed network computes what the
original computes for each row, one after the other along one axis (`Rows`). Where other axes were
joined with that one, a row's elements lie there as (outer, row, inner).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphpass import Graph, Node, Tensor, constant, label, require
from graphpass.ir.shapes import sizes, values
from graphpass.ir.sizes import Size, product
from graphpass.ir.weight import Array
from graphpass.rewrite.edit import Editor

ONE = Size(1)
Change = Callable[["Changes"], None]


@dataclass(frozen=True)
class Rows:
    """The rows lie along `axis`, whose index is (outer, row, inner)."""

    axis: int
    outer: Size = ONE
    inner: Size = ONE

    @property
    def plain(self) -> bool:
        """Whether the axis is the batch and nothing else."""
        return self.outer == self.inner == ONE

    def size(self, batch: Size) -> Size:
        """Return the size of the axis."""
        return product((self.outer, batch, self.inner))


@dataclass
class Batch:
    """The batch of `source` followed through `graph`: `count` rows natively, `name` afterwards.

    `shapes`: what every tensor has with `count` rows. `rows`: by the id of each tensor that
    depends on the batch; `counted`: tensors that hold its size. `changes`: what is to be done to
    the graph once everything is decided, each with what it says of itself. `moves`: where a
    Reshape puts a single row among other elements, let it have an axis of size 1 instead.
    """

    graph: Graph
    source: Tensor
    count: int
    name: str
    shapes: Mapping[str, Sequence[int | str | None]]
    rows: dict[int, Rows] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)
    changes: list[tuple[Change, str]] = field(default_factory=list)
    moves: bool = False

    def native(self, tensor: Tensor) -> list[Size] | None:
        """Return the sizes with `count` rows; None where the rank is unknown."""
        weight = constant(tensor)
        if weight is not None:
            return [Size(size) for size in weight.shape]
        shape = self.shapes.get(tensor.name, tensor.shape)
        if shape is None:
            return None
        return [
            Size(size)
            if isinstance(size, int)
            else Size(1, (size if size is not None else f"?{id(tensor)}.{axis}",))
            for axis, size in enumerate(shape)
        ]

    def freed(self, tensor: Tensor) -> list[Size] | None:
        """Return the sizes with `name` rows; None where the rank is unknown."""
        found = self.native(tensor)
        rows = self.rows.get(id(tensor))
        if found is not None and rows is not None:
            found[rows.axis] = rows.size(Size(1, (self.name,)))
        return found

    def values(self, tensor: Tensor) -> list[Size] | None:
        """Return the elements of a vector of integers with `name` rows; None if it is none."""
        return values(tensor, self.freed)

    def holds_count(self, size: Size) -> bool:
        """Whether `size` follows from the number of rows."""
        return self.name in size.names

    def rank(self, node: Node, tensor: Tensor) -> int:
        """Return the number of axes. Refuses where it is unknown."""
        found = self.native(tensor)
        require(found is not None, f"the shape of '{tensor.name}' at {label(node)} is not known")
        assert found is not None
        return len(found)

    def change(self, do: Change, note: str) -> None:
        """Do this to the graph once everything is decided."""
        self.changes.append((do, note))


class Changes:
    """Carries out what was decided; `edit` is the transaction that it is part of."""

    def __init__(self, batch: Batch, edit: Editor) -> None:
        self.batch = batch
        self.edit = edit
        self._count: Tensor | None = None

    def replace(self, node: Node, new: Tensor) -> None:
        """Let `new` take the place of the node's first output."""
        self.edit.replace(node.outputs[0], new)

    @property
    def count(self) -> Tensor:
        """The number of rows, as a vector of one integer."""
        if self._count is None:
            shape = self.edit.one("Shape", [self.batch.source])
            shape.dtype = np.dtype(np.int64)
            place = self.batch.rows[id(self.batch.source)].axis
            self._count = self.edit.one("Gather", [shape, np.array([place], np.int64)], axis=0)
        return self._count

    def vector(self, held: Tensor, axis: int, rank: int) -> Tensor:
        """Return a vector of `rank` integers: `held`, which is one, at `axis`, and ones."""
        before, after = np.ones(axis, np.int64), np.ones(rank - axis - 1, np.int64)
        parts = [part for part in (before, held, after) if not _is_empty(part)]
        return held if len(parts) == 1 else self.edit.one("Concat", parts, axis=0)

    def repeated(self, tensor: Tensor | Array, axis: int, rank: int) -> Tensor:
        """Return `tensor`, of size 1 along `axis`, once for each row."""
        held = tensor if isinstance(tensor, np.ndarray) else self.edit.current(tensor)
        return self.edit.one("Expand", [held, self.vector(self.count, axis, rank)])


def _is_empty(part: Tensor | Array) -> bool:
    return isinstance(part, np.ndarray) and part.size == 0


__all__ = ["ONE", "Batch", "Changes", "Rows", "Size", "product", "sizes"]
