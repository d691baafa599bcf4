"""`graphpass.optimize` and `graphpass.compare`: what the command line does, as functions."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx

from graphpass.errors import DifferenceError, OutputError
from graphpass.ir.model import Model
from graphpass.report.data import (
    Check,
    DenseNode,
    FileFacts,
    PassReport,
    Report,
    bytes_facts,
    environment,
    file_facts,
    input_files,
    model_facts,
    nodes_of,
    operator_name,
)
from graphpass.resources import Closing
from graphpass.rewrite.registry import PIPELINES, without
from graphpass.rewrite.rule import Pass
from graphpass.run.judge import Judge
from graphpass.run.pipeline import MAX_ROUNDS, Pipeline, Progress
from graphpass.storage import remote
from graphpass.storage.layout import ExternalData
from graphpass.storage.reference import reference_of, tensors
from graphpass.storage.writer import WrittenFiles, stage_model
from graphpass.validate.baseline import ReferenceCannotRunError
from graphpass.validate.options import ValidationOptions

Source = Model | onnx.ModelProto | bytes | str | os.PathLike[str]
Passes = str | Pass | Sequence[str | Pass] | None
Inputs = str | os.PathLike[str] | Mapping[str, npt.NDArray[np.generic]]

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
    providers: Sequence[str] = ("cpu",),
    inputs: Inputs | None = None,
    bind: Mapping[str, int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    validate: bool = True,
    strict: bool = False,
    max_rewrites: int | None = None,
    freeze_initializers: bool = False,
    time_limit_s: float | None = 300.0,
    memory_limit_mib: int | None = None,
    threads: int | None = None,
    allow_external: Sequence[str | os.PathLike[str]] = (),
    latency: bool = False,
    sha256: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Run passes over a model and check the result of each against the original.

    Args:
        model: a file or URL, the bytes of one, a ModelProto (which stays as it is) or a `Model`.
        passes: the name of a pipeline, a list such as `"clean-up,fold-batchnorm"`, `Pass`
            objects, or None for the default pipeline.
        skip: names of passes to leave out.
        providers: execution providers of ONNX Runtime to check on: "cpu", "cuda".
        inputs: arrays by name, an .npz or a folder of .pb files; what is missing is drawn.
        bind: numbers for symbolic dimensions.
        rtol: tolerance relative to an output's largest magnitude, in place of the noise floor.
        atol: absolute tolerance, in place of the noise floor.
        seed: of the inputs that are drawn.
        validate: False to leave ONNX Runtime out of it.
        strict: raise where something would otherwise be undone.
        max_rewrites: stop after so many rewrites.
        freeze_initializers: inputs that have a default are inputs no more, but constants.
        time_limit_s: for one load or run in ONNX Runtime; None: no limit.
        memory_limit_mib: of the process that ONNX Runtime runs in; None: no limit.
        threads: of ONNX Runtime; None: as many as there are processors.
        allow_external: folders outside of the model's own that its data may lie in.
        latency: also measure how long the model takes before and after.
        sha256: False to leave that of the files out of the report: all of them are read for it.
        progress: is told what is being done and how much is done (0 to 1).

    Raises:
        UsageError: passes, inputs or bindings that do not exist or do not fit the model.
        ModelError: there is no usable model.
        RuntimeUnavailableError: ONNX Runtime can run neither the original nor any rewrite on
            its own; with `strict`, the original.
        DifferenceError: `strict`, and a rewrite or pass is wrong.
    """
    start = time.perf_counter()
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    steps = without(passes, skip)
    tell = progress or (lambda text, done: None)
    tell("reading", 0.0)
    loaded = Model.load(model, allow_external=[Path(folder) for folder in allow_external])
    facts = model_facts(loaded.proto, _files(model, loaded, sha256))
    frozen = loaded.freeze_initializers() if freeze_initializers else []
    options = _options(
        providers, inputs, bind, rtol, atol, seed, time_limit_s, memory_limit_mib, threads
    )
    report = Report(
        settings={
            "pipeline": _pipeline_name(passes),
            "passes": [_spelled(step) for step in steps],
            **_settings(options),
            "validate": validate,
            "strict": strict,
            "max_rewrites": max_rewrites,
            "freeze_initializers": freeze_initializers,
        },
        input=facts,
        output=facts,
        validated=validate,
        started_at=started_at,
        load_s=time.perf_counter() - start,
    )
    with contextlib.ExitStack() as stack:
        judge = stack.enter_context(Judge(loaded.proto, options, validate=validate))
        report.environment = environment(judge.threads)
        tell("running the original", 0.02)
        _prepare(judge, strict)
        pipeline = Pipeline(
            loaded,
            judge,
            steps,
            strict=strict,
            max_rewrites=max_rewrites,
            progress=lambda text, done: tell(text, 0.1 + 0.7 * done),
        )
        _run(pipeline, report)
        if frozen:
            report.warnings.append(_of_frozen(frozen))
        if latency and len(pipeline.stages) > 1:
            tell("measuring latency", 0.85)
            _measure(report, judge, pipeline.stages)
        stack.pop_all()  # the result goes on using the judge
    report.total_s = time.perf_counter() - start
    return Result(loaded, report, judge, sha256, tell)


def _prepare(judge: Judge, strict: bool) -> None:
    """Run the original; where it does not run, each rewrite has to answer for itself."""
    try:
        judge.prepare()
    except ReferenceCannotRunError as error:
        if strict:
            raise
        judge.do_without_reference(str(error))


def _run(pipeline: Pipeline, report: Report) -> None:
    """Run the passes and note what came of it, also where `strict` stops them."""
    try:
        pipeline.run()
    except DifferenceError as error:
        error.report = report
        raise
    finally:
        model = pipeline.model
        model.sync()
        report.passes = pipeline.reports
        report.rounds = pipeline.rounds
        report.output = model_facts(model.proto)
        report.not_convolutional = _dense_nodes(model.proto, pipeline.reports)
        report.warnings = _warnings(pipeline)


class Result(Closing):
    """An optimized model and the report on it. `save` delivers it.

    Use as a context manager, or `close` it, to end the process that ONNX Runtime runs in.
    """

    def __init__(
        self,
        model: Model,
        report: Report,
        judge: Judge,
        sha256: bool,
        progress: Progress,
    ) -> None:
        """Made by `optimize`."""
        self.report = report
        self._model = model
        self._judge = judge
        self._sha256 = sha256
        self._progress = progress

    @property
    def model(self) -> onnx.ModelProto:
        """The optimized model as an ordinary ModelProto, with every weight in it."""
        return self._model.to_proto()

    @property
    def changed(self) -> bool:
        """Whether any pass changed anything."""
        return any(entry.outcome == "kept" for entry in self.report.passes)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: ExternalData = "auto",
        external_data_size_threshold: int | None = None,
    ) -> WrittenFiles:
        """Write the model beside `path`, check the file as it is, and rename it into place.

        `external_data`: "never": all in one file; "always": weights in a file of their own;
        "auto": as the input had it, or where 2 GiB are not enough. Weights of fewer bytes than
        `external_data_size_threshold` stay in the model file; None: of fewer than 1024, but with
        "auto" each stays where it was. Raises `OutputError` where it
        cannot be written, `DifferenceError` where the file is not what was checked; then nothing
        is changed at `path`. Of what goes to a URL, names are returned in place of paths.
        """
        if isinstance(path, str) and remote.is_url(path):
            return self._upload(path, external_data, external_data_size_threshold)
        path = remote.local(path)
        start = time.perf_counter()
        self._progress("writing", 0.9)
        if external_data == "auto" and self._lost_external_data():
            external_data = "always"
        with stage_model(
            self._model.proto,
            path,
            external_data=external_data,
            size_threshold=external_data_size_threshold,
        ) as staged:
            self._check(staged.path)
            written = staged.commit()
        facts = [file_facts(file.path, sha256=self._sha256) for file in written.files]
        self._delivered(facts, start)
        self._note_superseded(written)
        return written

    def _upload(
        self, url: str, external_data: ExternalData, size_threshold: int | None
    ) -> WrittenFiles:
        with remote.delivery(url) as delivery:
            written = self.save(
                delivery.path,
                external_data=external_data,
                external_data_size_threshold=size_threshold,
            )
            published = delivery.publish(written)
        self._note_superseded(published)
        return published

    def _note_superseded(self, written: WrittenFiles) -> None:
        self.report.warnings.extend(
            f"the old data file {left} was left: another model may need it"
            for left in written.superseded
        )

    def write(self, stream: IO[bytes]) -> int:
        """Write the model as one file to a stream, checked first; return its size in bytes.

        Raises as `save` does.
        """
        start = time.perf_counter()
        self._progress("writing", 0.9)
        with tempfile.TemporaryDirectory(prefix="graphpass-") as folder:
            path = Path(folder) / "model.onnx"
            with stage_model(self._model.proto, path, external_data="never") as staged:
                self._check(staged.path)
                facts = file_facts(staged.path, sha256=self._sha256)
                with staged.path.open("rb") as file:
                    try:
                        shutil.copyfileobj(file, stream, 1 << 20)
                        stream.flush()
                    except OSError as error:
                        reason = error.strerror or error
                        raise OutputError(f"cannot write the model: {reason}") from None
        self._delivered([FileFacts("-", facts.size_bytes, facts.sha256)], start)
        return facts.size_bytes

    def _lost_external_data(self) -> bool:
        """Whether the input had external data, and passes replaced every weight that was there."""
        references = filter(None, map(reference_of, tensors(self._model.proto)))
        left = any(reference.origin == "external" for reference in references)
        return len(self.report.input.files) > 1 and not left

    def _check(self, path: Path) -> None:
        self._progress("checking the written file", 0.95)
        check = self._judge.check_file(path, self._model.proto)
        self.report.delivery = check
        if not check.ok:
            message = f"the written file failed its check and was removed: {check.reason}"
            raise DifferenceError(message, self.report)

    def _delivered(self, files: list[FileFacts], start: float) -> None:
        self._progress("done", 1.0)
        self.report.output = replace(self.report.output, files=tuple(files))
        self.report.total_s += time.perf_counter() - start

    def close(self) -> None:
        """End the process that ONNX Runtime runs in."""
        self._judge.close()


def compare(
    original: Source,
    candidate: Source,
    *,
    providers: Sequence[str] = ("cpu",),
    inputs: Inputs | None = None,
    bind: Mapping[str, int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    freeze_initializers: bool = False,
    time_limit_s: float | None = 300.0,
    memory_limit_mib: int | None = None,
    threads: int | None = None,
    allow_external: Sequence[str | os.PathLike[str]] = (),
) -> Check:
    """Say whether `candidate` may stand in for `original`; arguments as for `optimize`.

    Raises `ModelError` where one of them is no usable model, `RuntimeUnavailableError` where
    ONNX Runtime cannot run the original, `UsageError` where the inputs do not fit it.
    """
    allowed = [Path(folder) for folder in allow_external]
    one = Model.load(original, allow_external=allowed)
    two = Model.load(candidate, allow_external=allowed)
    if freeze_initializers:
        one.freeze_initializers()
    options = _options(
        providers, inputs, bind, rtol, atol, seed, time_limit_s, memory_limit_mib, threads
    )
    with Judge(one.proto, options) as judge:
        judge.prepare()
        return judge.check(two.proto)


def _pipeline_name(passes: Passes) -> str | None:
    if passes is None:
        return "default"
    return passes if isinstance(passes, str) and passes in PIPELINES else None


def _options(
    providers: Sequence[str],
    inputs: Inputs | None,
    bind: Mapping[str, int] | None,
    rtol: float | None,
    atol: float | None,
    seed: int,
    time_limit_s: float | None,
    memory_limit_mib: int | None,
    threads: int | None,
) -> ValidationOptions:
    return ValidationOptions(
        providers=tuple(dict.fromkeys(providers)),
        seed=seed,
        bind=dict(bind or {}),
        inputs=Path(inputs) if isinstance(inputs, (str, os.PathLike)) else inputs,
        rtol=rtol,
        atol=atol,
        time_limit_s=time_limit_s,
        memory_limit_mib=memory_limit_mib,
        threads=threads,
    )


def _spelled(step: Pass) -> str:
    """Write a pass as `--passes` takes it."""
    options = ";".join(f"{key}={value}" for key, value in asdict(step).items())
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


def _dense_nodes(proto: onnx.ModelProto, passes: Sequence[PassReport]) -> list[DenseNode]:
    reasons = {refusal.node: refusal.reason for entry in passes for refusal in entry.refusals}
    found = []
    for node in nodes_of(proto):
        name = operator_name(node)
        if name in _DENSE:
            where = f"'{node.name}'" if node.name else f"of '{node.output[0]}'"
            label = f"{node.op_type} {where}"
            found.append(DenseNode(label, name, reasons.get(label, "no pass takes this form")))
    return found


def _warnings(pipeline: Pipeline) -> list[str]:
    found = []
    if not pipeline.settled:
        found.append(f"the passes still made work for each other after {MAX_ROUNDS} rounds")
    if pipeline.judge.not_run:
        found.append(f"each rewrite was run on its own, not the model: {pipeline.judge.not_run}")
    checks = [entry.check for entry in pipeline.reports if entry.check is not None]
    if random := {name for check in checks for name in check.random_outputs}:
        names = ", ".join(f"'{name}'" for name in sorted(random))
        found.append(f"not compared, since they differ between two runs of the original: {names}")
    return found


def _of_frozen(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"what had a default is no input any more, as was asked: {len(names)} of them, {shown}"


def _measure(report: Report, judge: Judge, stages: list[tuple[str, onnx.ModelProto]]) -> None:
    """Time the result against the original; where it is slower, find the pass that did it."""
    report.latency = judge.latency(stages[0][1], stages[-1][1])
    if not report.slower:
        return
    worst = 1.0
    for (_, before), (name, after) in itertools.pairwise(stages):
        step = judge.latency(before, after)
        if step is not None and step.slower and step.ratio > worst:
            worst, report.slower_because_of = step.ratio, name
