"""The command line, thin over `graphpass.run`; slow imports happen in commands.

Exit codes: 0 written and valid; 1 a difference was found; 2 usage; 3 the input is no usable model;
4 ONNX Runtime cannot run it, so that nothing could be validated; 5 the output could not be
written; 70 a bug; 71 the process that did it died twice; 129, 130, 143 ended by HUP, INT, TERM.
Of many models, the highest of theirs.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphpass import interrupt
from graphpass.commands import completion
from graphpass.commands.check import check
from graphpass.commands.config import CONFIG, Configured
from graphpass.commands.dense import convolutionalize, heatmap
from graphpass.commands.diff import diff
from graphpass.commands.many import MANY
from graphpass.commands.options import (
    FREEZE,
    MOST_THREADS,
    PASSES,
    TARGET,
    TIMEOUT,
    VALIDATION,
    beside,
    bindings,
    which,
)
from graphpass.commands.proof import bisect
from graphpass.errors import (
    BUG_EXIT_CODE,
    DifferenceError,
    GraphpassError,
    ModelError,
    OutputError,
    RuntimeUnavailableError,
    UsageError,
    bug,
)
from graphpass.report.formats import SUFFIXES
from graphpass.resources import Closing
from graphpass.storage import remote
from graphpass.wording import visible, visible_lines

if TYPE_CHECKING:
    import onnx
    from rich.console import Console

    from graphpass.report.data import Check, Report
    from graphpass.storage.text import PendingText

    Skeletons = tuple[onnx.ModelProto, onnx.ModelProto]

_INTERRUPTED_EXIT_CODE = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    # numpy's threads for linear algebra take longer to start than what passes have for them
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # nor has the garbage collector anything to find in what passes build, or when all ends
    gc.set_threshold(1_000_000)
    atexit.register(gc.freeze)
    interrupt.end_on_signals(*interrupt.ENDING_SIGNALS)
    _without_standard_output[:] = sorted({1, 2} & interrupt.with_standard_streams())
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    code = run(arguments)
    sys.exit(_flushed(code))


_without_standard_output: list[int] = []  # descriptors that were closed when we began


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Errors become one sentence on stderr."""
    try:
        code = commands.main(arguments, prog_name="graphpass", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", _INTERRUPTED_EXIT_CODE)
    except SystemExit as error:  # a signal, a pipe that nobody reads any more, or 0: a completion
        return error.code if isinstance(error.code, int) else 1
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return error.exit_code
        return _fail(error.format_message(), error.exit_code)
    except GraphpassError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        if os.environ.get("GRAPHPASS_DEBUG"):
            raise
        return _fail(*_unforeseen(error))
    return code if isinstance(code, int) else 0


def _unforeseen(error: Exception) -> tuple[str, int]:
    """Return a sentence and an exit code for what the system, or a bug, came up with."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"the system refuses: {error.strerror or error}{where}", OutputError.exit_code
    if isinstance(error, MemoryError):
        return "there is not enough memory for this model", ModelError.exit_code
    if isinstance(error, RecursionError):
        return "the model is nested too deeply", ModelError.exit_code
    return bug(error), BUG_EXIT_CODE


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody can be told where stderr is full or closed
        click.echo(f"graphpass: {visible(message)}", err=True)
    return code


def _flushed(code: int) -> int:
    """Return the exit code once all is written that was printed, another where that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or 1
        except OSError as error:
            if not code:
                code = _fail(f"cannot print: {error.strerror or error}", OutputError.exit_code)
        else:
            continue
        # or the interpreter tries again when it ends, and has its own words for it
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="graphpass", message="%(prog)s %(version)s")
def commands() -> None:
    """Rewrite ONNX models; each rewrite is checked in ONNX Runtime, nothing else is touched.

    Exit codes: 0 written and valid; 1 a difference was found; 2 usage; 3 the input is no usable
    model; 4 ONNX Runtime cannot run the model, so that nothing could be validated; 5 the output
    could not be written; 70 this is a bug; 129, 130, 143 ended by the signal HUP, INT, TERM. Of
    many models (--out-dir), the highest of theirs; 71 where the process that did one died twice.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the folder that graphpass was started in is gone") from None


def _reports(
    context: click.Context, parameter: click.Parameter, given: Iterable[Path]
) -> tuple[Path, ...]:
    for path in given:
        if path.suffix.lower() not in SUFFIXES:
            raise click.BadParameter(f"'{path}' ends in none of {', '.join(SUFFIXES)}")
    return tuple(given)


# -------------------------------------------------------------------------------- optimize


@commands.command(cls=Configured)
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
@click.option("--in-place", is_flag=True, help="Replace the input, in one step.")
@MANY
@PASSES
@TARGET
@VALIDATION
@click.option("--no-validate", is_flag=True, help="Do not run the model at all.")
@click.option("--strict", is_flag=True, help="Stop where something would have to be undone.")
@click.option(
    "--max-rewrites",
    type=click.IntRange(min=0),
    metavar="N",
    help="Stop after so many.",
)
@FREEZE
@click.option(
    "--strip-metadata",
    is_flag=True,
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
@click.option("--no-latency", is_flag=True, help="Do not measure how long the model takes.")
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=MOST_THREADS),
    metavar="N",
    help="Of ONNX Runtime.  [default: all CPUs, or their share; 1 on a cluster]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every rewrite and refusal.")
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
    **options: Any,
) -> int:
    """Rewrite MODEL and write the result; `-` is standard input or output.

    With --out-dir, any number of files, folders (every .onnx file below them) and URLs: what
    fails stops nothing else, and a run that is started again does only what is left to do.
    """
    options["validate"] = not no_validate
    options["latency"] = not no_latency and not (quiet and not reports)
    saving = {
        "external_data": external_data,
        "external_data_size_threshold": external_data_size_threshold,
    }
    if out_dir is not None:
        if output is not None or in_place:
            raise UsageError("give either --out-dir or one of --output and --in-place")
        from graphpass.commands import many

        options |= {"jobs": jobs, "scheduler": scheduler, "force": force, **saving}
        options |= {"reproducers": reproducers, "quiet": quiet, "verbose": verbose}
        chosen = which(passes, pipeline, profile)
        return many.optimize(models, out_dir, chosen, reports, _console(), **options)
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
    _get_ready(runs_models=options["validate"])
    from graphpass.run import optimization

    source = _source(model)
    try:
        with _progress(quiet) as progress:
            options["sha256"] = bool(reports)  # nobody else would see it
            result = optimization.optimize(
                source, which(passes, pipeline, profile), progress=progress, **options
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
    if not quiet:
        from graphpass.report.terminal import terminal

        title = f"{'standard input' if model == '-' else model} → {target or 'standard output'}"
        console = _console(stderr=target is None)
        terminal(result.report, console, title=title, verbose=verbose)
        if profile is not None and isinstance(target, Path):
            from graphpass.commands.check import fit_of, show

            console.print()
            show(fit_of(target, profile, options["bind"]), console, verbose=verbose)
    return 0


def _get_ready(*, runs_models: bool) -> None:
    """Do what is only possible or worthwhile before this process has grown."""
    from graphpass.validate.process import forked

    forked.keep_freed_memory()
    if runs_models:
        forked.start()


def _source(text: str) -> bytes | Path | str:
    """Return what a model is read from; `-` is standard input."""
    return sys.stdin.buffer.read() if text == "-" else _place(text)


def _place(text: str) -> Path | str:
    """Return a path, or a URL as it is."""
    return text if remote.is_url(text) else remote.local(text)


def _target(model: str, output: str | None, in_place: bool) -> Path | str | None:
    """Return the file or URL to write, None for standard output."""
    if in_place and output is not None:
        raise UsageError("give either --output or --in-place")
    if in_place and model == "-":
        raise UsageError("standard input cannot be replaced in place")
    if output == "-" or (output is None and model == "-"):
        if 1 in _without_standard_output:
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


def _console(*, stderr: bool = False) -> Console:
    """Return where human output goes: as wide as it needs to be where nobody looks at it."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 200, highlight=False)


def _progress(quiet: bool) -> Any:
    """Return a bar on stderr, or nothing where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        return contextlib.nullcontext(lambda text, done: None)
    from graphpass.commands.progress import Bar

    return Bar()


# --------------------------------------------------------------------- compare and inspect


@commands.command()
@click.argument("original", shell_complete=completion.files)
@click.argument("candidate", shell_complete=completion.files)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check these very files as the run did that wrote this .json.",
)
@VALIDATION
@FREEZE
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every feed and output.")
def compare(
    original: str,
    candidate: str,
    report: Path | None,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Say whether CANDIDATE computes what ORIGINAL does; exit with 1 if it does not.

    One of them may be `-`, standard input: graphpass optimize A -o - | graphpass compare A -

    With --report, both files must be those that the report names by their SHA-256, and inputs
    and tolerances are those of its run; what is given on the command line goes before.
    """
    if original == candidate == "-":
        raise UsageError("standard input is one model, not two")
    if report is not None and "-" in (original, candidate):
        raise UsageError("--report names files: standard input is none of them")
    _get_ready(runs_models=True)
    from graphpass.run import comparison

    if report is not None:
        from graphpass.run import recorded as recheck

        recorded = recheck.settings(report, Path(original), Path(candidate))
        options |= {name: recorded[name] for name in recorded if not _is_given(name)}

    with _progress(quiet) as progress:
        progress("comparing", 0.1)
        check = comparison.compare(_source(original), _source(candidate), **options)
    if check.status == "not comparable":
        return _fail(f"nothing can be compared: {check.reason}", 4)
    if not quiet:
        _print_check(check, verbose)
    return 0 if check.ok else 1


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _print_check(check: Check, verbose: bool) -> None:
    from graphpass.report.terminal import print_table, say
    from graphpass.validate.verdict import SILENT

    console = _console()
    say(console, f"{check.status}: {check.reason}", style="green" if check.ok else "red")
    for name in check.random_outputs:
        say(console, f"not compared, since it differs between two runs: '{name}'", style="yellow")
    for name in check.silent_outputs:
        say(console, f"not compared, since it {SILENT}: '{name}'", style="yellow")
    shown = check.comparisons if verbose else [c for c in check.comparisons if not c.ok]
    if shown:
        rows = (
            (c.name, c.feed, c.provider, f"{c.error:.2g}", f"{c.tolerance:.2g}", c.reason or "ok")
            for c in shown
        )
        header = ("output", "feed", "provider", "error", "tolerance", "")
        print_table(console, header, rows, right=(3, 4))


@commands.command()
@click.argument("model", shell_complete=completion.files)
@click.argument("node", required=False)
@PASSES
@click.option("--allow-external", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--cost", is_flag=True, help="List what each node costs instead.")
@click.option(
    "--bind",
    multiple=True,
    callback=bindings,
    metavar="NAME=NUMBER",
    help="Size of a symbolic dimension for --cost. May be repeated.",
)
@TIMEOUT
def inspect(
    model: str,
    node: str | None,
    passes: str | None,
    pipeline: str | None,
    skip: tuple[str, ...],
    allow_external: tuple[Path, ...],
    cost: bool,
    bind: dict[str, int],
    time_limit_s: float,
) -> None:
    """Show what MODEL holds, what passes would rewrite in it, and why not elsewhere.

    With NODE, a node or tensor by name, only what concerns that one.
    """
    from graphpass.ir.model import Model
    from graphpass.rewrite.registry import without
    from graphpass.run import inspection
    from graphpass.run.blame import blamed

    source = _source(model)
    steps = without(which(passes, pipeline), skip)
    loaded = Model.load(source, allow_external=allow_external, time_limit_s=time_limit_s)
    with blamed(loaded.proto):
        if cost:
            inspection.show_cost(_console(), loaded, node, bind)
            return
        found = inspection.inspect(loaded, steps, time_limit_s)
    inspection.show(_console(), loaded, found, node)


# ------------------------------------------------------------------- passes and their tests


@commands.command()
@click.argument("name", required=False, shell_complete=completion.passes)
def passes(name: str | None) -> None:
    """List the passes there are, or show one: its laws, its options, an example."""
    from graphpass.commands import catalogue

    catalogue.show(_console(), name)


@commands.command()
@click.argument("passes", nargs=-1, metavar="[PASS]…")
@click.option(
    "--fixtures",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Default: ./fixtures, or those of graphpass itself.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print the note of each fixture as well.")
def test(passes: tuple[str, ...], fixtures: Path | None, verbose: bool) -> int:
    """Run passes against fixtures: small models in text that say what must come of them."""
    from graphpass.testing import fixture

    failed = total = 0
    for case in fixture.find(fixtures, passes):
        total += 1
        problem = fixture.problem(case)
        failed += problem is not None
        verdict = f"{'FAIL' if problem else 'ok  '} {case.name}: {case.expectation}"
        click.echo(visible(verdict))
        if verbose and case.note:
            click.echo(f"       {visible_lines(case.note)}")
        if problem:
            click.echo("       " + visible_lines(problem).replace("\n", "\n       "))
    if not total:
        raise UsageError(f"there is no fixture for {', '.join(passes) or 'any pass'}")
    click.echo(f"{total - failed} of {total} as expected")
    return 1 if failed else 0


commands.add_command(convolutionalize)
commands.add_command(heatmap)
commands.add_command(bisect)
commands.add_command(diff)
commands.add_command(check)

if __name__ == "__main__":
    main()
