"""What exporters compute with shapes and masks."""

from __future__ import annotations

from typing import Any

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    axes_of,
    const,
    constant,
    dtype,
    label,
    operator,
    opset,
    producer,
    rank,
    require,
    static_dim,
)
from graphpass.ir.operators import Trait, has, named
from graphpass.ir.shapes import slices, values

from .neutral import keeps_shape

_SHAPE_HAS_ENDS = 15
_MOST_ABOVE = 8  # operators between a condition and what it is of


class GatherOfOne(Rule):
    """Unsqueeze(Gather(v, i), 0) = Gather(v, [i]) for a vector v and a number i."""

    pattern = Op(
        "Unsqueeze",
        Op("Gather", any_("vector"), const("index"), bind="gather"),
        ...,
        bind="unsqueeze",
    )

    def rewrite(self, unsqueeze: Node, gather: Node, vector: Tensor, index: Weight) -> Any:
        axes = axes_of(unsqueeze)
        if rank(vector) != 1 or index.ndim or axes not in ([0], [-1]):
            return None
        return Op("Gather", vector, index.array().reshape(1), **gather.attrs)


class GatherOfShape(Rule):
    """Gather(Shape(x), [i, i + 1, …]) = Shape(x, start=i, end=…)."""

    pattern = Op(
        "Gather", Op("Shape", any_("x"), bind="shape", shared=True), const("index"), bind="gather"
    )

    def rewrite(self, gather: Node, shape: Node, x: Tensor, index: Weight) -> Any:
        count = rank(x)
        if opset(gather) < _SHAPE_HAS_ENDS or count is None or index.ndim != 1 or not index.size:
            return None
        places = list(range(count))[attribute(shape, "start") : attribute(shape, "end")]
        found = [int(i) for i in index.array()]
        if not all(-len(places) <= i < len(places) for i in found):
            return None
        return _part(x, [places[i] for i in found], count)


class SliceOfShape(Rule):
    """Slice(Shape(x), i, j) = Shape(x, start=i, end=j)."""

    pattern = Op("Slice", Op("Shape", any_("x"), bind="shape", shared=True), ..., bind="node")

    def rewrite(self, node: Node, shape: Node, x: Tensor) -> Any:
        count, bounds = rank(x), slices(node)
        if opset(node) < _SHAPE_HAS_ENDS or count is None or bounds is None or len(bounds) != 1:
            return None
        places = list(range(count))[attribute(shape, "start") : attribute(shape, "end")]
        _, start, end, step = bounds[0]
        return _part(x, places[start:end], count) if step == 1 else None


def _part(x: Tensor, axes: list[int], count: int) -> Op | None:
    if not axes or axes != list(range(axes[0], axes[-1] + 1)):
        return None
    end = None if axes[-1] + 1 == count else axes[-1] + 1
    return Op("Shape", x, start=axes[0] or None, end=end)


class ShapeIsNeverMinusOne(Rule):
    """Where(Equal(s, −1), c, s) = s for sizes s, none of which is −1."""

    pattern = Op(
        "Where",
        Op("Equal", any_("sizes"), const("mark"), commutative=True),
        any_("instead"),
        any_("sizes"),
    )

    def rewrite(self, sizes: Tensor, mark: Weight, instead: Tensor) -> Any:
        found = values(sizes)
        if found is None or any(not size.is_axis for size in found):
            return None
        marks = {int(value) for value in mark.array().reshape(-1)}
        other = values(instead)
        fits = other is not None and len(other) in (1, len(found)) and rank(sizes) == 1
        return sizes if fits and mark.size in (1, len(found)) and marks <= {-1} else None


class DropMask(Rule):
    """And(true, x) = x = Or(false, x)."""

    pattern = Op(("And", "Or"), any_("x"), const("mask", quiet=True), commutative=True, bind="node")

    def rewrite(self, node: Node, x: Tensor, mask: Weight) -> Any:
        if opset(node) < 7 or mask.size > 1 << 16 or not keeps_shape(x, mask):
            return None
        value = mask.array()
        return x if (value.all() if node.op == "And" else not value.any()) else None


class DropWhere(Rule):
    """Where(true, x, y) = x, Where(false, x, y) = y, where the shape stays."""

    pattern = Op("Where", const("mask", quiet=True), any_("x"), any_("y"), bind="node")

    def rewrite(self, node: Node, mask: Weight, x: Tensor, y: Tensor) -> Any:
        if mask.size > 1 << 16 or not mask.size:
            return None
        value = mask.array()
        if not (value.all() or not value.any()):
            return None
        kept, gone = (x, y) if value.all() else (y, x)
        other = constant(gone)
        fits = keeps_shape(kept, mask) and (
            gone is kept or (other is not None and keeps_shape(kept, other))
        )
        return kept if fits else None


class WhereNot(Rule):
    """Where(Not(c), x, y) = Where(c, y, x)."""

    pattern = Op("Where", Op("Not", any_("condition")), any_("x"), any_("y"))

    def rewrite(self, condition: Tensor, x: Tensor, y: Tensor) -> Any:
        return Op("Where", condition, y, x)


class WhereOfSame(Rule):
    """Where(c, x, x) = x for a condition c that is computed of x, element by element."""

    pattern = Op("Where", any_("condition"), any_("x"), any_("x"))

    def rewrite(self, condition: Tensor, x: Tensor) -> Any:
        for _ in range(_MOST_ABOVE):
            source = producer(condition)
            if condition is x:
                return x
            if source is None or not has(source, Trait.ELEMENTWISE):
                return None
            condition = source.inputs[0]
        return None


def _reduction(op: str | tuple[str, ...]) -> Op:
    return Op(op, any_("x"), ..., bind="reduction")


class KeepDims(Rule):
    """Unsqueeze(Reduce(x, axes, keepdims=0), axes) = Reduce(x, axes, keepdims=1), and back."""

    pattern = Op(("Unsqueeze", "Squeeze"), _reduction(named(Trait.REDUCTION)), ..., bind="view")

    def rewrite(self, view: Node, reduction: Node, x: Tensor) -> Any:
        count = rank(x)
        keeps = bool(attribute(reduction, "keepdims"))
        if count is None or keeps == (view.op == "Unsqueeze"):
            return None
        gone = _reduced(reduction, count)
        axes = axes_of(view)
        if gone is None or axes is None or sorted(axis % count for axis in axes) != gone:
            return None
        changed = {**reduction.attrs, "keepdims": int(not keeps)}
        return Op(reduction.op, x, *reduction.inputs[1:], **changed)


class ReduceOfOne(Rule):
    """Reduce(x) over axes of size 1 = x, or Squeeze(x): of one element, max, sum, product, mean.

    Also of NaN, infinity and −0: a sum begins with its first element, in ONNX Runtime as well. But
    for integers of 64 bits, it adds and multiplies in float64, which rounds them beyond 2^53.
    """

    pattern = _reduction(named(Trait.OF_ONE_ITSELF))

    def rewrite(self, reduction: Node, x: Tensor) -> Any:
        count = rank(x)
        axes = None if count is None else _reduced(reduction, count)
        if not axes or any(static_dim(x, axis) != 1 for axis in axes):
            return None
        kind = dtype(x)
        require(
            operator(reduction) in ("ReduceMax", "ReduceMin")
            or (kind is not None and (kind.kind == "f" or kind.itemsize < 8)),
            f"{label(reduction)} is computed in float64, which rounds integers beyond 2^53",
        )
        if attribute(reduction, "keepdims"):
            return x
        return Op("Squeeze", x, axes=axes)


def _reduced(reduction: Node, count: int) -> list[int] | None:
    if reduction.op.startswith("Arg"):
        return [attribute(reduction, "axis") % count]
    axes = axes_of(reduction)
    if not axes:
        is_none = bool(attribute(reduction, "noop_with_empty_axes"))
        return None if is_none else list(range(count))
    return sorted(axis % count for axis in axes)


COUNTING_RULES = (
    GatherOfOne(),
    GatherOfShape(),
    SliceOfShape(),
    ShapeIsNeverMinusOne(),
    DropMask(),
    DropWhere(),
    WhereNot(),
    WhereOfSame(),
    KeepDims(),
    ReduceOfOne(),
)

__all__ = ["COUNTING_RULES"]
