"""Run passes over every model of a folder and say what became of each.

    python tests/corpus.py FOLDER [--passes clean-up,fold-batchnorm | --passes none] [--jobs 2]

Each model is loaded and written without a pass (nothing may be lost), then the passes are applied,
without the validation that would hide their mistakes, and what comes out is checked: the ONNX
checker, inputs and outputs, the outputs of ONNX Runtime on the model's own test data (or seeded
data where it has none), and that a second run of the passes changes nothing. The work is done by
worker processes: ONNX Runtime dies of some models, and that is not the end of the run.
"""

from __future__ import annotations

import argparse
import json
import queue
import select
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_SECONDS = 300  # for one model
_WHOLE_BYTES = 1 << 28  # models up to this size are compared with every weight in them
_GOOD = ("ok", "unchanged", "not run")


# ---------------------------------------------------------------------- one model, in a worker


class BadResultError(Exception):
    """What is wrong with the result: (kind, what)."""


def examine(path: Path, passes: str) -> tuple[str, str]:
    """Return what became of one model: a kind, and what there is to say."""
    from graphpass.ir.model import Model
    from graphpass.rewrite.driver import apply
    from graphpass.rewrite.registry import passes_of
    from graphpass.run.pipeline import MAX_ROUNDS

    before = Model.load(path)
    check_round_trip(path, before)
    if passes == "none":
        return "ok", ""
    model = Model.load(path)
    steps = passes_of(passes)
    count = 0
    for _ in range(MAX_ROUNDS if len(steps) > 1 else 1):
        done = sum(len(apply(step, model).rewrites) for step in steps)
        count += done
        if not done:
            break
        model = model.copy()
    again = model.copy()
    for step in steps:
        more = apply(step, again).rewrites
        if more:
            raise BadResultError("again", f"{step.name}: {more[0].rule} at {more[0].site}")
    if not same(again.proto, model.proto):
        raise BadResultError("again", "the second run changed the model without a rewrite")
    if count == 0:
        if not same(model.proto, before.proto):
            raise BadResultError("wrong", "the model changed without a rewrite")
        return "unchanged", ""
    original, result = onnx.load(path), model.to_proto()
    if result.ByteSize() > 1.01 * original.ByteSize() + 4096:
        raise BadResultError("larger", f"{original.ByteSize()} bytes became {result.ByteSize()}")
    check_interface(original, result)
    check_valid(original, result)
    reason = check_outputs(path, original, result)
    return ("not run", reason) if reason else ("ok", f"{count} rewrites")


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    left, right = (model.SerializeToString(deterministic=True) for model in (a, b))
    return bool(left == right)


def check_round_trip(path: Path, model: Any) -> None:
    """Parse everything, write nothing new, and write a change and take it back."""
    whole = path.stat().st_size < _WHOLE_BYTES
    before = onnx.ModelProto()
    before.CopyFrom(model.proto)
    for scope in model.scopes():
        for node in scope.nodes:
            assert isinstance(node.attrs, dict)
    with model.rewriting() as scopes:
        scopes[0].is_touched = True
    if not same(model.proto, before):
        raise BadResultError("lost", "writing an untouched graph changed the model")
    for _ in range(2):
        with model.rewriting() as scopes:
            for scope in scopes:
                scope.nodes[:] = list(reversed(scope.nodes))
                scope.is_touched = True
    if not same(model.proto, before):
        raise BadResultError("lost", "a change that was taken back left its mark")
    if whole and not same(model.to_proto(), onnx.load(path)):
        raise BadResultError("lost", "the written model is not the one that was read")


def check_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    held = {tensor.name for tensor in before.graph.initializer}
    kept = {tensor.name for tensor in after.graph.initializer}
    constant = before.ir_version < 4  # initializers are listed among the inputs, as constants
    for kind, drop, new_drop in (("input", held, kept), ("output", set(), set())):
        old = [v for v in getattr(before.graph, kind) if not (constant and v.name in drop)]
        new = [v for v in getattr(after.graph, kind) if not (constant and v.name in new_drop)]
        if old != new:
            raise BadResultError("interface", f"the {kind}s changed")
    if before.opset_import != after.opset_import or before.ir_version != after.ir_version:
        raise BadResultError("interface", "versions changed")


def check_valid(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    def complaint(model: onnx.ModelProto) -> str:
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # the checker raises whatever it likes
            return str(error).strip().splitlines()[0]
        return ""

    if complaint(after) and not complaint(before):
        raise BadResultError("invalid", complaint(after))


def check_outputs(path: Path, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Compare in ONNX Runtime; return why that was not possible."""
    try:
        session = session_of(before)
        feeds = list(test_data(path, before)) or made_data(before, session)
        expected = [session.run(None, feed) for feed in feeds]
        once_more = [session.run(None, feed) for feed in feeds]
    except Exception as error:  # not a model that the runtime takes
        return str(error).strip().splitlines()[0][:120]
    del session
    try:
        session = session_of(after)
        found = [session.run(None, feed) for feed in feeds]
    except Exception as error:
        raise BadResultError(
            "invalid", f"does not run: {str(error).strip().splitlines()[0]}"
        ) from error
    for results in zip(expected, once_more, found, strict=True):
        for value, old, second, new in zip(before.graph.output, *results, strict=True):
            if difference(old, second) is not None:
                continue  # random
            far = difference(old, new)
            if far is not None and not far <= tolerance(new):
                raise BadResultError("wrong", f"output {value.name}: {far}")
    return ""


def tolerance(value: Any) -> float:
    """How far sums may be apart that are the same in exact arithmetic."""
    return 1e-2 if getattr(value, "dtype", None) == np.float16 else 1e-4


def difference(a: Any, b: Any) -> float | None:
    """None where both are equal to the bit (NaN as NaN), else how far apart, relative."""
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return np.inf
        far = [d for d in map(difference, a, b) if d is not None]
        return max(far, default=None)
    if isinstance(a, Mapping):
        return difference([*a.keys(), *a.values()], [*b.keys(), *b.values()])
    if a is None or b is None:
        return None if a is b else np.inf
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return np.inf
    if a.tobytes() == b.tobytes() and a.dtype != object:
        return None
    if a.dtype.kind not in "fc":
        return None if np.array_equal(a, b) else np.inf
    if np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a), np.signbit(b)):
        return None
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    finite = np.isfinite(a)
    scale = float(np.abs(a[finite]).max(initial=0)) or 1.0
    return float(np.abs(a[finite].astype(np.float64) - b[finite]).max(initial=0)) / scale


def session_of(model: onnx.ModelProto) -> Any:
    from graphpass.testing import session

    return session(model)


def test_data(path: Path, model: onnx.ModelProto) -> Iterator[dict[str, Any]]:
    inputs = session_inputs(model)
    for folder in sorted(path.parent.glob("test_data_set_*")):
        files = sorted(folder.glob("input_*.pb"), key=lambda f: int(f.stem.split("_")[1]))
        values = inputs if len(files) == len(inputs) else list(model.graph.input)
        yield {
            value.name: read_value(value.type, file.read_bytes())
            for value, file in zip(values, files, strict=False)
        }


def read_value(kind: onnx.TypeProto, content: bytes) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    tensor = onnx.TensorProto.FromString(content)
    array = numpy_helper.to_array(tensor)
    if array.dtype.isbuiltin != 1:  # bfloat16 and smaller types are none of numpy's
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8), tensor.data_type
        )
    return array


def made_data(model: onnx.ModelProto, session: Any) -> list[dict[str, Any]]:
    """Return seeded inputs of two sizes that the model takes."""
    taken: list[dict[str, Any]] = []
    error: Exception | None = None
    for size in (1, 2, 8, 32, 64, 512, 576):
        feed = {
            value.name: made_value(value.type.tensor_type, size) for value in session_inputs(model)
        }
        try:
            session.run(None, feed)
            taken.append(feed)
        except Exception as refused:  # another size may do
            error = error or refused
        if len(taken) == 2:
            break
    if not taken and error is not None:
        raise error
    return taken


def session_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    held = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in held]


def made_value(tensor: onnx.TypeProto.Tensor, size: int) -> Any:
    """Return seeded noise; unknown sizes become `size`, but a batch stays small."""
    rng = np.random.default_rng(0)
    shape = [
        dim.dim_value if dim.dim_value > 0 else min(size, 2) if axis == 0 else size
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if np.dtype(kind).kind == "f":
        return np.asarray(rng.normal(size=shape), kind)
    return np.asarray(rng.integers(0, 2, shape), kind)


def work(passes: str) -> None:
    """Read paths from stdin, answer each with one line of JSON."""
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            kind, text = examine(path, passes)
        except BadResultError as bad:
            kind, text = bad.args
        except Exception as error:  # a bug of ours, to be reported
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind, text = "crashed", f"{type(error).__name__}: {error} ({last.name}:{last.lineno})"
        print(json.dumps([kind, text.replace("\n", " ")]), flush=True)


# ----------------------------------------------------------------------- all models, in the parent


class Worker:
    """A process that examines models; a new one takes its place when it dies."""

    def __init__(self, passes: str) -> None:
        self._command = [sys.executable, __file__, "--worker", "--passes", passes]
        self._process: subprocess.Popen[str] | None = None

    def examine(self, path: Path) -> tuple[str, str]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            kind, text = json.loads(line)
            return kind, text
        self.close()
        return "crashed", "the process died" if ready else f"no answer in {_SECONDS} s"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def run(
    folder: Path, passes: str, jobs: int, say: Callable[[str], None]
) -> dict[str, tuple[str, str]]:
    """Examine every model under `folder`; return (kind, text) by path."""
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for path in sorted(folder.rglob("*.onnx")):
        waiting.put(path)
    found: dict[str, tuple[str, str]] = {}

    def serve() -> None:
        worker = Worker(passes)
        while True:
            try:
                path = waiting.get_nowait()
            except queue.Empty:
                break
            kind, text = worker.examine(path)
            found[str(path.relative_to(folder))] = kind, text
            if kind not in _GOOD:
                say(f"{kind:10} {path.relative_to(folder)}: {text}")
        worker.close()

    threads = [threading.Thread(target=serve) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--passes", default="default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        work(options.passes)
        return 0
    found = run(options.folder, options.passes, options.jobs, print)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    counted = Counter(kind for kind, _ in found.values())
    print(", ".join(f"{count} {kind}" for kind, count in counted.most_common()))
    return 0 if set(counted) <= set(_GOOD) else 1


if __name__ == "__main__":
    sys.exit(main())
