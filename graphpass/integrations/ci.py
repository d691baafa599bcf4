"""Commands over the models that changed, for pre-commit and GitHub Actions.

    python -m graphpass.integrations.ci [--since COMMIT] [--summary FILE] COMMAND [OPTION…] [MODEL…]

COMMAND is `optimize` or `check`. MODELs are the last arguments, all that end in .onnx; each is
done in a process of its own, and what fails keeps no other from being done. The exit code is the
highest of theirs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from graphpass.errors import GraphpassError, OutputError, UsageError
from graphpass.wording import code_span, visible, visible_lines

_NO_COMMIT = "0" * 40  # what GitHub calls the one before the first of a branch


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.option("--since", metavar="COMMIT", help="Also models that are not as they were then.")
@click.option("--summary", type=click.Path(path_type=Path), help="Append Markdown to this file.")
@click.option("--options", "more", default="", help="Options in one text, as a shell reads them.")
@click.argument("command", type=click.Choice(["optimize", "check"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def each(
    since: str | None, summary: Path | None, more: str, command: str, arguments: Sequence[str]
) -> int:
    """Run COMMAND on each model."""
    options, models = _divided(arguments)
    try:
        options += shlex.split(more)
    except ValueError as error:
        raise UsageError(f"cannot read the options {more!r}: {error}") from None
    if since:
        models += [model for model in changed(since) if model not in models]
    if not models:
        click.echo("no model has changed")
    codes = [_run(command, options, model, summary) for model in models]
    return max(codes, default=0)


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return options and models: the last arguments, all that end in .onnx."""
    first = len(arguments)
    while first and arguments[first - 1].lower().endswith(".onnx"):
        first -= 1
    return list(arguments[:first]), list(arguments[first:])


def changed(since: str) -> list[str]:
    """Return tracked models below the working folder that are not as they were at a commit.

    All of them where the commit is forty zeros. Raises `UsageError` where there is no such commit.
    """
    if since == _NO_COMMIT:
        listed = _git("ls-files", "-z", "--", "*.onnx")
    else:
        asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{since}^{{commit}}")
        commit = _git(*asked, otherwise=f"there is no commit {since!r} here: fetch it first")
        paths = ("--name-only", "-z", "--relative", "--diff-filter=d")
        listed = _git("diff", *paths, commit.strip(), "--", "*.onnx")
    return [name for name in listed.split("\0") if name]


def _git(*arguments: str, otherwise: str = "") -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError as error:
        raise UsageError(f"cannot run git: {error.strerror}") from None
    if done.returncode:
        reason = " ".join(done.stderr.decode(errors="replace").split())
        raise UsageError(otherwise or f"git {arguments[0]} failed: {reason}")
    return done.stdout.decode(errors="surrogateescape")


def _run(command: str, options: Sequence[str], model: str, summary: Path | None) -> int:
    """Run a command on one model; print what it prints, and add it to the summary."""
    with tempfile.TemporaryDirectory(prefix="graphpass-") as folder:
        report = Path(folder) / "report.md"
        told = ["--report", str(report)] if command == "optimize" and summary is not None else []
        place = f"./{model}" if model.startswith("-") else model
        line = [sys.executable, "-m", "graphpass", command, *options, *told, place]
        done = subprocess.run(line, capture_output=True, check=False)
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        click.echo(out, nl=False)
        click.echo(err, nl=False, err=True)
        if summary is not None:
            text = report.read_text(encoding="utf-8") if report.is_file() else ""
            _append(summary, text or _told(model, done.returncode, out + err))
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _told(model: str, code: int, said: str) -> str:
    """Return Markdown on a run that wrote no report: what it printed."""
    verdict = "ok" if code == 0 else f"exit code {code}"
    lines = [f"    {visible(line)}" for line in said.splitlines()]  # indented: no fence to close
    return "\n".join([f"## graphpass: {code_span(model)}: {verdict}", "", *lines, ""])


def _append(summary: Path, text: str) -> None:
    try:
        with summary.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
    except OSError as error:
        raise OutputError(f"cannot write {summary}: {error.strerror}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code. Errors are one sentence on stderr."""
    try:
        code: int = each.main(
            arguments, prog_name="graphpass.integrations.ci", standalone_mode=False
        )
    except click.ClickException as error:
        click.echo(f"graphpass: {visible_lines(error.format_message())}", err=True)
        return error.exit_code
    except GraphpassError as error:
        click.echo(f"graphpass: {visible(str(error))}", err=True)
        return error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
