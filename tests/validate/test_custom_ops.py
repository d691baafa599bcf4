"""Operators of one's own, from a library that ONNX Runtime loads."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.cli import run
from graphpass.errors import RuntimeUnavailableError, UsageError
from graphpass.rewrite.registry import make
from graphpass.testing import check, graph

LIBRARY = pytest.importorskip("onnxruntime_extensions").get_library_path()


def model() -> onnx.ModelProto:
    """Return a network with an operator of onnxruntime-extensions behind a Conv."""
    return graph(
        "(float[N,2,4,4] x) => (float[N,3,4,4] y) { c = Conv(x, w)"
        "b = BatchNormalization(c, s, t, m, v)"
        "p, q = ai.onnx.contrib.NegPos(b) y = Sub(q, p) }",
        domains={"ai.onnx.contrib": 1},
        w=(3, 2, 1, 1),
        s=(3,),
        t=(3,),
        m=(3,),
        v=np.ones(3, np.float32),
    )


def test_a_model_with_operators_of_its_own_is_run_as_a_whole() -> None:
    report = graphpass.optimize(model(), "fold-batchnorm", custom_ops=[LIBRARY]).report
    assert report.rewrites == 1 and report.validated and report.not_run == []
    assert report.settings["custom_ops"] == (Path(LIBRARY).resolve(),)
    without = graphpass.optimize(model(), "fold-batchnorm").report
    assert [entry.level for entry in without.not_run] == [3, 4]
    with pytest.raises(RuntimeUnavailableError):
        graphpass.optimize(model(), [])
    assert graphpass.compare(model(), model(), custom_ops=[LIBRARY]).status == "equal"


def test_it_is_run_in_tests_of_passes() -> None:
    check(make("fold-batchnorm"), model(), custom_ops=[LIBRARY])


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    arguments = ["optimize", str(path), "-q", "--strict"]
    assert run([*arguments, "--custom-ops", LIBRARY]) == 0
    assert run(arguments) == 4
    text = tmp_path / "no.so"
    text.write_text("no library")
    assert run([*arguments, "--custom-ops", str(text)]) == 4
    assert "holds no custom operators" in capsys.readouterr().err
    assert run([*arguments, "--custom-ops", str(tmp_path / "gone.so")]) == 2


def test_a_library_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"no library of custom operators at 'gone\.so'"):
        graphpass.optimize(model(), custom_ops=["gone.so"])


def test_a_classifier_with_operators_of_its_own_is_checked(tmp_path: Path) -> None:
    path, dense = tmp_path / "c.onnx", tmp_path / "d.onnx"
    head = graph(
        "(float[1,3,8,8] x) => (float[1,5] y) { c = Conv<pads=[1,1,1,1]>(x, k)"
        " p = GlobalAveragePool(c) f = Flatten(p) g = Gemm(f, w)"
        " a, b = ai.onnx.contrib.NegPos(g) y = Sub(b, a) }",
        domains={"ai.onnx.contrib": 1},
        k=(4, 3, 3, 3),
        w=(4, 5),
    )
    onnx.save(head, path)
    arguments = ["convolutionalize", str(path), "-o", str(dense), "--head", "global", "-q"]
    assert run(arguments) == 4 and not dense.exists()
    assert run([*arguments, "--custom-ops", LIBRARY, "--memory-limit", "4000"]) == 0
    assert run([*arguments, "--custom-ops", str(tmp_path / "gone.so")]) == 2
    dims = onnx.load(dense).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims[2:]] == ["height", "width"]
