"""`graphpass extract`: a part of a model, in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from graphpass.commands import completion, streams
from graphpass.commands.options import TIMEOUT, beside, bindings
from graphpass.errors import OutputError, UsageError
from graphpass.storage import remote


@click.command()
@click.argument("model", shell_complete=completion.files)
@click.option("--inputs", default="", metavar="A,B", help="Tensors that it begins with.")
@click.option("--outputs", default="", metavar="C,D", help="Tensors that it ends with.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=completion.files,
    help="Default: MODEL.part.onnx beside it.",
)
@click.option(
    "--bind",
    multiple=True,
    callback=bindings,
    metavar="NAME=NUMBER",
    help="Size of a symbolic dimension, for the check. May be repeated.",
)
@click.option("--no-validate", is_flag=True, help="Do not run the model at all.")
@click.option("--allow-external", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER")
@TIMEOUT
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def extract(
    model: str,
    inputs: str,
    outputs: str,
    output: str | None,
    bind: Mapping[str, int],
    no_validate: bool,
    allow_external: tuple[Path, ...],
    time_limit_s: float,
    quiet: bool,
) -> None:
    """Write a part of MODEL: the nodes from some of its tensors to others, and their weights.

    Without --inputs it begins where the model does, without --outputs it ends where the model
    does. Both are run: the part must give what the model computes there.
    """
    if not (inputs or outputs):
        raise UsageError("give --inputs, --outputs or both: names of tensors")
    if output is None and (model == "-" or remote.is_url(model)):
        what = "standard input" if model == "-" else "what is at a URL"
        raise UsageError(f"{what} has no folder for a result: give -o")
    streams.get_ready(runs_models=not no_validate)
    from graphpass.rewrite.registry import make
    from graphpass.run import optimization

    named = {"inputs": inputs, "outputs": outputs}
    target = streams.place(output) if output else beside(remote.local(model), ".part.onnx")
    if isinstance(target, Path) and not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")
    if isinstance(target, Path) and target.resolve() == Path(model).resolve():
        raise UsageError(f"{target} is the input: give another -o")
    with optimization.optimize(
        streams.source(model),
        make("extract", named),
        bind=bind,
        validate=not no_validate,
        allow_external=allow_external,
        time_limit_s=time_limit_s,
        sha256=False,
    ) as result:
        if not result.changed:
            raise UsageError("that is the whole model")
        result.save(target)
    if quiet:
        return
    from graphpass.report.terminal import say

    (entry,) = result.report.passes
    checked = entry.check.reason if entry.check is not None else "it was not run"
    say(streams.console(), f"{model} → {target}")
    say(streams.console(), f"{'; '.join(entry.notes)}: {checked}")
