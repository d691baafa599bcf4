"""`graphpass inspect`: what a model holds, and what passes would make of it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graphpass.commands import completion, streams
from graphpass.commands.options import NODES, PASSES, TIMEOUT, bindings, which
from graphpass.wording import json_text, visible


@click.command()
@click.argument("model", shell_complete=completion.files)
@click.argument("node", required=False)
@PASSES
@NODES
@click.option("--allow-external", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "--cost",
    is_flag=True,
    help="Only what each node gives, holds and costs: shape, type, parameters, multiply-adds.",
)
@click.option(
    "--bind",
    multiple=True,
    callback=bindings,
    metavar="NAME=NUMBER",
    help="Size of a symbolic dimension to count with. May be repeated.",
)
@TIMEOUT
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Print every rewrite and every refusal.")
def inspect(
    model: str,
    node: str | None,
    passes: str | None,
    pipeline: str | None,
    skip: tuple[str, ...],
    only_nodes: tuple[str, ...],
    exclude_nodes: tuple[str, ...],
    allow_external: tuple[Path, ...],
    cost: bool,
    bind: dict[str, int],
    time_limit_s: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what MODEL holds, what passes would rewrite in it, and why not elsewhere.

    With NODE, a node or tensor by name, only what concerns that one. Nothing is run or written.
    """
    from graphpass.commands import inspection_text
    from graphpass.ir.model import Model
    from graphpass.report import costs
    from graphpass.rewrite.registry import without
    from graphpass.rewrite.selection import Selection
    from graphpass.run import inspection
    from graphpass.run.blame import blamed
    from graphpass.validate.cost import natural_shapes

    source = streams.source(model)
    selection = Selection(only_nodes, exclude_nodes)
    steps = without(which(passes, pipeline), skip)
    loaded = Model.load(source, allow_external=allow_external, time_limit_s=time_limit_s)
    console = streams.console()
    with blamed(loaded.proto):
        for problem in selection.without_effect(loaded.proto):
            click.echo(visible(f"graphpass: {problem}"), err=True)
        left_out = selection.left_out(loaded.proto)
        found = [] if cost else inspection.inspect(loaded, steps, time_limit_s, left_out)
        if as_json:
            told = inspection.as_data(loaded, found, node, bind)
            click.echo(json_text(json.dumps(told, indent=2, ensure_ascii=False)))
        elif cost:
            names = None
            if node is not None:
                names = inspection.names_of(inspection.find_node(loaded, node))
            costs.show(console, loaded.proto, natural_shapes(loaded.proto, bind), names)
        else:
            if node is None:
                inspection_text.show_model(console, loaded, bind)
            inspection_text.show_found(console, loaded, found, node, verbose=verbose)
