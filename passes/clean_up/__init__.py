"""clean-up: what computes nothing goes, and weights in disguise become initializers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from graphpass import (
    Node,
    Op,
    Pass,
    Rule,
    Survey,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    dtype,
    integers,
    is_output,
    label,
    operator,
    opset,
    optional,
    rank,
    readers,
    require,
    static_dim,
)
from graphpass.ir.operators import is_training
from graphpass.ir.questions import cast_type
from graphpass.ir.refusal import TRAINING
from graphpass.ir.shapes import slices

from ..shared.reshapes import DropReshape, FixReshape, MergeReshapes
from ..shared.transposes import TRANSPOSE_RULES, merged, permutation
from .constants import FOLD_BUDGET, ConstantToInitializer, FoldConstants
from .equal import EqualInitializers, EqualNodes

_PATTERN_ELEMENTS = 1 << 16  # a constant larger than this is a weight, not a neutral element
_TO_THE_END = 2**31 - 1  # what exporters write for the end of a slice that has none

# what each type is held by without loss
_WIDER = {
    "bool": ("uint8", "int8", "int32", "int64", "float16", "float32", "float64"),
    "uint8": ("int32", "int64", "float16", "float32", "float64"),
    "int8": ("int32", "int64", "float16", "float32", "float64"),
    "int32": ("int64", "float64"),
    "float16": ("float32", "float64"),
    "float32": ("float64",),
}


class DropIdentity(Rule):
    """Identity(x) = x."""

    pattern = Op("Identity", any_("x"))

    def rewrite(self, x: Tensor) -> Any:
        return x


class DropDropout(Rule):
    """Dropout(x) = x, except in training."""

    pattern = Op(
        "Dropout",
        any_("x"),
        optional(any_("ratio")),
        optional(const("training_mode")),
        bind="node",
    )

    def rewrite(
        self, node: Node, x: Tensor, ratio: Tensor | None, training_mode: Weight | None
    ) -> Any:
        require(not is_training(node), f"{label(node)} is in training mode", TRAINING)
        return x


class DropCast(Rule):
    """Cast(x, type of x) = x."""

    pattern = Op(("Cast", "CastLike"), any_("x"), ..., bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        kind = cast_type(node)
        return x if kind is not None and kind == dtype(x) else None


class MergeCasts(Rule):
    """Cast(Cast(x, wider type), t) = Cast(x, t), and x where t is the type of x."""

    pattern = Op("Cast", Op("Cast", any_("x"), bind="inner", shared=True), bind="outer")

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        source, wide, final = dtype(x), cast_type(inner), cast_type(outer)
        if source is None or str(wide) not in _WIDER.get(str(source), ()):
            return None
        if final == source:
            return x
        if _stays(inner) or str(final) not in (*_WIDER, "int64", "float64"):
            return None
        return Op("Cast", x, **outer.attrs)


def _stays(node: Node) -> bool:
    """Whether `node` is needed elsewhere too."""
    return is_output(node.outputs[0]) or len(readers(node.outputs[0])) > 1


class DropTranspose(Rule):
    """Transpose(x, [0, 1, …]) = x."""

    pattern = Op("Transpose", any_("x"), bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        axes = permutation(node)
        return x if axes is not None and axes == sorted(axes) else None


class MergeTransposes(Rule):
    """Transpose(Transpose(x, p), q) = Transpose(x, p[q]), and x where that is the identity."""

    pattern = Op("Transpose", Op("Transpose", any_("x"), bind="inner", shared=True), bind="outer")

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        both = merged(inner, outer)
        if both is None:
            return None
        return x if both == sorted(both) else Op("Transpose", x, perm=both)


class DropPool(Rule):
    """Pool(x) over windows of one element = x: the mean or maximum of one number is that number."""

    pattern = Op(("AveragePool", "MaxPool"), any_("x"), bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        ones = [*(attribute(node, "kernel_shape") or ()), *(attribute(node, "strides") or ())]
        zeros = attribute(node, "pads") or ()
        return x if set(ones) == {1} and not any(zeros) else None


class DropGlobalPool(Rule):
    """GlobalPool(x[N, C, 1, 1]) = x."""

    pattern = Op(("GlobalAveragePool", "GlobalMaxPool"), any_("x"))

    def rewrite(self, x: Tensor) -> Any:
        count = rank(x)
        if count is None or any(static_dim(x, axis) != 1 for axis in range(2, count)):
            return None
        return x


class DropPad(Rule):
    """Pad(x, zeros) = x."""

    pattern = Op("Pad", any_("x"), ..., bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        listed = attribute(node, "pads") or attribute(node, "paddings")
        if listed is None and len(node.inputs) > 1:
            listed = integers(node.inputs[1])
        return x if listed is not None and not any(listed) else None


class DropSlice(Rule):
    """Slice(x) from the first element to the last = x."""

    pattern = Op("Slice", any_("x"), ..., bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        bounds = slices(node)
        if bounds is None:
            return None
        for axis, start, end, step in bounds:
            size = static_dim(x, axis)
            if start or step != 1 or end < (_TO_THE_END if size is None else size):
                return None
        return x


class DropConcat(Rule):
    """Concat(x) = x."""

    pattern = Op("Concat", any_("x"))

    def rewrite(self, x: Tensor) -> Any:
        return x


class DropExpand(Rule):
    """Expand(x, ones) = x = Tile(x, ones); likewise Expand(x, shape of x)."""

    pattern = Op(("Expand", "Tile"), any_("x"), const("counts", quiet=True), bind="node")

    def rewrite(self, node: Node, x: Tensor, counts: Weight) -> Any:
        count = rank(x)
        if counts.size > 64:
            return None
        listed = [int(value) for value in counts.array().reshape(-1)]
        if operator(node) == "Tile":
            return x if set(listed) <= {1} else None
        if count is None or len(listed) > count:
            return None
        fits = (
            size == 1 or size == static_dim(x, axis - len(listed))
            for axis, size in enumerate(listed)
        )
        return x if all(fits) else None


class DropNeutral(Rule):
    """x·1 = x = x / 1; x + (−0) = x = x − 0. Adding 0 is another thing: it makes −0 into 0."""

    pattern = Op(("Mul", "Add"), any_("x"), const("c", quiet=True), commutative=True, bind="node")

    def rewrite(self, node: Node, x: Tensor, c: Weight) -> Any:
        return x if _is_neutral(node, x, c) else None


class DropNeutralRight(Rule):
    """x / 1 = x = x − 0."""

    pattern = Op(("Div", "Sub"), any_("x"), const("c", quiet=True), bind="node")

    def rewrite(self, node: Node, x: Tensor, c: Weight) -> Any:
        return x if _is_neutral(node, x, c) else None


def _is_neutral(node: Node, x: Tensor, c: Weight) -> bool:
    if opset(node) < 7 or c.size > _PATTERN_ELEMENTS or not _keeps_shape(x, c):
        return False
    value = c.array()
    if operator(node) in ("Mul", "Div"):
        return bool((value == 1).all())
    if (value != 0).any():
        return False
    if value.dtype.kind in "iu":
        return True
    negative = np.signbit(value)
    return bool(negative.all() if operator(node) == "Add" else not negative.any())


def _keeps_shape(x: Tensor, c: Weight) -> bool:
    """Whether an elementwise operator on both has a result of the shape of `x`."""
    if c.ndim == 0:
        return True
    count = rank(x)
    if count is None or c.ndim > count:
        return False
    return all(
        size == 1 or size == static_dim(x, axis - c.ndim) for axis, size in enumerate(c.shape)
    )


_RULES: tuple[Rule, ...] = (
    DropIdentity(),
    DropDropout(),
    DropCast(),
    MergeCasts(),
    DropTranspose(),
    MergeTransposes(),
    DropReshape(),
    MergeReshapes(),
    FixReshape(),
    DropPool(),
    DropGlobalPool(),
    DropPad(),
    DropSlice(),
    DropConcat(),
    DropExpand(),
    DropNeutral(),
    DropNeutralRight(),
    *TRANSPOSE_RULES,
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
        return (FoldConstants(self.fold_budget), EqualInitializers(), EqualNodes())

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """What is looked for node by node."""
        return (ConstantToInitializer(self.fold_budget), *_RULES)


__all__ = ["CleanUp"]
