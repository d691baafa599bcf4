"""`graphpass.optimize`: what the command line does, as a function."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from graphpass.errors import DifferenceError, UsageError
from graphpass.ir.cost import cost_of
from graphpass.ir.model import Model
from graphpass.ir.proto_walk import label_of
from graphpass.report.data import (
    DenseNode,
    FileFacts,
    NotRun,
    PassReport,
    Report,
    bytes_facts,
    input_files,
    input_paths,
    model_facts,
    nodes_of,
    operator_name,
)
from graphpass.rewrite.choice import Chooser
from graphpass.rewrite.interface import Interface
from graphpass.rewrite.registry import PIPELINES, TUNED, Passes, without
from graphpass.rewrite.rule import Pass
from graphpass.rewrite.selection import Selection
from graphpass.run.blame import blamed
from graphpass.run.judge import Judge
from graphpass.run.pipeline import MAX_ROUNDS, Pipeline, Progress
from graphpass.run.result import Result
from graphpass.run.tuned import as_recorded, slowest, tuned
from graphpass.run.tuning import Recorded, Tuner
from graphpass.run.tuning_cache import TuningCache
from graphpass.validate.baseline import ReferenceCannotRunError
from graphpass.validate.cost import natural_shapes
from graphpass.validate.logits import softmax_outputs
from graphpass.validate.options import ValidationArguments, ValidationOptions
from graphpass.validate.structure import interface_changes

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger(__name__)

Source = Model | onnx.ModelProto | bytes | str | os.PathLike[str]

# so much that is noted at nodes is worth a word: bytes, and the share of the files
_NOTED_BYTES, _NOTED_SHARE = 20 << 10, 0.05
# Operators that mix features as a convolution does, but are none.
_DENSE = frozenset(
    "Gemm MatMul MatMulInteger QLinearMatMul Einsum LSTM GRU RNN Attention "
    "com.microsoft::FusedMatMul com.microsoft::FusedGemm com.microsoft::QGemm "
    "com.microsoft::MatMulNBits com.microsoft::Attention com.microsoft::MultiHeadAttention".split()
)


def optimize(
    model: Source,
    passes: Passes = None,
    *,
    skip: Sequence[str] = (),
    only_nodes: Sequence[str] = (),
    exclude_nodes: Sequence[str] = (),
    validate: bool = True,
    strict: bool = False,
    max_rewrites: int | None = None,
    freeze_initializers: bool = False,
    strip_metadata: bool = False,
    allow_external: Sequence[str | os.PathLike[str]] = (),
    latency: bool = False,
    tune: bool = False,
    tune_from: str | os.PathLike[str] | None = None,
    tune_cache: bool = True,
    sha256: bool = True,
    progress: Progress | None = None,
    **validation: Unpack[ValidationArguments],
) -> Result:
    """Run passes over a model and check the result of each against the original.

    Args:
        model: a file or URL, the bytes of one, a ModelProto (which stays as it is) or a `Model`.
        passes: the name of a pipeline, a list such as `"clean-up,fold-batchnorm"`, `Pass`
            objects, functions of a `gs.Graph`, or None for the default pipeline.
        skip: names of passes to leave out.
        only_nodes: patterns for names of nodes (globs, or `re:` and a regular expression): rewrites
            touch no others.
        exclude_nodes: likewise, of those that no rewrite touches.
        validate: False to leave ONNX Runtime out of it.
        strict: raise where something would otherwise be undone.
        max_rewrites: stop after so many rewrites.
        strip_metadata: take away what exporters note at nodes and values: stack traces, scopes.
        freeze_initializers: inputs that have a default are inputs no more, but constants.
        allow_external: folders outside of the model's own that its data may lie in.
        latency: also measure how long the model takes before and after.
        tune: measure rewrites that are faster on one runtime and slower on another, on the first
            provider, and keep those that pay; `passes` None: all that may.
        tune_from: the JSON report of such a run, to decide the same again without measuring.
        tune_cache: False to measure what was measured on this machine before.
        sha256: False to leave that of the files out of the report: all of them are read for it.
        progress: is told what is being done and how much is done (0 to 1).
        **validation: how to check: the fields of `ValidationOptions`, such as providers, inputs,
            bind, rtol, atol, seed, time_limit_s, memory_limit_mib, threads and custom_ops.

    Raises:
        UsageError: passes, inputs or bindings that do not exist or do not fit the model.
        ModelError: there is no usable model.
        RuntimeUnavailableError: ONNX Runtime can run neither the original nor any rewrite on
            its own; with `strict`, the original.
        DifferenceError: `strict`, and a rewrite or pass is wrong.
    """
    start = time.perf_counter()
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    tunes = tune or tune_from is not None
    steps = without(TUNED if passes is None and tunes else passes, skip)
    if tune and tune_from is None and not validate:
        raise UsageError("--tune runs the model, which --no-validate forbids")
    selection = Selection(tuple(only_nodes), tuple(exclude_nodes))
    tell = progress or (lambda text, done: None)
    tell("reading", 0.0)
    options = ValidationOptions.of(**validation)
    allowed = [Path(folder) for folder in allow_external]
    loaded = Model.load(model, allow_external=allowed, time_limit_s=options.time_limit_s)
    files = _files(model, loaded, sha256)
    facts = model_facts(loaded.proto, files)
    hashed = _hashed(loaded, files)
    name = next((file.name for file in facts.files), "a model")
    _log.info("%s: read %d nodes in %.1f s", name, facts.nodes, time.perf_counter() - start)
    frozen = loaded.freeze_initializers() if freeze_initializers else []
    if strip_metadata:
        loaded.strip_metadata()
    noted_bytes = loaded.metadata_bytes
    report = Report(
        settings={
            "pipeline": None if passes is None and tunes else _pipeline_name(passes),
            "passes": [_spelled(step) for step in steps],
            **_settings(options),
            "validate": validate,
            "strict": strict,
            "max_rewrites": max_rewrites,
            "only_nodes": list(selection.only),
            "exclude_nodes": list(selection.exclude),
            "freeze_initializers": freeze_initializers,
            "strip_metadata": strip_metadata,
            "tune": tunes,
        },
        input=facts,
        output=facts,
        validated=validate,
        started_at=started_at,
        load_s=time.perf_counter() - start,
    )
    with contextlib.ExitStack() as stack:
        judge = stack.enter_context(Judge(loaded.proto, options, validate=validate))
        with blamed(judge.original):
            report.threads = judge.threads
            tell("running the original", 0.02)
            _prepare(judge, strict)
            left_out = selection.left_out(loaded.proto)

            def attempt(steps: Sequence[Pass], chooser: Chooser | None = None) -> Pipeline:
                pipeline = Pipeline(
                    loaded,
                    judge,
                    steps,
                    strict=strict,
                    max_rewrites=max_rewrites,
                    left_out=left_out,
                    progress=lambda text, done: tell(text, 0.1 + 0.7 * done),
                    chooser=chooser,
                )
                _run(pipeline, report)
                _require_done(steps, report)
                return pipeline

            if tune_from is not None:
                recorded = Recorded(Path(tune_from), judge.options.providers[0], judge.threads)
                pipeline = as_recorded(attempt, steps, report, recorded)
            elif tune:
                tuner = Tuner(judge, TuningCache.of(judge) if tune_cache else None)
                pipeline = tuned(attempt, steps, report, tuner)
            else:
                pipeline = attempt(steps)
            _count(report, judge, pipeline.stages[0][1], loaded.proto)
            if noted_bytes > max(_NOTED_BYTES, _NOTED_SHARE * facts.size_bytes):
                report.warnings.append(_of_metadata(noted_bytes))
            if frozen:
                report.warnings.append(_of_frozen(frozen))
            report.warnings.extend(selection.without_effect(judge.original))
            if selection.only or selection.exclude:
                report.warnings.extend(_not_held_back(pipeline))
            if latency and len(pipeline.stages) > 1:
                tell("measuring latency", 0.85)
                _measure(report, judge, pipeline.stages)
        stack.pop_all()  # the result goes on using the judge
    report.total_s = time.perf_counter() - start
    for warning in report.warnings:
        _log.warning("%s: %s", name, warning)
    _log.info("%s: %d nodes after %.1f s", name, report.output.nodes, report.total_s)
    return Result(loaded, report, judge, hashed, sha256, tell)


def _prepare(judge: Judge, strict: bool) -> None:
    """Run the original; where it does not run, each rewrite has to answer for itself."""
    try:
        judge.prepare()
    except ReferenceCannotRunError as error:
        if strict:
            raise
        judge.do_without_reference(str(error))
        return
    if silence := judge.nothing_to_compare():
        if strict:
            raise ReferenceCannotRunError(silence)
        judge.do_without_reference(silence, runs=True)


def _run(pipeline: Pipeline, report: Report) -> None:
    """Run the passes and note what came of it, also where `strict` stops them."""
    try:
        pipeline.run()
    except DifferenceError as error:
        error.report = report
        raise
    finally:
        model = pipeline.model
        report.passes = pipeline.reports
        report.rounds = pipeline.rounds
        report.output = model_facts(model.proto)
        report.validated = pipeline.judge.validates and not pipeline.unproven
        report.not_run = _levels_not_run(pipeline)
        report.not_done = _not_done(pipeline.declared)
        report.not_convolutional = _dense_nodes(model.proto, pipeline.reports)
        report.interface = _interface(pipeline)
        report.warnings = _warnings(pipeline)


def _require_done(steps: Sequence[Pass], report: Report) -> None:
    """Raise where a pass that was asked for as such could not do what it is for."""
    for step, entry in zip(steps, report.passes, strict=True):
        if not step.required:
            continue
        if entry.reason and entry.check is not None and entry.check.status == "cannot run":
            raise UsageError(f"{step.name}: {entry.reason}")
        if entry.reason:
            raise DifferenceError(f"{step.name}: {entry.reason}", report)
        if entry.refusals:
            raise UsageError(f"{step.name}: {entry.refusals[0].reason}")


def _pipeline_name(passes: Passes) -> str | None:
    if passes is None:
        return "default"
    return passes if isinstance(passes, str) and passes in PIPELINES else None


def _spelled(step: Pass) -> str:
    """Write a pass as `--passes` takes it."""
    options = ";".join(f"{key}={value}" for key, value in step.options.items())
    return f"{step.name}{{{options}}}" if options else step.name


def _settings(options: ValidationOptions) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ValidationOptions.__dataclass_fields__}
    if isinstance(options.inputs, Mapping):
        given["inputs"] = sorted(options.inputs)
    del given["threads"]  # the environment has the number that was used
    return given


def _files(source: Source, loaded: Model, sha256: bool) -> list[FileFacts]:
    if isinstance(source, bytes):
        return [bytes_facts(source)]
    if isinstance(source, (str, os.PathLike)):
        return input_files(loaded.proto, loaded.source or Path(source), sha256=sha256)
    return []


def _hashed(loaded: Model, files: Sequence[FileFacts]) -> dict[str, str]:
    """Return the hashes of the files that weights are read from, by real path."""
    if loaded.source is None:
        return {}
    paths = map(os.path.realpath, input_paths(loaded.proto, loaded.source))
    return {path: file.sha256 for path, file in zip(paths, files, strict=False) if file.sha256}


def _dense_nodes(proto: onnx.ModelProto, passes: Sequence[PassReport]) -> list[DenseNode]:
    reasons = {refusal.node: refusal.reason for entry in passes for refusal in entry.refusals}
    found = []
    for node in nodes_of(proto):
        name = operator_name(node)
        if name in _DENSE:
            label = label_of(node)
            found.append(DenseNode(label, name, reasons.get(label, "no pass takes this form")))
    return found


def _levels_not_run(pipeline: Pipeline) -> list[NotRun]:
    judge = pipeline.judge
    if not judge.validates:
        return [NotRun(level, "as --no-validate asks") for level in (2, 3, 4, 5)]
    if not judge.not_run:
        return []
    found = [NotRun(3, judge.not_run)]
    if pipeline.unproven:
        found.insert(0, NotRun(2, "there is no rewrite that was run on its own"))
    return found if judge.runs else [*found, NotRun(4, judge.not_run)]


def _not_done(declared: Sequence[PassReport]) -> list[str]:
    """Say what did not become of inputs and outputs although it was asked for."""
    undone = [entry for entry in declared if entry.outcome != "kept"]
    reasons = [
        (entry.name, entry.reason or next((refusal.reason for refusal in entry.refusals), ""))
        for entry in undone
    ]
    return [f"{name} changed nothing: {reason}" for name, reason in reasons if reason]


def _warnings(pipeline: Pipeline) -> list[str]:
    found = [f"{entry.name}: {note}" for entry in pipeline.lossy for note in entry.notes]
    if not pipeline.settled:
        found.append(
            f"after {MAX_ROUNDS} rounds the passes still found something to rewrite: run it again"
        )
    if pipeline.judge.not_run:
        did = "nothing was run" if pipeline.unproven else "each rewrite was run on its own"
        found.append(f"{did}, not the model: {pipeline.judge.not_run}")
    for entry in pipeline.by_hand:
        if entry.outcome == "kept":
            continue  # what it says when it is run again is no news
        found.extend(f"{entry.name}: {refusal.reason}" for refusal in entry.refusals)
    checks = [entry.check for entry in pipeline.reports if entry.check is not None]
    random = {name for check in checks for name in check.random_outputs}
    silent = {name for check in checks for name in check.silent_outputs}
    for why, names in (
        ("they differ between two runs of the original", random),
        ("they have no elements or are NaN throughout", silent),
    ):
        if names:
            listed = ", ".join(f"'{name}'" for name in sorted(names))
            found.append(f"not compared, since {why}: {listed}")
    return found


def _interface(pipeline: Pipeline) -> list[str]:
    """Say which inputs and outputs are others now, and how."""
    before, after = pipeline.stages[0][1], pipeline.model.proto
    still = set(softmax_outputs(after))
    logits = [name for name in softmax_outputs(before) if name not in still]
    found = interface_changes(before, after)
    for entry in pipeline.declared:
        if entry in pipeline.lossy:
            continue
        found.extend(f"{entry.name}: {note}" for note in entry.notes[-1:])
    if Interface.LOGITS in pipeline.interface_may_change:
        found += [f"output '{name}' gives the logits of its Softmax" for name in logits]
    return found


def _of_metadata(count: int) -> str:
    return (
        f"{count >> 10:,} KiB are stack traces and scopes that the exporter noted at nodes:"
        " --strip-metadata leaves them out"
    )


def _not_held_back(pipeline: Pipeline) -> list[str]:
    return [
        f"{state.name} changed the model other than by rewrites: no pattern for nodes holds it back"
        for state in pipeline.reports
        if state.notes
    ]


def _of_frozen(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} inputs that have a default are constants now, as was asked: {shown}"


def _count(
    report: Report, judge: Judge, original: onnx.ModelProto, result: onnx.ModelProto
) -> None:
    """Note what a run costs before and after, with the inputs that the original was run on."""
    shapes = judge.shapes() or natural_shapes(original, judge.options.bind)
    report.input = replace(report.input, cost=cost_of(original, shapes))
    report.output = replace(report.output, cost=cost_of(result, shapes))


def _measure(report: Report, judge: Judge, stages: list[tuple[str, onnx.ModelProto]]) -> None:
    """Time the result against the original; where it is slower, find the pass that did it."""
    report.latency = judge.latency(stages[0][1], stages[-1][1])
    if not report.slower:
        return
    report.slower_because_of, _ = slowest(judge, stages)
