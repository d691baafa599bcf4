"""What is misspelled, empty or a folder: one sentence, with what was meant where that is near."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphpass.cli import run
from graphpass.errors import UsageError
from graphpass.ir.weight import Array
from graphpass.rewrite.registry import split
from graphpass.testing import graph
from graphpass.wording import nearest

MODEL = "m (float[2] x) => (float[2] y) { y = Relu(x) }"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.onnx"
    path.write_bytes(graph(MODEL).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("optimize .", 3, ". is a folder, not an ONNX model"),
        ("optimize ''", 2, "an empty name is no file"),
        ("optimize m.onnx -o ''", 2, "an empty name is no file"),
        ("inspect ''", 2, "an empty name is no file"),
        ("compare m.onnx ''", 2, "an empty name is no file"),
        ("compare - -", 2, "standard input is one model, not two"),
        ("compare m.onnx - --report r.json", 2, "--report names files"),
        ("bisect .", 3, ". is a folder, not an ONNX model"),
        ("bisect ''", 3, ". is a folder, not an ONNX model"),
        ("convolutionalize .", 3, ". is a folder, not an ONNX model"),
        ("heatmap m.onnx .", 2, ". is a folder, not a picture"),
        ("heatmap m.onnx a.png -o a.txt", 2, "a name that ends in .png, not a.txt"),
        ("optimize m.onnx --passes gemm-to-con", 2, "(did you mean gemm-to-conv?); there are"),
        ("optimize m.onnx --passes fats", 2, "(did you mean fast?)"),
        ("optimize m.onnx --passes clean-up{fold_budge=2}", 2, "(did you mean fold_budget?)"),
        ("optimize m.onnx --skip cleanup", 2, "(did you mean clean-up?) to skip"),
        ("optimize m.onnx --pipeline Runtim", 2, "(did you mean runtime?)"),
        ("optimize m.onnx --target tensor-rt", 2, "(did you mean tensorrt?)"),
        ("check m.onnx --target etos", 2, "(did you mean ethos-u?)"),
        ("passes gemmtoconv", 2, "(did you mean gemm-to-conv?)"),
        ("optimize m.onnx --passes zzzzzz", 2, "there is no pass 'zzzzzz'; there are"),
        ("optimize m.onnx --provider foo", 4, "has no execution provider 'foo'; available"),
        ("optimize m.onnx --inputs empty.npz", 2, "'empty.npz' holds no arrays"),
    ],
)
def test_one_sentence(
    model: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, text: str
) -> None:
    np.savez("empty.npz")
    arguments = [part.strip("'") for part in command.split(" ")]
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert text in err and err.count("\n") == 1 and not out
    assert {p.name for p in model.parent.iterdir()} == {"m.onnx", "empty.npz"}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a{x=1;y=2},b", [("a", {"x": "1", "y": "2"}), ("b", {})]),
        ("a{x=1,y=2},b", [("a", {"x": "1", "y": "2"}), ("b", {})]),
        ("a{ x = 1 , y = 2 , }", [("a", {"x": "1", "y": "2"})]),
        ("a{x=1;}", [("a", {"x": "1"})]),
        ("a{x=p,q,y=2}", [("a", {"x": "p,q", "y": "2"})]),
        ("a{}", [("a", {})]),
    ],
)
def test_options_of_a_pass_are_separated_by_either_sign(
    text: str, steps: list[tuple[str, dict[str, str]]]
) -> None:
    assert split(text) == steps


@pytest.mark.parametrize("text", ["a{x}", "a{x,y=1}"])
def test_an_option_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="option 'x' of pass a needs =value"):
        split(text)


def test_only_what_is_near_is_offered() -> None:
    assert nearest("Fold-Batchnorm", ["fold-batchnorm"]) == " (did you mean fold-batchnorm?)"
    assert nearest("relu", ["fold-batchnorm"]) == nearest("", ["a"]) == nearest("x", []) == ""
    assert nearest("a" * 10**6, ["a" * 160]) == f" (did you mean {'a' * 160}?)"


def test_a_limit_that_both_model_and_pass_ran_into_is_said_once(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight: Array = np.ones((2, 2), np.float32)
    net = graph(
        "m (float[2, 2] x) => (float[2, 2] y) { z = Identity(x) y = MatMul(z, w) }", w=weight
    )
    model.write_bytes(net.SerializeToString())
    assert run(["optimize", str(model), "--timeout", "0.0001"]) in (3, 4)
    assert capsys.readouterr().err.count("within 0.0001 s") == 1
