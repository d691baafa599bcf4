"""`graphpass inspect`: what a model holds, and what passes would make of it."""

from __future__ import annotations

from pathlib import Path

import click

from graphpass.commands import completion, streams
from graphpass.commands.options import PASSES, TIMEOUT, bindings, which


@click.command()
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

    source = streams.source(model)
    steps = without(which(passes, pipeline), skip)
    loaded = Model.load(source, allow_external=allow_external, time_limit_s=time_limit_s)
    with blamed(loaded.proto):
        if cost:
            inspection.show_cost(streams.console(), loaded, node, bind)
            return
        found = inspection.inspect(loaded, steps, time_limit_s)
    inspection.show(streams.console(), loaded, found, node)
