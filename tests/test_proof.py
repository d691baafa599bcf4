"""Evidence for others: reproducers, bisection, and a delivered model checked again later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.cli import run
from graphpass.errors import DifferenceError, UsageError
from graphpass.report.data import without_times
from graphpass.report.reproducer import write_all
from graphpass.run import recorded as recheck
from graphpass.run.bisect import Bisection, command_check, compare_command, write_test
from graphpass.testing import graph
from graphpass.validate import ValidationOptions

from .toys import Negate, Tidy, chain


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(chain(6), path)
    return path


def pytest_exit_code(folder: Path, name: str) -> int:
    """Run one written test, as its reader would: without this repository's configuration."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode


# ------------------------------------------------------------------------------- reproducers


def test_a_rewrite_that_was_undone_is_shown_to_be_wrong(source: Path, tmp_path: Path) -> None:
    result = graphpass.optimize(source, Negate("c3"))
    (folder,) = write_all(result.report, tmp_path / "out")
    assert folder.name == "negate-AddIsSub-a3"
    assert sorted(path.name for path in folder.iterdir()) == [
        "after.onnx",
        "allowed.npy",
        "before.onnx",
        "inputs.npz",
        "report.json",
        "test_rewrite.py",
    ]
    onnx.checker.check_model(folder / "before.onnx", full_check=True)
    told = json.loads((folder / "report.json").read_text())
    assert told["rewrite"]["rule"] == "AddIsSub" and "times the bound" in told["reason"]
    assert pytest_exit_code(folder, "test_rewrite.py") == 1
    (folder / "after.onnx").write_bytes((folder / "before.onnx").read_bytes())
    assert pytest_exit_code(folder, "test_rewrite.py") == 0


def test_nothing_undone_needs_no_reproducer(source: Path, tmp_path: Path) -> None:
    assert write_all(graphpass.optimize(source, Tidy()).report, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------- bisection


def contains(operator: str, most: int) -> Callable[[Path], bool]:
    """Return a check that a model has at most `most` nodes of an operator."""

    def check(path: Path) -> bool:
        nodes = onnx.load(path).graph.node
        return [node.op_type for node in nodes].count(operator) <= most

    return check


@pytest.mark.parametrize("most", [0, 2, 5])
def test_the_first_rewrite_after_which_the_check_fails(
    source: Path, tmp_path: Path, most: int
) -> None:
    bisection = Bisection(source, [Tidy(), Negate()], contains("Sub", most))
    found = bisection.run(tmp_path / "out")
    assert found is not None and found.total == 12 and found.step == "negate"
    assert (found.rewrite.rule, found.rewrite.site) == ("AddIsSub", f"a{most}")
    assert found.checks <= 3 + 4
    good, bad = (onnx.load(tmp_path / "out" / name) for name in ("good.onnx", "bad.onnx"))
    assert contains("Sub", most)(tmp_path / "out" / "good.onnx")
    assert len(good.graph.node) == len(bad.graph.node)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["number"] == 7 + most


def test_what_validation_undoes_is_left_out_unless_asked_for(source: Path, tmp_path: Path) -> None:
    def compared(path: Path) -> bool:
        return graphpass.compare(source, path, rtol=1e-5).ok

    steps = [Tidy(), Negate("c1 c4")]
    assert Bisection(source, steps, compared).run(tmp_path / "out") is None
    found = Bisection(source, steps, compared, validate=False).run(tmp_path / "out")
    assert found is not None and found.rewrite.site == "a1"
    assert pytest_exit_code(tmp_path / "out", "test_rewrite.py") == 1
    options = ValidationOptions(rtol=1e-5)
    write_test(tmp_path / "out", compare_command(source, options), found)
    assert pytest_exit_code(tmp_path / "out", "test_check.py") == 1


def test_a_check_that_fails_at_once_is_no_check(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="on the original already"):
        Bisection(source, [Tidy()], lambda path: False).run(tmp_path / "out")
    with pytest.raises(UsageError, match=r"no \{model\} in it"):
        command_check("true")
    with pytest.raises(UsageError, match="cannot be started"):
        command_check("/no/such/program {model}")(source)
    assert command_check("test -s {model}")(source)
    assert not command_check("sleep 9 {model}", 0.2)(source)


def test_bisect_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(chain(3), path)
    script = "import onnx, sys; sys.exit(len(onnx.load(sys.argv[1]).graph.node) < 8)"
    check = f'{sys.executable} -c "{script}" {{model}}'
    assert run(["bisect", str(path), "--check", check, "--passes", "clean-up"]) == 1
    out = capsys.readouterr().out
    assert "the check fails from rewrite 2 of 3 on" in out and "shows in the whole model" in out
    assert pytest_exit_code(tmp_path / "net.bisect", "test_check.py") == 1
    assert not (tmp_path / "net.bisect" / "test_rewrite.py").exists()  # it would not fail


def conv_and_norm() -> onnx.ModelProto:
    return graph(
        "(float[N,3,8,8] x) => (float[N,4,6,6] y)"
        "{ c = Conv(x, W) y = BatchNormalization(c, s, t, m, v) }",
        W=(4, 3, 3, 3),
        s=(4,),
        t=(4,),
        m=(4,),
        v=np.array([1, 2, 3, 5], np.float32),
    )


def test_bisect_finds_what_a_tolerance_undoes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the check that is written runs from any folder, whatever the command says of paths."""
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_and_norm(), "net.onnx")
    np.savez("in.npz", x=np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype("f"))
    undone = graphpass.optimize("net.onnx", "fold-batchnorm", rtol=1e-8).report
    assert undone.passes[0].quarantined or undone.passes[0].reason
    arguments = ["--passes", "fold-batchnorm", "--inputs", "in.npz", "-o", "found", "-q"]
    assert run(["bisect", "net.onnx", "--tolerance", "1e-8", *arguments]) == 1
    monkeypatch.chdir("/")
    assert pytest_exit_code(tmp_path / "found", "test_check.py") == 1


# ------------------------------------------------------------------- a report, checked again


@pytest.fixture
def delivered(source: Path, tmp_path: Path) -> tuple[Path, Path]:
    target, report = tmp_path / "out.onnx", tmp_path / "r.json"
    result = graphpass.optimize(source, Tidy(), seed=5, bind={"N": 4}, rtol=1e-4)
    result.save(target)
    report.write_text(result.report.to_json())
    return target, report


def test_a_delivered_model_is_checked_as_its_report_says(
    source: Path, delivered: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target, report = delivered
    found = recheck.settings(report, source, target)
    assert found["seed"] == 5 and found["bind"] == {"N": 4} and found["rtol"] == 1e-4
    command = ["compare", str(source), str(target), "--report", str(report)]
    assert run([*command, "-v"]) == 0
    assert "N=4" in capsys.readouterr().out
    assert run([*command, "-v", "--bind", "N=2"]) == 0  # what is given goes before
    assert "N=2" in capsys.readouterr().out


def test_other_files_than_those_of_the_report_are_refused(
    source: Path, delivered: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target, report = delivered
    with pytest.raises(DifferenceError, match=r"net\.onnx is not the out\.onnx that the run wrote"):
        recheck.settings(report, source, source)
    with pytest.raises(UsageError, match="no report"):
        recheck.settings(_written(source.with_name("x.json"), "{}"), source, target)
    assert run(["compare", str(target), str(target), "--report", str(report)]) == 1
    assert "that the run read" in capsys.readouterr().err


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_two_runs_write_equal_bytes_and_reports_equal_but_for_times(
    source: Path, tmp_path: Path
) -> None:
    told = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with graphpass.optimize(source, [Tidy(), Negate("c2")], latency=True) as result:
            result.save(tmp_path / name / "out.onnx")
        told.append(without_times(json.loads(result.report.to_json())))
    assert told[0] == told[1]
    first, second = ((tmp_path / name / "out.onnx").read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_proof_of_each_rewrite_is_in_the_report(source: Path) -> None:
    (entry,) = graphpass.optimize(source, Negate("c2")).report.passes
    kept = [rewrite.proof for rewrite in entry.rewrites if rewrite.rule == "AddIsSub"]
    assert all(proof is not None and proof.status == "ok" and proof.allowed > 0 for proof in kept)
    (undone,) = entry.quarantined
    assert undone.rewrite.proof is not None
    assert undone.rewrite.proof.max_abs_error > undone.rewrite.proof.allowed
    assert np.isfinite(undone.rewrite.proof.ratio)
