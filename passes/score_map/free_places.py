"""Let the size of an image, a signal or a volume vary, in networks whose answers are maps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from graphpass import Graph, Node, Tensor, label, operator, opset, require
from graphpass.ir.reader import value_type
from graphpass.ir.weight import Array
from graphpass.rewrite.edit import Editor

from .place_reshapes import kept_places
from .place_walk import follow, native_shapes
from .places import DIMENSIONS, FixedSizeError, Followed, Places, count_of
from .pool_to_global import make_global

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


def free_places(graph: Graph) -> list[str]:
    """Prove that nothing fixes the size of the one image, change what names it, declare it free.

    Returns one line for each change; none where there is no image, or it varies already. Raises
    FixedSizeError with the node that ties the network to its size.
    """
    image = _image(graph)
    if image is None:
        return []
    native, spatial = _native(graph, image)
    if native is None:
        return []
    step, others = _others(graph, image, native, spatial)
    done = _carry_out(graph, native, others)
    fixed = any(isinstance((image.shape or ())[axis], int) for axis in spatial)
    if not fixed and not done:
        return []
    _declare(graph, image, spatial, native, others)
    names = " and ".join(DIMENSIONS[len(spatial)])
    steps = f", in steps of {step}" if step > 1 else ""
    return [*done, f"{names} of '{image.name}' vary{steps}"]


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


def _native(graph: Graph, image: Tensor) -> tuple[Followed | None, list[int]]:
    """Follow the image at the size that the network was made for.

    None where no window slides over it, or it may have any size as the network is.
    """
    failures: list[FixedSizeError] = []
    declared = list(image.shape or ())
    for spatial in _layouts(len(declared)):
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
                return None, spatial  # more than one size works as it is
            if all(isinstance(declared[axis], int) for axis in spatial):
                break
        if works:
            return works[0], spatial
    if failures:
        raise max(failures, key=lambda failure: failure.progress)
    return None, []


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
            failure = failure or error
            continue
        return step, found
    assert failure is not None
    raise failure


def _carry_out(graph: Graph, native: Followed, others: Sequence[Followed]) -> list[str]:
    changed = {key: node for other in others for key, node in other.changed.items()}
    pools = {k: n for k, n in native.pooled.items() if operator(n) == "AveragePool"}
    todo = [node for node in graph.nodes if id(node) in changed or id(node) in pools]
    decided: list[tuple[Node, Any]] = []
    for node in todo:
        if id(node) in pools:
            decided.append((node, None))
        elif operator(node) in ("Reshape", "Flatten"):
            decided.append((node, _shape_parts(native, node)))
        else:
            decided.append((node, _factors(native, node)))
    done = []
    with Editor(graph) as edit:
        for node, how in decided:  # in the order of the graph: what is made reads what was made
            if how is None:
                make_global(edit, [node])
                done.append(f"{label(node)} is global")
            elif isinstance(how[0], tuple):
                edit.replace(node.outputs[0], _reshaped(edit, node, how))
                done.append(f"{label(node)} computes the size of its map")
            else:
                edit.replace(node.outputs[0], _resized(edit, node, how))
                done.append(f"{label(node)} resizes by a factor")
    return done


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


def _reshaped(edit: Editor, node: Node, parts: Sequence[tuple[int, int, int, bool]]) -> Tensor:
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
    return edit.one("Reshape", [source, target], like=like, allowzero=None)


def _factors(native: Followed, node: Node) -> list[Fraction]:
    before, after = (native.axes[id(t)] for t in (node.inputs[0], node.outputs[0]))
    require(
        operator(node) == "Resize" and opset(node) >= 11,
        f"{label(node)} does not resize by whole places at other sizes",
    )
    return [Fraction(count_of(b), count_of(a)) for a, b in zip(before, after, strict=True)]


def _resized(edit: Editor, node: Node, factors: Sequence[Fraction]) -> Tensor:
    exact = all(Fraction(float(np.float32(float(factor)))) == factor for factor in factors)
    x, none = edit.current(node.inputs[0]), None
    if exact:
        scales = np.array([float(factor) for factor in factors], np.float32)
        return edit.one("Resize", [x, none, scales], like=node, axes=None)
    shape = edit.one("Shape", [x])
    shape.dtype = np.dtype(np.int64)
    times = np.array([factor.numerator for factor in factors], np.int64)
    parts = np.array([factor.denominator for factor in factors], np.int64)
    sizes = edit.one("Div", [edit.one("Mul", [shape, times]), parts])
    return edit.one("Resize", [x, none, none, sizes], like=node, axes=None)


def _declare(
    graph: Graph,
    image: Tensor,
    spatial: Sequence[int],
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
            base = DIMENSIONS[len(spatial)][axis.dim]
            if counts not in names:
                names[counts] = _fresh(base if tensor is image else f"map_{base}", taken)
                taken.add(names[counts])
            declared[index] = names[counts]
        tensor.shape = declared


def _fresh(base: str, taken: set[Any]) -> str:
    names = itertools.chain([base], (f"{base}_{count}" for count in itertools.count(2)))
    return next(name for name in names if name not in taken)
