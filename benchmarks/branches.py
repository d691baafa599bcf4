"""Networks trained with branches: what merging them here gives, against the framework's own.

    python -m benchmarks.branches [--networks repvgg_a0,mobileone_s0] [--peer onnxsim] [--rounds 5]

Each network of timm is exported twice with the same random parameters: as it is trained, and after
`timm.utils.reparameterize_model`. The first one goes through graphpass. Prints a Markdown table to
stdout; see README.md beside this file. Needs torch and timm.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import graphpass
from benchmarks.arguments import add_python, python_for
from benchmarks.contestants import CONTESTANTS, command
from graphpass.ir.cost import cost_of

NETWORKS = (
    "repvgg_a0",
    "mobileone_s0",
    "fastvit_t8",
    "fastvit_mci0",
    "repghostnet_050",
    "repvit_m0_9",
    "mobileone_s4",
    "shvit_s1",
)
PASSES = "fast"

HEADER = (
    "| network | multiply-adds, M: trained | after | timm | operators: trained | after | timm "
    "| Add, BN: trained | after | timm | error | x, after | x, timm |"
)


@dataclass(frozen=True)
class Result:
    """Operators of the three files, and how much faster than the trained form two of them run."""

    network: str
    operators: Mapping[str, Counter[str]]
    multiply_adds: Mapping[str, int]
    #: Largest difference to the trained form, as a part of the largest output.
    error: float
    speedups: Mapping[str, float]

    def row(self) -> str:
        def count(form: str, *kinds: str) -> str:
            return str(sum(self.operators[form][kind] for kind in kinds))

        forms = ("trained", "graphpass", "timm")
        cells = (
            self.network,
            *(f"{self.multiply_adds[form] / 1e6:.0f}" for form in forms),
            *(str(sum(self.operators[form].values())) for form in forms),
            *(count(form, "Add", "Sub", "BatchNormalization") for form in forms),
            f"{self.error:.1g}",
            *(f"{ratio:.2f}" for ratio in self.speedups.values()),
        )
        return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, merge and measure each network."""
    options = _parser().parse_args(arguments)
    peers = list(options.peer)
    titles = [*HEADER.strip("| ").split(" | "), *(f"x, {peer}" for peer in peers)]
    print(f"ONNX Runtime {ort.__version__}, CPU, one thread, medians of {options.rounds} rounds\n")
    print(f"| {' | '.join(titles)} |\n| {' | '.join(['---'] * len(titles))} |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.cache or Path(scratch)
        for name in options.networks:
            print(f"{name}: exporting", file=sys.stderr, flush=True)
            files = exported(name, folder, options.size)
            files["graphpass"] = merged(files["trained"], Path(scratch))
            for peer in peers:
                files[peer] = Path(scratch) / f"{peer}.onnx"
                python = python_for(CONTESTANTS[peer], dict(options.python))
                subprocess.run(command(peer, python, files["trained"], files[peer]), check=True)
            print(measured(name, files, options.rounds).row(), flush=True)
    return 0


def merged(path: Path, folder: Path) -> Path:
    """Return what graphpass makes of a model, every rewrite checked."""
    target = folder / f"{path.stem}.merged.onnx"
    graphpass.optimize(path, PASSES, strict=True).save(target)
    return target


def exported(name: str, folder: Path, size_px: int) -> dict[str, Path]:
    """Return the trained form and the framework's own merged form of a network, made if need be."""
    paths = {form: folder / f"{name}_{form}_{size_px}.onnx" for form in ("trained", "timm")}
    if not all(path.exists() for path in paths.values()):
        torch, timm = import_module("torch"), import_module("timm")
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False).eval()
        with torch.no_grad():
            randomize(network, torch)
        image = torch.randn(1, 3, size_px, size_px)
        forms = {"trained": network, "timm": timm.utils.reparameterize_model(network)}
        for form, model in forms.items():
            torch.onnx.export(
                model,
                image,
                paths[form],
                dynamo=False,
                opset_version=17,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                input_names=["image"],
                output_names=["scores"],
            )
    return paths


def randomize(network: Any, torch: Any) -> None:
    """Give normalizations and layer scales the values of a trained network, so that all count."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    for name, parameter in network.named_parameters():
        if "gamma" in name or "layer_scale" in name:
            parameter.uniform_(0.1, 0.5)


def measured(name: str, files: Mapping[str, Path], rounds: int) -> Result:
    """Run all files in turns, in CPU time: others on the machine count as little as can be."""
    runs = {form: _session(path) for form, path in files.items()}
    answers = {form: run() for form, run in runs.items()}
    times_s: dict[str, list[float]] = {form: [] for form in runs}
    for _ in range(rounds):
        for form, run in runs.items():
            start = time.process_time()
            run()
            times_s[form].append(time.process_time() - start)
    reference = answers["trained"]
    error = np.abs(answers["graphpass"] - reference).max() / np.abs(reference).max()
    # the ratio within a round: both saw the same load of the machine
    order = ("graphpass", *(form for form in files if form not in ("trained", "graphpass")))
    speedups = {
        form: statistics.median(
            before / after for before, after in zip(times_s["trained"], times_s[form], strict=True)
        )
        for form in order
    }
    operators = {form: _operators(path) for form, path in files.items()}
    counts = {form: _multiply_adds(path) for form, path in files.items()}
    return Result(name, operators, counts, float(error), speedups)


def _operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def _multiply_adds(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return cost_of(model, {}).multiply_adds


def _session(path: Path) -> Callable[[], Any]:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    image = np.random.default_rng(0).standard_normal(entry.shape, dtype=np.float32)
    return lambda: session.run(None, {entry.name: image})[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.branches", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--networks", type=lambda text: text.split(","), default=NETWORKS)
    parser.add_argument("--size", type=int, default=224, help="of the image, in pixels")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peer", action="append", default=[], choices=list(CONTESTANTS))
    parser.add_argument("--cache", type=Path, help="keep what is exported in this folder")
    add_python(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
