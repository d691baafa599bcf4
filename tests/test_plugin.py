"""The pytest plug-in, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from graphpass.testing import graph

GOOD = """# note: a second Identity goes
# after: Relu
(float[N,3] x) => (float[N,3] y) { i = Identity(x) y = Relu(i) }
"""
TEST = """
def test_the_same(graphpass_check):
    assert graphpass_check("a.onnx", "a.onnx").status == "equal"

def test_another(graphpass_check):
    graphpass_check("a.onnx", "b.onnx")
"""


def run_pytest(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_fixtures_of_passes_are_tests(tmp_path: Path) -> None:
    cases = tmp_path / "mine" / "clean-up"
    cases.mkdir(parents=True)
    (cases / "good.txt").write_text(GOOD)
    (cases / "bad.txt").write_text(GOOD.replace("after: Relu", "after: Identity Relu"))
    (cases / "labels.txt").write_text("zero one two")
    code, told = run_pytest(tmp_path, "--graphpass", "mine", "--junitxml", "out.xml")
    assert code == 1, told
    assert "good.txt::good PASSED" in told and "bad.txt::bad FAILED" in told
    assert "1 failed, 1 passed" in told and "Traceback" not in told
    assert 'tests="2"' in (tmp_path / "out.xml").read_text()


def test_without_being_asked_for_it_collects_nothing(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(GOOD)
    assert run_pytest(tmp_path)[0] == pytest.ExitCode.NO_TESTS_COLLECTED


def test_models_are_compared(tmp_path: Path) -> None:
    for name, op in (("a", "Relu"), ("b", "Abs")):
        model = graph(f"(float[N,3] x) => (float[N,3] y) {{ y = {op}(x) }}")
        onnx.save(model, tmp_path / f"{name}.onnx")
    (tmp_path / "test_models.py").write_text(TEST)
    code, told = run_pytest(tmp_path)
    assert code == 1 and "1 failed, 1 passed" in told, told
    assert "test_another FAILED" in told and "differs" in told
