"""`graphpass bisect`: thin, as all commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from graphpass.commands.options import PASSES, VALIDATION, FiniteRange, beside, which
from graphpass.wording import visible


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--check",
    metavar="'CMD {model}'",
    help="Your own check: exit code 0 is good.  [default: graphpass compare MODEL {model}]",
)
@click.option(
    "--tolerance",
    type=FiniteRange(min=0),
    help="Without --check: how far an output may be off, of its largest magnitude (as --rtol).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the reproducer goes.  [default: MODEL.bisect beside it]",
)
@click.option("--no-validate", is_flag=True, help="Also try what validation would undo.")
@PASSES
@VALIDATION
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def bisect(
    model: Path,
    check: str | None,
    tolerance: float | None,
    output: Path | None,
    no_validate: bool,
    passes: str | None,
    pipeline: str | None,
    skip: tuple[str, ...],
    providers: tuple[str, ...],
    allow_external: tuple[Path, ...],
    quiet: bool,
    **options: Any,
) -> int:
    """Find the first rewrite of MODEL after which a check fails; exit with 1 if there is one.

    Rewrites are numbered; the search needs about log2 of their number runs of the check. The
    folder gets the rewrite as two small models with inputs, a test where they differ
    (test_rewrite.py), the model without it and with it (good.onnx, bad.onnx), the check as a test
    that fails (test_check.py), and report.json.
    """
    from graphpass.report.reproducer import NOT_SHOWN
    from graphpass.rewrite.registry import without
    from graphpass.run import bisect as search
    from graphpass.validate.options import ValidationOptions

    validation = ValidationOptions.of(providers=providers, **options)
    # validation would undo with this tolerance what is to be found with it
    compared = validation if tolerance is None else replace(validation, rtol=tolerance)
    command = check or search.compare_command(model, compared)
    folder = output or beside(model, ".bisect")
    bisection = search.Bisection(
        model,
        without(which(passes, pipeline), skip),
        search.command_check(command, validation.time_limit_s),
        validation,
        validate=not no_validate,
        allow_external=allow_external,
        progress=lambda text, done: None if quiet else click.echo(visible(f"{text} …"), err=True),
    )
    found = bisection.run(folder)
    if found is None:
        if not quiet:
            click.echo("the check holds with all rewrites")
        return 0
    search.write_test(folder, command, found)
    if not quiet:
        rewrite = found.rewrite
        after = ", ".join(rewrite.after) or "nothing"
        for line in (
            f"the check fails from rewrite {rewrite.number} of {found.total} on:"
            f" {found.step}, {rewrite.rule} at '{rewrite.site}'",
            f"  law: {rewrite.law}",
            f"  {', '.join(rewrite.before)} → {after}",
            *([] if found.shown else [f"  {NOT_SHOWN}"]),
            f"  written to {folder} after {found.checks} checks",
        ):
            click.echo(visible(line))
    return 1
