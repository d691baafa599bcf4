"""What optimizing a model costs, in time and memory, beside copying the file.

    python -m benchmarks.cost [MODEL ...] [--python onnxsim=/path/to/python] [--rounds 3]

Three families of models are made on the spot: more and more weights, more and more nodes, and
weights beyond protobuf's 2 GiB. Tools run on each in rounds, and on the files given. Prints
Markdown; writes everything measured to a JSON file and the plots beside it; see README.md.
"""

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# This process stays small: see process.py. Models are made in another one: `python -m ... make`.
from benchmarks.arguments import add_python, in_turns, python_for
from benchmarks.contestants import BASELINES, CONTESTANTS, command
from benchmarks.process import Usage, measure

COPIES = ("cp", "cp, fsync")
PROGRAMS = BASELINES | CONTESTANTS
_LAYERS = (1, 4, 16)
_LAYERS_BEYOND_PROTOBUF = 48
_NODES = (1_000, 10_000, 100_000)
_TOOL_STYLES = {
    "cp": ("0.55", ":"),
    "cp, fsync": ("0.35", ":"),
    "onnx load+save": ("0.2", "--"),
    "graphpass": ("C3", "-"),
    "graphpass --no-validate": ("C1", "-"),
}
_OTHERS = ("C0", "C2", "C4", "C5", "C6", "C8", "C9")


@dataclass(frozen=True)
class Subject:
    """A model to optimize: a file, or how to make one. `x`: its place on the axis of its plot."""

    name: str
    source: Path | str
    family: str = ""
    x: float = 0.0


@dataclass
class Cost:
    """What one tool took on one model, round by round."""

    tool: str
    usages: list[Usage] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """Why it gave no result; None where it did."""
        return next((usage.error for usage in self.usages if usage.error), None)

    def median(self, what: str) -> float:
        """The median over all rounds of a figure of `Usage`, or of their sum of peaks."""
        return float(statistics.median(figure(usage, what) for usage in self.usages))


def figure(usage: Usage, what: str) -> float:
    """A field of `Usage`; `peak_mib`: of the process and of its largest child together."""
    if what == "peak_mib":
        return usage.peak_main_mib + usage.peak_worker_mib
    return float(getattr(usage, what))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything; 1 where graphpass gave no result."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left running
    pythons = dict(options.python)
    present = [
        name
        for name in options.tools
        if name in COPIES or PROGRAMS[name].version(python_for(PROGRAMS[name], pythons))
    ]
    report: dict[str, list[dict[str, Any]]] = {}
    costs: dict[Subject, list[Cost]] = {}
    for subject in subjects(options):
        with tempfile.TemporaryDirectory(dir=options.scratch) as name:
            costs[subject] = measure_all(subject, present, pythons, Path(name), options)
        print(f"\n## {subject.name}\n\n{table(costs[subject])}", flush=True)
        report[subject.name] = [asdict(cost) for cost in costs[subject]]
        # After every model: what is interrupted keeps what it has.
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plots is not None:
        plot(costs, options.plots)
    own = (cost for each in costs.values() for cost in each if cost.tool.startswith("graphpass"))
    return int(any(cost.error for cost in own))


def subjects(options: argparse.Namespace) -> Iterator[Subject]:
    """Yield the models of the families asked for, then the files."""
    if "weights" in options.families:
        for layers in _LAYERS:
            yield Subject(f"{layers * 64} MiB inline", f"layers {layers}", "weights", layers * 64)
        gib = _LAYERS_BEYOND_PROTOBUF * 64
        external = f"layers {_LAYERS_BEYOND_PROTOBUF} external"
        yield Subject("3 GiB external, nothing to fold", external, "weights", gib)
        yield Subject("3 GiB external, every weight folded", f"{external} folded")
    if "nodes" in options.families:
        for nodes in _NODES:
            yield Subject(f"chain of {nodes:,} nodes", f"chain {nodes}", "nodes", nodes)
    for path in options.models:
        yield Subject(path.name, path)


def measure_all(
    subject: Subject,
    tools: Sequence[str],
    pythons: Mapping[str, str],
    scratch: Path,
    options: argparse.Namespace,
) -> list[Cost]:
    """Run every tool on one model in interleaved rounds, each run in a folder of its own."""
    if isinstance(subject.source, Path):
        source = subject.source
    else:
        source = scratch / "model.onnx"
        made = [sys.executable, "-m", "benchmarks.made", *subject.source.split(), str(source)]
        failed = measure(made, options.timeout_s).error
        if failed:
            sys.exit(f"{subject.name} could not be made: {failed}")
    costs = {name: Cost(name) for name in tools}
    for number, name in in_turns(tools, options.rounds):
        if costs[name].error:
            continue  # It will not do better the next time.
        told = f"{subject.name}: round {number} of {options.rounds}, {name}"
        print(told, file=sys.stderr, flush=True)
        target = scratch / "out"
        target.mkdir()
        line = _command(name, pythons, source, target / "out.onnx")
        usage = measure(line, options.timeout_s, memory_mib=options.memory_mib)
        costs[name].usages.append(usage)
        shutil.rmtree(target)
    return list(costs.values())


def _command(name: str, pythons: Mapping[str, str], source: Path, target: Path) -> list[str]:
    if name not in COPIES:
        return command(name, python_for(PROGRAMS[name], pythons), source, target)
    # what external data is called is known of the models made here only
    files = [str(path) for path in sorted(source.parent.glob(f"{source.name}*"))]
    copy = ["cp", *files, str(target.parent)]
    if name == "cp":
        return copy
    script = 'folder=$1; shift; cp "$@" "$folder" && sync "$folder"/*'
    return ["sh", "-c", script, "sh", str(target.parent), *files]


def table(costs: Iterable[Cost]) -> str:
    """One Markdown row for each tool."""
    rows = ["| tool | wall s | CPU s | peak MiB | of which worker |", "|---|--:|--:|--:|--:|"]
    for cost in costs:
        if cost.error:
            rows.append(f"| {cost.tool} | no result: {cost.error.replace('|', '/')} | | | |")
            continue
        worker = cost.median("peak_worker_mib")
        figures = f"{cost.median('wall_s'):.2f} | {cost.median('cpu_s'):.2f}"
        peaks = f"{cost.median('peak_mib'):.0f} | {f'{worker:.0f}' if worker else ''}"
        rows.append(f"| {cost.tool} | {figures} | {peaks} |")
    return "\n".join(rows)


# --------------------------------------------------------------------------------- plots


def plot(costs: Mapping[Subject, Sequence[Cost]], folder: Path) -> None:
    """Write `cost-weights.png` and `cost-nodes.png`: how time and memory grow."""
    families: dict[str, tuple[str, Callable[[float], str]]] = {
        "weights": ("weights", lambda mib: f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib} MiB"),
        "nodes": ("nodes", lambda count: f"{count:,}"),
    }
    for family, (label, tick) in families.items():
        chosen = {subject: each for subject, each in costs.items() if subject.family == family}
        if chosen:
            _plot_family(chosen, label, tick, folder / f"cost-{family}.png")


def _plot_family(
    costs: Mapping[Subject, Sequence[Cost]], label: str, tick: Callable[[float], str], path: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure_, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    tools = dict.fromkeys(cost.tool for each in costs.values() for cost in each)
    for axis, (what, title) in zip(
        axes, (("cpu_s", "CPU time (s)"), ("peak_mib", "peak memory (MiB)")), strict=True
    ):
        for number, tool in enumerate(tools):
            points = [
                (subject.x, cost.median(what))
                for subject, each in costs.items()
                for cost in each
                if cost.tool == tool and not cost.error
            ]
            color, style = _TOOL_STYLES.get(tool, (_OTHERS[number % len(_OTHERS)], "-."))
            if points:
                thick = 2.2 if tool.startswith("graphpass") else 1.2
                axis.plot(
                    *zip(*points, strict=True),
                    style,
                    color=color,
                    marker="o",
                    markersize=4,
                    label=tool,
                    linewidth=thick,
                )
        axis.set(xscale="log", yscale="log", xlabel=label, title=title)
        ticks = [subject.x for subject in costs]
        axis.set_xticks(ticks, [tick(x) for x in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure_.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure_)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("models", nargs="*", type=Path, help="further files, one after the other")
    parser.add_argument("--families", type=_families, default=("weights", "nodes"), metavar="A,B")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each tool (default 3)")
    parser.add_argument("--tools", type=_tools, default=[*COPIES, *PROGRAMS], metavar="A;B")
    add_python(parser)
    parser.add_argument("--json", type=Path, default=Path("cost.json"), metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="where PNGs go; else none")
    parser.add_argument("--timeout-s", type=float, default=300, help="for one run of one tool")
    parser.add_argument(
        "--memory-mib", type=int, default=12 << 10, help="for each process of a tool"
    )
    parser.add_argument("--scratch", type=Path, help="where models are written (default: /tmp)")
    return parser


def _families(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _tools(text: str) -> list[str]:
    names = text.split(";")
    unknown = [name for name in names if name not in (*COPIES, *PROGRAMS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such tool: {unknown[0]}")
    return names


if __name__ == "__main__":
    sys.exit(main())
