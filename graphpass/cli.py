"""The command line, thin over `graphpass.run`; slow imports happen in commands.

Exit codes: 0 written and valid; 1 a difference was found; 2 usage; 3 the input is no usable model;
4 ONNX Runtime cannot run it, so that nothing could be validated; 5 the output could not be
written; 70 a bug; 71 the process that did it died twice; 129, 130, 143 ended by HUP, INT, TERM.
Of many models, the highest of theirs.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from graphpass import interrupt
from graphpass.commands import streams
from graphpass.commands.check import check
from graphpass.commands.compare import compare
from graphpass.commands.dense import convolutionalize, heatmap
from graphpass.commands.diff import diff
from graphpass.commands.extract import extract
from graphpass.commands.inspect import inspect
from graphpass.commands.optimize import optimize
from graphpass.commands.passes import passes, test
from graphpass.commands.proof import bisect
from graphpass.errors import (
    BUG_EXIT_CODE,
    GraphpassError,
    ModelError,
    OutputError,
    UsageError,
    bug,
)
from graphpass.wording import visible

_INTERRUPTED_EXIT_CODE = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    # numpy's threads for linear algebra take longer to start than what passes have for them
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # nor has the garbage collector anything to find in what passes build, or when all ends
    gc.set_threshold(1_000_000)
    atexit.register(gc.freeze)
    interrupt.end_on_signals(*interrupt.ENDING_SIGNALS)
    interrupt.end_on_time()
    streams.closed[:] = sorted({1, 2} & interrupt.with_standard_streams())
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    code = run(arguments)
    sys.exit(_flushed(code))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Errors become one sentence on stderr."""
    if any("\0" in str(argument) for argument in arguments or ()):
        return _fail("an argument has a NUL in it, as no name of a file can", UsageError.exit_code)
    try:
        code = commands.main(arguments, prog_name="graphpass", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", _INTERRUPTED_EXIT_CODE)
    except SystemExit as error:  # a signal, a pipe that nobody reads any more, or 0: a completion
        return error.code if isinstance(error.code, int) else 1
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return error.exit_code
        return _fail(error.format_message(), error.exit_code)
    except GraphpassError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        if os.environ.get("GRAPHPASS_DEBUG"):
            raise
        return _fail(*_unforeseen(error))
    return code if isinstance(code, int) else 0


def _unforeseen(error: Exception) -> tuple[str, int]:
    """Return a sentence and an exit code for what the system, or a bug, came up with."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"the system refuses: {error.strerror or error}{where}", OutputError.exit_code
    if isinstance(error, MemoryError):
        return "there is not enough memory for this model", ModelError.exit_code
    if isinstance(error, RecursionError):
        return "the model is nested too deeply", ModelError.exit_code
    if type(error).__name__ == "EncodeError":  # of protobuf, which need not be imported for it
        reason = "over 2 GiB without its weights, or there is not enough memory"
        return f"the model cannot be put into a file: it is {reason}", ModelError.exit_code
    return bug(error), BUG_EXIT_CODE


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody can be told where stderr is full or closed
        click.echo(f"graphpass: {visible(message)}", err=True)
    return code


def _flushed(code: int) -> int:
    """Return the exit code once all is written that was printed, another where that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or 1
        except OSError as error:
            if not code:
                code = _fail(f"cannot print: {error.strerror or error}", OutputError.exit_code)
        else:
            continue
        # or the interpreter tries again when it ends, and has its own words for it
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="graphpass", message="%(prog)s %(version)s")
def commands() -> None:
    """Rewrite ONNX models; each rewrite is checked in ONNX Runtime, nothing else is touched.

    Exit codes: 0 written and valid; 1 a difference was found; 2 usage; 3 the input is no usable
    model; 4 ONNX Runtime cannot run the model, so that nothing could be validated; 5 the output
    could not be written; 70 this is a bug; 129, 130, 143 ended by the signal HUP, INT, TERM. Of
    many models (--out-dir), the highest of theirs; 71 where the process that did one died twice.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the folder that graphpass was started in is gone") from None


for command in (
    optimize,
    convolutionalize,
    heatmap,
    extract,
    inspect,
    check,
    diff,
    compare,
    bisect,
    passes,
    test,
):
    commands.add_command(command)

if __name__ == "__main__":
    main()
