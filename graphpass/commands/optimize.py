"""`graphpass optimize`: a model goes in, a better one and reports come out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphpass.commands import completion, streams
from graphpass.commands.config import CONFIG, Configured, for_model
from graphpass.commands.many import MANY
from graphpass.commands.options import (
    FREEZE,
    MOST_THREADS,
    NODES,
    PASSES,
    SIZES,
    TARGET,
    TUNE,
    VALIDATION,
    ahead,
    beside,
    flag,
    which,
)
from graphpass.errors import DifferenceError, OutputError, RuntimeUnavailableError, UsageError
from graphpass.report.formats import SUFFIXES
from graphpass.resources import Closing
from graphpass.storage import remote
from graphpass.wording import visible

if TYPE_CHECKING:
    import onnx

    from graphpass.report.data import Report
    from graphpass.storage.text import PendingText

    Skeletons = tuple[onnx.ModelProto, onnx.ModelProto]


# parameters that hold for all models of a run, and those that only a single one has
_OF_ALL = ("jobs", "scheduler", "force", "reports", "reproducers", "quiet", "verbose")
_OF_A_SINGLE_ONE = ("models", "output", "in_place", "out_dir")


def _reports(
    context: click.Context, parameter: click.Parameter, given: Iterable[Path]
) -> tuple[Path, ...]:
    for path in given:
        if path.suffix.lower() not in SUFFIXES:
            raise click.BadParameter(f"'{path}' ends in none of {', '.join(SUFFIXES)}")
    return tuple(given)


@click.command(cls=Configured)
@click.argument(
    "models", nargs=-1, required=True, metavar="MODEL…", shell_complete=completion.files
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=completion.files,
    help="Default: MODEL.opt.onnx beside it.",
)
@flag("--in-place", help="Replace the input, in one step.")
@MANY
@PASSES
@NODES
@TARGET
@TUNE
@SIZES
@VALIDATION
@flag("--no-validate", help="Do not run the model at all.")
@flag("--strict", help="Stop where something would have to be undone.")
@click.option(
    "--max-rewrites",
    type=click.IntRange(min=0),
    metavar="N",
    help="Stop after so many.",
)
@FREEZE
@click.option(
    "--fold-budget",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="What folding one chain of constants may add to the file, beyond what clean-up has saved"
    " elsewhere.  [default: 0]",
)
@flag(
    "--strip-metadata",
    help="Leave out what exporters note at nodes and values: stack traces, scopes.",
)
@click.option(
    "--external-data",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Where weights go; auto: as in the input.",
)
@click.option(
    "--external-data-size-threshold",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="Smaller weights stay in the model file.  [default: 1024; auto: as in the input]",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=_reports,
    metavar="FILE",
    help="Write what was done as .html (a page), .json, .md or .xml (JUnit). May be repeated.",
)
@click.option(
    "--reproducers",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write two small models, inputs and a failing test for each rewrite that is undone.",
)
@flag("--no-latency", help="Do not measure how long the model takes.")
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=MOST_THREADS),
    metavar="N",
    help="Of ONNX Runtime.  [default: all CPUs, or their share; 1 on a cluster]",
)
@flag("-q", "--quiet", help="Print errors only.")
@flag(
    "-v",
    "--verbose",
    help="Print every rewrite and refusal, and on stderr what is being done.",
)
@CONFIG
def optimize(
    models: tuple[str, ...],
    output: str | None,
    in_place: bool,
    passes: str | None,
    pipeline: str | None,
    profile: str | None,
    no_validate: bool,
    external_data: Any,
    external_data_size_threshold: int | None,
    reports: tuple[Path, ...],
    reproducers: Path | None,
    no_latency: bool,
    quiet: bool,
    verbose: bool,
    out_dir: str | None,
    jobs: int | None,
    scheduler: str | None,
    force: bool,
    fold_budget: int | None,
    set_shape: tuple[str, ...],
    opset: int | None,
    no_tune_cache: bool,
    **options: Any,
) -> int:
    """Rewrite MODEL and write the result; `-` is standard input or output.

    With --out-dir, any number of files, folders (every .onnx file below them) and URLs: what
    fails stops nothing else, and a run that is started again does only what is left to do.
    """
    if verbose and not quiet:
        streams.show_logs()
    if out_dir is not None:
        if output is not None or in_place:
            raise UsageError("give either --out-dir or one of --output and --in-place")
        return _optimize_many(click.get_current_context(), models, out_dir)
    options["validate"] = not no_validate
    options["latency"] = not no_latency and not (quiet and not reports)
    options["tune_cache"] = not no_tune_cache
    tunes = options["tune"] or options["tune_from"] is not None
    saving = {
        "external_data": external_data,
        "external_data_size_threshold": external_data_size_threshold,
    }
    what = which(passes, pipeline, profile, fold_budget, tunes=tunes)
    chosen = ahead(what, set_shape, opset)
    for name, given in (("--jobs", jobs), ("--scheduler", scheduler), ("--force", force)):
        if given:
            raise UsageError(f"{name} is for many models and goes with --out-dir")
    if len(models) > 1:
        raise UsageError(f"{len(models)} models need --out-dir, a folder for their results")
    (model,) = models
    target = _target(model, output, in_place)
    _refuse_overwriting(model, target, reports)
    _require_places(reports, reproducers)
    if target is None and external_data == "always":
        raise UsageError("a model on standard output has no file beside it for its weights")
    streams.get_ready(runs_models=options["validate"])
    from graphpass.run import optimization

    source = streams.source(model)
    try:
        with streams.progress(quiet) as progress:
            options["sha256"] = bool(reports)  # nobody else would see it
            result = optimization.optimize(
                source,
                chosen,
                progress=progress,
                **options,
            )
            with result, _Reports(reports) as pending:
                if target is None:
                    result.write(sys.stdout.buffer)
                    pending.prepare(result.report, result.skeletons)
                else:
                    result.save(
                        target,
                        before=lambda report: pending.prepare(report, result.skeletons),
                        **saving,
                    )
                pending.deliver(result.report)
    except DifferenceError as error:
        if error.report is not None:
            _write_reports(error.report, reports)
            _write_reproducers(error.report, reproducers)
        raise
    except RuntimeUnavailableError as error:
        hint = "nothing was written (--no-validate writes without running the model)"
        raise RuntimeUnavailableError(f"{error}; {hint}") from error
    _write_reproducers(result.report, reproducers)
    if options["validate"] and (skipped := result.report.levels_not_run):
        click.echo(f"graphpass: {skipped}", err=True)
    if quiet:
        for sentence in result.report.not_done:
            click.echo(f"graphpass: {visible(sentence)}", err=True)
    else:
        from graphpass.report.terminal import terminal

        title = f"{'standard input' if model == '-' else model} → {target or 'standard output'}"
        console = streams.console(stderr=target is None)
        terminal(result.report, console, title=title, verbose=verbose)
        if profile is not None and isinstance(target, Path):
            from graphpass.commands.check import fit_of, show

            console.print()
            show(fit_of(target, profile, options["bind"]), console, verbose=verbose)
    return 0


def _optimize_many(context: click.Context, models: Sequence[str], out_dir: str) -> int:
    from graphpass.commands import many

    of_all = {name: context.params[name] for name in _OF_ALL}
    return many.optimize(
        models,
        out_dir,
        of_all.pop("reports"),
        streams.console(),
        **of_all,
        options=_of_one(context.params),
        per_model=lambda model: _of_one(for_model(context, model)),
    )


def _of_one(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `optimize_many` is told of one model, from the parameters of the command."""
    own = {k: v for k, v in params.items() if k not in _OF_ALL and k not in _OF_A_SINGLE_ONE}
    names = ("passes", "pipeline", "profile", "fold_budget")
    tunes = own["tune"] or own["tune_from"] is not None
    chosen = which(*(own.pop(name) for name in names), tunes=tunes)
    own["passes"] = ahead(chosen, own.pop("set_shape"), own.pop("opset"))
    own["tune_cache"] = not own.pop("no_tune_cache")
    own["validate"] = not own.pop("no_validate")
    quiet = params["quiet"] and not params["reports"]
    own["latency"] = not own.pop("no_latency") and not quiet
    return own


def _target(model: str, output: str | None, in_place: bool) -> Path | str | None:
    """Return the file or URL to write, None for standard output."""
    if in_place and output is not None:
        raise UsageError("give either --output or --in-place")
    if in_place and model == "-":
        raise UsageError("standard input cannot be replaced in place")
    if output == "-" or (output is None and model == "-"):
        if 1 in streams.closed:
            raise OutputError("cannot write the model: standard output is closed")
        if sys.stdout.isatty():
            raise UsageError("a model is not written to a terminal: give -o FILE")
        return None
    if remote.is_url(model) and output is None:
        what = "is not replaced in place" if in_place else "has no folder for a result"
        raise UsageError(f"what is at a URL {what}: give -o")
    if in_place:
        return Path(os.path.realpath(remote.local(model)))  # the file, where `model` is a link
    if output is not None and remote.is_url(output):
        if output == model:
            raise UsageError(f"{output} is the input: give another -o")
        return output
    target = (
        remote.local(output) if output is not None else beside(remote.local(model), ".opt.onnx")
    )
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")
    if model != "-" and _same_file(target, remote.local(model)):
        raise UsageError(f"{target} is the input: --in-place replaces it")
    return target


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _refuse_overwriting(model: str, target: Path | str | None, reports: Iterable[Path]) -> None:
    for report in reports:
        if any(_same_file(report, Path(used)) for used in (model, target) if used):
            raise UsageError(f"{report} is a model, not a place for a report")


def _require_places(reports: Iterable[Path], reproducers: Path | None) -> None:
    """Raise `OutputError` where it is known before the run that something cannot be written."""
    from graphpass.storage.text import require_folder, require_place

    for report in reports:
        require_place(report)
    if reproducers is not None:
        require_folder(reproducers)


def _write_reproducers(report: Report, folder: Path | None) -> None:
    if folder is not None:
        from graphpass.report.reproducer import write_all

        write_all(report, folder)


def _write_reports(report: Report, paths: Sequence[Path]) -> None:
    with _Reports(paths) as pending:
        pending.prepare(report)
        pending.deliver(report)


class _Reports(Closing):
    """Reports that are written before the model is, and get their names after it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._pending: list[PendingText] = []
        self._warnings = 0
        self._models: Skeletons | None = None

    def prepare(self, report: Report, models: Skeletons | None = None) -> None:
        """Write them, under other names; `models`: before and after. Raises `OutputError`."""
        if not self._paths:
            return
        from graphpass.report.formats import render
        from graphpass.storage.text import PendingText

        self._warnings, self._models = len(report.warnings), models
        for path in self._paths:
            self._pending.append(PendingText(path, render(report, path, models)))

    def deliver(self, report: Report) -> None:
        """Give them their names. Raises `OutputError`."""
        if len(report.warnings) > self._warnings:  # of what the delivery left behind
            self.close()
            self.prepare(report, self._models)
        for pending in self._pending:
            pending.commit()

    def close(self) -> None:
        """Remove what got no name."""
        for pending in self._pending:
            pending.close()
        self._pending.clear()
