"""Killed at any moment, in every way: the old files or the new ones, no other code, no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper

from graphpass.cli import run
from graphpass.testing import graph

KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CODES = {
    signal.SIGKILL: {0, -9},
    signal.SIGTERM: {0, 143, -15},  # below 0: before graphpass itself has begun
    signal.SIGINT: {0, 130, -2, 1},
    signal.SIGHUP: {0, 129, -1},
}
# with signals as they are by default, whoever runs the tests
START = """
import signal, sys
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from graphpass.__main__ import main
main()
"""


def classifier(path: Path, scale: float) -> None:
    """Save a small classifier, its weights in a file beside it."""
    model = graph(
        """(float[1,3,8,8] x) => (float[1,5] y) {
            a = Conv<pads = [1,1,1,1]>(x, w) b = BatchNormalization(a, s, t, m, v) c = Relu(b)
            d = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c) e = Flatten(d)
            y = Gemm<transB = 1>(e, g, h) }""",
        w=(8, 3, 3, 3),
        s=(8,),
        t=(8,),
        m=(8,),
        v=np.ones(8, np.float32),
        h=(5,),
    )
    dense = np.random.default_rng(0).standard_normal((5, 128)).astype(np.float32) * scale
    model.graph.initializer.append(numpy_helper.from_array(dense, "g"))
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def meaning(path: Path) -> bytes | None:
    """Return a model with its weights; None where there is none."""
    if not path.exists():
        return None
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


Case = Callable[[Path], list[str]]


def optimize(folder: Path) -> list[str]:
    return ["optimize", "m.onnx", "-o", "o.onnx", "--no-latency", "--report", "r.json"]


def in_place(folder: Path) -> list[str]:
    return ["optimize", "m.onnx", "--in-place", "--no-latency"]


def convolutionalize(folder: Path) -> list[str]:
    return ["convolutionalize", "m.onnx", "-o", "o.onnx"]


def many(folder: Path) -> list[str]:
    (folder / "zoo").mkdir(exist_ok=True)
    for name in ("a.onnx", "b.onnx"):
        classifier(folder / "zoo" / name, 1.0)
    return ["optimize", "zoo", "--out-dir", "out", "--no-latency", "--jobs", "2"]


CASES: tuple[Case, ...] = (optimize, in_place, convolutionalize, many)


class Killing:
    """Runs a command again and again and kills it, each time a little later."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder = folder
        self.spool = folder.parent / "tmp"
        self.spool.mkdir()
        classifier(folder / "m.onnx", 1.0)
        self.arguments = case(folder)
        self.outputs = [folder / name for name in ("m.onnx", "o.onnx", "out/a.onnx", "out/b.onnx")]
        self.before = [meaning(path) for path in self.outputs]
        start = time.monotonic()
        self._run().communicate()
        self.seconds = time.monotonic() - start
        self.after = [meaning(path) for path in self.outputs]
        assert self.after != self.before

    def _run(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", START, *self.arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self.spool)},
        )

    def kill(self, number: signal.Signals, moment: float) -> None:
        """Begin anew, or over what the last run left, and kill it after a part of its time."""
        if "--in-place" in self.arguments:
            classifier(self.folder / "m.onnx", 1.0)
        process = self._run()
        time.sleep(moment * self.seconds)
        family = self._family(process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode in CODES[number], (number, moment, process.returncode, said)
        if number in (signal.SIGTERM, signal.SIGHUP):
            assert b"Traceback" not in said, said
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, (number, moment, alive)
        for path, old, new in zip(self.outputs, self.before, self.after, strict=True):
            assert meaning(path) in (old, new), (number, moment, path)

    def _family(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        if process.poll() is not None:
            return []
        return list(psutil.Process(process.pid).children(recursive=True))

    def finish(self) -> None:
        """Let it end for once: the next run cleans up what those that were killed left."""
        if "--in-place" in self.arguments:
            classifier(self.folder / "m.onnx", 1.0)
        for folder in self.spool.glob("graphpass-spool-*"):
            if not any(folder.iterdir()):  # killed before its file was there: goes after a minute
                os.utime(folder, (0, 0))
        process = self._run()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert [meaning(path) for path in self.outputs] == self.after
        left = [*self.folder.rglob(".*.graphpass"), *self.spool.glob("graphpass*")]
        assert not left


def kill_many(folder: Path, case: Case, moments: int) -> None:
    (folder / "work").mkdir()
    killing = Killing(folder / "work", case)
    for index in range(moments):
        number = KILLS[(index + CASES.index(case)) % len(KILLS)]
        killing.kill(number, (index + 0.5) / moments)
    killing.finish()


@pytest.mark.parametrize("case", CASES)
def test_killed_at_a_few_moments_nothing_is_lost(case: Case, tmp_path: Path) -> None:
    kill_many(tmp_path, case, 2)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_a_hundred_moments_nothing_is_lost(case: Case, tmp_path: Path) -> None:
    kill_many(tmp_path, case, 100)


def test_the_codes_of_the_readme_are_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    for code in ("0", "1", "2", "3", "4", "5", "70", "71", "129, 130, 143"):
        assert f"\n| {code} | " in readme and code in told, code
