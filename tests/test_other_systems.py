"""What other systems lack: on macOS all works without it, on Windows the first line says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx

from graphpass.testing import check_equal

ROOT = Path(__file__).parents[1]

# what Python reads first in every process: takes away what macOS does not have
LACKING = """
import builtins, io, os, sys

for name in ("copy_file_range", "setxattr", "getxattr", "listxattr", "removexattr", "memfd_create",
             "sched_getaffinity", "pidfd_open", "posix_fadvise", "posix_fallocate"):
    if hasattr(os, name):
        delattr(os, name)

def without_proc(real):
    def guarded(path, *arguments, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, *arguments, **options)
    return guarded

builtins.open = io.open = without_proc(io.open)
os.open, os.listdir, os.scandir = map(without_proc, (os.open, os.listdir, os.scandir))
sys.platform = "darwin"
"""


def test_all_works_without_what_only_linux_has(tmp_path: Path) -> None:
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking/sitecustomize.py").write_text(LACKING, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lacking")}

    def graphpass(*arguments: str) -> None:
        command = [sys.executable, "-m", "graphpass", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    source = tmp_path / "digits.onnx"
    shutil.copyfile(ROOT / "fixtures/digits.onnx", source)
    original = onnx.load(source)
    graphpass("optimize", "digits.onnx", "-q", "--external-data", "always", "-o", "outside.onnx")
    assert (tmp_path / "outside.onnx.data").exists()
    check_equal(original, onnx.load(tmp_path / "outside.onnx"))
    graphpass("optimize", "outside.onnx", "-q", "--in-place", "--passes", "free-batch")
    graphpass("optimize", "digits.onnx", "-q", "--out-dir", "out", "--jobs", "2")
    check_equal(original, onnx.load(tmp_path / "out/digits.onnx"))


def test_windows_is_told_in_one_sentence() -> None:
    code = "import os; os.name = 'nt'; import graphpass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("On Windows it runs in WSL or a container.")


def test_an_installed_graphpass_has_all_its_packages() -> None:
    """A checkout finds what an installation lacks."""
    root = Path(__file__).parents[1]
    told = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = [file.parent.name for file in (root / "passes").glob("*/__init__.py")]
    assert found and not [name for name in found if f'"graphpass.passes.{name}"' not in told]
