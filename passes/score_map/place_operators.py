"""What operators make of the places of a map: for each, the axes of its outputs.

A handler gets what is known so far, the node and the axes of its inputs. It raises FixedSizeError
where the operator ties the network to one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from operator import add as operator_add

from graphpass import Node, attribute, axes_of, constant, label, operator, opset
from graphpass.follow.sequences import drops_axis, parts_of
from graphpass.ir.operators import Trait, has, named
from graphpass.ir.windows import Window, kernel_of, windows_of

from .place_fills import joined
from .places import Axes, Axis, FixedSizeError, Followed, Places, count_of, places_in

Handler = Callable[[Followed, Node, list[Axes]], Sequence[Axes]]

_OPEN_END = (1 << 31) - 1  # as the end of a Slice: to the end
_MODES = ("half_pixel", "asymmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn", "align_corners")


def _slide(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    if any(places_in(other) for other in inputs[1:]):
        raise FixedSizeError(f"{label(node)} has a kernel that is computed from the image")
    if any(index < 2 for index in places_in(axes)):
        raise FixedSizeError(f"{label(node)} takes places of the image for channels")
    found.windows.append(node)
    windows = windows_of(node)
    natively = found.natively(node.inputs[0])
    whole = (
        operator(node) == "AveragePool"
        and len(places_in(natively)) == len(windows)
        and all(w.covers(count_of(a)) for a, w in zip(natively[2:], windows, strict=True))
        and max(map(count_of, natively[2:])) > 1
    )
    if whole:
        found.pooled[id(node)] = node
        return [(*axes[:2], *(1,) * len(windows))]
    channels = count_of(inputs[1][0]) if has(node, Trait.CONTRACTION) else axes[1]
    made = [_slid(node, a, w.count) for a, w in zip(axes[2:], windows, strict=True)]
    return [(axes[0], channels, *made)] * len(node.outputs)


def _slid(node: Node, axis: Axis, count: Callable[[int], int]) -> Axis:
    size = count(count_of(axis))
    if size < 1:
        raise FixedSizeError(f"nothing of the image is left after {label(node)}")
    return Places(axis.dim, size) if isinstance(axis, Places) else size


def _conv_transpose(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    if attribute(node, "output_shape") or (attribute(node, "auto_pad") or "NOTSET") != "NOTSET":
        raise FixedSizeError(f"{label(node)} names the size of its output, or pads towards it")
    if any(index < 2 for index in places_in(axes)) or places_in(inputs[1]):
        raise FixedSizeError(f"{label(node)} takes places of the image for channels")
    found.windows.append(node)
    kernel = kernel_of(node)
    extra = attribute(node, "output_padding") or [0] * len(kernel)
    channels = count_of(inputs[1][1]) * attribute(node, "group")
    made = [
        _slid(node, axis, partial(_widened, window, more))
        for axis, window, more in zip(axes[2:], windows_of(node), extra, strict=True)
    ]
    return [(axes[0], channels, *made)]


def _widened(window: Window, extra: int, size: int) -> int:
    span = window.dilation * (window.kernel - 1) + 1
    return window.stride * (size - 1) + extra + span - window.begin - window.end


def _global_pool(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    found.windows.append(node)
    return [(*inputs[0][:2], *(1,) * (len(inputs[0]) - 2))]


def _reduce(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    if operator(node) in ("ArgMax", "ArgMin"):
        over = {attribute(node, "axis") % len(axes)}
    else:
        over = {axis % len(axes) for axis in axes_of(node) or range(len(axes))}
    lost = over & places_in(axes).keys()
    if lost and operator(node) in ("ArgMax", "ArgMin"):
        raise FixedSizeError(f"{label(node)} counts places of the image")
    kept = attribute(node, "keepdims") != 0
    return [tuple(1 if i in over else a for i, a in enumerate(axes) if kept or i not in over)]


def _resize(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    found.windows.append(node)
    mode = attribute(node, "coordinate_transformation_mode")
    if mode is not None and mode not in _MODES:
        raise FixedSizeError(f"{label(node)} ({mode}) looks elsewhere in a map of another size")
    if attribute(node, "keep_aspect_ratio_policy") not in (None, "stretch"):
        raise FixedSizeError(f"{label(node)} keeps an aspect ratio")
    natively, made = found.natively(node.inputs[0]), found.natively(node.outputs[0])
    if found.native is None:
        shape = found.shapes.get(node.outputs[0].name)
        if shape is None:
            raise FixedSizeError(f"the sizes of {label(node)} are not known")
        made = tuple(shape)
    factors = [Fraction(count_of(b), count_of(a)) for a, b in zip(natively, made, strict=True)]
    _require_one_factor(found, node, axes, factors, made)
    result: list[Axis] = []
    for axis, factor, size in zip(axes, factors, made, strict=True):
        if not isinstance(axis, Places):
            result.append(count_of(size))
            continue
        if (axis.count * factor).denominator != 1:
            raise FixedSizeError(f"{label(node)} does not divide a map of {axis.count} places")
        count = int(axis.count * factor)
        whole = _image(found, axis.dim)
        towards_it = count_of(size) == _image(found.native or found, axis.dim)
        if towards_it and count != whole:
            raise FixedSizeError(
                f"{label(node)} resizes to the size of the image, and makes {count} of {whole}"
            )
        result.append(Places(axis.dim, count))
    if found.native is not None and _asked(found, node, axes) != [count_of(a) for a in result]:
        found.changed[id(node)] = node
    return [tuple(result)]


def _require_one_factor(
    found: Followed, node: Node, axes: Axes, factors: Sequence[Fraction], made: Axes
) -> None:
    """Require that constant sizes are those of the image, or a factor common to all dimensions.

    Others are a size that the network wants, whatever the image's; so is one dimension alone that
    is neither a multiple nor a part of its map.
    """
    sizes = node.inputs[3] if len(node.inputs) > 3 and node.inputs[3].name else None
    if found.native is not None or sizes is None or constant(sizes) is None:
        return
    places = places_in(axes)
    towards = all(count_of(made[i]) == _image(found, axis.dim) for i, axis in places.items())
    over = {factors[index] for index in places}
    whole = all(1 in (factor.numerator, factor.denominator) for factor in over)
    if not towards and (len(over) > 1 or (len(places) == 1 and not whole)):
        asked = "x".join(str(count_of(made[index])) for index in places)
        natively = "x".join(str(axis.count) for axis in places.values())
        raise FixedSizeError(f"{label(node)} resizes {natively} places to {asked}, a fixed size")


def _image(found: Followed, dim: int) -> int:
    """Return how many places the image has along a dimension."""
    places = places_in(found.axes[id(found.image)]).values()
    return next(axis.count for axis in places if axis.dim == dim)


def _asked(found: Followed, node: Node, axes: Axes) -> list[int] | None:
    """Return the sizes that a Resize as it is makes of `axes`; None where that is not known."""
    listed = attribute(node, "axes")
    over = list(range(len(axes))) if listed is None else [a % len(axes) for a in listed]
    sizes = [count_of(axis) for axis in axes]
    if len(node.inputs) > 3 and node.inputs[3].name:
        asked = found.value(node.inputs[3])
        if asked is None:
            return None
        for axis, size in zip(over, asked.reshape(-1).tolist(), strict=True):
            sizes[axis] = int(size)
        return sizes
    place = 2 if operator(node) == "Resize" and opset(node) >= 11 else 1
    scales = attribute(node, "scales")
    if scales is None and len(node.inputs) > place:
        value = found.value(node.inputs[place])
        scales = None if value is None else value.reshape(-1).tolist()
    if scales is None:
        return None
    for axis, scale in zip(over, scales, strict=True):
        sizes[axis] = math.floor(sizes[axis] * scale)
    return sizes


def _depth_to_space(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes, block = inputs[0], attribute(node, "blocksize")
    found.windows.append(node)
    channels = count_of(axes[1])
    if operator(node) == "DepthToSpace":
        channels //= block**2
        return [(axes[0], channels, *(_slid(node, a, lambda n: n * block) for a in axes[2:]))]
    if any(count_of(axis) % block for axis in axes[2:]):
        raise FixedSizeError(f"{label(node)} does not divide its map by {block}")
    made = [_slid(node, axis, lambda n: n // block) for axis in axes[2:]]
    return [(axes[0], channels * block**2, *made)]


def _concat(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    at = attribute(node, "axis") % len(inputs[0])
    if any(isinstance(axes[at], Places) for axes in inputs):
        raise FixedSizeError(f"{label(node)} joins maps side by side")
    for axes in inputs:
        for index, axis in enumerate(axes):
            others = [count_of(other[index]) for other in inputs]
            if index != at and isinstance(axis, int) and max(others) != axis:
                raise FixedSizeError(
                    f"{label(node)} joins maps of {min(others)} and of {max(others)} places"
                )
            alone = isinstance(axis, int) and any(isinstance(o[index], Places) for o in inputs)
            if index != at and alone:
                raise FixedSizeError(f"{label(node)} joins a map with a constant of {axis} places")
    beside = [tuple(1 if i == at else a for i, a in enumerate(axes)) for axes in inputs]
    made = list(joined(found, node, beside))
    made[at] = sum(count_of(axes[at]) for axes in inputs)
    return [tuple(made)]


def _slice(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = list(inputs[0])
    natively = found.natively(node.inputs[0])
    starts = found.integers(node, 1, "starts") or []
    ends = found.integers(node, 2, "ends") or []
    over = found.integers(node, 3, "axes") or list(range(len(starts)))
    steps = found.integers(node, 4, "steps") or [1] * len(starts)
    computed = len(node.inputs) > 2 and constant(node.inputs[2]) is None
    for place, start, end, step in zip(over, starts, ends, steps, strict=True):
        at = place % len(axes)
        axis = axes[at]
        whole = range(count_of(axis))
        if not isinstance(axis, Places):
            axes[at] = len(whole[slice(start, end, step)])
            continue
        before = count_of(natively[at]) if natively else axis.count
        if step == -1 and start == -1 and end <= -_OPEN_END:
            continue  # all of them, the other way round
        if end < 0 or computed:
            stop: int | None = end
        elif end < before or step < 1 or start < 0:
            raise FixedSizeError(f"{label(node)} cuts the map at constant places")
        else:
            stop = None  # natively all
            if end < axis.count:
                found.changed[id(node)] = node
        if step < 1 or start < 0:
            raise FixedSizeError(f"{label(node)} takes the places of the map from behind")
        axes[at] = Places(axis.dim, len(whole[slice(start, stop, step)]))
    return [tuple(axes)]


def _pad(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = list(inputs[0])
    pads = found.integers(node, 1, "pads") or []
    over = found.integers(node, 3, "axes") or list(range(len(axes)))
    for index, place in enumerate(over):
        more = pads[index] + pads[len(over) + index]
        axis = axes[place]
        axes[place] = _slid(node, axis, partial(operator_add, more))
    return [tuple(axes)]


def _recurrent(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    layout = bool(attribute(node, "layout"))
    steps = 1 if layout else 0
    if set(places_in(inputs[0])) - {steps} or any(places_in(axes) for axes in inputs[1:]):
        raise FixedSizeError(f"{label(node)} takes places of the image for features")
    if len(node.inputs) > 4 and node.inputs[4].name:
        raise FixedSizeError(f"{label(node)} is told how many steps there are")
    outputs = [list(found.natively(tensor)) for tensor in node.outputs if tensor.name]
    first = list(found.natively(node.outputs[0]))
    if first:
        first[steps] = inputs[0][steps]
    return [tuple(first), *(tuple(axes) for axes in outputs[1:])]


def _to_sequence(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    """Note the parts; the sequence as such has the axes of the first."""
    axes = inputs[0]
    at = attribute(node, "axis") % len(axes)
    if isinstance(axes[at], Places):
        raise FixedSizeError(f"{label(node)} splits the places of the image")
    sizes = parts_of(node, count_of(axes[at]), found.integers(node, 1, "split"))
    if sizes is None:
        raise FixedSizeError(f"{label(node)} splits into parts that are computed")
    rest = (*axes[:at], *axes[at + 1 :])
    parts = [rest if drops_axis(node) else (*axes[:at], n, *axes[at + 1 :]) for n in sizes]
    found.sequences[id(node.outputs[0])] = parts
    return parts[:1]


def _sequence_at(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    parts = found.sequences.get(id(node.inputs[0]))
    index = found.value(node.inputs[1])
    if parts is None or index is None or not -len(parts) <= int(index) < len(parts):
        raise FixedSizeError(f"{label(node)} takes a part of a sequence that is not known")
    return [parts[int(index)]]


def _whole_map(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    """Statistics of the whole map, whatever its size."""
    if any(index < 2 for index in places_in(inputs[0])):
        raise FixedSizeError(f"{label(node)} takes places of the image for channels")
    return [inputs[0]]


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), _whole_map),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool", "LpPool"), _slide),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth_to_space),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(named(Trait.REDUCTION), _reduce),
    "Concat": _concat,
    "ConvTranspose": _conv_transpose,
    "Pad": _pad,
    "SequenceAt": _sequence_at,
    "Slice": _slice,
    "SplitToSequence": _to_sequence,
}

__all__ = ["HANDLERS"]
