"""What operators do to channels: one row for each that treats them one by one, or sums them up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Tensor,
    Weight,
    attribute,
    constant,
    integers,
    label,
    needed,
    operator,
    opset,
    rank,
    require,
    static_dim,
)
from graphpass.ir.mixing import mixed_axes
from graphpass.ir.operators import Trait, has
from graphpass.ir.shapes import slices
from graphpass.ir.windows import pads_nothing

from ..shared.affine import FLOAT_TYPES, Array, Floats, rounded, weighted_sum
from ..shared.affine_nodes import rebuilt
from ..shared.affine_ops import change_of
from ..shared.channels import Channels, vector
from ..shared.linear import gemm_bias, held_for_others, output_axis
from ..shared.linear_map import blocks
from ..shared.maps import axes_count
from .tied import Bools, Held, Ints, Kept, Narrowed, Part, Wiring, joined


def part_of(node: Node, wiring: Wiring) -> Part | None:
    """Note what `node` does to channels; None where that is not known. May refuse."""
    row = _ROWS.get(operator(node))
    if row is not None:
        return row(node, wiring)
    if not any(wiring.knows(tensor) for tensor in node.inputs):
        return None
    if has(node, Trait.BROADCASTING):
        return _broadcast(node, wiring)
    if any(has(node, kind) for kind in _ONE_BY_ONE) and mixed_axes(node) is not None:
        return _one_by_one(node, wiring)
    return None


_ONE_BY_ONE = (Trait.ELEMENTWISE, Trait.POOL, Trait.REDUCTION, Trait.SAMPLING)


# ------------------------------------------------------------------------ sums over channels


def _conv(node: Node, wiring: Wiring) -> Part:
    weight, bias = _held(node.inputs[1]), _given(node, 2)
    group, outputs = attribute(node, "group"), weight.shape[0]
    read = wiring.of(node.inputs[0])
    fits = read.wires.size == group * weight.shape[1] and outputs % group == 0
    require(fits, f"{label(node)} does not fit what it reads")
    shift = np.zeros(outputs) if bias is None else vector(bias, outputs)
    if group > 1 and weight.shape[1] == 1:
        return _depthwise(node, wiring, weight, bias, shift)
    dead, unread = _zeros(weight)
    if group > 1:
        wiring.even(read.wires.reshape(group, -1))
        unread = np.concatenate([_zeros(weight, part)[1] for part in _parts(outputs, group)])
    free = pads_nothing(node, node.inputs[0])
    _pin_what_is_read(node, wiring, read, unread, free)
    made = wiring.makes(node.outputs[0], outputs, np.where(dead, shift, np.nan))
    if group > 1:
        wiring.even(made.wires.reshape(group, -1))
    _pin_what_is_shared(node, wiring, weight)

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        ins, outs = kept(node.inputs[0]), kept(node.outputs[0])
        values = weight.array()
        total = shift + _from_constants(weight, read, unread, ins, group)
        if ins is not None:
            values = _columns(values, ins, group)
        if outs is not None:
            values, total = values[outs], total[outs]
        held = _bias(node, bias, total, outs, weight)
        return Op("Conv", inputs[0], np.ascontiguousarray(values), held, **node.attrs)

    return Part(node, narrowed, mixes=True, constant=dead)


def _depthwise(
    node: Node, wiring: Wiring, weight: Weight, bias: Weight | None, shift: Floats
) -> Part:
    """Each channel that is read makes some, with which it goes."""
    read = wiring.of(node.inputs[0])
    times = weight.shape[0] // read.wires.size
    dead = _zeros(weight)[0]
    value = np.repeat(read.value, times)
    known = dead | (value == 0)
    made = wiring.makes(node.outputs[0], weight.shape[0], np.where(known, shift, np.nan))
    wiring.tie(np.repeat(read.wires, times), made.wires)
    _pin_what_is_shared(node, wiring, weight)

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        outs = kept(node.outputs[0])
        assert outs is not None
        attributes = {**node.attrs, "group": len(outs) // times}
        held = None if bias is None else np.ascontiguousarray(bias.array()[outs])
        return Op("Conv", inputs[0], np.ascontiguousarray(weight.array()[outs]), held, **attributes)

    return Part(node, narrowed, constant=dead)


def _gemm(node: Node, wiring: Wiring) -> Part:
    weight, bias = _held(node.inputs[1]), _given(node, 2)
    require(not attribute(node, "transA"), f"{label(node)} transposes its input")
    outputs = weight.shape[output_axis(node)]
    shift = gemm_bias(node, None if bias is None else vector(bias, outputs))
    return _matrix(node, wiring, weight, bias, np.zeros(outputs) if shift is None else shift)


def _matmul(node: Node, wiring: Wiring) -> Part:
    require(rank(node.inputs[0]) == 2, f"{label(node)} has its channels along another axis")
    weight = _held(node.inputs[1])
    require(weight.ndim == 2, f"the weight of {label(node)} is no matrix")
    return _matrix(node, wiring, weight, None, np.zeros(weight.shape[1]))


def _matrix(node: Node, wiring: Wiring, weight: Weight, bias: Weight | None, shift: Floats) -> Part:
    turned = operator(node) == "Gemm" and output_axis(node) == 0
    axis = 0 if turned else 1
    read = wiring.of(node.inputs[0])
    require(read.wires.size == weight.shape[1 - axis], f"{label(node)} does not fit what it reads")
    dead, unread = _zeros(weight) if turned else _zeros(weight)[::-1]
    adds = operator(node) == "Gemm"
    # a MatMul has no bias to take a constant in
    _pin_what_is_read(node, wiring, read, unread, free=adds)
    wiring.makes(node.outputs[0], weight.shape[axis], np.where(dead, shift, np.nan))
    _pin_what_is_shared(node, wiring, weight)

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        ins, outs = kept(node.inputs[0]), kept(node.outputs[0])
        values, total = weight.array(), shift
        if ins is not None:
            gone = np.where(unread, 0.0, read.value)
            gone[ins] = 0
            spread = gone if turned else gone[:, None]
            added = weighted_sum(weight, spread.reshape(1, -1) if turned else spread, axis)
            total = total + added * (attribute(node, "alpha") if adds else 1)
            values = values.take(ins, 1 - axis)
        if outs is not None:
            values, total = values.take(outs, axis), total[outs]
        held = _bias(node, bias, total, outs, weight) if adds else None
        attributes = {**node.attrs, "beta": 1.0} if adds and held is not None else node.attrs
        return Op(node.op, inputs[0], np.ascontiguousarray(values), held, **attributes)

    return Part(node, narrowed, mixes=True, constant=dead)


def _held(tensor: Tensor) -> Weight:
    weight = needed(constant(tensor), f"'{tensor.name}' is no constant")
    require(weight.dtype in FLOAT_TYPES and weight.size, f"'{tensor.name}' holds no numbers")
    weight.origin = tensor
    return weight


def _given(node: Node, index: int) -> Weight | None:
    if len(node.inputs) <= index or not node.inputs[index].name:
        return None
    return needed(constant(node.inputs[index]), f"the bias of {label(node)} is no constant")


def _zeros(weight: Weight, part: slice = slice(None)) -> tuple[Bools, Bools]:
    """Return which rows are 0, and which channels all of them have a 0 for; a block at a time."""
    start, stop, _ = part.indices(weight.shape[0])
    dead, unread = [np.zeros(0, np.bool_)], np.ones(weight.shape[1], np.bool_)
    for block in blocks(stop - start, math.prod(weight.shape[1:]) * (stop - start)):
        held = weight.rows(slice(start + block.start, start + block.stop)) != 0
        counts = held.reshape(len(held), len(unread), -1).any(axis=2)
        dead.append(~counts.any(axis=1))
        unread &= ~counts.any(axis=0)
    return np.concatenate(dead), unread


def _parts(outputs: int, group: int) -> list[slice]:
    size = outputs // group
    return [slice(start, start + size) for start in range(0, outputs, size)]


def _pin_what_is_read(node: Node, wiring: Wiring, read: Held, unread: Bools, free: bool) -> None:
    """Let channels stay that are neither unread nor of a value that the bias can take in.

    `free`: whether it is the same for each position.
    """
    known = np.isfinite(read.value)
    pads = "pads" if operator(node) == "Conv" else "has no bias"
    wiring.pin(
        read.wires[~(unread | known)], f"not of a known value where {label(node)} reads them"
    )
    wiring.pin(
        read.wires[~unread & known & (read.value != 0) & (not free)],
        f"not 0 where {label(node)} {pads}",
    )


def _pin_what_is_shared(node: Node, wiring: Wiring, weight: Weight) -> None:
    """Let all stay where a weight would have to be stored twice."""
    if reason := held_for_others(weight):
        for tensor in (node.inputs[0], node.outputs[0]):
            wiring.pin(wiring.of(tensor).wires, reason)


def _from_constants(weight: Weight, read: Held, unread: Bools, ins: Ints | None, group: int) -> Any:
    """Return what the channels that go come to in the output of a Conv."""
    if ins is None:
        return 0.0
    gone = np.where(unread, 0.0, read.value)
    gone[ins] = 0
    if not gone.any():
        return 0.0
    own = np.repeat(gone.reshape(group, -1), weight.shape[0] // group, axis=0)
    return weighted_sum(weight, own.reshape(*own.shape, *[1] * (weight.ndim - 2)), 0)


def _columns(values: Array, ins: Ints, group: int) -> Array:
    """Return the weights for the channels `ins`, as many of each group."""
    rows, own = values.shape[0] // group, values.shape[1]
    blocks = [
        values[g * rows : (g + 1) * rows, ins[ins // own == g] - g * own] for g in range(group)
    ]
    return blocks[0] if group == 1 else np.concatenate(blocks)


def _bias(
    node: Node, bias: Weight | None, total: Floats, outs: Ints | None, weight: Weight
) -> Array | Weight | None:
    """Return the bias `total`; the one that is there, where it is the same."""
    if bias is None:
        changed = bool(total.any())
        return rounded(total, weight.dtype, f"the bias of {label(node)}") if changed else None
    held = bias.array()
    before = held if outs is None else held[outs]
    if np.array_equal(before.astype(np.float64), total):
        return bias if outs is None else np.ascontiguousarray(before)
    return rounded(total, bias.dtype, f"the bias of {label(node)}")


# ------------------------------------------------------------------------- channel by channel


def _one_by_one(node: Node, wiring: Wiring) -> Part:
    mixed, read = mixed_axes(node) or frozenset(), wiring.of(node.inputs[0])
    require(1 not in mixed, f"{label(node)} mixes channels")
    stays = 0 not in mixed or rank(node.outputs[0]) == rank(node.inputs[0])
    require(stays, f"{label(node)} moves channels to another axis")
    wiring.passes(node.outputs[0], read.wires, _value(node, read.value))
    return Part(node, lambda inputs, kept: rebuilt(node, inputs))


def _value(node: Node, values: Floats) -> Floats:
    """Return what an operator makes of constant channels, NaN where that is not known."""
    known = _VALUES.get(operator(node))
    made = known(node, values) if known is not None else np.full_like(values, np.nan)
    if has(node, Trait.KEEPS_ZERO):
        made = np.where(values == 0, 0.0, made)
    return made


def _leaky(node: Node, values: Floats) -> Floats:
    return np.where(values < 0, float(attribute(node, "alpha")) * values, values)


def _average(node: Node, values: Floats) -> Floats:
    """A mean of what is the same; where padding counts as zeros, it is not."""
    whole = not attribute(node, "ceil_mode") and pads_nothing(node, node.inputs[0])
    return values if whole else np.where(values == 0, 0.0, np.nan)


def _same(node: Node, values: Floats) -> Floats:
    return values


def _resized(node: Node, values: Floats) -> Floats:
    plain = attribute(node, "mode") in ("nearest", "linear")
    inside = attribute(node, "coordinate_transformation_mode") != "tf_crop_and_resize"
    return values if plain and inside else np.full_like(values, np.nan)


def _clipped(node: Node, values: Floats) -> Floats:
    bounds = []
    for name, place, otherwise in (("min", 1, -np.inf), ("max", 2, np.inf)):
        given = node.attrs.get(name)
        if given is None and len(node.inputs) > place and node.inputs[place].name:
            weight = constant(node.inputs[place])
            given = np.nan if weight is None else weight.array().reshape(-1)[0]
        bounds.append(otherwise if given is None else float(given))
    clipped: Floats = np.minimum(np.maximum(values, bounds[0]), bounds[1])
    return clipped


def _hard_sigmoid(node: Node, values: Floats) -> Floats:
    alpha, beta = float(attribute(node, "alpha")), float(attribute(node, "beta"))
    return np.clip(alpha * values + beta, 0, 1)


_VALUES: dict[str, Callable[[Node, Floats], Floats]] = {
    "Relu": lambda node, values: np.maximum(values, 0),
    "LeakyRelu": _leaky,
    "Clip": _clipped,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, values: values * np.clip(values / 6 + 0.5, 0, 1),
    "Sigmoid": lambda node, values: 0.5 + 0.5 * np.tanh(0.5 * values),
    "Tanh": lambda node, values: np.tanh(values),
    "Identity": _same,
    "MaxPool": _same,
    "GlobalMaxPool": _same,
    "GlobalAveragePool": _same,
    "ReduceMean": _same,
    "ReduceMax": _same,
    "ReduceMin": _same,
    "AveragePool": _average,
    "Resize": _resized,
    "Upsample": _resized,
}


def _normalization(node: Node, wiring: Wiring) -> Part:
    read, axes = wiring.of(node.inputs[0]), axes_count(node.inputs[0])
    parameters = [_own_vector(tensor, read.wires.size) for tensor in node.inputs[1:5]]
    change = change_of(node, None, Channels(read.wires.size, 1 - axes, axes), "its input")
    # a factor of 0, as pruning leaves it, makes a constant of anything
    value = np.where(change.factor == 0, change.shift, change.factor * read.value + change.shift)
    wiring.passes(node.outputs[0], read.wires, value)

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        stays = kept(node.inputs[0])
        return Op(
            node.op,
            inputs[0],
            *(np.ascontiguousarray(held.array()[stays]) for held in parameters),
            **node.attrs,
        )

    return Part(node, narrowed, constant=change.factor == 0)


def _own_vector(tensor: Tensor, size: int) -> Weight:
    held = needed(constant(tensor), f"'{tensor.name}' is no constant")
    vector(held, size)
    return held


def _broadcast(node: Node, wiring: Wiring) -> Part:
    axes, size = axes_count(node.outputs[0]), static_dim(node.outputs[0], 1)
    require(axes > 1 and size not in (None, 1), f"{label(node)} has no channels of known number")
    operands: list[Held | None] = []
    values: list[Floats] = []
    for tensor in node.inputs:
        own = 1 - axes + axes_count(tensor)  # where its channels are
        spread = own < 0 or static_dim(tensor, own) == 1
        weight = constant(tensor)
        if spread:
            operands.append(None)
            values.append(_number(weight, size or 0))
        elif weight is not None:
            operands.append(None)
            values.append(_vector(weight, own, size or 0))
        else:
            require(static_dim(tensor, own) == size, f"'{tensor.name}' has other channels")
            require(own == 1, f"'{tensor.name}' has fewer axes")
            operands.append(wiring.of(tensor))
            values.append(wiring.of(tensor).value)
    wires = [held.wires for held in operands if held is not None]
    require(wires, f"{label(node)} reads no channels")
    for other in wires[1:]:
        wiring.tie(wires[0], other)
    wiring.passes(node.outputs[0], wires[0], _combined(node, values))

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        stays = kept(node.outputs[0])
        assert stays is not None
        for index, (tensor, held) in enumerate(zip(node.inputs, operands, strict=True)):
            weight = constant(tensor)
            own = 1 - axes + axes_count(tensor)
            if held is None and weight is not None and own >= 0 and weight.shape[own] == size:
                inputs[index] = np.ascontiguousarray(weight.array().take(stays, own))
        return rebuilt(node, inputs)

    return Part(node, narrowed)


def _number(weight: Weight | None, size: int) -> Floats:
    known = weight is not None and weight.size == 1 and weight.dtype in FLOAT_TYPES
    return np.full(size, float(weight.array().reshape(-1)[0]) if known and weight else np.nan)


def _vector(weight: Weight, axis: int, size: int) -> Floats:
    known = weight.size == size and weight.dtype in FLOAT_TYPES
    return weight.astype(np.float64).reshape(-1) if known else np.full(size, np.nan)


def _combined(node: Node, values: Sequence[Floats]) -> Floats:
    one, *others = values
    made = _ARITHMETIC.get(operator(node))
    if made is None or len(others) != 1:
        return np.full_like(one, np.nan)
    with np.errstate(all="ignore"):
        return made(one, others[0])


_ARITHMETIC: dict[str, Callable[[Floats, Floats], Floats]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": lambda one, other: np.where((one == 0) | (other == 0), 0.0, one * other),
    "Div": lambda one, other: np.where(other == 0, np.nan, one / other),
    "PRelu": lambda one, slope: np.where(one < 0, slope * one, one),
}


def _pad(node: Node, wiring: Wiring) -> Part:
    mixed = mixed_axes(node)
    read = wiring.of(node.inputs[0])
    require(mixed is not None and 1 not in mixed, f"{label(node)} pads channels")
    # what it fills in is not what the channel holds, unless both are 0
    fill = _given(node, 2)
    zero = attribute(node, "mode") != "constant" or fill is None or not fill.array().any()
    zero = zero and not attribute(node, "value")
    value = np.where((read.value == 0) & zero, 0.0, np.nan)
    wiring.passes(node.outputs[0], read.wires, value)
    return Part(node, lambda inputs, kept: rebuilt(node, inputs))


# ------------------------------------------------------------------ joined, cut, along one axis


def _concat(node: Node, wiring: Wiring) -> Part:
    if attribute(node, "axis") % axes_count(node.outputs[0]) == 1:
        wires, value = joined([wiring.of(tensor) for tensor in node.inputs])
        wiring.passes(node.outputs[0], wires, value)
        return Part(node, lambda inputs, kept: rebuilt(node, inputs))
    first, *others = [wiring.of(tensor) for tensor in node.inputs]
    value = first.value
    for held in others:
        wiring.tie(first.wires, held.wires)
        value = np.where(value == held.value, value, np.nan)
    wiring.passes(node.outputs[0], first.wires, value)
    return Part(node, lambda inputs, kept: rebuilt(node, inputs))


def _split(node: Node, wiring: Wiring) -> Part | None:
    read = wiring.of(node.inputs[0])
    sizes = [static_dim(tensor, 1) for tensor in node.outputs]
    if attribute(node, "axis") % axes_count(node.inputs[0]) != 1 or None in sizes:
        return None
    ends = np.cumsum([size or 0 for size in sizes])
    require(ends[-1] == read.wires.size, f"{label(node)} does not fit what it reads")
    for tensor, end, size in zip(node.outputs, ends, sizes, strict=True):
        part = slice(end - (size or 0), end)
        wiring.passes(tensor, read.wires[part], read.value[part])

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        left = [kept(tensor) for tensor in node.outputs]
        counts = [
            size if stays is None else len(stays) for stays, size in zip(left, sizes, strict=True)
        ]
        attributes = {k: v for k, v in node.attrs.items() if k not in ("split", "num_outputs")}
        return Op("Split", inputs[0], split=counts, outputs=len(counts), **attributes)

    return Part(node, narrowed)


def _slice(node: Node, wiring: Wiring) -> Part:
    read, axes = wiring.of(node.inputs[0]), axes_count(node.inputs[0])
    bounds = needed(slices(node), f"the bounds of {label(node)} are computed")
    places = np.arange(read.wires.size)
    for axis, start, end, step in bounds:
        if axis % axes == 1:
            require(step == 1, f"{label(node)} leaves out channels between")
            places = places[start:end]
    require(places.size, f"{label(node)} keeps nothing")
    wiring.passes(node.outputs[0], read.wires[places], read.value[places])

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        stays = kept(node.inputs[0])
        assert stays is not None
        begin = int(np.searchsorted(stays, places[0]))
        own = begin, int(np.searchsorted(stays, places[-1], "right"))
        cut = [(a, *own, 1) if a % axes == 1 else (a, s, e, step) for a, s, e, step in bounds]
        lists: Any = map(list, zip(*cut, strict=True))
        names = ("axes", "starts", "ends", *(("steps",) if opset(node) >= 10 else ()))
        return Op("Slice", inputs[0], **dict(zip(names, lists, strict=False)))

    return Part(node, narrowed)


# ----------------------------------------------------------------------- pixels into channels


def _flat(node: Node, wiring: Wiring) -> Part:
    """[N, C, …] → [N, C·…]: each channel becomes as many places as it has pixels."""
    x, y = node.inputs[0], node.outputs[0]
    read = wiring.of(x)
    pixels = [static_dim(x, axis) for axis in range(2, axes_count(x))]
    require(rank(y) == 2 and None not in pixels, f"{label(node)} makes no matrix of known size")
    times = int(np.prod([size or 0 for size in pixels]))
    require(static_dim(y, 1) == times * read.wires.size, f"{label(node)} moves channels")
    narrowed = _flattening(node)
    wiring.passes(y, np.repeat(read.wires, times), np.repeat(read.value, times))
    return Part(node, narrowed)


def _flattening(node: Node) -> Narrowed:
    if operator(node) != "Reshape":
        # Flatten, and Squeeze of pixels: the batch is axis 0 and the rest follows
        axis = attribute(node, "axis") if operator(node) == "Flatten" else 1
        require(axis == 1, f"{label(node)} joins other axes")
        return lambda inputs, kept: rebuilt(node, inputs)
    shape = needed(integers(node.inputs[1]), f"the shape of {label(node)} is computed")
    require(len(shape) == 2 and not attribute(node, "allowzero"), f"{label(node)} is no matrix")

    def narrowed(inputs: list[Any], kept: Kept) -> Op:
        stays = kept(node.outputs[0])
        assert stays is not None
        columns = -1 if shape[0] != -1 else len(stays)
        return Op("Reshape", inputs[0], np.array([shape[0], columns], np.int64), **node.attrs)

    return narrowed


_ROWS: dict[str, Callable[[Node, Wiring], Part | None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _normalization,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Flatten": _flat,
    "Reshape": _flat,
    "Squeeze": _flat,
}
