"""Follow an image through a network: where height and width go, and what ties them down.

`trace` gives the meaning of every axis at one image size. Where height and width vanish (pooled
over, flattened, squeezed) lies either a *head*, after which nothing has pixels again, or global
context inside the trunk, as in squeeze-and-excitation, whose result returns to the map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphpass.axes import (
    Axes,
    AxisError,
    Merged,
    Spatial,
    broadcast,
    is_spatial,
    regroup,
    sees_pixels,
    size_of,
    sizes_of,
    target_sizes,
)
from graphpass.geometry import Line, Window, windows_of
from graphpass.graph import (
    Graph,
    Node,
    RefusedError,
    Tensor,
    attribute,
    axes_of,
    constant,
    label,
    operator,
    opset,
    require,
)
from graphpass.weight import Array

LAYOUTS = {"NCHW": (2, 3), "NHWC": (1, 2)}
_SMALL_VALUE = 64  # constants up to this many elements may be part of a computed shape
_SOFTMAX_BY_AXIS = 13  # before this opset Softmax flattens everything from its axis on
_OPEN_END = 1 << 30  # the end of a Slice that means "to the end"


class FixedResolutionError(RefusedError):
    """A node ties the network to one resolution; `progress` says how far the trace came."""

    def __init__(self, reason: str, progress: int) -> None:
        super().__init__(reason)
        self.progress = progress


@dataclass(frozen=True)
class Collapse:
    """Where height and width vanish, read from `source`, which still has them.

    `kind` is "pool", "flatten", or "dense": a Conv whose kernel is the whole map, whichever way
    the map lies in memory.
    """

    node: Node
    source: Tensor
    kind: str


@dataclass
class Trace:
    """What came of following an image of `size` (height, width) pixels through `graph`."""

    graph: Graph
    image: Tensor
    layout: str
    size: tuple[int, int]
    axes: dict[int, Axes] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)
    collapses: list[Collapse] = field(default_factory=list)
    reshapes: list[Node] = field(default_factory=list)
    trunk_pools: frozenset[int] = frozenset()
    windows: list[Node] = field(default_factory=list)

    def axes_of(self, tensor: Tensor) -> Axes | None:
        """Return the axes of `tensor`; None where its rank is unknown."""
        if id(tensor) in self.axes:
            return self.axes[id(tensor)]
        weight = constant(tensor)
        if weight is not None:
            return tuple(weight.shape)
        return None if tensor.shape is None else tuple(tensor.shape)

    def value(self, tensor: Tensor) -> Array | None:
        """Return the value of a small tensor that is constant or computed from shapes."""
        if id(tensor) in self.values:
            return self.values[id(tensor)]
        weight = constant(tensor)
        if weight is None or weight.size > _SMALL_VALUE or weight.dtype.kind not in "iufb":
            return None
        return weight.array()

    def lines(self, tensor: Tensor) -> tuple[Line, Line]:
        """Return height and width of a feature map."""
        found = {a.dim: a.line for a in self.axes[id(tensor)] if isinstance(a, Spatial)}
        return found[0], found[1]

    def map_size(self, tensor: Tensor) -> tuple[int, int]:
        """Return the cells of a feature map in height and width."""
        height, width = self.lines(tensor)
        return height.size, width.size

    def is_map(self, tensor: Tensor) -> bool:
        """Whether `tensor` has both height and width, each on an axis of its own."""
        dims = [a.dim for a in self.axes.get(id(tensor), ()) if isinstance(a, Spatial)]
        return sorted(dims) == [0, 1]

    @property
    def touches_weights(self) -> bool:
        """Whether a convolution or pooling slides over the image, as it does in one layout only."""
        return bool(self.windows)

    @property
    def heads(self) -> list[Collapse]:
        """Where height and width vanish for good."""
        return [c for c in self.collapses if id(c.node) not in self.trunk_pools]


def trace(
    graph: Graph,
    image: Tensor,
    layout: str,
    size: tuple[int, int],
    native: Trace | None = None,
    *,
    sliding: bool = False,
) -> Trace:
    """Follow `image` through `graph`. `layout` is "NCHW" or "NHWC", `size` is (height, width).

    Without `native`, `size` is the resolution that the network was made for: an AveragePool over
    its whole map counts as global. With `native`, the trace at that resolution, pools and
    Reshapes do at `size` what they do there; where `sliding`, an AveragePool of the head slides.

    Raises FixedResolutionError with the node and one sentence where the network cannot do that.
    """
    tracer = _Tracer(Trace(graph, image, layout, size), native, sliding)
    tracer.run()
    return tracer.found


class _Tracer:
    def __init__(self, found: Trace, native: Trace | None, sliding: bool) -> None:
        self.found = found
        self.native = native
        self.pools: set[int] = set()
        if native is not None:
            whole = native.trunk_pools if sliding else {id(c.node) for c in native.collapses}
            self.pools.update(whole)
        height, width = LAYOUTS[found.layout]
        axes: list[Any] = list(found.image.shape or ())
        axes[height] = Spatial(0, Line.image(found.size[0]))
        axes[width] = Spatial(1, Line.image(found.size[1]))
        found.axes[id(found.image)] = tuple(axes)

    def run(self) -> None:
        for index, node in enumerate(self.found.graph.nodes):
            try:
                self._visit(node)
            except AxisError as error:
                raise FixedResolutionError(f"{label(node)} {error}", index) from None
            except FixedResolutionError:
                raise
            except RefusedError as error:
                raise FixedResolutionError(str(error), index) from None
        self._tell_trunk_from_head()

    def _visit(self, node: Node) -> None:
        self._evaluate(node)
        inputs = [self.found.axes_of(t) if t.name else () for t in node.inputs]
        seen = [axes is not None and sees_pixels(axes) for axes in inputs]
        if operator(node) == "CastLike":
            seen[1] = False  # it takes a type from there, nothing else
        if not any(seen):
            self._refuse_bodies(node)
            return
        op = operator(node)
        if op in ("Shape", "Size"):
            return
        handler = _HANDLERS.get(op)
        require(handler is not None, f"{label(node)} is not known to work at any resolution")
        assert handler is not None
        known = [() if axes is None else axes for axes in inputs]
        outputs = handler(self, node, known)
        if handler in (_conv, _pool, _global_pool, _reduce):
            self.found.windows.append(node)
        source = node.inputs[seen.index(True)]
        for tensor, axes in zip(node.outputs, outputs, strict=False):
            self._record(node, source, tensor, axes)

    def _record(self, node: Node, source: Tensor, tensor: Tensor, axes: Axes) -> None:
        empty = any(isinstance(a, Spatial) and a.line.size == 0 for a in axes)
        require(not empty, f"nothing of the image is left after {label(node)}")
        rest = [axis for axis in axes[1:] if axis != 1]
        flattened = len(rest) == 1 and isinstance(rest[0], Merged) and _has_channels(rest[0])
        if flattened:
            axes = tuple(size_of(a) if isinstance(a, Merged) else a for a in axes)
        self.found.axes[id(tensor)] = axes
        if not sees_pixels(axes):
            kind = "flatten" if flattened or operator(node) in _FLATTENS else "pool"
            kind = "dense" if operator(node) == "Conv" else kind
            self.found.collapses.append(Collapse(node, source, kind))

    def _refuse_bodies(self, node: Node) -> None:
        for body in node.graph.subgraphs_of(node):
            for scope in body.scopes():
                for inner in scope.nodes:
                    for tensor in inner.inputs:
                        if id(tensor) in self.found.axes:
                            raise AxisError("reads the feature map inside a body of its own")

    def _tell_trunk_from_head(self) -> None:
        if self.native is not None:
            self.found.trunk_pools = self.native.trunk_pools
            return
        trunk = set()
        for collapse in self.found.collapses:
            if self._returns_to_map(collapse.node):
                trunk.add(id(collapse.node))
        self.found.trunk_pools = frozenset(trunk)

    def _returns_to_map(self, start: Node) -> bool:
        stack, seen = [start], {id(start)}
        while stack:
            for tensor in stack.pop().outputs:
                for reader in tensor.outputs:
                    if id(reader) in seen:
                        continue
                    seen.add(id(reader))
                    if any(self.found.is_map(output) for output in reader.outputs):
                        return True
                    stack.append(reader)
        return False

    # ---------------------------------------------------------------------- computed shapes

    def integers(self, node: Node, index: int, name: str) -> list[int] | None:
        """Return an attribute, or the input `index` that replaced it in later opsets."""
        listed = node.attrs.get(name)
        if listed is not None:
            return [int(v) for v in listed] if isinstance(listed, (list, tuple)) else [int(listed)]
        if len(node.inputs) <= index or node.inputs[index].name == "":
            return None
        value = self.found.value(node.inputs[index])
        require(
            value is not None,
            f"{label(node)} computes its {name} from the image in a way not understood",
        )
        assert value is not None
        return [int(v) for v in value.reshape(-1)]

    def _evaluate(self, node: Node) -> None:
        op = operator(node)
        if op == "Shape":
            axes = self.found.axes_of(node.inputs[0])
            if axes is not None:
                sizes = np.array(sizes_of(axes), np.int64)
                start, end = attribute(node, "start") or 0, attribute(node, "end")
                self.found.values[id(node.outputs[0])] = sizes[start:end]
            return
        compute = _SHAPE_ARITHMETIC.get(op)
        if compute is None or not any(id(t) in self.found.values for t in node.inputs):
            return
        values = [self.found.value(t) if t.name else None for t in node.inputs]
        if any(v is None and t.name for v, t in zip(values, node.inputs, strict=True)):
            return
        try:
            result = compute(node, *values)
        except (TypeError, ValueError, IndexError, ZeroDivisionError, RefusedError):
            return
        self.found.values[id(node.outputs[0])] = np.asarray(result)


# ------------------------------------------------------------------------- what operators do

Handler = Callable[[_Tracer, Node, list[Axes]], Sequence[Axes]]


def _has_channels(merged: Merged) -> bool:
    return any(not is_spatial(part) for part in merged.parts) or all(
        isinstance(part, Spatial) and part.line.size == 1 for part in merged.parts
    )


def _same(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    return [inputs[0]] * len(node.outputs)


def _elementwise(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    try:
        return [broadcast(inputs)]
    except AxisError as error:
        if "of its own" not in str(error):
            raise
        fixed = next((t for t in node.inputs if constant(t) is not None), None)
        if fixed is None:
            raise
        shape = list(constant(fixed).shape)  # type: ignore[union-attr]
        raise AxisError(
            f"takes '{fixed.name}' of shape {shape}, which has a value for each position "
            "(a position embedding or a weight per pixel): it fixes the resolution"
        ) from None


def _map_axes(node: Node, axes: Axes) -> tuple[Spatial, Spatial]:
    height_width = axes[2:]
    if len(axes) != 4 or not all(isinstance(axis, Spatial) for axis in height_width):
        raise AxisError("does not find height and width on the last two of four axes")
    if sees_pixels(axes[:2]):
        raise AxisError("finds height or width where batch and channels belong")
    return height_width  # type: ignore[return-value]


def _conv(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    channels = tracer.found.axes_of(node.inputs[1])
    if channels is None or sees_pixels(channels):
        raise AxisError("has a kernel that is computed from the image")
    if _is_dense(tracer, node, inputs[0], channels):
        return [(inputs[0][0], channels[0], 1, 1)]
    return [(inputs[0][0], channels[0], *_slide(node, _map_axes(node, inputs[0])))]


def _is_dense(tracer: _Tracer, node: Node, axes: Axes, weight: Axes) -> bool:
    """Whether a Conv is a dense layer over a map that does not lie as [N, C, H, W]."""
    if len(axes) != 4 or all(isinstance(axis, Spatial) for axis in axes[2:]):
        return False
    if tracer.native is not None:
        return id(node) in tracer.pools
    whole = sizes_of(axes[1:]) == sizes_of(weight[1:])
    return whole and all(window.padding(1) == (0, 0) for window in windows_of(node))


def _slide(node: Node, axes: tuple[Spatial, Spatial]) -> list[Spatial]:
    windows = windows_of(node)
    return [Spatial(a.dim, a.line.through(w)) for a, w in zip(axes, windows, strict=True)]


def _pool(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = _map_axes(node, inputs[0])
    full = all(
        window.covers(axis.line.size) for axis, window in zip(axes, windows_of(node), strict=True)
    )
    if tracer.native is not None:
        whole = id(node) in tracer.pools
    else:
        whole = full and operator(node) == "AveragePool"
    if whole:
        return [(*inputs[0][:2], 1, 1)]
    return [(*inputs[0][:2], *_slide(node, axes))] * len(node.outputs)


def _global_pool(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    _map_axes(node, inputs[0])
    return [(*inputs[0][:2], 1, 1)]


def _reduce(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    given = axes_of(node)
    rank = len(inputs[0])
    axes = {a % rank for a in given} if given is not None else set(range(rank))
    return _reduced(node, inputs[0], axes)


def _arg(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    return _reduced(node, inputs[0], {attribute(node, "axis") % len(inputs[0])})


def _reduced(node: Node, axes: Axes, over: set[int]) -> Sequence[Axes]:
    spatial = {i for i, axis in enumerate(axes) if is_spatial(axis)}
    if spatial & over and over != spatial:
        raise AxisError("reduces height or width together with, or without, other axes")
    if any(isinstance(axes[i], Merged) for i in over):
        raise AxisError("reduces a sequence of pixels")
    keep = attribute(node, "keepdims") != 0
    return [tuple(1 if i in over else a for i, a in enumerate(axes) if keep or i not in over)]


def _transpose(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    perm = attribute(node, "perm") or range(len(axes))[::-1]
    return [tuple(axes[i] for i in perm)]


def _reshape(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    if tracer.native is not None:
        return [_as_natively(tracer.native, node, axes)]
    shape = tracer.integers(node, 1, "shape")
    if shape is None:
        raise AxisError("has no shape")
    target = target_sizes(axes, shape, bool(attribute(node, "allowzero") or 0))
    made = regroup(axes, target)
    if any(isinstance(axis, Spatial) for axis in made):
        tracer.found.reshapes.append(node)
    return [made]


def _as_natively(native: Trace, node: Node, axes: Axes) -> Axes:
    """Give the output of a Reshape the axes that it has at the native resolution."""
    spatial = {axis.dim: axis for axis in axes if isinstance(axis, Spatial)}
    made = native.axes[id(node.outputs[0])]
    return tuple(spatial[axis.dim] if isinstance(axis, Spatial) else axis for axis in made)


def _flatten(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    at = attribute(node, "axis")
    at = at + len(axes) if at < 0 else at
    sizes = sizes_of(axes)
    if at == 1:
        return [regroup(axes, [sizes[0], int(np.prod(sizes[1:]))])]
    if at == 0 or sees_pixels(axes[:at]):
        raise AxisError("flattens height or width together with the batch")
    return [regroup(axes, [int(np.prod(sizes[:at])), int(np.prod(sizes[at:]))])]


def _squeeze(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    given = axes_of(node)
    if given is None:
        raise AxisError("squeezes whichever axes have size 1")
    over = {a % len(axes) for a in given}
    dropped = [i for i in over if isinstance(axes[i], Spatial)]
    if any(size_of(axes[i]) != 1 for i in over):
        raise AxisError("squeezes an axis that is larger than 1 at other sizes")
    if dropped and any(isinstance(a, Spatial) for i, a in enumerate(axes) if i not in over):
        raise AxisError("squeezes one of height and width")
    return [tuple(a for i, a in enumerate(axes) if i not in over)]


def _unsqueeze(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    given = axes_of(node) or []
    rank = len(inputs[0]) + len(given)
    places = {a % rank for a in given}
    rest = iter(inputs[0])
    return [tuple(1 if i in places else next(rest) for i in range(rank))]


def _concat(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
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


def _split(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    at = attribute(node, "axis") % len(axes)
    if is_spatial(axes[at]):
        raise AxisError("splits height or width")
    shapes = [tensor.shape for tensor in node.outputs]
    require(all(shape is not None for shape in shapes), f"{label(node)} has unknown sizes")
    return [tuple(shape[at] if i == at else a for i, a in enumerate(axes)) for shape in shapes]


def _gather(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes, indices = inputs[0], inputs[1]
    at = attribute(node, "axis") % len(axes)
    if is_spatial(axes[at]):
        raise AxisError("picks single rows, columns or pixels of the feature map")
    return [(*axes[:at], *indices, *axes[at + 1 :])]


def _slice(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    starts = tracer.integers(node, 1, "starts") or []
    ends = tracer.integers(node, 2, "ends") or []
    over = tracer.integers(node, 3, "axes") or list(range(len(starts)))
    steps = tracer.integers(node, 4, "steps") or [1] * len(starts)
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
        raise AxisError(f"cuts {axis} at constant positions")
    first = positions.start if len(positions) else 0
    return Spatial(axis.dim, axis.line.taken(first, step, len(positions)))


def _pad(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = list(inputs[0])
    pads = tracer.integers(node, 1, "pads") or []
    over = tracer.integers(node, 3, "axes") or list(range(len(axes)))
    for index, place in enumerate(over):
        begin, end = pads[index], pads[len(over) + index]
        axis = axes[place]
        if isinstance(axis, Spatial):
            axes[place] = Spatial(axis.dim, axis.line.through(Window(1, 1, begin, end)))
        elif begin or end:
            if not isinstance(axis, int):
                raise AxisError("pads the batch or a sequence of pixels")
            axes[place] = axis + begin + end
    return [tuple(axes)]


def _softmax(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    at = attribute(node, "axis") % len(axes)
    natively = axes if tracer.native is None else tracer.native.axes.get(id(node.inputs[0]), ())
    flattens = opset(node) < _SOFTMAX_BY_AXIS and operator(node) != "LpNormalization"
    over = natively[at:] if flattens else natively[at : at + 1]
    if any(isinstance(a, Merged) or (is_spatial(a) and size_of(a) != 1) for a in over):
        raise AxisError("normalizes over pixels (attention)")
    return [axes]


def _topk(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = list(inputs[0])
    at = attribute(node, "axis") % len(axes)
    if is_spatial(axes[at]):
        raise AxisError("sorts pixels")
    count = tracer.integers(node, 1, "k")
    axes[at] = count[0] if count else None
    return [tuple(axes)] * 2


def _layer_norm(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    axes = inputs[0]
    if sees_pixels(axes[attribute(node, "axis") % len(axes) :]):
        raise AxisError("normalizes over height and width with a weight per pixel")
    return [axes] * len(node.outputs)


def _matmul(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    left, right = inputs
    if sees_pixels(right):
        raise AxisError("multiplies with a matrix of pixels")
    if len(right) != 2 or is_spatial(left[-1]):
        raise AxisError("multiplies over pixels: its weight has a row for each of them")
    return [(*left[:-1], right[-1])]


def _expand(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    shape = tracer.integers(node, 1, "shape") or []
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


def _resize(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and constant(sizes) is not None:
        raise AxisError("resizes the map to a constant size")
    raise AxisError("resizes the map, whose cells then have no common stride")


def _recurrent(tracer: _Tracer, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    raise AxisError("is a recurrent layer over pixels")


_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh
DequantizeLinear Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LRN
LeakyRelu Log Mish Neg Not QuantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu BatchNormalization InstanceNormalization
GroupNormalization MeanVarianceNormalization""".split()
_NARY = """Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor""".split()
_REDUCTIONS = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare""".split()
_FLATTENS = ("Flatten", "Reshape", "Squeeze")

_HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_NARY, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Concat": _concat,
    "Conv": _conv,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _softmax,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "TopK": _topk,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


# ------------------------------------------------------------------- arithmetic with shapes


def _slice_value(node: Node, data: Array, *given: Array) -> Array:
    def listed(name: str, index: int) -> list[int] | None:
        value = node.attrs.get(name)
        if value is not None:
            return list(value)
        return given[index].reshape(-1).tolist() if index < len(given) else None

    starts, ends = listed("starts", 0) or [], listed("ends", 1) or []
    axes = listed("axes", 2) or list(range(len(starts)))
    steps = listed("steps", 3) or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return data[tuple(cut)]


def _divided(node: Node, a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.divide(a, b)
    return np.trunc(np.divide(a, b)).astype(np.int64)


def _cast_value(node: Node, a: Array) -> Array:
    import onnx

    return a.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


_SHAPE_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "Add": lambda node, a, b: a + b,
    "Cast": _cast_value,
    "Ceil": lambda node, a: np.ceil(a),
    "Concat": lambda node, *a: np.concatenate(a, attribute(node, "axis")),
    "Div": _divided,
    "Equal": lambda node, a, b: a == b,
    "Floor": lambda node, a: np.floor(a),
    "Gather": lambda node, a, i: np.take(a, i, attribute(node, "axis")),
    "Identity": lambda node, a: a,
    "Mod": lambda node, a, b: np.mod(a, b),
    "Mul": lambda node, a, b: a * b,
    "Not": lambda node, a: ~a,
    "ReduceProd": lambda node, a, *axes: np.prod(a, keepdims=attribute(node, "keepdims") != 0),
    "Reshape": lambda node, a, shape: a.reshape(shape),
    "Slice": _slice_value,
    "Squeeze": lambda node, a, *axes: np.squeeze(a, tuple(axes_of(node) or ()) or None),
    "Sub": lambda node, a, b: a - b,
    "Unsqueeze": lambda node, a, *axes: np.expand_dims(a, tuple(axes_of(node) or ())),
    "Where": lambda node, c, a, b: np.where(c, a, b),
}
