"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from graphpass.errors import UsageError


def options(*given: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Join decorators that several commands share, in the order in which --help lists them."""

    def decorate(command: Any) -> Any:
        for option in reversed(given):
            command = option(command)
        return command

    return decorate


def bindings(
    context: click.Context, parameter: click.Parameter, given: Iterable[str]
) -> dict[str, int]:
    """Read NAME=NUMBER."""
    bound = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not (name and equals and number.isdecimal()):
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER")
        bound[name] = int(number)
    return bound


PASSES = options(
    click.option(
        "--passes",
        metavar="A,B{OPTION=VALUE},…",
        help="Passes to run, in this order; also FILE.py:FUNCTION.",
    ),
    click.option("--pipeline", metavar="NAME", help="default, runtime, fast or conv-only."),
    click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out."),
)
TARGET = click.option(
    "--target",
    "profile",
    metavar="NAME",
    help="Run the passes that a chip or runtime asks for, and say what it does not take of the"
    " result: ane, ethos-u, onnxruntime-cpu, tensorrt, tidl, vitis-dpu, or a .toml file.",
)
FREEZE = click.option(
    "--freeze-initializers",
    is_flag=True,
    help="Inputs that have a default are constants, and no inputs any more.",
)
VALIDATION = options(
    click.option(
        "--provider",
        "providers",
        multiple=True,
        default=("cpu",),
        metavar="NAME",
        help="Execution provider to check on: cpu, cuda. May be repeated.",
    ),
    click.option(
        "--inputs",
        type=click.Path(path_type=Path),
        help="Inputs to check with: an .npz, or a folder of .pb files.",
    ),
    click.option(
        "--bind",
        multiple=True,
        callback=bindings,
        metavar="NAME=NUMBER",
        help="Size of a symbolic dimension. May be repeated.",
    ),
    click.option("--rtol", type=float, help="Tolerance relative to an output's largest magnitude."),
    click.option("--atol", type=float, help="Absolute tolerance."),
    click.option("--seed", type=int, default=0, help="Seed of the inputs that are drawn."),
    click.option(
        "--timeout",
        "time_limit_s",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        metavar="SECONDS",
        help="For one run of a model.  [default: 300]",
    ),
    click.option(
        "--memory-limit",
        "memory_limit_mib",
        type=click.IntRange(min=1),
        metavar="MIB",
        help="For the process that runs models.",
    ),
    click.option(
        "--allow-external",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Where else external data may lie.",
    ),
)


def which(passes: str | None, pipeline: str | None, target: str | None = None) -> str:
    """Return what to run, as `graphpass.optimize` takes it. Raises `UsageError`.

    `target`: one whose profile names the passes, unless they are given.
    """
    if passes is not None and pipeline is not None:
        raise UsageError("give either --passes or --pipeline")
    if target is not None:
        from graphpass.targets.profile import load

        profile = load(target)
        if passes is None and pipeline is None:
            return profile.passes
    if pipeline is not None:
        from graphpass.rewrite.registry import PIPELINES

        if pipeline not in PIPELINES:
            raise UsageError(f"there is no pipeline {pipeline!r}; there are {', '.join(PIPELINES)}")
    return passes if passes is not None else pipeline or "default"
