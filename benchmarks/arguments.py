"""What the programs here ask on the command line, and the order in which they run their tools."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.contestants import Contestant


def pair(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return key, value


def add_python(parser: argparse.ArgumentParser) -> None:
    """Let the caller name an interpreter for each peer."""
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        type=pair,
        metavar="PACKAGE=PATH",
        help="the interpreter that has a peer, e.g. onnxsim=/venvs/onnxsim/bin/python; repeatable",
    )


def python_for(tool: Contestant, pythons: Mapping[str, str]) -> str:
    """Return the interpreter that has a tool: the one that was named, or this one."""
    return pythons.get(tool.package, sys.executable)


def in_turns(tools: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield each round, from 1, with each tool, beginning with another one every time.

    The first one to read a file finds it uncached.
    """
    for number in range(rounds):
        first = number % len(tools)
        for name in (*tools[first:], *tools[:first]):
            yield number + 1, name
