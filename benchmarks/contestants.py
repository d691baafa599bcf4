"""The optimizers that are compared, each as its own documentation shows it, with its defaults.

Also the program that runs one of them: `python benchmarks/contestants.py NAME MODEL OUT`. It stands
alone, since it runs under interpreters that have that one optimizer and nothing of this project.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

Optimize = Callable[[str, str], None]


@dataclass(frozen=True)
class Contestant:
    """An optimizer: the package that has it and what it does with a model file and a path."""

    package: str
    optimize: Optimize
    #: Whether it runs the original and its result and compares them by itself.
    checks_itself: bool = False

    def version(self, python: str) -> str | None:
        """The version of its package under that interpreter; None where it is not installed."""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None


def graphpass(source: str, target: str, *options: str) -> None:
    import_module("graphpass.cli").main(["optimize", source, "-o", target, "-q", *options])


def onnxsim(source: str, target: str, checks: int) -> None:
    model, same = import_module("onnxsim").simplify(source, check_n=checks)
    if not same:
        sys.exit("its own check found a difference")
    _save(model, target)


def onnxslim(source: str, target: str, check: bool) -> None:
    import_module("onnxslim").slim(source, target, model_check=check)


def onnxoptimizer(source: str, target: str) -> None:
    model = import_module("onnx").load(source)
    _save(import_module("onnxoptimizer").optimize(model), target)


def onnxscript(source: str, target: str) -> None:
    model = import_module("onnx").load(source)
    _save(import_module("onnxscript.optimizer").optimize(model), target)


def onnxruntime(source: str, target: str, level: str) -> None:
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = target
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    # It warns on every such run that the file suits this machine only.
    options.log_severity_level = 3
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def load_and_save(source: str, target: str) -> None:
    _save(import_module("onnx").load(source), target)


def _save(model: Any, target: str) -> None:
    """Save what a tool returned; with external data where one file cannot hold it."""
    try:
        import_module("onnx").save(model, target)
    except Exception:  # protobuf's, of a type that depends on its version
        data = f"{Path(target).name}.data"
        save = import_module("onnx").save
        save(model, target, save_as_external_data=True, location=data)


# What touches every byte and rewrites nothing.
BASELINES = {"onnx load+save": Contestant("onnx", load_and_save)}

CONTESTANTS = {
    "graphpass": Contestant("graphpass", graphpass, checks_itself=True),
    "graphpass --no-validate": Contestant(
        "graphpass", lambda source, target: graphpass(source, target, "--no-validate")
    ),
    "graphpass, runtime": Contestant(
        "graphpass",
        lambda source, target: graphpass(source, target, "--pipeline", "runtime"),
        checks_itself=True,
    ),
    "graphpass, runtime, --no-validate": Contestant(
        "graphpass",
        lambda source, target: graphpass(source, target, "--pipeline", "runtime", "--no-validate"),
    ),
    "onnxsim": Contestant("onnxsim", partial(onnxsim, checks=0)),
    "onnxsim, 3 checks": Contestant("onnxsim", partial(onnxsim, checks=3), checks_itself=True),
    "onnxslim": Contestant("onnxslim", partial(onnxslim, check=False)),
    "onnxslim, model check": Contestant(
        "onnxslim", partial(onnxslim, check=True), checks_itself=True
    ),
    "onnxoptimizer": Contestant("onnxoptimizer", onnxoptimizer),
    "onnxscript": Contestant("onnxscript", onnxscript),
    "onnxruntime basic": Contestant("onnxruntime", partial(onnxruntime, level="ORT_ENABLE_BASIC")),
    "onnxruntime extended": Contestant(
        "onnxruntime", partial(onnxruntime, level="ORT_ENABLE_EXTENDED")
    ),
}


def command(name: str, python: str, source: Path, target: Path) -> list[str]:
    """What to run so that a contestant optimizes one file in a process of its own."""
    return [python, str(Path(__file__).resolve()), name, str(source), str(target)]


if __name__ == "__main__":
    # Python puts this script's folder first on the path, where it could shadow a package's name.
    sys.path.pop(0)
    chosen, model, out = sys.argv[1:]
    (BASELINES | CONTESTANTS)[chosen].optimize(model, out)
