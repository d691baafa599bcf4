"""Let the size of an image, a signal or a volume vary, in networks whose answers are maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from graphpass import Graph, Node, Tensor, label, operator, opset, require
from graphpass.follow.image_axes import DIMENSIONS
from graphpass.ir.questions import RefusedError
from graphpass.ir.reader import value_type
from graphpass.ir.weight import Array
from graphpass.rewrite.edit import Editor

from .place_fills import stretch
from .place_reshapes import kept_places
from .place_walk import follow, native_shapes
from .places import FixedSizeError, Followed, Places, count_of
from .pool_to_global import make_global

ANY, ALL = "any", "all"
_LAST = (1 << 63) - 1  # as the end of a Slice: to the end
Change = Callable[[Editor, Node], None]
_STEPS = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
)  # sizes may have to be multiples: of the total stride
_OTHERS = ((1, 2, 3), (3, 1, 2), (4, 5, 7))  # how many steps larger each dimension is tried
# sizes that networks are made for, to be tried where the input does not say it
_LIKELY = (32, 64, 96, 224, 256, 16, 8, 12, 24, 28, 48, 112, 128, 160, 192, 299, 320, 384, 448, 512)


def free_places(graph: Graph, axes: str = ANY, wanted: Sequence[int] = ()) -> list[str]:
    """Prove that nothing fixes the size of the one image, change what names it, declare it free.

    `axes`: "any", "all", or names of dimensions joined by "+". Returns one line for each change;
    none where all vary already. `wanted`: the sizes that the image is to have, axis by axis, 0 for
    any. Refuses where there is no image, or it cannot grow to them. Raises FixedSizeError with the
    node that ties the network to its size: with "any", where no dimension can vary at all.
    """
    image = _image(graph)
    require(image is not None, "no input of the network is an image, a signal or a volume")
    assert image is not None
    failures: list[FixedSizeError] = []
    layouts = list(_layouts(len(image.shape or ())))
    names = DIMENSIONS[len(layouts[0])]
    if axes not in (ANY, ALL):
        layouts = [_layout(graph, image, layouts)]
    for dims in _choices(names, axes):
        try:
            done = _free(graph, image, layouts, dims, wanted)
        except FixedSizeError as error:
            failures.append(error)
            layouts = [_layout(graph, image, layouts)]
            continue
        except RefusedError:
            if not failures:
                raise
            continue  # the rest is not fixed: of no help where all together do not vary
        rest = " and ".join(name for dim, name in enumerate(names) if dim not in dims)
        if done and failures:
            done[-1] += f"; {rest} cannot: {failures[0]}"
        return done
    raise failures[0]


def _layout(graph: Graph, image: Tensor, layouts: Sequence[list[int]]) -> list[int]:
    """Return the layout in which the network reads the image: in others it ends sooner."""
    if len(layouts) == 1:
        return layouts[0]
    progress: list[float] = []
    for layout in layouts:
        try:
            _native(graph, image, [layout], range(len(layout)))
            progress.append(math.inf)
        except FixedSizeError as error:
            progress.append(error.progress)
        except RefusedError:
            progress.append(-1)
    return layouts[progress.index(max(progress))]


def _choices(names: Sequence[str], axes: str) -> Iterator[tuple[int, ...]]:
    """Yield which dimensions of the image are to vary, the most first."""
    if axes not in (ANY, ALL):
        asked, known = axes.split("+"), " and ".join(names)
        require(set(asked) <= set(names), f"the input has {known}, and not all of '{axes}'")
        yield tuple(index for index, name in enumerate(names) if name in asked)
        return
    for size in range(len(names), 0 if axes == ANY else len(names) - 1, -1):
        yield from itertools.combinations(range(len(names)), size)


def _free(
    graph: Graph,
    image: Tensor,
    layouts: Sequence[list[int]],
    dims: Sequence[int],
    wanted: Sequence[int],
) -> list[str]:
    native, spatial, names = _native(graph, image, layouts, dims)
    if native is None:
        return []
    step, others = _others(graph, image, native, spatial)
    for axis in spatial:
        old, new = count_of(native.axes[id(image)][axis]), wanted[axis] if wanted else 0
        require(
            not new or (new - old) % step == 0,
            f"'{image.name}' grows from {old} along axis {axis} in steps of {step}: {new} is no"
            " step",
        )
    done = _carry_out(graph, native, others)
    fixed = any(isinstance((image.shape or ())[axis], int) for axis in spatial)
    if not fixed and not done:
        return []
    _declare(graph, image, names, native, others)
    listed = " and ".join(names)
    steps = f", in steps of {step}" if step > 1 else ""
    return [*done, f"{listed} of '{image.name}' {'vary' if len(names) > 1 else 'varies'}{steps}"]


def _image(graph: Graph) -> Tensor | None:
    held = {tensor.name for tensor in graph.proto.initializer}
    found = [
        tensor
        for tensor in graph.inputs
        if tensor.shape is not None
        and 2 <= len(tensor.shape) <= 5
        and tensor.dtype is not None
        and tensor.dtype.kind in ("fui" if len(tensor.shape) > 2 else "f")
        and tensor.name not in held
    ]
    names = ", ".join(f"'{tensor.name}'" for tensor in found)
    require(len(found) < 2, f"several inputs may be an image, a signal or a volume: {names}")
    return found[0] if found else None


def _layouts(rank: int) -> Iterator[list[int]]:
    if rank == 2:
        yield [1]  # N, places
        return
    yield list(range(2, rank))  # N, C, then places
    yield list(range(1, rank - 1))  # N, places, then C


def _native(
    graph: Graph, image: Tensor, layouts: Sequence[list[int]], dims: Sequence[int]
) -> tuple[Followed | None, list[int], list[str]]:
    """Follow the image at the size that the network was made for; return also axes and names.

    None where it may have any size as the network is. Refuses where no window slides over it.
    """
    failures: list[FixedSizeError] = []
    declared = list(image.shape or ())
    for layout in layouts:
        spatial = [layout[dim] for dim in dims]
        names = [DIMENSIONS[len(layout)][dim] for dim in dims]
        if any(not isinstance(declared[axis], int) for axis in _channels(declared, spatial)):
            continue
        works: list[Followed] = []
        for shape in _shapes(declared, spatial):
            try:
                shapes = native_shapes(graph, image, shape)
                found = follow(graph, image, shape, spatial, shapes)
            except FixedSizeError as error:
                failures.append(error)
                continue
            if found.windows:
                works.append(found)
            if len(works) > 1:
                return None, spatial, names  # more than one size works as it is
            if all(isinstance(declared[axis], int) for axis in spatial):
                break
        if works:
            return works[0], spatial, names
    if failures:
        raise max(failures, key=lambda failure: failure.progress)
    require(False, f"nothing slides over '{image.name}': it is no image, signal or volume")
    return None, [], []


def _channels(declared: Sequence[Any], spatial: Sequence[int]) -> list[int]:
    return [axis for axis in range(1, len(declared)) if axis not in spatial]


def _shapes(declared: Sequence[Any], spatial: Sequence[int]) -> Iterator[list[int]]:
    """Yield the declared shape, or likely ones where it is not fixed."""
    if all(isinstance(declared[axis], int) for axis in spatial):
        yield [size if isinstance(size, int) else 1 for size in declared]
        return
    for size in _LIKELY:
        yield [
            old if isinstance(old, int) else (size if axis in spatial else 1)
            for axis, old in enumerate(declared)
        ]


def _others(
    graph: Graph, image: Tensor, native: Followed, spatial: Sequence[int]
) -> tuple[int, list[Followed]]:
    """Follow the image at other sizes; return also the steps in which they may grow."""
    start = [count_of(axis) for axis in native.axes[id(image)]]
    made_for = "x".join(str(start[axis]) for axis in spatial)
    failure: FixedSizeError | None = None
    for step in _STEPS:
        found = []
        try:
            for more in _OTHERS:
                shape = list(start)
                for axis, times in zip(spatial, more, strict=False):
                    shape[axis] += step * times
                found.append(follow(graph, image, shape, spatial, native.shapes, native))
        except FixedSizeError as error:
            size = "x".join(str(shape[axis]) for axis in spatial)
            failure = failure or FixedSizeError(
                f"{error} (at {size} instead of {made_for})", error.progress
            )
            continue
        return step, found
    assert failure is not None
    raise failure


def _carry_out(graph: Graph, native: Followed, others: Sequence[Followed]) -> list[str]:
    changed = {key: node for other in others for key, node in other.changed.items()}
    stretched: dict[tuple[int, int], set[int]] = {}
    for other in others:
        for key, axes in other.stretched.items():
            stretched.setdefault(key, set()).update(axes)
    pools = {k: n for k, n in native.pooled.items() if operator(n) == "AveragePool"}
    decided: list[tuple[Node, Change, str]] = []
    for node in graph.nodes:  # what is made reads what was made
        for index in range(len(node.inputs)):
            if over := stretched.get((id(node), index)):
                what = f"'{node.inputs[index].name}' is made for each place at {label(node)}"
                decided.append((node, partial(_stretched, native, index, over), what))
        if id(node) in pools:
            decided.append((node, _global, f"{label(node)} is global"))
        elif id(node) not in changed:
            continue
        elif operator(node) in ("Reshape", "Flatten"):
            parts = _shape_parts(native, node)
            what = f"{label(node)} computes the size of its map"
            decided.append((node, partial(_reshaped, parts), what))
        elif operator(node) == "Slice":
            ends = _open_ends(native, node)
            decided.append((node, partial(_sliced, ends), f"{label(node)} goes to the end"))
        else:
            factors = _factors(native, node)
            decided.append((node, partial(_resized, factors), f"{label(node)} resizes by a factor"))
    with Editor(graph) as edit:
        for node, change, _ in decided:
            change(edit, node)
    return [what for _, _, what in decided]


def _global(edit: Editor, node: Node) -> None:
    make_global(edit, [node])


def _stretched(native: Followed, index: int, over: set[int], edit: Editor, node: Node) -> None:
    stretch(edit, native, node, index, over)


def _open_ends(native: Followed, node: Node) -> list[int]:
    """Return the ends of a Slice that are beyond the map at any size where they natively are."""
    axes = native.axes[id(node.inputs[0])]
    ends = native.integers(node, 2, "ends") or []
    over = native.integers(node, 3, "axes") or list(range(len(ends)))
    return [
        _LAST if isinstance(axes[at], Places) and end >= count_of(axes[at]) else end
        for at, end in zip(over, ends, strict=True)
    ]


def _sliced(ends: list[int], edit: Editor, node: Node) -> None:
    operands = [edit.current(t) if t.name else None for t in node.inputs]
    new = edit.one("Slice", operands, like=node, ends=ends)
    edit.replace(node.outputs[0], new)


def _shape_parts(native: Followed, node: Node) -> list[tuple[int, int, int, bool]]:
    """Return, for each axis of a Reshape's output, (size or source, times, parts, is places)."""
    before = native.axes[id(node.inputs[0])]
    after = [count_of(axis) for axis in native.axes[id(node.outputs[0])]]
    require(opset(node) >= 5, f"{label(node)} names the size of its map, before opset 5")
    parts = [(size, 1, 1, False) for size in after]
    if before and after and count_of(before[0]) == after[0] and not isinstance(before[0], Places):
        parts[0] = (0, 1, 1, False)  # the batch as it comes
    for kept in kept_places(node, before, after):
        parts[kept.target] = (kept.source, kept.times, kept.parts, True)
    return parts


def _reshaped(parts: Sequence[tuple[int, int, int, bool]], edit: Editor, node: Node) -> None:
    source = edit.current(node.inputs[0])
    shape = edit.one("Shape", [source])
    shape.dtype = np.dtype(np.int64)
    pieces: list[Tensor | Array] = []
    for plain, run in itertools.groupby(parts, key=lambda part: part[1:] == (1, 1, False)):
        if plain:
            pieces.append(np.array([size for size, *_ in run], np.int64))
            continue
        for axis, times, divisor, _ in run:
            piece = edit.one("Gather", [shape, np.array([axis], np.int64)], axis=0)
            if times > 1:
                piece = edit.one("Mul", [piece, np.array([times], np.int64)])
            if divisor > 1:
                piece = edit.one("Div", [piece, np.array([divisor], np.int64)])
            pieces.append(piece)
    target = edit.one("Concat", pieces, axis=0)
    like = node if operator(node) == "Reshape" else None
    new = edit.one("Reshape", [source, target], like=like, allowzero=None)
    edit.replace(node.outputs[0], new)


def _factors(native: Followed, node: Node) -> list[Fraction]:
    before, after = (native.axes[id(t)] for t in (node.inputs[0], node.outputs[0]))
    require(
        operator(node) == "Resize" and opset(node) >= 11,
        f"{label(node)} does not resize by whole places at other sizes",
    )
    return [Fraction(count_of(b), count_of(a)) for a, b in zip(before, after, strict=True)]


def _resized(factors: Sequence[Fraction], edit: Editor, node: Node) -> None:
    exact = all(Fraction(float(np.float32(float(factor)))) == factor for factor in factors)
    x, none = edit.current(node.inputs[0]), None
    if exact:
        scales = np.array([float(factor) for factor in factors], np.float32)
        new = edit.one("Resize", [x, none, scales], like=node, axes=None)
        edit.replace(node.outputs[0], new)
        return
    shape = edit.one("Shape", [x])
    shape.dtype = np.dtype(np.int64)
    times = np.array([factor.numerator for factor in factors], np.int64)
    parts = np.array([factor.denominator for factor in factors], np.int64)
    sizes = edit.one("Div", [edit.one("Mul", [shape, times]), parts])
    new = edit.one("Resize", [x, none, none, sizes], like=node, axes=None)
    edit.replace(node.outputs[0], new)


def _declare(
    graph: Graph,
    image: Tensor,
    dimensions: Sequence[str],
    native: Followed,
    others: Sequence[Followed],
) -> None:
    """Give the dimensions names, shared where the sizes are equal whatever the image's are."""
    runs = [native, *others]
    taken = {dim for t in (*graph.inputs, *graph.outputs) for dim in t.shape or ()}
    names: dict[tuple[int, ...], str] = {}  # by dimension and counts
    spelled = {value.name: value_type(value.type)[1] for value in graph.proto.output}
    for tensor in (image, *graph.outputs):
        if tensor.shape is None or id(tensor) not in native.axes:
            continue
        declared = list(spelled.get(tensor.name) or tensor.shape)
        for index, axis in enumerate(native.axes[id(tensor)]):
            if not isinstance(axis, Places) or isinstance(declared[index], str):
                continue
            counts = (axis.dim, *(count_of(run.axes[id(tensor)][index]) for run in runs))
            base = dimensions[axis.dim]
            if counts not in names:
                names[counts] = _fresh(base if tensor is image else f"map_{base}", taken)
                taken.add(names[counts])
            declared[index] = names[counts]
        tensor.shape = declared


def _fresh(base: str, taken: set[Any]) -> str:
    names = itertools.chain([base], (f"{base}_{count}" for count in itertools.count(2)))
    return next(name for name in names if name not in taken)
