"""A window with everything that running it takes: sizes for its inputs, the kind of its bound."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx
from onnx import helper

from graphpass.ir.operators import Trait, named, traits
from graphpass.rewrite.window import Window, WindowVerdict
from graphpass.storage.reference import reference_of
from graphpass.validate.window.magnitude import Roundings, magnitude_nodes, roundings

PROBE_WORK = 2e7  # multiplications spent on the probes of one window
_ELEMENT_WORK = 16  # multiplications that sending one element to the runtime and back is worth
_MOST_PROBES = 4096
_FEWEST_PROBES = 4
# Sizes for the batch and for other symbolic dimensions, one pair after the other until one fits.
_SIZES = ((2, 4), (1, 4), (1, 1), (4, 8), (1, 16))
# What keeps the size of its input, so that a large probe comes out as large.
_UNBOUNDED = frozenset(
    (
        *named(Trait.PICKS, Trait.ON_MAGNITUDES, Trait.ARITHMETIC, Trait.SIZES_ONLY, Trait.SOURCE),
        *("BatchNormalization", "Neg"),
    )
)
# What computes pixel by pixel, or slides over them.
_SIZE_FREE = frozenset(
    (
        *named(Trait.ELEMENTWISE, Trait.SLIDING | Trait.CONTRACTION),
        *("BatchNormalization", "Transpose", "Constant"),
    )
)
_PER_CHANNEL = frozenset(named(Trait.ARITHMETIC))
# What does not care how large its axes are, as long as they fit each other.
_SIZE_BLIND = frozenset(
    (
        *named(Trait.ELEMENTWISE, Trait.BROADCASTING, Trait.NORMALIZATION),
        *named(Trait.REDUCTION, without=Trait.POSITION),
        *("Concat", "Flatten", "Pad", "Transpose"),
    )
)
_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
# What shapes are computed with.
_COUNTING = frozenset((*named(Trait.MOVEMENT, Trait.ARITHMETIC), "Cast", "Mod", "Neg"))
_SMALL = (5, 7, 11, 13)
_PICKING = frozenset("MaxPool GlobalMaxPool ReduceMax Max".split())


@dataclass(frozen=True)
class Terms:
    """What is granted beyond the bound, how much may be spent, shapes that cannot be made up.

    `shapes`: those of one run of the network, with `symbols` bound; None: no run is known.
    """

    rtol: float = 0.0
    atol: float = 0.0
    probe_work: float = PROBE_WORK
    shapes: Mapping[str, Sequence[int]] | None = None
    symbols: Mapping[str, int] = field(default_factory=dict)


class Fed(NamedTuple):
    """What a window is fed, beside the kind of the values and the seed.

    `inputs`: shape and data type of each, by name. `probes`: how many elements of a batch share
    the elements of the only input among them; 0: it takes none. `strong`: a large probe comes out
    as large. `stack_axis`: along which inputs of any number are computed each on its own.
    """

    inputs: tuple[tuple[tuple[int, ...], int], ...]
    probes: int
    strong: bool
    stack_axis: int | None

    @property
    def is_sampled(self) -> bool:
        """Whether there are more input elements than probes can be afforded."""
        return 0 < self.probes < math.prod(self.inputs[0][0][1:])


@dataclass
class Prepared:
    """A window with everything that running it takes."""

    window: Window
    mark: str
    shapes: dict[str, list[int]]
    fed: Fed
    magnitudes: list[onnx.NodeProto] | None
    exact: bool
    roundings: tuple[Roundings, Roundings]
    weight_bytes: int
    elements: int  # of the inputs whose values count, not their shapes alone
    terms: Terms
    sizes: Sequence[tuple[int, int]]  # those in use, then what to try next
    verdict: WindowVerdict = field(default_factory=lambda: WindowVerdict("ok"))


def prepare(
    window: Window,
    index: int,
    terms: Terms,
    sizes: Sequence[tuple[int, int]] | None = None,
    *,
    real: bool = False,
) -> Prepared:
    """Choose what a window is run with; `sizes`: those that are left to try.

    `real`: take the shapes of the run of the network, though others could be made up.
    """
    before, after = window.before.graph, window.after.graph
    operators = [node.op_type for node in (*before.node, *after.node)]
    # a constant along the pixels does not fit a smaller map: then the next attempt is as it is
    first = sizes is None
    free = _SIZE_FREE | _PER_CHANNEL if first else _SIZE_FREE
    spatial = _kernel(window) if set(operators) <= free else None
    sizes = _SIZES if sizes is None else sizes
    shapes, partition = _shapes(window, spatial, *sizes[0])
    unknown = ""
    is_met = any(name in (terms.shapes or {}) for name in shapes)  # not inside of a body
    if is_met and (real or needs_real_shapes(window)):
        of_run, unknown = real_shapes(window, terms)
        shapes, partition = of_run or shapes, False
    elif ranks_unknown := [name for name in shapes if _dims(window, name) is None]:
        unknown = f"the rank of '{ranks_unknown[0]}' is unknown"
    elif first and set(operators) <= _SIZE_BLIND:
        shapes = _shrunk(window, shapes)
    exact = _is_movement(before) and _is_movement(after)
    known = {name: tuple(shape) for name, shape in shapes.items()}
    weight_bytes = sum(_bytes(tensor) for tensor in (*before.initializer, *after.initializer))
    values = inputs_of(window)
    fed = Fed(
        tuple((known[name], values[name].type.tensor_type.elem_type) for name in sorted(values)),
        _probes(shapes, weight_bytes, terms) if partition and not exact else 0,
        set(operators) <= _UNBOUNDED,
        _stack_axis(window) if partition and spatial is not None and not exact else None,
    )
    return Prepared(
        window,
        f"w{index}/",
        shapes,
        fed,
        None if exact else magnitude_nodes(before, "abs/"),
        exact,
        (roundings(before, known), roundings(after, known)),
        weight_bytes,
        sum(math.prod(shapes[name]) for name in _read_beyond_shape(window)),
        terms,
        sizes,
        WindowVerdict("not run", reason=unknown) if unknown else WindowVerdict("ok"),
    )


def real_shapes(window: Window, terms: Terms) -> tuple[dict[str, list[int]], str]:
    """Return the shapes of one run of the network; {} and which cannot be told, if one cannot.

    Sizes from two sources would contradict each other: those of a tensor that a rewrite made are
    told by the symbols of the run.
    """
    known = terms.shapes or {}
    symbols = dict(terms.symbols)
    names = list(inputs_of(window))
    for name in names:
        dims, real = _dims(window, name), known.get(name)
        if dims is not None and real is not None and len(dims) == len(real):
            symbols |= {dim: n for dim, n in zip(dims, real, strict=True) if isinstance(dim, str)}
    found: dict[str, list[int]] = {}
    for name in names:
        dims, real = _dims(window, name), known.get(name)
        if real is not None:
            found[name] = list(real)
        elif dims is not None and all(isinstance(d, int) or d in symbols for d in dims):
            found[name] = [d if isinstance(d, int) else symbols[d] for d in dims]
        else:
            return {}, f"the sizes of '{name}' are not known, whatever is fed"
    return found, ""


def _dims(window: Window, name: str) -> list[int | str] | None:
    """Return the numbers and symbols of an input ("" for none); None where its rank is unknown."""
    tensor = inputs_of(window)[name].type.tensor_type
    if not tensor.HasField("shape"):
        rank = next((len(c.weight) for c in _convolved(window) if c.input == name), 0)
        return [""] * rank if rank else None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]


def _convolved(window: Window) -> list[_Convolution]:
    return [c for c in _convolutions(window.before.graph, window.after.graph) if c.weight]


def _probes(shapes: Mapping[str, Sequence[int]], weight_bytes: int, terms: Terms) -> int:
    """Return how many probes of the only input can be afforded, at most one for each element."""
    (shape,) = shapes.values()
    elements = max(math.prod(shape[1:]), 1)
    weights = max(weight_bytes // 8, 1)
    affordable = min(_MOST_PROBES, terms.probe_work / (weights + _ELEMENT_WORK * elements))
    return int(min(elements, max(_FEWEST_PROBES, affordable)))


def _stack_axis(window: Window) -> int | None:
    """Return 0 (the batch) for operators that compute a map from a map, -1 for single pixels.

    Kernels of 1x1 take probes as the pixels of one image, which is a matrix product; a batch of
    images of one pixel is as many products of a matrix and a vector.
    """
    nodes = (*window.before.graph.node, *window.after.graph.node)
    if any(node.op_type == "Transpose" for node in nodes):
        return None
    for conv in _convolutions(window.before.graph):
        steps = (*conv.weight[2:], *conv.attributes.get("strides", ()))
        moves = any(size != 1 for size in steps) or any(conv.attributes.get("pads", ()))
        if moves or not conv.weight or conv.op_type != "Conv":
            return 0
    return -1


def needs_real_shapes(window: Window) -> bool:
    """Whether none can be made up: inputs of unknown rank, or of unknown size to count with."""
    counts = any(node.op_type in ("Reshape", "Shape") for node in window.before.graph.node)
    tensors = [value.type.tensor_type for value in inputs_of(window).values()]
    return any(not tensor.HasField("shape") for tensor in tensors) or (
        counts
        and not all(dim.HasField("dim_value") for tensor in tensors for dim in tensor.shape.dim[1:])
    )


def inputs_of(window: Window) -> dict[str, onnx.ValueInfoProto]:
    """Return what either side reads, by name."""
    return {v.name: v for v in (*window.before.graph.input, *window.after.graph.input)}


def _is_movement(graph: onnx.GraphProto) -> bool:
    """Whether elements only move, so that before and after must be equal to the bit.

    What is computed of shapes alone, in integers, says where to.
    """
    sizes = {tensor.name for tensor in graph.initializer if tensor.data_type in _INTEGERS}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            return False
        counts = node.op_type in _COUNTING and all(not name or name in sizes for name in node.input)
        if node.op_type == "Cast":
            counts &= _attributes(node)["to"] in _INTEGERS
        if counts or node.op_type in ("Shape", "Size"):
            sizes.update(node.output)
        elif not traits(node.op_type) & (Trait.PICKS | Trait.SOURCE):
            return False
    return True


def _read_beyond_shape(window: Window) -> set[str]:
    """Return the inputs that are read by more than Shape."""
    nodes = (*window.before.graph.node, *window.after.graph.node)
    read = {name for node in nodes if node.op_type not in ("Shape", "Size") for name in node.input}
    return read & set(inputs_of(window))


def _bytes(tensor: onnx.TensorProto) -> int:
    reference = reference_of(tensor)
    return reference.length if reference is not None else tensor.ByteSize()


def _shapes(
    window: Window, spatial: list[int] | None, batch: int, other: int
) -> tuple[dict[str, list[int]], bool]:
    """Choose small input shapes; also whether the first input can be probed by partition.

    `batch`, `other`: sizes for dimensions that are not known.
    """
    shapes: dict[str, list[int]] = {}
    symbols: dict[str, int] = {}
    channels = _channels(window)
    values = inputs_of(window)
    for name in values:
        dims = _dims(window, name) or []
        shape = []
        for axis, dim in enumerate(dims):
            if axis >= 2 and spatial is not None:
                size = spatial[min(axis - 2, len(spatial) - 1)]
            elif isinstance(dim, int):
                size = dim
            elif axis == 1 and name in channels:
                size = channels[name]
            else:
                size = batch if axis == 0 and len(dims) > 1 else other
                # one binding for the whole window: sizes must not contradict each other
                size = symbols.setdefault(dim, size) if dim else size
            shape.append(size)
        shapes[name] = shape
    return shapes, len(values) == 1 and (spatial is not None or _free_batch(values.values()))


def _shrunk(window: Window, shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Make sizes that no constant shares small, those that are equal equally so."""
    held = (*window.before.graph.initializer, *window.after.graph.initializer)
    kept = {size for tensor in held for size in tensor.dims}
    large = sorted({n for shape in shapes.values() for n in shape if n > _SMALL[-1]} - kept)
    if len(large) > len(_SMALL):
        return dict(shapes)
    taken = {n for shape in shapes.values() for n in shape} | kept
    small = dict(zip(large, (n for n in _SMALL if n not in taken), strict=False))
    return {name: [small.get(n, n) for n in shape] for name, shape in shapes.items()}


def _free_batch(values: Iterable[onnx.ValueInfoProto]) -> bool:
    return all(
        len(value.type.tensor_type.shape.dim) > 1
        and not value.type.tensor_type.shape.dim[0].HasField("dim_value")
        for value in values
    )


class _Convolution(NamedTuple):
    """A Conv or ConvTranspose; `weight`: its dims, none where it is no constant."""

    op_type: str
    input: str
    output: str
    weight: Sequence[int]
    attributes: dict[str, Any]


def _convolutions(*graphs: onnx.GraphProto) -> list[_Convolution]:
    found = []
    for graph in graphs:
        weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        found += [
            _Convolution(
                node.op_type,
                node.input[0],
                node.output[0],
                weights.get(node.input[1], ()),
                _attributes(node),
            )
            for node in graph.node
            if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1
        ]
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _kernel(window: Window) -> list[int] | None:
    """Return the smallest sizes on which every Conv's kernel lies fully inside the input.

    Where it moves by more than one, it has room to do so: another stride has to show.
    """
    found = _convolutions(window.before.graph, window.after.graph)
    kernels = [conv for conv in found if conv.weight]
    if not kernels:
        return None
    axes = len(kernels[0].weight) - 2
    seen = [_seen(graph, axes) for graph in (window.before.graph, window.after.graph)]
    sizes = [max(pair) for pair in zip(*seen, strict=True)]
    for axis in range(len(sizes)):
        strides = [conv.attributes.get("strides", ())[axis : axis + 1] for conv in found]
        step = max(itertools.chain.from_iterable(strides), default=1)
        sizes[axis] += step if step > 1 else 0
    both = (*window.before.graph.node, *window.after.graph.node)
    if any(node.op_type == "Transpose" for node in both):
        # it cannot be seen which of two axes is which where both have one element
        sizes = [max(size, 2 + axis) for axis, size in enumerate(sizes)]
    return sizes


def _seen(graph: onnx.GraphProto, axes: int) -> list[int]:
    """Return how many elements along each axis one element that kernels make is computed from."""
    one = ([1] * axes, [1] * axes)
    fields: dict[str, tuple[list[int], list[int]]] = {}  # by tensor: what it sees, in what steps
    found = {conv.output: conv for conv in _convolutions(graph)}
    for node in graph.node:
        above = [fields.get(name, one) for name in node.input] or [one]
        seen, steps = (
            [max(each) for each in zip(*part, strict=True)] for part in zip(*above, strict=True)
        )
        conv = found.get(node.output[0])
        if conv is not None and conv.weight:
            dilations = conv.attributes.get("dilations") or [1] * axes
            strides = conv.attributes.get("strides") or [1] * axes
            spans = [d * (k - 1) for d, k in zip(dilations, conv.weight[2:], strict=False)]
            seen = [s + span * step for s, span, step in zip(seen, spans, steps, strict=False)]
            steps = [step * stride for step, stride in zip(steps, strides, strict=False)]
        fields.update(dict.fromkeys(node.output, (seen, steps)))
    return [max(each) for each in zip(*(seen for seen, _ in fields.values()), strict=True)]


def _channels(window: Window) -> dict[str, int]:
    """Return how many channels each input of a Conv must have, as its weight says."""
    return {
        conv.input: conv.weight[0]
        if conv.op_type == "ConvTranspose"
        else conv.weight[1] * conv.attributes.get("group", 1)
        for conv in _convolutions(window.before.graph, window.after.graph)
        if conv.weight
    }


def picks_otherwise(window: Window) -> bool:
    """Whether the largest is picked by another operator, or of another window.

    Which zero, and what of NaN, ONNX leaves open.
    """
    before, after = (
        sorted(
            (node.op_type, sorted(a.SerializeToString() for a in node.attribute))
            for node in side.graph.node
            if node.op_type in _PICKING
        )
        for side in (window.before, window.after)
    )
    return before != after
