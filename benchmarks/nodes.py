"""Count what each optimizer leaves of the same files, and judge whether it is still right.

    python -m benchmarks.nodes MODEL ... [--tools "A;B"] [--latency-s 1] [--keep FOLDER]

Prints one Markdown row for each file: the nodes of the original and of each tool's result, marked
where the result is wrong, and where it needs operators of one runtime that the original did not:
those are no fewer nodes for anybody else. Exits with 1 where graphpass is wrong, or another tool
that is right, with operators that every runtime has, has fewer.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_python, pair, python_for
from benchmarks.contestants import CONTESTANTS, command
from benchmarks.run import judge

_TOOLS = ("graphpass, runtime", "onnxsim", "onnxslim", "onnxscript", "onnxoptimizer")
_OWN = "graphpass"


@dataclass(frozen=True)
class Count:
    """What a tool left of one file; `nodes` is None where it wrote none."""

    nodes: int | None
    is_right: bool
    speedup: float | None = None
    #: Operator sets of one runtime that the result needs and the original does not.
    foreign: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.nodes is None:
            return "fails"
        speed = f" ×{self.speedup:.2f}" if self.speedup is not None else ""
        foreign = f" ({', '.join(self.foreign)})" if self.foreign else ""
        return f"{self.nodes}{foreign}{'' if self.is_right else ' **wrong**'}{speed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where graphpass is wrong or somebody right has fewer nodes."""
    options = _parser().parse_args(arguments)
    tools = options.tools.split(";") if options.tools else list(_TOOLS)
    print(_line(["file", "original", *tools]))
    print(_line(["---"] * (len(tools) + 2)))
    beaten = False
    totals = dict.fromkeys(tools, 0)
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.keep) as folder:
            before, counts = compare(model, tools, Path(folder), options)
        beaten = beaten or _is_beaten(counts)
        for tool, count in counts.items():
            totals[tool] += before if count.nodes is None else count.nodes
        print(_line([model.stem, str(before), *map(str, counts.values())]), flush=True)
    print(_line(["all", "", *map(str, totals.values())]))
    return int(beaten)


def compare(
    model: Path, tools: Sequence[str], folder: Path, options: argparse.Namespace
) -> tuple[int, dict[str, Count]]:
    """Run every tool once on a model; return the nodes before and what each left."""
    original = judge(model, model, options, latency_s=0)
    counts = {}
    for number, tool in enumerate(tools):
        target = folder / f"{number}.onnx"
        name, contestant = tool, CONTESTANTS[tool]
        line = command(name, python_for(contestant, dict(options.python)), model, target)
        done = subprocess.run(line, capture_output=True, check=False, timeout=options.timeout_s)
        if done.returncode or not target.exists():
            counts[tool] = Count(None, False)
            continue
        verdict = judge(model, target, options, options.latency_s)
        foreign = tuple(verdict.get("foreign", ()))
        counts[tool] = Count(_nodes(verdict), _is_right(verdict), _speedup(verdict), foreign)
    return _nodes(original) or 0, counts


def _nodes(verdict: Mapping[str, Any]) -> int | None:
    operators = verdict.get("operators")
    return None if operators is None else sum(operators.values())


def _is_right(verdict: Mapping[str, Any]) -> bool:
    right = verdict.get("right") or "unjudged" in verdict
    return bool(right and not verdict.get("interface") and not verdict.get("invalid"))


def _speedup(verdict: Mapping[str, Any]) -> float | None:
    found = verdict.get("speedup", {}).get("ORT_ENABLE_ALL")
    return None if found is None else float(found)


def _is_beaten(counts: Mapping[str, Count]) -> bool:
    own = [count for tool, count in counts.items() if tool.startswith(_OWN)]
    if not all(count.is_right for count in own):
        return True
    best = min((count.nodes for count in own if count.nodes is not None), default=None)
    others = [
        count.nodes
        for count in counts.values()
        if count.is_right and count.nodes is not None and not count.foreign
    ]
    return best is None or min(others) < best


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _bound(text: str) -> tuple[str, int]:
    key, value = pair(text)
    return key, int(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes")
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tools", help="names with a ; between them")
    parser.add_argument("--inputs", type=Path, help=".npz with inputs for all models")
    parser.add_argument("--bind", action="append", default=[], type=_bound, metavar="DIM=N")
    parser.add_argument("--latency-s", type=float, default=0, help="to measure speed; 0: do not")
    parser.add_argument("--timeout-s", type=float, default=600, help="for one run of one tool")
    parser.add_argument("--keep", type=Path, help="where results are written (default: /tmp)")
    add_python(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
