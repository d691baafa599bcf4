"""A classifier becomes a score map: the head slides, and the image may have any size.

Four steps, each usable on its own after the dense layers have become convolutions:
`pool-to-window` lets a pooling head slide, `unflatten-head` gives every answer a place (outputs
[N, classes, h, w]), `free-resolution` lets height and width vary; `drop-softmax` leaves logits.
(Sermanet et al., "OverFeat", 2013; Long, Shelhamer & Darrell, "Fully Convolutional Networks for
Semantic Segmentation", 2015.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphpass import (
    Graph,
    Node,
    Pass,
    Tensor,
    attribute,
    integers,
    label,
    operator,
    opset,
    producer,
    require,
    static_dim,
)
from graphpass.dense.axes import AxisError, Spatial, size_of, target_sizes
from graphpass.dense.geometry import windows_of
from graphpass.dense.image_input import images, trace_image
from graphpass.dense.trace import LAYOUTS, Collapse, Trace, trace
from graphpass.errors import ModelError
from graphpass.rewrite.edit import Editor

from .lift import TO_NCHW, TO_NHWC, Lifted, Lifter, cellwise_softmax

__all__ = [
    "ClassActivationMap",
    "DropSoftmax",
    "FreeBatch",
    "FreeResolution",
    "PoolToGlobal",
    "PoolToWindow",
    "UnflattenHead",
]

_LARGER = (1, 7, 32, 45, 96)  # pixels more: sizes at which maps are compared
_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_MAXIMA = ("GlobalMaxPool", "ReduceMax")
_SOFTMAXES = ("Softmax", "LogSoftmax")


def _traced(graph: Graph) -> Trace | None:
    """Trace the image of a main graph; None where there is none, or it may have any size."""
    if graph.parent is not None or graph.is_function:
        return None
    try:
        return trace_image(graph)
    except ModelError:
        return None


@dataclass(frozen=True)
class PoolToWindow(Pass):
    """GlobalAveragePool(x[N,C,H,W]) = AveragePool_HxW(x), stride 1, in the head of a classifier.

    At other resolutions the window keeps its size and slides. Pooling inside the trunk, as in
    squeeze-and-excitation, stays global. GlobalMaxPool likewise becomes MaxPool.
    """

    name: ClassVar[str] = "pool-to-window"
    changes_interface: ClassVar[bool] = False

    def run(self, graph: Graph) -> list[str]:
        """Let every pooling of the head slide."""
        found = _traced(graph)
        if found is None:
            return []
        pools = [c for c in found.heads if c.kind == "pool" and not _slides(c.node)]
        with Editor(graph) as edit:
            for pool in pools:
                edit.replace(pool.node.outputs[0], _window(edit, found, pool))
        return [f"{label(pool.node)} slides" for pool in pools]


def _slides(node: Node) -> bool:
    return operator(node) == "AveragePool" and all(w.stride == 1 for w in windows_of(node))


def _window(edit: Editor, found: Trace, pool: Collapse) -> Tensor:
    op = operator(pool.node)
    require(op in (*_AVERAGES, *_MAXIMA), f"{label(pool.node)} is no average or maximum")
    kernel = list(found.map_size(pool.source))
    axes = found.axes[id(pool.source)]
    places = [a.dim if isinstance(a, Spatial) else None for a in axes]
    require(len(axes) == 4, f"{label(pool.node)} pools something else than feature maps")
    last = places[1] is not None
    x = edit.permuted(pool.source, TO_NCHW) if last else pool.source
    if places.index(0) > places.index(1):
        kernel.reverse()
    sliding = edit.one(
        "AveragePool" if op in _AVERAGES else "MaxPool",
        [x],
        kernel_shape=kernel,
        strides=[1, 1],
    )
    sliding.shape = [axes[0], axes[3] if last else axes[1], 1, 1]
    shape = [size_of(axis) for axis in found.axes[id(pool.node.outputs[0])]]
    if len(shape) == 4:
        return edit.permuted(sliding, TO_NHWC) if last else sliding
    flat = edit.one("Flatten", [sliding], axis=1)
    flat.shape = sliding.shape[:2]
    return flat


@dataclass(frozen=True)
class PoolToGlobal(Pass):
    """AveragePool_HxW(x[N,C,H,W]) = GlobalAveragePool(x), wherever one window covers the map.

    At other resolutions the pooling stays global: one answer for each image.
    """

    name: ClassVar[str] = "pool-to-global"

    def run(self, graph: Graph) -> list[str]:
        """Make poolings over the whole map global."""
        found = _traced(graph)
        if found is None:
            return []
        pools = [c.node for c in found.collapses if operator(c.node) == "AveragePool"]
        with Editor(graph) as edit:
            _make_global(edit, pools)
        return [f"{label(pool)} is global" for pool in pools]


def _make_global(edit: Editor, pools: list[Node]) -> None:
    for pool in pools:
        edit.replace(pool.outputs[0], edit.one("GlobalAveragePool", [pool.inputs[0]]))


@dataclass(frozen=True)
class UnflattenHead(Pass):
    """Flatten(f(x)) gives [N,C], one answer; f(x) is the map [N,C,h,w] of the same answers.

    What works on the classes after the Flatten (Softmax, ArgMax, TopK, …) moves to the channels
    of the map. A network that reads NHWC gives its map as [N,h,w,C].
    """

    name: ClassVar[str] = "unflatten-head"
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph) -> list[str]:
        """Lift the head; the outputs get height and width."""
        found = _traced(graph)
        if found is None or not found.heads:
            return []
        with Editor(graph) as edit:
            lifted = Lifter(found, edit).run()
            maps = {id(out): lifted[id(out)] for out in graph.outputs if id(out) in lifted}
            require(maps, "no output of the network comes from its head")
            _put_out(graph, found, edit, maps)
        for output in graph.outputs:
            if id(output) in maps:
                output.shape = _shape_of(output, maps[id(output)], found.layout)
        return [f"'{output.name}' is a map" for output in graph.outputs if id(output) in maps]


def _put_out(graph: Graph, found: Trace, edit: Editor, maps: dict[int, Lifted]) -> None:
    for output in graph.outputs:
        if id(output) not in maps:
            continue
        lifted = maps[id(output)]
        cells = lifted.cells
        if found.layout == "NHWC":
            cells = edit.permuted(cells, TO_NHWC)
        if lifted.channel is None:
            axis = 3 if found.layout == "NHWC" else 1
            cells = _squeezed(edit, graph, cells, axis)
        if cells is not output:
            edit.replace(output, cells)


def _squeezed(edit: Editor, graph: Graph, tensor: Tensor, axis: int) -> Tensor:
    if graph.opsets.get("", 0) >= 13:
        return edit.one("Squeeze", [tensor, np.array([axis], np.int64)])
    return edit.one("Squeeze", [tensor], axes=[axis])


def _shape_of(output: Tensor, lifted: Lifted, layout: str) -> list[Any]:
    batch = output.shape[0] if output.shape else None
    if lifted.channel is None:
        return [batch, 1, 1]
    shape = output.shape
    count = shape[lifted.channel] if shape and len(shape) > lifted.channel else None
    return [batch, 1, 1, count] if layout == "NHWC" else [batch, count, 1, 1]


@dataclass(frozen=True)
class FreeResolution(Pass):
    """A network of sliding windows computes the same at every resolution.

    Height and width of the input become symbolic; Reshapes that name them compute them instead;
    pooling over the whole map inside the trunk (squeeze-and-excitation) is global at every size;
    Softmax works on the channels alone. Refused, with the node, where something else ties the
    network to its resolution.
    """

    name: ClassVar[str] = "free-resolution"
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph) -> list[str]:
        """Free the trunk and declare height and width symbolic."""
        native = _traced(graph)
        if native is None:
            return []

        def at(larger: int) -> Trace:
            size = (native.size[0] + larger, native.size[1] + larger)
            return trace(graph, native.image, native.layout, size, native, sliding=True)

        found = at(0)
        _require_free_head(found)
        others = [at(larger) for larger in _LARGER]
        done: list[str] = []
        with Editor(graph) as edit:
            done += _free_pools(found, edit)
            done += _free_reshapes(native, others[-1], edit)
            done += _free_softmax(found, edit)
        _declare(graph, found, others)
        return [*done, f"height and width of '{found.image.name}' vary"]


def _require_free_head(found: Trace) -> None:
    for collapse in found.collapses:
        pooled = collapse.kind == "pool"
        height, width = found.map_size(collapse.source)
        require(
            pooled,
            f"{label(collapse.node)} flattens a map of {height}x{width}: there is a weight for "
            "each of its pixels, and one answer for a larger image has no weights for the rest",
        )


def _free_pools(found: Trace, edit: Editor) -> list[str]:
    pools = [
        c.node
        for c in found.collapses
        if operator(c.node) == "AveragePool" and id(c.node) in found.trunk_pools
    ]
    _make_global(edit, pools)
    return [f"{label(pool)} inside the trunk is global" for pool in pools]


def _free_reshapes(found: Trace, other: Trace, edit: Editor) -> list[str]:
    done = []
    for node in found.reshapes:
        wanted = [size_of(axis) for axis in other.axes[id(node.outputs[0])]]
        if _resolved(other, node) != wanted:
            shape = _computed_shape(found, edit, node)
            replaced = edit.one("Reshape", [node.inputs[0], shape], like=node, allowzero=None)
            edit.replace(node.outputs[0], replaced)
            done.append(f"{label(node)} computes height and width")
    return done


def _resolved(other: Trace, node: Node) -> list[int] | None:
    """Return the sizes that the Reshape, as it is, makes of a larger image; None where it fails."""
    shape = other.value(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None:
        return None
    zero_is_size = bool(attribute(node, "allowzero") or 0)
    try:
        return target_sizes(
            other.axes[id(node.inputs[0])], shape.reshape(-1).tolist(), zero_is_size
        )
    except AxisError:
        return None


def _computed_shape(found: Trace, edit: Editor, node: Node) -> Tensor:
    """Return the Reshape's target: constants and, for height and width, parts of Shape(x)."""
    source, target = found.axes[id(node.inputs[0])], found.axes[id(node.outputs[0])]
    place = {axis.dim: i for i, axis in enumerate(source) if isinstance(axis, Spatial)}
    runs: list[tuple[bool, list[int]]] = []
    for axis in target:
        plain = isinstance(axis, int)
        if not plain:
            known = isinstance(axis, Spatial) and axis.dim in place
            require(known or axis == source[0], f"{label(node)} merges height or width")
        value = (
            axis if isinstance(axis, int) else place[axis.dim] if isinstance(axis, Spatial) else 0
        )
        if not runs or runs[-1][0] != plain:
            runs.append((plain, []))
        runs[-1][1].append(value)
    shape = edit.one("Shape", [node.inputs[0]])
    parts: list[Any] = [
        values if plain else edit.one("Gather", [shape, values], axis=0)
        for plain, values in ((plain, np.array(run, np.int64)) for plain, run in runs)
    ]
    return edit.one("Concat", parts, axis=0)


def _free_softmax(found: Trace, edit: Editor) -> list[str]:
    """Before opset 13 Softmax flattens: over one cell that is the same, over a map it is not."""
    done = []
    for node in found.graph.nodes:
        flattens = operator(node) in (*_SOFTMAXES, "Hardmax") and opset(node) < 13
        if flattens and found.is_map(node.inputs[0]) and attribute(node, "axis") in (1, -3):
            edit.replace(node.outputs[0], cellwise_softmax(edit, node, node.inputs[0]))
            done.append(f"{label(node)} works on the channels")
    return done


def _declare(graph: Graph, found: Trace, others: list[Trace]) -> None:
    """Give height and width names, shared where the sizes are equal at every resolution."""
    shape = list(found.image.shape or ())
    for place, name in zip(LAYOUTS[found.layout], ("height", "width"), strict=True):
        shape[place] = name
    found.image.shape = shape
    names: dict[tuple[int, ...], str] = {}
    for output in graph.outputs:
        if output.shape is None or not found.is_map(output):
            continue
        declared = list(output.shape)
        for index, axis in enumerate(found.axes[id(output)]):
            if isinstance(axis, Spatial):
                sizes = (axis.dim, *(size_of(t.axes[id(output)][index]) for t in others))
                declared[index] = names.setdefault(sizes, _size_name(axis.dim, names))
        output.shape = declared


def _size_name(dim: int, names: dict[tuple[int, ...], str]) -> str:
    base = ("map_height", "map_width")[dim]
    count = sum(name.startswith(base) for name in names.values())
    return f"{base}_{count + 1}" if count else base


@dataclass(frozen=True)
class DropSoftmax(Pass):
    """Softmax(x) → x where an output of the network is its Softmax or LogSoftmax: logits."""

    name: ClassVar[str] = "drop-softmax"
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph) -> list[str]:
        """Let outputs read what the Softmax read."""
        if graph.parent is not None or graph.is_function:
            return []
        done = []
        with Editor(graph) as edit:
            for output in graph.outputs:
                node = producer(output)
                while node is not None and operator(node) in ("Identity", "Flatten", "Reshape"):
                    node = producer(node.inputs[0])
                if node is None or operator(node) not in _SOFTMAXES:
                    continue
                edit.replace(node.outputs[0], node.inputs[0])
                done.append(f"{label(node)} is gone")
        return done


@dataclass(frozen=True)
class ClassActivationMap(Pass):
    """W·mean(y) + b = mean(W·y + b): the map W·y + b says which places speak for a class.

    It becomes a further output `<output>.cam` of a network whose head is a mean and one linear
    layer (Zhou et al., "Learning Deep Features for Discriminative Localization", 2016).
    """

    name: ClassVar[str] = "class-activation-map"
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph) -> list[str]:
        """Compute the last linear layer before the pooling, too, and put it out."""
        found = _traced(graph)
        if found is None:
            return []
        names = {output.name for output in graph.outputs}
        if any(f"{name}.cam" in names for name in names):
            return []  # there it is
        added: list[Tensor] = []
        with Editor(graph) as edit:
            lifted = Lifter(found, edit, linear=True).run()
            for output in list(graph.outputs):
                last = _last_lifted(output, lifted)
                if last is not None:
                    added.append(_cam(edit, found, output, last))
        graph.outputs.extend(added)
        require(added, "no output of the network is a mean and a linear layer")
        return [f"'{tensor.name}' is a class activation map" for tensor in added]


def _last_lifted(output: Tensor, lifted: dict[int, Lifted]) -> Lifted | None:
    tensor: Tensor = output
    while id(tensor) not in lifted:
        node = producer(tensor)
        if node is None or operator(node) not in (*_SOFTMAXES, "Flatten", "Reshape", "Squeeze"):
            return None
        tensor = node.inputs[0]
    return lifted[id(tensor)]


def _cam(edit: Editor, found: Trace, output: Tensor, last: Lifted) -> Tensor:
    cells = edit.permuted(last.cells, TO_NHWC) if found.layout == "NHWC" else last.cells
    cam = edit.one("Identity", [cells])
    cam.name = edit.fresh(f"{output.name}.cam")
    cam.dtype, cam.is_graph_output = output.dtype, True
    (source, *_) = [c.source for c in found.heads]
    height, width = found.map_size(source)
    batch, count = (output.shape or [None])[0], _classes(output)
    channels_last = found.layout == "NHWC"
    cam.shape = [batch, height, width, count] if channels_last else [batch, count, height, width]
    return cam


def _classes(output: Tensor) -> int | None:
    sizes = [size for size in (output.shape or [])[1:] if isinstance(size, int) and size != 1]
    return sizes[0] if len(sizes) == 1 else None


@dataclass(frozen=True)
class FreeBatch(Pass):
    """A network that treats images one by one takes any number of them.

    The batch of the image and of the outputs becomes symbolic; a Reshape to a shape that begins
    with the fixed batch takes the batch as it comes.
    """

    name: ClassVar[str] = "free-batch"
    changes_interface: ClassVar[bool] = True

    def run(self, graph: Graph) -> list[str]:
        """Declare the batch symbolic."""
        if graph.parent is not None or graph.is_function or len(images(graph)) != 1:
            return []
        (image,) = images(graph)
        batch = image.shape[0] if image.shape else None
        if not isinstance(batch, int):
            return []
        with Editor(graph) as edit:
            for node in list(graph.nodes):
                shape = integers(node.inputs[1]) if _fixes_batch(node, batch) else None
                if shape is not None:
                    free = np.array([0, *shape[1:]], np.int64)
                    edit.replace(
                        node.outputs[0], edit.one("Reshape", [node.inputs[0], free], like=node)
                    )
        for tensor in (image, *graph.outputs):
            if tensor.shape and tensor.shape[0] == batch:
                tensor.shape = ["N", *tensor.shape[1:]]
        return [f"the batch of '{image.name}' varies"]


def _fixes_batch(node: Node, batch: int) -> bool:
    """Whether a Reshape names the batch, and has it where its input has it: 0 says the same."""
    if operator(node) != "Reshape" or attribute(node, "allowzero") or len(node.inputs) < 2:
        return False
    shape = integers(node.inputs[1])
    return shape is not None and shape[:1] == [batch] == [static_dim(node.inputs[0], 0)]
