"""`graphpass.convolutionalize`: from a classifier of one resolution to a score map of any.

One straight road: trace the original, make its dense layers convolutions, let the head slide,
free the resolution, and let the window oracle decide whether the result is right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx

from graphpass.dense.map_geometry import (
    HEAD,
    NATIVE,
    MapGeometry,
    Size,
    cams,
    checked_sizes,
    geometries,
    map_sizes,
    pair,
    spelled,
    strides,
    write_metadata,
)
from graphpass.dense.oracle import Checked, Oracle, Probe, giving_logits
from graphpass.dense.picture import Preprocessing
from graphpass.errors import DifferenceError, ModelError, RuntimeUnavailableError, UsageError
from graphpass.follow.image_input import images, layouts_of, native_size, trace_image
from graphpass.follow.trace import LAYOUTS, FixedResolutionError
from graphpass.follow.traced import Trace
from graphpass.ir.model import Model
from graphpass.rewrite.driver import apply
from graphpass.rewrite.registry import make
from graphpass.run.blame import blamed
from graphpass.storage.layout import ExternalData
from graphpass.storage.writer import WrittenFiles, stage_model
from graphpass.validate.options import library
from graphpass.validate.process.runtime import (
    Limits,
    RunError,
    Runtime,
    share_of_memory_mib,
)

HeadKind = Literal["dense", "global"]
Progress = Callable[[str, float], None]

_STEPS = {
    "dense": ("gemm-to-conv", "pool-to-window", "unflatten-head", "free-resolution", "clean-up"),
    "global": ("pool-to-global", "free-resolution", "clean-up"),
}
_EXACT = ("clean-up", "flatten-gemm-to-gap-conv")


@dataclass
class DenseReport:
    """What was made of a classifier, and how it was checked.

    `map_sizes`: cells of each output at the image sizes that were asked for or checked.
    `steps`: what the passes did, one line each. `freed`: what of the original's own trunk had to
    be changed before it could run at other sizes, so that the oracle is its freed form there.
    """

    head: str
    native: Size
    layout: str
    geometry: list[MapGeometry] = field(default_factory=list)
    map_sizes: dict[Size, dict[str, Size]] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    checks: list[Checked] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    global_context: list[str] = field(default_factory=list)
    unchanged: bool = False

    @property
    def worst(self) -> Checked | None:
        """The check that came closest to its tolerance."""
        return max(
            self.checks,
            key=lambda c: c.comparison.error / (c.comparison.tolerance or 1e-300),
            default=None,
        )


@dataclass
class DenseResult:
    """A converted model: `model`, `report`, and `save`.

    `probe`: what the checked model answered to one image; None where nothing was checked.
    """

    model: Model
    report: DenseReport
    probe: Probe | None = None

    def save(
        self, path: str | os.PathLike[str], *, external_data: ExternalData = "auto"
    ) -> WrittenFiles:
        """Write the model. The file itself is run before it takes its name.

        Raises OutputError, and DifferenceError where the file is not the model that was checked.
        """
        with stage_model(self.model.proto, Path(path), external_data=external_data) as staged:
            try:
                onnx.checker.check_model(str(staged.path))
            except onnx.checker.ValidationError as error:
                reason = str(error).splitlines()[0].replace(str(staged.path), str(path))
                raise DifferenceError(
                    f"the written file is not valid ONNX and was removed: {reason}"
                ) from None
            failure = self.probe.fails(staged.path) if self.probe is not None else None
            if failure is not None:
                raise DifferenceError(f"the written file was removed: {failure}")
            return staged.commit()


def convolutionalize(
    model: Model | onnx.ModelProto | bytes | str | os.PathLike[str],
    *,
    head: HeadKind = "dense",
    sizes: Sequence[Size] = (),
    native: Size | None = None,
    logits: bool = False,
    cam: bool = False,
    keep_batch: bool = True,
    check: bool = True,
    preprocessing: Preprocessing | None = None,
    time_limit_s: float | None = 300.0,
    memory_limit_mib: int | None = None,
    threads: int | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> DenseResult:
    """Turn an image classifier into a network that scores every place of an image of any size.

    Likewise one of signals `[N, C, length]` or volumes and videos `[N, C, depth, height, width]`.

    Args:
        model: a file, the bytes of one, a ModelProto (which stays as it is) or a `Model`.
        head: "dense": outputs become maps `[N, classes, h, w]` (`[N, h, w, classes]` where the
            image is NHWC); "global": a pooled head stays global, one answer for each image.
        sizes: further (height, width) in pixels at which to report the map and to check it;
            (length,) of signals, (depth, height, width) of volumes.
        native: the resolution that the network was made for, where its input does not say it.
        logits: leave out the final Softmax.
        cam: with `head="global"`, add the class activation map as output `<name>.cam`.
        keep_batch: False lets a fixed batch vary.
        check: False to leave out the window oracle.
        preprocessing: how pixels become numbers; noted in the model, for `graphpass heatmap`.
        time_limit_s: for one load or run in ONNX Runtime; None: no limit.
        memory_limit_mib: of the process that ONNX Runtime runs in; None: three quarters of the
            memory there is.
        threads: of ONNX Runtime; None: as many as there are processors.
        custom_ops: libraries with operators of your own, which ONNX Runtime loads.
        progress: is told what is being done and how much is done (0 to 1).

    Raises:
        UsageError: a size below the native one, or options that do not fit the network.
        ModelError: no image input, no head, or a node that ties the network to its resolution.
        RuntimeUnavailableError: ONNX Runtime cannot run the original.
        DifferenceError: the oracle found a cell that is wrong.
    """
    tell = progress or (lambda text, done: None)
    tell("reading", 0.0)
    libraries = [library(path) for path in custom_ops]
    original = Model.load(model, time_limit_s=time_limit_s)
    if preprocessing is not None:
        preprocessing.note(original.proto)
    with blamed(original.proto):
        if _is_done(original, native):
            _require_free(original)
            return DenseResult(original, _report_of_done(original, head))
        if native is not None:
            set_native(original, native)
        found = _traced(original)
        sizes = _fitting(found, sizes)
        if cam and head != "global":
            raise UsageError("--cam goes with --head global: a dense head is a map already")
        report = DenseReport(head, found.size, found.layout)
        report.global_context = [
            c.node.name or c.node.op for c in found.collapses if id(c.node) in found.trunk_pools
        ]
        tell("rewriting", 0.1)
        done = original.copy()
        _rewrite(done, _steps(head, logits, cam, keep_batch), report, time_limit_s)
        _measure(report, found, done, head, sizes)
        write_metadata(done.proto, head, found.size, report.geometry)
        probe = None
        if check:
            limits = Limits(time_limit_s, memory_limit_mib or share_of_memory_mib())
            with Runtime(limits, threads, libraries) as runtime:
                probe = _check(original, found, done, report, runtime, logits, tell)
    tell("done", 1.0)
    return DenseResult(done, report, probe)


def _is_done(model: Model, native: Size | None) -> bool:
    """Whether height and width vary already and the outputs say so, or an earlier run did."""
    found = images(model.graph)
    if native is not None or len(found) != 1:
        return False
    if any(native_size(found[0], layout) is not None for layout in layouts_of(found[0])):
        return False
    marked = any(entry.key == HEAD for entry in model.proto.metadata_props)
    rank = len(found[0].shape)
    maps = [o.shape is not None and len(o.shape) == rank for o in model.graph.outputs]
    return marked or all(maps)


def _require_free(model: Model) -> None:
    """Refuse a model whose height and width are declared to vary, but are fixed inside."""
    image = images(model.graph)[0].name
    applied = apply(make("free-resolution", {"axes": "all"}), model.copy())
    said = [refusal.reason for refusal in applied.refusals]
    if applied.changed:
        said = ["optimize --passes free-resolution mends that"]
    if said:
        raise ModelError(
            f"height and width of '{image}' are declared to vary, but do not: {said[0]}"
        )


def _report_of_done(model: Model, head: str) -> DenseReport:
    noted = {entry.key: entry.value for entry in model.proto.metadata_props}
    text = noted.get(NATIVE, "")
    known = re.fullmatch(r"\d{1,9}(,\d{1,9}){0,2}", text)
    native = tuple(map(int, text.split(","))) if known else (0, 0)
    return DenseReport(noted.get(HEAD, head), native, "", unchanged=True)


def set_native(model: Model, native: Size) -> None:
    """Fix a symbolic resolution, so that the passes know every size."""
    found = images(model.graph)
    if len(found) != 1:
        return
    shape = list(found[0].shape or ())
    first, last = layouts_of(found[0])
    layout = last if isinstance(shape[-1], int) and not isinstance(shape[1], int) else first
    native = _for_each(native, len(shape) - 2, "--native")
    for axis, pixels in zip(LAYOUTS[layout], native, strict=True):
        declared = shape[axis]
        if isinstance(declared, int) and declared != pixels:
            raise UsageError(
                f"'{found[0].name}' is declared as {shape}: --native {spelled(native)} does not fit"
            )
        shape[axis] = pixels
    with model.editing(interface=True):
        found[0].shape = shape


def _for_each(size: Size, dims: int, option: str) -> Size:
    """Return `size` with a number for each dimension: one that stands alone is for all."""
    if len(size) not in (1, dims):
        numbers = "1 number" if dims == 1 else f"{dims} numbers"
        raise UsageError(f"{option} {spelled(size)} does not fit an input that wants {numbers}")
    return size * dims if len(size) == 1 else size


def _traced(model: Model) -> Trace:
    try:
        found = trace_image(model.graph)
    except FixedResolutionError as error:
        raise ModelError(f"the resolution cannot vary: {error}") from None
    if not found.heads:
        raise ModelError(
            "the network has no head: nowhere does it turn its map into one answer for the image"
        )
    others = [t.name for t in model.graph.inputs if t is not found.image and not t.inputs]
    constants = {t.name for t in model.proto.graph.initializer}
    needed = [name for name in others if name not in constants]
    if needed:
        raise ModelError(f"besides the image, the network needs the input {', '.join(needed)}")
    return found


def _fitting(found: Trace, sizes: Sequence[Size]) -> list[Size]:
    """Return the sizes that were asked for. Raises UsageError where one is none, or too small."""
    asked = [_for_each(size, len(found.size), "--size") for size in sizes]
    for size in asked:
        if any(pixels < native for pixels, native in zip(size, found.size, strict=True)):
            raise UsageError(
                f"--size {spelled(size)} is smaller than {spelled(found.size)}, which the network "
                "was made for: not one window fits"
            )
    return asked


def _steps(head: str, logits: bool, cam: bool, keep_batch: bool) -> list[str]:
    """Return the names of the passes to run, in order."""
    steps = [*_EXACT, *(["drop-softmax"] if logits else []), *_STEPS[head]]
    at = steps.index("free-resolution")
    if not keep_batch:
        steps.insert(at + 1, "free-batch")
    if cam:
        steps.insert(at, "class-activation-map")
    return steps


def _rewrite(
    model: Model, steps: Sequence[str], report: DenseReport, time_limit_s: float | None = None
) -> None:
    blocked: list[str] = []
    for name in steps:
        options = {"axes": "all"} if name == "free-resolution" else {}
        applied = apply(make(name, options), model, time_limit_s=time_limit_s)
        report.steps += [f"{name}: {note}" for note in applied.notes]
        report.steps += [f"{name}: {r.rule} at '{r.site}'" for r in applied.rewrites]
        if name == "gemm-to-conv":
            blocked = [refusal.reason for refusal in applied.refusals]
        elif applied.refusals and name not in _EXACT and name != "drop-softmax":
            why = f" ({blocked[0]})" if blocked and name == "unflatten-head" else ""
            raise ModelError(f"{applied.refusals[0].reason}{why}")


def _measure(
    report: DenseReport, found: Trace, done: Model, head: str, sizes: Sequence[Size]
) -> None:
    """Note where the cells of each output lie, and how many there are at every image size."""
    report.geometry = geometries(found, done, head)
    checked = checked_sizes(found.size, strides(found))
    for size in dict.fromkeys([found.size, *sizes, *checked]):
        report.map_sizes[size] = map_sizes(found, size, head)


# ------------------------------------------------------------------------------ the oracle


def _check(
    original: Model,
    found: Trace,
    done: Model,
    report: DenseReport,
    runtime: Runtime,
    logits: bool,
    tell: Progress,
) -> Probe:
    if logits:
        original = giving_logits(original)
        found = _traced(original)
    oracle = Oracle(
        original, found, runtime, pooled=report.head == "global", cams=cams(done, found)
    )
    report.freed = oracle.freed
    batch = images(done.graph)[0].shape[0]
    batches = [batch] if isinstance(batch, int) else [k * (oracle.fixed_batch or 1) for k in (1, 2)]
    try:
        with runtime.load(done.proto) as candidate:
            tell("checking at the native size", 0.3)
            report.checks += oracle.check_native(candidate, batches[-1])
            for index, size in enumerate(report.map_sizes):
                tell(f"checking at {spelled(size)}", 0.4 + 0.6 * index / len(report.map_sizes))
                for batch in batches:
                    report.checks += oracle.check(candidate, size, batch)
            _judge(report)
            return oracle.probe(candidate)
    except RunError as error:
        raise RuntimeUnavailableError(str(error)) from None
    finally:
        oracle.close()


def _judge(report: DenseReport) -> None:
    wrong = [check for check in report.checks if not check.ok]
    for check in report.checks:
        promised = report.map_sizes.get(check.size, {}).get(check.output)
        if promised is not None and check.cells and check.map_size != promised and not wrong:
            raise DifferenceError(
                f"the map of '{check.output}' at {pair(check.size)} pixels has "
                f"{pair(check.map_size)} cells where {pair(promised)} were computed; "
                "nothing was written"
            )
    if wrong:
        worst = max(wrong, key=lambda check: check.comparison.error)
        raise DifferenceError(
            f"output '{worst.output}' {worst.comparison.reason} at {worst.comparison.feed} "
            f"(tolerance {worst.comparison.tolerance:.2g}): the map is not what the original's "
            "own head says of each window; nothing was written"
        )


__all__ = ["DenseReport", "DenseResult", "MapGeometry", "convolutionalize"]
