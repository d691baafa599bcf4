"""Compare graphpass with other ONNX optimizers on the same files: time, memory, result, speed.

    python -m benchmarks.run [MODEL ...] [--python onnxsim=/path/to/python] [--rounds 3]

Prints a Markdown table for each model to stdout and writes everything measured to a JSON file;
see README.md beside this file for what the columns mean.
"""

import argparse
import filecmp
import json
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# This process stays small: see process.py. What needs onnx or a runtime runs in others.
from benchmarks.arguments import add_python, in_turns, pair, python_for
from benchmarks.contestants import CONTESTANTS, command
from benchmarks.process import Usage, measure

HERE = Path(__file__).resolve().parent
_BYTES_PER_MB = 1e6
#: Judging loads the original and the result several times over.
_JUDGE_TIMEOUT_S = 1800
_HEADER = (
    "tool",
    "wall s",
    "CPU s",
    "peak MiB",
    "worker MiB",
    "file MB",
    "nodes",
    "Conv",
    "BN",
    "Gemm+MatMul",
    "outputs",
    "x, ORT all",
    "x, ORT none",
)


@dataclass
class Entry:
    """One tool on one model: every run it made, and what the judge says of the file it wrote."""

    tool: str
    usages: list[Usage] = field(default_factory=list)
    size_mb: float = 0.0
    verdict: Mapping[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> str | None:
        """Why there is no file to judge; None where there is one."""
        return next((usage.error for usage in self.usages if usage.error), None)

    def median(self, what: str) -> float:
        """The median over all rounds of one field of `Usage`."""
        return float(statistics.median(getattr(usage, what) for usage in self.usages))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 where graphpass gave a wrong result or none."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left running
    models = options.models or sorted((HERE.parent / "fixtures").glob("*.onnx"))
    missing_files = [str(path) for path in models if not path.is_file()]
    if missing_files:
        sys.exit(f"no such file: {', '.join(missing_files)}")
    pythons = dict(options.python)
    versions = {
        name: CONTESTANTS[name].version(python_for(CONTESTANTS[name], pythons))
        for name in options.tools
    }
    present = [name for name, version in versions.items() if version]

    print(f"# graphpass against its peers\n\n{_machine()}\n")
    for name, version in versions.items():
        package = CONTESTANTS[name].package
        print(f"- {name}: {version or f'not installed: pip install {package}'}")
    report: dict[str, Any] = {"machine": _machine(), "versions": versions, "models": {}}
    entries_by_model: dict[str, list[Entry]] = {}
    for model in models:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            entries = compare(model, present, pythons, Path(scratch), options)
        entries_by_model[str(model)] = entries
        print(f"\n## {model.name}\n\n{table(entries)}", flush=True)
        report["models"][str(model)] = [asdict(entry) for entry in entries]
        # After every model: a benchmark of hours that is interrupted keeps what it has.
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n## All {len(models)} models\n\n{summary(present, entries_by_model.values())}")
    own = (e for each in entries_by_model.values() for e in each if e.tool.startswith("graphpass"))
    return int(any(_outcome(entry) in ("wrong", "no result") for entry in own))


def compare(
    model: Path,
    tools: Sequence[str],
    pythons: Mapping[str, str],
    scratch: Path,
    options: argparse.Namespace,
) -> list[Entry]:
    """Run every tool on a model in interleaved rounds, then judge what each wrote last."""
    entries = {name: Entry(name) for name in tools}
    targets = {name: scratch / f"{number}.onnx" for number, name in enumerate(tools)}
    for number, name in in_turns(tools, options.rounds):
        entry = entries[name]
        if entry.error:
            continue  # It will not do better the next time.
        _say(f"{model.name}: round {number} of {options.rounds}, {name}")
        targets[name].unlink(missing_ok=True)
        line = command(name, python_for(CONTESTANTS[name], pythons), model, targets[name])
        entry.usages.append(measure(line, options.timeout_s))
    judged = [Entry("original", size_mb=_size_mb(model))]
    judged[0].verdict = judge(model, model, options, latency_s=0)
    for name, entry in entries.items():
        if entry.error:
            continue
        entry.size_mb = _size_mb(targets[name])
        # With and without its check a tool writes the same file: one verdict for both.
        twins = (
            other.verdict
            for other in entries.values()
            if other.verdict and filecmp.cmp(targets[other.tool], targets[name], shallow=False)
        )
        entry.verdict = next(twins, {})
        if entry.verdict:
            continue
        _say(f"{model.name}: judging {name}")
        entry.verdict = judge(model, targets[name], options, options.latency_s)
    return judged + list(entries.values())


def judge(
    model: Path, candidate: Path, options: argparse.Namespace, latency_s: float
) -> Mapping[str, Any]:
    """What judge.py finds in a process of its own, which may crash."""
    settings = {
        "inputs": options.inputs and str(options.inputs),
        "bind": dict(options.bind),
        "latency_s": latency_s,
    }
    line = [sys.executable, str(HERE / "judge.py"), str(model), str(candidate)]
    try:
        answer = subprocess.run(
            [*line, json.dumps(settings)],
            capture_output=True,
            text=True,
            timeout=_JUDGE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"runs": False, "reason": f"took over {_JUDGE_TIMEOUT_S} s to run"}
    if answer.returncode:
        last = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        return {"runs": False, "reason": f"could not be judged: {last[-1]}"[:200]}
    verdict: Mapping[str, Any] = json.loads(answer.stdout)
    return verdict


def table(entries: Iterable[Entry]) -> str:
    """One Markdown row for each tool."""
    return "\n".join(map(_row_text, (_HEADER, ["---"] * len(_HEADER), *map(_row, entries))))


def _row(entry: Entry) -> list[str]:
    row = [entry.tool]
    if entry.usages:
        row += [f"{entry.median('wall_s'):.2f}", f"{entry.median('cpu_s'):.2f}"]
        row.append(f"{entry.median('peak_main_mib'):.0f}")
        worker_mib = entry.median("peak_worker_mib")
        row.append(f"{worker_mib:.0f}" if worker_mib else "")
    else:
        row += [""] * 4
    if entry.error:
        return [*row, *[""] * 5, f"**no result**: {entry.error}", "", ""]
    counts: Mapping[str, int] = entry.verdict.get("operators", {})
    row += [f"{entry.size_mb:.2f}", str(sum(counts.values()))]
    row += [str(counts.get(name, 0)) for name in ("Conv", "BatchNormalization")]
    row += [str(counts.get("Gemm", 0) + counts.get("MatMul", 0)), _outputs_text(entry.verdict)]
    speedups: Mapping[str, float] = entry.verdict.get("speedup", {})
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        row.append(f"{speedups[level]:.2f}" if level in speedups else "")
    return row


def _outputs_text(verdict: Mapping[str, Any]) -> str:
    if "unjudged" in verdict:
        text = str(verdict["unjudged"])
    elif not verdict.get("runs"):
        text = f"**wrong**: {verdict.get('reason')}"
    else:
        figures = f"{verdict['error']:.1e} of {verdict['tolerance']:.1e}"
        where = f" (output {verdict['output']}, first input {verdict['shape']})"
        text = figures if verdict["right"] else f"**wrong**: {figures}{where}"
    for remark in ("interface", "invalid"):
        if verdict.get(remark):
            text += f"; {remark}: {verdict[remark]}"
    return text


def summary(tools: Sequence[str], models: Iterable[Sequence[Entry]]) -> str:
    """How often each tool was right, wrong or wrote nothing, changed an interface, broke a rule."""
    remarks = ("interface", "invalid")
    outcomes = ("right", "wrong", "no result", "unjudged")
    entries = [entry for each in models for entry in each]
    rows: list[Sequence[str]] = [("tool", *outcomes, *remarks), ["---"] * 7]
    for tool in tools:
        mine = [entry for entry in entries if entry.tool == tool]
        found = [_outcome(entry) for entry in mine]
        counts = [found.count(outcome) for outcome in outcomes]
        counts += [sum(bool(entry.verdict.get(remark)) for entry in mine) for remark in remarks]
        rows.append((tool, *map(str, counts)))
    return "\n".join(map(_row_text, rows))


def _outcome(entry: Entry) -> str:
    if entry.error:
        return "no result"
    if "unjudged" in entry.verdict:
        return "unjudged"
    return "right" if entry.verdict.get("runs") and entry.verdict["right"] else "wrong"


def _row_text(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _size_mb(path: Path) -> float:
    """The file and whatever external data was written beside it under its name."""
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*")) / _BYTES_PER_MB


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().split("\n")
    )
    return f"{cpu}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("models", nargs="*", type=Path, help="default: the models in fixtures/")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each tool (default 3)")
    parser.add_argument("--tools", type=_names, default=list(CONTESTANTS), metavar="A,B")
    add_python(parser)
    parser.add_argument("--inputs", type=Path, help=".npz with inputs for all models")
    parser.add_argument(
        "--bind", action="append", default=[], type=_bound, metavar="DIM=N", help="size of a dim"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), metavar="FILE")
    parser.add_argument("--timeout-s", type=float, default=600, help="for one run of one tool")
    parser.add_argument(
        "--latency-s", type=float, default=2, help="to measure each result's speed; 0: do not"
    )
    parser.add_argument("--scratch", type=Path, help="where results are written (default: /tmp)")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no such tool: {unknown[0]}; one of {', '.join(CONTESTANTS)}"
        )
    return names


def _bound(text: str) -> tuple[str, int]:
    key, value = pair(text)
    return key, int(value)


if __name__ == "__main__":
    sys.exit(main())
