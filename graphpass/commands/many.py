"""`graphpass optimize --out-dir`: many models, thin as all commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphpass.commands.options import flag, options
from graphpass.errors import RuntimeUnavailableError, UsageError
from graphpass.many.watch import Watch
from graphpass.resources import Closing
from graphpass.wording import visible

if TYPE_CHECKING:
    from rich.console import Console

    from graphpass.many.report import ManyReport
    from graphpass.many.run import PerModel
    from graphpass.many.task import Outcome

MANY = options(
    click.option(
        "--out-dir",
        metavar="FOLDER",
        help="Write results there, under the names of their models: for any number of MODELs.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help="With --out-dir: so many models at a time, each with its share of the CPUs. "
        " [default: 1]",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="With --out-dir: do it on the Dask cluster at this address, as tcp://host:8786.",
    ),
    flag(
        "--force",
        help="With --out-dir: also what is done already and has not changed.",
    ),
)


def optimize(
    models: Sequence[str],
    out_dir: str,
    reports: Sequence[Path],
    console: Console,
    *,
    options: Mapping[str, Any],
    per_model: PerModel,
    jobs: int | None,
    scheduler: str | None,
    force: bool,
    quiet: bool,
    verbose: bool,
    reproducers: Path | None,
) -> int:
    """Do models, say how it goes, write reports over all; return the exit code.

    `options`: of `optimize_many`; `per_model`: those of a model, by what the user called it.
    """
    if jobs is not None and scheduler is not None:
        raise UsageError("give either --jobs or --scheduler, whose workers say how many at a time")
    from graphpass.many.report import render
    from graphpass.many.run import optimize_many
    from graphpass.storage.text import write_text

    if any(path.suffix.lower() == ".html" for path in reports):
        raise UsageError("an HTML page tells of one model: of many, give .json, .md or .xml")
    _require_folders(reports, out_dir)
    watched = Board() if sys.stderr.isatty() and not quiet else Lines(quiet)
    with _without_logs(), watched as board:
        report = optimize_many(
            models,
            out_dir,
            jobs=jobs or 1,
            scheduler=scheduler,
            resume=not force,
            reproducers=reproducers,
            watch=board,
            per_model=per_model,
            **options,
        )
    for path in reports:
        write_text(path, render(report, path.suffix.lower()))
    if not quiet:
        _show(report, console, verbose)
    return report.exit_code


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    """Keep libraries from logging what one sentence will say."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _require_folders(reports: Sequence[Path], out_dir: str) -> None:
    from graphpass.storage.text import require_place

    for report in reports:
        # the folder for results need not be there yet
        if report.parent.is_dir() or report.parent.resolve() != Path(out_dir).resolve():
            require_place(report)


def _show(report: ManyReport, console: Console, verbose: bool) -> None:
    from graphpass.many.report import HEADER, NUMBERS
    from graphpass.report.terminal import print_table, say

    for outcome in report.outcomes if verbose else ():
        if "terminal" in outcome.renderings:
            say(console, f"{outcome.model} → {outcome.output}", style="bold")
            say(console, outcome.renderings["terminal"])
    print_table(console, HEADER, report.rows(), right=NUMBERS)
    say(console, f"{report.summary()} → {report.folder}")


def _failure(outcome: Outcome) -> str:
    hint = ""
    if outcome.exit_code == RuntimeUnavailableError.exit_code:
        hint = "; nothing was written (--no-validate writes without running the model)"
    return f"graphpass: {outcome.model}: {outcome.message}{hint}"


class Lines(Watch, Closing):
    """A line on stderr for each model that is done, for logs; with `quiet`, for failures only."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._total = self._done = 0

    def planned(self, count: int) -> None:
        """Take note of how many models there are."""
        self._total = count

    def progress(self, model: str, text: str, done: float) -> None:
        """Show what concerns no single model; the rest is too much for a log."""
        if not model and not self._quiet:
            click.echo(visible(text), err=True)

    def finished(self, outcome: Outcome) -> None:
        """Say what came of a model."""
        self._done += 1
        if outcome.status == "failed":
            click.echo(visible(_failure(outcome)), err=True)
        elif not self._quiet:
            told = f"{outcome.model}: {outcome.status}, {outcome.seconds:.1f} s"
            click.echo(visible(f"[{self._done}/{self._total}] {told}"), err=True)
        self._tell_what_did_not_run(outcome)

    def _tell_what_did_not_run(self, outcome: Outcome) -> None:
        report = outcome.report or {}
        if report.get("not_run") and report["settings"]["validate"]:
            levels = ", ".join(str(entry["level"]) for entry in report["not_run"])
            why = report["not_run"][-1]["reason"]
            told = f"graphpass: {outcome.model}: not run: level {levels}: {why}"
            click.echo(visible(told), err=True)

    def close(self) -> None:
        """Lines stay."""


class Board(Lines):
    """Bars on a terminal: one for all, one for each model at work; gone at the end."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._all = self._bars.add_task("planning", total=None)
        self._models: dict[str, Any] = {}
        self._bars.start()

    def planned(self, count: int) -> None:
        """Show how many models there are."""
        super().planned(count)
        self._bars.update(self._all, total=count, description=f"0 of {count}")

    def progress(self, model: str, text: str, done: float) -> None:
        """Show at which step a model is."""
        if not model:
            self._bars.update(self._all, description=visible(text))
            return
        if model not in self._models:
            self._models[model] = self._bars.add_task("", total=1.0)
        self._bars.update(
            self._models[model], description=visible(f"{model}: {text}"), completed=done
        )

    def finished(self, outcome: Outcome) -> None:
        """Replace the bar of a model by a step of the bar of all."""
        self._done += 1
        if outcome.model in self._models:
            self._bars.remove_task(self._models.pop(outcome.model))
        told = f"{self._done} of {self._total}"
        self._bars.update(self._all, completed=self._done, description=told)
        if outcome.status == "failed":
            told = visible(_failure(outcome))
            self._bars.console.print(told, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bars away."""
        self._bars.stop()
