"""The lossy door: a dense layer over a feature map becomes pooling and a smaller dense layer.

`Gemm(Flatten(y))` weighs every pixel of y differently; `W'·mean(y) + b'` cannot, unless the weights
agree. Here W' and b' are fitted by least squares to what the original layer answers on calibration
inputs, and the result is judged on other inputs. It is an approximation: no pipeline has it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from graphpass.dense.extract import cut
from graphpass.dense.heatmap import image_input
from graphpass.dense.map_geometry import Size
from graphpass.dense.picture import Preprocessing, read_inputs
from graphpass.errors import ModelError, RuntimeUnavailableError, UsageError
from graphpass.follow.image_axes import Spatial
from graphpass.follow.image_input import trace_image
from graphpass.follow.traced import Trace
from graphpass.ir.model import Model
from graphpass.ir.questions import Node, Tensor, attribute, constant, operator
from graphpass.ir.weight import Array
from graphpass.ir.windows import windows_of
from graphpass.rewrite.driver import apply
from graphpass.rewrite.edit import Editor
from graphpass.rewrite.registry import make
from graphpass.validate.growth import limits_unasked
from graphpass.validate.process.runtime import RunError, Runtime

_HELD_OUT = 4  # every fourth calibration input judges, where there are no others
_FEWEST = 8
_BATCH = 16


@dataclass
class ApproximationReport:
    """How good the approximation is, on inputs that it was not fitted to.

    `top1_agreement`: the part of them with the same largest output. `relative_error`: root mean
    square of the difference over the standard deviation of the original's outputs. `fit_error`:
    the same for the replaced layer itself, on the calibration inputs.
    """

    calibration_count: int
    test_count: int
    top1_agreement: float
    relative_error: float
    fit_error: float
    warnings: list[str] = field(default_factory=list)


def approximate_gap(
    model: Model | onnx.ModelProto | bytes | str | os.PathLike[str],
    calibration: Path,
    test: Path | None = None,
    preprocessing: Preprocessing | None = None,
    *,
    native: Size | None = None,
) -> tuple[Model, ApproximationReport]:
    """Replace each dense layer that reads a whole feature map by GlobalAveragePool and Conv 1x1.

    Args:
        model: a classifier with a Flatten head.
        calibration: a folder of pictures, or an .npz or .npy of inputs [n, …], to fit on.
        test: others to judge with; by default every fourth of `calibration` is held out.
        preprocessing: what turns pictures into inputs.
        native: the resolution, where the model's input does not say it.

    Raises:
        UsageError: too few inputs, or none that can be read.
        ModelError: no dense layer reads a feature map, or the model's resolution is not fixed.
    """
    from graphpass.dense.convolutionalize import set_native

    original = Model.load(model)
    if native is not None:
        set_native(original, native)
    wanted = image_input(original)
    if wanted.size is None:
        raise ModelError("height and width of the image are not fixed (--native HxW)")
    how = preprocessing or Preprocessing()
    fit_on = read_inputs(calibration, wanted, how)
    if test is None:
        held = np.arange(len(fit_on)) % _HELD_OUT == _HELD_OUT - 1
        fit_on, judge_on = fit_on[~held], fit_on[held]
    else:
        judge_on = read_inputs(test, wanted, how)
    if len(fit_on) < _FEWEST or not len(judge_on):
        raise UsageError(
            f"{calibration} gives {len(fit_on)} inputs to fit on and {len(judge_on)} to judge "
            f"with: at least {_FEWEST} and 1 are needed"
        )
    done = original.copy()
    for name in ("clean-up", "flatten-gemm-to-gap-conv", "gemm-to-conv"):
        apply(make(name), done)
    try:
        with Runtime() as runtime:
            runtime.restrict(limits_unasked(original.proto, runtime.limits))
            report = _fit(done, fit_on, len(judge_on), runtime)
            report.top1_agreement, report.relative_error = _judge(
                original, done, wanted.name, judge_on, runtime
            )
    except RunError as error:
        raise RuntimeUnavailableError(str(error)) from None
    return done, report


def _fit(model: Model, inputs: Array, test_count: int, runtime: Runtime) -> ApproximationReport:
    found = trace_image(model.graph)
    layers = [node for node in found.graph.nodes if _weighs_pixels(found, node)]
    if not layers:
        raise ModelError(
            "no dense layer of the network reads a whole feature map: there is nothing to "
            "approximate (a pooled head converts exactly)"
        )
    report = ApproximationReport(len(inputs), test_count, 0.0, 0.0, 0.0)
    weights = []
    for layer in layers:
        weight, bias, error = _least_squares(model, found, layer, inputs, runtime)
        weights.append((layer, weight, bias))
        report.fit_error = max(report.fit_error, error)
        if len(inputs) <= weight.shape[1]:
            report.warnings.append(
                f"{len(inputs)} calibration inputs for {weight.shape[1]} channels: the fit is not "
                "determined, and what it does elsewhere is left to chance"
            )
    with model.editing() as graph, Editor(graph) as edit:
        for layer, weight, bias in weights:
            pooled = edit.one("GlobalAveragePool", [layer.inputs[0]])
            small = edit.one(
                "Conv",
                [pooled, weight, bias],
                like=layer,
                kernel_shape=[1, 1],
                strides=None,
                pads=None,
            )
            edit.replace(layer.outputs[0], small)
    return report


def _weighs_pixels(found: Trace, node: Node) -> bool:
    """Whether a Conv is a dense layer: its one window is the whole map, of more than one pixel."""
    if (
        operator(node) != "Conv"
        or attribute(node, "group") != 1
        or constant(node.inputs[1]) is None
    ):
        return False
    if not found.is_map(node.inputs[0]):
        return False
    axes = found.axes[id(node.inputs[0])]
    if not all(isinstance(axis, Spatial) for axis in axes[2:]):
        return False
    sizes = [axis.line.size for axis in axes[2:] if isinstance(axis, Spatial)]
    whole = all(w.covers(size) for w, size in zip(windows_of(node), sizes, strict=True))
    return whole and max(sizes) > 1


def _least_squares(
    model: Model, found: Trace, layer: Node, inputs: Array, runtime: Runtime
) -> tuple[Array, Array, float]:
    """Fit the layer's answers with the means of its channels and a constant, in float64."""
    source, answer = layer.inputs[0], layer.outputs[0]
    means, wanted = [], []
    part = cut(model.proto, {}, [source.name, answer.name])
    _declare(part, [source, answer])
    with runtime.load(part) as session:
        for batch in _batches(inputs, found):
            outputs = session.run({found.image.name: batch}).outputs
            means.append(np.asarray(outputs[source.name], np.float64).mean(axis=(2, 3)))
            wanted.append(np.asarray(outputs[answer.name], np.float64).reshape(len(batch), -1))
    x, y = np.concatenate(means), np.concatenate(wanted)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    solution, *_ = np.linalg.lstsq(x - x_mean, y - y_mean, rcond=None)
    bias = y_mean - x_mean @ solution
    left = (x @ solution + bias) - y
    error = float(np.sqrt(np.mean(left**2)) / (np.std(y) or 1.0))
    kind = constant(layer.inputs[1])
    assert kind is not None
    weight = solution.T[:, :, None, None].astype(kind.dtype)
    return np.ascontiguousarray(weight), bias.astype(kind.dtype), error


def _declare(part: onnx.ModelProto, tensors: list[Tensor]) -> None:
    for value, tensor in zip(part.graph.output, tensors, strict=True):
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype or np.float32))
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, None))


def _batches(inputs: Array, found: Trace) -> list[Array]:
    batch = found.axes[id(found.image)][0]
    count = batch if isinstance(batch, int) else _BATCH
    whole = len(inputs) - len(inputs) % count if isinstance(batch, int) else len(inputs)
    return [inputs[start : start + count] for start in range(0, whole, count)]


def _judge(
    original: Model, approximated: Model, name: str, inputs: Array, runtime: Runtime
) -> tuple[float, float]:
    """Compare the outputs of both, the first of them for the top class."""
    found = trace_image(original.graph)
    answers: list[list[Array]] = [[], []]
    for index, model in enumerate((original, approximated)):
        with runtime.load(model.proto) as session:
            for batch in _batches(inputs, found):
                first = next(iter(session.run({name: batch}).outputs.values()))
                answers[index].append(np.asarray(first, np.float64).reshape(len(batch), -1))
    before, after = (np.concatenate(rows) for rows in answers)
    agreement = float(np.mean(before.argmax(axis=1) == after.argmax(axis=1)))
    error = float(np.sqrt(np.mean((after - before) ** 2)) / (np.std(before) or 1.0))
    return agreement, error
