"""A report on a terminal: the verdict first, then the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graphpass.report.data import Report
from graphpass.report.rows import (
    CHOICES,
    OVERVIEW,
    PASSES,
    Row,
    choices,
    exactly,
    overview,
    passes,
    proven,
    refusals,
    remarks,
)
from graphpass.report.summary import verdict
from graphpass.wording import visible, visible_lines

if TYPE_CHECKING:
    from rich.console import Console


def terminal(report: Report, console: Console, *, title: str = "", verbose: bool = False) -> None:
    """Print a report; `verbose`: with every rewrite, every pass, and what was refused."""
    if title:
        say(console, title)
    say(console, verdict(report), style="bold")
    if any(entry.outcome == "kept" for entry in report.passes):
        console.print()
        print_table(console, OVERVIEW, overview(report), right=(1, 2))
    rows = list(passes(report, everything=verbose))
    if rows:
        console.print()
        print_table(console, PASSES, iter(rows), right=(1, 2, 3, 4))
    chosen = list(choices(report, everything=verbose))
    if chosen:
        console.print()
        print_table(console, CHOICES, iter(chosen), right=(2, 3))
    told = [*_details(report), ""] if verbose else []
    told += remarks(report, everything=verbose)
    if told:
        console.print()
    for line in told:
        say(console, line, style=None if verbose else "yellow")


def _details(report: Report) -> Iterator[str]:
    for entry in report.passes:
        for rewrite in entry.rewrites:
            after = ", ".join(rewrite.after) or "nothing"
            error, bound = proven(rewrite.proof)
            proof = f"{error}, allowed {bound}" if bound not in ("", "equal") else error
            if rewrite.proof is not None and rewrite.proof.exact:
                proof += f"; exactly: {rewrite.proof.exact}"
            nodes = f"{', '.join(rewrite.before)} → {after}"
            yield f"{entry.name}: {rewrite.number}. {rewrite.rule}: {nodes} ({proof})"
        for note in entry.notes:
            yield f"{entry.name}: {note}"
    if told := exactly(report):
        yield told
    for group in refusals(report):
        yield f"refused: {group.told}"


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print lines as they are: names in a model may look like markup.

    They are broken where a terminal ends, but not in a pipe, where programs read them.
    """
    console.print(
        visible_lines(text),
        style=style,
        markup=False,
        highlight=False,
        soft_wrap=not console.is_terminal,
        emoji=False,
    )


def print_table(
    console: Console, header: Row, rows: Iterator[Row], *, right: Sequence[int] = ()
) -> None:
    """Print columns; those in `right` hold numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)
