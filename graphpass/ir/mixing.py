"""Which axes an operator mixes: along which its output is not that of slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from graphpass.ir.operators import Trait, is_training, of_node
from graphpass.ir.questions import (
    Node,
    RefusedError,
    attribute,
    axes_of,
    constant,
    integers,
    opset,
    rank,
)

Axes = frozenset[int]
_NONE: Axes = frozenset()
_SOFTMAX_BY_AXIS = 13  # before this opset Softmax flattens everything from its axis on


def mixed_axes(node: Node, index: int = 0) -> Axes | None:
    """Return the axes of input `index` that `node` mixes; None: it may be any.

    Along every other axis the outputs for a slice of the input are slices of the outputs, wherever
    that axis then lies, so long as other inputs are sliced along the axis that meets it, or have
    one element there. Mixed are also axes that are cut, dropped, repeated, joined with others, or
    put in another order.
    """
    found = of_node(node)
    if found is None or index >= len(node.inputs) or node.inputs[index].name == "":
        return None
    count = rank(node.inputs[index])
    if count is None:
        return None
    try:
        mixed = _mixed(node, index, count, found.traits)
    except RefusedError:
        return None
    if mixed is None or any(not -count <= axis < count for axis in mixed):
        return None
    return frozenset(axis % count for axis in mixed)


def _mixed(node: Node, index: int, count: int, traits: Trait) -> Iterable[int] | None:
    special = _SPECIAL.get(node.op)
    if special is not None:
        return special(node, index, count)
    if traits & (Trait.ELEMENTWISE | Trait.BROADCASTING):
        return None if is_training(node) else _NONE
    if index:
        return None
    if Trait.REDUCTION in traits:
        return _reduced(node, count)
    if traits & (Trait.SLIDING | Trait.POOL):
        return range(1 if Trait.CONTRACTION in traits else 2, count)
    return None


def _reduced(node: Node, count: int) -> Iterable[int]:
    if "axis" in node.attrs or node.op.startswith("Arg"):
        return [attribute(node, "axis")]
    axes = axes_of(node)
    if axes:
        return axes
    return _NONE if attribute(node, "noop_with_empty_axes") else range(count)


def _axis(node: Node, index: int, count: int) -> Iterable[int] | None:
    axis = attribute(node, "axis")
    return None if axis is None else [axis]


def _axis_of_first(node: Node, index: int, count: int) -> Iterable[int] | None:
    return _axis(node, index, count) if index == 0 else None


def _gather(node: Node, index: int, count: int) -> Iterable[int] | None:
    return [attribute(node, "axis")] if index == 0 else _NONE


def _gather_nd(node: Node, index: int, count: int) -> Iterable[int] | None:
    kept = attribute(node, "batch_dims") or 0
    return range(kept, count) if index == 0 else range(kept, count)[-1:]


def _softmax(node: Node, index: int, count: int) -> Iterable[int]:
    axis: int = attribute(node, "axis")
    return [axis] if opset(node) >= _SOFTMAX_BY_AXIS else range(axis % max(count, 1), count)


def _from_axis(node: Node, index: int, count: int) -> Iterable[int] | None:
    return range(attribute(node, "axis") % max(count, 1), count) if index == 0 else None


def _cumulated(node: Node, index: int, count: int) -> Iterable[int] | None:
    return integers(node.inputs[1]) if index == 0 else None


def _flatten(node: Node, index: int, count: int) -> Iterable[int]:
    axis: int = attribute(node, "axis")
    axis += count if axis < 0 else 0
    return [*(range(axis) if axis > 1 else ()), *(range(axis, count) if axis < count - 1 else ())]


def _sliced(node: Node, index: int, count: int) -> Iterable[int] | None:
    if index:
        return None
    starts = attribute(node, "starts")
    if starts is not None:
        return attribute(node, "axes") or range(len(starts))
    if len(node.inputs) > 3 and node.inputs[3].name:
        return integers(node.inputs[3])
    listed = integers(node.inputs[1])
    return range(count if listed is None else len(listed))


def _padded(node: Node, index: int, count: int) -> Iterable[int] | None:
    if index:
        return None
    pads = attribute(node, "pads") or attribute(node, "paddings")
    axes: Iterable[int] | None = range(count)
    if pads is None and len(node.inputs) > 1:
        pads = integers(node.inputs[1])
        if len(node.inputs) > 3 and node.inputs[3].name:
            axes = integers(node.inputs[3])
    if pads is None or axes is None:
        return None
    half = len(pads) // 2
    return [axis for axis, a, b in zip(axes, pads[:half], pads[half:], strict=False) if a or b]


def _tiled(node: Node, index: int, count: int) -> Iterable[int] | None:
    repeats = integers(node.inputs[1]) if index == 0 else None
    return None if repeats is None else [axis for axis, n in enumerate(repeats) if n != 1]


def _expanded(node: Node, index: int, count: int) -> Iterable[int] | None:
    target = integers(node.inputs[1]) if index == 0 else None
    if target is None:
        return None
    return [
        axis for axis, size in enumerate(target, count - len(target)) if size != 1 and axis >= 0
    ]


def _resized(node: Node, index: int, count: int) -> Iterable[int] | None:
    scales = attribute(node, "scales")
    place = 2 if node.op == "Resize" and opset(node) >= 11 else 1
    if scales is None and len(node.inputs) > place and node.inputs[place].name:
        weight = constant(node.inputs[place])
        scales = None if weight is None else weight.array().tolist()
    if index or not scales:
        return None
    axes = attribute(node, "axes") or range(count)
    return [axis for axis, scale in zip(axes, scales, strict=False) if scale != 1]


def _gemm(node: Node, index: int, count: int) -> Iterable[int]:
    if index == 2:
        return _NONE
    turned = bool(attribute(node, "transB" if index else "transA"))
    return [int(turned == bool(index))]


def _matmul(node: Node, index: int, count: int) -> Iterable[int] | None:
    if index > 1:
        return None
    return [-1] if index == 0 or count == 1 else [-2]


def _einsum(node: Node, index: int, count: int) -> Iterable[int] | None:
    equation = str(attribute(node, "equation")).replace(" ", "")
    if "." in equation or "->" not in equation:
        return None
    sides = equation.split("->")
    letters = sides[0].split(",")[index]
    return [i for i, c in enumerate(letters) if c not in sides[1] or letters.count(c) > 1]


def _batch_norm(node: Node, index: int, count: int) -> Iterable[int] | None:
    if index:
        return None
    by_element = opset(node) < 9 and not attribute(node, "spatial")
    if is_training(node):
        return [axis for axis in range(count) if axis != 1 or by_element]
    return _NONE


def _recurrent(node: Node, index: int, count: int) -> Iterable[int] | None:
    if index not in (0, 5, 6):
        return None
    return [axis for axis in range(count) if axis != (0 if attribute(node, "layout") else 1)]


def _quantized(node: Node, index: int, count: int) -> Iterable[int] | None:
    return _NONE if index == 0 else None


def _listed(*axes: int) -> Rule:
    return lambda node, index, count: axes if index == 0 else None


def _from(first: int) -> Rule:
    return lambda node, index, count: range(first, count) if index == 0 else None


Rule = Callable[[Node, int, int], "Iterable[int] | None"]

_SPECIAL: dict[str, Rule] = {
    **dict.fromkeys(("Split", "TopK", "Compress", "LpNormalization"), _axis_of_first),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _from_axis),
    **dict.fromkeys(("CumSum", "CumProd"), _cumulated),
    **dict.fromkeys(("Resize", "Upsample"), _resized),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantized),
    **dict.fromkeys(("Transpose", "Unsqueeze"), _listed()),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _from(1)),
    "BatchNormalization": _batch_norm,
    "Concat": _axis,
    "Einsum": _einsum,
    "Expand": _expanded,
    "Flatten": _flatten,
    "LRN": _listed(1),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GroupNormalization": _from(1),
    "InstanceNormalization": _from(2),
    "MeanVarianceNormalization": lambda node, index, count: attribute(node, "axes") or (0, 2, 3),
    "Pad": _padded,
    "ReverseSequence": lambda node, index, count: (
        [attribute(node, "time_axis")] if index == 0 else None
    ),
    "Slice": _sliced,
    "Squeeze": lambda node, index, count: axes_of(node) if index == 0 else None,
    "Tile": _tiled,
    "Trilu": _listed(-2, -1),
}

__all__ = ["mixed_axes"]
