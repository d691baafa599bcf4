"""Compare what an optimizer wrote with the original: operators, interface, outputs, latency.

`python benchmarks/judge.py ORIGINAL CANDIDATE OPTIONS` (OPTIONS is JSON, see `Options`) prints one
JSON object. It is a program of its own, so that a crash in the runtime ends a comparison and not
the benchmark, and uses nothing of graphpass: nobody is judged by graphpass's own ruler.
"""

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

Array = npt.NDArray[Any]
Feed = dict[str, Array]

_ELEMENT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
#: Weights of this type: an output of another type has been rounded to it on the way.
_HALF = onnx.TensorProto.FLOAT16
#: An output may move by this much of its scale, however calm the network: rounding alone does it.
_BASE_TOLERANCE = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-12}
#: … and by this many times what one unit in the last place of the inputs does to it.
_FLOOR_FACTOR = 10.0
#: Sizes that are tried, in this order, for free dims other than the batch.
_SIZES = (16, 32, 64, 224, 512, 576, 600)
#: Values that are tried for integer inputs, which are often indices, lengths or sampling rates.
_INTEGERS = (0, 1, 16000)


@dataclass(frozen=True)
class Options:
    """What to feed and how long to measure."""

    #: An .npz file with the inputs; otherwise standard normal values are drawn.
    inputs: str | None = None
    #: Sizes of named dims.
    bind: Mapping[str, int] = field(default_factory=dict)
    batches: Sequence[int] = (1, 3)
    #: How long to measure each optimization level of the runtime; 0 for not at all.
    latency_s: float = 2.0
    threads: int = 1


def main() -> None:
    """Print the comparison of two model files as JSON."""
    original_path, candidate_path, options_json = sys.argv[1:]
    options = Options(**json.loads(options_json))
    ort.set_default_logger_severity(4)
    original, candidate = onnx.load(original_path), onnx.load(candidate_path)
    verdict: dict[str, Any] = {
        "operators": operators(candidate),
        "foreign": sorted(domains(candidate) - domains(original)),
        "interface": interface_difference(original, candidate),
        # A runtime may accept what the standard does not; and many files start out invalid.
        "invalid": checker_error(candidate_path) if not checker_error(original_path) else None,
    }
    del original, candidate
    reference = open_session(original_path, "ORT_DISABLE_ALL", options)
    feeds = list(find_feeds(reference, options))
    if feeds:
        verdict.update(compare(reference, original_path, candidate_path, feeds, options))
    else:
        verdict["unjudged"] = "no inputs were found that the original runs on: give --inputs"
    del reference
    if feeds and options.latency_s > 0 and verdict.get("runs"):
        verdict["speedup"] = {
            level: speedup(original_path, candidate_path, level, feeds[0], options)
            for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL")
        }
    print(json.dumps(verdict))


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those of its subgraphs and functions included."""

    def within(graph: Any) -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    yield from within(body)

    for graph in (model.graph, *model.functions):
        yield from within(graph)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator stands in a model."""
    return dict(Counter(node.op_type for node in nodes(model)))


def domains(model: onnx.ModelProto) -> set[str]:
    """The operator sets beside ONNX's own that nodes are of, as those of one runtime are."""
    made = {function.domain for function in model.functions}
    return {node.domain for node in nodes(model)} - {"", "ai.onnx", "ai.onnx.ml"} - made


def checker_error(path: str) -> str | None:
    """What ONNX's own checker has against a file; None if nothing."""
    try:
        onnx.checker.check_model(path)
    except Exception as error:
        return str(error).strip().splitlines()[0][:200]
    return None


def interface_difference(original: onnx.ModelProto, candidate: onnx.ModelProto) -> str | None:
    """What a caller would notice: the first input or output that is not as it was; None if none.

    An output's free dim that became a number is no difference: that only says more.
    """
    for kind in ("input", "output"):
        was = {value.name: value.type for value in getattr(original.graph, kind)}
        now = {value.name: value.type for value in getattr(candidate.graph, kind)}
        for what, names in (("is gone", was.keys() - now), ("is new", now.keys() - was)):
            if names:
                return f"{kind} {min(names)} {what}"
        if list(was) != list(now):
            return f"{kind}s stand in another order"
        for name in was:
            before, after = _signature(was[name]), _signature(now[name])
            if kind == "output" and len(before) == len(after):
                after = [b if b == "?" else a for b, a in zip(before, after, strict=True)]
            if before != after:
                return f"{kind} {name} [{', '.join(before)}] became [{', '.join(after)}]"
    return None


def _signature(value_type: onnx.TypeProto) -> list[str]:
    """The element type, then each dim, "?" where it is free."""
    if not value_type.HasField("tensor_type"):
        return [str(value_type.WhichOneof("value"))]
    tensor = value_type.tensor_type
    # Some converters write a free dim as -1.
    dims = [str(dim.dim_value) if dim.dim_value > 0 else "?" for dim in tensor.shape.dim]
    shape = dims if tensor.HasField("shape") else ["any shape"]
    return [onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), *shape]


def find_feeds(session: Any, options: Options) -> Iterator[Feed]:
    """One feed for each batch size, found by trying which sizes the original runs on."""
    if options.inputs is not None:
        with np.load(options.inputs) as stored:
            whole = {name: stored[name] for name in stored.files}
        yield whole
        return
    for batch in options.batches:
        tries = ((f, i, s) for f in (False, True) for i in _INTEGERS for s in _SIZES)
        for first_free, integer, size in tries:
            feed = _draw(session, batch, size, integer, first_free, options.bind)
            if _outputs(session, feed) is not None:
                yield feed
                break


def _draw(
    session: Any, batch: int, size: int, integer: int, first_free: bool, bind: Mapping[str, int]
) -> Feed:
    """Standard normal inputs: half of them negative, which a Relu or a Clip behind them shows.

    The batch is an input's first axis, or with `first_free` its first axis that is not fixed.
    """
    random = np.random.default_rng(batch)
    sizes: dict[str, int] = dict(bind)
    feed: Feed = {}
    for value in session.get_inputs():
        shape: list[int] = []
        free = [axis for axis, dim in enumerate(value.shape) if not isinstance(dim, int) or dim < 1]
        batch_axis = free[0] if first_free and free else 0
        for axis, dim in enumerate(value.shape):
            symbol = dim if isinstance(dim, str) else f"{value.name} {axis}"
            drawn = sizes.setdefault(symbol, batch if axis == batch_axis else size)
            shape.append(drawn if axis in free else dim)
        dtype = np.dtype(_ELEMENT_TYPES.get(value.type, np.float32))
        if dtype.kind == "f":
            feed[value.name] = random.standard_normal(shape).astype(dtype)
        else:
            feed[value.name] = np.full(shape, integer).astype(dtype)
    return feed


def compare(
    reference: Any, original_path: str, candidate_path: str, feeds: Sequence[Feed], options: Options
) -> dict[str, Any]:
    """The largest error of any output over all feeds, beside what rounding alone does to it."""
    try:
        candidate = open_session(candidate_path, "ORT_DISABLE_ALL", options)
    except Exception as error:
        return {"runs": False, "reason": f"does not load: {error}"[:200]}
    reordered = open_session(original_path, "ORT_ENABLE_EXTENDED", options)
    held = onnx.load(original_path, load_external_data=False).graph.initializer
    is_half = any(tensor.data_type == _HALF for tensor in held)
    worst: dict[str, Any] = {"excess": -1.0}
    for feed in feeds:
        expected, again = _outputs(reference, feed), _outputs(reference, feed)
        assert expected is not None and again is not None, "a feed is one that the original ran on"
        actual = _outputs(candidate, feed)
        shape = list(next(iter(feed.values())).shape)
        if actual is None:
            return {"runs": False, "reason": f"does not run on inputs of shape {shape}"}
        noise = (_outputs(reference, _nudged(feed)), _outputs(reordered, feed))
        for name, value in expected.items():
            if _error(value, again[name]) > 0:
                continue  # Random: there is nothing to compare.
            gap = _error(value, actual.get(name))
            floor = max((_error(value, other[name]) for other in noise if other), default=0.0)
            base = _BASE_TOLERANCE.get(str(getattr(value, "dtype", "")), 0.0)
            if base and is_half:
                base = _BASE_TOLERANCE["float16"]
            tolerance = max(base, _FLOOR_FACTOR * floor)
            excess = gap / tolerance if tolerance else (np.inf if gap else 0.0)
            if excess > worst["excess"]:
                worst = {"excess": excess, "error": gap, "tolerance": tolerance, "floor": floor}
                worst |= {"output": name, "shape": shape}
    if worst["excess"] < 0:
        return {"runs": True, "unjudged": "every output differs between two runs of the original"}
    return {"runs": True, "right": bool(worst["excess"] <= 1), **worst}


def _nudged(feed: Feed) -> Feed:
    """The same inputs, each moved to the next number of its type."""
    return {
        name: np.nextafter(value, np.inf, dtype=value.dtype) if value.dtype.kind == "f" else value
        for name, value in feed.items()
    }


def _error(expected: Any, actual: Any) -> float:
    """How far apart two outputs are, as a part of the largest expected value; inf: incomparable."""
    if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return 0.0 if repr(expected) == repr(actual) else float("inf")
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if expected.dtype.kind not in "f":
        return float(np.mean(expected != actual)) if expected.size else 0.0
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    wide = expected[finite].astype(np.float64)
    scale = float(np.abs(wide).max()) or 1.0
    gap = float(np.abs(wide - actual[finite].astype(np.float64)).max())
    return gap / scale if np.isfinite(gap) else float("inf")


def speedup(original: str, candidate: str, level: str, feed: Feed, options: Options) -> float:
    """Median time of the original over that of the candidate, measured in turns: > 1 is faster."""
    sessions = [open_session(path, level, options) for path in (original, candidate)]
    times_s: list[list[float]] = [[], []]
    for session in sessions:
        session.run(None, feed)
    end = time.perf_counter() + options.latency_s
    while time.perf_counter() < end or len(times_s[0]) < 5:
        # Each goes first in every other turn, so that neither always finds the other's cache.
        order = (0, 1) if len(times_s[0]) % 2 else (1, 0)
        for which in order:
            start = time.perf_counter()
            sessions[which].run(None, feed)
            times_s[which].append(time.perf_counter() - start)
    return statistics.median(times_s[0]) / statistics.median(times_s[1])


def open_session(path: str, level: str, options: Options) -> Any:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def _outputs(session: Any, feed: Feed) -> dict[str, Any] | None:
    """What a model makes of a feed, by output name; None where it refuses it."""
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    try:
        values = session.run(names, {name: value for name, value in feed.items() if name in wanted})
    except Exception:
        return None
    return dict(zip(names, values, strict=True))


if __name__ == "__main__":
    main()
