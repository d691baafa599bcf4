"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from graphpass.commands import completion
from graphpass.errors import ModelError, UsageError

_LARGEST_SIZE = 2**31 - 1
_LONGEST_S = 1e6  # 11 days; the system's clocks take no more than 2^31 milliseconds
MOST_THREADS = 1024


def options(*given: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Join decorators that several commands share, in the order in which --help lists them."""

    def decorate(command: Any) -> Any:
        for option in reversed(given):
            command = option(command)
        return command

    return decorate


def flag(*names: str, **others: Any) -> Callable[[Any], Any]:
    """Return a boolean option with a twin that says the opposite, for what a file says.

    The twin of `--strict` is `--no-strict`, that of `--no-validate` is `--validate`.
    """
    long = names[-1]
    twin = f"--{long[5:]}" if long.startswith("--no-") else f"--no-{long[2:]}"
    name = long[2:].replace("-", "_")
    return click.option(*names[:-1], f"{long}/{twin}", name, default=False, **others)


def bindings(
    context: click.Context, parameter: click.Parameter, given: Iterable[str]
) -> dict[str, int]:
    """Read NAME=NUMBER."""
    bound = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not (name and equals and number.isdecimal()):
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER")
        if len(number) > 10 or int(number) > _LARGEST_SIZE:
            raise click.BadParameter(f"{text!r}: no dimension is larger than {_LARGEST_SIZE}")
        bound[name] = int(number)
    return bound


class Finite(click.types.FloatParamType):
    """A number that is neither NaN nor infinite."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """See click."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class FiniteRange(Finite, click.FloatRange):
    """Such a number within bounds."""


PASSES = options(
    click.option(
        "--passes",
        metavar="A,B{OPTION=VALUE},…",
        shell_complete=completion.pass_lists,
        help="Passes to run, in this order; also FILE.py:FUNCTION.",
    ),
    click.option(
        "--pipeline",
        metavar="NAME",
        shell_complete=completion.pipelines,
        help="default, runtime, fast or conv-only.",
    ),
    click.option(
        "--skip",
        multiple=True,
        metavar="PASS",
        shell_complete=completion.passes,
        help="Leave a pass out.",
    ),
)
NODES = options(
    click.option(
        "--only-node",
        "only_nodes",
        multiple=True,
        metavar="PATTERN",
        help="Rewrite only nodes of such names: a glob as '/head/*', or re: and a regular"
        " expression. May be repeated.",
    ),
    click.option(
        "--exclude-node",
        "exclude_nodes",
        multiple=True,
        metavar="PATTERN",
        help="Leave nodes of such names as they are. May be repeated.",
    ),
)
TARGET = click.option(
    "--target",
    "profile",
    metavar="NAME",
    shell_complete=completion.targets,
    help="Run the passes that a chip or runtime asks for, and say what it does not take of the"
    " result: ane, ethos-u, onnxruntime-cpu, qnn-htp, rknn, tensorrt, tidl, vitis-dpu, or"
    " a .toml file.",
)
SIZES = options(
    click.option(
        "--set-shape",
        multiple=True,
        metavar="INPUT=SIZES",
        help="Sizes of an input in the result, as in x=1,3,224,224; a name lets a size vary:"
        " x=N,3,height,width. May be repeated.",
    ),
    click.option(
        "--opset",
        type=click.IntRange(min=1),
        metavar="N",
        help="Version of ONNX's operators in the result, by ONNX's own converter.",
    ),
)
TUNE = options(
    flag(
        "--tune",
        help="Measure rewrites that pay on one runtime and not on another, and keep those that do"
        " here. Without passes given: all that may.",
    ),
    click.option(
        "--tune-from",
        type=click.Path(path_type=Path),
        metavar="REPORT.json",
        help="Choose as in that run, without measuring.",
    ),
    flag(
        "--no-tune-cache",
        help="Measure what was measured on this machine before.",
    ),
)
FREEZE = flag(
    "--freeze-initializers",
    help="Inputs that have a default are constants, and no inputs any more.",
)
TIMEOUT = click.option(
    "--timeout",
    "time_limit_s",
    type=FiniteRange(min=0, min_open=True, max=_LONGEST_S),
    default=300.0,
    metavar="SECONDS",
    help="For one run of a model, one pass, or reading it.  [default: 300]",
)
MEMORY_LIMIT = click.option(
    "--memory-limit",
    "memory_limit_mib",
    type=click.IntRange(min=1, max=1 << 30),
    metavar="MIB",
    help="For the process that runs models; lets any run.  [default: three quarters of the "
    "machine's, less for loops and what depends on values]",
)
CUSTOM_OPS = click.option(
    "--custom-ops",
    multiple=True,
    metavar="LIB.so",
    help="Library with operators of your own, for ONNX Runtime. May be repeated.",
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
    click.option(
        "--rtol",
        type=FiniteRange(min=0),
        help="Tolerance relative to an output's largest magnitude.",
    ),
    click.option("--atol", type=FiniteRange(min=0), help="Absolute tolerance."),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        help="Seed of the inputs that are drawn.",
    ),
    TIMEOUT,
    MEMORY_LIMIT,
    CUSTOM_OPS,
    click.option(
        "--allow-external",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Where else external data may lie.",
    ),
)


def beside(model: Path, suffix: str) -> Path:
    """Return where the result for a model goes by default. Raises `ModelError` for a folder."""
    if not model.name:  # `.` and `/`, and what an empty name becomes
        raise ModelError(f"{model} is a folder, not an ONNX model")
    return model.with_name(model.name.removesuffix(".onnx") + suffix)


def which(
    passes: str | None,
    pipeline: str | None,
    target: str | None = None,
    fold_budget: int | None = None,
    *,
    tunes: bool = False,
) -> str:
    """Return what to run, as `graphpass.optimize` takes it. Raises `UsageError`.

    `target`: one whose profile names the passes, unless they are given. `fold_budget`: bytes, an
    option of every clean-up among them. `tunes`: where nothing is given, all that may pay.
    """
    chosen = _chosen(passes, pipeline, target, tunes)
    return chosen if fold_budget is None else _with_fold_budget(chosen, fold_budget)


def _with_fold_budget(chosen: str, fold_budget: int) -> str:
    from graphpass.rewrite.registry import PIPELINES, split

    steps = split(",".join(PIPELINES.get(chosen, [chosen])))
    budgeted = [options for name, options in steps if name == "clean-up"]
    if not budgeted:
        raise UsageError(f"--fold-budget is an option of clean-up, which is not in {chosen!r}")
    for options in budgeted:
        options["fold_budget"] = str(fold_budget)
    return ",".join(_spelled(name, options) for name, options in steps)


def ahead(chosen: str, set_shape: Sequence[str] = (), opset: int | None = None) -> str:
    """Return `chosen` behind the passes that sizes and another opset ask for."""
    first = [_spelled("set-shape", {"shapes": " ".join(set_shape)})] if set_shape else []
    if opset is not None:
        first.append(_spelled("set-opset", {"opset": str(opset)}))
    if not first:
        return chosen
    from graphpass.rewrite.registry import PIPELINES

    return ",".join([*first, *PIPELINES.get(chosen, [chosen])])


def _spelled(name: str, options: dict[str, str]) -> str:
    given = ";".join(f"{key}={value}" for key, value in options.items())
    return f"{name}{{{given}}}" if given else name


def _chosen(
    passes: str | None, pipeline: str | None, target: str | None, tunes: bool = False
) -> str:
    if passes is not None and pipeline is not None:
        raise UsageError("give either --passes or --pipeline")
    if target is not None:
        from graphpass.targets.profile import load

        profile = load(target)
        if passes is None and pipeline is None:
            return profile.passes
    if pipeline is not None:
        from graphpass.rewrite.registry import require_pipeline

        require_pipeline(pipeline)
    if passes is None and pipeline is None and tunes:
        from graphpass.rewrite.registry import TUNED

        return ",".join(TUNED)
    return passes if passes is not None else pipeline or "default"
