"""What becomes of an affine map where elements move: along axes, into other axes, or are picked.

All of it holds for every element by itself, NaN and infinities among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphpass import (
    Node,
    attribute,
    constant,
    integers,
    label,
    operator,
    opset,
    rank,
    require,
    static_dim,
)
from graphpass.ir.shapes import reshaped, sizes, slices
from graphpass.ir.sizes import Size, product, quotient

from .affine import Affine, Floats
from .maps import (
    Mover,
    as_it_is,
    axes_count,
    compressed,
    on_each,
    require_alike,
    require_no_shift,
    size_of,
    varying,
)

_MOST_ELEMENTS = 1 << 20  # of a map: what is larger is no normalization


# -------------------------------------------------------------- elements that move along axes


def _order(node: Node) -> list[int]:
    return list(attribute(node, "perm") or range(axes_count(node.inputs[0]))[::-1])


_TRANSPOSE = Mover(
    lambda node, change: [on_each(change, lambda v: v.transpose(np.argsort(_order(node))))],
    lambda node, change, index: on_each(change, lambda v: v.transpose(_order(node))),
)


def _view(node: Node) -> tuple[list[Size], list[Size]]:
    x = node.inputs[0]
    old = sizes(x)
    new = reshaped(node, old)
    require(old is not None and new is not None, f"what {label(node)} makes of '{x.name}' varies")
    return old or [], new or []


_VIEW = Mover(
    lambda node, change: [_regrouped(node, change, *reversed(_view(node)))],
    lambda node, change, index: _regrouped(node, change, *_view(node)),
)


def _regrouped(node: Node, change: Affine, old: list[Size], new: list[Size]) -> Affine:
    """Return a map of a tensor of sizes `old` as one of the same elements in sizes `new`."""
    groups = _groups(old, new)
    require(groups is not None, f"{label(node)} mixes axes of sizes that are not known")
    moved = varying(change)
    shape: list[int] = []
    final: list[int] = []
    for left, right in groups or []:
        whole = any(axis in moved for axis in left)
        known = all(not old[k].names for k in left) and all(not new[k].names for k in right)
        require(known or not whole, f"{label(node)} joins a size that is not fixed to the channels")
        shape.extend(old[k].factor if whole else 1 for k in left)
        final.extend(new[k].factor if whole else 1 for k in right)
    require(np.prod(shape) <= _MOST_ELEMENTS, f"{label(node)} joins too much to the channels")
    return on_each(change, lambda v: np.broadcast_to(v, shape).reshape(final))


def _groups(old: list[Size], new: list[Size]) -> list[tuple[list[int], list[int]]] | None:
    """Pair runs of axes that hold the same elements; None where that cannot be told."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = list(range(i, min(i + 1, len(old)))), list(range(j, min(j + 1, len(new))))
        i, j = i + len(left), j + len(right)
        while (a := product(old[k] for k in left)) != (b := product(new[k] for k in right)):
            if i < len(old) and (quotient(b, a) is not None or j == len(new)):
                left.append(i)
                i += 1
            elif j < len(new) and quotient(a, b) is not None:
                right.append(j)
                j += 1
            else:
                return None
        groups.append((left, right))
    return groups


def _selection(
    pick: Callable[[Node, int], list[int]], check: Callable[[Node], None] = lambda node: None
) -> Mover:
    """A row for operators that pick elements along axes: `pick` lists, for an axis along which
    the map varies, which element of the input each one of the output is.
    """

    def before(node: Node, change: Affine) -> Sequence[Affine | None]:
        check(node)
        for axis in varying(change):
            size, taken = size_of(node.inputs[0], axis), pick(node, axis)
            change = Affine(
                _put_back(node, change.factor, axis, size, taken, 1.0),
                _put_back(node, change.shift, axis, size, taken, 0.0),
            )
        return [change]

    def after(node: Node, change: Affine, index: int) -> Affine:
        check(node)
        for axis in varying(change):
            taken = pick(node, axis)
            change = Affine(_picked(change.factor, axis, taken), _picked(change.shift, axis, taken))
        return change

    return Mover(before, after)


def _picked(values: Floats, axis: int, taken: list[int]) -> Floats:
    return values if values.shape[axis] == 1 else compressed(values.take(taken, axis))


def _put_back(
    node: Node, values: Floats, axis: int, size: int, taken: list[int], rest: float
) -> Floats:
    """Return what elements of the input have to be mapped with; those that nobody picks: `rest`."""
    shape = list(values.shape)
    shape[axis] = len(taken)
    picked = np.broadcast_to(values, shape)
    shape[axis] = size
    result = np.full(shape, rest)
    index = (slice(None),) * axis + (taken,)
    result[index] = picked
    require((result[index] == picked).all(), f"{label(node)} picks an element for several channels")
    return result


def _sliced(node: Node, axis: int) -> list[int]:
    bounds = slices(node)
    require(bounds is not None, f"the bounds of {label(node)} are computed")
    taken = list(range(size_of(node.inputs[0], axis)))
    for where, start, end, step in bounds or []:
        if where % axes_count(node.inputs[0]) == axis:
            taken = taken[start:end:step]
    return taken


def _require_list(node: Node) -> None:
    require(rank(node.inputs[1]) == 1, f"{label(node)} changes the number of axes")


def _gathered(node: Node, axis: int) -> list[int]:
    size = size_of(node.inputs[0], axis)
    if attribute(node, "axis") % axes_count(node.inputs[0]) != axis:
        return list(range(size))
    listed = integers(node.inputs[1])
    require(listed is not None, f"the indices of {label(node)} are computed")
    return [index % size for index in listed or []]


def _joined(node: Node, change: Affine, mode: str) -> Affine:
    """Return the map of the channels that several of `change` are pixels of."""
    require_alike(node, change, (2, 3))
    count = attribute(node, "blocksize") ** 2
    inner, pixels = ((count, -1), 1) if mode == "DCR" else ((-1, count), 2)

    def join(values: Floats) -> Floats:
        if values.shape[1] == 1:
            return values
        parts = values.reshape(1, *inner)
        first = parts.take([0], pixels)
        require((parts == first).all(), f"{label(node)} joins channels whose maps differ")
        return first.reshape(1, -1, 1, 1)

    return on_each(change, join)


def _parted(node: Node, change: Affine, mode: str) -> Affine:
    """Return the map of the channels that the pixels of those of `change` come from."""
    require_alike(node, change, (2, 3))
    count = attribute(node, "blocksize") ** 2

    def part(values: Floats) -> Floats:
        if values.shape[1] == 1:
            return values
        return np.tile(values, (1, count, 1, 1)) if mode == "DCR" else np.repeat(values, count, 1)

    return on_each(change, part)


def _depth_mode(node: Node) -> str:
    return str(attribute(node, "mode") or "DCR")


_DEPTH_TO_SPACE = Mover(
    lambda node, change: [_parted(node, change, _depth_mode(node))],
    lambda node, change, index: _joined(node, change, _depth_mode(node)),
)
_SPACE_TO_DEPTH = Mover(
    lambda node, change: [_joined(node, change, "DCR")],
    lambda node, change, index: _parted(node, change, "DCR"),
)


# ------------------------------------------------------------------------------ Pad and Resize


def _check_pad(node: Node, change: Affine) -> None:
    count = axes_count(node.inputs[0])
    pads = attribute(node, "pads") or (integers(node.inputs[1]) if len(node.inputs) > 1 else None)
    require(pads is not None, f"the pads of {label(node)} are computed")
    axes = list(range(count))
    if len(node.inputs) > 3 and node.inputs[3].name:
        listed = integers(node.inputs[3])
        require(listed is not None, f"the axes of {label(node)} are computed")
        axes = [axis % count for axis in listed or []]
    half = len(pads or []) // 2
    padded = [a for k, a in enumerate(axes) if (pads or [])[k] or (pads or [])[half + k]]
    require_alike(node, change, padded)
    if attribute(node, "mode") != "constant" or not padded:
        return
    value = attribute(node, "value") or 0.0
    if len(node.inputs) > 2 and node.inputs[2].name:
        given = constant(node.inputs[2])
        require(given is not None, f"what {label(node)} pads with is computed")
        value = 0.0 if given is None else float(given.array().reshape(-1)[0])
    # 0·f + 0 is 0 again, and of any other constant each channel would need its own
    require(
        value == 0 and not change.shifts,
        f"{label(node)} pads with {value:g}, which the map does not reach",
    )


def _check_resize(node: Node, change: Affine) -> None:
    x = node.inputs[0]
    kept = [axis for axis in range(axes_count(x)) if _keeps(node, axis)]
    require_alike(node, change, [axis for axis in range(axes_count(x)) if axis not in kept])
    require(
        attribute(node, "coordinate_transformation_mode") != "tf_crop_and_resize",
        f"{label(node)} has a value of its own beyond the edge",
    )
    plain = attribute(node, "mode") in ("nearest", "linear", "bilinear")
    if not plain or attribute(node, "antialias"):
        require_no_shift(node, change, "weighs elements with weights that need not sum to 1")


def _keeps(node: Node, axis: int) -> bool:
    """Whether a Resize, or an Upsample, leaves `axis` alone."""
    count = axes_count(node.inputs[0])
    listed = attribute(node, "axes")
    axes = list(range(count)) if listed is None else [a % count for a in listed]
    if axis not in axes:
        return True
    place = axes.index(axis)
    if attribute(node, "scales") is not None:  # before opset 9
        return bool(attribute(node, "scales")[place] == 1)
    scales_at = 1 if operator(node) == "Upsample" or opset(node) < 11 else 2
    given = node.inputs[scales_at] if len(node.inputs) > scales_at else None
    if given is not None and given.name and rank(given) == 1 and static_dim(given, 0) != 0:
        scales = constant(given)
        return scales is not None and bool(scales.array()[place] == 1)
    wanted = integers(node.inputs[3]) if len(node.inputs) > 3 else None
    return wanted is not None and wanted[place] == static_dim(node.inputs[0], axis)


# every row that this file knows
ELEMENTS: dict[str, Mover] = {
    "Transpose": _TRANSPOSE,
    "Reshape": _VIEW,
    "Flatten": _VIEW,
    "Squeeze": _VIEW,
    "Unsqueeze": _VIEW,
    "Slice": _selection(_sliced),
    "Gather": _selection(_gathered, _require_list),
    "DepthToSpace": _DEPTH_TO_SPACE,
    "SpaceToDepth": _SPACE_TO_DEPTH,
    "Pad": as_it_is(_check_pad),
    "Resize": as_it_is(_check_resize),
    "Upsample": as_it_is(_check_resize),
}
