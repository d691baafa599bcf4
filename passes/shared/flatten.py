"""Rules that find a Flatten behind its many spellings and move it down, towards the output.

A convolution in the place of a dense layer leaves a Flatten behind it. Moved below what follows,
it meets the next dense layer, which then reads the map before it.
"""

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
    const,
    is_output,
    label,
    operator,
    opset,
    rank,
    readers,
    require,
    static_shape,
)
from graphpass.ir.operators import Trait, has, is_training
from graphpass.ir.shapes import RESHAPES, reshaped, sizes

from .heads import (
    ALONG_AXIS,
    BROADCAST,
    POINTWISE,
    QUANTIZED,
    comes_from_conv,
    feeds_layer,
    flattens,
    is_pixel,
    makes_rows,
    map_sizes,
)

_FLATTEN = Op("Flatten", any_("y"), bind="flatten", shared=True)


class ViewIsFlatten(Rule):
    """Reshape(y[N, …], [N, K]) = Squeeze(y[N, K, 1, 1]) = Flatten(y)."""

    pattern = Op(("Reshape", "Squeeze"), any_("y"), ..., bind="view")

    def rewrite(self, view: Node, y: Tensor) -> Any:
        if not feeds_layer(view.outputs[0], view):
            return None
        if (rank(y) or 3) < 3 or not flattens(y, view):
            return None
        return Op("Flatten", y, axis=1)


class ViewOfViewIsFlatten(Rule):
    """Reshape(Unsqueeze | Squeeze | Reshape | Flatten(y[N, …]), [N, K]) = Flatten(y)."""

    pattern = Op(
        RESHAPES, Op(RESHAPES, any_("y"), ..., bind="inner", shared=True), ..., bind="outer"
    )

    def rewrite(self, outer: Node, inner: Node, y: Tensor) -> Any:
        if not feeds_layer(outer.outputs[0], outer):
            return None
        if (rank(y) or 0) < 3 or not flattens(y, inner, outer):
            return None
        return Op("Flatten", y, axis=1)


class TransposeAfterPointwise(Rule):
    """f(Transpose(y)) = Transpose(f(y)) for f that works element by element.

    It comes to lie before the Flatten or the pooling, where a dense layer takes it in.
    """

    pattern = Op(
        POINTWISE, Op("Transpose", any_("y"), bind="transpose", shared=True), ..., bind="f"
    )

    def rewrite(self, f: Node, transpose: Node, y: Tensor) -> Any:
        perm = attribute(transpose, "perm")
        if perm is None or list(perm) != [0, *range(2, len(perm)), 1] or len(perm) < 3:
            return None
        turned = transpose.outputs[0]
        if is_output(turned) or len(readers(turned)) > 1 or not has(f, Trait.ELEMENTWISE):
            return None
        if not makes_rows(f.outputs[0], f):
            return None
        return Op("Transpose", Op(f.op, y, *f.inputs[1:], **f.attrs), perm=perm)


class FlattenAfterPointwise(Rule):
    """f(Flatten(y)) = Flatten(f(y)) for f that works element by element."""

    pattern = Op(POINTWISE, _FLATTEN, ..., bind="f")

    def rewrite(self, f: Node, flatten: Node, y: Tensor) -> Any:
        if not _moves(flatten, f, y) or not has(f, Trait.ELEMENTWISE):
            return None
        return _flattened(f, y, *f.inputs[1:])


class FlattenAfterQuantization(Rule):
    """QuantizeLinear(Flatten(y), d, z) = Flatten(QuantizeLinear(y, d, z)) with one step d.

    DequantizeLinear likewise.
    """

    pattern = Op(QUANTIZED, _FLATTEN, any_("step"), ..., bind="f")

    def rewrite(self, f: Node, flatten: Node, step: Tensor, y: Tensor) -> Any:
        if static_shape(step) not in ((), (1,)) or not _moves(flatten, f, y):
            return None
        return _flattened(f, y, step, *f.inputs[2:])


class FlattenAfterConstant(Rule):
    """Flatten(y) + c[K] = Flatten(y + c[C, H, W]), also for -, *, /, Pow, Max, Min and PRelu."""

    pattern = Op(BROADCAST, _FLATTEN, const("term", quiet=True), bind="f", commutative=True)

    def rewrite(self, f: Node, flatten: Node, y: Tensor, term: Weight) -> Any:
        sizes = map_sizes(y)
        if sizes is None or not has(f, Trait.BROADCASTING) or not _moves(flatten, f, y):
            return None
        spread = _spread(term, sizes, f)
        if spread is None:
            return None
        if f.inputs[0] is flatten.outputs[0]:
            return _flattened(f, y, spread)
        return None if operator(f) == "PRelu" else _flattened(f, spread, y)


def _spread(term: Weight, sizes: tuple[int, ...], f: Node) -> Weight | None:
    """Return a constant that is the same for every image in the shape that y broadcasts with."""
    if term.ndim > 2 or (term.ndim == 2 and term.shape[0] != 1):
        return None  # it adds an axis, or has a row for each image
    if term.size == 1:
        return term
    # PRelu broadcasts to its first input only; without the batch's axis its slopes suit all
    axes = sizes if operator(f) == "PRelu" else (1, *sizes)
    row = 1
    for size in sizes:
        row *= size
    return term.reshape(*axes) if term.size == row else None


class FlattenAfterTwo(Rule):
    """Flatten(a) + Flatten(b) = Flatten(a + b) for maps of one size, also for -, *, /, …."""

    pattern = Op(
        tuple(op for op in BROADCAST if op != "PRelu"),
        Op("Flatten", any_("a"), bind="left", shared=True),
        Op("Flatten", any_("b"), bind="right", shared=True),
        bind="f",
    )

    def rewrite(self, f: Node, left: Node, right: Node, a: Tensor, b: Tensor) -> Any:
        sizes = map_sizes(a)
        if sizes is None or not has(f, Trait.BROADCASTING) or sizes != map_sizes(b):
            return None
        if not flattens(b, right) or not _moves(left, f, a):
            return None
        return _flattened(f, a, b)


class FlattenAfterSoftmax(Rule):
    """Softmax(Flatten(y[N, C, 1, 1])) = Flatten(Softmax(y, axis=1)) over classes.

    Before opset 13, Softmax normalizes over `axis` and all axes after it, which are 1 here.
    """

    pattern = Op(ALONG_AXIS, _FLATTEN, bind="f")

    def rewrite(self, f: Node, flatten: Node, y: Tensor) -> Any:
        if attribute(f, "axis") not in (1, -1) or not is_pixel(y):
            return None
        if not flattens(y, flatten) or not comes_from_conv(y):
            return None
        return Op("Flatten", Op(f.op, y, **{**f.attrs, "axis": 1}), axis=1)


class FlattenAfterBatchNormalization(Rule):
    """BatchNormalization(Flatten(y[N, C, 1, 1])) = Flatten(BatchNormalization(y))."""

    pattern = Op("BatchNormalization", _FLATTEN, ..., bind="f")

    def rewrite(self, f: Node, flatten: Node, y: Tensor) -> Any:
        by_element = opset(f) < 9 and attribute(f, "spatial") == 0
        if by_element or not is_pixel(y):
            return None
        require(not is_training(f), f"{label(f)} is in training mode")
        return _flattened(f, y, *f.inputs[1:]) if _moves(flatten, f, y) else None


class ViewOfFlattenIsMap(Rule):
    """Unsqueeze(Flatten(y[N, C, 1, 1]), [2, 3]) = Reshape(Flatten(y), [N, C, 1, 1]) = y."""

    pattern = Op(("Unsqueeze", "Reshape"), _FLATTEN, ..., bind="view")

    def rewrite(self, view: Node, flatten: Node, y: Tensor) -> Any:
        if not is_pixel(y) or not comes_from_conv(y):
            return None
        shape = sizes(y)
        return y if reshaped(view, reshaped(flatten, shape)) == shape else None


def _moves(flatten: Node, f: Node, y: Tensor) -> bool:
    """Whether moving `flatten` below `f` brings it nearer to the next dense layer, or to the
    output that a converted one leads to. Any other Flatten stays where it is.
    """
    if map_sizes(y) is None or not flattens(y, flatten):
        return False
    return feeds_layer(f.outputs[0], f) or (is_pixel(y) and comes_from_conv(y))


def _flattened(f: Node, *inputs: Any) -> Op:
    return Op("Flatten", Op(f.op, *inputs, **f.attrs), axis=1)


FLATTEN_RULES: tuple[Rule, ...] = (
    TransposeAfterPointwise(),
    ViewOfViewIsFlatten(),
    ViewIsFlatten(),
    FlattenAfterPointwise(),
    FlattenAfterQuantization(),
    FlattenAfterConstant(),
    FlattenAfterTwo(),
    FlattenAfterSoftmax(),
    FlattenAfterBatchNormalization(),
    ViewOfFlattenIsMap(),
)
