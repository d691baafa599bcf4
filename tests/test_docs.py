"""What the documents show is what happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass import testing
from graphpass.cli import run
from graphpass.errors import RuleError
from graphpass.rewrite.registry import make

ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def files(document: str) -> dict[str, str]:
    """Return the files that a document tells to write: their name stands before the block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return dict(re.findall(r"`([\w/-]+\.\w+)`:\n\n```\w+\n(.*?)```", text, flags=re.S))


def test_the_first_pass_of_the_contributing_guide_to_the_letter(tmp_path: Path) -> None:
    for name, content in files("CONTRIBUTING.md").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (commands,) = blocks("CONTRIBUTING.md", "sh")
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    told = ""
    for command in commands.strip().splitlines():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        told += done.stdout + done.stderr
        assert done.returncode == 0, f"{command}: {told}"
    assert "3 passed" in told and "1 of 1 as expected" in told
    assert [n.op_type for n in onnx.load(tmp_path / "smaller.onnx").graph.node] == ["Mul"]


def test_the_passes_of_the_contributing_guide(tmp_path: Path) -> None:
    for name, content in files("CONTRIBUTING.md").items():
        if name.endswith("_pass.py"):
            (tmp_path / name).write_text(content, encoding="utf-8")
    model = testing.graph(
        "(float[N,4] x) => (float[N,3] q, float[N,2] k) { q = MatMul(x, V) k = MatMul(x, W) }",
        V=(4, 3),
        W=(4, 2),
    )
    step = make(f"{tmp_path}/siblings_pass.py:ProductsOfOnePass")
    testing.check(step, model, "MatMul Split<axis=-1>")
    testing.check_replay(step, model)
    cube = testing.graph(
        "(float[4] x) => (float[3] q, float[2,2] k) { q = MatMul(x, V) k = MatMul(x, W) }",
        V=(4, 3),
        W=(2, 4, 2),
    )
    testing.check_refused(step, cube, "'V', 'W' are not all matrices")
    relu = testing.graph("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    result, _ = testing.apply_to(make(f"{tmp_path}/by_hand_pass.py:BytesIn"), relu)
    testing.check_operators(result, "Cast<to=1> Mul Relu")
    onnx.checker.check_model(result, full_check=True)
    (image,) = result.graph.input
    assert (image.name, image.type.tensor_type.elem_type) == ("bytes", onnx.TensorProto.UINT8)


def test_the_good_and_the_bad_rules_of_the_contributing_guide() -> None:
    everything = {name: getattr(graphpass, name) for name in graphpass.__all__}
    names: dict[str, Any] = {"__name__": "guide", "np": np, "dataclass": dataclass, **everything}
    for block in blocks("CONTRIBUTING.md", "python"):
        if block.startswith("# bad: Transpose has no attribute"):
            with pytest.raises(RuleError, match="Transpose has no attribute 'axes'"):
                exec(block, names)
        elif block.startswith(("# good", "# bad")):
            exec(compile(block, "guide", "exec", dont_inherit=True), names)

    def becomes(rule: str, text: str, after: str | None, **constants: Any) -> None:
        @dataclass(frozen=True)
        class One(graphpass.Pass):
            """One rule."""

            name = "one"
            rules = (names[rule](),)

        model = testing.graph(f"(float[2,2] x) => (float[2,2] y) {{ {text} }}", **constants)
        values = np.array([[-0.0, 1], [-1, 2]], np.float32)
        testing.check(One(), model, after, exact=True, inputs={"x": values})

    zero = np.zeros(1, np.float32)
    becomes("DropMinusZero", "a = Add(x, c) y = Abs(a)", "Abs", c=-zero)
    becomes("DropMinusZero", "a = Add(x, c) y = Abs(a)", "Add Abs", c=zero)
    with pytest.raises(AssertionError, match="differs"):
        becomes("DropZero", "a = Add(x, c) y = Reciprocal(a)", "Reciprocal", c=zero)
    twice = "a = Transpose<perm=[1,0]>(x) b = Transpose<perm=[1,0]>(a) y = Abs(b)"
    becomes("SwapTwice", twice, "Abs")
    becomes("UnitLeak", "a = LeakyRelu(x) y = Abs(a)", "LeakyRelu Abs")
    with pytest.raises(AssertionError, match="differs"):
        becomes("GuessedLeak", "a = LeakyRelu(x) y = Abs(a)", "Abs")
    becomes("SmallScale", "a = Mul(x, c) y = Abs(a)", "Abs", c=zero + 1)
    conv = testing.graph(
        "(float[1,1,2,2] x) => (float[1,3,2,2] y) { c = Conv(x, w) y = Add(c, s) }",
        w=(3, 1, 1, 1),
        s=(3, 1, 1),
    )
    for rule, said in (("ShiftIntoConv", None), ("AssertsIntoConv", "AssertionError")):

        @dataclass(frozen=True)
        class One(graphpass.Pass):
            """One rule."""

            name = "one"
            rules = (names[rule](),)

        if said is None:
            testing.check_refused(One(), conv, "is not one number for all of Conv")
        else:
            with pytest.raises(RuleError, match=said):
                testing.apply_to(One(), conv)


def test_fixtures_come_with_the_package() -> None:
    told = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"graphpass.fixtures" = "fixtures"' in told
    (pattern,) = re.findall(r'"graphpass.fixtures" = \["([^"]+)"\]', told)
    packed = set((ROOT / "fixtures").glob(pattern))
    found = {path for path in (ROOT / "fixtures").rglob("*.txt") if path.parent.name != "fixtures"}
    assert packed == found and len(packed) > 40


def test_the_second_command_of_the_readme_is_what_the_contributing_guide_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = blocks("CONTRIBUTING.md", "")[0].strip()
    assert command in readme


def test_many_models_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo/sub").mkdir(parents=True)
    for name in ("digits.onnx", "zoo/sub/other.onnx"):
        shutil.copyfile(ROOT / "fixtures/digits.onnx", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Many models")[1].split("\n## ")[0]
    first = re.findall(r"```\n(.*?)\n", section)[0]
    assert run(first.split()[1:]) == 0
    assert {p.name for p in (tmp_path / "out").rglob("*.onnx")} == {"digits.onnx", "other.onnx"}
    assert json.loads((tmp_path / "out/all.json").read_text())["counts"]["written"] == 2
    names: dict[str, Any] = {"graphpass": graphpass}
    exec(re.findall(r"```python\n(.*?)```", section, flags=re.S)[0], names)
    assert names["report"].counts == {"written": 0, "skipped": 2, "failed": 0}
