"""Count what each optimizer leaves of the same files, and judge whether it is still right.

    python -m benchmarks.nodes MODEL ... [--tools "A;B"] [--latency-s 0.2] [--keep FOLDER]
                               [--write docs/nodes.md]

Prints one Markdown row for each file: the nodes of the original and of each tool's result, marked
where the result is wrong, and where it needs operators of one runtime that the original did not:
those are no fewer nodes for anybody else. Exits with 1 where graphpass is wrong, or another tool
that is right, with operators that every runtime has, has fewer, or graphpass's result is slower.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_python, pair, python_for
from benchmarks.contestants import CONTESTANTS, command
from benchmarks.documents import write_between
from benchmarks.run import HERE, judge

MARKS = ("<!-- nodes: made by benchmarks.nodes -->", "<!-- /nodes -->")
_TOOLS = ("graphpass, runtime", "onnxsim", "onnxslim", "onnxscript", "onnxoptimizer")
_OWN = "graphpass"
#: Seconds that each file took, in the order of the files, round by round.
_Rounds = list[list[float]]
#: The original or another's result may be this much of graphpass's time before it is slower.
_SLOWER_BELOW = 0.97
#: Two sessions of one file differ by some percent: what seems slower is opened so often anew.
_SESSIONS = 5


@dataclass(frozen=True)
class Count:
    """What a tool left of one file; `nodes` is None where it wrote none."""

    nodes: int | None
    is_right: bool
    #: Operator sets of one runtime that the result needs and the original does not.
    foreign: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.nodes is None:
            return "fails"
        foreign = f" ({', '.join(self.foreign)})" if self.foreign else ""
        return f"{self.nodes}{foreign}{'' if self.is_right else ' **wrong**'}"

    @property
    def counts(self) -> bool:
        """Whether it is what everybody could use in place of the original."""
        return self.is_right and self.nodes is not None and not self.foreign


@dataclass
class Row:
    """One file: its nodes, what each tool left, how fast each is."""

    file: str
    before: int
    counts: Mapping[str, Count]
    #: Time of the original over that of each tool's result.
    speedups: dict[str, float] = field(default_factory=dict)
    #: Time of the fastest other result that counts over that of graphpass's.
    to_fastest: float | None = None

    @property
    def own(self) -> str:
        """graphpass, as it is called in this run."""
        return next(tool for tool in self.counts if tool.startswith(_OWN))

    @property
    def fewest_of_others(self) -> int:
        """How many nodes the best of the others left; of the original, where none is right."""
        others = (c.nodes for tool, c in self.counts.items() if tool != self.own and c.counts)
        return min((nodes for nodes in others if nodes is not None), default=self.before)

    @property
    def more_nodes(self) -> int:
        """How many nodes more than the best of the others graphpass leaves."""
        nodes = self.counts[self.own].nodes
        return max(0, (self.before if nodes is None else nodes) - self.fewest_of_others)

    @property
    def slowest(self) -> float | None:
        """The time of the original or of the fastest other over graphpass's: the smaller."""
        ratios = [self.speedups.get(self.own), self.to_fastest]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    @property
    def is_slower(self) -> bool:
        """Whether the original or another's result is faster."""
        return self.slowest is not None and self.slowest < _SLOWER_BELOW

    def cells(self, tools: Sequence[str], is_timed: bool) -> list[str]:
        """Give the cells of its row in the table."""
        cells = [self.file, str(self.before)]
        for tool in tools:
            speedup = self.speedups.get(tool)
            timed = "" if speedup is None else f" ×{speedup:.2f}"
            cells.append(f"{self.counts[tool]}{timed}")
        if is_timed:
            cells.append("" if self.to_fastest is None else f"{self.to_fastest:.2f}")
        return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where graphpass is wrong or slower, or somebody right has fewer nodes."""
    options = _parser().parse_args(arguments)
    tools = options.tools.split(";") if options.tools else list(_TOOLS)
    is_timed = options.latency_s > 0
    head = ["file", "original", *tools, *(["× the fastest other"] if is_timed else [])]
    table = [_line(head), _line(["---", *["--:"] * (len(head) - 1)])]
    print(*table, sep="\n")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        for model in options.models:
            row = compare(model, tools, options.keep or Path(made), options)
            rows.append(row)
            table.append(_line(row.cells(tools, is_timed)))
            print(table[-1], flush=True)
    summary = list(_summary(rows, tools))
    print("", *summary, sep="\n")
    if options.write:
        write_between(MARKS, [*summary, "", *table], options.write)
    return int(any(not r.counts[r.own].is_right or r.more_nodes or r.is_slower for r in rows))


def compare(model: Path, tools: Sequence[str], folder: Path, options: argparse.Namespace) -> Row:
    """Run every tool once on a model, judge what each left, and measure them all in turns.

    What a run before this one left in `folder` is taken as it is.
    """
    stem = f"{model.parent.name}-{model.stem}"
    verdicts = {tool: _verdict(model, tool, folder / _slug(tool) / stem, options) for tool in tools}
    counts = {tool: _count(verdict) for tool, verdict in verdicts.items()}
    before = _nodes(
        _kept(folder / "original" / f"{stem}.json", lambda: judge(model, model, options, 0))
    )
    row = Row(model.stem, before or 0, counts)
    results = {tool: folder / _slug(tool) / f"{stem}.onnx" for tool in tools if counts[tool].counts}
    if options.latency_s > 0 and row.own in results:
        _measure(row, model, results, folder / "times" / f"{stem}.json", options)
    return row


def _verdict(model: Path, tool: str, base: Path, options: argparse.Namespace) -> Mapping[str, Any]:
    """What the judge says of a tool's result, which lies at `base` afterwards."""
    target = base.with_name(f"{base.name}.onnx")

    def made() -> Mapping[str, Any]:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            line = command(tool, python_for(CONTESTANTS[tool], dict(options.python)), model, target)
            try:
                limit_s = options.timeout_s
                subprocess.run(line, capture_output=True, check=True, timeout=limit_s)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                target.unlink(missing_ok=True)
        return judge(model, target, options, 0) if target.exists() else {}

    verdict: Mapping[str, Any] = _kept(base.with_name(f"{base.name}.json"), made)
    return verdict


def _kept(file: Path, made: Callable[[], Any]) -> Any:
    """What an earlier run wrote to a file, or what is made now, and written."""
    if not file.exists():
        value = made()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    return json.loads(file.read_text())


def _measure(
    row: Row, model: Path, results: Mapping[str, Path], kept: Path, options: argparse.Namespace
) -> None:
    """Fill in how fast the results are; where graphpass's seems slower, of several sessions."""
    files = {"original": model, **results}
    sessions = json.loads(kept.read_text()) if kept.exists() else []
    while True:
        if sessions:
            _compare_times(row, list(files), sessions)
        if len(sessions) >= (_SESSIONS if row.is_slower else 1):
            return
        # what is opened last runs a little faster: another one in each session
        shift = len(sessions) % len(files)
        paths = list(files.values())
        rounds = _times_s(paths[shift:] + paths[:shift], options)
        if not rounds:
            return
        sessions.append([times[-shift:] + times[:-shift] for times in rounds])
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(sessions))


def _compare_times(row: Row, names: Sequence[str], sessions: Sequence[_Rounds]) -> None:
    at = {name: number for number, name in enumerate(names)}

    def ratio(one: str, other: str) -> float:
        """Time of one over that of the other: the median of sessions of the median of rounds."""
        return statistics.median(
            statistics.median(times[at[one]] / times[at[other]] for times in rounds if all(times))
            for rounds in sessions
        )

    row.speedups = {tool: ratio("original", tool) for tool in names if tool != "original"}
    others = [ratio(tool, row.own) for tool in row.speedups if tool != row.own]
    row.to_fastest = min(others, default=None)


def _times_s(paths: Sequence[Path], options: argparse.Namespace) -> _Rounds:
    settings = {
        "inputs": options.inputs and str(options.inputs),
        "bind": dict(options.bind),
        "latency_s": options.latency_s,
    }
    what = [json.dumps([str(path) for path in paths]), json.dumps(settings)]
    line = [sys.executable, "-m", "benchmarks.latency", *what]
    done = subprocess.run(line, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{paths[0]} could not be timed: {done.stderr[-200:]}", file=sys.stderr)
        return []
    rounds: _Rounds = json.loads(done.stdout)
    return rounds


def _count(verdict: Mapping[str, Any]) -> Count:
    right = verdict.get("right") or "unjudged" in verdict
    right = bool(right and not verdict.get("interface") and not verdict.get("invalid"))
    return Count(_nodes(verdict), right, tuple(verdict.get("foreign", ())))


def _nodes(verdict: Mapping[str, Any]) -> int | None:
    operators = verdict.get("operators")
    return None if operators is None else sum(operators.values())


def _slug(tool: str) -> str:
    return re.sub(r"\W+", "-", tool)


def _summary(rows: Sequence[Row], tools: Sequence[str]) -> Iterator[str]:
    """Yield what all rows come to; nodes are added up where every tool gave a result."""
    whole = [row for row in rows if all(c.nodes is not None for c in row.counts.values())]
    total = [sum(row.counts[tool].nodes or 0 for row in whole) for tool in tools]
    wrong = [sum(not row.counts[tool].is_right for row in rows) for tool in tools]
    yield _line(["", "original", *tools])
    yield _line(["---", *["--:"] * (len(tools) + 1)])
    before = sum(row.before for row in whole)
    yield _line([f"nodes of the {len(whole)} files of which each gave a result", str(before),
                 *map(str, total)])  # fmt: skip
    yield _line([f"wrong or no result, of {len(rows)} files", "", *map(str, wrong)])
    more = [row for row in rows if row.more_nodes]
    yield ""
    yield f"In {len(rows) - len(more)} files graphpass has the fewest nodes, alone or with others."
    if more:
        told = ", ".join(f"{row.file} (by {row.more_nodes})" for row in more)
        yield f"More than another that is right: {told}."
    timed = [row for row in rows if row.slowest is not None]
    slower = [row for row in timed if row.is_slower]
    if timed:
        yield (
            f"In {len(timed) - len(slower)} of {len(timed)} files that were timed its result has "
            f"at least {_SLOWER_BELOW} of the speed of the original and of every other result."
        )
        for row in slower:
            to = row.speedups[row.own], row.to_fastest or 1
            yield f"Slower: {row.file}, {to[0]:.2f} of the original, {to[1]:.2f} of the fastest."


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
    parser.add_argument(
        "--latency-s", type=float, default=0, help="to measure each result's speed; 0: do not"
    )
    parser.add_argument("--timeout-s", type=float, default=600, help="for one run of one tool")
    parser.add_argument(
        "--keep", type=Path, help="where results stay; what lies there is not made again"
    )
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="to put the tables into")
    add_python(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
