"""`graphpass compare`: the validator alone, on two models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphpass.commands import completion, streams
from graphpass.commands.options import FREEZE, VALIDATION
from graphpass.errors import RuntimeUnavailableError, UsageError

if TYPE_CHECKING:
    from graphpass.report.data import Check


@click.command()
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
    streams.get_ready(runs_models=True)
    from graphpass.run import comparison

    if report is not None:
        from graphpass.run import recorded as recheck

        recorded = recheck.settings(report, Path(original), Path(candidate))
        options |= {name: recorded[name] for name in recorded if not _is_given(name)}

    with streams.progress(quiet) as progress:
        progress("comparing", 0.1)
        check = comparison.compare(streams.source(original), streams.source(candidate), **options)
    if check.status == "not comparable":
        raise RuntimeUnavailableError(f"nothing can be compared: {check.reason}")
    if not quiet:
        _print_check(check, verbose)
    return 0 if check.ok else 1


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _print_check(check: Check, verbose: bool) -> None:
    from graphpass.report.terminal import print_table, say
    from graphpass.validate.verdict import SILENT

    console = streams.console()
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
