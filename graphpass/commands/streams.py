"""What commands read from and print to: files, URLs, and the standard streams."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphpass.storage import remote
from graphpass.wording import visible

if TYPE_CHECKING:
    from rich.console import Console

closed: list[int] = []  # descriptors of standard streams that were closed when we began


def get_ready(*, runs_models: bool) -> None:
    """Do what is only possible or worthwhile before this process has grown."""
    from graphpass.validate.process import forked

    forked.keep_freed_memory()
    if runs_models:
        forked.start()


def source(text: str) -> bytes | Path | str:
    """Return what a model is read from; `-` is standard input."""
    return sys.stdin.buffer.read() if text == "-" else place(text)


def place(text: str) -> Path | str:
    """Return a path, or a URL as it is."""
    return text if remote.is_url(text) else remote.local(text)


def console(*, stderr: bool = False) -> Console:
    """Return where human output goes: as wide as it needs to be where nobody looks at it."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 200, highlight=False)


def progress(quiet: bool) -> Any:
    """Return a bar on stderr, or nothing where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        return contextlib.nullcontext(lambda text, done: None)
    from graphpass.commands.progress import Bar

    return Bar()


def show_logs() -> None:
    """Print on stderr what the library logs, from INFO on, until the command ends."""
    logger = logging.getLogger("graphpass")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(_Visible("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)

    click.get_current_context().call_on_close(end)


class _Visible(logging.Formatter):
    """Shows names that come from strangers as everything else does."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        return visible(super().format(record))
