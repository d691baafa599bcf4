"""Models for runs over many, and a look at what such runs leave behind."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import psutil

from graphpass.testing import graph

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "fixtures" / "digits.onnx"
ENDLESS = 100_000  # some minutes a run: more trips are not run unasked
SLOW = 150  # some hundred milliseconds a run


def digits(path: Path) -> Path:
    """Put the trained fixture at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DIGITS, path)
    return path


def small(path: Path, seed: int = 0, *, external: bool = False) -> Path:
    """Write a model that clean-up has something to do in, and is done with soon."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = graph("(float[N,32] x) => (float[N,32] y) { i = Identity(x) y = MatMul(i, W) }")
    weight = np.random.default_rng(seed).standard_normal((32, 32)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    path.with_name(f"{path.name}.weights").unlink(missing_ok=True)  # else it is appended to
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.weights")
    return path


def loop(path: Path, count: int) -> Path:
    """Write a model that takes as long as `count` says."""
    text = """(float[N,2] x, int64 n) => (float[N,2] y) {
        c = Constant<value = bool {1}>()
        i0 = Identity(x)
        y = Loop(n, c, i0) <body = b (int64 i, bool k, float[N,2] a) => (bool l, float[N,2] z) {
            l = Identity(k) m = ReduceMean(a) e = Expand(m, side) f = Erf(e) s = ReduceMax(f)
            z = Mul(a, s) }>
    }"""
    model = graph(text, side=np.array([1000, 1000]))
    del model.graph.input[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64(count), "n"))
    onnx.save(model, path)
    return path


def processes(*, of: str = "graphpass") -> list[psutil.Process]:
    """Return our processes below this one that live; Dask has some of its own here."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(of in word for word in process.cmdline()):
                found.append(process)
    return found


def tree(folder: Path) -> list[str]:
    """Return every file below a folder, records and hidden ones included."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
