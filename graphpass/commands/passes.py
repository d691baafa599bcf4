"""`graphpass passes` and `graphpass test`: the passes there are, and passes against fixtures."""

from __future__ import annotations

from pathlib import Path

import click

from graphpass.commands import completion, streams
from graphpass.errors import UsageError
from graphpass.wording import visible, visible_lines


@click.command()
@click.argument("name", required=False, shell_complete=completion.passes)
def passes(name: str | None) -> None:
    """List the passes there are, or show one: its laws, its options, an example."""
    from graphpass.commands import catalogue

    catalogue.show(streams.console(), name)


@click.command()
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
