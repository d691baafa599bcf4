"""What `optimize --tune` keeps, and how much faster the result runs than the original.

    python -m benchmarks.tuned [--networks "bert;unet"] [--rounds 40] [--threads 1] [FILE.onnx …]
    python -m benchmarks.tuned --no-tune --peer onnxsim --networks "resnet50 v1"

Prints a Markdown table to stdout; see README.md beside this file. Networks need torch, torchvision
and transformers; files need nothing. Exits with 1 where a result is slower than 0.98x.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import graphpass
from benchmarks.arguments import add_python, python_for
from benchmarks.contestants import CONTESTANTS, command
from benchmarks.tuned_networks import NETWORKS, exported
from graphpass.ir.cost import Cost
from graphpass.report.data import Report

TITLES = ("network", "multiply-adds, M", "weights, MB", "nodes", "x, fast")
TUNED_TITLES = ("sites: kept, tried", "kept", "x, tuned", "s")
SLOWEST = 0.98
_LOADS, _ROUND_S = 5, 0.01


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune and measure each network."""
    options = _parser().parse_args(arguments)
    threads, rounds = options.threads, options.rounds
    print(f"ONNX Runtime {ort.__version__}, CPU, {threads} threads, medians of {rounds} rounds\n")
    titles = [*TITLES, *(TUNED_TITLES if options.tune else ()), *(f"x, {p}" for p in options.peer)]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
    slow = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.cache or Path(scratch)
        for name in [*options.networks, *options.files]:
            known = name in NETWORKS
            path = exported(name, folder) if known else Path(name)
            files = {"original": path}
            reports: dict[str, Report] = {}
            start = time.perf_counter()
            for how in ("tuned", "fast") if options.tune else ("fast",):
                files[how] = Path(scratch) / f"{how}.onnx"
                passes = None if how == "tuned" else "fast"
                with graphpass.optimize(
                    path,
                    passes,
                    tune=how == "tuned",
                    tune_cache=False,
                    threads=threads,
                    latency=False,
                ) as result:
                    result.save(files[how])
                    reports[how] = result.report
                if how == "tuned":
                    seconds = time.perf_counter() - start
            for peer in options.peer:
                files |= _by_peer(peer, dict(options.python), path, Path(scratch))
            ratios = measured(files, rounds, threads)
            slow |= ratios.get("tuned", 1) < SLOWEST
            cells = [name if known else path.stem, *_less(reports["fast"]), f"{ratios['fast']:.2f}"]
            if options.tune:
                cells += [*_choices(reports["tuned"]), f"{ratios['tuned']:.2f}", f"{seconds:.0f}"]
            cells += [f"{ratios[peer]:.2f}" if peer in ratios else "–" for peer in options.peer]
            print(f"| {' | '.join(cells)} |", flush=True)
    return int(slow)


def _by_peer(peer: str, pythons: dict[str, str], path: Path, folder: Path) -> dict[str, Path]:
    """Return the file that another optimizer makes; nothing where it fails."""
    target = folder / f"{peer}.onnx"
    target.unlink(missing_ok=True)
    made = command(peer, python_for(CONTESTANTS[peer], pythons), path, target)
    done = subprocess.run(made, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode or not target.exists():
        print(f"{peer} failed: {done.stderr.decode()[-200:]}", file=sys.stderr)
        return {}
    return {peer: target}


def _less(report: Report) -> list[str]:
    """Say what is less: multiply-adds, weights, nodes."""
    before, after = report.input.cost, report.output.cost
    assert before is not None and after is not None
    return [
        " → ".join(_millions(cost) for cost in (before, after)),
        " → ".join(f"{cost.weight_bytes / 1e6:.1f}" for cost in (before, after)),
        f"{report.input.nodes} → {report.output.nodes}",
    ]


def _choices(report: Report) -> list[str]:
    """Say which choices were kept."""
    sites = report.tuning.sites if report.tuning is not None else []
    kept = Counter(site.rule for site in sites if site.kept)
    listed = ", ".join(f"{count} {rule}" for rule, count in kept.items())
    return [f"{sum(kept.values())}, {len(sites)}", listed]


def _millions(cost: Cost) -> str:
    """Write multiply-adds; a bound where shapes are unknown."""
    return f"{'≥ ' if cost.uncounted else ''}{cost.multiply_adds / 1e6:.0f}"


def measured(files: dict[str, Path], rounds: int, threads: int) -> dict[str, float]:
    """Return how much faster than the original the others run: medians of rounds in turns.

    In CPU time of this process: others on the machine count as little as can be. Everything is
    loaded several times, since where a session's memory lies can make it faster by some percent,
    and what takes a millisecond is run so often that a round takes ten.
    """
    ratios: dict[str, list[float]] = {how: [] for how in files}
    for number in range(_LOADS):
        order = list(files)[number % len(files) :] + list(files)[: number % len(files)]
        runs = {how: _session(files[how], threads) for how in order}
        for run in runs.values():
            run()
        repeats = max(3, int(_ROUND_S / max(_seconds(runs[order[0]], 3) / 3, 1e-6)))
        for _ in range(-(-rounds // _LOADS)):
            taken = {how: _seconds(run, repeats) for how, run in runs.items()}
            for how, seconds in taken.items():
                ratios[how].append(taken["original"] / seconds)
    return {how: statistics.median(found) for how, found in ratios.items()}


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return time.process_time() - start


def _session(path: Path, threads: int) -> Callable[[], Any]:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for entry in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in entry.shape]
        whole = "int" in entry.type
        feeds[entry.name] = (
            rng.integers(0, 90, shape) if whole else rng.standard_normal(shape, dtype=np.float32)
        )
    return lambda: session.run(None, feeds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuned", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("files", nargs="*", help="models with float or integer inputs")
    parser.add_argument(
        "--networks",
        type=lambda text: [name for name in text.split(";") if name],
        default=list(NETWORKS),
        metavar="A;B",
    )
    parser.add_argument(
        "--no-tune", dest="tune", action="store_false", help="measure the pipeline fast alone"
    )
    parser.add_argument("--peer", action="append", default=[], choices=list(CONTESTANTS))
    add_python(parser)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="keep what is exported in this folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
