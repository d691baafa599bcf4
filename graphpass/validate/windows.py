"""Level 2: each rewrite on its own, its nodes before and after on the same inputs.

The bound is derived from the window, element by element (see `magnitude`), so that the one wrong
rewrite among hundreds is found whatever the rest of the network does to its error. Windows of a
pass are joined into a few models and run together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.storage.reference import reference_of
from graphpass.validate.channel import Array
from graphpass.validate.magnitude import MOVEMENT, Roundings, magnitude_nodes, roundings
from graphpass.validate.runtime import RunError, Runtime, Session
from graphpass.window import Window, WindowVerdict

# Beyond what before and after round: the fold rounds each weight, and weights of its own.
_FOLD_ROUNDINGS = 4
_GROUP_BYTES = 192 << 20  # weights that one joined model may refer to, and what it computes
_COPIES = (
    16  # bytes that one element of an input costs: before, after, bound, in float64 to compare
)
# Multiplications spent on the probes of all windows and of one: less than a run of the network.
_ALL_PROBE_WORK = 2e8
_PROBE_WORK = 2e7
_ELEMENT_WORK = 16  # multiplications that sending one element to the runtime and back is worth
_MOST_PROBES = 4096
_FEWEST_PROBES = 4
# As many numbers are drawn, then they repeat: a prime, that no axis of a tensor is a multiple of.
_PERIOD = 8191
# A probe is so large that what a window adds (bias, mean, shift) hides nothing behind its size.
_AMPLITUDE = {"float16": 2.0**6, "bfloat16": 2.0**10, "float32": 2.0**16, "float64": 2.0**16}
# Sizes for the batch and for other symbolic dimensions, one pair after the other until one fits.
_SIZES = ((2, 4), (1, 4), (1, 1), (4, 8), (1, 16))

# unit roundoff: half the distance from 1 to the next number
_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class _Terms:
    """What is granted beyond the bound, how much may be spent, shapes that cannot be made up."""

    rtol: float = 0.0
    atol: float = 0.0
    probe_work: float = _PROBE_WORK
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass
class _Prepared:
    """A window with everything that running it takes."""

    window: Window
    mark: str
    shapes: dict[str, list[int]]
    partition: bool
    magnitudes: list[onnx.NodeProto] | None
    exact: bool
    strong: bool
    roundings: tuple[Roundings, Roundings]
    weight_bytes: int
    terms: _Terms
    sizes: Sequence[tuple[int, int]]  # those in use, then what to try next
    verdict: WindowVerdict = field(default_factory=lambda: WindowVerdict("ok"))


def check_windows(
    windows: Sequence[Window | None],
    runtime: Runtime,
    *,
    seed: int = 0,
    rtol: float = 0.0,
    atol: float = 0.0,
    shapes: Callable[[Collection[str]], Mapping[str, Sequence[int]]] | None = None,
) -> list[WindowVerdict]:
    """Run each window before and after on the same inputs and compare against its own bound.

    `rtol` (of the output's largest magnitude) and `atol` are allowed beyond the bound. `shapes`
    gives those that values have in the network, for windows that run with no others.
    A window that ONNX Runtime cannot run is "not run": a later level has to answer for it.
    """
    verdicts = [WindowVerdict("not run", reason="the types of its tensors are unknown")] * len(
        windows
    )
    prepared: dict[int, _Prepared] = {}
    probe_work = min(_PROBE_WORK, _ALL_PROBE_WORK / max(len(windows), 1))
    found: set[str] = set()
    if shapes is not None:
        found.update(*(_inputs(w) for w in windows if w is not None and _needs_real_shapes(w)))
    real = shapes(found) if shapes is not None and found else {}
    terms = _Terms(rtol, atol, probe_work, real)
    for index, window in enumerate(windows):
        if window is not None:
            prepared[index] = _prepare(window, index, terms)
    for group in _groups(prepared):
        _check_group([prepared[index] for index in group], runtime, seed)
    for index, item in prepared.items():
        verdicts[index] = item.verdict
    return verdicts


# ------------------------------------------------------------------------------- preparing


def _prepare(
    window: Window, index: int, terms: _Terms, sizes: Sequence[tuple[int, int]] | None = None
) -> _Prepared:
    before, after = window.before.graph, window.after.graph
    operators = [node.op_type for node in (*before.node, *after.node)]
    # a constant along the pixels does not fit a smaller map: then the next attempt is as it is
    first = sizes is None
    free = _SIZE_FREE | _PER_CHANNEL if first else _SIZE_FREE
    spatial = _kernel(window) if set(operators) <= free else None
    sizes = _SIZES if sizes is None else sizes
    shapes, partition = _shapes(window, spatial, *sizes[0])
    if terms.shapes and _needs_real_shapes(window):
        shapes = {name: list(terms.shapes.get(name, shapes[name])) for name in shapes}
        partition = False
    elif first and set(operators) <= _SIZE_BLIND:
        shapes = _shrunk(window, shapes)
    mark = f"w{index}/"
    exact = _is_movement(window, operators)
    known = {name: tuple(shape) for name, shape in shapes.items()}
    held = [*before.initializer, *after.initializer]
    return _Prepared(
        window,
        mark,
        shapes,
        partition,
        None if exact else magnitude_nodes(before, "abs/"),
        exact,
        set(operators) <= _UNBOUNDED,
        (roundings(before, known), roundings(after, known)),
        sum(_bytes(tensor) for tensor in held),
        terms,
        sizes,
    )


def _needs_real_shapes(window: Window) -> bool:
    """Whether none can be made up: inputs of unknown rank, or of unknown size to count with."""
    counts = any(node.op_type in ("Reshape", "Shape") for node in window.before.graph.node)
    tensors = [value.type.tensor_type for value in _inputs(window).values()]
    return any(not tensor.HasField("shape") for tensor in tensors) or (
        counts
        and not all(dim.HasField("dim_value") for tensor in tensors for dim in tensor.shape.dim[1:])
    )


def _inputs(window: Window) -> dict[str, onnx.ValueInfoProto]:
    """Return what either side reads, by name."""
    return {v.name: v for v in (*window.before.graph.input, *window.after.graph.input)}


# What keeps the size of its input, so that a large probe comes out as large.
_UNBOUNDED = MOVEMENT | frozenset(
    "Conv ConvTranspose Gemm MatMul Add Sub Mul Div BatchNormalization Pad Sum Neg Cast".split()
)


def _is_movement(window: Window, operators: Sequence[str]) -> bool:
    """Whether elements only move, so that before and after must be equal to the bit."""
    domains = {node.domain for node in (*window.before.graph.node, *window.after.graph.node)}
    return domains <= {"", "ai.onnx"} and set(operators) <= MOVEMENT


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
    values = _inputs(window)
    for value in values.values():
        tensor = value.type.tensor_type
        shape = []
        for axis, dim in enumerate(tensor.shape.dim):
            if axis == 0 and len(tensor.shape.dim) > 1 and not dim.dim_value:
                size = batch
            elif axis >= 2 and spatial is not None:
                size = spatial[min(axis - 2, len(spatial) - 1)]
            elif dim.HasField("dim_value"):
                size = dim.dim_value
            elif axis == 1 and value.name in channels:
                size = channels[value.name]
            else:
                size = symbols.setdefault(dim.dim_param, other) if dim.dim_param else other
            shape.append(size)
        shapes[value.name] = shape
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


_SIZE_FREE = frozenset(
    "Conv ConvTranspose BatchNormalization Relu LeakyRelu Clip Sigmoid Tanh HardSwish Identity "
    "Dropout Elu Transpose Constant".split()
)
_PER_CHANNEL = frozenset("Mul Add Sub Div Cast".split())
# What does not care how large its axes are, as long as they fit each other.
_SIZE_BLIND = frozenset(
    "Abs Add BatchNormalization Cast Ceil Clip Concat Div Dropout Elu Erf Exp Flatten Floor Gelu "
    "HardSigmoid HardSwish Identity LeakyRelu LogSoftmax Mish Mul Neg PRelu Pad Pow ReduceMean "
    "ReduceSum Relu Selu Sigmoid Softmax Softplus Sqrt Sub Tanh Transpose".split()
)
_SMALL = (5, 7, 11, 13)


def _kernel(window: Window) -> list[int] | None:
    """Return the smallest sizes on which a Conv's kernel lies fully inside the input."""
    for graph in (window.before.graph, window.after.graph):
        weights = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type not in ("Conv", "ConvTranspose") or len(node.input) < 2:
                continue
            weight = weights.get(node.input[1])
            if weight is None:
                continue
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            kernel = list(weight.dims[2:])
            dilations = attrs.get("dilations") or [1] * len(kernel)
            sizes = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
            both = (*window.before.graph.node, *window.after.graph.node)
            if any(each.op_type == "Transpose" for each in both):
                # it cannot be seen which of two axes is which where both have one element
                sizes = [max(size, 2 + axis) for axis, size in enumerate(sizes)]
            return sizes
    return None


def _channels(window: Window) -> dict[str, int]:
    """Return how many channels each input of a Conv must have, as its weight says."""
    found: dict[str, int] = {}
    for graph in (window.before.graph, window.after.graph):
        weights = {tensor.name: tensor.dims for tensor in graph.initializer}
        for node in graph.node:
            weight = weights.get(node.input[1]) if len(node.input) > 1 else None
            if weight is None or node.op_type not in ("Conv", "ConvTranspose"):
                continue
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            found[node.input[0]] = (
                weight[0] if node.op_type == "ConvTranspose" else weight[1] * group
            )
    return found


def _groups(prepared: Mapping[int, _Prepared]) -> Iterator[list[int]]:
    """Join windows of the same operator sets as long as their weights are small."""
    group: list[int] = []
    held, opsets = 0, ""
    for index, item in prepared.items():
        own = str(sorted((o.domain, o.version) for o in item.window.before.opset_import))
        elements = sum(math.prod(shape) for shape in item.shapes.values())
        own_bytes = item.weight_bytes + _COPIES * elements
        if group and (held + own_bytes > _GROUP_BYTES or own != opsets):
            yield group
            group, held = [], 0
        group.append(index)
        held += own_bytes
        opsets = own
    if group:
        yield group


# --------------------------------------------------------------------------------- running


def _check_group(group: Sequence[_Prepared], runtime: Runtime, seed: int) -> None:
    try:
        _run_group(group, runtime, seed)
    except RunError as error:
        if len(group) > 1:
            middle = len(group) // 2
            _check_group(group[:middle], runtime, seed)
            _check_group(group[middle:], runtime, seed)
        elif group[0].magnitudes is not None:
            group[0].magnitudes = None  # the bound may have no kernel where the window has
            _check_group(group, runtime, seed)
        else:
            group[0].verdict = _retried(group[0], runtime, seed, error)


def _retried(item: _Prepared, runtime: Runtime, seed: int, error: RunError) -> WindowVerdict:
    """Try a window with other sizes; where none fits it is "not run"."""
    if error.kind != "run" or len(item.sizes) == 1:
        return WindowVerdict("not run", reason=str(error))
    index = int(item.mark[1:-1])
    other = _prepare(item.window, index, item.terms, item.sizes[1:])
    _check_group([other], runtime, seed)
    if other.verdict.status == "not run":
        return WindowVerdict("not run", reason=str(error))  # of the most natural sizes
    return other.verdict


def _run_group(group: Sequence[_Prepared], runtime: Runtime, seed: int) -> None:
    computing = [item for item in group if not item.exact]
    if computing:
        with runtime.load(_joined(computing)) as session:
            for kind in ("normal", "mixed", "zeros", "probes", "columns"):
                if kind != "columns" or any(_is_sampled(item) for item in computing):
                    _run_on(kind, computing, computing, session, seed)
    moving = [item for item in group if item.exact]
    if moving:
        # elements that only move do so whatever they are, once no two are the same
        strict = [item for item in moving if not _picks_otherwise(item.window)]
        with runtime.load(_joined(moving)) as session:
            _run_on("normal", moving, moving, session, seed)
            if strict:
                _run_on("non-finite", moving, strict, session, seed)


def _run_on(
    kind: str,
    fed: Sequence[_Prepared],
    judged: Sequence[_Prepared],
    session: Session,
    seed: int,
) -> None:
    number = 8 if kind == "non-finite" else 7
    feeds: dict[str, Array] = {}
    active = {
        item.mark: _fill(feeds, item, kind, np.random.default_rng([seed, number])) for item in fed
    }
    outputs = session.run(feeds).outputs
    for item in judged:
        _judge(item, kind, outputs, active[item.mark])


def _joined(group: Sequence[_Prepared]) -> onnx.ModelProto:
    first = group[0].window.before
    model = onnx.ModelProto(ir_version=first.ir_version)
    model.opset_import.extend(first.opset_import)
    graph = model.graph
    graph.name = "windows"
    for item in group:
        for name, value in _inputs(item.window).items():
            elem_type = value.type.tensor_type.elem_type
            graph.input.append(
                helper.make_tensor_value_info(
                    item.mark + name, elem_type, [None] * len(item.shapes[name])
                )
            )
        for side in ("before", "after"):
            proto = getattr(item.window, side).graph
            _append(graph, proto, proto.node, item, side)
        if item.magnitudes is not None:
            proto = item.window.before.graph
            _append(graph, proto, item.magnitudes, item, "before", bare=True)
            graph.output.add(name=f"{item.mark}before/abs/{item.window.output}")
        for side in ("before", "after"):
            graph.output.add(name=f"{item.mark}{side}/{item.window.output}")
    return model


def _append(
    graph: onnx.GraphProto,
    proto: onnx.GraphProto,
    nodes: Sequence[onnx.NodeProto],
    item: _Prepared,
    side: str,
    *,
    bare: bool = False,
) -> None:
    """Add a window's nodes under names of their own; `bare`: its weights are there already."""
    inputs = {value.name for value in proto.input}

    def renamed(name: str) -> str:
        if not name:
            return name
        return f"{item.mark}{name}" if name in inputs else f"{item.mark}{side}/{name}"

    for node in nodes:
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.name = ""
        copied.input[:] = [renamed(name) for name in node.input]
        copied.output[:] = [renamed(name) for name in node.output]
    if bare:
        return
    for tensor in proto.initializer:
        held = graph.initializer.add()
        held.CopyFrom(tensor)
        held.name = renamed(tensor.name)


@dataclass(frozen=True)
class Example:
    """A window on one feed: its inputs, both outputs, and how far they may be apart."""

    inputs: dict[str, Array]
    before: Array
    after: Array
    allowed: Array


def example(
    window: Window, kind: str, runtime: Runtime, *, seed: int = 0, rtol: float = 0, atol: float = 0
) -> Example | None:
    """Run a window once more on inputs of one kind; None where it cannot be run."""
    sizes: Sequence[tuple[int, int]] | None = None
    while sizes is None or sizes:
        item = _prepare(window, 0, _Terms(rtol, atol), sizes)
        sizes = item.sizes[1:]
        feeds: dict[str, Array] = {}
        number = 8 if kind == "non-finite" else 7
        active = _fill(feeds, item, kind or "normal", np.random.default_rng([seed, number]))
        try:
            with runtime.load(_joined([item])) as session:
                outputs = session.run(feeds).outputs
        except RunError:
            continue
        before, after, size = (
            outputs.get(f"{item.mark}{side}/{window.output}")
            for side in ("before", "after", "before/abs")
        )
        before, after = np.asarray(before), np.asarray(after)
        allowed = np.zeros(())
        if not item.exact and before.dtype.kind not in "iubOSU":
            everywhere = np.ones(before.shape, bool)
            allowed = _allowed(item, before, size, everywhere, active)[0]
            allowed = allowed.reshape(before.shape) if allowed.ndim else allowed
        inputs = {name.removeprefix(item.mark): array for name, array in feeds.items()}
        return Example(inputs, before, after, allowed)
    return None


# ------------------------------------------------------------------------------------ feeds


def _fill(feeds: dict[str, Array], item: _Prepared, kind: str, rng: np.random.Generator) -> int:
    """Add the inputs of one window; return how many elements are active at once (0: all)."""
    active = 0
    values = _inputs(item.window)
    for name in sorted(values):
        shape = item.shapes[name]
        dtype = np.dtype(tensor_dtype_to_np_dtype(values[name].type.tensor_type.elem_type))
        probed = item.partition and not item.exact and dtype.kind not in "iub"
        if kind in ("probes", "columns") and probed:
            draw = _partition if kind == "probes" or not _is_sampled(item) else _columns
            array, active = draw(shape, item, dtype, rng)
        else:
            array = _array(shape, dtype, kind, rng)
        feeds[item.mark + name] = array.astype(dtype)
    return active


def _array(
    shape: Sequence[int], dtype: np.dtype[Any], kind: str, rng: np.random.Generator
) -> Array:
    if dtype.kind == "b":
        return rng.integers(0, 2, shape)
    if dtype.kind in "iu":
        return np.zeros(shape) if kind == "zeros" else rng.integers(0, 3, shape)
    if kind == "zeros":
        return np.zeros(shape)
    size = math.prod(shape)
    exactly: Any = np.float64 if dtype.itemsize > 4 else np.float32
    drawn = min(size, _PERIOD)
    array = rng.standard_normal(drawn, exactly)
    if kind == "mixed":
        # magnitudes over four decades, and a tenth zeros
        array = np.ldexp(array, rng.integers(-7, 8, drawn, np.int8))
        array[rng.random(drawn, np.float32) < 0.1] = 0
    if kind == "non-finite":
        chosen = rng.random(drawn, np.float32)
        array[chosen < 0.3] = np.nan
        array[chosen < 0.2] = np.inf
        array[chosen < 0.1] = -np.inf
    array = np.resize(array, shape)
    if kind == "probes":
        array *= rng.random(shape, np.float32) < 16 / max(math.prod(shape[1:]), 16)
    return array


def _partition(
    shape: Sequence[int], item: _Prepared, dtype: np.dtype[Any], rng: np.random.Generator
) -> tuple[Array, int]:
    """Return a batch of probes; each input element is non-zero in exactly one of them.

    Sums over a few elements have tight bounds: one wrong weight among thousands shows. All
    elements are powers of two, with which a product is exact.
    """
    elements, probes = math.prod(shape[1:]), _probes(item, shape)
    owner = rng.permutation(elements) % probes
    values = rng.choice([-1.0, 1.0], size=elements) * rng.choice([0.5, 1.0], size=elements)
    if item.strong:
        values *= _AMPLITUDE.get(dtype.name, 1.0)
    array = (owner == np.arange(probes)[:, None]) * values
    return array.reshape(probes, *shape[1:]), -(-elements // probes)


def _columns(
    shape: Sequence[int], item: _Prepared, dtype: np.dtype[Any], rng: np.random.Generator
) -> tuple[Array, int]:
    """Return probes of one element each, a sample: the bound on what they show is tightest."""
    elements, probes = math.prod(shape[1:]), _probes(item, shape)
    array = np.zeros((probes, elements))
    value = _AMPLITUDE.get(dtype.name, 1.0) if item.strong else 1.0
    array[np.arange(probes), rng.choice(elements, probes, replace=False)] = value
    return array.reshape(probes, *shape[1:]), 1


def _probes(item: _Prepared, shape: Sequence[int]) -> int:
    elements = max(math.prod(shape[1:]), 1)
    weights = max(item.weight_bytes // 8, 1)
    affordable = min(_MOST_PROBES, item.terms.probe_work / (weights + _ELEMENT_WORK * elements))
    return int(min(elements, max(_FEWEST_PROBES, affordable)))


def _is_sampled(item: _Prepared) -> bool:
    """Whether there are more input elements than probes can be afforded."""
    if not item.partition or item.exact or len(item.shapes) != 1:
        return False
    (shape,) = item.shapes.values()
    return _probes(item, shape) < math.prod(shape[1:])


# ---------------------------------------------------------------------------------- judging


def _judge(item: _Prepared, kind: str, outputs: Mapping[str, Any], active: int) -> None:
    name = item.window.output
    before = np.asarray(outputs[f"{item.mark}before/{name}"])
    after = np.asarray(outputs[f"{item.mark}after/{name}"])
    magnitude = outputs.get(f"{item.mark}before/abs/{name}")
    verdict = _compare(item, kind, before, after, magnitude, active)
    if verdict.status == "differs" and item.verdict.status == "differs":
        return
    if verdict.status == "differs" or verdict.ratio >= item.verdict.ratio:
        item.verdict = verdict


def _compare(
    item: _Prepared, kind: str, before: Array, after: Array, magnitude: Any, active: int
) -> WindowVerdict:
    if before.shape != after.shape or before.dtype != after.dtype:
        return WindowVerdict(
            "differs",
            math.inf,
            math.inf,
            feed=kind,
            reason=f"the output is {after.dtype}{list(after.shape)} "
            f"instead of {before.dtype}{list(before.shape)}",
        )
    floating = before.dtype.kind not in "iubOSU"
    if item.exact or not floating:
        same = _bit_equal(before, after, signed_zeros=not _picks_otherwise(item.window))
        return WindowVerdict(
            "ok" if same else "differs",
            0.0 if same else math.inf,
            bound="equal",
            feed=kind,
            reason="" if same else f"elements differ on {kind} inputs where they may only move",
        )
    old, new = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(old) & np.isfinite(new)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) and not _may_overflow(
        old, new, kind
    ):
        return WindowVerdict(
            "differs", math.inf, math.inf, feed=kind, reason=f"NaN or infinity on {kind} inputs"
        )
    error = np.abs(old - new)[finite]
    allowed, bound = _allowed(item, before, magnitude, finite, active)
    worst = _worst_ratio(error, allowed)
    index = int(np.argmax(error)) if error.size else 0
    largest = float(error[index]) if error.size else 0.0
    limit = float(np.broadcast_to(allowed, error.shape)[index]) if error.size else 0.0
    return WindowVerdict(
        "ok" if worst <= 1 else "differs",
        worst,
        largest,
        limit,
        kind,
        bound,
        "" if worst <= 1 else f"off by {largest:.3g} on {kind} inputs, {worst:.3g} times the bound",
    )


def _may_overflow(old: Array, new: Array, kind: str) -> bool:
    """Whether it is no wonder that some are not finite: inputs are large and sums overflow."""
    return kind in ("mixed", "probes", "columns") and bool(
        np.isinf(old).any() or np.isinf(new).any()
    )


def _bit_equal(before: Array, after: Array, signed_zeros: bool) -> bool:
    if before.dtype.kind != "f":
        return bool(np.array_equal(before, after))
    known = ~np.isnan(before)
    if not np.array_equal(known, ~np.isnan(after)):
        return False
    old, new = before[known], after[known]
    signs = np.signbit(old) == np.signbit(new)
    return bool(np.array_equal(old, new) and (not signed_zeros or signs.all()))


def _picks_otherwise(window: Window) -> bool:
    """Whether another operator picks the largest: which zero, and what of NaN, ONNX leaves open."""
    before, after = (
        sorted(node.op_type for node in side.graph.node if node.op_type in _PICKING)
        for side in (window.before, window.after)
    )
    return before != after


_PICKING = frozenset("MaxPool GlobalMaxPool ReduceMax Max".split())


def _allowed(
    item: _Prepared, before: Array, magnitude: Any, finite: Array, active: int
) -> tuple[Array, str]:
    roundoff = _ROUNDOFF.get(before.dtype.name, 2.0**-24)
    rounded = sum(side.count(active) for side in item.roundings) + _FOLD_ROUNDINGS
    unit = rounded * roundoff
    tiny = float(np.finfo(np.float32).tiny) if before.dtype.name != "float16" else 2.0**-24
    scale = float(np.abs(before.astype(np.float64)[finite]).max(initial=0.0))
    granted = item.terms.atol + item.terms.rtol * scale
    if magnitude is None:
        return np.asarray(unit * max(scale, 1.0) + tiny + granted), "norm"
    size = np.broadcast_to(np.asarray(magnitude, np.float64), before.shape)[finite]
    return unit * size + tiny + granted, "elementwise"


def _worst_ratio(error: Array, allowed: Array) -> float:
    if not error.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        ratio = error / allowed
    return float(np.nan_to_num(ratio, nan=0.0).max())
