"""Passes with choices that are measured: run anew until the whole model is no slower by them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import onnx

from graphpass.errors import RuleError
from graphpass.report.data import LeftOut, Report
from graphpass.rewrite.choice import Chooser, Nothing
from graphpass.rewrite.driver import apply
from graphpass.rewrite.rule import Pass
from graphpass.run.judge import Judge
from graphpass.run.pipeline import Pipeline
from graphpass.run.tuning import Recorded, Tuner

# runs passes over the original, validates what they did and notes it in the report
Attempt = Callable[[Sequence[Pass], Chooser], Pipeline]
Stages = Sequence[tuple[str, onnx.ModelProto]]

# what a pass is left out for, where it is more than the noise
_SLOWER_RATIO = 1.02
_NARROWING_S = 120.0  # for finding out which choices make the whole model slower


def as_recorded(
    attempt: Attempt, steps: Sequence[Pass], report: Report, recorded: Recorded
) -> Pipeline:
    """Run passes with the choices of a report. Raises `UsageError` where it does not fit."""
    recorded.require_passes(report.settings["passes"])
    report.tuning = recorded.tuning
    left_out = {entry.step for entry in recorded.tuning.left_out}
    pipeline = attempt([step for step in steps if step.name not in left_out], recorded)
    recorded.end(pipeline.reports)
    return pipeline


def tuned(attempt: Attempt, steps: Sequence[Pass], report: Report, tuner: Tuner) -> Pipeline:
    """Run passes with the choices that pay; anew, without what makes the whole model slower."""
    report.tuning = tuner.tuning
    while True:
        tuner.begin()
        pipeline = attempt(steps, tuner)
        tuner.end(pipeline.reports)
        culprit = _what_slows(pipeline, tuner, steps)
        if culprit is None:
            report.warnings.extend(filter(None, [tuner.trouble]))
            return pipeline
        if isinstance(culprit, LeftOut):
            tuner.tuning.left_out.append(culprit)
            steps = [step for step in steps if step.name != culprit.step]
        elif tuner.is_narrowed or not _narrow(pipeline, tuner, steps):
            tuner.give_up(culprit)
        pipeline.model.restore(pipeline.stages[0][1])


def _narrow(pipeline: Pipeline, tuner: Tuner, steps: Sequence[Pass]) -> bool:
    """Keep those choices that the whole model is no slower by, one kind of site after another.

    The most promising first, each on top of those that are kept already. False: none is.
    """
    best, kinds = _made(pipeline, steps, Nothing()), tuner.promising()
    kept: set[str] = set()
    start = time.perf_counter()
    for kind in kinds:
        if best is None or time.perf_counter() - start > _NARROWING_S:
            break
        pipeline.progress("measuring the whole model", 1.0)
        tuner.keep_only(kept | {kind})
        candidate = _made(pipeline, steps, tuner)
        found = None if candidate is None else pipeline.judge.latency(best, candidate)
        if found is not None and found.ratio <= 1 and not found.slower:
            kept.add(kind)
            best = candidate
    tuner.keep_only(kept)
    return bool(kept)


def _what_slows(pipeline: Pipeline, tuner: Tuner, steps: Sequence[Pass]) -> LeftOut | str | None:
    """Return the pass that the whole model is slower by, or say that it is the choices; or None.

    What pays at its site may cost more elsewhere: other layouts, other fusions.
    """
    pipeline.progress("measuring the whole model", 1.0)
    judge, stages = pipeline.judge, pipeline.stages
    if len(stages) < 2:
        return None
    original, result = stages[0][1], stages[-1][1]
    plain = _made(pipeline, steps, Nothing()) if tuner.has_kept else None
    if plain is not None:
        tuner.tuning.whole = whole = judge.latency(plain, result)
        if whole is not None and whole.slower:
            return (
                f"it pays alone, but the whole model takes {whole.ratio:.2f} times as long with all"
                " that does"
            )
    against = judge.latency(original, result)
    if against is None or not against.slower or against.ratio < _SLOWER_RATIO:
        return None
    name, ratio = slowest(judge, stages)
    needed = {step.name for step in steps if step.required or step.changes_interface}
    return LeftOut(name, ratio) if name and name not in needed else None


def _made(pipeline: Pipeline, steps: Sequence[Pass], chooser: Chooser) -> onnx.ModelProto | None:
    """Return what the passes make with these choices, for timing; None where one of them fails."""
    made = pipeline.model.copy()
    made.restore(pipeline.stages[0][1])
    limit_s = pipeline.judge.options.time_limit_s
    try:
        with pipeline.judge.evaluating():
            for step in steps:
                apply(step, made, time_limit_s=limit_s, chooser=chooser)
    except RuleError:
        return None
    return made.proto


def slowest(judge: Judge, stages: Stages) -> tuple[str, float]:
    """Return the pass that made the model slower, and by how much; "" where none did."""
    worst, name = 1.0, ""
    for (_, before), (step, after) in itertools.pairwise(stages):
        found = judge.latency(before, after)
        if found is not None and found.slower and found.ratio > worst:
            worst, name = found.ratio, step
    return name, worst
