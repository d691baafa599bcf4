"""`graphpass diff`: two models side by side, as a page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The page to write, .html.",
)
def diff(before: Path, after: Path, output: Path) -> int:
    """Draw two models side by side on one HTML page, with what is in one of them only marked.

    Nothing is run: `graphpass compare` says whether they compute the same.
    """
    from graphpass.errors import ModelError, OutputError, UsageError
    from graphpass.ir.admission import require_admissible
    from graphpass.report.page.page import diff_page
    from graphpass.run.blame import blamed
    from graphpass.storage.text import write_text
    from graphpass.storage.wire import read_skeleton

    if output.suffix.lower() != ".html":
        raise UsageError(f"{output} does not end in .html")
    if not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: there is no folder {output.parent}")
    models = (read_skeleton(before), read_skeleton(after))
    for path, model in zip((before, after), models, strict=True):
        try:
            require_admissible(model)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
    with blamed(models[0]), blamed(models[1]):
        page = diff_page(models, (before, after))
    write_text(output, page)
    return 0
