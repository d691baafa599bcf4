"""`graphpass check`: what a target does not take of a model, node by node."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphpass.commands.completion import targets
from graphpass.commands.options import bindings

if TYPE_CHECKING:
    from rich.console import Console

    from graphpass.targets.fit import Fit, Misfit

_LISTED = 3  # nodes of one reason


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    metavar="NAME",
    shell_complete=targets,
    help="ane, ethos-u, onnxruntime-cpu, qnn-htp, rknn, tensorrt, tidl, vitis-dpu, or a .toml"
    " file of your own.",
)
@click.option(
    "--bind",
    multiple=True,
    callback=bindings,
    metavar="NAME=NUMBER",
    help="Size of a symbolic dimension, for counting multiply-adds. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Print every node.")
def check(model: Path, target: str, bind: Mapping[str, int], as_json: bool, verbose: bool) -> int:
    """Say which nodes of MODEL a target does not take: the limit, who gives it, what would help.

    Exits with 1 where a node is left that it does not take.
    """
    from rich.console import Console

    from graphpass.report.data import plain

    found = fit_of(model, target, bind)
    if as_json:
        click.echo(json.dumps(plain(found), indent=2, ensure_ascii=False))
    else:
        show(found, Console(highlight=False), verbose=verbose)
    return 1 if found.misfits else 0


def fit_of(model: Path, target: str, bind: Mapping[str, int]) -> Fit:
    """Hold a model against a target. Raises `UsageError` where there is no such target."""
    from graphpass.ir.model import Model
    from graphpass.run.blame import blamed
    from graphpass.targets.fit import fit
    from graphpass.targets.profile import load
    from graphpass.validate.cost import natural_shapes

    profile = load(target)
    loaded = Model.load(model)
    with blamed(loaded.proto):
        return fit(loaded, profile, natural_shapes(loaded.proto, bind))


def show(found: Fit, console: Console, *, verbose: bool = False) -> None:
    """Print what does not fit, by reason, and a total."""
    from graphpass.report.rows import amount
    from graphpass.report.terminal import say

    for misfits in _by_limit(found.misfits):
        first = misfits[0]
        say(console, f"{len(misfits)} × {first.reason}", style="bold")
        shown = misfits if verbose else misfits[:_LISTED]
        say(console, f"  {', '.join(m.node for m in shown)}" + (", …" if shown != misfits else ""))
        if first.advice:
            say(console, f"  {first.advice}")
        say(console, f"  {first.source.title}, {first.source.date}: {first.source.url}")
    total = f"{found.target} takes {found.nodes_on} of {found.nodes} nodes"
    if found.multiply_adds is not None and found.multiply_adds_on is not None:
        on, whole = amount(found.multiply_adds_on), amount(found.multiply_adds)
        total += f" and {on} of {whole} multiply-adds"
    pieces = "1 piece" if found.partitions == 1 else f"{found.partitions} pieces"
    say(console, f"{total}, in {pieces}")


def _by_limit(misfits: tuple[Misfit, ...]) -> Iterator[list[Misfit]]:
    """Group misfits of one limit and equal values, the most frequent first."""
    groups: dict[str, list[Misfit]] = {}
    for misfit in misfits:
        groups.setdefault(misfit.reason, []).append(misfit)
    yield from sorted(groups.values(), key=len, reverse=True)
