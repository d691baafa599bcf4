"""What operators make of height and width: for each, the axes of its outputs.

Each function gets the visit, the node and the axes of its inputs. It raises `AxisError` where
the operator ties the network to one resolution; the text goes on after the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphpass.follow.image_axes import (
    Axes,
    AxisError,
    Merged,
    PositionError,
    Spatial,
    broadcast,
    is_spatial,
    regroup,
    sees_pixels,
    size_of,
    sizes_of,
    target_sizes,
)
from graphpass.follow.sequences import drops_axis, parts_of
from graphpass.follow.traced import Trace, Visit
from graphpass.ir.operators import Trait, named
from graphpass.ir.questions import (
    Node,
    attribute,
    axes_of,
    constant,
    label,
    operator,
    opset,
    require,
)
from graphpass.ir.windows import Window, windows_of

_SOFTMAX_BY_AXIS = 13  # before this opset Softmax flattens everything from its axis on
_SPELLED = {2: "two of four", 3: "three of five"}
_OPEN_END = 1 << 30  # the end of a Slice that means "to the end"

Handler = Callable[[Visit, Node, list[Axes]], Sequence[Axes]]


def _same(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    return [inputs[0]] * len(node.outputs)


def _elementwise(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    try:
        return [broadcast(inputs)]
    except PositionError:
        fixed = next((t for t in node.inputs if constant(t) is not None), None)
        if fixed is None:
            raise
        shape = list(constant(fixed).shape)  # type: ignore[union-attr]
        raise AxisError(
            f"takes '{fixed.name}' of shape {shape}, which has a value for each position "
            "(a position embedding or a weight per pixel): it fixes the resolution"
        ) from None


def _map_axes(visit: Visit, axes: Axes) -> tuple[Spatial, ...]:
    dimensions = [axis for axis in axes[2:] if isinstance(axis, Spatial)]
    names = visit.found.names
    if not len(axes) - 2 == len(dimensions) == len(names):
        last = "the last of three" if len(names) == 1 else f"the last {_SPELLED[len(names)]}"
        raise AxisError(f"does not find {' and '.join(names)} on {last} axes")
    if sees_pixels(axes[:2]):
        raise AxisError(f"finds {' or '.join(names)} where batch and channels belong")
    return tuple(dimensions)


def _conv(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    channels = visit.found.axes_of(node.inputs[1])
    if channels is None or sees_pixels(channels):
        raise AxisError("has a kernel that is computed from the image")
    if _is_dense(visit, node, inputs[0], channels):
        return [(inputs[0][0], channels[0], *[1] * len(inputs[0][2:]))]
    return [(inputs[0][0], channels[0], *_slide(node, _map_axes(visit, inputs[0])))]


def _is_dense(visit: Visit, node: Node, axes: Axes, weight: Axes) -> bool:
    """Whether a Conv is a dense layer over a map that does not lie as [N, C, H, W]."""
    if len(axes) != 2 + len(visit.found.size) or all(
        isinstance(axis, Spatial) for axis in axes[2:]
    ):
        return False
    if visit.native is not None:
        return id(node) in visit.pools
    whole = sizes_of(axes[1:]) == sizes_of(weight[1:])
    return whole and all(window.padding(1) == (0, 0) for window in windows_of(node))


def _slide(node: Node, axes: tuple[Spatial, ...]) -> list[Spatial]:
    windows = windows_of(node)
    return [replace(a, line=a.line.through(w)) for a, w in zip(axes, windows, strict=True)]


def _pool(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = _map_axes(visit, inputs[0])
    full = all(
        window.covers(axis.line.size) for axis, window in zip(axes, windows_of(node), strict=True)
    )
    if visit.native is not None:
        whole = id(node) in visit.pools
    else:
        whole = full and (operator(node) == "AveragePool" or _is_head(node))
    if whole:
        return [(*inputs[0][:2], *[1] * len(axes))]
    return [(*inputs[0][:2], *_slide(node, axes))] * len(node.outputs)


def _is_head(pool: Node) -> bool:
    """Whether nothing but dense layers, and what works element by element, comes after a pool."""
    waiting, seen = [pool], {id(pool)}
    while waiting:
        for tensor in waiting.pop().outputs:
            for reader in tensor.outputs:
                if operator(reader) not in _AFTER_POOLING:
                    return False
                if id(reader) not in seen:
                    seen.add(id(reader))
                    waiting.append(reader)
    return True


def _global_pool(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    # a signal may be pooled as an image of one row
    _map_axes(visit, (*axes[:2], *(axis for axis in axes[2:] if axis != 1)))
    return [(*axes[:2], *[1] * len(axes[2:]))]


def _reduce(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    given = axes_of(node)
    rank = len(inputs[0])
    axes = {a % rank for a in given} if given is not None else set(range(rank))
    return _reduced(visit, node, inputs[0], axes)


def _arg(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    return _reduced(visit, node, inputs[0], {attribute(node, "axis") % len(inputs[0])})


def _reduced(visit: Visit, node: Node, axes: Axes, over: set[int]) -> Sequence[Axes]:
    spatial = {i for i, axis in enumerate(axes) if is_spatial(axis)}
    ones = {i for i, axis in enumerate(axes) if axis == 1}
    if spatial & over and over - ones != spatial:
        names = " or ".join(visit.found.names)
        raise AxisError(f"reduces {names} together with, or without, other axes")
    if any(isinstance(axes[i], Merged) for i in over):
        raise AxisError("reduces a sequence of pixels")
    keep = attribute(node, "keepdims") != 0
    return [tuple(1 if i in over else a for i, a in enumerate(axes) if keep or i not in over)]


def _transpose(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    perm = attribute(node, "perm") or range(len(axes))[::-1]
    return [tuple(axes[i] for i in perm)]


def _reshape(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    if visit.native is not None:
        return [_as_natively(visit.native, node, axes)]
    shape = visit.integers(node, 1, "shape")
    if shape is None:
        raise AxisError("has no shape")
    target = target_sizes(axes, shape, bool(attribute(node, "allowzero") or 0))
    made = regroup(axes, target)
    if any(isinstance(axis, Spatial) for axis in made):
        visit.found.reshapes.append(node)
    return [made]


def _as_natively(native: Trace, node: Node, axes: Axes) -> Axes:
    """Give the output of a Reshape the axes that it has at the native resolution."""
    spatial = {axis.dim: axis for axis in axes if isinstance(axis, Spatial)}
    made = native.axes.get(id(node.outputs[0]))
    if made is None:
        raise AxisError("reads one cell of a map, which has more of them at other sizes")
    if any(isinstance(axis, Spatial) and axis.dim not in spatial for axis in made):
        raise AxisError(f"makes {' and '.join(native.names)} of what was one axis")
    return tuple(spatial[axis.dim] if isinstance(axis, Spatial) else axis for axis in made)


def _flatten(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    at = attribute(node, "axis")
    at = at + len(axes) if at < 0 else at
    sizes = sizes_of(axes)
    if at == 1:
        return [regroup(axes, [sizes[0], int(np.prod(sizes[1:]))])]
    if at == 0 or sees_pixels(axes[:at]):
        names = " or ".join(visit.found.names)
        raise AxisError(f"flattens {names} together with the batch")
    return [regroup(axes, [int(np.prod(sizes[:at])), int(np.prod(sizes[at:]))])]


def _squeeze(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    given = axes_of(node)
    if given is None:
        raise AxisError("squeezes whichever axes have size 1")
    over = {a % len(axes) for a in given}
    dropped = [i for i in over if isinstance(axes[i], Spatial)]
    if any(size_of(axes[i]) != 1 for i in over):
        raise AxisError("squeezes an axis that is larger than 1 at other sizes")
    if dropped and any(isinstance(a, Spatial) for i, a in enumerate(axes) if i not in over):
        raise AxisError(f"squeezes one of {' and '.join(visit.found.names)}")
    return [tuple(a for i, a in enumerate(axes) if i not in over)]


def _unsqueeze(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    given = axes_of(node) or []
    rank = len(inputs[0]) + len(given)
    places = {a % rank for a in given}
    rest = iter(inputs[0])
    return [tuple(1 if i in places else next(rest) for i in range(rank))]


def _concat(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    rank = len(inputs[0])
    at = attribute(node, "axis") % rank
    column = [axes[at] for axes in inputs]
    if any(isinstance(axis, Spatial) for axis in column):
        raise AxisError("joins maps side by side")
    others = [tuple(1 if i == at else a for i, a in enumerate(axes)) for axes in inputs]
    joined = list(broadcast(others))
    if any(isinstance(axis, Merged) for axis in column):
        joined[at] = Merged((), sum(map(size_of, column)))
    else:
        joined[at] = sum(size_of(axis) for axis in column)
    return [tuple(joined)]


def _split(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    at = attribute(node, "axis") % len(axes)
    if is_spatial(axes[at]):
        raise AxisError(f"splits {' or '.join(visit.found.names)}")
    shapes = [tensor.shape for tensor in node.outputs]
    require(all(shape is not None for shape in shapes), f"{label(node)} has unknown sizes")
    return [tuple(shape[at] if i == at else a for i, a in enumerate(axes)) for shape in shapes]


def _to_sequence(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    """Note the parts of a SplitToSequence; the sequence as such has the axes of the first."""
    axes = inputs[0]
    at = attribute(node, "axis") % len(axes)
    if is_spatial(axes[at]):
        raise AxisError(f"splits {' or '.join(visit.found.names)}")
    sizes = parts_of(node, size_of(axes[at]), visit.integers(node, 1, "split"))
    if sizes is None:
        raise AxisError("splits into parts that are computed")
    rest = (*axes[:at], *axes[at + 1 :])
    parts = [rest if drops_axis(node) else (*axes[:at], n, *axes[at + 1 :]) for n in sizes]
    visit.found.sequences[id(node.outputs[0])] = parts
    return parts[:1]


def _sequence_at(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    parts = visit.found.sequences.get(id(node.inputs[0]))
    index = visit.found.value(node.inputs[1])
    if parts is None or index is None or not -len(parts) <= int(index) < len(parts):
        raise AxisError("takes a part of a sequence that is not known")
    return [parts[int(index)]]


def _gather(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes, indices = inputs[0], inputs[1]
    at = attribute(node, "axis") % len(axes)
    if is_spatial(axes[at]):
        raise AxisError("picks single rows, columns or pixels of the feature map")
    return [(*axes[:at], *indices, *axes[at + 1 :])]


def _slice(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    starts = visit.integers(node, 1, "starts") or []
    ends = visit.integers(node, 2, "ends") or []
    over = visit.integers(node, 3, "axes") or list(range(len(starts)))
    steps = visit.integers(node, 4, "steps") or [1] * len(starts)
    axes = list(inputs[0])
    computed = len(node.inputs) > 2 and constant(node.inputs[2]) is None
    for place, start, end, step in zip(over, starts, ends, steps, strict=True):
        at = place % len(axes)
        axes[at] = _sliced(axes[at], start, end, step, computed)
    return [tuple(axes)]


def _sliced(axis: Any, start: int, end: int, step: int, computed: bool) -> Any:
    size = size_of(axis)
    positions = range(size)[slice(start, end if abs(end) < _OPEN_END else None, step)]
    if not isinstance(axis, Spatial):
        whole = len(positions) == size and step == 1
        if whole:
            return axis
        if isinstance(axis, Merged):
            raise AxisError("cuts a sequence of pixels")
        return len(positions)
    to_the_end = end < 0 or end >= _OPEN_END or computed
    if step < 1 or start < 0 or (not to_the_end and end < size):
        raise AxisError(f"cuts {axis.name} at constant positions")
    first = positions.start if len(positions) else 0
    return replace(axis, line=axis.line.taken(first, step, len(positions)))


def _pad(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = list(inputs[0])
    pads = visit.integers(node, 1, "pads") or []
    over = visit.integers(node, 3, "axes") or list(range(len(axes)))
    for index, place in enumerate(over):
        begin, end = pads[index], pads[len(over) + index]
        axis = axes[place]
        if isinstance(axis, Spatial):
            axes[place] = replace(axis, line=axis.line.through(Window(1, 1, begin, end)))
        elif begin or end:
            if not isinstance(axis, int):
                raise AxisError("pads the batch or a sequence of pixels")
            axes[place] = axis + begin + end
    return [tuple(axes)]


def _softmax(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    at = attribute(node, "axis") % len(axes)
    natively = axes if visit.native is None else visit.native.axes.get(id(node.inputs[0]), ())
    flattens = opset(node) < _SOFTMAX_BY_AXIS and operator(node) != "LpNormalization"
    over = natively[at:] if flattens else natively[at : at + 1]
    if any(isinstance(a, Merged) or (is_spatial(a) and size_of(a) != 1) for a in over):
        raise AxisError("normalizes over pixels (attention)")
    return [axes]


def _topk(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = list(inputs[0])
    at = attribute(node, "axis") % len(axes)
    if is_spatial(axes[at]):
        raise AxisError("sorts pixels")
    count = visit.integers(node, 1, "k")
    axes[at] = count[0] if count else None
    return [tuple(axes)] * 2


def _layer_norm(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    if sees_pixels(axes[attribute(node, "axis") % len(axes) :]):
        names = " and ".join(visit.found.names)
        raise AxisError(f"normalizes over {names} with a weight per pixel")
    return [axes] * len(node.outputs)


def _matmul(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    left, right = inputs
    if sees_pixels(right):
        raise AxisError("multiplies with a matrix of pixels")
    if len(right) != 2 or is_spatial(left[-1]):
        raise AxisError("multiplies over pixels: its weight has a row for each of them")
    return [(*left[:-1], right[-1])]


def _expand(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    shape = visit.integers(node, 1, "shape") or []
    plain = tuple(1 if value == 1 else value for value in shape)
    padded = (1,) * (len(plain) - len(inputs[0])) + inputs[0]
    sizes = sizes_of(padded)
    if any(p not in (1, s) and s != 1 for p, s in zip(plain[::-1], sizes[::-1], strict=False)):
        raise AxisError(f"expands to a constant shape {shape}")
    missing = (1,) * (len(padded) - len(plain)) + plain
    return [
        tuple(
            a if s != 1 or is_spatial(a) else p
            for a, s, p in zip(padded, sizes, missing, strict=True)
        )
    ]


def _resize(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    if attribute(node, "coordinate_transformation_mode") == "align_corners":
        raise AxisError("aligns the corners of its map, and looks elsewhere in one of another size")
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and constant(sizes) is not None:
        raise AxisError("resizes the map to a constant size")
    raise AxisError("resizes the map, whose cells then have no common stride")


def _recurrent(visit: Visit, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    raise AxisError("is a recurrent layer over pixels")


_SAME = named(Trait.ELEMENTWISE, Trait.QUANTIZING, Trait.NORMALIZATION, without=Trait.CONTRACTION)
_REDUCTIONS = named(Trait.REDUCTION, without=Trait.POSITION)

_GLOBAL_POOLS = named(Trait.POOL, without=Trait.SLIDING)
_POOLS = named(Trait.POOL | Trait.SLIDING)
# what slides over an image, or pools it: it tells in which layout the network reads
SLIDING = frozenset(("Conv", *_POOLS, *_GLOBAL_POOLS, *_REDUCTIONS))

_AFTER_POOLING = frozenset(
    named(
        *(Trait.ELEMENTWISE, Trait.BROADCASTING, Trait.VIEW),
        *(Trait.NORMALIZATION, Trait.CONTRACTION),
        without=Trait.SLIDING,
    )
)

HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(named(Trait.BROADCASTING), _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_GLOBAL_POOLS, _global_pool),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Concat": _concat,
    "Conv": _conv,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "LpNormalization": _softmax,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "SequenceAt": _sequence_at,
    "Slice": _slice,
    "Split": _split,
    "SplitToSequence": _to_sequence,
    "Squeeze": _squeeze,
    "TopK": _topk,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
